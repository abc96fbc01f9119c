//! Elements, from the text of a test.

use super::{Example, SETS, set as set_ref};
use nftables_rs::{Batch, Data, Element, Value};
use std::net::{Ipv4Addr, Ipv6Addr};

/// An element with its bytes.
#[derive(Debug, Default)]
pub struct Owned {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    data: Option<Vec<u8>>,
    comment: Option<String>,
}

impl Owned {
    pub fn element(&self) -> Element<'_> {
        Element {
            key_end: self.key_end.as_deref(),
            data: self.data.as_deref().map(Data::Value),
            comment: self.comment.as_deref(),
            ..Element::new(&self.key)
        }
    }
}

impl Example {
    /// Writes the elements of lines such as `add element ip example services { 10.96.0.1 . tcp . 80 comment "x" }`, and
    /// likewise with `delete`.
    pub fn write_elements(&self, batch: &mut Batch, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (head, list) = line.split_once(" { ").expect("a list of elements");
            let [verb, "element", family, table, set] = head.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            assert_eq!(format!("{family} {table}"), self.table.to_string());
            let elements = list.trim_end_matches(" }").split(", ").map(|element| parse(set, element));
            let set = SETS.into_iter().find(|name| *name == set).map(set_ref).expect(line);
            let mut list = match verb {
                "add" => batch.add_elements(self.table, set),
                _ => batch.delete_elements(self.table, set.name),
            };
            elements.for_each(|element| {
                list.push(&element.element());
            });
        }
    }
}

/// Reads `key [comment "…"] [: data]`.
pub fn parse(set: &str, text: &str) -> Owned {
    let (key, data) = match text.split_once(" : ") {
        Some((key, data)) => (key, Some(data)),
        None => (text, None),
    };
    let (key, comment) = match key.split_once(" comment ") {
        Some((key, comment)) => (key, Some(comment.trim_matches('"').to_owned())),
        None => (key, None),
    };
    let is_numbered = set == "endpoints";
    let parts: Vec<&str> = key.split(" . ").collect();
    let (mut first, mut last) = (Value::EMPTY, Value::EMPTY);
    for (index, text) in parts.iter().enumerate() {
        let is_number = is_numbered && index + 1 == parts.len();
        let (start, end) = if is_number { both(&number(text)) } else { part(text) };
        first.push(&start);
        last.push(&end);
    }
    let data = data.map(|data| {
        let mut value = Value::EMPTY;
        data.split(" . ").for_each(|text| value.push(&part(text).0));
        value.as_bytes().to_vec()
    });
    let key_end = (set == "sources").then(|| last.as_bytes().to_vec());
    Owned { key: first.as_bytes().to_vec(), key_end, data, comment }
}

fn both(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (bytes.to_vec(), bytes.to_vec())
}

fn number(text: &str) -> [u8; 4] {
    text.parse::<u32>().unwrap().to_ne_bytes()
}

/// An address, a prefix, a protocol or a port: the first and the last value.
fn part(text: &str) -> (Vec<u8>, Vec<u8>) {
    let protocol = match text {
        "tcp" => Some(6),
        "udp" => Some(17),
        _ => None,
    };
    if let Some(protocol) = protocol {
        return both(&[protocol]);
    }
    let (address, len) = text.split_once('/').unwrap_or((text, ""));
    if let Ok(address) = address.parse::<Ipv4Addr>() {
        let free = u32::MAX.checked_shr(len.parse().unwrap_or(32)).unwrap_or(0);
        let last = Ipv4Addr::from_bits(address.to_bits() | free);
        return (address.octets().to_vec(), last.octets().to_vec());
    }
    if let Ok(address) = address.parse::<Ipv6Addr>() {
        let free = u128::MAX.checked_shr(len.parse().unwrap_or(128)).unwrap_or(0);
        let last = Ipv6Addr::from_bits(address.to_bits() | free);
        return (address.octets().to_vec(), last.octets().to_vec());
    }
    both(&text.parse::<u16>().unwrap().to_be_bytes())
}

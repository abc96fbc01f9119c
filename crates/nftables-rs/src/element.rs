//! Elements of sets and maps.

use crate::expression::{Verdict, milliseconds, write_verdict};
use crate::user_data::write_comment;
use crate::wire::{data, element};
use netlink::MsgBuf;
use std::time::Duration;

/// What an element of a map leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// A value.
    Value(&'a [u8]),
    /// A verdict.
    Verdict(Verdict<'a>),
}

/// An element to add or to delete.
///
/// ```
/// use nftables_rs::{Data, Element, Value};
///
/// let key = Value::concat(&[&[10, 96, 0, 1], &[6], &80_u16.to_be_bytes()]);
/// let element = Element { comment: Some("shop/web:http"), ..Element::new(key.as_bytes()) };
/// let entry = Element { data: Some(Data::Value(&[192, 0, 2, 7])), ..Element::new(key.as_bytes()) };
/// # let _ = (element, entry);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// Its key, as long as the set's keys are; the start of a range.
    pub key: &'a [u8],
    /// The end of a range, itself included, in sets of ranges of several parts. Other sets have one element for the
    /// start and one for what follows the end.
    pub key_end: Option<&'a [u8]>,
    /// It is what follows the end of a range.
    pub is_range_end: bool,
    /// What it leads to, in a map.
    pub data: Option<Data<'a>>,
    /// How long it lives.
    pub timeout: Option<Duration>,
    /// A comment; cut to 128 bytes. An element that is there keeps the one it has.
    pub comment: Option<&'a str>,
}

impl<'a> Element<'a> {
    /// An element with no more than a key.
    #[must_use]
    pub const fn new(key: &'a [u8]) -> Element<'a> {
        Element { key, key_end: None, is_range_end: false, data: None, timeout: None, comment: None }
    }

    /// An element of a map.
    #[must_use]
    pub const fn entry(key: &'a [u8], value: &'a [u8]) -> Element<'a> {
        Element { data: Some(Data::Value(value)), ..Element::new(key) }
    }

    /// At most how long its attributes become.
    pub(crate) fn len_at_most(&self) -> usize {
        // Headers, padding and numbers of all attributes come to less than 100 bytes.
        let data = match self.data {
            Some(Data::Value(value)) => value.len(),
            Some(Data::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => chain.len(),
            _ => 0,
        };
        100 + self.key.len() + self.key_end.map_or(0, <[u8]>::len) + data + self.comment.map_or(0, str::len)
    }

    pub(crate) fn write(&self, buf: &mut MsgBuf) {
        if self.is_range_end {
            buf.be32(element::FLAGS, element::INTERVAL_END);
        }
        if let Some(timeout) = self.timeout {
            buf.be64(element::TIMEOUT, milliseconds(timeout));
        }
        value(buf, element::KEY, self.key);
        if let Some(key_end) = self.key_end {
            value(buf, element::KEY_END, key_end);
        }
        match self.data {
            None => {}
            Some(Data::Value(bytes)) => value(buf, element::DATA, bytes),
            Some(Data::Verdict(verdict)) => buf.nest(element::DATA, |buf| write_verdict(buf, verdict)),
        }
        write_comment(buf, element::USER_DATA, self.comment);
    }
}

fn value(buf: &mut MsgBuf, kind: u16, bytes: &[u8]) {
    buf.nest(kind, |buf| buf.bytes(data::VALUE, bytes));
}

/// An element, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedElement<'a> {
    /// The element.
    pub element: Element<'a>,
    /// What is left of its time.
    pub expires_in: Option<Duration>,
    /// What it has counted, in sets that count.
    pub counter: Option<Counted>,
}

/// What a counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

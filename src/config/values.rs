//! Parsers of single flag values and of the addresses that flags and files share.

use crate::model::{Cidr, parse_cidr, parse_ip};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A feature gate and what it is set to.
pub(super) type Gate = (String, bool);

/// The log level of the source files that match a pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct VmoduleRule {
    /// Matches a file's name without its extension.
    pub(super) file_pattern: String,
    /// Level for these files.
    pub(super) verbosity: u32,
}

/// `None` for the empty text.
pub(super) fn non_empty(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// Go's spellings of a boolean.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// One entry of a list of gates. Lists may have empty entries, as after their last comma; these mean
/// nothing.
pub(super) fn gate(text: &str) -> Result<Option<Gate>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let (name, value) = text.split_once('=').ok_or("missing bool value, write NAME=true")?;
    Ok(Some((name.trim().to_owned(), boolean(value.trim())?)))
}

/// One entry of a list of rules; empty entries as in [`gate`].
pub(super) fn vmodule(text: &str) -> Result<Option<VmoduleRule>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let (pattern, level) =
        text.split_once('=').filter(|(it, _)| !it.is_empty()).ok_or("expected PATTERN=N")?;
    Ok(Some(VmoduleRule { file_pattern: pattern.to_owned(), verbosity: level.parse::<Verbosity>()?.0 }))
}

/// How much to log: for klog a plain decimal number, unlike all other integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verbosity(pub(super) u32);

impl FromStr for Verbosity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let most = i32::MAX.unsigned_abs();
        let level = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let level = level.filter(|level| *level <= most).map(Verbosity);
        level.ok_or_else(|| format!("must be a decimal number from 0 to {most}"))
    }
}

/// One entry of a list. In a manifest no shell takes quotes away, but Go's flags do.
pub(super) fn list_entry(text: &str) -> Result<String, String> {
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    Ok(quoted.unwrap_or(text).to_owned())
}

pub(super) fn version(text: &str) -> Result<String, String> {
    if text == "raw" || text.starts_with('v') {
        return Ok(text.to_owned());
    }
    boolean(text)
        .map(|wanted| wanted.to_string())
        .map_err(|_| "must be true, false, raw or vX.Y.Z".to_owned())
}

/// A Kubernetes quantity of bytes; only its form is checked, nothing here needs its value.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    const UNITS: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, unit) = unsigned.split_at(end);
    let is_exponent = unit.strip_prefix(['e', 'E']).is_some_and(|digits| digits.parse::<i64>().is_ok());
    if number.parse::<f64>().is_err() || !(UNITS.contains(&unit) || is_exponent) {
        return Err("must be a quantity such as 0, 512Ki or 2Mi".to_owned());
    }
    Ok(text.to_owned())
}

/// Decodes a field that is a quantity, which may be written as a number.
pub(super) fn quantity_field<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    input.deserialize_any(QuantityVisitor)
}

struct QuantityVisitor;

impl de::Visitor<'_> for QuantityVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity such as 0, 512Ki or 2Mi")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        quantity(text.trim()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<String, E> {
        self.visit_str(&number.to_string())
    }
}

/// An IP address; an empty value stands for "leave the default".
pub(super) fn ip(text: &str) -> Result<String, String> {
    if !text.is_empty() && parse_ip(text).is_none() {
        return Err("must be a valid IP address".to_owned());
    }
    Ok(text.to_owned())
}

/// An IP address with or without a port; an empty value stands for "leave the default".
pub(super) fn ip_port(text: &str) -> Result<String, String> {
    if text.is_empty() || parse_ip(text).is_some() {
        return Ok(text.to_owned());
    }
    socket_address(text).map(|_| text.to_owned())
}

/// `IP:port` with a port that can be listened on.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    const PORT_RANGE: &str = "must be a valid port number, from 1 to 65535";
    let Some((host, port)) = text.rsplit_once(':') else { return Err("must be IP:port".to_owned()) };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = parse_ip(bare.unwrap_or(host)).filter(|_| bare.is_some() || !host.contains(':'));
    let Some(ip) = ip else { return Err("must be a valid IP with a port".to_owned()) };
    let port: i64 = port.parse().map_err(|_| "must be a valid port".to_owned())?;
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(SocketAddr::new(ip, port)),
        _ => Err(PORT_RANGE.to_owned()),
    }
}

/// Adds a port to a bare IP address; anything else stays as it is.
pub(super) fn with_port(address: &str, port: i32) -> String {
    match parse_ip(address) {
        Some(_) if address.contains(':') => format!("[{address}]:{port}"),
        Some(_) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

pub(super) fn cidr(text: &str) -> Result<Cidr, String> {
    parse_cidr(text).ok_or_else(|| "must be a network in CIDR form, as in 10.96.0.0/12".to_owned())
}

/// The key of a taint: a name, perhaps after a domain and a slash.
pub(super) fn taint_key(text: &str) -> Result<String, String> {
    let (domain, name) = text.rsplit_once('/').unwrap_or(("example.com", text));
    let plain = |it: u8| it.is_ascii_alphanumeric() || b"-_.".contains(&it);
    let ends = |part: &str| part.starts_with(char::is_alphanumeric) && part.ends_with(char::is_alphanumeric);
    let fits = |part: &str, most: usize| part.len() <= most && part.bytes().all(plain) && ends(part);
    if fits(domain, 253) && fits(name, 63) {
        return Ok(text.to_owned());
    }
    Err("must be the key of a taint, as in example.com/services-not-ready".to_owned())
}

pub(super) fn port_range(text: &str) -> Result<(u16, u16), String> {
    let complaint = || "must be FIRST-LAST, ports from 1 to 65535 in order".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(complaint)?;
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(complaint()),
    }
}

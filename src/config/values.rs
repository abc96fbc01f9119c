//! Parsers of single flag values and of the addresses that flags and files share.

use crate::model::Cidr;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

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

pub(super) fn gate(text: &str) -> Result<Gate, String> {
    let (name, value) = text.split_once('=').ok_or("missing bool value, write NAME=true")?;
    Ok((name.trim().to_owned(), boolean(value.trim())?))
}

pub(super) fn vmodule(text: &str) -> Result<VmoduleRule, String> {
    let (pattern, level) = text.split_once('=').ok_or("expected PATTERN=N")?;
    let verbosity = level.parse().map_err(|_| "the level must be a number from 0 up".to_owned())?;
    Ok(VmoduleRule { file_pattern: pattern.to_owned(), verbosity })
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
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let known = ["", "k", "Ki", "M", "Mi", "G", "Gi", "T", "Ti", "P", "Pi", "E", "Ei"];
    if number.parse::<f64>().is_err() || !known.contains(&unit) {
        return Err("must be a quantity such as 0, 512Ki or 2Mi".to_owned());
    }
    Ok(text.to_owned())
}

/// An IP address; an empty value stands for "leave the default".
pub(super) fn ip(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.parse::<IpAddr>().is_err() {
        return Err("must be a valid IP address".to_owned());
    }
    Ok(text.to_owned())
}

/// An IP address with or without a port; an empty value stands for "leave the default".
pub(super) fn ip_port(text: &str) -> Result<String, String> {
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    socket_address(text).map(|_| text.to_owned())
}

/// `IP:port` with a port that can be listened on.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err(PORT_RANGE.to_owned()) } else { Ok(address) };
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Err("must be IP:port".to_owned()) };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.parse::<IpAddr>().is_err() {
        return Err("must be a valid IP with a port".to_owned());
    }
    if port.bytes().all(|digit| digit.is_ascii_digit()) && !port.is_empty() {
        return Err(PORT_RANGE.to_owned());
    }
    Err("must be a valid port".to_owned())
}

const PORT_RANGE: &str = "must be a valid port number, from 1 to 65535";

/// Adds a port to a bare IP address; anything else stays as it is.
pub(super) fn with_port(address: &str, port: i32) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("{ip}:{port}"),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        Err(_) => address.to_owned(),
    }
}

pub(super) fn cidr(text: &str) -> Result<Cidr, String> {
    let cidr = text.parse::<Cidr>().map_err(|_| "must be a network in CIDR form, as in 10.96.0.0/12")?;
    Ok(cidr.trunc())
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

//! Text to addresses, networks and numbers, as lenient as upstream.

use super::Issues;
use crate::model::{Protocol, quoted};
pub(in crate::watch) use crate::model::{parse_cidr, parse_ip};
use std::fmt;
use std::net::IpAddr;

/// What makes an address one that neither endpoints nor external IPs can have (API): it would lead
/// to the client's own host, or to one on the same link.
pub(super) fn special(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments()[0] & 0xff0f == 0xff02,
    };
    if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_loopback() {
        Some("a loopback address")
    } else {
        link_local.then_some("a link-local address")
    }
}

/// A port number that packets can have.
pub(super) fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// A protocol; absent or empty means TCP. Any other text is an error.
pub(super) fn protocol(
    text: Option<&str>,
    field: impl fmt::Display,
    issues: &mut Issues,
) -> Option<Protocol> {
    match text.unwrap_or_default() {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            issues.error(
                field,
                format_args!("{} is not a protocol; there are TCP, UDP and SCTP", quoted(other)),
            );
            None
        }
    }
}

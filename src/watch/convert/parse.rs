//! Text to addresses, networks and numbers, as lenient as upstream.

use super::Issues;
use crate::model::{Cidr, Protocol};
use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// An IP address. Decimal octets may have leading zeros: the API accepted them once, so they are
/// in old objects. An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`) is an IPv4 address.
pub(in crate::watch) fn parse_ip(text: &str) -> Option<IpAddr> {
    raw_ip(text).map(|ip| ip.to_canonical())
}

/// What makes an address one that neither endpoints nor external IPs can have (API): it would lead
/// to whoever asks, or to whoever is on the same link.
pub(in crate::watch) fn special(ip: IpAddr) -> Option<&'static str> {
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

/// A network in masked form; leading zeros as in [`parse_ip`], in the prefix length too.
pub(super) fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = prefix.trim_start_matches('0');
    let prefix: u8 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let net = match raw_ip(address)? {
        IpAddr::V6(v6) if prefix >= 96 => {
            mapped_net(v6, prefix).or_else(|| IpNet::new(v6.into(), prefix).ok())?
        }
        address => IpNet::new(address, prefix).ok()?,
    };
    Some(net.trunc())
}

fn mapped_net(address: Ipv6Addr, prefix: u8) -> Option<IpNet> {
    let net = Ipv4Net::new(address.to_ipv4_mapped()?, prefix - 96).ok()?;
    Some(IpNet::V4(net))
}

fn raw_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| without_leading_zeros(text)?.parse().ok())
}

/// The text with the leading zeros of its decimal octets removed; `None` if it has no octets.
fn without_leading_zeros(text: &str) -> Option<String> {
    let (groups, octets) = text.split_at(text.rfind(':').map_or(0, |colon| colon + 1));
    if !octets.contains('.') {
        return None;
    }
    let mut plain = groups.to_owned();
    for (index, octet) in octets.split('.').enumerate() {
        if index > 0 {
            plain.push('.');
        }
        let digits = octet.trim_start_matches('0');
        plain.push_str(if digits.is_empty() && !octet.is_empty() { "0" } else { digits });
    }
    Some(plain)
}

/// A port number that packets can have.
pub(super) fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// A protocol; absent means TCP. Any other text is an error.
pub(super) fn protocol(
    text: Option<&str>,
    field: impl fmt::Display,
    issues: &mut Issues,
) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            issues.error(field, format_args!("{other:?} is not a protocol; there are TCP, UDP and SCTP"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("192.0.2.1", Some("192.0.2.1"))]
    #[case("172.30.0.041", Some("172.30.0.41"))]
    #[case("000172.030.00.000", Some("172.30.0.0"))]
    #[case("2001:db8::1", Some("2001:db8::1"))]
    #[case("2001:0DB8:0::0001", Some("2001:db8::1"))]
    #[case("::ffff:192.0.2.1", Some("192.0.2.1"))]
    #[case("::ffff:192.0.02.1", Some("192.0.2.1"))]
    #[case("2001:db8::192.0.2.010", Some("2001:db8::c000:20a"))]
    #[case("10.0.0.300", None)]
    #[case("10.0.0.0300", None)]
    #[case("10.0.0", None)]
    #[case("10.0.0.", None)]
    #[case("10..0.1", None)]
    #[case("0x0a.0.0.1", None)]
    #[case(" 10.0.0.1", None)]
    #[case("fe80::1%eth0", None)]
    #[case("", None)]
    #[case("web.example.com", None)]
    fn addresses_may_have_leading_zeros(#[case] text: &str, #[case] wanted: Option<&str>) {
        assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), wanted);
    }

    #[rstest]
    #[case("203.0.113.0/24", Some("203.0.113.0/24"))]
    #[case("203.0.113.000/025", Some("203.0.113.0/25"))]
    #[case("203.0.113.77/24", Some("203.0.113.0/24"))]
    #[case("0.0.0.0/0", Some("0.0.0.0/0"))]
    #[case("0.0.0.0/00", Some("0.0.0.0/0"))]
    #[case("2001:db8::1/64", Some("2001:db8::/64"))]
    #[case("::/0", Some("::/0"))]
    #[case("::ffff:192.0.2.9/120", Some("192.0.2.0/24"))]
    #[case("192.0.2.1", None)]
    #[case("192.0.2.0/", None)]
    #[case("192.0.2.0/+8", None)]
    #[case("192.0.2.0/33", None)]
    #[case("2001:db8::/129", None)]
    #[case("192.0.2.0/24/8", None)]
    fn networks_are_masked(#[case] text: &str, #[case] wanted: Option<&str>) {
        assert_eq!(parse_cidr(text).map(|net| net.to_string()).as_deref(), wanted);
    }
}

//! IP families, protocols and networks.

use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// An IP network with its host bits cleared.
pub type Cidr = IpNet;

/// One of the two IP families; each has a dataplane of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both families, IPv4 first.
    pub const ALL: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> IpFamily {
        if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }

    /// The family of a network.
    #[must_use]
    pub fn of_cidr(cidr: &Cidr) -> IpFamily {
        Self::of(cidr.network())
    }

    /// The other family.
    #[must_use]
    pub fn other(self) -> IpFamily {
        match self {
            IpFamily::V4 => IpFamily::V6,
            IpFamily::V6 => IpFamily::V4,
        }
    }

    /// `IPv4` or `IPv6`, as the API and upstream's metric labels spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value per IP family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// For IPv4.
    pub v4: T,
    /// For IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// Builds both values.
    pub fn build(mut make: impl FnMut(IpFamily) -> T) -> Self {
        PerFamily { v4: make(IpFamily::V4), v6: make(IpFamily::V6) }
    }

    /// The value of one family.
    pub fn get(&self, family: IpFamily) -> &T {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }

    /// The value of one family, to change it.
    pub fn get_mut(&mut self, family: IpFamily) -> &mut T {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }
}

/// The transport protocols a Service port can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// The API's default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The spelling of rules and of chain-name hashes: `tcp`, `udp`, `sctp`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An IP address. Decimal octets may have leading zeros: the API accepted them once, so they are
/// in old objects. An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`) is an IPv4 address.
#[must_use]
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    raw_ip(text).map(|ip| ip.to_canonical())
}

/// A network in masked form; leading zeros as in [`parse_ip`], in the prefix length too.
#[must_use]
pub fn parse_cidr(text: &str) -> Option<Cidr> {
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

//! Elements of sets and maps, in the terms of Services: how they are written for the kernel and for people, and read back.

use super::names::{Kind, Plane, SetId};
use crate::model::{Cidr, IpFamily, Protocol};
use nftables_rs::{Data, Element, Value};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Address and port of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl From<SocketAddr> for Endpoint {
    fn from(at: SocketAddr) -> Self {
        Endpoint { address: at.ip(), port: at.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {}", self.address, self.port)
    }
}

/// What traffic is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Destination {
    Service { address: IpAddr, protocol: Protocol, port: u16 },
    NodePort { protocol: Protocol, port: u16 },
}

impl Destination {
    pub(super) fn plane(self) -> Plane {
        match self {
            Destination::Service { .. } => Plane::Services,
            Destination::NodePort { .. } => Plane::NodePorts,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Service { address, protocol, port } => write!(f, "{address} . {protocol} . {port}"),
            Destination::NodePort { protocol, port } => write!(f, "{protocol} . {port}"),
        }
    }
}

/// What an element of a set is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    Address(IpAddr),
    Destination(Destination),
    Number(Destination, u32),
    Source(Destination, Cidr),
    Endpoint(Destination, Endpoint),
    Hairpin(Protocol, Endpoint),
}

impl fmt::Display for Key {
    /// As nft writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Address(address) => address.fmt(f),
            Key::Destination(at) => at.fmt(f),
            Key::Number(at, number) => write!(f, "{at} . {number}"),
            Key::Source(at, cidr) if cidr.prefix_len() == cidr.max_prefix_len() => {
                write!(f, "{at} . {}", cidr.addr())
            }
            Key::Source(at, cidr) => write!(f, "{at} . {cidr}"),
            Key::Endpoint(at, endpoint) => write!(f, "{at} . {endpoint}"),
            Key::Hairpin(protocol, Endpoint { address, port }) => {
                write!(f, "{address} . {address} . {protocol} . {port}")
            }
        }
    }
}

/// Names an element of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ElementId {
    pub(super) set: SetId,
    pub(super) key: Key,
}

impl ElementId {
    pub(super) fn endpoint(kind: Kind, at: Destination, number: u32) -> Self {
        ElementId { set: SetId::Endpoints(kind), key: Key::Number(at, number) }
    }

    pub(super) fn destination(set: SetId, at: Destination) -> Self {
        ElementId { set, key: Key::Destination(at) }
    }

    pub(super) fn hairpin(protocol: Protocol, endpoint: Endpoint) -> Self {
        ElementId { set: SetId::Hairpin, key: Key::Hairpin(protocol, endpoint) }
    }
}

impl fmt::Display for ElementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {{ {} }}", self.set.name(), self.key)
    }
}

/// What an element has besides its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Where it leads to, in a map of endpoints.
    pub(super) to: Option<Endpoint>,
    /// The Service, or its port.
    pub(super) comment: Option<Arc<str>>,
}

/// What an element is.
pub(super) type Item = (ElementId, Content);

/// Writes an element for the kernel.
pub(super) fn with_wire<T>(id: &ElementId, content: &Content, take: impl FnOnce(&Element<'_>) -> T) -> T {
    let Wire { key, key_end, data, .. } = wire(id, content.to);
    take(&Element {
        key_end: key_end.as_ref().map(Value::as_bytes),
        data: data.as_ref().map(|data| Data::Value(data.as_bytes())),
        comment: content.comment.as_deref(),
        ..Element::new(key.as_bytes())
    })
}

/// An element as the kernel has it.
pub(super) struct Wire {
    /// That of its addresses; an element without any is the same in both.
    pub(super) family: IpFamily,
    pub(super) key: Value,
    pub(super) key_end: Option<Value>,
    pub(super) data: Option<Value>,
}

/// The bytes of an element.
pub(super) fn wire(id: &ElementId, to: Option<Endpoint>) -> Wire {
    let (key, key_end) = wire_key(&id.key);
    let address = match id.key {
        Key::Address(address) => Some(address),
        Key::Hairpin(_, endpoint) | Key::Endpoint(_, endpoint) => Some(endpoint.address),
        Key::Source(_, cidr) => Some(cidr.addr()),
        Key::Destination(Destination::Service { address, .. })
        | Key::Number(Destination::Service { address, .. }, _) => Some(address),
        Key::Destination(_) | Key::Number(..) => to.map(|to| to.address),
    };
    let family = address.map_or(IpFamily::V4, IpFamily::of);
    Wire { family, key, key_end, data: to.map(|to| concat_endpoint(Value::EMPTY, to)) }
}

/// Reads where an element leads to; `None` if it does not say.
pub(super) fn read_endpoint(family: IpFamily, data: &[u8]) -> Option<Endpoint> {
    Parts { family, rest: data }.endpoint()
}

fn push_address(value: &mut Value, address: IpAddr) {
    match address {
        IpAddr::V4(address) => value.push(&address.octets()),
        IpAddr::V6(address) => value.push(&address.octets()),
    }
}

fn concat_endpoint(mut value: Value, endpoint: Endpoint) -> Value {
    push_address(&mut value, endpoint.address);
    value.push(&endpoint.port.to_be_bytes());
    value
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn destination(at: Destination) -> Value {
    let mut value = Value::EMPTY;
    let (protocol, port) = match at {
        Destination::Service { address, protocol, port } => {
            push_address(&mut value, address);
            (protocol, port)
        }
        Destination::NodePort { protocol, port } => (protocol, port),
    };
    value.push(&[number(protocol)]);
    value.push(&port.to_be_bytes());
    value
}

/// The key, and of a range its last key.
fn wire_key(key: &Key) -> (Value, Option<Value>) {
    match *key {
        Key::Address(address) => {
            let mut value = Value::EMPTY;
            push_address(&mut value, address);
            (value, None)
        }
        Key::Destination(at) => (destination(at), None),
        Key::Number(at, number) => {
            let mut value = destination(at);
            value.push(&number.to_ne_bytes());
            (value, None)
        }
        Key::Source(at, cidr) => {
            let (mut first, mut last) = (destination(at), destination(at));
            push_address(&mut first, cidr.network());
            push_address(&mut last, cidr.broadcast());
            (first, Some(last))
        }
        Key::Endpoint(at, endpoint) => (concat_endpoint(destination(at), endpoint), None),
        Key::Hairpin(protocol, Endpoint { address, port }) => {
            let mut value = Value::EMPTY;
            push_address(&mut value, address);
            push_address(&mut value, address);
            value.push(&[number(protocol)]);
            value.push(&port.to_be_bytes());
            (value, None)
        }
    }
}

/// Reads parts of a key one after the other.
struct Parts<'a> {
    family: IpFamily,
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (part, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(part)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.family {
            IpFamily::V4 => self.take::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
            IpFamily::V6 => self.take::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        }
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [found, ..] = *self.take::<4>()?;
        Protocol::ALL.into_iter().find(|protocol| number(*protocol) == found)
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = *self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn endpoint(&mut self) -> Option<Endpoint> {
        Some(Endpoint { address: self.address()?, port: self.port()? })
    }

    fn destination(&mut self, plane: Plane) -> Option<Destination> {
        Some(match plane {
            Plane::Services => {
                let address = self.address()?;
                Destination::Service { address, protocol: self.protocol()?, port: self.port()? }
            }
            Plane::NodePorts => Destination::NodePort { protocol: self.protocol()?, port: self.port()? },
        })
    }
}

/// Reads an element of a set; `None` if none of ours has such a key.
pub(super) fn read(
    family: IpFamily,
    set: SetId,
    element: &Element<'_>,
) -> Option<(ElementId, Option<Endpoint>)> {
    let mut parts = Parts { family, rest: element.key };
    let key = match set {
        SetId::ClusterIps | SetId::NodePortIps => Key::Address(parts.address()?),
        SetId::Hairpin => {
            let (source, address) = (parts.address()?, parts.address()?);
            let protocol = parts.protocol()?;
            let endpoint = Endpoint { address, port: parts.port()? };
            (source == address).then_some(Key::Hairpin(protocol, endpoint))?
        }
        SetId::Endpoints(Kind { plane, .. }) => {
            let at = parts.destination(plane)?;
            Key::Number(at, u32::from_ne_bytes(*parts.take::<4>()?))
        }
        SetId::Class(Kind { plane, .. }, _)
        | SetId::Masquerade(plane)
        | SetId::LocalPolicy(plane)
        | SetId::Reject(plane)
        | SetId::Drop(plane)
        | SetId::Affinity(plane, _) => Key::Destination(parts.destination(plane)?),
        SetId::Firewall => Key::Destination(parts.destination(Plane::Services)?),
        SetId::FirewallSources => {
            let at = parts.destination(Plane::Services)?;
            let first = parts.address()?;
            let mut end = Parts { family, rest: element.key_end? };
            let same = end.destination(Plane::Services)? == at;
            Key::Source(at, cidr(first, end.address()?).filter(|_| same)?)
        }
        SetId::AffinityEndpoints(plane) | SetId::Counted(plane) => {
            Key::Endpoint(parts.destination(plane)?, parts.endpoint()?)
        }
        SetId::Clients(_) => return None,
    };
    let to = match element.data {
        Some(Data::Value(bytes)) => Some(read_endpoint(family, bytes)?),
        _ => None,
    };
    let is_map = matches!(set, SetId::Endpoints(_));
    (parts.rest.is_empty() && to.is_some() == is_map).then_some((ElementId { set, key }, to))
}

/// The network from one address to another, if they are its first and last.
fn cidr(first: IpAddr, last: IpAddr) -> Option<Cidr> {
    let most = if first.is_ipv4() { 32 } else { 128 };
    let all = (0..=most).rev().filter_map(|len| Cidr::new(first, len).ok());
    let mut fitting = all.filter(|cidr| cidr.network() == first && cidr.broadcast() == last);
    fitting.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::names::Class;
    use rstest::rstest;

    fn examples(address: &str, endpoint: &str, range: &str) -> Vec<Item> {
        let address = address.parse().unwrap();
        let service = Destination::Service { address, protocol: Protocol::Udp, port: 53 };
        let node_port = Destination::NodePort { protocol: Protocol::Sctp, port: 30080 };
        let endpoint = Endpoint { address: endpoint.parse().unwrap(), port: 8080 };
        let of = |set, key| (ElementId { set, key }, Content::default());
        let numbered = |is_local, at: Destination, number| {
            let id = ElementId::endpoint(Kind { plane: at.plane(), is_local }, at, number);
            (id, Content { to: Some(endpoint), comment: None })
        };
        let class = SetId::Class(Kind { plane: Plane::NodePorts, is_local: true }, Class::USUAL);
        vec![
            of(SetId::ClusterIps, Key::Address(address)),
            of(SetId::Hairpin, Key::Hairpin(Protocol::Tcp, endpoint)),
            numbered(false, service, 7),
            numbered(true, node_port, 300),
            of(class, Key::Destination(node_port)),
            of(SetId::Firewall, Key::Destination(service)),
            of(SetId::FirewallSources, Key::Source(service, range.parse().unwrap())),
            of(SetId::FirewallSources, Key::Source(service, endpoint.address.into())),
            of(SetId::Affinity(Plane::Services, 60), Key::Destination(service)),
            of(SetId::AffinityEndpoints(Plane::NodePorts), Key::Endpoint(node_port, endpoint)),
            of(SetId::Counted(Plane::Services), Key::Endpoint(service, endpoint)),
        ]
    }

    #[rstest]
    #[case(IpFamily::V4, examples("10.96.0.1", "10.244.1.5", "192.0.2.0/25"))]
    #[case(IpFamily::V6, examples("fd00:96::1", "fd00:244::5", "2001:db8::/33"))]
    fn what_is_written_for_the_kernel_reads_back(#[case] family: IpFamily, #[case] examples: Vec<Item>) {
        for (id, content) in examples {
            let found = with_wire(&id, &content, |element| read(family, id.set, element));
            assert_eq!(found, Some((id, content.to)), "{id}");
        }
    }

    #[test]
    fn what_none_of_ours_has_is_not_read() {
        let element = |key| read(IpFamily::V4, SetId::Masquerade(Plane::NodePorts), &Element::new(key));
        assert!(element(&[6, 0, 0, 0, 0, 80, 0, 0]).is_some());
        assert_eq!(element(&[47, 0, 0, 0, 0, 80, 0, 0]), None, "no protocol of Services");
        assert_eq!(element(&[6, 0, 0, 0, 0, 80, 0]), None);
        assert_eq!(element(&[6, 0, 0, 0, 0, 80, 0, 0, 0]), None);
        let ip = |text: &str| text.parse().unwrap();
        assert_eq!(cidr(ip("10.0.0.1"), ip("10.0.0.6")), None);
        assert_eq!(cidr(ip("0.0.0.0"), ip("255.255.255.255")), "0.0.0.0/0".parse().ok());
    }

    #[test]
    fn text_is_as_nft_writes_it() {
        let texts: Vec<_> = examples("10.96.0.1", "10.244.1.5", "192.0.2.0/25")
            .iter()
            .map(|(id, _)| id.to_string())
            .collect();
        let want = [
            "cluster-ips { 10.96.0.1 }",
            "hairpin-connections { 10.244.1.5 . 10.244.1.5 . tcp . 8080 }",
            "service-endpoints { 10.96.0.1 . udp . 53 . 7 }",
            "local-nodeport-endpoints { sctp . 30080 . 300 }",
            "local-nodeports-1024 { sctp . 30080 }",
            "firewall-services { 10.96.0.1 . udp . 53 }",
            "firewall-sources { 10.96.0.1 . udp . 53 . 192.0.2.0/25 }",
            "firewall-sources { 10.96.0.1 . udp . 53 . 10.244.1.5 }",
            "affinity-services-60 { 10.96.0.1 . udp . 53 }",
            "affinity-nodeport-endpoints { sctp . 30080 . 10.244.1.5 . 8080 }",
            "counted-endpoints { 10.96.0.1 . udp . 53 . 10.244.1.5 . 8080 }",
        ];
        assert_eq!(texts, want);
    }
}

//! A Service's elements in few bytes: what is in the kernel is remembered for every Service, and is needed only when one changes.

use super::desired::{List, Member, ServiceElements};
use super::element::{Destination, ElementId, Endpoint, Key};
use super::names::SetId;
use crate::model::{Cidr, Protocol};
use std::net::IpAddr;

/// A Service's elements, packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed(Box<[u8]>);

impl Packed {
    pub(super) fn of(elements: &ServiceElements) -> Packed {
        let mut bytes = Writer(Vec::new());
        bytes.count(elements.ports.len());
        elements.ports.iter().for_each(|port| bytes.text(port));
        bytes.count(elements.lists.len());
        elements.lists.iter().for_each(|list| bytes.list(list));
        elements.members.iter().for_each(|member| bytes.member(member));
        Packed(bytes.0.into())
    }

    pub(super) fn unpack(&self) -> ServiceElements {
        // What `of` wrote reads back.
        Reader(&self.0).elements().unwrap_or_default()
    }
}

const MASQUERADE: u8 = 0;
const LOCAL_POLICY: u8 = 1;
const REJECT: u8 = 2;
const DROP: u8 = 3;
const FIREWALL: u8 = 4;
const AFFINITY: u8 = 5;
const CLUSTER_IP: u8 = 6;
const SOURCE: u8 = 7;
const ENDPOINT: u8 = 8;
const HAIRPIN: u8 = 9;
const NODE_PORT_IP: u8 = 10;
const COUNTED: u8 = 11;

const IS_NODE_PORT: u8 = 4;

struct Writer(Vec<u8>);

impl Writer {
    /// Seven bits a byte, the lowest first.
    fn number(&mut self, mut number: u32) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn count(&mut self, count: usize) {
        self.number(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn port(&mut self, port: u16) {
        self.0.extend_from_slice(&port.to_be_bytes());
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                self.0.push(4);
                self.0.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                self.0.push(6);
                self.0.extend_from_slice(&address.octets());
            }
        }
    }

    fn endpoint(&mut self, endpoint: Endpoint) {
        self.address(endpoint.address);
        self.port(endpoint.port);
    }

    fn destination(&mut self, at: Destination) {
        match at {
            Destination::Service { address, protocol, port } => {
                self.0.push(number(protocol));
                self.address(address);
                self.port(port);
            }
            Destination::NodePort { protocol, port } => {
                self.0.push(number(protocol) | IS_NODE_PORT);
                self.port(port);
            }
        }
    }

    fn list(&mut self, list: &List) {
        self.number(list.port.into());
        self.0.push(list.is_local.into());
        self.destination(list.at);
        self.count(list.endpoints.len());
        list.endpoints.iter().for_each(|endpoint| self.endpoint(*endpoint));
    }

    fn member(&mut self, member: &Member) {
        let kind = match member.id.set {
            SetId::Masquerade(_) => MASQUERADE,
            SetId::LocalPolicy(_) => LOCAL_POLICY,
            SetId::Reject(_) => REJECT,
            SetId::Drop(_) => DROP,
            SetId::Firewall => FIREWALL,
            SetId::Affinity(..) => AFFINITY,
            SetId::ClusterIps => CLUSTER_IP,
            SetId::FirewallSources => SOURCE,
            SetId::AffinityEndpoints(_) => ENDPOINT,
            SetId::Counted(_) => COUNTED,
            SetId::Hairpin => HAIRPIN,
            SetId::NodePortIps => NODE_PORT_IP,
            // These follow from lists, or packets make them.
            SetId::Endpoints(_) | SetId::Class(..) | SetId::Clients(_) => return,
        };
        self.0.push(kind);
        self.number(member.port.into());
        match member.id.key {
            Key::Address(address) => self.address(address),
            Key::Destination(at) | Key::Number(at, _) => self.destination(at),
            Key::Source(at, cidr) => {
                self.destination(at);
                self.address(cidr.addr());
                self.0.push(cidr.prefix_len());
            }
            Key::Endpoint(at, endpoint) => {
                self.destination(at);
                self.endpoint(endpoint);
            }
            Key::Hairpin(protocol, endpoint) => {
                self.0.push(number(protocol));
                self.endpoint(endpoint);
            }
        }
        if let SetId::Affinity(_, seconds) = member.id.set {
            self.number(seconds);
        }
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn elements(&mut self) -> Option<ServiceElements> {
        let mut elements = ServiceElements::default();
        for _ in 0..self.number()? {
            elements.ports.push(self.text()?);
        }
        for _ in 0..self.number()? {
            elements.lists.push(self.list()?);
        }
        while !self.0.is_empty() {
            elements.members.push(self.member()?);
        }
        Some(elements)
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn number(&mut self) -> Option<u32> {
        let mut number = 0;
        for shift in (0..u32::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<Box<str>> {
        let len = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(std::str::from_utf8(text).ok()?.into())
    }

    fn port(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    fn index(&mut self) -> Option<u16> {
        u16::try_from(self.number()?).ok()
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            4 => self.bytes::<4>().map(IpAddr::from),
            _ => self.bytes::<16>().map(IpAddr::from),
        }
    }

    fn endpoint(&mut self) -> Option<Endpoint> {
        Some(Endpoint { address: self.address()?, port: self.port()? })
    }

    fn protocol(&mut self) -> Option<(Protocol, bool)> {
        let byte = self.byte()?;
        let protocol = Protocol::ALL.into_iter().find(|it| number(*it) == byte & !IS_NODE_PORT)?;
        Some((protocol, byte & IS_NODE_PORT != 0))
    }

    fn destination(&mut self) -> Option<Destination> {
        let (protocol, is_node_port) = self.protocol()?;
        Some(match is_node_port {
            true => Destination::NodePort { protocol, port: self.port()? },
            false => Destination::Service { protocol, address: self.address()?, port: self.port()? },
        })
    }

    fn list(&mut self) -> Option<List> {
        let (port, is_local) = (self.index()?, self.byte()? != 0);
        let (at, len) = (self.destination()?, self.number()?);
        let endpoints = (0..len).map(|_| self.endpoint()).collect::<Option<Vec<_>>>()?;
        Some(List { port, is_local, at, endpoints })
    }

    fn member(&mut self) -> Option<Member> {
        let (kind, port) = (self.byte()?, self.index()?);
        let of = |set, key| Some(Member { id: ElementId { set, key }, port });
        match kind {
            CLUSTER_IP => return of(SetId::ClusterIps, Key::Address(self.address()?)),
            NODE_PORT_IP => return of(SetId::NodePortIps, Key::Address(self.address()?)),
            HAIRPIN => {
                let (protocol, _) = self.protocol()?;
                return of(SetId::Hairpin, Key::Hairpin(protocol, self.endpoint()?));
            }
            _ => {}
        }
        let at = self.destination()?;
        let (plane, destination) = (at.plane(), Key::Destination(at));
        match kind {
            MASQUERADE => of(SetId::Masquerade(plane), destination),
            LOCAL_POLICY => of(SetId::LocalPolicy(plane), destination),
            REJECT => of(SetId::Reject(plane), destination),
            DROP => of(SetId::Drop(plane), destination),
            FIREWALL => of(SetId::Firewall, destination),
            AFFINITY => of(SetId::Affinity(plane, self.number()?), destination),
            SOURCE => {
                let cidr = Cidr::new(self.address()?, self.byte()?).ok()?;
                of(SetId::FirewallSources, Key::Source(at, cidr))
            }
            ENDPOINT => of(SetId::AffinityEndpoints(plane), Key::Endpoint(at, self.endpoint()?)),
            COUNTED => of(SetId::Counted(plane), Key::Endpoint(at, self.endpoint()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::render;
    use crate::model::IpFamily;
    use crate::plan::{FamilySettings, Plan, Scope};
    use crate::testing::generate::Generator;

    #[test]
    fn elements_of_all_kinds_read_back() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..30 {
            let (mut tracker, _) = crate::testing::pass::start(IpFamily::V4);
            let mut generator = Generator::new(seed);
            (0..60).for_each(|_| tracker.fold(generator.event()));
            for family in IpFamily::ALL {
                let settings = FamilySettings::new(family);
                for service in Plan::new(&settings, tracker.snapshot(), Scope::All).services() {
                    let elements = render::service(&service, seed % 2 == 0);
                    let kinds = elements.members.iter().map(|member| std::mem::discriminant(&member.id.set));
                    seen.extend(kinds.map(|kind| format!("{kind:?}")));
                    assert_eq!(Packed::of(&elements).unpack(), elements);
                }
            }
        }
        assert!(seen.len() >= 8, "{seen:?}");
    }
}

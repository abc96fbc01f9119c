//! Connection tracking over netlink: list flows, delete them.
//!
//! A table may hold a million entries, so a list is streamed through one fixed buffer and the kernel
//! is asked to leave out what does not match. Kernels before 5.8 ignore that wish, so what comes is
//! compared again here. Its comparison of IPv6 addresses is the wrong way round (`ipv6_addr_cmp` taken
//! for an equality, up to 6.18 at least): it would show, or delete, all flows but those asked for. So
//! IPv6 addresses are never handed to it, only ports. Flows in a zone belong to another datapath and are never shown.

use super::nfnetlink::{self, HEADER_LEN};
use crate::model::{IpFamily, Protocol};
use anyhow::{Context, Result, anyhow, bail};
pub use netlink::Part;
use netlink::{Attribute, Error, Malformed, Message, MsgBuf, Protocol as Bus, Socket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

/// Attributes of an entry (`CTA_*`).
mod entry {
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
}

/// Attributes of one direction of an entry (`CTA_TUPLE_*`, `CTA_IP_*`, `CTA_PROTO_*`).
mod tuple {
    pub(super) const IP: u16 = 1;
    pub(super) const TRANSPORT: u16 = 2;
    pub(super) const ZONE: u16 = 3;
    pub(super) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(super) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
}

/// Which parts of a partial tuple count (`CTA_FILTER_F_*`).
mod filter {
    pub(super) const ORIGINAL_FLAGS: u16 = 1;
    pub(super) const REPLY_FLAGS: u16 = 2;
    pub(super) const DESTINATION: u32 = 2;
    pub(super) const PROTOCOL: u32 = 8;
    pub(super) const DESTINATION_PORT: u32 = 32;
}

/// One tracked flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub source: SocketAddr,
    /// Where to, before any translation.
    pub destination: SocketAddr,
    /// Who answers: the destination after translation.
    pub reply_source: SocketAddr,
    /// The kernel's number for it.
    pub id: u32,
}

/// Flows by where they were opened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The protocol.
    pub protocol: Protocol,
    /// The address; `None` is any.
    pub address: Option<IpAddr>,
    /// The port; `None` is any.
    pub port: Option<u16>,
}

impl Destination {
    /// Where a flow was opened to: address and port, and the port of any address.
    #[must_use]
    pub fn of(flow: &Flow) -> [Destination; 2] {
        let port = Some(flow.destination.port());
        let to = |address| Destination { protocol: flow.protocol, address, port };
        [to(Some(flow.destination.ip())), to(None)]
    }

    /// Whether a flow was opened to here.
    #[must_use]
    pub fn covers(&self, flow: &Flow) -> bool {
        self.protocol == flow.protocol
            && self.address.is_none_or(|address| address == flow.destination.ip())
            && self.port.is_none_or(|port| port == flow.destination.port())
    }
}

/// A handle on the tracked flows of the calling thread's network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    request: MsgBuf,
}

impl Conntrack {
    /// Opens the handle.
    ///
    /// # Errors
    /// If the kernel has no netfilter netlink, or on lack of permission.
    pub fn open() -> Result<Conntrack> {
        let socket = Socket::open(Bus::Netfilter).context("cannot reach connection tracking")?;
        Ok(Conntrack { socket, request: MsgBuf::new() })
    }

    /// Whether the kernel deletes IPv4 flows by filter (since about 6.12). Asks it to delete a flow that no
    /// node has: one to a documentation address.
    #[must_use]
    pub fn deletes_by_filter(&mut self) -> bool {
        let nobody = Destination {
            protocol: Protocol::Udp,
            address: Some(Ipv4Addr::new(192, 0, 2, 1).into()),
            port: Some(9),
        };
        // An older kernel takes the filter for an incomplete flow, and refuses.
        self.delete_to(&nobody).is_ok()
    }

    /// Shows every flow of a family to a destination. `Part::Start` means: forget what came before.
    ///
    /// # Errors
    /// If the kernel refuses, or if the list never held still; what came until then is true even so.
    pub fn list(
        &mut self,
        family: IpFamily,
        to: &Destination,
        visit: &mut dyn FnMut(Part<Flow>),
    ) -> Result<()> {
        self.begin(GET, family);
        write_filter(&mut self.request, to);
        let listed = self.socket.dump(&mut self.request, &mut |part| {
            match part {
                Part::Start => visit(Part::Start),
                Part::Item(message) => {
                    if let Some(flow) = parse_flow(&message)?.filter(|flow| to.covers(flow)) {
                        visit(Part::Item(flow));
                    }
                }
            }
            Ok(())
        });
        listed.context("cannot list tracked flows")
    }

    /// Deletes these flows. One that is gone already counts as deleted.
    ///
    /// # Errors
    /// If the kernel refuses any of them for another reason.
    pub fn delete(&mut self, flows: &[Flow]) -> Result<()> {
        self.request.clear();
        for flow in flows {
            let family = nfnetlink::number(IpFamily::of(flow.source.ip()));
            nfnetlink::begin(&mut self.request, DELETE, 0, family);
            self.request.nest(entry::ORIGINAL, |buf| write_flow(buf, flow));
            self.request.be32(entry::ID, flow.id);
        }
        let refused = self.socket.batch(&mut self.request).context("cannot delete tracked flows")?;
        match refused.into_iter().find(|refused| refused.refusal.errno != libc::ENOENT) {
            None => Ok(()),
            Some(refused) => {
                Err(anyhow!(Error::from(refused.refusal)).context("cannot delete a tracked flow"))
            }
        }
    }

    /// Deletes every IPv4 flow to a destination; only where the kernel
    /// [can](Conntrack::deletes_by_filter).
    ///
    /// # Errors
    /// If the kernel refuses, and for IPv6, where it would delete the wrong ones.
    pub fn delete_to(&mut self, to: &Destination) -> Result<()> {
        if to.address.is_some_and(|address| address.is_ipv6()) {
            bail!("the kernel's filter is wrong for IPv6 addresses");
        }
        self.begin(DELETE, IpFamily::V4);
        write_filter(&mut self.request, to);
        match self.socket.request(&mut self.request, &mut |_| Ok(())) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome.context("cannot delete tracked flows by filter"),
        }
    }

    fn begin(&mut self, kind: u16, family: IpFamily) {
        self.request.clear();
        nfnetlink::begin(&mut self.request, kind, 0, nfnetlink::number(family));
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol(number: u8) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|known| self::number(*known) == number)
}

fn write_filter(buf: &mut MsgBuf, to: &Destination) {
    let mut flags = filter::PROTOCOL;
    buf.nest(entry::ORIGINAL, |buf| {
        if let Some(address) = to.address.filter(IpAddr::is_ipv4) {
            flags |= filter::DESTINATION;
            buf.nest(tuple::IP, |buf| write_address(buf, address, false));
        }
        buf.nest(tuple::TRANSPORT, |buf| {
            buf.u8(tuple::PROTOCOL, number(to.protocol));
            if let Some(port) = to.port {
                flags |= filter::DESTINATION_PORT;
                buf.be16(tuple::DESTINATION_PORT, port);
            }
        });
    });
    buf.nest(entry::FILTER, |buf| {
        buf.u32(filter::ORIGINAL_FLAGS, flags);
        buf.u32(filter::REPLY_FLAGS, 0);
    });
}

fn write_flow(buf: &mut MsgBuf, flow: &Flow) {
    buf.nest(tuple::IP, |buf| {
        write_address(buf, flow.source.ip(), true);
        write_address(buf, flow.destination.ip(), false);
    });
    buf.nest(tuple::TRANSPORT, |buf| {
        buf.u8(tuple::PROTOCOL, number(flow.protocol));
        buf.be16(tuple::SOURCE_PORT, flow.source.port());
        buf.be16(tuple::DESTINATION_PORT, flow.destination.port());
    });
}

fn write_address(buf: &mut MsgBuf, address: IpAddr, is_source: bool) {
    match (address, is_source) {
        (IpAddr::V4(address), true) => buf.bytes(tuple::V4_SOURCE, &address.octets()),
        (IpAddr::V4(address), false) => buf.bytes(tuple::V4_DESTINATION, &address.octets()),
        (IpAddr::V6(address), true) => buf.bytes(tuple::V6_SOURCE, &address.octets()),
        (IpAddr::V6(address), false) => buf.bytes(tuple::V6_DESTINATION, &address.octets()),
    }
}

/// One direction of an entry, as far as the kernel gives it.
#[derive(Clone, Copy, Default)]
struct Direction {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    source_port: u16,
    destination_port: u16,
    in_zone: bool,
}

/// `None` for what is not ours to judge: other protocols, and flows in a zone.
fn parse_flow(message: &Message<'_>) -> Result<Option<Flow>, Malformed> {
    let (mut original, mut reply) = (Direction::default(), Direction::default());
    let mut id = 0;
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            entry::ORIGINAL => original = parse_direction(&attribute)?,
            entry::REPLY => reply = parse_direction(&attribute)?,
            entry::ID => id = attribute.be32()?,
            entry::ZONE => original.in_zone = true,
            _ => {}
        }
    }
    if original.in_zone || reply.in_zone {
        return Ok(None);
    }
    let flow = || {
        Some(Flow {
            protocol: protocol(original.protocol?)?,
            source: SocketAddr::new(original.source?, original.source_port),
            destination: SocketAddr::new(original.destination?, original.destination_port),
            reply_source: SocketAddr::new(reply.source?, reply.source_port),
            id,
        })
    };
    Ok(flow())
}

fn parse_direction(attribute: &Attribute<'_>) -> Result<Direction, Malformed> {
    let mut direction = Direction::default();
    for part in attribute.nested() {
        let part = part?;
        match part.kind {
            tuple::IP => parse_addresses(&part, &mut direction)?,
            tuple::TRANSPORT => parse_ports(&part, &mut direction)?,
            tuple::ZONE => direction.in_zone = true,
            _ => {}
        }
    }
    Ok(direction)
}

fn parse_addresses(part: &Attribute<'_>, direction: &mut Direction) -> Result<(), Malformed> {
    for address in part.nested() {
        let address = address?;
        match address.kind {
            tuple::V4_SOURCE => direction.source = Some(Ipv4Addr::from(address.array::<4>()?).into()),
            tuple::V4_DESTINATION => {
                direction.destination = Some(Ipv4Addr::from(address.array::<4>()?).into());
            }
            tuple::V6_SOURCE => direction.source = Some(Ipv6Addr::from(address.array::<16>()?).into()),
            tuple::V6_DESTINATION => {
                direction.destination = Some(Ipv6Addr::from(address.array::<16>()?).into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn parse_ports(part: &Attribute<'_>, direction: &mut Direction) -> Result<(), Malformed> {
    for port in part.nested() {
        let port = port?;
        match port.kind {
            tuple::PROTOCOL => direction.protocol = Some(port.u8()?),
            tuple::SOURCE_PORT => direction.source_port = port.be16()?,
            tuple::DESTINATION_PORT => direction.destination_port = port.be16()?,
            _ => {}
        }
    }
    Ok(())
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(message: &Message<'_>) {
    let _ = parse_flow(message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};
    use std::net::UdpSocket;

    /// Makes the kernel track everything on the loopback device.
    const TRACK: &str = "iptables-nft -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT
                         ip6tables-nft -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT";

    fn udp(address: Option<IpAddr>, port: Option<u16>) -> Destination {
        Destination { protocol: Protocol::Udp, address, port }
    }

    /// Sends one datagram; returns who sent it to whom.
    fn send(to: &str) -> (SocketAddr, SocketAddr) {
        let to: SocketAddr = to.parse().unwrap();
        let from = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
        from.send_to(b"x", to).unwrap();
        (from.local_addr().unwrap(), to)
    }

    fn list(conntrack: &mut Conntrack, family: IpFamily, to: Destination) -> Vec<Flow> {
        let mut flows = Vec::new();
        conntrack
            .list(family, &to, &mut |part| match part {
                Part::Start => flows.clear(),
                Part::Item(flow) => flows.push(flow),
            })
            .unwrap();
        flows
    }

    #[test]
    fn flows_are_listed_by_where_they_go_and_deleted_one_by_one() {
        in_fresh_netns(|| {
            run(TRACK);
            let mut conntrack = Conntrack::open().unwrap();
            let sent: Vec<_> = ["127.0.0.1:53", "127.0.0.1:53", "127.0.0.2:53", "127.0.0.1:54"]
                .iter()
                .map(|to| send(to))
                .collect();
            let here = udp(Some([127, 0, 0, 1].into()), Some(53));
            let found = list(&mut conntrack, IpFamily::V4, here);
            let mut pairs: Vec<_> = found.iter().map(|flow| (flow.source, flow.destination)).collect();
            pairs.sort();
            let mut want = vec![sent[0], sent[1]];
            want.sort();
            assert_eq!(pairs, want);
            assert!(found.iter().all(|flow| flow.reply_source == flow.destination), "not translated");
            assert_eq!(list(&mut conntrack, IpFamily::V4, udp(None, Some(53))).len(), 3);

            conntrack.delete(&found).unwrap();
            assert_eq!(list(&mut conntrack, IpFamily::V4, here), []);
            assert_eq!(list(&mut conntrack, IpFamily::V4, udp(None, None)).len(), 2, "the other flows stay");
            conntrack.delete(&found).expect("gone is as good as deleted");
        });
    }

    #[test]
    fn ipv6_flows_are_seen_and_deleted() {
        in_fresh_netns(|| {
            run(TRACK);
            let mut conntrack = Conntrack::open().unwrap();
            send("[::1]:53");
            let found = list(&mut conntrack, IpFamily::V6, udp(Some("::1".parse().unwrap()), Some(53)));
            assert_eq!(found.len(), 1);
            assert_eq!(list(&mut conntrack, IpFamily::V6, udp(Some("::2".parse().unwrap()), None)), []);
            assert_eq!(list(&mut conntrack, IpFamily::V4, udp(None, None)), []);
            conntrack.delete(&found).unwrap();
            assert_eq!(list(&mut conntrack, IpFamily::V6, udp(None, None)), []);
        });
    }

    #[test]
    fn a_filter_deletes_what_it_covers_and_nothing_else() {
        in_fresh_netns(|| {
            run(TRACK);
            let mut conntrack = Conntrack::open().unwrap();
            if !conntrack.deletes_by_filter() {
                eprintln!("skipped: this kernel cannot delete by filter");
                return;
            }
            for to in ["127.0.0.1:53", "127.0.0.1:53", "127.0.0.2:53", "127.0.0.1:54"] {
                send(to);
            }
            conntrack.delete_to(&udp(Some([127, 0, 0, 1].into()), Some(53))).unwrap();
            let left = list(&mut conntrack, IpFamily::V4, udp(None, None));
            let mut left: Vec<_> = left.iter().map(|flow| flow.destination.to_string()).collect();
            left.sort();
            assert_eq!(left, ["127.0.0.1:54", "127.0.0.2:53"]);
        });
    }

    #[test]
    fn flows_of_a_zone_are_somebody_elses() {
        in_fresh_netns(|| {
            run(TRACK);
            run("iptables-nft -t raw -A OUTPUT -p udp --dport 53 -j CT --zone 7");
            send("127.0.0.1:53");
            send("127.0.0.1:54");
            let found = list(&mut Conntrack::open().unwrap(), IpFamily::V4, udp(None, None));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].destination.port(), 54);
        });
    }
}

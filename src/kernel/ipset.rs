//! ipsets, over netlink: no tool is started, a thousand entries go in one message.

use super::nfnetlink::{self, HEADER_LEN};
use crate::model::{Cidr, Frontend, IpFamily, Protocol, SetEntry, SetType};
use anyhow::{Context, Result, bail};
use netlink::{Attribute, Attributes, Malformed, MsgBuf, Part, Protocol as Bus, Socket};
use std::collections::BTreeSet;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const SWAP: u16 = SUBSYSTEM | 6;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DELETE: u16 = SUBSYSTEM | 10;
const TYPE: u16 = SUBSYSTEM | 13;

const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const TYPE_NAME: u16 = 3;
const REVISION: u16 = 4;
const FAMILY: u16 = 5;
const FLAGS: u16 = 6;
const DATA: u16 = 7;
const ENTRIES: u16 = 8;
const MESSAGE_LINE: u16 = 9;

const IP: u16 = 1;
const PORT: u16 = 4;
const PORT_TO: u16 = 5;
const TRANSPORT: u16 = 7;
const ENTRY_LINE: u16 = 9;
const HASH_SIZE: u16 = 18;
const MAX_ELEMENTS: u16 = 19;
const IP2: u16 = 20;
const CIDR2: u16 = 21;
/// In a listing, the number of entries; the same number as `IP2` plus four.
const ELEMENTS: u16 = 24;

const IPV4: u16 = 1;
const IPV6: u16 = 2;

/// Flag of an attribute type: the number is in network order. ipset insists on it.
const BIG_ENDIAN: u16 = 0x4000;
const CREATE_FLAG: u16 = 0x400;
/// Without it the kernel takes "not there" for success.
const EXCLUSIVE_FLAG: u16 = 0x200;
/// The protocol version of kernels since 4.18; older ones speak 6.
const PROTOCOL_VERSION: u8 = 6;
/// `IPSET_FLAG_LIST_HEADER`: list without entries.
const LIST_HEADER: u32 = 1 << 2;
/// Entries per message: the list of entries is an attribute, and those end at 64 KiB.
const MOST_ENTRIES: usize = 500;
/// More refused entries than this mean that something else is wrong.
const MOST_REFUSALS: usize = 100;
/// The tool's defaults, so that its users see what they know.
const DEFAULT_HASH_SIZE: u32 = 1024;
const DEFAULT_MAX_ELEMENTS: u32 = 65536;

/// An ipset as one creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetSpec<'a> {
    /// Its name, at most 31 bytes.
    pub name: &'a str,
    /// Its type.
    pub kind: SetType,
    /// The family of its addresses; no matter for ports.
    pub family: IpFamily,
}

/// What a backend asks of the kernel's ipsets.
pub trait Ipsets {
    /// Makes a set unless it is there.
    ///
    /// # Errors
    /// When the kernel cannot make it, also because one of another type has its name.
    fn ensure(&mut self, set: SetSpec<'_>) -> Result<()>;

    /// A set's entries; `None` if there is no such set.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn entries(&mut self, set: SetSpec<'_>) -> Result<Option<BTreeSet<SetEntry>>>;

    /// How many entries a set has; `None` if there is no such set. Cheap, unlike listing them.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn count(&mut self, set: SetSpec<'_>) -> Result<Option<usize>>;

    /// Adds entries; those that are there are no error. Returns those that the kernel refuses,
    /// for example because the set is full, with its words.
    ///
    /// # Errors
    /// When the exchange with the kernel failed, or there is no such set.
    fn add(&mut self, set: SetSpec<'_>, entries: &[SetEntry]) -> Result<Vec<(SetEntry, String)>>;

    /// Deletes entries; those that are not there are no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn delete(&mut self, set: SetSpec<'_>, entries: &[SetEntry]) -> Result<()>;

    /// Exchanges the content of two sets of the same type.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn swap(&mut self, one: &str, other: &str) -> Result<()>;

    /// Removes a set; says whether it was there.
    ///
    /// # Errors
    /// When the kernel refuses: a rule still refers to it.
    fn destroy(&mut self, name: &str) -> Result<bool>;
}

/// The ipsets of the calling thread's network namespace.
#[derive(Debug)]
pub struct KernelIpsets {
    socket: Socket,
    request: MsgBuf,
}

/// Whether the kernel may have ipsets now; asking it over netlink would load them.
#[must_use]
pub fn is_loaded() -> bool {
    let is_there = |path| std::path::Path::new(path).exists();
    // Without /sys it is not known.
    is_there("/sys/module/ip_set") || !is_there("/sys/module")
}

impl KernelIpsets {
    /// Opens a handle.
    ///
    /// # Errors
    /// When netfilter cannot be reached.
    pub fn open() -> Result<KernelIpsets> {
        let socket = Socket::open(Bus::Netfilter).context("cannot reach the kernel's ipsets")?;
        Ok(KernelIpsets { socket, request: MsgBuf::new() })
    }

    fn begin(&mut self, kind: u16, flags: u16) {
        self.request.clear();
        begin(&mut self.request, kind, flags);
    }

    /// The highest revision of a set type that the kernel has.
    fn revision(&mut self, set: SetSpec<'_>) -> Result<u8> {
        self.begin(TYPE, 0);
        self.request.string(TYPE_NAME, set.kind.as_str());
        self.request.u8(FAMILY, family_number(set));
        let mut revision = None;
        self.socket
            .request(&mut self.request, &mut |reply| {
                for attribute in reply.attributes(HEADER_LEN)? {
                    let attribute = attribute?;
                    if attribute.kind == REVISION {
                        revision = Some(attribute.u8()?);
                    }
                }
                Ok(())
            })
            .with_context(|| format!("the kernel has no ipsets of type {}", set.kind.as_str()))?;
        revision.with_context(|| format!("the kernel names no revision of {}", set.kind.as_str()))
    }

    /// Lists one set, with what `visit` makes of its attributes. `false`: there is no such set.
    fn list(
        &mut self,
        name: &str,
        flags: Option<u32>,
        visit: &mut dyn FnMut(Part<Attribute<'_>>) -> Result<(), netlink::Error>,
    ) -> Result<bool> {
        self.begin(LIST, 0);
        self.request.string(SET_NAME, name);
        if let Some(flags) = flags {
            self.request.be32(FLAGS | BIG_ENDIAN, flags);
        }
        let listed = self.socket.dump(&mut self.request, &mut |part| match part {
            Part::Start => visit(Part::Start),
            Part::Item(message) => {
                for attribute in message.attributes(HEADER_LEN)? {
                    visit(Part::Item(attribute?))?;
                }
                Ok(())
            }
        });
        match listed {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot list ipset {name}")),
        }
    }

    /// One message; no more than `MOST_ENTRIES`.
    fn change(
        &mut self,
        kind: u16,
        set: SetSpec<'_>,
        entries: &[SetEntry],
    ) -> std::result::Result<(), netlink::Error> {
        self.begin(kind, 0);
        self.request.string(SET_NAME, set.name);
        self.request.u32(MESSAGE_LINE, 0);
        self.request.nest(ENTRIES, |buf| {
            for (line, entry) in entries.iter().enumerate() {
                buf.nest(DATA, |buf| {
                    write_entry(buf, entry);
                    buf.be32(ENTRY_LINE | BIG_ENDIAN, u32::try_from(line).unwrap_or_default());
                });
            }
        });
        self.socket.request(&mut self.request, &mut |_| Ok(()))
    }
}

impl Ipsets for KernelIpsets {
    fn ensure(&mut self, set: SetSpec<'_>) -> Result<()> {
        let revision = self.revision(set)?;
        self.begin(CREATE, CREATE_FLAG);
        self.request.string(SET_NAME, set.name);
        self.request.string(TYPE_NAME, set.kind.as_str());
        self.request.u8(REVISION, revision);
        self.request.u8(FAMILY, family_number(set));
        self.request.nest(DATA, |buf| {
            if set.kind == SetType::Port {
                buf.be16(PORT | BIG_ENDIAN, 0);
                buf.be16(PORT_TO | BIG_ENDIAN, u16::MAX);
            } else {
                buf.be32(HASH_SIZE | BIG_ENDIAN, DEFAULT_HASH_SIZE);
                buf.be32(MAX_ELEMENTS | BIG_ENDIAN, DEFAULT_MAX_ELEMENTS);
            }
        });
        self.socket
            .request(&mut self.request, &mut |_| Ok(()))
            .with_context(|| format!("cannot create ipset {} of type {}", set.name, set.kind.as_str()))
    }

    fn entries(&mut self, set: SetSpec<'_>) -> Result<Option<BTreeSet<SetEntry>>> {
        let mut entries = BTreeSet::new();
        let found = self.list(set.name, None, &mut |part| {
            match part {
                Part::Start => entries.clear(),
                Part::Item(list) if list.kind == ENTRIES => {
                    for entry in list.nested() {
                        entries.extend(read_entry(set.kind, entry?.nested())?);
                    }
                }
                Part::Item(_) => {}
            }
            Ok(())
        })?;
        Ok(found.then_some(entries))
    }

    fn count(&mut self, set: SetSpec<'_>) -> Result<Option<usize>> {
        let mut count = None;
        let found = self.list(set.name, Some(LIST_HEADER), &mut |part| {
            if let Part::Item(data) = part
                && data.kind == DATA
            {
                for attribute in data.nested() {
                    let attribute = attribute?;
                    if attribute.kind == ELEMENTS {
                        count = Some(usize::try_from(attribute.be32()?).unwrap_or(usize::MAX));
                    }
                }
            }
            Ok(())
        })?;
        match (found, count) {
            (false, _) => Ok(None),
            (true, Some(count)) => Ok(Some(count)),
            // Kernels before 4.10 do not say it of bitmaps.
            (true, None) => Ok(self.entries(set)?.map(|entries| entries.len())),
        }
    }

    fn add(&mut self, set: SetSpec<'_>, entries: &[SetEntry]) -> Result<Vec<(SetEntry, String)>> {
        let mut refused = Vec::new();
        let mut parts: Vec<&[SetEntry]> = entries.chunks(MOST_ENTRIES).rev().collect();
        while let Some(part) = parts.pop() {
            match self.change(ADD, set, part) {
                Ok(()) => {}
                // The kernel does not say which one of a message it does not take.
                Err(error) if error.errno().is_some_and(|errno| errno != libc::ENOENT) => match part {
                    [entry] => refused.push((*entry, format!("ipset {}: {error}", set.name))),
                    _ => {
                        let (left, right) = part.split_at(part.len() / 2);
                        parts.extend([right, left]);
                    }
                },
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot add entries to ipset {}", set.name));
                }
            }
            if refused.len() > MOST_REFUSALS {
                bail!("ipset {} takes none of {MOST_REFUSALS} entries: {}", set.name, refused[0].1);
            }
        }
        Ok(refused)
    }

    fn delete(&mut self, set: SetSpec<'_>, entries: &[SetEntry]) -> Result<()> {
        entries
            .chunks(MOST_ENTRIES)
            .try_for_each(|part| self.change(DELETE, set, part))
            .with_context(|| format!("cannot delete entries from ipset {}", set.name))
    }

    fn swap(&mut self, one: &str, other: &str) -> Result<()> {
        self.begin(SWAP, 0);
        self.request.string(SET_NAME, one);
        self.request.string(TYPE_NAME, other);
        self.socket
            .request(&mut self.request, &mut |_| Ok(()))
            .with_context(|| format!("cannot swap ipsets {one} and {other}"))
    }

    fn destroy(&mut self, name: &str) -> Result<bool> {
        self.begin(DESTROY, EXCLUSIVE_FLAG);
        self.request.string(SET_NAME, name);
        match self.socket.request(&mut self.request, &mut |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot destroy ipset {name}")),
        }
    }
}

fn begin(buf: &mut MsgBuf, kind: u16, flags: u16) {
    nfnetlink::begin(buf, kind, flags, nfnetlink::number(IpFamily::V4));
    buf.u8(PROTOCOL, PROTOCOL_VERSION);
}

fn family_number(set: SetSpec<'_>) -> u8 {
    match (set.kind, set.family) {
        (SetType::Port, _) => 0,
        (_, family) => nfnetlink::number(family),
    }
}

fn write_entry(buf: &mut MsgBuf, entry: &SetEntry) {
    match entry {
        SetEntry::Port(port) => buf.be16(PORT | BIG_ENDIAN, *port),
        SetEntry::Ip(ip) => write_ip(buf, IP, *ip),
        SetEntry::IpPort(at) => write_frontend(buf, at),
        SetEntry::IpPortIp(at, ip) => {
            write_frontend(buf, at);
            write_ip(buf, IP2, *ip);
        }
        SetEntry::IpPortNet(at, net) => {
            write_frontend(buf, at);
            write_ip(buf, IP2, net.network());
            buf.u8(CIDR2, net.prefix_len());
        }
    }
}

fn write_frontend(buf: &mut MsgBuf, at: &Frontend) {
    write_ip(buf, IP, at.address);
    buf.be16(PORT | BIG_ENDIAN, at.port);
    buf.u8(TRANSPORT, transport_number(at.protocol));
}

fn write_ip(buf: &mut MsgBuf, kind: u16, ip: IpAddr) {
    buf.nest(kind, |buf| match ip {
        IpAddr::V4(ip) => buf.bytes(IPV4 | BIG_ENDIAN, &ip.octets()),
        IpAddr::V6(ip) => buf.bytes(IPV6 | BIG_ENDIAN, &ip.octets()),
    });
}

fn transport_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// An entry; `None` if it has a protocol that we never write.
fn read_entry(kind: SetType, attributes: Attributes<'_>) -> Result<Option<SetEntry>, netlink::Error> {
    let (mut ip, mut port, mut protocol, mut second, mut prefix) = (None, None, None, None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IP => ip = Some(read_ip(&attribute)?),
            PORT => port = Some(attribute.be16()?),
            TRANSPORT => protocol = Some(attribute.u8()?),
            IP2 => second = Some(read_ip(&attribute)?),
            CIDR2 => prefix = Some(attribute.u8()?),
            _ => {}
        }
    }
    let missing = Malformed("ipset entry without one of its parts");
    let frontend = || -> Result<Option<Frontend>, Malformed> {
        let (address, port) = (ip.ok_or(missing)?, port.ok_or(missing)?);
        let protocol = match protocol.ok_or(missing)? {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return Ok(None),
        };
        Ok(Some(Frontend { address, port, protocol }))
    };
    Ok(match kind {
        SetType::Port => Some(SetEntry::Port(port.ok_or(missing)?)),
        SetType::Ip => Some(SetEntry::Ip(ip.ok_or(missing)?)),
        SetType::IpPort => frontend()?.map(SetEntry::IpPort),
        SetType::IpPortIp => {
            let second = second.ok_or(missing)?;
            frontend()?.map(|at| SetEntry::IpPortIp(at, second))
        }
        SetType::IpPortNet => {
            let second = second.ok_or(missing)?;
            let full = if second.is_ipv4() { 32 } else { 128 };
            let net = Cidr::new(second, prefix.unwrap_or(full)).map_err(|_| Malformed("prefix too long"))?;
            frontend()?.map(|at| SetEntry::IpPortNet(at, net))
        }
    })
}

fn read_ip(attribute: &Attribute<'_>) -> Result<IpAddr, netlink::Error> {
    for inner in attribute.nested() {
        let inner = inner?;
        match inner.kind {
            IPV4 => return Ok(IpAddr::from(inner.array::<4>()?)),
            IPV6 => return Ok(IpAddr::from(inner.array::<16>()?)),
            _ => {}
        }
    }
    Err(Malformed("ipset address of no known family").into())
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(message: &netlink::Message<'_>) {
    let lists = message.attributes(HEADER_LEN).into_iter().flatten().map_while(Result::ok);
    for list in lists.filter(|list| list.kind == ENTRIES) {
        for entry in list.nested().map_while(Result::ok) {
            let kinds = [SetType::Port, SetType::Ip, SetType::IpPort, SetType::IpPortIp, SetType::IpPortNet];
            let _ = kinds.map(|kind| read_entry(kind, entry.nested()).is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::in_fresh_netns;

    fn at(address: &str, port: u16, protocol: Protocol) -> Frontend {
        Frontend { address: address.parse().unwrap(), port, protocol }
    }

    #[test]
    fn every_type_of_set_takes_and_lists_its_entries_in_both_families() {
        in_fresh_netns(|| {
            let mut sets = KernelIpsets::open().unwrap();
            for (family, ip, other, net) in [
                (IpFamily::V4, "10.96.0.1", "192.0.2.1", "203.0.113.0/24"),
                (IpFamily::V6, "fd00:96::1", "2001:db8::1", "2001:db8:1::/48"),
            ] {
                let other: IpAddr = other.parse().unwrap();
                let (first, second) = (at(ip, 80, Protocol::Tcp), at(ip, 53, Protocol::Udp));
                let host = Cidr::from(other);
                for (kind, entries) in [
                    (SetType::Port, vec![SetEntry::Port(30080), SetEntry::Port(32767)]),
                    (SetType::Ip, vec![SetEntry::Ip(other)]),
                    (SetType::IpPort, vec![SetEntry::IpPort(first), SetEntry::IpPort(second)]),
                    (SetType::IpPortIp, vec![SetEntry::IpPortIp(at(ip, 9, Protocol::Sctp), other)]),
                    (
                        SetType::IpPortNet,
                        vec![
                            SetEntry::IpPortNet(first, net.parse().unwrap()),
                            SetEntry::IpPortNet(first, host),
                        ],
                    ),
                ] {
                    let name = format!("T{}{kind:?}", family.as_str());
                    let set = SetSpec { name: &name, kind, family };
                    assert_eq!(sets.entries(set).unwrap(), None);
                    assert_eq!(sets.count(set).unwrap(), None);
                    sets.ensure(set).unwrap();
                    sets.ensure(set).unwrap();
                    sets.add(set, &entries).unwrap();
                    sets.add(set, &entries).unwrap();
                    assert_eq!(sets.entries(set).unwrap().unwrap(), entries.iter().copied().collect());
                    assert_eq!(sets.count(set).unwrap(), Some(entries.len()));
                    sets.delete(set, &entries[..1]).unwrap();
                    sets.delete(set, &entries[..1]).unwrap();
                    assert_eq!(sets.count(set).unwrap(), Some(entries.len() - 1));
                    assert!(sets.destroy(&name).unwrap());
                    assert!(!sets.destroy(&name).unwrap());
                }
            }
        });
    }

    #[test]
    fn thousands_of_entries_go_in_a_few_messages() {
        in_fresh_netns(|| {
            let mut sets = KernelIpsets::open().unwrap();
            let set = SetSpec { name: "MANY", kind: SetType::IpPort, family: IpFamily::V6 };
            sets.ensure(set).unwrap();
            let entries: Vec<_> =
                (1..=3000).map(|port| SetEntry::IpPort(at("fd00::1", port, Protocol::Tcp))).collect();
            sets.add(set, &entries).unwrap();
            assert_eq!(sets.count(set).unwrap(), Some(3000));
            assert_eq!(sets.entries(set).unwrap().unwrap().len(), 3000);
            sets.delete(set, &entries).unwrap();
            assert_eq!(sets.count(set).unwrap(), Some(0));
        });
    }

    #[test]
    fn sets_can_be_swapped_and_a_type_clash_is_an_error() {
        in_fresh_netns(|| {
            let mut sets = KernelIpsets::open().unwrap();
            let one = SetSpec { name: "ONE", kind: SetType::Ip, family: IpFamily::V4 };
            let two = SetSpec { name: "TWO", ..one };
            for set in [one, two] {
                sets.ensure(set).unwrap();
            }
            sets.add(one, &[SetEntry::Ip([192, 0, 2, 1].into())]).unwrap();
            sets.swap("ONE", "TWO").unwrap();
            assert_eq!((sets.count(one).unwrap(), sets.count(two).unwrap()), (Some(0), Some(1)));
            let clash = sets.ensure(SetSpec { name: "ONE", kind: SetType::IpPort, family: IpFamily::V4 });
            assert!(clash.unwrap_err().to_string().contains("cannot create ipset ONE of type hash:ip,port"));
        });
    }
}

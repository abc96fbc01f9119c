//! Answers to objects. Whatever the kernel sends, nothing here panics.

use crate::server::{
    Family, Forward, Info, Key, ListedRealServer, ListedVirtualServer, Netmask, Persistence, Protocol,
    RealServer, Scheduler, SchedulerFlags, Stats, Timeouts, Tunnel, VirtualServer,
};
use crate::wire::{self, dest, flag, forward, info, service, top, tunnel};
use netlink::{Attribute, Attributes, GENERIC_HEADER_LEN, Malformed, Message};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The virtual server in a message, if it holds one.
pub(crate) fn virtual_server(message: &Message<'_>) -> Result<Option<ListedVirtualServer>, Malformed> {
    nested(message, top::SERVICE)?.map(service_attributes).transpose()
}

/// The real server in a message, if it holds one. `family` is that of its virtual server: kernels
/// before 3.18 do not say a real server's own.
pub(crate) fn real_server(
    message: &Message<'_>,
    family: Family,
) -> Result<Option<ListedRealServer>, Malformed> {
    nested(message, top::DEST)?.map(|attributes| dest_attributes(attributes, family)).transpose()
}

/// The answer to `GET_CONFIG`.
pub(crate) fn timeouts(message: &Message<'_>) -> Result<Timeouts, Malformed> {
    let mut timeouts = Timeouts { tcp: Duration::ZERO, tcp_fin: Duration::ZERO, udp: Duration::ZERO };
    for attribute in message.attributes(GENERIC_HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            top::TIMEOUT_TCP => timeouts.tcp = seconds(&attribute)?,
            top::TIMEOUT_TCP_FIN => timeouts.tcp_fin = seconds(&attribute)?,
            top::TIMEOUT_UDP => timeouts.udp = seconds(&attribute)?,
            _ => {}
        }
    }
    Ok(timeouts)
}

/// The answer to `GET_INFO`.
pub(crate) fn info(message: &Message<'_>) -> Result<Info, Malformed> {
    let mut answer = Info { version: (0, 0, 0), connection_table_size: 0 };
    for attribute in message.attributes(GENERIC_HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            info::VERSION => {
                let [_, major, minor, patch] = attribute.u32()?.to_be_bytes();
                answer.version = (major, minor, patch);
            }
            info::CONN_TAB_SIZE => answer.connection_table_size = attribute.u32()?,
            _ => {}
        }
    }
    Ok(answer)
}

/// Feeds bytes to every parser above.
pub(crate) fn parse_anything(bytes: &[u8]) {
    for message in netlink::Messages::new(bytes).map_while(Result::ok) {
        let _ = virtual_server(&message);
        let _ = real_server(&message, Family::V4);
        let _ = real_server(&message, Family::V6);
        let _ = (timeouts(&message), info(&message));
    }
}

/// The attributes inside the top-level attribute `kind`.
fn nested<'a>(message: &Message<'a>, kind: u16) -> Result<Option<Attributes<'a>>, Malformed> {
    for attribute in message.attributes(GENERIC_HEADER_LEN)? {
        let attribute = attribute?;
        if attribute.kind == kind {
            return Ok(Some(attribute.nested()));
        }
    }
    Ok(None)
}

/// A service's attributes before their meaning is settled: they depend on each other.
#[derive(Default)]
struct RawService<'a> {
    family: Option<Family>,
    protocol: Option<Protocol>,
    address: &'a [u8],
    port: u16,
    fwmark: u32,
    scheduler: &'a str,
    engine: Option<&'a str>,
    flags: u32,
    timeout: Duration,
    netmask: [u8; 4],
    stats: Stats,
    stats64: Option<Stats>,
}

fn service_attributes(attributes: Attributes<'_>) -> Result<ListedVirtualServer, Malformed> {
    let mut raw = RawService::default();
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            service::AF => raw.family = Some(family(&attribute)?),
            service::PROTOCOL => raw.protocol = Some(protocol(attribute.u16()?)),
            service::ADDR => raw.address = attribute.value,
            service::PORT => raw.port = attribute.be16()?,
            service::FWMARK => raw.fwmark = attribute.u32()?,
            service::SCHED_NAME => raw.scheduler = attribute.string()?,
            service::PE_NAME => raw.engine = Some(attribute.string()?),
            service::FLAGS => raw.flags = flag_bits(&attribute)?,
            service::TIMEOUT => raw.timeout = seconds(&attribute)?,
            service::NETMASK => raw.netmask = attribute.array()?,
            service::STATS => raw.stats = stats(attribute.nested())?,
            service::STATS64 => raw.stats64 = Some(stats(attribute.nested())?),
            _ => {}
        }
    }
    raw.settle()
}

impl RawService<'_> {
    fn settle(self) -> Result<ListedVirtualServer, Malformed> {
        let family = self.family.ok_or(Malformed("service without an address family"))?;
        let key = match self.protocol {
            Some(protocol) => {
                Key::Address { protocol, address: ip_address(family, self.address)?, port: self.port }
            }
            None if self.fwmark != 0 => Key::Fwmark { family, mark: self.fwmark },
            None => return Err(Malformed("service without protocol or mark")),
        };
        let persistence = (self.flags & flag::PERSISTENT != 0).then(|| Persistence {
            timeout: self.timeout,
            netmask: match family {
                Family::V4 => Netmask::V4(Ipv4Addr::from(self.netmask)),
                Family::V6 => Netmask::V6(u32::from_ne_bytes(self.netmask)),
            },
            engine: self.engine.map(Into::into),
        });
        let server = VirtualServer {
            key,
            scheduler: Scheduler::named(self.scheduler.to_owned()),
            scheduler_flags: SchedulerFlags::from_bits(self.flags),
            persistence,
            one_packet: self.flags & flag::ONE_PACKET != 0,
        };
        Ok(ListedVirtualServer { server, stats: self.stats64.unwrap_or(self.stats) })
    }
}

/// A destination's attributes before their meaning is settled.
#[derive(Default)]
struct RawDest<'a> {
    family: Option<Family>,
    address: &'a [u8],
    port: u16,
    forward: u32,
    tunnel_type: u8,
    tunnel_port: u16,
    tunnel_flags: u16,
    weight: u32,
    upper_threshold: u32,
    lower_threshold: u32,
    connections: [u32; 3],
    stats: Stats,
    stats64: Option<Stats>,
}

fn dest_attributes(
    attributes: Attributes<'_>,
    family_of_service: Family,
) -> Result<ListedRealServer, Malformed> {
    let mut raw = RawDest::default();
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            dest::ADDR => raw.address = attribute.value,
            dest::PORT => raw.port = attribute.be16()?,
            dest::ADDR_FAMILY => raw.family = Some(family(&attribute)?),
            dest::FWD_METHOD => raw.forward = attribute.u32()? & forward::MASK,
            dest::WEIGHT => raw.weight = attribute.u32()?,
            dest::U_THRESH => raw.upper_threshold = attribute.u32()?,
            dest::L_THRESH => raw.lower_threshold = attribute.u32()?,
            dest::ACTIVE_CONNS => raw.connections[0] = attribute.u32()?,
            dest::INACT_CONNS => raw.connections[1] = attribute.u32()?,
            dest::PERSIST_CONNS => raw.connections[2] = attribute.u32()?,
            dest::TUN_TYPE => raw.tunnel_type = attribute.u8()?,
            dest::TUN_PORT => raw.tunnel_port = attribute.be16()?,
            dest::TUN_FLAGS => raw.tunnel_flags = attribute.u16()?,
            dest::STATS => raw.stats = stats(attribute.nested())?,
            dest::STATS64 => raw.stats64 = Some(stats(attribute.nested())?),
            _ => {}
        }
    }
    raw.settle(family_of_service)
}

impl RawDest<'_> {
    fn settle(self, family_of_service: Family) -> Result<ListedRealServer, Malformed> {
        let family = self.family.unwrap_or(family_of_service);
        let server = RealServer {
            address: SocketAddr::new(ip_address(family, self.address)?, self.port),
            forward: self.forward(),
            weight: self.weight,
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
        };
        let [active_connections, inactive_connections, persistent_connections] = self.connections;
        Ok(ListedRealServer {
            server,
            active_connections,
            inactive_connections,
            persistent_connections,
            stats: self.stats64.unwrap_or(self.stats),
        })
    }

    fn forward(&self) -> Forward {
        match self.forward {
            forward::MASQUERADE => Forward::Masquerade,
            forward::LOCAL => Forward::Local,
            forward::TUNNEL => match self.tunnel_type {
                tunnel::IPIP => Forward::Tunnel(Tunnel::Ipip),
                tunnel::GUE => {
                    Forward::Tunnel(Tunnel::Gue { port: self.tunnel_port, flags: self.tunnel_flags })
                }
                tunnel::GRE => Forward::Tunnel(Tunnel::Gre { flags: self.tunnel_flags }),
                // A tunnel of a kind we cannot name, hence could not write back.
                _ => Forward::Other(forward::TUNNEL),
            },
            forward::DIRECT_ROUTE => Forward::DirectRoute,
            forward::BYPASS => Forward::Bypass,
            other => Forward::Other(other),
        }
    }
}

fn family(attribute: &Attribute<'_>) -> Result<Family, Malformed> {
    match attribute.u16()? {
        wire::AF_INET => Ok(Family::V4),
        wire::AF_INET6 => Ok(Family::V6),
        _ => Err(Malformed("unknown address family")),
    }
}

fn protocol(number: u16) -> Protocol {
    match number {
        wire::IPPROTO_TCP => Protocol::Tcp,
        wire::IPPROTO_UDP => Protocol::Udp,
        wire::IPPROTO_SCTP => Protocol::Sctp,
        other => Protocol::Other(other),
    }
}

/// The kernel sends 16 bytes for both families; IPv4 is in the first four.
fn ip_address(family: Family, bytes: &[u8]) -> Result<IpAddr, Malformed> {
    let address = match family {
        Family::V4 => bytes.first_chunk::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
        Family::V6 => bytes.first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
    };
    address.ok_or(Malformed("address too short for its family"))
}

/// Flags come with a mask after them.
fn flag_bits(attribute: &Attribute<'_>) -> Result<u32, Malformed> {
    let bytes = attribute.value.first_chunk::<4>().ok_or(Malformed("flags too short"))?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn seconds(attribute: &Attribute<'_>) -> Result<Duration, Malformed> {
    attribute.u32().map(|seconds| Duration::from_secs(seconds.into()))
}

/// Counters. The old attribute mixes 32 and 64 bits, the new one has 64 throughout.
fn stats(attributes: Attributes<'_>) -> Result<Stats, Malformed> {
    let mut stats = Stats::default();
    for attribute in attributes {
        let attribute = attribute?;
        let counter = match attribute.kind {
            1 => &mut stats.connections,
            2 => &mut stats.packets_in,
            3 => &mut stats.packets_out,
            4 => &mut stats.bytes_in,
            5 => &mut stats.bytes_out,
            6 => &mut stats.connection_rate,
            7 => &mut stats.packet_rate_in,
            8 => &mut stats.packet_rate_out,
            9 => &mut stats.byte_rate_in,
            10 => &mut stats.byte_rate_out,
            _ => continue,
        };
        *counter = if attribute.value.len() == 4 { attribute.u32()?.into() } else { attribute.u64()? };
    }
    Ok(stats)
}

#[cfg(test)]
mod tests;

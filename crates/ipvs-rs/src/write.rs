//! Objects to requests.

use crate::server::{
    Family, Forward, Key, Netmask, Persistence, Protocol, RealServer, TimeoutChange, Tunnel, VirtualServer,
};
use crate::wire::{self, dest, flag, forward, service, top, tunnel};
use netlink::MsgBuf;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Starts a request.
pub(crate) fn begin(buf: &mut MsgBuf, family_id: u16, command: u8) {
    buf.begin(family_id, 0);
    buf.header(&netlink::generic_header(command, wire::VERSION));
}

/// The virtual server a request is about.
pub(crate) fn key(buf: &mut MsgBuf, key: &Key) {
    buf.nest(top::SERVICE, |buf| key_attributes(buf, key));
}

/// A virtual server with everything `NEW_SERVICE` and `SET_SERVICE` insist on.
pub(crate) fn virtual_server(buf: &mut MsgBuf, server: &VirtualServer) {
    buf.nest(top::SERVICE, |buf| {
        key_attributes(buf, &server.key);
        buf.string(service::SCHED_NAME, server.scheduler.as_str());
        if let Some(engine) = server.persistence.as_ref().and_then(|persistence| persistence.engine.as_ref())
        {
            buf.string(service::PE_NAME, engine);
        }
        // Flags come with a mask of the bits to change: all.
        let mut flags = [0xff; 8];
        flags[..4].copy_from_slice(&flag_bits(server).to_ne_bytes());
        buf.bytes(service::FLAGS, &flags);
        let timeout = server.persistence.as_ref().map_or(0, |persistence| seconds(persistence.timeout));
        buf.u32(service::TIMEOUT, timeout);
        netmask(buf, server.key.family(), server.persistence.as_ref());
    });
}

/// A real server with everything `NEW_DEST` and `SET_DEST` insist on.
pub(crate) fn real_server(buf: &mut MsgBuf, server: &RealServer) {
    buf.nest(top::DEST, |buf| {
        real_address_attributes(buf, server.address);
        buf.u32(dest::FWD_METHOD, forward_number(server.forward));
        buf.u32(dest::WEIGHT, server.weight);
        if let Forward::Tunnel(wrapping) = server.forward {
            tunnel_attributes(buf, wrapping);
        }
        buf.u32(dest::U_THRESH, server.upper_threshold);
        buf.u32(dest::L_THRESH, server.lower_threshold);
    });
}

/// The real server a request is about.
pub(crate) fn real_address(buf: &mut MsgBuf, address: SocketAddr) {
    buf.nest(top::DEST, |buf| real_address_attributes(buf, address));
}

/// Timeouts; the kernel reads 0 as "leave it".
pub(crate) fn timeouts(buf: &mut MsgBuf, change: &TimeoutChange) {
    let number = |timeout: Option<Duration>| timeout.map_or(0, seconds);
    buf.u32(top::TIMEOUT_TCP, number(change.tcp));
    buf.u32(top::TIMEOUT_TCP_FIN, number(change.tcp_fin));
    buf.u32(top::TIMEOUT_UDP, number(change.udp));
}

fn key_attributes(buf: &mut MsgBuf, key: &Key) {
    buf.u16(service::AF, family_number(key.family()));
    match *key {
        Key::Fwmark { mark, .. } => buf.u32(service::FWMARK, mark),
        Key::Address { protocol, address, port } => {
            buf.u16(service::PROTOCOL, protocol_number(protocol));
            ip_address(buf, service::ADDR, address);
            buf.be16(service::PORT, port);
        }
    }
}

fn real_address_attributes(buf: &mut MsgBuf, address: SocketAddr) {
    // A tunnelled real server may be of the other family, so it is always said.
    buf.u16(dest::ADDR_FAMILY, family_number(Family::of(address.ip())));
    ip_address(buf, dest::ADDR, address.ip());
    buf.be16(dest::PORT, address.port());
}

/// Always 16 bytes, as `ipvsadm` sends and the kernel answers; IPv4 is in the first four.
fn ip_address(buf: &mut MsgBuf, kind: u16, address: IpAddr) {
    let octets = match address {
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    };
    buf.bytes(kind, &octets);
}

/// IPv4 has a mask in network order; IPv6 a prefix length, which must not be 0 even without persistence.
fn netmask(buf: &mut MsgBuf, family: Family, persistence: Option<&Persistence>) {
    match persistence.map_or(Netmask::host(family), |persistence| persistence.netmask) {
        Netmask::V4(mask) => buf.bytes(service::NETMASK, &mask.octets()),
        Netmask::V6(len) => buf.u32(service::NETMASK, len),
    }
}

fn tunnel_attributes(buf: &mut MsgBuf, wrapping: Tunnel) {
    match wrapping {
        // What the kernel assumes; kernels before 5.2 know no other and no such attribute.
        Tunnel::Ipip => {}
        Tunnel::Gue { port, flags } => {
            buf.u8(dest::TUN_TYPE, tunnel::GUE);
            buf.be16(dest::TUN_PORT, port);
            buf.u16(dest::TUN_FLAGS, flags);
        }
        Tunnel::Gre { flags } => {
            buf.u8(dest::TUN_TYPE, tunnel::GRE);
            buf.u16(dest::TUN_FLAGS, flags);
        }
    }
}

fn flag_bits(server: &VirtualServer) -> u32 {
    let mut bits = server.scheduler_flags.bits();
    if server.persistence.is_some() {
        bits |= flag::PERSISTENT;
    }
    if server.one_packet {
        bits |= flag::ONE_PACKET;
    }
    bits
}

fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => wire::AF_INET,
        Family::V6 => wire::AF_INET6,
    }
}

fn protocol_number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => wire::IPPROTO_TCP,
        Protocol::Udp => wire::IPPROTO_UDP,
        Protocol::Sctp => wire::IPPROTO_SCTP,
        Protocol::Other(number) => number,
    }
}

fn forward_number(method: Forward) -> u32 {
    match method {
        Forward::Masquerade => forward::MASQUERADE,
        Forward::Local => forward::LOCAL,
        Forward::Tunnel(_) => forward::TUNNEL,
        Forward::DirectRoute => forward::DIRECT_ROUTE,
        Forward::Bypass => forward::BYPASS,
        Forward::Other(number) => number,
    }
}

/// Whole seconds, as far as the field reaches.
fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;

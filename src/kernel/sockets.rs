//! Sockets that listen or take datagrams, and netlink sockets: read from /proc, with the programs that hold them where we may look.

use crate::model::Protocol;
use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// A TCP socket that listens, or a UDP socket that takes datagrams from any peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
    /// The name of a process that holds it, where it can be found out.
    pub program: Option<String>,
}

/// State `TCP_LISTEN`.
const TCP_LISTEN: &str = "0A";
/// State `TCP_CLOSE`, which is that of a UDP socket without a peer.
const UDP_UNCONNECTED: &str = "07";

/// Every such socket of the calling thread's network namespace.
///
/// # Errors
/// When /proc cannot be read.
pub fn listeners() -> Result<Vec<Listener>> {
    let mut found = Vec::new();
    for (file, protocol, state) in [
        ("tcp", Protocol::Tcp, TCP_LISTEN),
        ("tcp6", Protocol::Tcp, TCP_LISTEN),
        ("udp", Protocol::Udp, UDP_UNCONNECTED),
        ("udp6", Protocol::Udp, UDP_UNCONNECTED),
    ] {
        let path = Path::new("/proc/thread-self/net").join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let sockets = text.lines().filter_map(|line| parse(line, state));
                found.extend(sockets.map(|(address, inode)| (protocol, address, inode)));
            }
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    let programs = programs(&found.iter().map(|(_, _, inode)| *inode).collect());
    let listener =
        |(protocol, address, inode)| Listener { protocol, address, program: programs.get(&inode).cloned() };
    Ok(found.into_iter().map(listener).collect())
}

/// `NETLINK_NETFILTER`.
const NETFILTER: &str = "12";

/// The name of a process that holds the netfilter netlink socket of a port, where it can be found out.
#[must_use]
pub fn netfilter_program(port: u32) -> Option<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink").ok()?;
    let inode = text.lines().find_map(|line| parse_netlink(line, port))?;
    programs(&HashSet::from([inode])).remove(&inode)
}

/// A line of that file: the inode, if it is this socket. The fields are: address, protocol, port, …, inode.
fn parse_netlink(line: &str, port: u32) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let is_it = *fields.get(1)? == NETFILTER && fields.get(2)?.parse() == Ok(port);
    is_it.then_some(())?;
    fields.get(9)?.parse().ok()
}

/// A line of such a file: address and inode, if it is in this state. The head line is in none.
fn parse(line: &str, state: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != state {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(parse_address(address)?, port), fields.get(9)?.parse().ok()?))
}

/// Addresses are written word by word, each as the machine holds it.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (index, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8)?);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// Which program holds which of these sockets. Other people's processes are closed to us without
/// root, and those of other containers are not seen from within one.
fn programs(inodes: &HashSet<u64>) -> HashMap<u64, String> {
    let mut found = HashMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        let descriptors = is_process.then(|| std::fs::read_dir(process.path().join("fd")).ok()).flatten();
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else { continue };
            if let Ok(name) = std::fs::read_to_string(process.path().join("comm")) {
                found.insert(inode, name.trim_end().to_owned());
            }
        }
    }
    found
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(text: &str) {
    for line in text.lines() {
        let _ = (parse(line, TCP_LISTEN), parse(line, UDP_UNCONNECTED), parse_netlink(line, 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_program_behind_a_netlink_port_is_named() {
        let head = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode";
        assert_eq!(parse_netlink(head, 1), None);
        let line = "0000000000000000 12  4294963181 00000000 0        0        0     2        0        4711";
        assert_eq!(parse_netlink(line, 4_294_963_181), Some(4711));
        assert_eq!(parse_netlink(line, 12), None);
        let of_routes = line.replace("12 ", "0  ");
        assert_eq!(parse_netlink(&of_routes, 4_294_963_181), None);
        let socket = netlink::Socket::open(netlink::Protocol::Netfilter).unwrap();
        let ours = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(netfilter_program(socket.port()).as_deref(), Some(ours.trim_end()));
    }

    #[test]
    fn lines_of_either_family_are_read_and_the_head_is_not() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(parse(head, TCP_LISTEN), None);
        let v4 = "   0: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        assert_eq!(parse(v4, TCP_LISTEN), Some(("127.0.0.1:10250".parse().unwrap(), 4711)));
        assert_eq!(parse(v4, UDP_UNCONNECTED), None);
        let v6 = "   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(parse(v6, TCP_LISTEN), Some(("[2001:db8::1]:80".parse().unwrap(), 7)));
        for broken in ["", "0: x:y 0 0A", "0: 0100007F 0 0A 0 0 0 0 0 1", "0: 0100007Fä:50 0 0A 0 0 0 0 0 1"]
        {
            assert_eq!(parse(broken, TCP_LISTEN), None, "{broken}");
        }
    }

    #[test]
    fn our_own_sockets_are_found_with_our_name() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let found = listeners().unwrap();
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        for (protocol, address) in
            [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
        {
            let listener = found.iter().find(|it| it.protocol == protocol && it.address == address).unwrap();
            assert_eq!(listener.program.as_deref(), Some(name.trim_end()));
        }
    }
}

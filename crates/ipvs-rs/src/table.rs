//! All real servers at once, from the table that the kernel prints.

use crate::{Key, Protocol};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Of the calling thread's network namespace; `/proc/net` would be that of the process's first thread.
const TABLE: &str = "/proc/thread-self/net/ip_vs";
const READ_AT_ONCE: usize = 64 << 10;

/// A real server, as far as the table shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableEntry {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its share.
    pub weight: u32,
}

/// Visits the virtual servers that have an address, each with its real servers, in no particular order, in
/// the network namespace of the calling thread.
///
/// It costs a fraction of [`Ipvs::list_real_servers`](crate::Ipvs::list_real_servers) for each virtual
/// server, but it is neither one moment nor complete. While virtual servers come or go, others may be
/// passed over or come twice. And the kernel prints 4 KiB at a time, counts those of all network namespaces
/// on its way, and goes on after as many of this one: where other namespaces have virtual servers, too, some of
/// ours are passed over even at rest. Real servers show without their limits, virtual servers without their settings.
///
/// # Errors
/// When the table cannot be read: `NotFound` without `ip_vs`.
pub fn visit_table(visit: &mut dyn FnMut(Key, &[TableEntry])) -> io::Result<()> {
    visit_lines(BufReader::with_capacity(READ_AT_ONCE, File::open(TABLE)?), visit)
}

/// A virtual server with a line that is not understood is not visited.
fn visit_lines(mut table: impl BufRead, visit: &mut dyn FnMut(Key, &[TableEntry])) -> io::Result<()> {
    let (mut line, mut open, mut entries) = (String::new(), None, Vec::new());
    while table.read_line(&mut line)? > 0 {
        if let Some(real_server) = line.strip_prefix("  -> ") {
            match entry(real_server) {
                Some(entry) => entries.push(entry),
                None => open = None,
            }
        } else {
            if let Some(key) = open {
                visit(key, &entries);
            }
            entries.clear();
            open = key(&line);
        }
        line.clear();
    }
    if let Some(key) = open {
        visit(key, &entries);
    }
    Ok(())
}

/// `TCP  0A600001:0050 rr`; firewall marks show without their family and are passed over.
fn key(line: &str) -> Option<Key> {
    let mut words = line.split_ascii_whitespace();
    let protocol = match words.next()? {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    Some(Key::address(protocol, address(words.next()?)?))
}

/// `0AF40001:1F90      Masq    1      0          0`
fn entry(text: &str) -> Option<TableEntry> {
    let mut words = text.split_ascii_whitespace();
    let address = address(words.next()?)?;
    let weight: i32 = words.nth(1)?.parse().ok()?;
    Some(TableEntry { address, weight: weight.cast_unsigned() })
}

/// Address and port in hexadecimal digits; IPv6 addresses are written out, in brackets.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let ip = match address.strip_prefix('[') {
        Some(address) => IpAddr::V6(address.strip_suffix(']')?.parse().ok()?),
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Reads whatever it is, for fuzzing.
pub(crate) fn parse_anything(bytes: &[u8]) {
    let _ = visit_lines(bytes, &mut |_, _| {});
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:0050 rr  persistent 10800 FFFFFFFF
  -> 0AF40002:1F90      Masq    0      3          4         
  -> 0AF40001:1F90      Masq    1      0          0         
FWM  00000007 rr 
  -> 0AF40009:0000      Route   1      0          0         
UDP  [fd00:0096:0000:0000:0000:0000:0000:0001]:0035 rr 
  -> [fd00:0244:0000:0000:0000:0000:0000:0001]:0035      Masq    100    0          0         
SCTP  0A600002:0050 lc 
";

    fn visited(shown: &str) -> Vec<(String, Vec<(String, u32)>)> {
        let mut visited = Vec::new();
        let mut visit = |key: Key, entries: &[TableEntry]| {
            let entries = entries.iter().map(|entry| (entry.address.to_string(), entry.weight));
            visited.push((key.to_string(), entries.collect()));
        };
        visit_lines(shown.as_bytes(), &mut visit).unwrap();
        visited
    }

    #[test]
    fn virtual_servers_of_both_families_come_with_their_real_servers() {
        let real = |address: &str, weight| (address.to_owned(), weight);
        let tcp = Key::address(Protocol::Tcp, "10.96.0.1:80".parse().unwrap());
        let udp = Key::address(Protocol::Udp, "[fd00:96::1]:53".parse().unwrap());
        let sctp = Key::address(Protocol::Sctp, "10.96.0.2:80".parse().unwrap());
        assert_eq!(
            visited(SHOWN),
            [
                (tcp.to_string(), vec![real("10.244.0.2:8080", 0), real("10.244.0.1:8080", 1)]),
                (udp.to_string(), vec![real("[fd00:244::1]:53", 100)]),
                (sctp.to_string(), vec![]),
            ]
        );
    }

    #[test]
    fn a_virtual_server_with_a_line_that_is_not_understood_is_passed_over() {
        let odd = SHOWN.replace("0AF40001:1F90      Masq    1 ", "0AF40001:1F90      Masq    many ");
        let visited = visited(&odd);
        assert_eq!(visited.len(), 2);
        assert!(visited.iter().all(|(key, _)| !key.contains("10.96.0.1")));
    }
}

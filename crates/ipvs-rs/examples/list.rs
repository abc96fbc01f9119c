//! Prints what `ipvsadm -Ln` prints: all virtual servers and their real servers, as numbers.
//!
//! `cargo run -p ipvs-rs --example list` (as root)

use ipvs_rs::{
    Family, Forward, Ipvs, Key, ListedRealServer, Netmask, Protocol, SchedulerFlags, VirtualServer,
};
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

fn main() -> Result<(), Box<dyn Error>> {
    let mut ipvs = Ipvs::open()?;
    let info = ipvs.info()?;
    let (major, minor, patch) = info.version;
    println!("IP Virtual Server version {major}.{minor}.{patch} (size={})", info.connection_table_size);
    println!("Prot LocalAddress:Port Scheduler Flags");
    println!("  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn");
    let mut virtual_servers = ipvs.list_virtual_servers()?;
    virtual_servers.sort_by_key(|listed| order(&listed.server.key));
    for listed in virtual_servers {
        println!("{} {}", key(&listed.server.key), scheduling(&listed.server));
        let mut real_servers = ipvs.list_real_servers(&listed.server.key)?;
        real_servers.sort_by_key(|real| real.server.address);
        for real in real_servers {
            println!("{}", real_server(&real));
        }
    }
    Ok(())
}

/// The order `ipvsadm` lists in: marks last, IPv4 before IPv6.
fn order(key: &Key) -> (u32, Family, Key) {
    let mark = match key {
        Key::Address { .. } => 0,
        Key::Fwmark { mark, .. } => *mark,
    };
    (mark, key.family(), *key)
}

fn key(key: &Key) -> String {
    match key {
        Key::Address { protocol, address, port } => {
            let protocol = match protocol {
                Protocol::Tcp => "TCP ",
                Protocol::Udp => "UDP ",
                Protocol::Sctp => "SCTP",
                Protocol::Other(_) => "IP  ",
            };
            format!("{protocol} {}", SocketAddr::new(*address, *port))
        }
        Key::Fwmark { family: Family::V4, mark } => format!("FWM  {mark}"),
        Key::Fwmark { family: Family::V6, mark } => format!("FWM  {mark} IPv6"),
    }
}

fn scheduling(server: &VirtualServer) -> String {
    let mut text = server.scheduler.to_string();
    if let Some(flags) = flags(server) {
        text += &format!(" ({flags})");
    }
    if let Some(persistence) = &server.persistence {
        text += &format!(" persistent {}", persistence.timeout.as_secs());
        match persistence.netmask {
            Netmask::V4(Ipv4Addr::BROADCAST) | Netmask::V6(128) => {}
            Netmask::V4(mask) => text += &format!(" mask {mask}"),
            Netmask::V6(len) => text += &format!(" mask {len}"),
        }
        if let Some(engine) = &persistence.engine {
            text += &format!(" pe {engine}");
        }
    }
    if server.one_packet {
        text += " ops";
    }
    text
}

/// The names `ipvsadm` has for a scheduler's switches.
fn flags(server: &VirtualServer) -> Option<String> {
    let names: &[_] = match server.scheduler.as_str() {
        "sh" => &["sh-fallback", "sh-port"],
        "mh" => &["mh-fallback", "mh-port"],
        _ => &["flag-1", "flag-2", "flag-3"],
    };
    let flags = [SchedulerFlags::FIRST, SchedulerFlags::SECOND, SchedulerFlags::THIRD];
    let set: Vec<_> = std::iter::zip(flags, names)
        .filter(|(flag, _)| server.scheduler_flags.contains(*flag))
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() { None } else { Some(set.join(",")) }
}

fn real_server(listed: &ListedRealServer) -> String {
    let server = &listed.server;
    let address = server.address.to_string();
    let forward = match server.forward {
        Forward::Masquerade => "Masq",
        Forward::Local => "Local",
        Forward::Tunnel(_) => "Tunnel",
        Forward::DirectRoute => "Route",
        Forward::Bypass | Forward::Other(_) => "Bypass",
    };
    format!(
        "  -> {address:<28} {forward:<7} {:<6} {:<10} {:<10}",
        server.weight, listed.active_connections, listed.inactive_connections
    )
}

use super::*;
use crate::recorded;
use netlink::Messages;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn messages(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    Messages::new(bytes).map(Result::unwrap)
}

fn tcp(address: &str) -> Key {
    Key::address(Protocol::Tcp, address.parse().unwrap())
}

fn persistent(timeout: u64, netmask: Netmask) -> Option<Persistence> {
    Some(Persistence { timeout: Duration::from_secs(timeout), netmask, engine: None })
}

/// What the recorded kernel was configured with, but for keys.
fn expected_services() -> Vec<VirtualServer> {
    let plain = |key, scheduler: &'static str| VirtualServer::new(key, Scheduler::named(scheduler));
    let all_hosts = Netmask::host(Family::V4);
    let sip = Persistence { engine: Some("sip".into()), ..persistent(100, all_hosts).unwrap() };
    let udp = |address: &str| Key::address(Protocol::Udp, address.parse().unwrap());
    vec![
        plain(tcp("192.0.2.1:80"), "rr"),
        VirtualServer {
            scheduler_flags: SchedulerFlags::FIRST | SchedulerFlags::SECOND,
            ..plain(tcp("192.0.2.1:443"), "sh")
        },
        VirtualServer { one_packet: true, ..plain(udp("192.0.2.1:53"), "rr") },
        VirtualServer { persistence: Some(sip), ..plain(udp("192.0.2.1:5060"), "wlc") },
        VirtualServer {
            persistence: persistent(300, Netmask::V4(Ipv4Addr::new(255, 255, 255, 0))),
            ..plain(tcp("192.0.2.2:80"), "wlc")
        },
        plain(Key::address(Protocol::Sctp, "192.0.2.1:132".parse().unwrap()), "rr"),
        plain(tcp("[2001:db8::1]:80"), "rr"),
        VirtualServer {
            scheduler_flags: SchedulerFlags::SECOND,
            persistence: persistent(600, Netmask::V6(64)),
            ..plain(tcp("[2001:db8::2]:80"), "mh")
        },
        plain(Key::fwmark(Family::V4, 7), "rr"),
        VirtualServer {
            persistence: persistent(60, Netmask::V6(128)),
            ..plain(Key::fwmark(Family::V6, 8), "rr")
        },
    ]
}

#[test]
fn recorded_virtual_servers_of_every_kind_are_read() {
    let bytes = recorded::services();
    let read: BTreeMap<_, _> = messages(&bytes)
        .map(|message| virtual_server(&message).unwrap().unwrap())
        .map(|listed| (listed.server.key, listed))
        .collect();
    let expected = expected_services();
    assert_eq!(read.len(), expected.len());
    for server in expected {
        assert_eq!(read[&server.key].server, server);
    }
    let busy = read[&tcp("192.0.2.1:80")].stats;
    assert_eq!((busy.connections, busy.packets_in, busy.bytes_in, busy.byte_rate_in), (1, 1, 60, 7));
    assert_eq!(read[&tcp("192.0.2.2:80")].stats, Stats::default());
}

#[test]
fn recorded_real_servers_of_every_kind_are_read() {
    let bytes = recorded::dests_v4();
    let read: BTreeMap<_, _> = messages(&bytes)
        .map(|message| real_server(&message, Family::V4).unwrap().unwrap())
        .map(|listed| (listed.server.address.to_string(), listed))
        .collect();
    assert_eq!(read.len(), 6);

    let busy = &read["192.0.2.200:8080"];
    assert_eq!(busy.server, RealServer::new("192.0.2.200:8080".parse().unwrap()));
    assert_eq!((busy.active_connections, busy.inactive_connections), (1, 0));
    assert_eq!((busy.persistent_connections, busy.stats.connections), (0, 1));

    let forward = |address: &str| read[address].server.forward;
    assert_eq!(forward("10.0.0.2:80"), Forward::DirectRoute);
    assert_eq!(forward("10.0.0.4:80"), Forward::Tunnel(Tunnel::Gue { port: 6080, flags: 0 }));
    assert_eq!(forward("10.0.0.5:80"), Forward::Tunnel(Tunnel::Gre { flags: 1 }));
    assert_eq!(forward("[2001:db8:1::9]:80"), Forward::Tunnel(Tunnel::Ipip), "of the other family");
    let limited = read["10.0.0.3:80"].server;
    assert_eq!((limited.weight, limited.upper_threshold, limited.lower_threshold), (0, 100, 50));
}

#[test]
fn recorded_ipv6_real_servers_are_read() {
    let bytes = recorded::dests_v6();
    let message = messages(&bytes).next().unwrap();
    let read = real_server(&message, Family::V6).unwrap().unwrap();
    assert_eq!(read.server, RealServer::new("[2001:db8:1::1]:8080".parse().unwrap()));
}

#[test]
fn recorded_timeouts_and_version_are_read() {
    let bytes = recorded::config();
    let read = timeouts(&messages(&bytes).next().unwrap()).unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(read, Timeouts { tcp: seconds(900), tcp_fin: seconds(120), udp: seconds(300) });
    let bytes = recorded::info();
    let read = info(&messages(&bytes).next().unwrap()).unwrap();
    assert_eq!(read, Info { version: (1, 2, 1), connection_table_size: 4096 });
}

#[test]
fn a_service_without_family_or_key_is_malformed() {
    let mut buf = netlink::MsgBuf::new();
    let mut read = |fill: &dyn Fn(&mut netlink::MsgBuf)| {
        buf.clear();
        crate::write::begin(&mut buf, 32, 1);
        buf.nest(top::SERVICE, fill);
        virtual_server(&messages(buf.as_bytes()).next().unwrap())
    };
    assert_eq!(read(&|_| ()), Err(Malformed("service without an address family")));
    assert_eq!(read(&|buf| buf.u16(service::AF, 2)), Err(Malformed("service without protocol or mark")));
    assert_eq!(read(&|buf| buf.u16(service::AF, 3)), Err(Malformed("unknown address family")));
    let short_address = |buf: &mut netlink::MsgBuf| {
        buf.u16(service::AF, 10);
        buf.u16(service::PROTOCOL, 6);
        buf.bytes(service::ADDR, &[1, 2, 3, 4]);
    };
    assert_eq!(read(&short_address), Err(Malformed("address too short for its family")));
}

#[test]
fn an_answer_without_a_service_is_none() {
    let bytes = recorded::config();
    assert_eq!(real_server(&messages(&bytes).next().unwrap(), Family::V4), Ok(None));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        parse_anything(&bytes);
    }

    #[test]
    fn recordings_with_random_damage_never_panic(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = recorded::all().swap_remove(which.index(9));
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        parse_anything(&bytes);
    }
}

//! Talks to a real kernel: needs root and `ip_vs`, hence ignored by default.
//!
//! `cargo test -p ipvs-rs --test live -- --ignored`, or, where the local kernel has no IPVS, the same
//! test binary inside the project's virtual machine (`e2e/vm/run`). Each test has a network namespace of
//! its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use ipvs_rs::{
    Error, Family, Forward, Ipvs, Key, Netmask, Persistence, Protocol, RealServer, Reason, Scheduler,
    SchedulerFlags, Stats, TimeoutChange, Tunnel, VirtualServer,
};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One test at a time: namespaces share the kernel's table, and lists are only exact while it rests.
static TABLE: Mutex<()> = Mutex::new(());

/// Runs `test` in a new network namespace, on a thread of its own.
fn in_fresh_netns(test: impl FnOnce(&mut Ipvs) + Send) {
    let _resting = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            shell("ip link set lo up");
            test(&mut Ipvs::open().expect("this test needs a kernel with ip_vs"));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh starts");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("output is text")
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn tcp(text: &str) -> Key {
    Key::address(Protocol::Tcp, socket(text))
}

fn plain(key: Key) -> VirtualServer {
    VirtualServer::new(key, Scheduler::ROUND_ROBIN)
}

/// One virtual server of every kind there is.
fn menagerie() -> Vec<VirtualServer> {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let masked = |netmask| Some(Persistence { timeout: minutes(3), netmask, engine: None });
    vec![
        plain(tcp("192.0.2.1:80")),
        plain(Key::address(Protocol::Udp, socket("192.0.2.1:80"))),
        plain(Key::address(Protocol::Sctp, socket("192.0.2.1:80"))),
        plain(tcp("[2001:db8::1]:80")),
        plain(Key::address(Protocol::Udp, socket("[2001:db8::1]:80"))),
        plain(Key::address(Protocol::Sctp, socket("[2001:db8::1]:80"))),
        plain(Key::fwmark(Family::V4, 1)),
        plain(Key::fwmark(Family::V6, u32::MAX)),
        VirtualServer { one_packet: true, ..plain(Key::address(Protocol::Udp, socket("192.0.2.2:53"))) },
        VirtualServer {
            scheduler_flags: SchedulerFlags::FIRST | SchedulerFlags::SECOND | SchedulerFlags::THIRD,
            ..VirtualServer::new(tcp("192.0.2.2:1"), Scheduler::SOURCE_HASH)
        },
        VirtualServer {
            scheduler_flags: SchedulerFlags::SECOND,
            persistence: Some(Persistence::new(Family::V4, minutes(180))),
            ..VirtualServer::new(tcp("192.0.2.2:2"), Scheduler::MAGLEV_HASH)
        },
        VirtualServer {
            persistence: masked(Netmask::V4(Ipv4Addr::new(255, 255, 0, 0))),
            ..VirtualServer::new(tcp("192.0.2.2:3"), Scheduler::WEIGHTED_LEAST_CONNECTION)
        },
        VirtualServer { persistence: masked(Netmask::V6(64)), ..plain(tcp("[2001:db8::2]:3")) },
        VirtualServer { persistence: masked(Netmask::V6(1)), ..plain(tcp("[2001:db8::2]:0")) },
    ]
}

/// One real server of every kind there is.
fn real_menagerie() -> Vec<RealServer> {
    let real = |address: &str, forward| RealServer { forward, ..RealServer::new(socket(address)) };
    vec![
        RealServer::new(socket("10.0.0.1:8080")),
        RealServer {
            weight: 65_535,
            upper_threshold: 20,
            lower_threshold: 10,
            ..RealServer::new(socket("10.0.0.1:8081"))
        },
        RealServer { weight: 0, ..RealServer::new(socket("10.0.0.2:8080")) },
        real("10.0.0.3:80", Forward::DirectRoute),
        real("10.0.0.4:80", Forward::Tunnel(Tunnel::Ipip)),
        real("10.0.0.5:80", Forward::Tunnel(Tunnel::Gue { port: 6080, flags: 2 })),
        real("10.0.0.6:80", Forward::Tunnel(Tunnel::Gre { flags: 1 })),
        real("[2001:db8::7]:80", Forward::Tunnel(Tunnel::Ipip)),
        real("10.0.0.8:80", Forward::Local),
        real("10.0.0.9:80", Forward::Bypass),
    ]
}

#[test]
#[ignore = "needs root and ip_vs"]
fn virtual_servers_of_every_kind_read_back_as_written() {
    in_fresh_netns(|ipvs| {
        for server in menagerie() {
            ipvs.add_virtual_server(&server).unwrap();
            let found = ipvs.find_virtual_server(&server.key).unwrap().expect("it was added");
            assert_eq!((found.server, found.stats), (server, Stats::default()));
        }
        let listed: BTreeMap<_, _> = ipvs
            .list_virtual_servers()
            .unwrap()
            .into_iter()
            .map(|listed| (listed.server.key, listed.server))
            .collect();
        let expected = menagerie().into_iter().map(|server| (server.key, server)).collect();
        assert_eq!(listed, expected);
        for server in menagerie() {
            ipvs.remove_virtual_server(&server.key).unwrap();
            assert_eq!(ipvs.find_virtual_server(&server.key).unwrap(), None);
        }
        assert_eq!(ipvs.list_virtual_servers().unwrap(), []);
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn real_servers_of_every_kind_read_back_as_written() {
    in_fresh_netns(|ipvs| {
        let key = tcp("192.0.2.1:80");
        ipvs.add_virtual_server(&plain(key)).unwrap();
        for real in real_menagerie() {
            ipvs.add_real_server(&key, &real).unwrap();
        }
        let listed: BTreeMap<_, _> = ipvs
            .list_real_servers(&key)
            .unwrap()
            .into_iter()
            .map(|listed| (listed.server.address, listed.server))
            .collect();
        let expected = real_menagerie().into_iter().map(|server| (server.address, server)).collect();
        assert_eq!(listed, expected);

        let changed = RealServer {
            weight: 7,
            forward: Forward::DirectRoute,
            ..RealServer::new(socket("10.0.0.1:8080"))
        };
        ipvs.update_real_server(&key, &changed).unwrap();
        for real in &real_menagerie()[1..] {
            ipvs.remove_real_server(&key, real.address).unwrap();
        }
        let left = ipvs.list_real_servers(&key).unwrap();
        assert_eq!(left.iter().map(|listed| listed.server).collect::<Vec<_>>(), [changed]);
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn the_table_shows_what_the_lists_show() {
    in_fresh_netns(|ipvs| {
        for server in menagerie() {
            ipvs.add_virtual_server(&server).unwrap();
        }
        let crowded = tcp("192.0.2.1:80");
        for real in real_menagerie() {
            ipvs.add_real_server(&crowded, &real).unwrap();
        }
        let v6 = menagerie()
            .into_iter()
            .map(|server| server.key)
            .find(|key| matches!(key, Key::Address { address, .. } if address.is_ipv6()));
        ipvs.add_real_server(&v6.unwrap(), &RealServer::new(socket("[2001:db8::8]:8080"))).unwrap();

        let mut shown = BTreeMap::new();
        ipvs_rs::visit_table(&mut |key, entries| {
            let mut reals: Vec<_> = entries.iter().map(|entry| (entry.address, entry.weight)).collect();
            reals.sort_unstable();
            assert!(shown.insert(key, reals).is_none(), "{key} comes once");
        })
        .unwrap();
        let mut listed = BTreeMap::new();
        for server in ipvs.list_virtual_servers().unwrap() {
            let key = server.server.key;
            let reals = ipvs.list_real_servers(&key).unwrap();
            let mut reals: Vec<_> = reals.iter().map(|it| (it.server.address, it.server.weight)).collect();
            reals.sort_unstable();
            if matches!(key, Key::Address { .. }) {
                listed.insert(key, reals);
            }
        }
        assert_eq!(shown, listed);
        assert_eq!(shown[&crowded].len(), real_menagerie().len());
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn an_update_changes_everything_but_the_key_and_the_real_servers() {
    in_fresh_netns(|ipvs| {
        let key = tcp("[2001:db8::1]:443");
        let real = RealServer::new(socket("[2001:db8::7]:8443"));
        ipvs.add_virtual_server(&plain(key)).unwrap();
        ipvs.add_real_server(&key, &real).unwrap();
        let sticky = VirtualServer {
            scheduler: Scheduler::MAGLEV_HASH,
            scheduler_flags: SchedulerFlags::SECOND,
            persistence: Some(Persistence::new(Family::V6, Duration::from_secs(10_800))),
            ..plain(key)
        };
        for server in [sticky, plain(key)] {
            ipvs.update_virtual_server(&server).unwrap();
            assert_eq!(ipvs.find_virtual_server(&key).unwrap().unwrap().server, server);
        }
        assert_eq!(ipvs.list_real_servers(&key).unwrap()[0].server, real);
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn refusals_name_the_object_and_the_reason() {
    in_fresh_netns(|ipvs| {
        let key = tcp("192.0.2.1:80");
        let real = RealServer::new(socket("10.0.0.1:8080"));
        let expect = |result: Result<(), Error>, reason: Reason, text: &str| {
            let error = result.unwrap_err();
            assert_eq!((error.reason(), error.to_string().as_str()), (Some(reason), text));
        };
        expect(
            ipvs.add_real_server(&key, &real),
            Reason::NoSuchVirtualServer,
            "cannot add real server 10.0.0.1:8080 to 192.0.2.1:80/tcp: no such virtual server",
        );
        expect(
            ipvs.remove_virtual_server(&key),
            Reason::NoSuchVirtualServer,
            "cannot remove virtual server 192.0.2.1:80/tcp: no such virtual server",
        );
        expect(
            ipvs.update_virtual_server(&plain(key)),
            Reason::NoSuchVirtualServer,
            "cannot change virtual server 192.0.2.1:80/tcp: no such virtual server",
        );
        expect(
            ipvs.reset_counters(&key),
            Reason::NoSuchVirtualServer,
            "cannot reset counters of 192.0.2.1:80/tcp: no such virtual server",
        );
        expect(
            ipvs.add_virtual_server(&VirtualServer::new(key, Scheduler::named("nonesuch"))),
            Reason::NoSuchScheduler,
            "cannot add virtual server 192.0.2.1:80/tcp: no such scheduler or persistence engine",
        );
        ipvs.add_virtual_server(&plain(key)).unwrap();
        ipvs.add_real_server(&key, &real).unwrap();
        expect(
            ipvs.add_virtual_server(&plain(key)),
            Reason::Exists,
            "cannot add virtual server 192.0.2.1:80/tcp: it exists",
        );
        expect(
            ipvs.add_real_server(&key, &real),
            Reason::Exists,
            "cannot add real server 10.0.0.1:8080 to 192.0.2.1:80/tcp: it exists",
        );
        expect(
            ipvs.remove_real_server(&key, socket("10.0.0.2:8080")),
            Reason::NoSuchRealServer,
            "cannot remove real server 10.0.0.2:8080 from 192.0.2.1:80/tcp: no such real server",
        );
        expect(
            ipvs.update_real_server(&key, &RealServer { address: socket("10.0.0.2:8080"), ..real }),
            Reason::NoSuchRealServer,
            "cannot change real server 10.0.0.2:8080 of 192.0.2.1:80/tcp: no such real server",
        );
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn values_that_make_no_sense_are_invalid() {
    in_fresh_netns(|ipvs| {
        let netmask = Netmask::V6(129);
        let persistence = Some(Persistence { timeout: Duration::from_secs(1), netmask, engine: None });
        let server = VirtualServer { persistence, ..plain(tcp("[2001:db8::1]:80")) };
        assert_eq!(ipvs.add_virtual_server(&server).unwrap_err().reason(), Some(Reason::Invalid));
        let long = VirtualServer::new(tcp("192.0.2.1:80"), Scheduler::named("sixteen-letters!"));
        let error = ipvs.add_virtual_server(&long).unwrap_err();
        assert_eq!(error.reason(), Some(Reason::Invalid), "{error}");
        let key = tcp("192.0.2.1:80");
        ipvs.add_virtual_server(&plain(key)).unwrap();
        let mixed = RealServer::new(socket("[2001:db8::7]:80"));
        assert_eq!(ipvs.add_real_server(&key, &mixed).unwrap_err().reason(), Some(Reason::Invalid));
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn what_is_not_there_is_none_or_empty() {
    in_fresh_netns(|ipvs| {
        let key = Key::fwmark(Family::V6, 7);
        assert_eq!(ipvs.find_virtual_server(&key).unwrap(), None);
        assert_eq!(ipvs.list_real_servers(&key).unwrap(), []);
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn a_large_batch_is_carried_out_and_its_refusals_are_named() {
    in_fresh_netns(|ipvs| {
        let mut batch = ipvs.batch();
        for number in 0..2_000_u16 {
            let address = Ipv4Addr::from(0x0a60_0000 + u32::from(number));
            let key = Key::address(Protocol::Tcp, (address, 80).into());
            batch.add_virtual_server(&plain(key));
            for port in 1..=3 {
                batch.add_real_server(&key, &RealServer::new((address, port).into()));
            }
            if number % 500 == 499 {
                batch.add_real_server(&key, &RealServer::new((address, 1).into()));
            }
        }
        let refused = ipvs.run(&mut batch).unwrap();
        assert_eq!(batch.len(), 8_004);
        let texts: Vec<_> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 4);
        assert_eq!(texts[0], "cannot add real server 10.96.1.243:1 to 10.96.1.243:80/tcp: it exists");
        assert_eq!(ipvs.list_virtual_servers().unwrap().len(), 2_000);
        let key = tcp("10.96.7.207:80");
        assert_eq!(ipvs.list_real_servers(&key).unwrap().len(), 3);

        // Everything is there now, so everything is refused, and no refusal is lost.
        assert_eq!(ipvs.run(&mut batch).unwrap().len(), 8_004);
        ipvs.flush().unwrap();
        assert_eq!(ipvs.list_virtual_servers().unwrap(), []);
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn timeouts_change_one_by_one() {
    in_fresh_netns(|ipvs| {
        let before = ipvs.timeouts().unwrap();
        let seconds = Duration::from_secs;
        ipvs.set_timeouts(&TimeoutChange { udp: Some(seconds(77)), ..TimeoutChange::default() }).unwrap();
        let after = ipvs.timeouts().unwrap();
        assert_eq!((after.tcp, after.tcp_fin, after.udp), (before.tcp, before.tcp_fin, seconds(77)));
        let all = TimeoutChange { tcp: Some(seconds(1)), tcp_fin: Some(seconds(2)), udp: Some(seconds(3)) };
        ipvs.set_timeouts(&all).unwrap();
        let after = ipvs.timeouts().unwrap();
        assert_eq!((after.tcp, after.tcp_fin, after.udp), (seconds(1), seconds(2), seconds(3)));
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn the_version_is_that_of_the_kernels_code() {
    in_fresh_netns(|ipvs| {
        let info = ipvs.info().unwrap();
        assert_eq!(info.version, (1, 2, 1));
        assert!(info.connection_table_size.is_power_of_two());
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn connections_and_counters_are_seen_and_reset() {
    in_fresh_netns(|ipvs| {
        shell(
            "ip link add d0 type dummy; ip link set d0 up
             ip address add 192.0.2.1/32 dev d0; ip address add 192.0.2.200/32 dev d0",
        );
        let listener = TcpListener::bind("192.0.2.200:0").unwrap();
        let real = RealServer::new(listener.local_addr().unwrap());
        let key = tcp("192.0.2.1:80");
        ipvs.add_virtual_server(&plain(key)).unwrap();
        ipvs.add_real_server(&key, &real).unwrap();

        let mut client = TcpStream::connect("192.0.2.1:80").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();

        let listed = ipvs.list_real_servers(&key).unwrap().remove(0);
        assert_eq!((listed.active_connections, listed.inactive_connections), (1, 0));
        let deadline = Instant::now() + Duration::from_secs(20);
        while ipvs.list_real_servers(&key).unwrap()[0].stats.connections != 1 {
            assert!(Instant::now() < deadline, "the kernel brings counters up to date every two seconds");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(ipvs.find_virtual_server(&key).unwrap().unwrap().stats.connections, 1);

        ipvs.reset_counters(&key).unwrap();
        assert_eq!(ipvs.find_virtual_server(&key).unwrap().unwrap().stats.connections, 0);
        ipvs.reset_all_counters().unwrap();

        drop((client, server));
        let listed = ipvs.list_real_servers(&key).unwrap().remove(0);
        assert_eq!(listed.active_connections + listed.inactive_connections, 1, "still remembered");
    });
}

#[test]
#[ignore = "needs root and ip_vs"]
fn the_list_example_prints_what_ipvsadm_prints() {
    let tests = std::env::current_exe().unwrap();
    let list = tests.ancestors().nth(2).unwrap().join("examples/list");
    assert!(list.exists(), "first: cargo build -p ipvs-rs --examples");
    in_fresh_netns(|ipvs| {
        for server in menagerie() {
            // ipvsadm prints marks as if they had a sign.
            if server.key != Key::fwmark(Family::V6, u32::MAX) {
                ipvs.add_virtual_server(&server).unwrap();
            }
        }
        for real in real_menagerie() {
            // ipvsadm has no word for bypass.
            if real.forward != Forward::Bypass {
                ipvs.add_real_server(&tcp("192.0.2.1:80"), &real).unwrap();
            }
        }
        assert_eq!(shell(&list.display().to_string()), shell("ipvsadm -Ln"));
    });
}

//! File descriptors: connections and listening sockets never take those that tools and the API server need.

use std::fs;
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::proxy::wait_until;

use super::connections::{addresses, ports};
use super::ground::{FIRST_HEALTH_CHECK, Ground, NEIGHBOUR_ADDRESSES, Start, health_checked, tail};
use super::siege::{Siege, Way};

const SYNC: Duration = Duration::from_secs(5);

fn start(limit: &str, services: u16) -> Ground {
    let limit = format!("--nofile={limit}");
    let objects = health_checked(services);
    Ground::new(Start { through: &["prlimit", &limit], objects, ..Start::default() })
}

fn limits(ground: &Ground) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/limits", ground.proxy.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or_default());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn the_limit_is_raised_as_far_as_it_may_be() {
    let ground = start("256:4096", 0);
    assert_eq!(limits(&ground), (4096, 4096));
}

#[test]
fn connections_leave_enough_for_the_tools_when_the_limit_is_low() {
    let ground = start("1024:1024", 20);
    let siege = Siege::lay(&ground.neighbour, Way::Silent, &addresses(NEIGHBOUR_ADDRESSES), &ports());
    wait_until("there are many connections", Duration::from_secs(60), || siege.made() >= 3000).unwrap();
    for round in 1..4 {
        let sync = ground.sync_latency(round);
        assert!(sync < SYNC, "{sync:?}, with {:?}", ground.uses());
    }
    let used = ground.uses();
    assert!(used.descriptors < 1024 - 128, "{used:?}");
    assert_eq!(ground.log().matches("sync failed").count(), 0);
}

/// A user who may create Services gets a listening socket for each.
#[test]
fn listening_sockets_leave_enough_for_the_tools_and_those_left_out_are_named() {
    let ground = start("256:256", 200);
    let sync = ground.sync_latency(1);
    assert!(sync < SYNC, "{sync:?}, with {:?}", ground.uses());
    let used = ground.uses();
    assert!(used.descriptors < 256 - 64, "{used:?}");
    let log = ground.log();
    assert!(log.contains("raise their limit"), "{}", tail(&log));
    let first = Ground::at(IpFamily::V4, FIRST_HEALTH_CHECK);
    assert!(ground.get(&ground.node, first, "/").starts_with("HTTP/1.1 200"), "the other Services work");
}

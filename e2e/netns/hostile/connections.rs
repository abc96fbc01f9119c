//! A neighbour on the network opens connections, as many as it can.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::proxy::wait_until;
use rstest::rstest;

use super::ground::{
    FIRST_HEALTH_CHECK, Ground, HEALTH, NEIGHBOUR_ADDRESSES, Start, Use, health_checked, neighbour_address,
};
use super::siege::{Siege, Way};

/// Services with a health-check node port.
const HEALTH_CHECKED: u16 = 20;
/// Enough to fill whatever could be filled.
const MANY: u64 = 1500;
/// What a probe may take in the middle of an attack: usually, and at worst on a busy machine. In a flood, which takes all
/// the time that the neighbour's and the node's processors have, it is the kubelet's patience.
const PROBE: Duration = Duration::from_millis(100);
const SLOWEST_PROBE: Duration = Duration::from_millis(900);
const SLOWEST_IN_FLOOD: Duration = Duration::from_secs(5);
/// What a change may take from the API server to the kernel: a debug build on a busy machine.
const SYNC: Duration = Duration::from_secs(5);
/// What an attack may cost: every slot taken, and little memory for each.
const DESCRIPTORS: usize = 320 + 30;
const MEMORY_KB: u64 = 16 * 1024;

pub(crate) fn addresses(count: u8) -> Vec<IpAddr> {
    let of = |number| IpFamily::ALL.map(|family| neighbour_address(family, number));
    (0..count).flat_map(of).collect()
}

pub(crate) fn ports() -> Vec<SocketAddr> {
    let health = IpFamily::ALL.map(|family| Ground::at(family, HEALTH));
    let checks = (0..HEALTH_CHECKED).map(|number| Ground::at(IpFamily::V4, FIRST_HEALTH_CHECK + number));
    health.into_iter().chain(checks).collect()
}

fn expect_little_cost(ground: &Ground, before: Use, way: Way, attack: &str) {
    let probes = ground.probe_latencies(40);
    let (usual, slowest) = (probes[probes.len() / 2], probes[probes.len() - 1]);
    let used = ground.uses();
    let report = format!("{attack}: probes {usual:?}, at worst {slowest:?}; {before:?}, then {used:?}");
    println!("{report}");
    let bearable = if matches!(way, Way::Flood) { SLOWEST_IN_FLOOD } else { SLOWEST_PROBE };
    assert!(usual < PROBE && slowest < bearable, "{report}");
    assert!(used.descriptors <= before.descriptors + DESCRIPTORS, "{report}");
    assert!(used.memory_kb <= before.memory_kb + MEMORY_KB, "{report}");
}

#[rstest]
fn probes_of_the_node_are_answered_whatever_a_neighbour_does(#[values(1, NEIGHBOUR_ADDRESSES)] from: u8) {
    let ground = Ground::new(Start { objects: health_checked(HEALTH_CHECKED), ..Start::default() });
    let before = ground.uses();
    for (round, way) in [Way::Silent, Way::HalfHead, Way::Reader, Way::Flood].into_iter().enumerate() {
        let siege = Siege::lay(&ground.neighbour, way, &addresses(from), &ports());
        wait_until("there are many connections", Duration::from_secs(20), || siege.made() >= MANY).unwrap();
        let attack = format!("{way:?} from {from} addresses");
        expect_little_cost(&ground, before, way, &attack);
        let sync = ground.sync_latency(u8::try_from(round + 1).unwrap());
        println!("{attack}: {} connections made; a change in the kernel after {sync:?}", siege.made());
        assert!(sync < SYNC, "{attack}: {sync:?}");
    }
}

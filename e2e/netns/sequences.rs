//! Random changes, one after the other: what they add up to in the kernel must equal what a
//! program that never saw them makes of the end result.

use std::time::Duration;

use kube_proxy_rs::model::Protocol;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{EndpointState, PacketCase, Place, Shape};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, wait_until};
use rstest::rstest;
use serde_json::Value;

use crate::BINARY;
use crate::saved::rules;

const SYNC: Duration = Duration::from_secs(120);
/// Services that come and go.
const SERVICES: u8 = 8;
/// Changes of one sequence.
const CHANGES: usize = 4;
/// Small, so that changes do not wait for each other.
const FLAGS: &[&str] = &["--iptables-min-sync-period=50ms"];

#[rstest]
#[case::nft(Flavor::Nft, 0..50)]
#[case::nft(Flavor::Nft, 50..100)]
#[case::legacy(Flavor::Legacy, 100..120)]
fn changes_add_up_to_what_a_full_sync_makes(#[case] flavor: Flavor, #[case] seeds: std::ops::Range<u64>) {
    let node = fresh_node();
    let launch = Launch { binary: BINARY, namespace: &node, flavor, flags: FLAGS };
    let mut proxy = launch.start(&[]).unwrap();
    let mut world = World::new(seeds.start);
    for seed in seeds {
        world.seed(seed);
        for _ in 0..CHANGES {
            world.change();
            proxy.apply(&world.objects()).unwrap();
            // Sometimes the next change comes while this one is being programmed.
            if world.random.below(2) == 0 {
                proxy.wait_for_sync(&node, flavor, SYNC).unwrap();
            }
        }
        proxy.wait_for_sync(&node, flavor, SYNC).unwrap();
        equals_full_sync(&node, flavor, &proxy)
            .unwrap_or_else(|error| panic!("sequence {seed}: {error}; the log:\n{}", proxy.log_tail()));
    }
}

fn fresh_node() -> Namespace {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    node
}

fn equals_full_sync(node: &Namespace, flavor: Flavor, proxy: &Proxy) -> Result<(), String> {
    let twin_node = fresh_node();
    let twin = Launch { binary: BINARY, namespace: &twin_node, flavor, flags: FLAGS };
    let _twin = twin.start_on(proxy.manifests()).unwrap();
    let difference = || {
        [false, true]
            .into_iter()
            .flat_map(|v6| {
                let (ours, wanted) = (rules(node, flavor, v6), rules(&twin_node, flavor, v6));
                let missing = wanted.difference(&ours).map(|line| format!("- {line}")).collect::<Vec<_>>();
                let surplus = ours.difference(&wanted).map(|line| format!("+ {line}")).collect::<Vec<_>>();
                [missing, surplus].concat()
            })
            .collect::<Vec<_>>()
    };
    wait_until("the rules are the same", SYNC, || difference().is_empty())
        .map_err(|error| format!("{error}:\n{}", difference().join("\n")))
}

/// The Services there are at the moment.
pub(crate) struct World {
    random: Random,
    services: Vec<Option<PacketCase>>,
}

impl World {
    /// None yet.
    pub(crate) fn new(seed: u64) -> World {
        World { random: Random(seed), services: vec![None; usize::from(SERVICES)] }
    }

    /// Begins another row of changes.
    pub(crate) fn seed(&mut self, seed: u64) {
        self.random = Random(seed);
    }

    pub(crate) fn objects(&self) -> Vec<Value> {
        self.services.iter().flatten().flat_map(PacketCase::objects).collect()
    }

    /// Adds, removes or changes one Service.
    pub(crate) fn change(&mut self) {
        let index = self.random.below(SERVICES);
        let random = &mut self.random;
        let slot = &mut self.services[usize::from(index)];
        match (slot.as_mut(), random.below(4)) {
            (None, _) => *slot = Some(random.service(index + 1)),
            (Some(_), 0) => *slot = None,
            (Some(case), 1) => case.shape = random.shape(),
            (Some(case), _) => case.shape.endpoints = random.endpoints(),
        }
    }
}

/// A small generator with a seed, so that a failure can be seen again.
struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u8) -> u8 {
        u8::try_from(self.next() % u64::from(limit)).unwrap()
    }

    fn service(&mut self, index: u8) -> PacketCase {
        PacketCase { name: "random", flags: &[], shape: self.shape(), packets: Vec::new(), index }
    }

    fn shape(&mut self) -> Shape {
        let exposed = self.below(2) == 0;
        Shape {
            protocol: Protocol::ALL[usize::from(self.below(3))],
            endpoints: self.endpoints(),
            exposed,
            external_local: exposed && self.below(2) == 0,
            internal_local: self.below(4) == 0,
            affinity_seconds: (self.below(4) == 0).then_some(60),
            source_ranges: if exposed && self.below(3) == 0 {
                vec![Place::OutsideFriend]
            } else {
                Vec::new()
            },
        }
    }

    fn endpoints(&mut self) -> Vec<(Place, EndpointState)> {
        use EndpointState::{NotReady, Ready, Stopped, Terminating};
        let states = [Ready, Ready, Ready, NotReady, Terminating, Stopped];
        let mut endpoints = Vec::new();
        for place in Place::SERVERS {
            if self.below(2) == 0 {
                endpoints.push((place, states[usize::from(self.below(6))]));
            }
        }
        endpoints
    }
}

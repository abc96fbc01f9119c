//! Random changes, one after the other: what they add up to in the kernel must equal what a
//! program that never saw them makes of the end result.

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::thorough::thorough;

use super::{Flavor, LIMIT, Namespace, Proxy, launch, state, wait_for_markers, wait_until};
use crate::sequences::World;

/// After how many sequences the state is compared; a sync from nothing takes its time in an emulated machine.
const COMPARED: u64 = 5;
/// Changes of one sequence.
const CHANGES: usize = 4;
const FLAGS: [&str; 2] = ["--proxy-mode=ipvs", "--ipvs-min-sync-period=0s"];

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn changes_add_up_to_what_a_full_sync_makes() {
    let node = fresh_node();
    let mut world = World::new(0);
    let mut proxy = launch(&node, &FLAGS).start(&[]).unwrap();
    for seed in 0..thorough(10, 50) {
        world.seed(seed);
        for _ in 0..CHANGES {
            world.change();
            proxy.apply(&world.objects()).unwrap();
        }
        wait_for_markers(&mut proxy, &node);
        if (seed + 1) % COMPARED == 0 {
            equals_full_sync(&node, &proxy)
                .unwrap_or_else(|error| panic!("sequence {seed}: {error}; the log:\n{}", proxy.log_tail()));
        }
    }
}

fn fresh_node() -> Namespace {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    node
}

fn equals_full_sync(node: &Namespace, proxy: &Proxy) -> Result<(), String> {
    let twin_node = fresh_node();
    let _twin = launch(&twin_node, &FLAGS).start_on(proxy.manifests()).unwrap();
    let difference = || {
        let (ours, wanted) = (state(node, Flavor::Nft), state(&twin_node, Flavor::Nft));
        let missing = wanted.difference(&ours).map(|line| format!("- {line}"));
        let surplus = ours.difference(&wanted).map(|line| format!("+ {line}"));
        missing.chain(surplus).collect::<Vec<_>>()
    };
    wait_until("the states are the same", LIMIT, || difference().is_empty())
        .map_err(|error| format!("{error}:\n{}", difference().join("\n")))
}

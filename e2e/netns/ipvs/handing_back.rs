//! From our ways to kube-proxy's, before it takes the node back.

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::{PacketCase, cases};
use rstest::rstest;

use super::{Flavor, LIMIT, Launch, Namespace, launch, state, wait_for_markers, wait_until};

const OUR_WAYS: &[&str] = &["--proxy-mode=ipvs"];
const UPSTREAMS_WAYS: &[&str] = &["--proxy-mode=ipvs", "--ipvs-upstream-compat"];

fn fresh_node() -> Namespace {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    node
}

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn what_kube_proxy_does_not_know_is_taken_away(#[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor) {
    let node = fresh_node();
    let ours = Launch { flavor, ..launch(&node, OUR_WAYS) };
    let cases = cases().into_iter().filter(|case| case.name.contains("local_policy_without_local_endpoints"));
    let objects: Vec<_> = cases.flat_map(|case: PacketCase| case.objects()).collect();
    let mut proxy = ours.start(&objects).unwrap();
    wait_for_markers(&mut proxy, &node);
    let has_additions = || {
        state(&node, flavor).iter().any(|line| line.contains("KUBE-LOCAL-POLICY") && line.contains("DROP"))
    };
    wait_until("our rules stand", LIMIT, has_additions).unwrap();

    proxy.terminate().unwrap();
    let upstreams = Launch { flavor, ..launch(&node, UPSTREAMS_WAYS) };
    upstreams.start_again(&mut proxy).unwrap();
    let twin_node = fresh_node();
    let twin = Launch { flavor, ..launch(&twin_node, UPSTREAMS_WAYS) };
    let _twin = twin.start_on(proxy.manifests()).unwrap();
    let differences = || {
        let (there, wanted) = (state(&node, flavor), state(&twin_node, flavor));
        there.symmetric_difference(&wanted).cloned().collect::<Vec<_>>()
    };
    wait_until("the node is as if it had never been otherwise", LIMIT, || differences().is_empty())
        .unwrap_or_else(|error| panic!("{error}:\n{}\n{}", differences().join("\n"), proxy.log_tail()));
    assert!(!state(&twin_node, flavor).is_empty());
}

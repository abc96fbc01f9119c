//! The rules around IPVS, by the legacy tools.

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::{PacketCase, cases};

use super::{BTreeSet, Flavor, IpFamily, LIMIT, Lab, Launch, Namespace, launch, rules, save};
use super::{wait_for_markers, wait_until};
use crate::sabotage::drift;

/// Cases of the packet table that need every kind of rule.
const CASES: [&str; 5] = [
    "the_cluster_ip_keeps_the_source_inside_the_cluster_only",
    "an_endpoint_reaches_itself_through_the_service",
    "the_external_local_policy_without_local_endpoints_drops_outside_traffic",
    "the_internal_local_policy_without_local_endpoints_drops",
    "source_ranges_with_the_external_local_policy_keep_the_source",
];

/// Our rules, without what the flavours spell in different ways.
fn our_rules(node: &Namespace, flavor: Flavor) -> BTreeSet<String> {
    let rules = |v6| rules(&save(flavor, node, v6).unwrap());
    let of = |v6| rules(v6).into_iter().map(move |(place, rules)| format!("{v6} {place:?} {rules:?}"));
    [false, true].into_iter().flat_map(of).collect()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn the_legacy_tools_make_the_same_rules_and_packets_go_the_same_ways() {
    let lab = Lab::create().unwrap();
    let cases: Vec<PacketCase> = cases().into_iter().filter(|case| CASES.contains(&case.name)).collect();
    assert_eq!(cases.len(), CASES.len(), "the packet table has other names now");
    let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
    let flags = ["--proxy-mode=ipvs"];
    let legacy = Launch { flavor: Flavor::Legacy, ..launch(lab.node(), &flags) };
    let mut proxy = legacy.start(&objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());

    let twin_node = lone_node().unwrap();
    give_idle_uplink(&twin_node).unwrap();
    let mut twin = launch(&twin_node, &flags).start_on(proxy.manifests()).unwrap();
    let is_same = || our_rules(&twin_node, Flavor::Nft) == our_rules(lab.node(), Flavor::Legacy);
    let same = wait_until("both flavours have the same rules", LIMIT, || twin.is_running() && is_same());
    assert!(
        same.is_ok(),
        "legacy: {:#?}\nnft: {:#?}",
        our_rules(lab.node(), Flavor::Legacy),
        our_rules(&twin_node, Flavor::Nft)
    );
    let failures = crate::packets::send_all(&lab, &cases, IpFamily::V4);
    assert!(failures.is_empty(), "packets went astray:\n{}", failures.join("\n"));

    // What is lost is noticed in this flavour, too.
    let good = our_rules(lab.node(), Flavor::Legacy);
    lab.node().output("iptables-legacy", &["-t", "nat", "-F", "KUBE-SERVICES"]).unwrap();
    wait_until("the rules are back", LIMIT, || our_rules(lab.node(), Flavor::Legacy) == good).unwrap();
    wait_until("the loss is counted", LIMIT, || drift(lab.node()) > 0.0).unwrap();
    assert!(drift(lab.node()) == 1.0, "nothing else was harmed, it says:\n{}", proxy.log_tail());
    proxy.terminate().unwrap();
    let cleanup_flags = ["--cleanup"];
    let mut cleanup = Launch { flags: &cleanup_flags, ..legacy }.start(&[]).unwrap();
    wait_until("the cleanup has ended", LIMIT, || !cleanup.is_running()).unwrap();
    assert!(our_rules(lab.node(), Flavor::Legacy).iter().all(|line| !line.contains("KUBE-")));
}

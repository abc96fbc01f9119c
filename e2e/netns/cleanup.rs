//! What is removed, and what must not be touched.

use std::time::Duration;

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::cases;
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, save, wait_until};

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);
const BOTH: [Flavor; 2] = [Flavor::Nft, Flavor::Legacy];

fn node() -> Namespace {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    node
}

/// Runs the program until it has synced.
fn program(node: &Namespace, flavor: Flavor, flags: &[&str]) -> Proxy {
    let mut proxy =
        Launch { binary: BINARY, namespace: node, flavor, flags }.start(&cases()[0].objects()).unwrap();
    proxy.wait_for_sync(node, flavor, SYNC).unwrap();
    proxy
}

fn add_foreign_rules(node: &Namespace) {
    for flavor in BOTH {
        for six in ["", "6"] {
            let tool = format!("ip{six}tables-{}", flavor.as_str());
            for arguments in [
                &["-t", "nat", "-N", "SOMEONE-ELSE"][..],
                &["-t", "nat", "-A", "SOMEONE-ELSE", "-p", "tcp", "-j", "RETURN"],
                &["-t", "nat", "-A", "PREROUTING", "-j", "SOMEONE-ELSE"],
                &["-t", "mangle", "-N", "KUBE-KUBELET-CANARY"],
                &["-t", "filter", "-A", "FORWARD", "-p", "udp", "--dport", "99", "-j", "DROP"],
            ] {
                node.output(&tool, arguments).unwrap();
            }
        }
    }
    for family in ["ip", "ip6"] {
        node.output("nft", &["add", "table", family, "someone-else"]).unwrap();
    }
}

/// All rules and chains in both flavours and families.
fn everything(node: &Namespace) -> String {
    let saved = BOTH.iter().flat_map(|flavor| [false, true].map(|v6| save(*flavor, node, v6).unwrap()));
    let mut text = saved.collect::<Vec<_>>().concat();
    text.push_str(&node.output("nft", &["list", "tables"]).unwrap());
    text
}

/// The lines that are nobody's of ours: what must be the same before and after.
fn foreign(text: &str) -> Vec<String> {
    let marks = ["SOMEONE-ELSE", "KUBE-KUBELET-CANARY", "--dport 99", "someone-else", "KUBE-FIREWALL"];
    let line = |line: &str| marks.iter().any(|mark| line.contains(mark)).then(|| line.to_owned());
    text.lines().filter_map(line).collect()
}

#[test]
fn cleanup_removes_both_flavours_and_the_nftables_table_and_nothing_of_others() {
    let node = node();
    add_foreign_rules(&node);
    for flavor in BOTH {
        program(&node, flavor, &[]).terminate().unwrap();
    }
    for family in ["ip", "ip6"] {
        node.output("nft", &["add", "table", family, "kube-proxy"]).unwrap();
        node.output("nft", &["add", "chain", family, "kube-proxy", "services"]).unwrap();
    }
    let before = everything(&node);
    assert!(before.contains("KUBE-SVC-") && before.contains("table ip6 kube-proxy"), "{before}");
    for _ in 0..2 {
        node.output(BINARY, &["--cleanup"]).expect("cleanup may be repeated");
        let after = everything(&node);
        assert_eq!(foreign(&after), foreign(&before));
        let ours = after.lines().filter(|line| {
            line.contains("kube-proxy") || (line.contains("KUBE-") && foreign(line).is_empty())
        });
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}

#[test]
fn rules_in_the_other_flavour_are_reported_and_removed_when_told_to() {
    let node = node();
    program(&node, Flavor::Legacy, &[]).terminate().unwrap();
    let has_legacy = || save(Flavor::Legacy, &node, false).unwrap().contains("KUBE-SERVICES");
    let mut careful = program(&node, Flavor::Nft, &[]);
    wait_until("the other flavour is reported", SYNC, || {
        careful.log_tail().contains("the other flavour of iptables holds KUBE- rules")
    })
    .unwrap();
    assert!(has_legacy());
    careful.terminate().unwrap();
    let _told = program(&node, Flavor::Nft, &["--cleanup-other-flavor"]);
    wait_until("the other flavour is clean", SYNC, || !has_legacy()).unwrap();
    assert!(save(Flavor::Nft, &node, false).unwrap().contains("KUBE-SERVICES"));
}

#[test]
fn the_table_of_nftables_mode_goes_once_our_rules_stand() {
    let node = node();
    node.output("nft", &["add", "table", "ip", "kube-proxy"]).unwrap();
    let _proxy = program(&node, Flavor::Nft, &[]);
    wait_until("the table is gone", SYNC, || {
        !node.output("nft", &["list", "tables"]).unwrap().contains("kube-proxy")
    })
    .unwrap();
}

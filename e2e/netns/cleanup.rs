//! What is removed, and what must not be touched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::cases;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, Proxy, save, wait_until};
use rstest::rstest;

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);
const BOTH: [Flavor; 2] = [Flavor::Nft, Flavor::Legacy];

/// The interface of IPVS mode.
const INTERFACE: &str = "kube-ipvs0";

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
    // The second name is like those of another service proxy.
    for set in ["someone-else", "KUBE-SRC-AAAAAAAAAAAAAAAA"] {
        node.output("ipset", &["create", set, "hash:ip"]).unwrap();
        node.output("ipset", &["add", set, "192.0.2.7"]).unwrap();
    }
    let uses_set = ["-A", "FORWARD", "-m", "set", "--match-set", "someone-else", "src", "-j", "DROP"];
    node.output("iptables-nft", &uses_set).unwrap();
    node.ip("link add someone-else type bridge").unwrap();
}

/// What kube-proxy's IPVS mode leaves where the kernel has no virtual servers: sets, rules that use
/// them, and the interface, for which any kind serves.
fn leave_ipvs_mode(node: &Namespace, flavors: &[Flavor]) {
    let folder = Folder::create().unwrap();
    let fixture = |what: &str| {
        let name = format!("e2e/fixtures/expected/ipvs/node-port-cluster-policy.{what}");
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
    };
    let restore = |tool: &str, text: &str, flags: &[&str]| {
        folder.write("input", text).unwrap();
        let input = folder.path().join("input");
        node.output("sh", &["-ec", &format!("{tool} {} < {}", flags.join(" "), input.display())]).unwrap();
    };
    let sets = fixture("ipset");
    let (create, add): (Vec<&str>, Vec<&str>) = sets.lines().partition(|line| line.starts_with("create"));
    restore("ipset", &format!("{}\n{}\n", create.join("\n"), add.join("\n")), &["restore"]);
    for flavor in flavors {
        for (six, family) in [("", "v4.rules"), ("6", "v6.rules")] {
            restore(&format!("ip{six}tables-{}-restore", flavor.as_str()), &fixture(family), &["--noflush"]);
        }
    }
    node.ip(&format!("link add {INTERFACE} type bridge")).unwrap();
    node.ip(&format!("address add 10.96.1.6/32 dev {INTERFACE}")).unwrap();
}

/// All rules and chains in both flavours and families, tables, sets and interfaces.
fn everything(node: &Namespace) -> String {
    let saved = BOTH.iter().flat_map(|flavor| [false, true].map(|v6| save(*flavor, node, v6).unwrap()));
    let mut text = saved.collect::<Vec<_>>().concat();
    text.push_str(&node.output("nft", &["list", "tables"]).unwrap());
    text.push_str(&node.output("ipset", &["save"]).unwrap());
    text.push_str(&node.output("ip", &["-o", "link", "show"]).unwrap());
    text
}

/// The lines of foreign rules, which must be the same before and after.
fn foreign(text: &str) -> Vec<String> {
    let marks =
        ["SOMEONE-ELSE", "KUBE-KUBELET-CANARY", "--dport 99", "someone-else", "KUBE-SRC-", "KUBE-FIREWALL"];
    let line = |line: &str| marks.iter().any(|mark| line.contains(mark)).then(|| line.to_owned());
    text.lines().filter_map(line).collect()
}

#[test]
fn cleanup_removes_what_any_mode_left_in_either_flavour_and_nothing_of_others() {
    let node = node();
    add_foreign_rules(&node);
    for flavor in BOTH {
        program(&node, flavor, &[]).terminate().unwrap();
    }
    for family in ["ip", "ip6"] {
        node.output("nft", &["add", "table", family, "kube-proxy"]).unwrap();
        node.output("nft", &["add", "chain", family, "kube-proxy", "services"]).unwrap();
    }
    leave_ipvs_mode(&node, &BOTH);
    let before = everything(&node);
    for held in
        ["KUBE-SVC-", "table ip6 kube-proxy", "create KUBE-6-CLUSTER-IP", "KUBE-IPVS-FILTER", INTERFACE]
    {
        assert!(before.contains(held), "{held} in {before}");
    }
    for _ in 0..2 {
        node.output(BINARY, &["--cleanup"]).expect("cleanup may be repeated");
        let after = everything(&node);
        assert_eq!(foreign(&after), foreign(&before));
        let ours = after.lines().filter(|line| {
            let ours = ["kube-proxy", "KUBE-", INTERFACE].iter().any(|name| line.contains(name));
            ours && foreign(line).is_empty()
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
fn cleanup_names_what_it_cannot_remove_goes_on_and_may_be_repeated() {
    let node = node();
    leave_ipvs_mode(&node, &[Flavor::Nft]);
    let rule = ["FORWARD", "-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst", "-j", "ACCEPT"];
    node.output("iptables-nft", &[&["-A"], &rule[..]].concat()).unwrap();
    let error = node.output(BINARY, &["--cleanup"]).unwrap_err().to_string();
    assert!(error.contains("KUBE-CLUSTER-IP"), "a foreign rule holds it: {error}");
    let sets = node.output("ipset", &["list", "-n"]).unwrap();
    assert_eq!(sets.trim(), "KUBE-CLUSTER-IP", "all other sets are gone");
    assert!(!everything(&node).contains(INTERFACE));
    node.output("iptables-nft", &[&["-D"], &rule[..]].concat()).unwrap();
    node.output(BINARY, &["--cleanup"]).unwrap();
    assert_eq!(node.output("ipset", &["list", "-n"]).unwrap().trim(), "");
}

/// A folder that stands for PATH: the given tools work, and the other ones are there and broken.
fn path_with(working: &[&str], broken: &[&str]) -> Folder {
    let folder = Folder::create().unwrap();
    for tool in working {
        std::os::unix::fs::symlink("/usr/sbin/xtables-nft-multi", folder.path().join(tool)).unwrap();
    }
    for tool in broken {
        let path = folder.path().join(tool);
        fs::write(&path, "#!/bin/sh\necho 'libxtables.so.12: cannot open' >&2\nexit 127\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// Runs the cleanup with another PATH; what it said, and whether it succeeded.
fn cleanup_with(node: &Namespace, path: &Path) -> (bool, String) {
    let path = format!("PATH={}", path.display());
    let output = node.command("env").args([&path, BINARY, "--cleanup"]).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[rstest]
#[case::not_in_path(&[], "iptables-nft is not in PATH", "iptables-legacy is not in PATH")]
#[case::broken(&["iptables-nft", "ip6tables-nft", "iptables", "iptables-legacy"], "libxtables.so.12", "libxtables.so.12")]
fn cleanup_where_no_tool_works_names_it_and_removes_what_needs_none(
    #[case] broken: &[&str],
    #[case] nft: &str,
    #[case] legacy: &str,
) {
    let node = node();
    for flavor in BOTH {
        program(&node, flavor, &[]).terminate().unwrap();
    }
    node.output("nft", &["add", "table", "ip6", "kube-proxy"]).unwrap();
    node.ip(&format!("link add {INTERFACE} type bridge")).unwrap();
    let path = path_with(&[], broken);
    let (succeeded, said) = cleanup_with(&node, path.path());
    assert!(!succeeded, "{said}");
    for family in [IpFamily::V4, IpFamily::V6] {
        for (flavor, words) in [(Flavor::Nft, nft), (Flavor::Legacy, legacy)] {
            let about = format!("removing {flavor} iptables rules of {family}");
            let line = said.lines().find(|line| line.contains(&about)).unwrap_or_else(|| panic!("{said}"));
            assert!(line.contains("install the package iptables"), "{line}");
            assert!(family == IpFamily::V6 || line.contains(words), "{line}");
        }
    }
    let after = everything(&node);
    assert_eq!(after.matches(":KUBE-SERVICES").count(), 2 * 2 * 2, "the rules stay: {after}");
    assert!(!after.contains("kube-proxy\n") && !after.contains(INTERFACE), "the rest goes: {after}");
    node.output(BINARY, &["--cleanup"]).unwrap();
    assert!(!everything(&node).contains("KUBE-SERVICES"));
}

#[test]
fn cleanup_does_without_tools_for_tables_that_hold_nothing_of_ours() {
    let node = node();
    let none = path_with(&[], &[]);
    let (succeeded, said) = cleanup_with(&node, none.path());
    assert!(succeeded, "there is nothing to remove: {said}");

    let nft = ["iptables-nft", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-restore"];
    let only_nft = path_with(&nft, &[]);
    program(&node, Flavor::Nft, &[]).terminate().unwrap();
    // A tool that looks makes tables; they are empty.
    node.output("iptables-legacy", &["-t", "nat", "-S"]).unwrap();
    let (succeeded, said) = cleanup_with(&node, only_nft.path());
    assert!(succeeded, "no tool is missing for anything that is there: {said}");
    assert!(!everything(&node).contains("KUBE-SERVICES"));

    node.output("iptables-legacy", &["-A", "FORWARD", "-d", "198.18.0.2/32", "-j", "ACCEPT"]).unwrap();
    let (succeeded, said) = cleanup_with(&node, only_nft.path());
    assert!(!succeeded && said.contains("there may be KUBE- rules"), "they cannot be looked for: {said}");
    assert!(said.contains("iptables-legacy is not in PATH"), "{said}");
}

#[test]
fn what_ipvs_mode_left_goes_once_the_rules_of_iptables_mode_stand() {
    let node = node();
    add_foreign_rules(&node);
    leave_ipvs_mode(&node, &[Flavor::Nft]);
    let before = everything(&node);
    let mut proxy = program(&node, Flavor::Nft, &[]);
    let left = [
        "KUBE-IPVS-",
        "KUBE-NODE-PORT ",
        "KUBE-LOAD-BALANCER",
        "KUBE-6-",
        "kube-proxy firewall rules",
        INTERFACE,
    ];
    wait_until("nothing of IPVS mode is left", SYNC, || {
        let now = everything(&node);
        left.iter().all(|name| !now.contains(name))
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", everything(&node), proxy.log_tail()));
    let after = everything(&node);
    assert!(after.contains("KUBE-SVC-") && after.contains("-j KUBE-PROXY-FIREWALL"), "{after}");
    let others = |text: &str| -> Vec<String> {
        foreign(text).into_iter().filter(|line| !line.contains("KUBE-FIREWALL")).collect()
    };
    assert_eq!(others(&after), others(&before));
    assert!(!proxy.log_tail().contains("lost rules"), "{}", proxy.log_tail());
    proxy.terminate().unwrap();
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

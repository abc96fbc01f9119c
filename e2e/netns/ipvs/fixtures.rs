//! The reference's situations: the same objects, made into the same kernel state.

use std::fs;
use std::path::{Path, PathBuf};

use kube_proxy_rs::testing::lab::lone_node;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, metrics, save};
use rstest::rstest;

use super::{
    BTreeMap, BTreeSet, LIMIT, addresses, deviations, launch, lines, rules, servers, strip, wait_until,
};

/// The Service that the reference's API server had besides the fixtures'.
const KUBERNETES: &str = "
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec:
  type: ClusterIP
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ipFamilies: [IPv4]
  ports: [{name: https, port: 443, protocol: TCP, targetPort: 17443}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
endpoints: [{addresses: [10.200.0.1], conditions: {ready: true}}]
ports: [{name: https, port: 17443, protocol: TCP}]
";

/// The node of the fixtures: beside its own address it has the machine's uplink.
fn fixture_node() -> Namespace {
    let node = lone_node().unwrap();
    node.ip("addr del fd00:128::1/64 dev cni0
             link add uplink type bridge
             addr add 10.0.2.15/24 dev uplink
             addr add fec0::5054:ff:fe12:3456/64 dev uplink nodad
             link set uplink up
             link add node type bridge
             addr add 10.200.0.11/24 dev node
             addr add fd00:200::11/64 dev node nodad
             link set node up")
        .unwrap();
    node
}

fn extra_flags(text: &str) -> Vec<&str> {
    let line = text.lines().next().and_then(|line| line.strip_prefix("# extra flags:"));
    line.unwrap_or_default().split_whitespace().collect()
}

/// In what a node differs from what the reference made of a fixture, as commands: `+` for what is here
/// only, `-` for what is there only.
fn differences(node: &Namespace, expected: &Path) -> BTreeSet<String> {
    let read = |ending: &str| fs::read_to_string(expected.with_extension(ending)).unwrap();
    let wanted = |ending: &str| read(ending).lines().map(strip).collect::<BTreeSet<_>>();
    let interface = node.output("ip", &["-o", "address", "show", "kube-ipvs0"]).unwrap_or_default();
    let mut found = BTreeSet::new();
    for (tool, is, should) in [
        ("ipvsadm", servers(node), wanted("ipvsadm")),
        ("ipset", lines(node, "ipset", &["save"]), wanted("ipset")),
        ("address", addresses(&interface), addresses(&read("addrs"))),
    ] {
        found.extend(is.difference(&should).map(|line| format!("+{tool} {line}")));
        found.extend(should.difference(&is).map(|line| format!("-{tool} {line}")));
    }
    for (tool, v6, ending) in [("iptables", false, "v4.rules"), ("ip6tables", true, "v6.rules")] {
        let is = rules(&save(Flavor::Nft, node, v6).unwrap_or_default());
        found.extend(differing_rules(tool, &is, &rules(&read(ending))));
    }
    found.extend(differing_settings(node, &read("sysctl")).iter().map(|line| format!("+sysctl {line}")));
    found
}

type Rules = BTreeMap<(String, String), Vec<String>>;

/// The same for rules. One that is here only has its number in its chain, and what both have must
/// stand in the same order.
fn differing_rules(tool: &str, is: &Rules, should: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    for key in is.keys().chain(should.keys()).collect::<BTreeSet<_>>() {
        let ((table, chain), command) = (key, format!("{tool} -t {}", key.0));
        match (is.contains_key(key), should.contains_key(key)) {
            (true, false) if chain.starts_with("KUBE-") => found.push(format!("+{command} -N {chain}")),
            (false, true) if chain.starts_with("KUBE-") => found.push(format!("-{command} -N {chain}")),
            _ => {}
        }
        let of = |rules: &Rules| rules.get(key).cloned().unwrap_or_default();
        let (is, should) = (of(is), of(should));
        let added = is.iter().enumerate().filter(|(_, rule)| !should.contains(rule));
        found.extend(added.map(|(at, rule)| format!("+{command} -I {chain} {} {rule}", at + 1)));
        let gone = should.iter().filter(|rule| !is.contains(rule));
        found.extend(gone.map(|rule| format!("-{command} -A {chain} {rule}")));
        let both = is.iter().filter(|rule| should.contains(rule));
        if !both.eq(should.iter().filter(|rule| is.contains(rule))) {
            found.push(format!("+{tool}: other order in {table} {chain}: {is:#?}\ninstead of {should:#?}"));
        }
    }
    found
}

/// The settings that IPVS mode makes, compared with the reference's.
fn differing_settings(node: &Namespace, expected: &str) -> Vec<String> {
    let names = [
        "net.ipv4.vs.conntrack",
        "net.ipv4.vs.conn_reuse_mode",
        "net.ipv4.vs.expire_nodest_conn",
        "net.ipv4.vs.expire_quiescent_template",
        "net.ipv4.ip_forward",
        "net.ipv4.conf.all.arp_ignore",
        "net.ipv4.conf.all.arp_announce",
    ];
    // Files below /proc/sys/net show the namespace of the thread that reads them.
    let setting = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).unwrap_or_default();
        format!("{name} = {}", text.trim())
    };
    let found = node.run(|| names.map(setting)).unwrap();
    found.into_iter().filter(|line| !expected.lines().any(|it| it == line)).collect()
}

/// Both families have been synced, by the program's own account.
fn has_synced(node: &Namespace) -> bool {
    let text = metrics(node).unwrap_or_default();
    let last =
        text.lines().filter(|line| line.starts_with("kubeproxy_sync_proxy_rules_last_timestamp_seconds{"));
    last.filter(|line| !line.ends_with(" 0")).count() == 2
}

/// Runs the program on a fixture until the node differs from the reference's by these and nothing else.
fn expect_to_differ_by(allowed: &BTreeSet<String>, fixture: &Path, ways: &[&str]) {
    let node = fixture_node();
    let name = name_of(fixture);
    let expected = fixture.parent().unwrap().join("expected/ipvs").join(&name);
    let text = fs::read_to_string(fixture).unwrap();
    let flags: Vec<_> = ["--proxy-mode=ipvs"].iter().chain(ways).copied().chain(extra_flags(&text)).collect();
    let folder = Folder::create().unwrap();
    folder.write("kubernetes.yaml", KUBERNETES).unwrap();
    let manifests =
        [fixture.to_owned(), fixture.with_file_name("nodes.yaml"), folder.path().join("kubernetes.yaml")];
    let proxy = launch(&node, &flags).start_on(&manifests).unwrap();
    let has_synced = wait_until("both families have been synced", LIMIT, || has_synced(&node));
    assert!(has_synced.is_ok(), "{name}: {has_synced:?}; the program's log:\n{}", proxy.log_tail());
    let mut found = BTreeSet::new();
    let waited = wait_until("the state is as wanted", LIMIT, || {
        found = differences(&node, &expected);
        found == *allowed
    });
    if waited.is_err() {
        let list =
            |set: &BTreeSet<String>, other| set.difference(other).cloned().collect::<Vec<_>>().join("\n");
        let (more, less) = (list(&found, allowed), list(allowed, &found));
        let log = proxy.log_tail();
        panic!(
            "{name} differs by what nothing allows:\n{more}\nallowed, but not so:\n{less}\nits log:\n{log}"
        );
    }
}

fn name_of(fixture: &Path) -> String {
    fixture.file_stem().unwrap().to_string_lossy().into_owned()
}

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn the_state_equals_that_of_the_reference_in_its_ways(
    #[files("e2e/fixtures/*.yaml")]
    #[exclude("nodes|detect-local-interface-prefix")]
    fixture: PathBuf,
) {
    expect_to_differ_by(&BTreeSet::new(), &fixture, &["--ipvs-upstream-compat"]);
}

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn in_our_ways_the_state_differs_by_what_is_named_and_nothing_else(
    #[files("e2e/fixtures/*.yaml")]
    #[exclude("nodes|detect-local-interface-prefix")]
    fixture: PathBuf,
) {
    expect_to_differ_by(&deviations::of(&name_of(&fixture)), &fixture, &[]);
}

//! The reference's situations: the same objects, made into the same kernel state.

use std::fs;
use std::path::{Path, PathBuf};

use kube_proxy_rs::testing::lab::lone_node;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, metrics, save};

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

/// Runs the program on one fixture after the other, until the node differs from the reference's by what is
/// allowed and nothing else: what one leaves behind would show in the next.
fn expect_to_differ_by(allowed: fn(&str) -> BTreeSet<String>, fixtures: &[PathBuf], ways: &[&str]) {
    let node = fixture_node();
    let text = |fixture: &Path| fs::read_to_string(fixture).unwrap();
    let own = text(&fixtures[0]);
    let flags: Vec<_> = ["--proxy-mode=ipvs"].iter().chain(ways).copied().chain(extra_flags(&own)).collect();
    let folder = Folder::create().unwrap();
    folder.write("kubernetes.yaml", KUBERNETES).unwrap();
    folder.write("nodes.yaml", &text(&fixtures[0].with_file_name("nodes.yaml"))).unwrap();
    folder.write("fixture.yaml", &own).unwrap();
    let proxy = launch(&node, &flags).start_on(&[folder.path()]).unwrap();
    let has_synced = wait_until("both families have been synced", LIMIT, || has_synced(&node));
    assert!(has_synced.is_ok(), "{has_synced:?}; the program's log:\n{}", proxy.log_tail());
    for fixture in fixtures {
        folder.write("fixture.yaml", &text(fixture)).unwrap();
        let name = name_of(fixture);
        let expected = fixture.parent().unwrap().join("expected/ipvs").join(&name);
        let allowed = allowed(&name);
        let mut found = BTreeSet::new();
        let waited = wait_until("the state is as wanted", LIMIT, || {
            found = differences(&node, &expected);
            found == allowed
        });
        let list =
            |set: &BTreeSet<String>, other| set.difference(other).cloned().collect::<Vec<_>>().join("\n");
        assert!(
            waited.is_ok(),
            "{name} differs by what nothing allows:\n{}\nallowed, but not so:\n{}\nits log:\n{}",
            list(&found, &allowed),
            list(&allowed, &found),
            proxy.log_tail()
        );
    }
}

fn name_of(fixture: &Path) -> String {
    fixture.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The fixtures, in groups that need the same flags.
fn groups() -> Vec<Vec<PathBuf>> {
    let mut fixtures: Vec<_> =
        fs::read_dir("e2e/fixtures").unwrap().map(|entry| entry.unwrap().path()).collect();
    fixtures.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    fixtures.retain(|path| !["nodes", "detect-local-interface-prefix"].contains(&&*name_of(path)));
    fixtures.sort();
    let mut groups = BTreeMap::<String, Vec<PathBuf>>::new();
    for fixture in fixtures {
        let flags = extra_flags(&fs::read_to_string(&fixture).unwrap()).join(" ");
        groups.entry(flags).or_default().push(fixture);
    }
    assert!(groups.values().map(Vec::len).sum::<usize>() > 30);
    groups.into_values().collect()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn the_state_equals_that_of_the_reference_in_its_ways() {
    for fixtures in groups() {
        expect_to_differ_by(|_| BTreeSet::new(), &fixtures, &["--ipvs-upstream-compat"]);
    }
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn in_our_ways_the_state_differs_by_what_is_named_and_nothing_else() {
    for fixtures in groups() {
        expect_to_differ_by(deviations::of, &fixtures, &[]);
    }
}

//! The reference's situations: the same objects, made into the same kernel state.

use std::fs;
use std::path::{Path, PathBuf};

use kube_proxy_rs::testing::lab::lone_node;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, metrics, save};
use rstest::rstest;

use super::{BTreeSet, LIMIT, addresses, launch, lines, rules, strip, wait_until};

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

/// Everything in which the node differs from what the reference made of a fixture.
fn differences(node: &Namespace, expected: &Path) -> Vec<String> {
    let read = |ending: &str| fs::read_to_string(expected.with_extension(ending)).unwrap();
    let wanted = |ending: &str| read(ending).lines().map(strip).collect::<BTreeSet<_>>();
    let interface = node.output("ip", &["-o", "address", "show", "kube-ipvs0"]).unwrap_or_default();
    let mut found = Vec::new();
    for (what, is, should) in [
        ("virtual servers", lines(node, "ipvsadm", &["-Sn"]), wanted("ipvsadm")),
        ("sets", lines(node, "ipset", &["save"]), wanted("ipset")),
        ("addresses", addresses(&interface), addresses(&read("addrs"))),
    ] {
        found.extend(should.difference(&is).map(|line| format!("{what}: missing {line}")));
        found.extend(is.difference(&should).map(|line| format!("{what}: too much {line}")));
    }
    for v6 in [false, true] {
        let is = rules(&save(Flavor::Nft, node, v6).unwrap_or_default());
        let should = rules(&read(if v6 { "v6.rules" } else { "v4.rules" }));
        let keys: BTreeSet<_> = is.keys().chain(should.keys()).collect();
        let differing = keys.into_iter().filter(|key| is.get(*key) != should.get(*key));
        found.extend(differing.map(|key| {
            format!("{key:?} (IPv6: {v6})\n  wanted {:#?}\n  found {:#?}", should.get(key), is.get(key))
        }));
    }
    found.extend(differing_settings(node, &read("sysctl")));
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

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn the_state_equals_that_of_the_reference_in_its_ways(
    #[files("e2e/fixtures/*.yaml")]
    #[exclude("nodes|detect-local-interface-prefix")]
    fixture: PathBuf,
) {
    let node = fixture_node();
    let name = fixture.file_stem().unwrap().to_string_lossy().into_owned();
    let expected = fixture.parent().unwrap().join("expected/ipvs").join(&name);
    let text = fs::read_to_string(&fixture).unwrap();
    let mut flags = vec!["--proxy-mode=ipvs", "--ipvs-upstream-compat"];
    flags.extend(extra_flags(&text));
    let folder = Folder::create().unwrap();
    folder.write("kubernetes.yaml", KUBERNETES).unwrap();
    let manifests =
        [fixture.clone(), fixture.with_file_name("nodes.yaml"), folder.path().join("kubernetes.yaml")];
    let proxy = launch(&node, &flags).start_on(&manifests).unwrap();
    let has_synced = wait_until("both families have been synced", LIMIT, || has_synced(&node));
    assert!(has_synced.is_ok(), "{name}: {has_synced:?}; the program's log:\n{}", proxy.log_tail());
    if wait_until("the state is the same", LIMIT, || differences(&node, &expected).is_empty()).is_err() {
        let differences = differences(&node, &expected).join("\n");
        panic!("{name} differs:\n{differences}\nthe program's log:\n{}", proxy.log_tail());
    }
}

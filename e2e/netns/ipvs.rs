//! IPVS mode on a real kernel: `make test-ipvs` runs these, in a virtual machine where the host's
//! kernel has no `ip_vs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::model::Protocol;
use kube_proxy_rs::testing::lab::{Lab, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::Place;
use kube_proxy_rs::testing::packets::{PacketCase, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, save, wait_until};
use kube_proxy_rs::testing::traffic::{Answer, HeldConnection};
use rstest::rstest;
use serde_json::{Value, json};
use std::net::SocketAddr;

use crate::BINARY;

/// Emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(60);
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

/// Packets that go another way than the table says, and why. Each is in
/// `docs/dataplane-ipvs.md`.
const KNOWN_DIFFERENCES: [(&str, &str); 4] = [
    // The kernel has no virtual servers on 127.0.0.0/8.
    ("the_node_reaches_its_own_node_ports", "NodePortOnLocalhost"),
    // A virtual server has one list of real servers: clients on the node get the local ones, too.
    ("the_external_local_policy_serves_locally_and_keeps_the_source", "never served by [\"remote-1\"]"),
    ("local_pods_are_told_by_their_interfaces", "never served by [\"remote-1\"]"),
    // A client's affinity lives until its last connection is forgotten, two minutes after its end.
    ("client_affinity_expires_after_its_timeout", "long after the timeout"),
];

/// What a tool says of the kernel's state, line by line, sorted.
fn lines(node: &Namespace, tool: &str, arguments: &[&str]) -> BTreeSet<String> {
    let text = node.output(tool, arguments).unwrap_or_default();
    text.lines().map(strip).filter(|line| !line.is_empty()).collect()
}

/// A line without what is the kernel's own choice.
fn strip(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "bucketsize" | "initval" => _ = words.next(),
            word => kept.push(word),
        }
    }
    kept.join(" ")
}

/// Addresses of `kube-ipvs0` in `ip -o address`.
fn addresses(text: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("inet"));
        let (family, address) = (words.next()?.to_owned(), words.next()?);
        (!address.starts_with("fe80:")).then(|| format!("{family} {address}"))
    };
    text.lines().filter_map(line).collect()
}

/// Our chains of an `iptables-save`, and every rule that jumps to one, in order.
fn rules(text: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut found: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(declared) = line.strip_prefix(":KUBE-") {
            let chain = declared.split(' ').next().unwrap_or_default();
            found.entry((table.clone(), format!("KUBE-{chain}"))).or_default();
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            found.entry((table.clone(), chain.to_owned())).or_default().push(rule.to_owned());
        }
    }
    found
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
    let found = names.map(|name| node.output("sysctl", &[name]).unwrap_or_default().trim().to_owned());
    found.into_iter().filter(|line| !expected.lines().any(|it| it == line)).collect()
}

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn ipvs_state_equals_that_of_the_reference_in_its_ways(
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
    let folder = kube_proxy_rs::testing::proxy::Folder::create().unwrap();
    folder.write("kubernetes.yaml", KUBERNETES).unwrap();
    let launch = Launch { binary: BINARY, namespace: &node, flavor: Flavor::Nft, flags: &flags };
    let manifests =
        [fixture.clone(), fixture.with_file_name("nodes.yaml"), folder.path().join("kubernetes.yaml")];
    let proxy = launch.start_on(&manifests).unwrap();
    if wait_until("", LIMIT, || differences(&node, &expected).is_empty()).is_err() {
        let differences = differences(&node, &expected).join("\n");
        panic!("{name} differs:\n{differences}\nthe program's log:\n{}", proxy.log_tail());
    }
}

/// Waits until the marker Services of the manifests are there, in both families.
fn wait_for_markers(proxy: &mut Proxy, node: &Namespace) {
    let markers = proxy.marker_addresses();
    let waited = wait_until("the marker Services are programmed", LIMIT, || {
        let listed = node.output("ipvsadm", &["-Ln"]).unwrap_or_default();
        !proxy.is_running() || markers.iter().all(|marker| listed.contains(marker.as_str()))
    });
    assert!(waited.is_ok() && proxy.is_running(), "the program's log:\n{}", proxy.log_tail());
}

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn every_packet_goes_where_the_table_says_on_ipvs(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    let lab = Lab::create().unwrap();
    let mut groups: BTreeMap<&[&str], Vec<PacketCase>> = BTreeMap::new();
    for case in cases() {
        groups.entry(case.flags).or_default().push(case);
    }
    let mut failures = Vec::new();
    for (flags, cases) in groups {
        let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
        let flags: Vec<_> = flags.iter().copied().chain(["--proxy-mode=ipvs"]).collect();
        let launch = Launch { binary: BINARY, namespace: lab.node(), flavor: Flavor::Nft, flags: &flags };
        let mut proxy = launch.start(&objects).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        failures.extend(crate::packets::send_all(&lab, &cases, family));
        proxy.terminate().unwrap();
    }
    failures.retain(|failure| {
        !KNOWN_DIFFERENCES.iter().any(|(case, what)| failure.contains(case) && failure.contains(what))
    });
    let count = failures.len();
    assert!(failures.is_empty(), "{count} packets went astray:\n{}", failures.join("\n"));
}

/// A Service `packets/NAME` with these endpoints and, maybe, a scheduler.
fn service(name: &str, cluster_ip: &str, scheduler: Option<&str>, endpoints: &[Place]) -> Vec<Value> {
    let annotations = scheduler.map(|it| json!({"kube-proxy-rs.io/ipvs-scheduler": it}));
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|place| json!({"addresses": [place.address(IpFamily::V4)], "nodeName": place.node_name()}))
        .collect();
    let port = |number: u16| json!([{"name": "main", "port": number, "protocol": "TCP"}]);
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "packets", "annotations": annotations},
            "spec": {
                "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
                "ipFamilies": ["IPv4"], "ports": port(80),
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-1"), "namespace": "packets",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": port(8080),
        }),
    ]
}

fn at(cluster_ip: &str) -> SocketAddr {
    SocketAddr::new(cluster_ip.parse().unwrap(), 80)
}

/// How many of so many requests each pod answered; all must be answered.
fn counts(lab: &Lab, to: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in lab.client(Place::LocalClient, IpFamily::V4).ask_many(Protocol::Tcp, to, requests) {
        let Answer::Answered { pod, .. } = answer else { panic!("{to}: {answer:?}") };
        *counts.entry(pod).or_default() += 1;
    }
    counts
}

/// The pod at the other end.
fn pod(connection: &mut HeldConnection) -> String {
    connection.ping().unwrap().split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn ipvs_schedulers_share_as_their_names_say_and_may_differ_by_service() {
    const RR: &str = "10.96.9.1";
    const LC: &str = "10.96.9.2";
    const SH: &str = "10.96.9.3";
    const MH: &str = "10.96.9.4";
    let lab = Lab::create().unwrap();
    let mut objects = service("rr", RR, None, &Place::SERVERS);
    for (name, ip) in [("lc", LC), ("sh", SH), ("mh", MH)] {
        objects.extend(service(name, ip, Some(name), &Place::SERVERS));
    }
    let flags = ["--proxy-mode=ipvs"];
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor: Flavor::Nft, flags: &flags };
    let mut proxy = launch.start(&objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());

    let even = counts(&lab, at(RR), 40);
    assert!(even.len() == 4 && even.values().all(|count| *count == 10), "rr: {even:?}");
    for ip in [SH, MH] {
        assert_eq!(counts(&lab, at(ip), 12).len(), 1, "{ip} keeps a client on its endpoint");
    }
    let client = lab.client(Place::LocalClient, IpFamily::V4);
    let mut held: Vec<_> = (0..4).map(|_| client.open(at(LC)).unwrap()).collect();
    let pods: BTreeSet<String> = held.iter_mut().map(pod).collect();
    assert_eq!(pods.len(), 4, "lc takes the idle endpoint each time");
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn ipvs_connections_outlive_their_endpoint_and_our_restart() {
    const IP: &str = "10.96.9.1";
    let lab = Lab::create().unwrap();
    let node = lab.node();
    let flags = ["--proxy-mode=ipvs"];
    let launch = Launch { binary: BINARY, namespace: node, flavor: Flavor::Nft, flags: &flags };
    let objects = |endpoints: &[Place]| service("web", IP, None, endpoints);
    let mut proxy = launch.start(&objects(&[Place::Local1])).unwrap();
    wait_for_markers(&mut proxy, node);
    let mut held = lab.client(Place::LocalClient, IpFamily::V4).open(at(IP)).unwrap();
    assert_eq!(pod(&mut held), "local-1");

    proxy.apply(&objects(&[Place::Remote1])).unwrap();
    wait_for_markers(&mut proxy, node);
    let real = |place: Place| format!("-r {}:8080", place.address(IpFamily::V4));
    let weight = |place: Place| {
        let listed = node.output("ipvsadm", &["-Sn"]).unwrap();
        let line = listed.lines().find(|line| line.contains(&real(place)) && line.contains(IP))?.to_owned();
        Some(line.rsplit(' ').next()?.to_owned())
    };
    assert_eq!(weight(Place::Local1).as_deref(), Some("0"), "it is drained");
    assert_eq!(pod(&mut held), "local-1", "and goes on serving its connection");
    let new = counts(&lab, at(IP), 8);
    assert_eq!(new.keys().collect::<Vec<_>>(), ["remote-1"], "but gets no new one");

    proxy.terminate().unwrap();
    assert_eq!(pod(&mut held), "local-1");
    launch.start_again(&mut proxy).unwrap();
    proxy.apply(&objects(&[Place::Remote1])).unwrap();
    wait_for_markers(&mut proxy, node);
    assert_eq!(pod(&mut held), "local-1", "a restart changes nothing");
    assert_eq!(weight(Place::Local1).as_deref(), Some("0"));

    // A closed connection is remembered for two minutes.
    drop(held);
    wait_until("the drained endpoint is gone", Duration::from_secs(240), || weight(Place::Local1).is_none())
        .unwrap();
    assert_eq!(weight(Place::Remote1).as_deref(), Some("1"));
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn ipvs_state_is_mended_and_what_is_foreign_stays_also_at_cleanup() {
    let lab = Lab::create().unwrap();
    let node = lab.node();
    let foreign = ["-A", "-t", "192.0.2.77:443", "-s", "wrr"];
    node.output("ipvsadm", &foreign).unwrap();
    let flags = ["--proxy-mode=ipvs"];
    let launch = Launch { binary: BINARY, namespace: node, flavor: Flavor::Nft, flags: &flags };
    let objects = service("web", "10.96.9.1", None, &[Place::Local1, Place::Remote1]);
    let mut proxy = launch.start(&objects).unwrap();
    wait_for_markers(&mut proxy, node);
    let state = || {
        let saved = [("ipvsadm", "-Sn"), ("ipset", "save")].map(|(tool, what)| lines(node, tool, &[what]));
        let interface = node.output("ip", &["-o", "address", "show", "kube-ipvs0"]).unwrap_or_default();
        (saved, addresses(&interface), rules(&save(Flavor::Nft, node, false).unwrap()))
    };
    let good = state();
    for harm in [
        "ipvsadm -D -t 10.96.9.1:80",
        "ipvsadm -d -t 10.96.9.1:80 -r 10.128.0.5:8080",
        "ip link delete kube-ipvs0",
        "ipset flush KUBE-CLUSTER-IP",
        "iptables-nft -t nat -F KUBE-SERVICES",
    ] {
        let (tool, arguments) = harm.split_once(' ').unwrap();
        let arguments: Vec<&str> = arguments.split(' ').collect();
        node.output(tool, &arguments).unwrap();
        let mended = wait_until("it is mended", LIMIT, || state() == good);
        assert!(mended.is_ok(), "{harm}: {:#?}\nthe program's log:\n{}", state(), proxy.log_tail());
    }
    proxy.terminate().unwrap();
    let flags = ["--cleanup"];
    let mut cleanup = Launch { flags: &flags, ..launch }.start(&objects).unwrap();
    wait_until("the cleanup has ended", LIMIT, || !cleanup.is_running()).unwrap();
    assert_eq!(lines(node, "ipvsadm", &["-Sn"]), BTreeSet::from([foreign.join(" ")]));
    assert!(lines(node, "ipset", &["save"]).is_empty(), "{}", cleanup.log_tail());
    assert!(node.output("ip", &["link", "show", "kube-ipvs0"]).is_err());
}

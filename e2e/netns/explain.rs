//! `explain`: agrees with the packet table, and names what is wrong with a real kernel.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{
    CLUSTER_CIDR, NODE_NAME, Packet, PacketCase, ServedBy, Source, Verdict, cases, cases_by_flags,
    to_manifest,
};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, wait_until};
use rstest::rstest;
use serde_json::{Value, json};

use crate::BINARY;
use crate::memory::{our_node, serve, start};

/// A sync, on a busy machine.
const SYNC: Duration = Duration::from_secs(120);
/// Questions side by side.
const PARALLEL: usize = 4;

/// What `explain` prints as JSON, and its exit status.
pub(crate) fn explain(node: &Namespace, arguments: &[&str]) -> (Value, i32) {
    let output = node.command(BINARY).args(["explain", "-o", "json"]).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {errors}")), output.status.code().unwrap())
}

/// The causes that a report names.
pub(crate) fn codes(report: &Value) -> BTreeSet<&str> {
    report["findings"].as_array().unwrap().iter().map(|it| it["code"].as_str().unwrap()).collect()
}

/// The table's packets go, by the rules that the kernel has, where the test of real packets sees them go.
#[rstest]
#[case::nft(Flavor::Nft, "--iptables-dispatch-tree-threshold=100000")]
#[case::nft_with_tree(Flavor::Nft, "--iptables-dispatch-tree-threshold=0")]
#[case::legacy(Flavor::Legacy, "--iptables-dispatch-tree-threshold=100000")]
fn every_packet_is_traced_to_where_it_really_goes(
    #[case] flavor: Flavor,
    #[case] form: &str,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let mut failures = Vec::new();
    for (flags, cases) in cases_by_flags() {
        let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
        let flags = [flags, &[form]].concat();
        let launch = Launch { binary: BINARY, namespace: &node, flavor, flags: &flags };
        let mut proxy = launch.start(&objects).unwrap();
        proxy.wait_for_sync(&node, flavor, SYNC).unwrap();
        let verdict = |_: &PacketCase, packet: &Packet| packet.verdict.clone();
        failures.extend(trace_all((&node, &proxy.control_socket()), &cases, family, &verdict));
        proxy.terminate().unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Asks the program what becomes of every packet, and says where it is not the verdict.
pub(crate) fn trace_all(
    at: (&Namespace, &Path),
    cases: &[PacketCase],
    family: IpFamily,
    verdict: &(dyn Fn(&PacketCase, &Packet) -> Verdict<ServedBy> + Sync),
) -> Vec<String> {
    let packets = cases.iter().flat_map(|case| case.packets.iter().map(move |packet| (case, packet)));
    let queue = Mutex::new(packets.filter(|(_, packet)| packet.families.contains(&family)));
    let next = || queue.lock().unwrap().next();
    let work = || {
        let mut failures = Vec::new();
        while let Some((case, packet)) = next() {
            let traced = trace(at, case, packet, family);
            failures.extend(traced.complaint(&verdict(case, packet), family));
        }
        failures
    };
    thread::scope(|scope| {
        let workers: [_; PARALLEL] = std::array::from_fn(|_| scope.spawn(work));
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// What the program says of a packet.
struct Traced {
    route: String,
    report: Value,
    status: i32,
}

fn trace(
    (node, socket): (&Namespace, &Path),
    case: &PacketCase,
    packet: &Packet,
    family: IpFamily,
) -> Traced {
    let flow = case.flow(packet, family);
    let (source, destination) = (flow.source.to_string(), flow.destination.to_string());
    let service = format!("packets/{}", case.service_name());
    let mut arguments = vec![service.as_str(), "--control-socket", socket.to_str().unwrap()];
    arguments.extend(["--client", &source, "--to", &destination]);
    if let Some(interface) = flow.interface {
        arguments.extend(["--interface", interface]);
    }
    let (report, status) = explain(node, &arguments);
    Traced { route: format!("{}: {} -> {destination}", case.name, packet.from.name()), report, status }
}

impl Traced {
    fn complaint(&self, verdict: &Verdict<ServedBy>, family: IpFamily) -> Option<String> {
        let Traced { route, report, status } = self;
        let found: BTreeSet<(String, Option<SocketAddr>, bool)> =
            report["trace"].as_array().unwrap().iter().map(fate).collect();
        let wanted: BTreeSet<_> = match verdict {
            Verdict::Refused => [("refused".to_owned(), None, false)].into(),
            Verdict::Dropped => [("dropped".to_owned(), None, false)].into(),
            Verdict::Untouched => [("untouched".to_owned(), None, false)].into(),
            Verdict::Served(ServedBy { by, source, .. }) => {
                let endpoint = |ip| SocketAddr::new(ip, kube_proxy_rs::testing::packets::TARGET_PORT);
                let masqueraded = *source == Source::Masqueraded;
                by.iter()
                    .map(|place| ("served".to_owned(), Some(endpoint(place.address(family))), masqueraded))
                    .collect()
            }
        };
        match (found == wanted, status) {
            (true, 0) => None,
            (true, status) => Some(format!("{route}: exit status {status}: {}", report["findings"])),
            (false, _) => Some(format!("{route}: traced to {found:?}, not {wanted:?}")),
        }
    }
}

fn fate(decision: &Value) -> (String, Option<SocketAddr>, bool) {
    let endpoint = decision["endpoint"].as_str().map(|text| text.parse().unwrap());
    (decision["verdict"].as_str().unwrap().to_owned(), endpoint, decision["masqueraded"].as_bool().unwrap())
}

#[rstest]
fn what_is_wrong_with_the_kernel_is_named(#[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor) {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let case = cases().into_iter().find(|case| case.shape.exposed && case.shape.endpoints.len() > 1).unwrap();
    let service = format!("packets/{}", case.service_name());
    let launch = Launch { binary: BINARY, namespace: &node, flavor, flags: case.flags };
    let mut proxy = launch.start(&case.objects()).unwrap();
    proxy.wait_for_sync(&node, flavor, SYNC).unwrap();
    let socket = proxy.control_socket();
    let (report, status) = explain(&node, &[&service, "--control-socket", socket.to_str().unwrap()]);
    assert_eq!((codes(&report), status), ([].into(), 0), "{report:#}");
    // From here on nobody mends anything, and the manifests are asked.
    proxy.kill().unwrap();
    let manifests = proxy.manifests()[0].to_str().unwrap().to_owned();
    let flags = ["--manifests", &manifests, "--hostname-override", NODE_NAME, "--cluster-cidr", CLUSTER_CIDR];
    let flags = [&flags[..], &["--iptables-flavor", flavor.as_str(), &service]].concat();
    let (report, status) = explain(&node, &flags);
    assert_eq!((codes(&report), status), ([].into(), 0), "{report:#}");

    let iptables = format!("iptables-{flavor}");
    let wanted = report["plan"]["families"][0]["wanted"].as_array().unwrap();
    let chain = |prefix: &str| {
        let named = wanted.iter().filter_map(|it| it["name"].as_str()?.strip_prefix("nat "));
        named.clone().find(|name| name.starts_with(prefix)).unwrap().to_owned()
    };
    let (endpoint, balancing) = (chain("KUBE-SEP-"), chain("KUBE-SVC-"));
    let damages: [(&[&str], &str); 3] = [
        (&["-t", "nat", "-F", &endpoint], "kernel-object-missing"),
        (&["-t", "nat", "-A", &balancing, "-d", "192.0.2.1", "-j", "RETURN"], "kernel-state-stale"),
        (&["-I", "FORWARD", "-d", "10.128.0.0/16", "-j", "DROP"], "foreign-drop-rule"),
    ];
    let mut named = BTreeSet::new();
    for (damage, cause) in damages {
        node.output(&iptables, damage).unwrap();
        named.insert(cause);
        let (report, status) = explain(&node, &flags);
        assert_eq!((codes(&report), status), (named.clone(), 1), "{report:#}");
    }
    node.set_sysctl("net/ipv4/ip_forward", "0").unwrap();
    named.insert("forwarding-off");
    let (report, status) = explain(&node, &flags);
    assert_eq!((codes(&report), status), (named, 1), "{report:#}");
}

#[test]
fn why_a_service_is_not_served_at_all_is_named() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let service = |name: &str, spec: Value, labels: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop", "labels": labels}, "spec": spec});
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    let objects = [
        service("headless", json!({"clusterIP": "None", "ports": ports}), json!({})),
        service("alias", json!({"type": "ExternalName", "externalName": "example.org"}), json!({})),
        service(
            "meshed",
            json!({"clusterIP": "10.96.0.20", "ports": ports}),
            json!({"service.kubernetes.io/service-proxy-name": "mesh"}),
        ),
        service("lonely", json!({"clusterIP": "10.96.0.21", "ports": ports}), json!({})),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "lonely-1", "namespace": "shop"},
            "ports": [{"name": "", "port": 80}], "endpoints": [{"addresses": ["10.128.0.5"]}],
        }),
    ];
    let folder = Folder::create().unwrap();
    folder.write("objects.yaml", &to_manifest(&objects)).unwrap();
    let file = folder.path().join("objects.yaml");
    let ask = |name: &str| {
        explain(
            &node,
            &["--manifests", file.to_str().unwrap(), "--cluster-cidr", CLUSTER_CIDR, &format!("shop/{name}")],
        )
    };
    for (name, cause, wanted) in [
        ("headless", "headless", 0),
        ("alias", "external-name", 0),
        ("meshed", "other-proxy", 0),
        ("nobody", "unknown-service", 2),
    ] {
        let (report, status) = ask(name);
        assert_eq!((codes(&report), status), ([cause].into(), wanted), "{name}: {report:#}");
    }
    let (report, _) = ask("lonely");
    assert!(codes(&report).is_superset(&["slice-without-label", "no-endpoints"].into()), "{report:#}");
}

/// What an API server may have of Services that are not as they should be, or none of ours.
fn doubtful_objects() -> Vec<Value> {
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let slice = |name: &str, labels: Value, addresses: &[&str]| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": addresses.iter().map(|it| json!({"addresses": [it]})).collect::<Vec<_>>(),
        })
    };
    let service = |name: &str, spec: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": spec,
        })
    };
    let label = |name: &str| json!({"kubernetes.io/service-name": name});
    vec![
        service(
            "web",
            json!({
                "type": "NodePort", "clusterIP": "10.96.0.30", "clusterIPs": ["10.96.0.30"],
                "externalIPs": ["192.0.2.1"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 8080}],
            }),
        ),
        slice("web-x", label("web"), &["10.128.0.5", "169.254.169.254"]),
        service("headless", json!({"clusterIP": "None", "ports": ports})),
        service("lonely", json!({"clusterIP": "10.96.0.31", "clusterIPs": ["10.96.0.31"], "ports": ports})),
        slice("lonely-x", json!({}), &["10.128.0.6"]),
    ]
}

/// Whatever the source, the same is wrong with the same objects.
#[rstest]
#[case::api_server("--kubeconfig")]
#[case::manifests("--manifests")]
fn without_the_daemon_the_source_and_the_kernel_are_asked(#[case] source: &str) {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let folder = Folder::create().unwrap();
    let server = node.run(serve).unwrap();
    let objects = [vec![our_node()], doubtful_objects()].concat();
    folder.write("objects.yaml", &to_manifest(&objects)).unwrap();
    for object in objects {
        server.put(object);
    }
    let path = match source {
        "--kubeconfig" => server.kubeconfig(folder.path()).unwrap(),
        _ => folder.path().join("objects.yaml"),
    };
    let ask = |service: &str, flags: &[&str]| {
        let source = [source, path.to_str().unwrap(), "--hostname-override", "node", service];
        explain(&node, &[&source, flags].concat())
    };
    let (report, status) = ask("shop/web", &[]);
    let wanted =
        ["endpoints-refused", "external-ip-contested", "kernel-object-missing", "node-port-outside-range"];
    assert_eq!((codes(&report), status), (wanted.into(), 1), "{report:#}");
    assert_eq!(report["plan"]["contestedIps"][0]["address"], "192.0.2.1");
    let (report, _) = ask("shop/web", &["--strict-external-ips"]);
    assert!(codes(&report).contains("external-ip-refused"), "{report:#}");
    let (report, _) = ask("shop/lonely", &[]);
    assert!(codes(&report).is_superset(&["slice-without-label", "no-endpoints"].into()), "{report:#}");
    for (name, cause, wanted) in [("headless", "headless", 0), ("nobody", "unknown-service", 2)] {
        let (report, status) = ask(&format!("shop/{name}"), &[]);
        assert_eq!((codes(&report), status), ([cause].into(), wanted), "{name}: {report:#}");
    }

    // Once somebody has programmed it, the kernel is as it should be.
    let _running = node.run(|| start(&server, Flavor::Nft, &folder)).unwrap();
    wait_until("the kernel has what explain looks for", SYNC, || ask("shop/web", &[]).1 == 0).unwrap();
}

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
    CLUSTER_CIDR, NODE_NAME, Packet, PacketCase, ServedBy, Source, Verdict, cases_by_flags, to_manifest,
};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, wait_until};
use rstest::rstest;
use serde_json::{Value, json};

use crate::BINARY;
use crate::memory::{our_node, serve, start};
use crate::shapes::assert_documented;

/// A sync, on a busy machine.
const SYNC: Duration = Duration::from_secs(120);
/// Questions side by side.
const PARALLEL: usize = 4;

/// What `explain` prints as JSON, and its exit status.
pub(crate) fn explain(node: &Namespace, arguments: &[&str]) -> (Value, i32) {
    let output = node.command(BINARY).args(["explain", "-o", "json"]).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {errors}"));
    assert_documented(&report);
    (report, output.status.code().unwrap())
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

/// A tool that counts how often it is run.
fn counting(folder: &Folder) -> String {
    for tool in
        ["iptables", "ip6tables"].map(|name| ["nft", "legacy"].map(|of| format!("{name}-{of}"))).concat()
    {
        for tool in [tool.clone(), format!("{tool}-save")] {
            let count = folder.path().join("count").display().to_string();
            let real = ["/usr/sbin", "/sbin"]
                .map(|it| format!("{it}/{tool}"))
                .into_iter()
                .find(|it| Path::new(it).exists());
            let script = format!("#!/bin/sh\necho {tool} >> {count}\nexec {} \"$@\"\n", real.unwrap());
            folder.write(&tool, &script).unwrap();
            let path = folder.path().join(&tool);
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
    }
    format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap())
}

/// A Service with very many ports or endpoints is read with as few processes as one with a few, and a whole node too: each
/// process takes milliseconds, and a second is what people wait for.
#[test]
fn explain_runs_as_many_tools_for_a_thousand_ports_as_for_twenty() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let folder = Folder::create().unwrap();
    let path = counting(&folder);
    let service = |name: &str, address: &str, ports: u16, endpoints: u16| {
        let port =
            |number: u16| json!({"name": format!("p{number}"), "port": 1000 + number, "protocol": "TCP"});
        let ports: Vec<Value> = (0..ports).map(port).collect();
        let endpoint =
            |number: u16| json!({"addresses": [format!("10.128.{}.{}", 1 + number / 250, 1 + number % 250)]});
        json!([{
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "large"},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"], "ports": ports},
        }, {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "large", "labels": {"kubernetes.io/service-name": name}},
            "ports": ports, "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        }])
    };
    let objects = [
        service("few", "10.96.0.1", 20, 1),
        service("ports", "10.96.0.2", 1000, 1),
        service("endpoints", "10.96.0.3", 1, 1000),
    ];
    let objects: Vec<Value> = objects.iter().flat_map(|it| it.as_array().unwrap().clone()).collect();
    folder.write("objects.yaml", &to_manifest(&objects)).unwrap();
    let manifests = folder.path().join("objects.yaml");
    let runs = |about: &str| {
        let mut command = node.command(BINARY);
        command.env("PATH", &path).args(["explain", about, "-o", "json", "--hostname-override", NODE_NAME]);
        let output =
            command.args(["--iptables-flavor", "nft", "--manifests"]).arg(&manifests).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let count = folder.path().join("count");
        let runs = std::fs::read_to_string(&count).unwrap().lines().count();
        std::fs::remove_file(count).unwrap();
        runs
    };
    let few = runs("large/few");
    assert!(few > 0, "the tools were not counted");
    assert_eq!([runs("large/ports"), runs("large/endpoints")], [few, few]);
    // Both families, of which one has no Services: its few chains of the nat table are read one by one.
    let all = runs("--all");
    assert!(all <= 3 * few, "{all} for a whole node, {few} for a Service");
}

/// Services that no rules are made for, each for a reason of its own, and their slices.
fn unserved_objects() -> Vec<Value> {
    let service = |name: &str, spec: Value, labels: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop", "labels": labels}, "spec": spec});
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    vec![
        service("headless", json!({"clusterIP": "None", "ports": ports}), json!({})),
        service("alias", json!({"type": "ExternalName", "externalName": "example.org"}), json!({})),
        service(
            "meshed",
            json!({"clusterIP": "10.96.0.20", "ports": ports}),
            json!({"service.kubernetes.io/service-proxy-name": "mesh"}),
        ),
        service("lonely", json!({"clusterIP": "10.96.0.21", "ports": ports}), json!({})),
        service("named", json!({"clusterIP": "10.96.0.22", "ports": ports}), json!({})),
        service("empty", json!({"clusterIP": "10.96.0.23", "ports": ports}), json!({})),
        service(
            "selecting",
            json!({"clusterIP": "10.96.0.24", "ports": ports, "selector": {"app": "none"}}),
            json!({}),
        ),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "FQDN",
            "metadata": {"name": "named-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "named"}},
            "ports": [{"name": "", "port": 80}], "endpoints": [{"addresses": ["db.example.org"]}],
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "lonely-1", "namespace": "shop"},
            "ports": [{"name": "", "port": 80}], "endpoints": [{"addresses": ["10.128.0.5"]}],
        }),
    ]
}

#[test]
fn why_a_service_is_not_served_at_all_is_named() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let folder = Folder::create().unwrap();
    folder.write("objects.yaml", &to_manifest(&unserved_objects())).unwrap();
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
    for (name, causes) in [
        ("lonely", ["slice-without-label", "no-selector"].as_slice()),
        ("named", &["fqdn-endpoints"]),
        ("empty", &["no-selector"]),
        ("selecting", &["no-endpoints"]),
    ] {
        let (report, status) = ask(name);
        let mut found = codes(&report);
        // Nothing is programmed.
        assert!(found.remove("kernel-object-missing") && status == 1, "{name}: {report:#}");
        assert_eq!(found, causes.iter().copied().collect(), "{name}: {report:#}");
    }
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
    assert!(codes(&report).is_superset(&["slice-without-label", "no-selector"].into()), "{report:#}");
    for (name, cause, wanted) in [("headless", "headless", 0), ("nobody", "unknown-service", 2)] {
        let (report, status) = ask(&format!("shop/{name}"), &[]);
        assert_eq!((codes(&report), status), ([cause].into(), wanted), "{name}: {report:#}");
    }

    // Once a proxy has programmed it, the kernel is as it should be.
    let _running = node.run(|| start(&server, Flavor::Nft, &folder)).unwrap();
    wait_until("the kernel has what explain looks for", SYNC, || ask("shop/web", &[]).1 == 0).unwrap();
}

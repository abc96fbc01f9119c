//! What load balancers ask: the health-check node port of a Service.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::{EndpointState, NODE_NAME, PacketCase, Place, cases, node_object};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, http_get, metrics, wait_until};
use kube_proxy_rs::testing::stub_api::StubApi;
use serde_json::{Value, json};

use crate::BINARY;
use crate::explain::{codes, explain};
use crate::running::Running;
use crate::shapes::assert_documented;

const SYNC: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(5);

/// A load-balancer Service with policy Local and these endpoints.
pub(crate) fn service(endpoints: &[Place]) -> PacketCase {
    let exposed = |case: &PacketCase| case.shape.exposed && case.shape.external_local;
    let mut case = cases().into_iter().find(exposed).unwrap();
    case.shape.endpoints = endpoints.iter().map(|place| (*place, EndpointState::Ready)).collect();
    case
}

#[test]
fn the_health_check_node_port_follows_local_endpoints_in_both_families() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let case = service(&[Place::Local1, Place::Remote1]);
    let launch = Launch { binary: BINARY, namespace: &node, flavor: Flavor::Nft, flags: &[] };
    let mut proxy = launch.start(&case.objects()).unwrap();
    proxy.wait_for_sync(&node, Flavor::Nft, SYNC).unwrap();
    let port = case.node_port() + 1000;
    let ask = |family: IpFamily| {
        let address = SocketAddr::new(Place::Node.address(family), port);
        http_get(&node, address, "/").unwrap_or_default()
    };
    for family in IpFamily::ALL {
        wait_until("the port answers", SOON, || ask(family).contains("\"localEndpoints\": 1"))
            .unwrap_or_else(|error| panic!("{error}: {}; its log:\n{}", ask(family), proxy.log_tail()));
    }
    proxy.apply(&service(&[Place::Remote1]).objects()).unwrap();
    for family in IpFamily::ALL {
        wait_until("no local endpoint is left", SOON, || ask(family).contains("\"localEndpoints\": 0"))
            .unwrap_or_else(|error| panic!("{error}: {}; its log:\n{}", ask(family), proxy.log_tail()));
    }
    let gauge = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 1";
    wait_until("the gauge says so", SOON, || metrics(&node).unwrap().contains(gauge)).unwrap();
    proxy.apply(&[]).unwrap();
    wait_until("the port is closed", SOON, || ask(IpFamily::V4).is_empty()).unwrap();
}

/// How long until the answer follows a change of endpoints, as its load balancer sees it.
fn delay(change: impl FnOnce(), has_followed: impl Fn() -> bool) -> Duration {
    // A change right after a pass waits for the end of `--iptables-min-sync-period`, one second.
    thread::sleep(Duration::from_millis(1100));
    let changed = Instant::now();
    change();
    let deadline = changed + SYNC;
    while !has_followed() {
        assert!(Instant::now() < deadline, "the answer does not follow");
        thread::sleep(Duration::from_millis(2));
    }
    changed.elapsed()
}

/// The best of many counts: a busy machine is slow now and then, a program that waits for something
/// is so each time.
#[test]
fn the_health_check_node_port_follows_the_api_server_within_a_second() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let folder = Folder::create().unwrap();
    let (here, gone) = (service(&[Place::Local1]), service(&[Place::Remote1]));
    let started = node.run(|| {
        let server = StubApi::start_on_a_thread().unwrap();
        here.objects().into_iter().chain([node_object()]).for_each(|object| _ = server.put(object));
        let mut command = Command::new(BINARY);
        command.arg("--kubeconfig").arg(server.kubeconfig(folder.path()).unwrap());
        command.arg("--control-socket").arg(folder.path().join("control.sock"));
        command.args(["--hostname-override", NODE_NAME]).stdout(Stdio::null()).stderr(Stdio::null());
        (server, Running::start(&mut command))
    });
    let (server, _running) = started.unwrap();
    let address = SocketAddr::new(Place::Node.address(IpFamily::V4), here.node_port() + 1000);
    let status = || http_get(&node, address, "/").unwrap_or_default().get(9..12).map(str::to_owned);
    wait_until("the port answers", SYNC, || status().as_deref() == Some("200")).unwrap();
    let mut best = [Duration::MAX; 2];
    for _ in 0..10 {
        for (best, (case, wanted)) in best.iter_mut().zip([(&gone, "503"), (&here, "200")]) {
            let change = || case.objects().into_iter().for_each(|object| _ = server.put(object));
            *best = delay(change, || status().as_deref() == Some(wanted)).min(*best);
        }
        if best.iter().all(|delay| *delay < Duration::from_secs(1)) {
            println!("503 and 200 after {best:?}");
            return;
        }
    }
    panic!("503 and 200 never within a second: {best:?}");
}

/// A load-balancer Service with policy Local; the fields of its ports are given.
fn balancer(name: &str, last: u8, (node_port, health_check): (u16, u16)) -> [Value; 2] {
    let cluster_ip = format!("10.96.0.{last}");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": health_check,
            "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": node_port}],
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.128.0.5"], "nodeName": NODE_NAME}],
    });
    [service, slice]
}

/// Without a say in it, the rules of the node port would take the load balancer's question to an endpoint.
#[test]
fn a_health_check_node_port_that_another_service_wants_for_traffic_answers_and_the_other_is_told() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let server = node.run(StubApi::start_on_a_thread).unwrap().unwrap();
    let objects = [balancer("first", 31, (30031, 32031)), balancer("second", 32, (32031, 32032))].concat();
    let launch = Launch { binary: BINARY, namespace: &node, flavor: Flavor::Nft, flags: &[] };
    let mut proxy = launch.start_watching(&server, &objects).unwrap();
    proxy.wait_for_sync(&node, Flavor::Nft, SYNC).unwrap();
    let ask = |port| {
        let address = SocketAddr::new(Place::Node.address(IpFamily::V4), port);
        http_get(&node, address, "/").unwrap_or_default()
    };
    wait_until("both health checks answer", SOON, || {
        ask(32031).contains("\"name\": \"first\"") && ask(32032).contains("\"name\": \"second\"")
    })
    .unwrap_or_else(|error| panic!("{error}: {}; its log:\n{}", ask(32031), proxy.log_tail()));

    let complaint = "32031/tcp belongs to Service shop/first (spec.healthCheckNodePort)";
    assert!(proxy.log().contains(complaint), "{}", proxy.log_tail());
    let is_told = |event: &Value| {
        let note = event["note"].as_str().unwrap_or_default();
        event["reason"] == "NodePortConflict"
            && event["regarding"]["name"] == "second"
            && note.contains(complaint)
    };
    wait_until("an Event tells", SOON, || server.events().iter().any(is_told)).unwrap();
    let socket = proxy.control_socket();
    let status = node.command(BINARY).arg("status").arg("--control-socket").arg(&socket).output().unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(complaint) && status.contains("shop/second"), "{status}");
    let json = node
        .command(BINARY)
        .args(["status", "-o", "json", "--control-socket"])
        .arg(&socket)
        .output()
        .unwrap();
    assert_documented(&serde_json::from_slice(&json.stdout).unwrap());
    let (report, _) = explain(&node, &["shop/second", "--control-socket", socket.to_str().unwrap()]);
    assert!(codes(&report).contains("node-port-taken"), "{report:#}");
}

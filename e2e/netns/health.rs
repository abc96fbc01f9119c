//! What load balancers ask: the health-check node port of a Service.

use std::net::SocketAddr;
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::{EndpointState, PacketCase, Place, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, http_get, metrics, wait_until};

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(5);

/// A load-balancer Service with policy Local and these endpoints.
fn service(endpoints: &[Place]) -> PacketCase {
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

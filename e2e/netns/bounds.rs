//! A Service that asks for more than is programmed of one: what is within the bounds works, and so do other Services.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::packets::{Place, TARGET_PORT};
use kube_proxy_rs::testing::proxy::{Flavor, metrics};
use rstest::rstest;
use serde_json::{Value, json};

use crate::claims::{Asking, Ground};

const FLAGS: &[&str] = &[
    "--max-service-ports=2",
    "--max-service-endpoints=4",
    "--max-service-external-ips=2",
    "--max-service-source-ranges=1",
];

/// More than that of everything. The last source range is the client's.
fn greedy() -> [Value; 2] {
    let ports = || (80..85).map(|number| (format!("p{number}"), number));
    let port = |(name, number)| json!({"name": name, "port": number, "protocol": "TCP"});
    let target = |(name, _)| json!({"name": name, "port": TARGET_PORT, "protocol": "TCP"});
    let places = [Place::Remote1, Place::Local1, Place::Local2];
    let node = |place| if place == Place::Remote1 { "node-1" } else { "node-0" };
    let endpoint =
        |place: Place| json!({"addresses": [place.address(IpFamily::V4)], "nodeName": node(place)});
    let client = format!("{}/32", Place::Outside.address(IpFamily::V4));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "greedy", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.60", "clusterIPs": ["10.96.0.60"], "ipFamilies": ["IPv4"],
            "ports": ports().map(port).collect::<Vec<_>>(),
            "externalIPs": ["203.0.113.2", "203.0.113.3"],
            "loadBalancerSourceRanges": ["192.0.2.0/24", client],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "greedy", "namespace": "shop", "labels": {"kubernetes.io/service-name": "greedy"}},
        "ports": ports().map(target).collect::<Vec<_>>(),
        "endpoints": places.map(endpoint),
    });
    [service, slice]
}

#[rstest]
fn what_of_a_service_is_over_a_bound_is_left_out_and_told(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    expect_within_bounds(flavor, FLAGS);
}

pub(crate) fn expect_within_bounds(flavor: Flavor, flags: &'static [&'static str]) {
    let ground = Ground::new(flavor, flags, &[]);
    let [service, slice] = greedy();
    let told = |reason: &str, complaint: &str| {
        ground.expect_told("greedy", (reason, complaint, "service-too-large"))
    };
    ground.server.put(service);
    told("ServiceTooLarge", "5 ports in spec.ports, over --max-service-ports=2");
    let addresses = "3 addresses in status.loadBalancer.ingress and spec.externalIPs";
    told("ServiceTooLarge", &format!("{addresses}, over --max-service-external-ips=2"));
    ground.server.put(slice);
    let endpoints = "15 endpoints of its slices, counted once per port";
    told(
        "TooManyEndpoints",
        &format!("{endpoints}, over --max-service-endpoints=4; each port has 2 of them"),
    );
    let at = |address: [u8; 4], port: u16| ground.answers(Place::Outside, SocketAddr::from((address, port)));
    ground.wait("its first port leads to it", || at([203, 0, 113, 2], 80).starts_with("local-"));
    assert!(at([203, 0, 113, 2], 81).starts_with("local-"), "so does the last one within the bound");
    let pods: BTreeSet<String> = (0..20).map(|_| at([203, 0, 113, 2], 80)).collect();
    assert!(pods.iter().all(|pod| pod.starts_with("local-")), "the nearest endpoints stay: {pods:?}");
    for (address, port) in [([203, 0, 113, 2], 82), ([203, 0, 113, 3], 80), ([203, 0, 113, 1], 80)] {
        let answer = at(address, port);
        assert!(
            !answer.starts_with("local-") && !answer.starts_with("remote-"),
            "{address:?} {port}: {answer}"
        );
    }
    let gauge = "kubeproxy_rs_service_bounds_exceeded 4\n";
    ground.wait("the metric counts it", || metrics(ground.lab.node()).is_ok_and(|text| text.contains(gauge)));
    Asking::PLAIN.put(&ground.server);
    ground.expect_served(Asking::PLAIN);
}

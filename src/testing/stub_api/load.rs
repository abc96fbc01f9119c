//! The objects of a load test.

use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// The cluster IP of Service number `number`. The first 256 addresses are left out: clusters have
/// their own Services there (`kubernetes` at .1, DNS at .10).
#[must_use]
pub fn load_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0101 + number)
}

/// Service number `number` of a load test.
#[must_use]
pub fn load_service(number: u32) -> Value {
    let address = load_address(number).to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "load", "name": format!("s-{number}"), "labels": {"app": format!("s-{number}")}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The EndpointSlice of Service number `number` of a load test.
#[must_use]
pub fn load_slice(number: u32, endpoints: u32, node: &str) -> Value {
    let endpoint = |index: u32| {
        let address = Ipv4Addr::from(0x0af4_0001_u32.wrapping_add(number * endpoints + index));
        json!({
            "addresses": [address.to_string()], "nodeName": node, "zone": "a",
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "load", "name": format!("s-{number}-{index}")},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "load", "name": format!("s-{number}-x"),
            "labels": {"kubernetes.io/service-name": format!("s-{number}")},
        },
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

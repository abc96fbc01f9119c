//! API objects that a real server would accept.

use serde_json::{Value, json};

/// Service `shop/NAME` at `10.96.0.LAST`.
pub(crate) fn service(name: &str, last: u8) -> Value {
    let address = format!("10.96.0.{last}");
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name, "labels": {}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    })
}

/// EndpointSlice `shop/NAME-x` of Service `NAME` with one endpoint.
pub(crate) fn slice(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "shop", "name": format!("{name}-x"),
            "labels": {"kubernetes.io/service-name": name},
        },
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [address], "nodeName": "here", "conditions": {"ready": true}}],
    })
}

/// A Node in zone `a`.
pub(crate) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {}, "status": {},
    })
}

/// A ServiceCIDR.
pub(crate) fn service_cidr(name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": [cidr]},
    })
}

/// The same object with a label.
pub(crate) fn labelled(mut object: Value, key: &str, value: &str) -> Value {
    object["metadata"]["labels"][key] = value.into();
    object
}

//! Services that work, and Services that cannot, each with the cause.

use kube_proxy_rs::testing::packets::NODE_NAME;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What has to be named, and of which Service. Nothing else is wrong with any.
pub(super) const CAUSES: &[(&str, &str)] = &[
    ("no-endpoints", "broken/without-endpoints"),
    ("none-ready", "broken/not-ready"),
    ("none-ready", "broken/all-terminated"),
    ("port-missing-in-slice", "broken/other-port-name"),
    ("port-missing-in-slice", "broken/other-protocol"),
    ("wrong-family", "broken/ipv6-pods"),
    ("no-local-endpoints-internal", "broken/internal-local"),
    ("no-local-endpoints-external", "broken/external-local"),
    ("all-in-other-zones", "broken/other-zones"),
    ("node-port-taken", "broken/younger-node-port"),
    ("node-port-outside-range", "broken/low-node-port"),
    ("node-port-taken", "broken/health-check-taken"),
    ("external-ip-contested", "broken/node-address"),
    ("address-taken", "broken/younger-external-ip"),
    ("endpoints-refused", "broken/metadata-endpoint"),
    ("source-ranges-of-other-family", "broken/open-to-all"),
    ("nothing-listens", "broken/nothing-listens"),
    ("service-too-large", "broken/too-large"),
];

/// Both addresses of the Service that comes last.
pub(super) const LAST: [&str; 2] = ["10.96.0.99", "fd00:96::99"];

/// Which Services a report wrongly complains of, or does not.
pub(super) fn complaints(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let of_services = findings.filter(|it| CAUSES.iter().any(|(cause, _)| it["code"] == *cause));
    let pairs = of_services.flat_map(|it| {
        let services = it["services"].as_array().unwrap().iter();
        services.map(|service| (it["code"].as_str().unwrap(), service.as_str().unwrap()))
    });
    let (found, wanted): (BTreeSet<_>, BTreeSet<_>) = (pairs.collect(), CAUSES.iter().copied().collect());
    found
        .symmetric_difference(&wanted)
        .map(|pair| format!("of Services, found or missing: {pair:?}"))
        .collect()
}

/// A Service with one port, `http`, changed by `spec`.
fn service(name: &str, number: u8, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "broken", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "clusterIP": format!("10.96.1.{number}"), "clusterIPs": [format!("10.96.1.{number}")],
            "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        match key.as_str() {
            "status" | "metadata" => {
                value.as_object().unwrap().iter().for_each(|(name, it)| object[key][name] = it.clone());
            }
            _ => object["spec"][key] = value.clone(),
        }
    }
    object
}

fn slice(service: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-4"), "namespace": "broken",
            "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": endpoints,
    })
}

/// An endpoint on another node.
fn remote() -> Value {
    json!([{"addresses": ["10.128.1.5"], "nodeName": "node-1", "conditions": {"ready": true}}])
}

fn node_port(number: u16) -> Value {
    json!([{"name": "http", "port": 80, "protocol": "TCP", "nodePort": number}])
}

pub(super) fn all() -> Vec<Value> {
    [vec![node()], without_endpoints(), of_policies(), of_frontends(), of_endpoints(), sound()].concat()
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE_NAME, "labels": {"topology.kubernetes.io/zone": "a"}},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "10.200.0.11"}, {"type": "InternalIP", "address": "fd00:200::11"},
        ]},
    })
}

fn without_endpoints() -> Vec<Value> {
    let off = json!({"ready": false, "serving": false});
    let gone = json!({"ready": false, "serving": false, "terminating": true});
    vec![
        service("without-endpoints", 1, json!({})),
        service("not-ready", 2, json!({})),
        slice("not-ready", json!([{"addresses": ["10.128.1.5"], "conditions": off}])),
        service("all-terminated", 3, json!({})),
        slice("all-terminated", json!([{"addresses": ["10.128.1.5"], "conditions": gone}])),
        service("other-port-name", 4, json!({"ports": [{"name": "web", "port": 80, "protocol": "TCP"}]})),
        slice("other-port-name", remote()),
        service("other-protocol", 5, json!({"ports": [{"name": "http", "port": 80, "protocol": "UDP"}]})),
        slice("other-protocol", remote()),
        service(
            "ipv6-pods",
            6,
            json!({"clusterIP": "fd00:96::106", "clusterIPs": ["fd00:96::106"], "ipFamilies": ["IPv6"]}),
        ),
        slice("ipv6-pods", remote()),
    ]
}

fn of_policies() -> Vec<Value> {
    let zones = json!([{
        "addresses": ["10.128.1.5"], "nodeName": "node-1", "conditions": {"ready": true},
        "hints": {"forZones": [{"name": "b"}]},
    }]);
    vec![
        service("internal-local", 11, json!({"internalTrafficPolicy": "Local"})),
        slice("internal-local", remote()),
        service(
            "external-local",
            12,
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": node_port(30112)}),
        ),
        slice("external-local", remote()),
        service("other-zones", 13, json!({})),
        slice("other-zones", zones),
    ]
}

fn of_frontends() -> Vec<Value> {
    let younger = json!({"creationTimestamp": "2026-02-01T00:00:00Z"});
    let ingress = |ip: &str| json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
    let mut all = vec![
        service("older-node-port", 21, json!({"type": "NodePort", "ports": node_port(30121)})),
        service(
            "younger-node-port",
            22,
            json!({"type": "NodePort", "ports": node_port(30121), "metadata": younger}),
        ),
        service("low-node-port", 23, json!({"type": "NodePort", "ports": node_port(8080)})),
        service(
            "health-check-taken",
            24,
            json!({
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30121,
                "ports": node_port(30124), "metadata": younger,
            }),
        ),
        service("node-address", 25, json!({"externalIPs": ["10.200.0.11"]})),
        service("older-external-ip", 26, json!({"externalIPs": ["192.0.2.26"]})),
        service("younger-external-ip", 27, json!({"externalIPs": ["192.0.2.26"], "metadata": younger})),
        service(
            "open-to-all",
            28,
            json!({
                "type": "LoadBalancer", "status": ingress("192.0.2.28"), "ports": node_port(30128),
                "loadBalancerSourceRanges": ["2001:db8::/32"],
            }),
        ),
        service(
            "too-large",
            29,
            json!({
                "type": "LoadBalancer", "status": ingress("192.0.2.29"), "ports": node_port(30129),
                "loadBalancerSourceRanges": ["192.0.2.0/28", "192.0.2.32/28", "192.0.2.64/28", "192.0.2.96/28"],
            }),
        ),
    ];
    let local = json!([{"addresses": ["10.128.0.5"], "nodeName": NODE_NAME, "conditions": {"ready": true}}]);
    let mut local = slice("health-check-taken", local);
    // It is not asked whether anything listens there.
    local["ports"][0]["protocol"] = "UDP".into();
    all.push(local);
    all[3]["spec"]["ports"][0]["protocol"] = "UDP".into();
    let names =
        ["older-node-port", "younger-node-port", "low-node-port", "node-address", "older-external-ip"];
    all.extend(
        names
            .iter()
            .chain(&["younger-external-ip", "open-to-all", "too-large"])
            .map(|it| slice(it, remote())),
    );
    all
}

fn of_endpoints() -> Vec<Value> {
    let metadata = json!([
        {"addresses": ["10.128.1.5"], "nodeName": "node-1", "conditions": {"ready": true}},
        {"addresses": ["169.254.169.254"], "conditions": {"ready": true}},
    ]);
    let mut silent = slice("nothing-listens", Value::Null);
    silent["ports"][0]["port"] = 8099.into();
    silent["endpoints"] =
        json!([{"addresses": ["10.200.0.11"], "nodeName": NODE_NAME, "conditions": {"ready": true}}]);
    vec![
        service("metadata-endpoint", 31, json!({})),
        slice("metadata-endpoint", metadata),
        service("nothing-listens", 32, json!({})),
        silent,
    ]
}

/// Services with nothing wrong, in both families: one with all kinds of frontends, one with endpoints of this node.
fn sound() -> Vec<Value> {
    let families = json!(["IPv4", "IPv6"]);
    let of_shop = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]);
    let mut web = of_shop(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ipFamilies": families, "ports": ports, "externalIPs": ["192.0.2.10"], "sessionAffinity": "ClientIP",
            "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8::/32"],
        }),
    );
    web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.11"}]}});
    let dns = |name: &str, v4: &str, v6: &str| {
        of_shop(
            name,
            json!({
                "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": families,
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            }),
        )
    };
    let slice = |service: &str, family: &str, port: Value, endpoints: &[(&str, &str)]| {
        let endpoint = |(address, node): &(&str, &str)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}});
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("{service}-{}", family.to_lowercase()), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": service},
            },
            "ports": [port], "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    let http = json!({"name": "http", "protocol": "TCP", "port": 8080});
    let udp = json!({"name": "dns", "protocol": "UDP", "port": 53});
    let (four, six) = ("IPv4", "IPv6");
    vec![
        web,
        slice("web", four, http.clone(), &[("10.128.1.5", "node-1"), ("10.128.2.5", "node-2")]),
        slice("web", six, http, &[("fd00:128:0:1::5", "node-1"), ("fd00:128:0:2::5", "node-2")]),
        dns("dns", "10.96.0.53", "fd00:96::53"),
        slice("dns", four, udp.clone(), &[("10.128.0.5", NODE_NAME), ("10.128.1.5", "node-1")]),
        slice("dns", six, udp.clone(), &[("fd00:128::5", NODE_NAME), ("fd00:128:0:1::5", "node-1")]),
        dns("last", LAST[0], LAST[1]),
        slice("last", four, udp.clone(), &[("10.128.0.5", NODE_NAME)]),
        slice("last", six, udp, &[("fd00:128::5", NODE_NAME)]),
    ]
}

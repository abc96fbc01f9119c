//! Tests of `nodes`.

use super::*;
use serde_json::json;

fn convert(object: serde_json::Value) -> Converted<NodeFacts> {
    node(&serde_json::from_value(object).unwrap())
}

#[test]
fn a_node_becomes_its_facts() {
    let converted = convert(json!({
        "metadata": {"name": "worker-1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::7/64"],
                 "taints": [{"key": "other", "effect": "NoSchedule"}]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "worker-1"}, {"type": "ExternalIP", "address": "198.51.100.7"},
            {"type": "InternalIP", "address": "192.0.2.7"}, {"type": "InternalDNS", "address": "w.example"},
            {"type": "InternalIP", "address": "2001:db8::7"}]},
    }));
    assert_eq!(converted.issues, []);
    let facts = converted.value.unwrap();
    let addresses: Vec<String> = facts.addresses.iter().map(ToString::to_string).collect();
    let cidrs: Vec<String> = facts.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(&*facts.name, "worker-1");
    assert_eq!(facts.zone.as_deref(), Some("a"));
    assert_eq!(addresses, ["192.0.2.7", "2001:db8::7", "198.51.100.7"]);
    assert_eq!(cidrs, ["10.1.0.0/24", "fd00:1::/64"]);
    assert!(!facts.deleting && !facts.to_be_deleted);
}

#[test]
fn a_node_on_its_way_out_says_so() {
    let facts = convert(json!({
        "metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]},
    }));
    let facts = facts.value.unwrap();
    assert!(facts.deleting && facts.to_be_deleted);
}

#[test]
fn an_empty_zone_is_none() {
    let facts = convert(json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": ""}}}));
    assert_eq!(facts.value.unwrap().zone, None);
}

#[test]
fn a_lone_pod_cidr_counts() {
    let facts = convert(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}}));
    assert_eq!(facts.value.unwrap().pod_cidrs.len(), 1);
}

#[test]
fn bad_addresses_and_networks_are_skipped_by_name() {
    let converted = convert(json!({
        "metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.1.0.0/24", "10.2.0.0"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.300"},
                                 {"type": "InternalIP", "address": "10.0.0.3"}]},
    }));
    let texts: Vec<String> = converted.issues.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            r#"status.addresses[0].address: "10.0.0.300" is not an IP address"#,
            r#"spec.podCIDRs[1]: "10.2.0.0" is not a network in CIDR form"#,
        ]
    );
    let facts = converted.value.unwrap();
    assert_eq!((facts.addresses.len(), facts.pod_cidrs.len()), (1, 1));
}

#[test]
fn a_node_without_a_name_is_refused() {
    let converted = convert(json!({"metadata": {}}));
    assert_eq!(converted.value, None);
    assert_eq!(converted.issues[0].field, "metadata.name");
}

//! Objects with anything in any field: what is wrong with them is logged shortly and in printable characters.

use super::convert::{self, Converted, named};
use super::objects::{ApiObject, EndpointSliceObject, NodeObject, ServiceObject};
use super::wire::{Decoded, Encoding};
use crate::model::findings;
use serde_json::{Value, json};

/// Longer than anything that may be said of one object.
const LONG: usize = 100_000;
const MOST_SAID: usize = 4_000;

fn service() -> Value {
    json!({
        "metadata": {
            "name": "web", "namespace": "shop", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"a": "b"}, "annotations": {"kube-proxy-rs.io/ipvs-scheduler": "rr"},
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
            "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
            "healthCheckNodePort": 30_001, "loadBalancerSourceRanges": ["192.0.2.0/24"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30_000}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP"}]}},
    })
}

fn slice() -> Value {
    json!({
        "metadata": {
            "name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{
            "addresses": ["10.128.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "node", "zone": "a", "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node"}]},
        }],
    })
}

fn node() -> Value {
    json!({
        "metadata": {"name": "node", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.128.0.0/24"], "taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]},
    })
}

/// The paths of all values in an object, as JSON pointers.
fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, it)| (name.replace('~', "~0").replace('/', "~1"), it)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().map(|(number, it)| (number.to_string(), it)).collect()
        }
        _ => Vec::new(),
    };
    for (name, it) in inner {
        found.push(format!("{at}/{name}"));
        paths(it, &format!("{at}/{name}"), found);
    }
}

/// What may stand in the place of a value.
fn hostile() -> Vec<Value> {
    let part = "\u{1b}[2J\u{202e}\n\"xx\u{9b}";
    let text = part.repeat(LONG / part.len());
    let many: Vec<Value> = (0..200).map(|number| json!(format!("{number}{part}"))).collect();
    let objects = vec![json!({"name": part.repeat(20), "protocol": part.repeat(50)}); 100];
    vec![
        json!({"name": text, "protocol": text}),
        json!(text),
        json!(many),
        json!(objects),
        json!(-1e300),
        json!({ &text: 1 }),
    ]
}

fn said_of<K: ApiObject>(object: &Value, convert: impl Fn(&K) -> Vec<String>) -> Option<String> {
    // What has no metadata at all is not an object, and the whole answer is refused.
    let decoded: Decoded<K> = Decoded::decode(Encoding::Json, &object.to_string().into()).ok()?;
    let issues = match &decoded {
        Decoded::Object(object) => convert(object),
        Decoded::Broken(broken) => vec![broken.error.clone()],
    };
    let metadata = decoded.metadata();
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    let object = named(namespace.unwrap_or_default(), name.unwrap_or_default());
    (!issues.is_empty()).then(|| format!("{object}: {}", findings(issues)))
}

fn texts<T>(converted: Converted<T>) -> Vec<String> {
    converted.issues.iter().map(ToString::to_string).collect()
}

/// Puts everything hostile into every place; how often something was said.
fn put_everywhere(sample: &Value, said_of: impl Fn(&Value) -> Option<String>) -> usize {
    let mut places = Vec::new();
    paths(sample, "", &mut places);
    let mut complaints = 0;
    for place in &places {
        for value in hostile() {
            let mut object = sample.clone();
            *object.pointer_mut(place).unwrap() = value;
            let Some(said) = said_of(&object) else { continue };
            complaints += 1;
            assert!(said.len() <= MOST_SAID, "{place}: {} bytes: {said:.2000}", said.len());
            assert!(said.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{place}: {said:?}");
        }
    }
    complaints
}

#[test]
fn whatever_is_in_an_object_what_is_said_of_it_is_short_and_printable() {
    let of_service = |object: &Value| said_of(object, |it: &ServiceObject| texts(convert::service(it)));
    let of_slice = |object: &Value| {
        said_of(object, |it: &EndpointSliceObject| texts(convert::endpoint_slice(it, "node")))
    };
    let of_node = |object: &Value| said_of(object, |it: &NodeObject| texts(convert::node(it)));
    for sample in [of_service(&service()), of_slice(&slice()), of_node(&node())] {
        assert_eq!(sample, None, "nothing is wrong with it");
    }
    assert!(put_everywhere(&service(), of_service) > 60);
    assert!(put_everywhere(&slice(), of_slice) > 40);
    assert!(put_everywhere(&node(), of_node) > 5);
}

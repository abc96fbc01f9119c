//! Fields that the API does not have, mostly misspelt ones: nothing else would say that they are without effect.

use serde_json::Value;

/// At most this many are told of one object.
const MOST: usize = 20;
/// Two names are alike if at most this many letters have to be changed.
const MOST_CHANGES: usize = 3;

/// What may be in a value.
enum Fields {
    /// Anything: not looked at.
    Any,
    /// These, or a list of objects with these.
    Of(&'static [(&'static str, Fields)]),
}

use Fields::{Any, Of};

const METADATA: Fields = Of(&[
    ("annotations", Any),
    ("creationTimestamp", Any),
    ("deletionGracePeriodSeconds", Any),
    ("deletionTimestamp", Any),
    ("finalizers", Any),
    ("generateName", Any),
    ("generation", Any),
    ("labels", Any),
    ("managedFields", Any),
    ("name", Any),
    ("namespace", Any),
    ("ownerReferences", Any),
    ("resourceVersion", Any),
    ("selfLink", Any),
    ("uid", Any),
]);

const SERVICE: Fields = Of(&[
    ("apiVersion", Any),
    ("kind", Any),
    ("metadata", METADATA),
    ("spec", SERVICE_SPEC),
    ("status", Of(&[("conditions", Any), ("loadBalancer", LOAD_BALANCER)])),
]);

const SERVICE_SPEC: Fields = Of(&[
    ("allocateLoadBalancerNodePorts", Any),
    ("clusterIP", Any),
    ("clusterIPs", Any),
    ("externalIPs", Any),
    ("externalName", Any),
    ("externalTrafficPolicy", Any),
    ("healthCheckNodePort", Any),
    ("internalTrafficPolicy", Any),
    ("ipFamilies", Any),
    ("ipFamilyPolicy", Any),
    ("loadBalancerClass", Any),
    ("loadBalancerIP", Any),
    ("loadBalancerSourceRanges", Any),
    ("ports", SERVICE_PORT),
    ("publishNotReadyAddresses", Any),
    ("selector", Any),
    ("sessionAffinity", Any),
    ("sessionAffinityConfig", Of(&[("clientIP", Of(&[("timeoutSeconds", Any)]))])),
    ("trafficDistribution", Any),
    ("type", Any),
]);

const SERVICE_PORT: Fields = Of(&[
    ("appProtocol", Any),
    ("name", Any),
    ("nodePort", Any),
    ("port", Any),
    ("protocol", Any),
    ("targetPort", Any),
]);

const LOAD_BALANCER: Fields =
    Of(&[("ingress", Of(&[("hostname", Any), ("ip", Any), ("ipMode", Any), ("ports", Any)]))]);

const SLICE: Fields = Of(&[
    ("addressType", Any),
    ("apiVersion", Any),
    ("endpoints", ENDPOINT),
    ("kind", Any),
    ("metadata", METADATA),
    ("ports", Of(&[("appProtocol", Any), ("name", Any), ("port", Any), ("protocol", Any)])),
]);

const ENDPOINT: Fields = Of(&[
    ("addresses", Any),
    ("conditions", Of(&[("ready", Any), ("serving", Any), ("terminating", Any)])),
    ("deprecatedTopology", Any),
    ("hints", Of(&[("forNodes", Of(&[("name", Any)])), ("forZones", Of(&[("name", Any)]))])),
    ("hostname", Any),
    ("nodeName", Any),
    ("targetRef", Any),
    ("zone", Any),
]);

const NODE: Fields =
    Of(&[("apiVersion", Any), ("kind", Any), ("metadata", METADATA), ("spec", Any), ("status", Any)]);

/// The fields of an object that the API does not have: where each is, and the nearest one that there is.
pub(super) fn unknown(object: &Value) -> Vec<(String, Option<&'static str>)> {
    let known = match object["kind"].as_str() {
        Some("Service") => SERVICE,
        Some("EndpointSlice") => SLICE,
        Some("Node") => NODE,
        _ => Any,
    };
    let mut found = Vec::new();
    walk(object, &known, "", &mut found);
    found
}

fn walk(value: &Value, fields: &Fields, path: &str, found: &mut Vec<(String, Option<&'static str>)>) {
    let Of(known) = fields else { return };
    if let Value::Array(items) = value {
        let indexed = items.iter().enumerate();
        indexed.for_each(|(index, item)| walk(item, fields, &format!("{path}[{index}]"), found));
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match known.iter().find(|(field, _)| field == name) {
            Some((_, fields)) => walk(inner, fields, &at, found),
            None if found.len() < MOST => found.push((at, nearest(name, known))),
            None => {}
        }
    }
}

fn nearest(name: &str, known: &[(&'static str, Fields)]) -> Option<&'static str> {
    let distance =
        |field: &str| strsim::damerau_levenshtein(&field.to_ascii_lowercase(), &name.to_ascii_lowercase());
    let alike = known.iter().map(|(field, _)| (distance(field), *field));
    alike.filter(|(changes, _)| *changes <= MOST_CHANGES).min().map(|(_, field)| field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_field_that_the_api_does_not_have_is_found_with_the_nearest_one() {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "label": {}},
            "spec": {"clusterip": "10.96.0.1", "ports": [{"port": 80}, {"port": 81, "nodeport": 30080}], "banana": 1},
        });
        let near = |path: &str, field| (path.to_owned(), field);
        assert_eq!(
            unknown(&object),
            [
                near("metadata.label", Some("labels")),
                near("spec.banana", None),
                near("spec.clusterip", Some("clusterIP")),
                near("spec.ports[1].nodeport", Some("nodePort")),
            ]
        );
    }

    #[test]
    fn all_fields_of_sound_objects_are_known() {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "labels": {"any.thing": "x"}, "annotations": {"other/thing": "y"}},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "h2c"}],
            "endpoints": [{
                "addresses": ["10.128.0.5"], "conditions": {"ready": true, "serving": true, "terminating": false},
                "hints": {"forZones": [{"name": "a"}]}, "nodeName": "node", "zone": "a",
                "targetRef": {"kind": "Pod", "name": "x", "uid": "1"},
            }],
        });
        assert_eq!(unknown(&slice), []);
        assert_eq!(unknown(&json!({"kind": "Node", "spec": {"whatever": 1}})), []);
    }
}

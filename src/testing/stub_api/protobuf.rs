//! Objects in protobuf, as a real API server writes them: field by field from their JSON.
//!
//! Independent of what the watch reads them with, and complete for what tests have: the test below writes what a real
//! server has answered in JSON, and finds the bytes that the same server has answered in protobuf. Numbers of fields
//! are those of Kubernetes' published definitions.

use serde_json::Value;

/// A field: its name in JSON, its number, what it is.
type Field = (&'static str, u32, Kind);

#[derive(Clone, Copy)]
enum Kind {
    /// Always written, empty where JSON has nothing.
    Text,
    Number,
    Flag,
    Message(&'static [Field]),
    Time,
    /// Written if it is there.
    Maybe(&'static Kind),
    /// A message for each entry.
    Map(&'static Kind),
    Each(&'static Kind),
    /// `IntOrString`.
    Port,
    /// A JSON text.
    Json,
    /// `Quantity`.
    Quantity,
}

use Kind::{Each, Flag, Json, Map, Maybe, Message, Number, Port, Quantity, Text, Time};

const LIST_META: &[Field] = &[
    ("selfLink", 1, Text),
    ("resourceVersion", 2, Text),
    ("continue", 3, Text),
    ("remainingItemCount", 4, Maybe(&Number)),
];

const MANAGED: &[Field] = &[
    ("manager", 1, Text),
    ("operation", 2, Text),
    ("apiVersion", 3, Text),
    ("time", 4, Maybe(&Time)),
    ("fieldsType", 6, Text),
    ("fieldsV1", 7, Maybe(&Json)),
    ("subresource", 8, Text),
];

const META: &[Field] = &[
    ("name", 1, Text),
    ("generateName", 2, Text),
    ("namespace", 3, Text),
    ("selfLink", 4, Text),
    ("uid", 5, Text),
    ("resourceVersion", 6, Text),
    ("generation", 7, Number),
    ("creationTimestamp", 8, Time),
    ("deletionTimestamp", 9, Maybe(&Time)),
    ("deletionGracePeriodSeconds", 10, Maybe(&Number)),
    ("labels", 11, Map(&Text)),
    ("annotations", 12, Map(&Text)),
    ("finalizers", 14, Each(&Text)),
    ("managedFields", 17, Each(&Message(MANAGED))),
];

const SERVICE_PORT: &[Field] = &[
    ("name", 1, Text),
    ("protocol", 2, Text),
    ("port", 3, Number),
    ("targetPort", 4, Port),
    ("nodePort", 5, Number),
    ("appProtocol", 6, Maybe(&Text)),
];

const SERVICE_SPEC: &[Field] = &[
    ("ports", 1, Each(&Message(SERVICE_PORT))),
    ("selector", 2, Map(&Text)),
    ("clusterIP", 3, Text),
    ("type", 4, Text),
    ("externalIPs", 5, Each(&Text)),
    ("sessionAffinity", 7, Text),
    ("loadBalancerIP", 8, Text),
    ("loadBalancerSourceRanges", 9, Each(&Text)),
    ("externalName", 10, Text),
    ("externalTrafficPolicy", 11, Text),
    ("healthCheckNodePort", 12, Number),
    ("publishNotReadyAddresses", 13, Flag),
    (
        "sessionAffinityConfig",
        14,
        Maybe(&Message(&[("clientIP", 1, Maybe(&Message(&[("timeoutSeconds", 1, Maybe(&Number))])))])),
    ),
    ("ipFamilyPolicy", 17, Maybe(&Text)),
    ("clusterIPs", 18, Each(&Text)),
    ("ipFamilies", 19, Each(&Text)),
    ("allocateLoadBalancerNodePorts", 20, Maybe(&Flag)),
    ("loadBalancerClass", 21, Maybe(&Text)),
    ("internalTrafficPolicy", 22, Maybe(&Text)),
    ("trafficDistribution", 23, Maybe(&Text)),
];

const INGRESS: &[Field] = &[("ip", 1, Text), ("hostname", 2, Text), ("ipMode", 3, Maybe(&Text))];

const SERVICE: &[Field] = &[
    ("metadata", 1, Message(META)),
    ("spec", 2, Message(SERVICE_SPEC)),
    ("status", 3, Message(&[("loadBalancer", 1, Message(&[("ingress", 1, Each(&Message(INGRESS)))]))])),
];

const REFERENCE: &[Field] = &[
    ("kind", 1, Text),
    ("namespace", 2, Text),
    ("name", 3, Text),
    ("uid", 4, Text),
    ("apiVersion", 5, Text),
    ("resourceVersion", 6, Text),
    ("fieldPath", 7, Text),
];

const CONDITIONS: &[Field] =
    &[("ready", 1, Maybe(&Flag)), ("serving", 2, Maybe(&Flag)), ("terminating", 3, Maybe(&Flag))];

const HINT: &[Field] = &[("name", 1, Text)];

const ENDPOINT: &[Field] = &[
    ("addresses", 1, Each(&Text)),
    ("conditions", 2, Message(CONDITIONS)),
    ("hostname", 3, Maybe(&Text)),
    ("targetRef", 4, Maybe(&Message(REFERENCE))),
    ("deprecatedTopology", 5, Map(&Text)),
    ("nodeName", 6, Maybe(&Text)),
    ("zone", 7, Maybe(&Text)),
    (
        "hints",
        8,
        Maybe(&Message(&[("forZones", 1, Each(&Message(HINT))), ("forNodes", 2, Each(&Message(HINT)))])),
    ),
];

const SLICE_PORT: &[Field] = &[
    ("name", 1, Maybe(&Text)),
    ("protocol", 2, Maybe(&Text)),
    ("port", 3, Maybe(&Number)),
    ("appProtocol", 4, Maybe(&Text)),
];

const SLICE: &[Field] = &[
    ("metadata", 1, Message(META)),
    ("endpoints", 2, Each(&Message(ENDPOINT))),
    ("ports", 3, Each(&Message(SLICE_PORT))),
    ("addressType", 4, Text),
];

const TAINT: &[Field] =
    &[("key", 1, Text), ("value", 2, Text), ("effect", 3, Text), ("timeAdded", 4, Maybe(&Time))];

const NODE_SPEC: &[Field] = &[
    ("podCIDR", 1, Text),
    ("externalID", 2, Text),
    ("providerID", 3, Text),
    ("unschedulable", 4, Flag),
    ("taints", 5, Each(&Message(TAINT))),
    ("podCIDRs", 7, Each(&Text)),
];

const NODE_INFO: &[Field] = &[
    ("machineID", 1, Text),
    ("systemUUID", 2, Text),
    ("bootID", 3, Text),
    ("kernelVersion", 4, Text),
    ("osImage", 5, Text),
    ("containerRuntimeVersion", 6, Text),
    ("kubeletVersion", 7, Text),
    ("kubeProxyVersion", 8, Text),
    ("operatingSystem", 9, Text),
    ("architecture", 10, Text),
];

const NODE_STATUS: &[Field] = &[
    ("capacity", 1, Map(&Quantity)),
    ("allocatable", 2, Map(&Quantity)),
    ("phase", 3, Text),
    ("addresses", 5, Each(&Message(&[("type", 1, Text), ("address", 2, Text)]))),
    ("daemonEndpoints", 6, Message(&[("kubeletEndpoint", 1, Message(&[("Port", 1, Number)]))])),
    ("nodeInfo", 7, Message(NODE_INFO)),
];

const NODE: &[Field] =
    &[("metadata", 1, Message(META)), ("spec", 2, Message(NODE_SPEC)), ("status", 3, Message(NODE_STATUS))];

const NAMESPACE: &[Field] = &[("metadata", 1, Message(META))];

const STATUS: &[Field] = &[
    ("metadata", 1, Message(LIST_META)),
    ("status", 2, Text),
    ("message", 3, Text),
    ("reason", 4, Text),
    ("code", 6, Number),
];

const SERVICE_CIDR: &[Field] =
    &[("metadata", 1, Message(META)), ("spec", 2, Message(&[("cidrs", 1, Each(&Text))]))];

fn fields_of(kind: &str) -> &'static [Field] {
    match kind {
        "Service" => SERVICE,
        "EndpointSlice" => SLICE,
        "Node" => NODE,
        "Namespace" => NAMESPACE,
        "ServiceCIDR" => SERVICE_CIDR,
        _ => STATUS,
    }
}

/// An object, by its `kind`, without anything around it.
#[must_use]
pub fn in_protobuf(object: &Value) -> Vec<u8> {
    message(fields_of(object["kind"].as_str().unwrap_or_default()), object)
}

/// A list of objects that are already written.
pub(super) fn list<'a>(metadata: &Value, items: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut list = Vec::new();
    bytes(&mut list, 1, &message(LIST_META, metadata));
    items.for_each(|item| bytes(&mut list, 2, item));
    list
}

/// What is around an object or a list that is a whole answer.
pub(super) fn wrapped(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let (mut type_meta, mut unknown) = (Vec::new(), b"k8s\0".to_vec());
    bytes(&mut type_meta, 1, api_version.as_bytes());
    bytes(&mut type_meta, 2, kind.as_bytes());
    bytes(&mut unknown, 1, &type_meta);
    bytes(&mut unknown, 2, raw);
    bytes(&mut unknown, 3, b"");
    bytes(&mut unknown, 4, b"");
    unknown
}

/// One event of a watch, after its length.
pub(super) fn event(kind: &str, wrapped: &[u8]) -> Vec<u8> {
    let (mut extension, mut event) = (Vec::new(), Vec::new());
    bytes(&mut extension, 1, wrapped);
    bytes(&mut event, 1, kind.as_bytes());
    bytes(&mut event, 2, &extension);
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &event].concat()
}

fn message(fields: &[Field], value: &Value) -> Vec<u8> {
    let mut output = Vec::new();
    for (name, tag, kind) in fields {
        write(&mut output, *tag, *kind, &value[*name]);
    }
    output
}

fn write(output: &mut Vec<u8>, tag: u32, kind: Kind, value: &Value) {
    match kind {
        Maybe(kind) => {
            if !value.is_null() {
                write(output, tag, *kind, value);
            }
        }
        Each(kind) => match value.as_array() {
            Some(items) => items.iter().for_each(|item| write(output, tag, *kind, item)),
            // What is no list in JSON is no message here.
            None => value.as_str().into_iter().for_each(|text| bytes(output, tag, text.as_bytes())),
        },
        Map(kind) => {
            for (key, value) in value.as_object().into_iter().flatten() {
                let mut entry = Vec::new();
                bytes(&mut entry, 1, key.as_bytes());
                write(&mut entry, 2, *kind, value);
                bytes(output, tag, &entry);
            }
        }
        Text => bytes(output, tag, value.as_str().unwrap_or_default().as_bytes()),
        Number => number(output, tag, value.as_i64().unwrap_or_default()),
        Flag => number(output, tag, value.as_bool().unwrap_or_default().into()),
        Message(fields) => bytes(output, tag, &message(fields, value)),
        Time => bytes(output, tag, &time(value)),
        Port => bytes(output, tag, &port(value)),
        Json => {
            bytes(output, tag, &message(&[("raw", 1, Text)], &serde_json::json!({"raw": value.to_string()})))
        }
        Quantity => {
            bytes(output, tag, &message(&[("string", 1, Text)], &serde_json::json!({"string": value})))
        }
    }
}

fn time(value: &Value) -> Vec<u8> {
    let mut output = Vec::new();
    if let Some(time) = value.as_str().and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok()) {
        number(&mut output, 1, time.as_second());
        number(&mut output, 2, 0);
    }
    output
}

fn port(value: &Value) -> Vec<u8> {
    let mut output = Vec::new();
    number(&mut output, 1, value.is_string().into());
    number(&mut output, 2, value.as_i64().unwrap_or_default());
    bytes(&mut output, 3, value.as_str().unwrap_or_default().as_bytes());
    output
}

fn number(output: &mut Vec<u8>, tag: u32, number: i64) {
    varint(output, u64::from(tag) << 3);
    varint(output, number.cast_unsigned());
}

fn bytes(output: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    varint(output, u64::from(tag) << 3 | 2);
    varint(output, bytes.len() as u64);
    output.extend_from_slice(bytes);
}

fn varint(output: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        output.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    output.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! recorded {
        ($name:literal, $encoding:literal) => {
            include_bytes!(concat!("../../watch/wire/recorded/", $name, ".", $encoding))
        };
    }

    fn assert_same(written: &[u8], recorded: &[u8]) {
        let pairs = written.iter().zip(recorded);
        let place = pairs.take_while(|(written, recorded)| written == recorded).count();
        let around = |bytes: &[u8]| {
            let start = place.saturating_sub(40);
            String::from_utf8_lossy(&bytes[start..bytes.len().min(place + 20)]).into_owned()
        };
        assert!(written == recorded, "{place}: {:?} is recorded as {:?}", around(written), around(recorded));
    }

    fn check_list(kind: &str, json: &[u8], protobuf: &[u8]) {
        let answer: Value = serde_json::from_slice(json).unwrap();
        let items: Vec<_> =
            answer["items"].as_array().unwrap().iter().map(|item| message(fields_of(kind), item)).collect();
        let list = list(&answer["metadata"], items.iter().map(Vec::as_slice));
        let written =
            wrapped(answer["apiVersion"].as_str().unwrap(), answer["kind"].as_str().unwrap(), &list);
        assert_same(&written, protobuf);
    }

    fn check_watch(json: &[u8], protobuf: &[u8]) {
        let mut written = Vec::new();
        for line in std::str::from_utf8(json).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let it = &line["object"];
            let wrapped =
                wrapped(it["apiVersion"].as_str().unwrap(), it["kind"].as_str().unwrap(), &in_protobuf(it));
            written.extend(event(line["type"].as_str().unwrap(), &wrapped));
        }
        assert_same(&written, protobuf);
    }

    #[test]
    fn what_is_written_is_what_a_real_server_has_written() {
        check_list("Service", recorded!("services-list", "json"), recorded!("services-list", "pb"));
        check_list(
            "EndpointSlice",
            recorded!("endpointslices-list", "json"),
            recorded!("endpointslices-list", "pb"),
        );
        check_list("Node", recorded!("nodes-list", "json"), recorded!("nodes-list", "pb"));
        check_watch(recorded!("services-stream", "json"), recorded!("services-stream", "pb"));
        check_watch(recorded!("endpointslices-stream", "json"), recorded!("endpointslices-stream", "pb"));
        check_watch(recorded!("nodes-stream", "json"), recorded!("nodes-stream", "pb"));
        check_watch(recorded!("no-stream", "json"), recorded!("no-stream", "pb"));
    }
}

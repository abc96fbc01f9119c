//! Whatever an object says, it becomes the same in both encodings.

use super::*;
use crate::testing::stub_api::in_protobuf;
use crate::watch::convert;
use crate::watch::objects::{EndpointSliceObject, NodeObject, ServiceObject};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

/// A value that may be absent or null, as good ones and bad ones may.
fn maybe(value: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Option<Value>> {
    prop_oneof![1 => Just(None), 1 => Just(Some(Value::Null)), 20 => value.prop_map(Some)].boxed()
}

fn text(good: &'static [&'static str]) -> BoxedStrategy<Value> {
    prop_oneof![30 => select(good).prop_map(str::to_owned), 1 => Just(String::new()), 1 => "\\PC{0,12}"]
        .prop_map(Value::from)
        .boxed()
}

fn number() -> BoxedStrategy<Value> {
    prop_oneof![4 => 0..70_000_i32, 1 => any::<i32>()].prop_map(Value::from).boxed()
}

fn flag() -> BoxedStrategy<Value> {
    any::<bool>().prop_map(Value::from).boxed()
}

fn list(item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop::collection::vec(item, 0..4).prop_map(Value::from).boxed()
}

/// An object of these fields, some of them absent.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) =
        fields.into_iter().map(|(name, value)| (name, maybe(value))).unzip();
    values
        .prop_map(move |values| {
            let pairs =
                names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
            Value::Object(pairs.collect::<Map<_, _>>())
        })
        .boxed()
}

const ADDRESSES: &[&str] =
    &["10.0.0.1", "010.1.0.2", "fd00::1", "127.0.0.1", "None", "10.0.0.0/8", "a.example"];

fn metadata() -> BoxedStrategy<Value> {
    let keys = select(&[
        "kubernetes.io/service-name",
        "service.kubernetes.io/service-proxy-name",
        "topology.kubernetes.io/zone",
        "kube-proxy-rs.io/ipvs-scheduler",
        "endpoints.kubernetes.io/last-change-trigger-time",
        "app",
    ]);
    let value = prop_oneof![Just("web"), Just("rr"), Just("2026-01-01T00:00:00Z"), Just("")];
    let map = prop::collection::btree_map(keys, value, 0..4).prop_map(|map| json!(map)).boxed();
    let time = text(&["2026-01-01T00:00:00Z", "2000-02-03T04:05:06Z"]);
    object(vec![
        ("name", text(&["web", "web-1"])),
        ("namespace", text(&["shop"])),
        ("resourceVersion", text(&["7"])),
        ("creationTimestamp", time.clone()),
        ("deletionTimestamp", select(&["2026-01-01T00:00:00Z"][..]).prop_map(Value::from).boxed()),
        ("labels", map.clone()),
        ("annotations", map),
    ])
}

fn service() -> BoxedStrategy<Value> {
    let port = object(vec![
        ("name", text(&["http", "dns"])),
        ("protocol", text(&["TCP", "UDP", "SCTP"])),
        ("port", number()),
        ("nodePort", number()),
        ("targetPort", prop_oneof![number(), text(&["http"])].boxed()),
    ]);
    let affinity = object(vec![("clientIP", object(vec![("timeoutSeconds", number())]))]);
    let spec = object(vec![
        ("type", text(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
        ("clusterIP", text(ADDRESSES)),
        ("clusterIPs", list(text(ADDRESSES))),
        ("ipFamilies", list(text(&["IPv4", "IPv6"]))),
        ("externalIPs", list(text(ADDRESSES))),
        ("loadBalancerSourceRanges", list(text(ADDRESSES))),
        ("sessionAffinity", text(&["None", "ClientIP"])),
        ("sessionAffinityConfig", affinity),
        ("internalTrafficPolicy", text(&["Cluster", "Local"])),
        ("externalTrafficPolicy", text(&["Cluster", "Local"])),
        ("healthCheckNodePort", number()),
        ("ports", list(port)),
    ]);
    let ingress = object(vec![("ip", text(ADDRESSES)), ("ipMode", text(&["VIP", "Proxy"]))]);
    let status = object(vec![("loadBalancer", object(vec![("ingress", list(ingress))]))]);
    object(vec![("metadata", metadata()), ("spec", spec), ("status", status)])
}

fn slice() -> BoxedStrategy<Value> {
    let conditions = object(vec![("ready", flag()), ("serving", flag()), ("terminating", flag())]);
    let hint = object(vec![("name", text(&["a", "b"]))]);
    let hints = object(vec![("forZones", list(hint.clone())), ("forNodes", list(hint))]);
    let endpoint = object(vec![
        ("addresses", list(text(ADDRESSES))),
        ("conditions", conditions),
        ("nodeName", text(&["here", "there"])),
        ("zone", text(&["a"])),
        ("hints", hints),
    ]);
    let port =
        object(vec![("name", text(&["http"])), ("protocol", text(&["TCP", "UDP"])), ("port", number())]);
    object(vec![
        ("metadata", metadata()),
        ("addressType", text(&["IPv4", "IPv6", "FQDN"])),
        ("ports", list(port)),
        ("endpoints", list(endpoint)),
    ])
}

fn node() -> BoxedStrategy<Value> {
    let address =
        object(vec![("type", text(&["InternalIP", "ExternalIP", "Hostname"])), ("address", text(ADDRESSES))]);
    let taint = object(vec![("key", text(&["ToBeDeletedByClusterAutoscaler", "a"]))]);
    let spec = object(vec![
        ("podCIDR", text(ADDRESSES)),
        ("podCIDRs", list(text(ADDRESSES))),
        ("taints", list(taint)),
    ]);
    object(vec![
        ("metadata", metadata()),
        ("spec", spec),
        ("status", object(vec![("addresses", list(address))])),
    ])
}

/// What an object becomes in each encoding.
fn both<K: ApiObject, T>(kind: &str, mut object: Value, convert: impl Fn(&K) -> T) -> [T; 2] {
    object["kind"] = kind.into();
    let protobuf = in_protobuf(&object);
    let encoded = [(Encoding::Json, object.to_string().into_bytes()), (Encoding::Protobuf, protobuf)];
    encoded.map(|(encoding, bytes)| match Decoded::<K>::decode(encoding, &bytes.into()).unwrap() {
        Decoded::Object(object) => convert(&object),
        Decoded::Broken(broken) => panic!("{encoding:?}: {}", broken.error),
    })
}

proptest! {
    #[test]
    fn a_service_is_the_same_in_both_encodings(object in service()) {
        let [json, protobuf] = both("Service", object, convert::service);
        prop_assert_eq!(json, protobuf);
    }

    #[test]
    fn a_slice_is_the_same_in_both_encodings(object in slice()) {
        let convert = |object: &EndpointSliceObject| convert::endpoint_slice(object, "here");
        let [json, protobuf] = both("EndpointSlice", object, convert);
        prop_assert_eq!(json, protobuf);
    }

    #[test]
    fn a_node_is_the_same_in_both_encodings(object in node()) {
        let [json, protobuf] = both("Node", object, convert::node);
        prop_assert_eq!(json, protobuf);
    }
}

/// So that the above is about something: most of what is generated can be used or is reported.
#[test]
fn what_is_generated_is_of_use() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let used = (0..500).filter(|_| {
        let object = service().new_tree(&mut runner).unwrap().current();
        both("Service", object, |object: &ServiceObject| convert::service(object).value.is_some())[0]
    });
    assert!(used.count() > 30);
    let names: Vec<bool> = both("Node", json!({"metadata": {"name": "a"}}), |object: &NodeObject| {
        convert::node(object).value.is_some()
    })
    .into();
    assert_eq!(names, [true, true]);
}

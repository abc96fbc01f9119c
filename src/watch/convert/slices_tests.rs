//! Tests of `slices`.

use super::*;
use crate::model::Protocol;
use crate::watch::convert::IssueSeverity;
use rstest::rstest;
use serde_json::{Value, json};

/// A plain slice with some of its fields replaced, read on node `here`.
fn with(fields: Value) -> Converted<EndpointSlice> {
    let mut object = json!({
        "metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.0.1"]}],
    });
    for (key, value) in fields.as_object().unwrap() {
        object[key] = value.clone();
    }
    endpoint_slice(&serde_json::from_value(object).unwrap(), "here")
}

fn with_metadata(fields: Value) -> Converted<EndpointSlice> {
    let mut metadata =
        json!({"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}});
    metadata.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    with(json!({"metadata": metadata}))
}

fn texts(converted: &Converted<EndpointSlice>) -> Vec<String> {
    converted.issues.iter().map(ToString::to_string).collect()
}

/// The value, which must have come without any issue.
fn clean(converted: Converted<EndpointSlice>) -> EndpointSlice {
    assert_eq!(texts(&converted), [""; 0]);
    converted.value.unwrap()
}

fn addresses(slice: &EndpointSlice) -> Vec<String> {
    slice.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn a_plain_slice_becomes_ports_and_endpoints() {
    let wanted = EndpointSlice {
        name: "shop/web-abc".into(),
        service: ServiceName::new("shop", "web"),
        family: IpFamily::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: [SliceEndpoint {
            address: "10.1.0.1".parse().unwrap(),
            facts: EndpointFacts::new(true, true, false, false),
            hints: 0,
        }]
        .into(),
        hints: [].into(),
        refused: 0,
        triggered: None,
    };
    assert_eq!(clean(with(json!({}))), wanted);
}

#[test]
fn a_headless_slice_is_nothing_to_us() {
    let labels = json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""});
    assert_eq!(with_metadata(json!({"labels": labels})), Converted::nothing());
}

#[rstest]
#[case::no_labels(json!({"labels": null}))]
#[case::other_labels(json!({"labels": {"app": "web"}}))]
#[case::empty(json!({"labels": {"kubernetes.io/service-name": ""}}))]
fn a_slice_of_no_service_cannot_be_used(#[case] metadata: Value) {
    let converted = with_metadata(metadata);
    let text = "metadata.labels[kubernetes.io/service-name]: is missing: the slice belongs to no Service";
    assert_eq!(texts(&converted), [text]);
    assert_eq!((converted.value, converted.issues[0].severity), (None, IssueSeverity::Warning));
}

#[rstest]
#[case::name(json!({"name": "a".repeat(300)}), "metadata.name")]
#[case::no_name(json!({"name": null}), "metadata.name")]
#[case::namespace(json!({"namespace": "Shop"}), "metadata.namespace")]
#[case::service(
    json!({"labels": {"kubernetes.io/service-name": "a\nb"}}), "metadata.labels[kubernetes.io/service-name]")]
fn a_name_out_of_bounds_refuses_the_slice(#[case] metadata: Value, #[case] field: &str) {
    let converted = with_metadata(metadata);
    assert_eq!(converted.value, None);
    assert_eq!(converted.issues.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(), [field]);
}

#[rstest]
#[case(json!("FQDN"), "addressType: endpoints that are names cannot be proxied to")]
#[case(json!("ipv4"), r#"addressType: "ipv4" is neither IPv4 nor IPv6"#)]
#[case(json!(null), r#"addressType: "" is neither IPv4 nor IPv6"#)]
fn a_slice_of_anything_but_addresses_cannot_be_used(#[case] address_type: Value, #[case] issue: &str) {
    let converted =
        with(json!({"addressType": address_type, "endpoints": [{"addresses": ["db.example.com"]}]}));
    assert_eq!(texts(&converted), [issue]);
    assert_eq!(converted.value, None);
}

#[test]
fn the_address_type_is_the_family() {
    let slice = clean(with(json!({"addressType": "IPv6", "endpoints": [{"addresses": ["2001:DB8::0:1"]}]})));
    assert_eq!((slice.family, addresses(&slice)), (IpFamily::V6, vec!["2001:db8::1".to_owned()]));
}

#[test]
fn only_the_first_address_counts_and_may_have_leading_zeros() {
    let slice = clean(with(json!({"endpoints": [{"addresses": ["010.1.0.001", "10.1.0.2", "junk"]}]})));
    assert_eq!(addresses(&slice), ["10.1.0.1"]);
}

#[test]
fn endpoints_without_a_good_address_are_skipped_by_name() {
    let converted = with(json!({"endpoints": [
        {"addresses": ["10.1.0.1"]}, {"addresses": []}, {}, {"addresses": ["10.1.0.300"]},
        {"addresses": ["2001:db8::1"]}, {"addresses": ["10.1.0.2"]}]}));
    assert_eq!(
        texts(&converted),
        [
            "endpoints[1].addresses: is empty",
            "endpoints[2].addresses: is empty",
            r#"endpoints[3].addresses[0]: "10.1.0.300" is not an IP address"#,
            "endpoints[4].addresses[0]: 2001:db8::1 is not an IPv4 address",
        ]
    );
    assert_eq!(addresses(&converted.value.unwrap()), ["10.1.0.1", "10.1.0.2"]);
}

#[rstest]
#[case("IPv4", "127.0.0.1", "a loopback address")]
#[case("IPv4", "127.8.9.10", "a loopback address")]
#[case("IPv4", "169.254.169.254", "a link-local address")]
#[case("IPv4", "0.0.0.0", "the unspecified address")]
#[case("IPv4", "224.0.0.1", "a link-local address")]
#[case("IPv4", "239.1.2.3", "a multicast address")]
#[case("IPv6", "::1", "a loopback address")]
#[case("IPv6", "fe80::1", "a link-local address")]
#[case("IPv6", "::", "the unspecified address")]
#[case("IPv6", "ff02::1", "a link-local address")]
#[case("IPv6", "ff0e::1", "a multicast address")]
fn endpoints_that_lead_back_to_the_node_or_its_link_are_refused_and_the_others_stay(
    #[case] family: &str,
    #[case] refused: &str,
    #[case] what: &str,
) {
    let good = if family == "IPv4" { "10.1.0.1" } else { "2001:db8::1" };
    let converted = with(json!({"addressType": family, "endpoints": [
        {"addresses": [refused]}, {"addresses": [good]}]}));
    let text = format!("endpoints[0].addresses[0]: {refused} is {what}; the endpoint is not used");
    assert_eq!(texts(&converted), [text]);
    let slice = converted.value.unwrap();
    assert_eq!((addresses(&slice), slice.refused), (vec![good.to_owned()], 1));
}

#[rstest]
#[case(json!(null), (true, true, false))]
#[case(json!({}), (true, true, false))]
#[case(json!({"ready": null, "serving": null, "terminating": null}), (true, true, false))]
#[case(json!({"ready": false}), (false, true, false))]
#[case(json!({"ready": false, "serving": true, "terminating": true}), (false, true, true))]
#[case(json!({"ready": true, "serving": false, "terminating": false}), (true, false, false))]
#[case(json!({"ready": true, "serving": true, "terminating": true}), (true, true, true))]
fn absent_conditions_mean_ready_and_serving(#[case] conditions: Value, #[case] wanted: (bool, bool, bool)) {
    let slice = clean(with(json!({"endpoints": [{"addresses": ["10.1.0.1"], "conditions": conditions}]})));
    let facts = slice.endpoints[0].facts;
    assert_eq!((facts.ready(), facts.serving(), facts.terminating()), wanted);
}

#[test]
fn an_endpoint_is_local_if_it_is_on_our_node() {
    let object: EndpointSliceObject = serde_json::from_value(json!({
        "metadata": {"name": "a", "namespace": "b", "labels": {"kubernetes.io/service-name": "c"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "here"}, {"addresses": ["10.1.0.2"], "nodeName": "there"},
                      {"addresses": ["10.1.0.3"]}, {"addresses": ["10.1.0.4"], "nodeName": ""}],
    }))
    .unwrap();
    let local = |node_name| -> Vec<bool> {
        clean(endpoint_slice(&object, node_name)).endpoints.iter().map(|e| e.facts.local()).collect()
    };
    assert_eq!(local("here"), [true, false, false, false]);
    assert_eq!(local(""), [false; 4]);
}

#[test]
fn ports_need_a_name_and_a_number() {
    let converted = with(json!({"ports": [
        {"name": "", "port": 80}, {"port": 81}, {"name": null, "port": 82}, {"name": "a"},
        {"name": "b", "port": 0}, {"name": "c", "port": 70_000}, {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "d", "port": 83, "protocol": "QUIC"}]}));
    assert_eq!(
        texts(&converted),
        [
            "ports[1].name: is missing: the port cannot be used",
            "ports[2].name: is missing: the port cannot be used",
            "ports[3].port: is missing: the port cannot be used",
            "ports[4].port: 0 is not a port; ports are 1 to 65535",
            "ports[5].port: 70000 is not a port; ports are 1 to 65535",
            r#"ports[7].protocol: "QUIC" is not a protocol; there are TCP, UDP and SCTP"#,
        ]
    );
    let slice = converted.value.unwrap();
    let ports: Vec<_> = slice.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(ports, [("", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]);
}

#[test]
fn a_port_name_out_of_bounds_refuses_the_slice() {
    let converted = with(json!({"ports": [{"name": "a b", "port": 80}]}));
    assert_eq!((converted.value, converted.issues[0].field.as_str()), (None, "ports[0].name"));
}

#[test]
fn hints_are_stored_once_and_number_zero_is_none() {
    let zone = |zone: &str| json!({"forZones": [{"name": zone}]});
    let slice = clean(with(json!({"endpoints": [
        {"addresses": ["10.1.0.1"], "hints": zone("a")},
        {"addresses": ["10.1.0.2"]},
        {"addresses": ["10.1.0.3"], "hints": zone("b")},
        {"addresses": ["10.1.0.4"], "hints": zone("a")},
        {"addresses": ["10.1.0.5"], "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "here"}]}},
        {"addresses": ["10.1.0.6"], "hints": {"forZones": [], "forNodes": null}},
    ]})));
    let indices: Vec<u16> = slice.endpoints.iter().map(|endpoint| endpoint.hints).collect();
    assert_eq!(indices, [1, 0, 2, 1, 3, 0]);
    assert_eq!(slice.hints.len(), 4);
    assert_eq!(slice.hints[0], Hints::default());
    assert_eq!(slice.hints_of(&slice.endpoints[1]), None);
    let both = slice.hints_of(&slice.endpoints[4]).unwrap();
    assert_eq!((&*both.zones[0], &*both.nodes[0]), ("a", "here"));
    assert!(Arc::ptr_eq(&both.zones[0], &slice.hints[1].zones[0]));
}

#[test]
fn more_hints_than_the_api_allows_are_cut() {
    let zones: Vec<Value> = (0..9).map(|n| json!({"name": format!("z{n}")})).collect();
    let converted = with(json!({"endpoints": [{"addresses": ["10.1.0.1"], "hints": {"forZones": zones}}]}));
    assert_eq!(texts(&converted), ["endpoints[0].hints.forZones: 9 are too many; there can be 8"]);
    assert_eq!(converted.value.unwrap().hints[1].zones.len(), 8);
}

#[rstest]
#[case("2026-01-01T00:00:00Z", Some(1_767_225_600_000))]
#[case("2026-01-01T00:00:00.123456789Z", Some(1_767_225_600_123))]
#[case("2026-01-01T02:00:00.5+02:00", Some(1_767_225_600_500))]
#[case("yesterday", None)]
#[case("", None)]
fn the_trigger_time_counts_if_it_is_a_time(#[case] text: &str, #[case] wanted: Option<i64>) {
    let annotations = json!({"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": text}});
    assert_eq!(clean(with_metadata(annotations)).triggered, wanted);
}

#[test]
fn a_slice_keeps_to_the_limits_of_the_api() {
    let endpoints = |n: u32| -> Vec<Value> {
        (0..n).map(|n| json!({"addresses": [format!("10.1.{}.{}", n / 250, n % 250)]})).collect()
    };
    assert_eq!(clean(with(json!({"endpoints": endpoints(1000)}))).endpoints.len(), 1000);
    let converted = with(json!({"endpoints": endpoints(1001)}));
    assert_eq!(texts(&converted), ["endpoints: 1001 are too many; a slice can have 1000"]);
    assert_eq!(converted.value, None);
}

#[test]
fn a_slice_may_have_no_endpoints_and_no_ports() {
    let slice = clean(with(json!({"endpoints": null, "ports": null})));
    assert!(slice.endpoints.is_empty() && slice.ports.is_empty());
}

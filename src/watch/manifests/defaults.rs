//! What the API server fills in before it looks at an object.

use crate::model::IpFamily;
use crate::watch::convert::parse_ip;
use crate::watch::objects::{EndpointSliceObject, ServiceObject, ServiceSpec};

/// Completes a Service.
pub(super) fn service(object: &mut ServiceObject) {
    namespace(&mut object.metadata.namespace);
    let spec = &mut object.spec;
    fill(&mut spec.service_type, "ClusterIP");
    for port in &mut spec.ports {
        fill(&mut port.protocol, "TCP");
    }
    cluster_ips(spec);
}

/// Completes an EndpointSlice. A port without a name is the unnamed one: the API server leaves no
/// port name absent, which is why an absent one means trouble in what comes from there.
pub(super) fn endpoint_slice(object: &mut EndpointSliceObject) {
    namespace(&mut object.metadata.namespace);
    for port in &mut object.ports {
        fill(&mut port.protocol, "TCP");
        fill(&mut port.name, "");
    }
}

fn namespace(namespace: &mut Option<String>) {
    fill(namespace, "default");
}

fn fill(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}

/// `clusterIP` and `clusterIPs` follow from each other, `ipFamilies` from the addresses.
fn cluster_ips(spec: &mut ServiceSpec) {
    match (spec.cluster_ip.as_deref().unwrap_or_default(), spec.cluster_ips.first()) {
        ("", Some(first)) => spec.cluster_ip = Some(first.clone()),
        (ip, None) if !ip.is_empty() => spec.cluster_ips = vec![ip.to_owned()],
        _ => {}
    }
    for text in spec.cluster_ips.iter().skip(spec.ip_families.len()) {
        // Behind an address that is none, the families would no longer match their addresses.
        let Some(ip) = parse_ip(text) else { break };
        spec.ip_families.push(IpFamily::of(ip).as_str().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case::ip_only(json!({"clusterIP": "10.0.0.1"}), "10.0.0.1", &["10.0.0.1"], &["IPv4"])]
    #[case::ips_only(
        json!({"clusterIPs": ["2001:db8::1", "10.0.0.1"]}),
        "2001:db8::1", &["2001:db8::1", "10.0.0.1"], &["IPv6", "IPv4"])]
    #[case::one_family_of_two(
        json!({"clusterIPs": ["10.0.0.1", "2001:db8::1"], "ipFamilies": ["IPv4"]}),
        "10.0.0.1", &["10.0.0.1", "2001:db8::1"], &["IPv4", "IPv6"])]
    #[case::headless(json!({"clusterIP": "None"}), "None", &["None"], &[])]
    #[case::nothing(json!({}), "", &[], &[])]
    #[case::wrong_families_stay(
        json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"]}), "10.0.0.1", &["10.0.0.1"], &["IPv6"])]
    fn cluster_ips_and_families_follow_from_each_other(
        #[case] spec: Value,
        #[case] ip: &str,
        #[case] ips: &[&str],
        #[case] families: &[&str],
    ) {
        let mut object: ServiceObject = serde_json::from_value(json!({"spec": spec})).unwrap();
        service(&mut object);
        assert_eq!(object.spec.cluster_ip.unwrap_or_default(), ip);
        assert_eq!((object.spec.cluster_ips, object.spec.ip_families), (strings(ips), strings(families)));
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn absent_namespaces_protocols_and_types_get_their_defaults() {
        let mut object: ServiceObject = serde_json::from_value(json!({"spec": {"ports": [{}]}})).unwrap();
        service(&mut object);
        assert_eq!(object.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(object.spec.service_type.as_deref(), Some("ClusterIP"));
        assert_eq!(object.spec.ports[0].protocol.as_deref(), Some("TCP"));

        let mut slice: EndpointSliceObject =
            serde_json::from_value(json!({"metadata": {"namespace": "a"}, "ports": [{"port": 1}]})).unwrap();
        endpoint_slice(&mut slice);
        assert_eq!(slice.metadata.namespace.as_deref(), Some("a"));
        assert_eq!(slice.ports[0].name.as_deref(), Some(""));
        assert_eq!(slice.ports[0].protocol.as_deref(), Some("TCP"));
    }
}

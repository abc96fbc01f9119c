//! Tests of `services`.

use super::*;
use crate::model::Protocol;
use crate::watch::convert::IssueSeverity;
use rstest::rstest;
use serde_json::{Value, json};

/// A plain Service with some fields of its `spec` replaced.
fn with_spec(fields: Value) -> Converted<Service> {
    with_object(json!({}), fields, json!({}))
}

fn with_object(metadata: Value, spec: Value, status: Value) -> Converted<Service> {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                 "ipFamilies": ["IPv4"], "ports": [{"name": "http", "protocol": "TCP", "port": 80}]},
        "status": status,
    });
    for (part, fields) in [("metadata", metadata), ("spec", spec)] {
        for (key, value) in fields.as_object().unwrap() {
            object[part][key] = value.clone();
        }
    }
    service(&serde_json::from_value(object).unwrap())
}

fn dual() -> Value {
    json!({"clusterIPs": ["10.0.0.1", "2001:db8::1"], "ipFamilies": ["IPv4", "IPv6"]})
}

fn merged(mut a: Value, b: &Value) -> Value {
    a.as_object_mut().unwrap().extend(b.as_object().unwrap().clone());
    a
}

fn texts<T>(converted: &Converted<T>) -> Vec<String> {
    converted.issues.iter().map(ToString::to_string).collect()
}

/// The value, which must have come without any issue.
fn clean(converted: Converted<Service>) -> Service {
    assert_eq!(texts(&converted), [""; 0]);
    converted.value.unwrap()
}

fn external_of(converted: Converted<Service>) -> External {
    *clean(converted).external.unwrap()
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_service_has_a_cluster_ip_and_ports_and_nothing_else() {
    let service =
        clean(with_object(json!({"creationTimestamp": "1970-01-02T00:00:00Z"}), json!({}), json!({})));
    assert_eq!(
        service,
        Service {
            name: ServiceName::new("shop", "web"),
            created: Some(86_400),
            cluster_ips: PerFamily { v4: Some("10.0.0.1".parse().unwrap()), v6: None },
            internal_traffic_policy: TrafficPolicy::Cluster,
            affinity_seconds: None,
            ipvs_scheduler: None,
            ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }]
                .into(),
            external: None,
        }
    );
}

#[rstest]
#[case::headless(json!({"clusterIP": "None", "clusterIPs": ["None"]}))]
#[case::not_allocated(json!({"clusterIP": "", "clusterIPs": []}))]
#[case::no_cluster_ip(json!({"clusterIP": null, "clusterIPs": null}))]
#[case::external_name(json!({"type": "ExternalName", "externalName": "db.example.com"}))]
#[case::external_name_with_an_address(json!({"type": "ExternalName", "clusterIP": "10.0.0.1"}))]
fn services_without_a_cluster_ip_are_nothing_to_us(#[case] spec: Value) {
    assert_eq!(with_spec(spec), Converted::nothing());
}

#[rstest]
#[case("other-proxy")]
#[case("")]
fn services_of_another_proxy_are_nothing_to_us(#[case] value: &str) {
    let labels = json!({"labels": {"service.kubernetes.io/service-proxy-name": value}});
    assert_eq!(with_object(labels, json!({}), json!({})), Converted::nothing());
}

#[rstest]
#[case::families_and_ips(dual(), Some("10.0.0.1"), Some("2001:db8::1"))]
#[case::v6_first(
    json!({"clusterIP": "2001:db8::1", "clusterIPs": ["2001:db8::1", "10.0.0.1"], "ipFamilies": ["IPv6", "IPv4"]}),
    Some("10.0.0.1"), Some("2001:db8::1"))]
#[case::v6_only(
    json!({"clusterIP": "2001:db8::1", "clusterIPs": ["2001:db8::1"], "ipFamilies": ["IPv6"]}),
    None, Some("2001:db8::1"))]
#[case::no_families_v4(json!({"ipFamilies": []}), Some("10.0.0.1"), None)]
#[case::no_families_v6(json!({"ipFamilies": null, "clusterIP": "2001:db8::1"}), None, Some("2001:db8::1"))]
#[case::no_families_reads_only_the_first(
    json!({"ipFamilies": [], "clusterIPs": ["10.0.0.1", "2001:db8::1"]}), Some("10.0.0.1"), None)]
#[case::leading_zeros(json!({"clusterIP": "010.0.0.041", "clusterIPs": ["010.0.0.041"]}), Some("10.0.0.41"), None)]
#[case::more_families_than_ips(json!({"ipFamilies": ["IPv4", "IPv6"]}), Some("10.0.0.1"), None)]
fn each_family_gets_its_cluster_ip(#[case] spec: Value, #[case] v4: Option<&str>, #[case] v6: Option<&str>) {
    let service = clean(with_spec(spec));
    let wanted = PerFamily { v4: v4.map(|ip| ip.parse().unwrap()), v6: v6.map(|ip| ip.parse().unwrap()) };
    assert_eq!(service.cluster_ips, wanted);
}

#[rstest]
#[case::not_an_ip(json!({"clusterIPs": ["10.0.0.300"]}), r#"spec.clusterIPs[0]: "10.0.0.300" is not an IP address"#)]
#[case::not_an_ip_without_families(
    json!({"ipFamilies": [], "clusterIP": "ten"}), r#"spec.clusterIP: "ten" is not an IP address"#)]
#[case::wrong_family(json!({"ipFamilies": ["IPv6"]}), "spec.clusterIPs[0]: 10.0.0.1 is not an IPv6 address")]
#[case::unknown_family(json!({"ipFamilies": ["IPv5"]}), r#"spec.ipFamilies[0]: "IPv5" is neither IPv4 nor IPv6"#)]
fn a_service_without_a_good_cluster_ip_is_refused(#[case] spec: Value, #[case] issue: &str) {
    let converted = with_spec(spec);
    assert_eq!(texts(&converted), [issue]);
    assert_eq!(converted.value, None);
    assert_eq!(converted.issues[0].severity, IssueSeverity::Error);
}

#[test]
fn one_bad_cluster_ip_does_not_take_the_other_family_with_it() {
    let converted = with_spec(merged(dual(), &json!({"clusterIPs": ["10.0.0.1", "2001:db8::g"]})));
    assert_eq!(texts(&converted), [r#"spec.clusterIPs[1]: "2001:db8::g" is not an IP address"#]);
    let ips = converted.value.unwrap().cluster_ips;
    assert!(ips.v4.is_some() && ips.v6.is_none());
}

#[test]
fn ports_keep_their_order_names_protocols_and_node_ports() {
    let service = clean(with_spec(json!({"type": "NodePort", "ports": [
        {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053, "targetPort": "named"},
        {"name": "dns-tcp", "port": 53}, {"name": null, "protocol": "SCTP", "port": 65535, "nodePort": 0},
    ]})));
    let ports: Vec<_> = service.ports.iter().map(|p| (&*p.name, p.protocol, p.port, p.node_port)).collect();
    let wanted = [
        ("dns", Protocol::Udp, 53, 30053),
        ("dns-tcp", Protocol::Tcp, 53, 0),
        ("", Protocol::Sctp, 65535, 0),
    ];
    assert_eq!(ports, wanted);
}

#[test]
fn a_node_port_counts_whatever_the_type() {
    let service = clean(with_spec(json!({"ports": [{"port": 80, "nodePort": 30080}]})));
    assert_eq!(service.ports[0].node_port, 30080);
}

#[rstest]
#[case(json!({"port": 0}), "spec.ports[1].port: 0 is not a port; ports are 1 to 65535")]
#[case(json!({"port": 65536}), "spec.ports[1].port: 65536 is not a port; ports are 1 to 65535")]
#[case(json!({"port": -1}), "spec.ports[1].port: -1 is not a port; ports are 1 to 65535")]
#[case(json!({}), "spec.ports[1].port: 0 is not a port; ports are 1 to 65535")]
#[case(json!({"port": 1, "protocol": "ICMP"}),
    r#"spec.ports[1].protocol: "ICMP" is not a protocol; there are TCP, UDP and SCTP"#)]
#[case(json!({"port": 1, "protocol": "tcp"}),
    r#"spec.ports[1].protocol: "tcp" is not a protocol; there are TCP, UDP and SCTP"#)]
fn a_bad_port_is_skipped_by_name(#[case] port: Value, #[case] issue: &str) {
    let converted = with_spec(json!({"ports": [{"name": "a", "port": 80}, port, {"name": "c", "port": 82}]}));
    assert_eq!(texts(&converted), [issue]);
    let service = converted.value.unwrap();
    assert_eq!(service.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80, 82]);
}

#[test]
fn a_bad_node_port_leaves_the_port() {
    let converted = with_spec(json!({"ports": [{"port": 80, "nodePort": 70000}]}));
    assert_eq!(texts(&converted), ["spec.ports[0].nodePort: 70000 is not a port; ports are 1 to 65535"]);
    assert_eq!(converted.value.unwrap().ports[0].node_port, 0);
}

#[rstest]
#[case::long_name(json!({"name": "a".repeat(64)}), "metadata.name")]
#[case::dotted_name(json!({"name": "a.b"}), "metadata.name")]
#[case::no_name(json!({"name": null}), "metadata.name")]
#[case::quote_in_namespace(json!({"namespace": "a\"b"}), "metadata.namespace")]
#[case::no_namespace(json!({"namespace": ""}), "metadata.namespace")]
fn a_name_out_of_bounds_refuses_the_service(#[case] metadata: Value, #[case] field: &str) {
    let converted = with_object(metadata, json!({}), json!({}));
    assert_eq!(converted.value, None);
    assert_eq!(converted.issues.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(), [field]);
}

#[test]
fn a_port_name_out_of_bounds_refuses_the_service() {
    let converted = with_spec(json!({"ports": [{"name": "no\"quotes", "port": 80}]}));
    assert_eq!(converted.value, None);
    assert_eq!(converted.issues[0].field, "spec.ports[0].name");
}

#[test]
fn external_ips_are_those_of_the_services_families() {
    let ips = json!({"externalIPs": ["203.0.113.007", "2001:db8::7", "", " ", "203.0.113.300"]});
    let single = with_spec(ips.clone());
    assert_eq!(
        texts(&single),
        [
            "spec.externalIPs[1]: 2001:db8::7 is an IPv6 address; the Service has none",
            r#"spec.externalIPs[4]: "203.0.113.300" is not an IP address"#,
        ]
    );
    assert_eq!(
        single.issues.iter().map(|i| i.severity).collect::<Vec<_>>(),
        [IssueSeverity::Warning, IssueSeverity::Error]
    );
    assert_eq!(strings(&single.value.unwrap().external.unwrap().external_ips), ["203.0.113.7"]);

    let both = with_spec(merged(dual(), &ips)).value.unwrap();
    assert_eq!(strings(&both.external.unwrap().external_ips), ["203.0.113.7", "2001:db8::7"]);
}

#[test]
fn load_balancer_ips_are_virtual_and_of_the_services_families() {
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.02", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"}, {"ip": ""}, {"ip": "2001:db8::9"}, {"ip": "x"},
        {"ip": "203.0.113.4", "ipMode": "vip"},
    ]}});
    let converted = with_object(json!({}), json!({"type": "LoadBalancer"}), status);
    assert_eq!(
        texts(&converted),
        [
            "status.loadBalancer.ingress[5].ip: 2001:db8::9 is an IPv6 address; the Service has none",
            r#"status.loadBalancer.ingress[6].ip: "x" is not an IP address"#,
            r#"status.loadBalancer.ingress[7].ipMode: "vip" is neither VIP nor Proxy"#,
        ]
    );
    let external = converted.value.unwrap().external.unwrap();
    assert_eq!(strings(&external.load_balancer_ips), ["203.0.113.1", "203.0.113.2"]);
}

#[test]
fn source_ranges_are_trimmed_and_masked_and_keep_both_families() {
    let external = external_of(with_spec(json!({"loadBalancerSourceRanges":
        [" 203.0.113.000/025\n", "\t2001:db8::1/32 ", "0.0.0.0/0"]})));
    assert_eq!(strings(&external.source_ranges), ["203.0.113.0/25", "2001:db8::/32", "0.0.0.0/0"]);
}

#[test]
fn a_bad_source_range_is_skipped_by_name() {
    let converted = with_spec(json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0"]}));
    assert_eq!(
        texts(&converted),
        [r#"spec.loadBalancerSourceRanges[1]: "10.0.0.0" is not a network in CIDR form"#]
    );
    assert_eq!(converted.value.unwrap().external.unwrap().source_ranges.len(), 1);
}

#[rstest]
#[case::absent(json!({}), None)]
#[case::none(json!({"sessionAffinity": "None"}), None)]
#[case::default_timeout(json!({"sessionAffinity": "ClientIP"}), Some(10_800))]
#[case::own_timeout(
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_400}}}),
    Some(86_400))]
#[case::unused_timeout(
    json!({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}), None)]
fn session_affinity_has_a_timeout(#[case] spec: Value, #[case] wanted: Option<u32>) {
    assert_eq!(clean(with_spec(spec)).affinity_seconds, wanted);
}

#[rstest]
#[case(0)]
#[case(-1)]
#[case(86_401)]
fn a_timeout_out_of_bounds_becomes_the_default(#[case] seconds: i64) {
    let converted = with_spec(json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}));
    let issue =
        format!("spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not from 1 to 86400");
    assert_eq!(texts(&converted), [issue]);
    assert_eq!(converted.value.unwrap().affinity_seconds, Some(10_800));
}

#[rstest]
#[case("internalTrafficPolicy", r#"spec.internalTrafficPolicy: "local" is neither Cluster nor Local"#)]
#[case("externalTrafficPolicy", r#"spec.externalTrafficPolicy: "local" is neither Cluster nor Local"#)]
#[case("sessionAffinity", r#"spec.sessionAffinity: "local" is neither None nor ClientIP"#)]
#[case("type", r#"spec.type: "local" is not a type of Service"#)]
fn a_word_that_is_none_of_the_choices_is_as_good_as_absent(#[case] field: &str, #[case] issue: &str) {
    let mut spec = json!({"type": "NodePort"});
    spec[field] = "local".into();
    let converted = with_spec(spec);
    assert_eq!(texts(&converted), [issue]);
    let service = converted.value.unwrap();
    assert_eq!((service.internal_traffic_policy, service.external), (TrafficPolicy::Cluster, None));
}

#[test]
fn the_internal_policy_applies_to_every_type() {
    for service_type in ["ClusterIP", "NodePort", "LoadBalancer"] {
        let service = clean(with_spec(json!({"type": service_type, "internalTrafficPolicy": "Local"})));
        assert_eq!(service.internal_traffic_policy, TrafficPolicy::Local);
    }
}

#[rstest]
#[case::cluster_ip(json!({"type": "ClusterIP"}), TrafficPolicy::Cluster)]
#[case::no_type(json!({"type": null}), TrafficPolicy::Cluster)]
#[case::cluster_ip_with_external_ips(
    json!({"type": "ClusterIP", "externalIPs": ["203.0.113.1"]}), TrafficPolicy::Local)]
#[case::no_type_with_external_ips(json!({"type": null, "externalIPs": ["203.0.113.1"]}), TrafficPolicy::Local)]
#[case::node_port(json!({"type": "NodePort"}), TrafficPolicy::Local)]
#[case::load_balancer(json!({"type": "LoadBalancer", "healthCheckNodePort": 31000}), TrafficPolicy::Local)]
fn the_external_policy_applies_only_where_external_traffic_can_come(
    #[case] spec: Value,
    #[case] wanted: TrafficPolicy,
) {
    let service = clean(with_spec(merged(spec, &json!({"externalTrafficPolicy": "Local"}))));
    assert_eq!(service.external.map(|e| e.traffic_policy).unwrap_or_default(), wanted);
}

#[rstest]
#[case::load_balancer_local("LoadBalancer", "Local", 31000)]
#[case::load_balancer_cluster("LoadBalancer", "Cluster", 0)]
#[case::node_port_local("NodePort", "Local", 0)]
#[case::cluster_ip_local("ClusterIP", "Local", 0)]
fn the_health_check_port_is_for_local_load_balancers_only(
    #[case] service_type: &str,
    #[case] policy: &str,
    #[case] wanted: u16,
) {
    let spec = json!({"type": service_type, "externalTrafficPolicy": policy, "healthCheckNodePort": 31000});
    let service = clean(with_spec(spec));
    assert_eq!(service.external.map_or(0, |e| e.health_check_node_port), wanted);
}

#[rstest]
#[case(json!(0), IssueSeverity::Warning)]
#[case(json!(null), IssueSeverity::Warning)]
#[case(json!(70_000), IssueSeverity::Error)]
fn a_missing_health_check_port_is_told_and_means_no_health_server(
    #[case] port: Value,
    #[case] severity: IssueSeverity,
) {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port});
    let converted = with_spec(spec);
    assert_eq!(converted.issues.len(), 1);
    assert_eq!(converted.issues[0].field, "spec.healthCheckNodePort");
    assert_eq!(converted.issues[0].severity, severity);
    assert_eq!(converted.value.unwrap().external.unwrap().health_check_node_port, 0);
}

#[test]
fn fields_that_no_proxy_acts_on_do_not_show() {
    let plain = clean(with_spec(json!({})));
    let same = clean(with_object(
        json!({"labels": {"a": "b"}, "annotations": {"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8"}}),
        json!({"selector": {"app": "web"}, "loadBalancerIP": "203.0.113.9", "publishNotReadyAddresses": true,
               "trafficDistribution": "PreferClose", "allocateLoadBalancerNodePorts": false}),
        json!({"conditions": []}),
    ));
    assert_eq!(plain, same);
}

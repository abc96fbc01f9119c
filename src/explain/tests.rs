//! Broken set-ups, each with the cause that must be named.

use super::*;
use crate::backend::{Difference, ForeignEffect};
use crate::model::{ApiConnection, IpFamily, NodeFacts, ServiceName, Verdict, WatchEvent, WatchState};
use crate::plan::{FamilySettings, Plan, Scope};
use crate::state::Tracker;
use crate::watch::convert;
use rstest::rstest;
use serde_json::{Value, json};

const NODE: &str = "node-0";

/// A Service with one port, as the API has it.
fn service(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

fn slice(endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn endpoint(last: u8, node: &str) -> Value {
    json!({"addresses": [format!("10.128.0.{last}")], "nodeName": node, "conditions": {"ready": true}})
}

fn unready(last: u8) -> Value {
    json!({"addresses": [format!("10.128.0.{last}")], "conditions": {"ready": false, "serving": false}})
}

fn hinted(last: u8, zone: &str) -> Value {
    let mut endpoint = endpoint(last, "node-9");
    endpoint["hints"] = json!({"forZones": [{"name": zone}]});
    endpoint
}

/// What the plan makes of `shop/web` among these objects.
fn view(objects: &[Value]) -> Option<ServiceView> {
    let node = NodeFacts { name: NODE.into(), zone: Some("zone-a".into()), ..NodeFacts::default() };
    let mut tracker = Tracker::new(node, 0);
    for object in objects.iter().cloned() {
        let event = if object["kind"] == "Service" {
            let converted = convert::service(&serde_json::from_value(object).unwrap());
            converted.value.map(|service| WatchEvent::Service(Box::new(service)))
        } else {
            let converted = convert::endpoint_slice(&serde_json::from_value(object).unwrap(), NODE);
            converted.value.map(|slice| WatchEvent::Slice(Box::new(slice)))
        };
        event.into_iter().for_each(|event| tracker.fold(event));
    }
    let settings = FamilySettings::new(IpFamily::V4);
    let plan = Plan::new(&settings, tracker.snapshot(), Scope::All);
    let family = FamilyView::of(&plan, &ServiceName::new("shop", "web"))?;
    Some(ServiceView {
        service: "shop/web".to_owned(),
        node: NODE.to_owned(),
        families: vec![family],
        ..ServiceView::default()
    })
}

fn report(objects: &[Value], node: NodeState) -> Report {
    Report::new("shop/web".to_owned(), view(objects), node)
}

fn codes(report: &Report) -> Vec<Code> {
    report.findings.iter().map(|finding| finding.code).collect()
}

/// A Service that works.
fn sound() -> Vec<Value> {
    vec![service(&json!({})), slice(&[endpoint(5, NODE), endpoint(6, "node-1")])]
}

#[test]
fn nothing_is_said_of_a_service_that_works() {
    let report = report(&sound(), NodeState::default());
    assert_eq!((codes(&report), report.exit_status()), (vec![], 0));
    assert!(report.to_string().contains("Nothing is wrong"), "{report}");
}

#[rstest]
#[case::no_endpoints(&[service(&json!({}))], Code::NoEndpoints)]
#[case::none_ready(&[service(&json!({})), slice(&[unready(5), unready(6)])], Code::NoneReady)]
#[case::all_in_another_zone(&[service(&json!({})), slice(&[hinted(5, "zone-b"), hinted(6, "zone-b")])], Code::AllInOtherZones)]
#[case::internal_local_policy(&[service(&json!({"internalTrafficPolicy": "Local"})), slice(&[endpoint(6, "node-1")])], Code::NoLocalEndpointsInternal)]
#[case::external_local_policy(&[service(&json!({
    "type": "NodePort", "externalTrafficPolicy": "Local",
    "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
})), slice(&[endpoint(6, "node-1")])], Code::NoLocalEndpointsExternal)]
#[case::port_of_another_name(&[service(&json!({"ports": [{"name": "https", "port": 443, "protocol": "TCP"}]})), slice(&[endpoint(5, NODE)])], Code::PortMissingInSlice)]
#[case::port_of_another_protocol(&[service(&json!({"ports": [{"name": "http", "port": 80, "protocol": "UDP"}]})), slice(&[endpoint(5, NODE)])], Code::PortMissingInSlice)]
fn what_is_wrong_with_the_objects_is_named(#[case] objects: &[Value], #[case] cause: Code) {
    let report = report(objects, NodeState::default());
    assert_eq!(codes(&report), [cause]);
    assert_eq!(report.exit_status(), 0, "the kernel is as it should be");
}

#[test]
fn what_is_refused_before_the_kernel_is_asked_is_named() {
    let mut view = view(&sound()).unwrap();
    let ip = |last, contest, refused| ContestedIp {
        address: [198, 51, 100, last].into(),
        contest,
        refused,
        owner: None,
        complaint: format!("spec.externalIPs: 198.51.100.{last} is another's"),
    };
    view.contested_ips = vec![
        ip(1, Contest::Foreign, true),
        ip(2, Contest::Foreign, false),
        ip(3, Contest::ApiServer, true),
        ip(4, Contest::Taken, true),
    ];
    view.refused_endpoints = 3;
    view.too_large = vec!["3 ports".to_owned()];
    let port = |node_port, contest| ContestedPort {
        node_port,
        protocol: "tcp".to_owned(),
        contest,
        owner: None,
        complaint: format!("spec.healthCheckNodePort: {node_port}/tcp is another's"),
    };
    view.contested_ports = vec![port(30080, Contest::Taken), port(6443, Contest::ApiServer)];
    let report = Report::new("shop/web".to_owned(), Some(view), NodeState::default());
    let wanted = [
        Code::ExternalIpRefused,
        Code::ApiServerAddress,
        Code::AddressTaken,
        Code::NodePortTaken,
        Code::ApiServerAddress,
        Code::ServiceTooLarge,
        Code::EndpointsRefused,
        Code::ExternalIpContested,
    ];
    assert_eq!(codes(&report), wanted);
    let text = report.to_string();
    assert!(text.contains("198.51.100.1 is") && text.contains("198.51.100.2 is"), "{text}");
    assert!(text.contains("3 endpoints are not used") && text.contains("30080/tcp"), "{text}");
}

#[test]
fn endpoints_of_a_family_that_the_service_lacks_are_named() {
    let mut other = slice(&[json!({"addresses": ["fd00:128::5"], "conditions": {"ready": true}})]);
    other["addressType"] = json!("IPv6");
    assert_eq!(codes(&report(&[service(&json!({})), other], NodeState::default())), [Code::WrongFamily]);
}

#[test]
fn a_node_port_outside_the_range_is_named() {
    let spec = json!({
        "type": "NodePort", "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 8080}],
    });
    let node = NodeState { node_port_range: Some((30000, 32767)), ..NodeState::default() };
    assert_eq!(
        codes(&report(&[service(&spec), slice(&[endpoint(5, NODE)])], node)),
        [Code::NodePortOutsideRange]
    );
}

fn api(kind: Option<Kind>, unlabelled: &[&str]) -> NodeState {
    let unlabelled_slices = unlabelled.iter().map(|name| (*name).to_owned()).collect();
    NodeState {
        api: Some(ApiFacts { kind, unlabelled_slices, ..ApiFacts::default() }),
        ..NodeState::default()
    }
}

#[rstest]
#[case::headless(api(Some(Kind::Headless), &[]), Code::Headless, 0)]
#[case::external_name(api(Some(Kind::ExternalName), &[]), Code::ExternalName, 0)]
#[case::other_proxy(api(Some(Kind::OtherProxy("mesh".into())), &[]), Code::OtherProxy, 0)]
#[case::no_cluster_ip(api(Some(Kind::NoClusterIp), &[]), Code::NoClusterIp, 0)]
#[case::not_seen_yet(api(Some(Kind::Ordinary), &[]), Code::NotSeenYet, 1)]
#[case::unknown_to_the_api(api(None, &[]), Code::UnknownService, 2)]
#[case::unknown_to_the_proxy(NodeState::default(), Code::UnknownService, 2)]
fn why_a_service_is_not_served_is_named(#[case] node: NodeState, #[case] cause: Code, #[case] status: u8) {
    let report = report(&[], node);
    assert_eq!((codes(&report), report.exit_status()), (vec![cause], status));
}

#[test]
fn a_slice_without_the_service_label_is_named_beside_its_effect() {
    let report = report(&[service(&json!({}))], api(Some(Kind::Ordinary), &["shop/web-1"]));
    assert_eq!(codes(&report), [Code::SliceWithoutLabel, Code::NoEndpoints]);
}

fn kernel(change: impl FnOnce(&mut FamilyFacts)) -> NodeState {
    let mut facts = FamilyFacts { family: "IPv4".to_owned(), ..FamilyFacts::default() };
    change(&mut facts);
    NodeState { families: vec![facts], ..NodeState::default() }
}

fn difference(is_gone: bool, missing: &[&str], surplus: &[&str]) -> Difference {
    let lines = |all: &[&str]| all.iter().map(|line| (*line).to_owned()).collect();
    Difference {
        object: "nat KUBE-SVC-X".to_owned(),
        is_gone,
        missing: lines(missing),
        surplus: lines(surplus),
    }
}

fn obstacle(effect: ForeignEffect, is_certain: bool, local: Option<&str>) -> Obstacle {
    let local = local.map(|ip| ip.parse().unwrap());
    Obstacle {
        rule: "filter FORWARD: -j DROP".to_owned(),
        effect,
        is_certain,
        clients: "pods and other hosts".to_owned(),
        by_answers: false,
        is_by_server: false,
        local,
        at: ["10.128.0.5:8080".parse().unwrap()].into(),
        of_endpoints: Some(2),
        services: Vec::new(),
    }
}

#[test]
fn a_rule_that_only_may_be_in_the_way_is_a_note() {
    for effect in
        [ForeignEffect::Drops, ForeignEffect::Redirects, ForeignEffect::Bypasses, ForeignEffect::Untracks]
    {
        for (is_certain, local, wanted) in [
            (true, None, Severity::Broken),
            (false, None, Severity::Note),
            (true, Some("10.96.0.10"), Severity::Note),
        ] {
            let report =
                report(&sound(), kernel(|it| it.obstacles.push(obstacle(effect, is_certain, local))));
            let severities: Vec<Severity> = report.findings.iter().map(|it| it.severity).collect();
            assert_eq!(severities, [wanted], "{effect:?} {is_certain} {local:?}");
        }
    }
}

#[rstest]
#[case::rule_deleted(kernel(|it| it.differences.push(difference(false, &["-j A"], &[]))), Code::KernelObjectMissing)]
#[case::chain_deleted(kernel(|it| it.differences.push(difference(true, &[], &[]))), Code::KernelObjectMissing)]
#[case::stale(kernel(|it| it.differences.push(difference(false, &[], &["-j OLD"]))), Code::KernelStateStale)]
#[case::foreign_drop(kernel(|it| it.obstacles.push(obstacle(ForeignEffect::Drops, true, None))), Code::ForeignDropRule)]
#[case::forwarding_off(kernel(|it| it.forwards = Some(false)), Code::ForwardingOff)]
#[case::masquerading_off(kernel(|it| it.untracked_by = Some("net.ipv4.vs.conntrack".to_owned())), Code::MasqueradingOff)]
#[case::conntrack_full(NodeState { tracking: Some(Tracking { count: 99, max: 100 }), ..NodeState::default() }, Code::ConntrackFull)]
fn a_kernel_that_is_not_as_it_should_be_is_named(#[case] node: NodeState, #[case] cause: Code) {
    let report = report(&sound(), node);
    assert_eq!((codes(&report), report.exit_status()), (vec![cause], 1));
}

#[test]
fn what_is_not_looked_at_is_said() {
    let report = report(&sound(), kernel(|it| it.unseen_tables = vec!["inet firewalld".to_owned()]));
    assert_eq!((codes(&report), report.exit_status()), (vec![Code::ForeignNftTable], 0));
    assert!(!report.to_string().contains("Nothing is wrong"), "{report}");
}

#[test]
fn an_interface_that_does_not_forward_matters_where_the_node_forwards() {
    let still = |forwards| {
        kernel(|it| {
            it.forwards = Some(forwards);
            it.still = vec!["cni0".to_owned()];
        })
    };
    let report = [true, false].map(|forwards| report(&sound(), still(forwards)));
    for (report, text) in report.iter().zip(["cni0: the interface does not", "the node does not forward"]) {
        assert_eq!((codes(report), report.exit_status()), (vec![Code::ForwardingOff], 1));
        assert!(report.findings[0].message.starts_with(text), "{report}");
    }
}

#[test]
fn what_has_no_route_is_named_as_far_as_one_can_read() {
    let unrouted = |is_endpoint, last: u8| Unrouted {
        reason: "no route",
        is_endpoint,
        at: (1..=last).map(|it| ([10, 128, 1, it], 80).into()).collect(),
        services: ["shop/web".to_owned()].into(),
    };
    let node = kernel(|it| it.unrouted = vec![unrouted(true, 5), unrouted(false, 1)]);
    let report = report(&sound(), node);
    assert_eq!((codes(&report), report.exit_status()), (vec![Code::NoRoute, Code::NoRoute], 0));
    let messages = report.findings.iter().map(|it| it.message.as_str()).collect::<Vec<_>>();
    assert!(messages[0].ends_with("10.128.1.1:80, 10.128.1.2:80, 10.128.1.3:80 and 2 more"), "{messages:?}");
    assert!(messages[1].contains("to 10.128.1.1:80: the node itself cannot connect"), "{messages:?}");
}

#[test]
fn a_kernel_that_cannot_be_read_is_neither_right_nor_wrong() {
    let report = report(&sound(), kernel(|it| it.unreadable = Some("no permission".to_owned())));
    assert_eq!((codes(&report), report.exit_status()), (vec![Code::KernelUnreadable], 3));
    assert!(report.to_string().contains("Kernel  UNKNOWN"), "{report}");
}

#[test]
fn a_name_that_is_like_others_brings_them_up() {
    let node = NodeState { similar: vec!["shop/web".to_owned()], ..NodeState::default() };
    let report = report(&[], node);
    assert!(report.to_string().contains("Did you mean shop/web? "), "{report}");
}

#[test]
fn a_table_with_room_and_a_forwarding_node_are_nothing_to_report() {
    let mut node = kernel(|it| it.forwards = Some(true));
    node.tracking = Some(Tracking { count: 10, max: 100 });
    assert_eq!(codes(&report(&sound(), node)), []);
}

#[test]
fn a_refused_service_is_named_and_its_missing_rules_are_not_held_against_the_kernel_twice() {
    let mut view = view(&sound()).unwrap();
    view.families[0].refused = Some("line 7: bad argument".to_owned());
    let node = kernel(|it| it.differences.push(difference(true, &[], &[])));
    let report = Report::new("shop/web".to_owned(), Some(view), node);
    assert_eq!((codes(&report), report.exit_status()), (vec![Code::RefusedByKernel], 1));
}

#[test]
fn a_wrong_target_port_is_named_by_who_refuses() {
    let refusing = vec!["10.128.0.5:8080".parse().unwrap()];
    let report = report(&sound(), NodeState { refusing, ..NodeState::default() });
    assert_eq!(codes(&report), [Code::NothingListens]);
}

#[test]
fn a_client_outside_the_source_ranges_is_named() {
    let excluded_client = Some(("192.0.2.7".to_owned(), vec!["198.51.100.0/24".to_owned()]));
    let report = report(&sound(), NodeState { excluded_client, ..NodeState::default() });
    assert_eq!(codes(&report), [Code::ClientOutsideSourceRanges]);
}

fn traced(to: &str, verdict: Verdict) -> NodeState {
    let decision = Decision {
        to: to.parse().unwrap(),
        protocol: "tcp".to_owned(),
        verdict,
        endpoint: None,
        masqueraded: false,
        percent: 100.0,
        decided_by: (verdict != Verdict::Untouched).then(|| "filter FORWARD: -j DROP".to_owned()),
        rules: Vec::new(),
        may: Vec::new(),
    };
    NodeState { decisions: vec![decision], ..NodeState::default() }
}

#[rstest]
#[case::to_a_frontend("10.96.0.10:80", Verdict::Untouched, &[Code::TraceUntaken])]
#[case::to_another_port("10.96.0.10:81", Verdict::Untouched, &[Code::NoFrontend])]
#[case::dropped("10.96.0.10:80", Verdict::Dropped, &[Code::TraceStopped])]
#[case::served("10.96.0.10:80", Verdict::Served(()), &[])]
fn a_trace_that_ends_elsewhere_is_not_nothing(
    #[case] to: &str,
    #[case] verdict: Verdict,
    #[case] wanted: &[Code],
) {
    let report = report(&sound(), traced(to, verdict));
    assert_eq!(codes(&report), wanted);
    assert_eq!(report.to_string().contains("Nothing is wrong"), wanted.is_empty());
}

#[test]
fn a_trace_that_another_program_may_end_says_so_and_one_that_it_ends_quotes_the_rule() {
    let mut node = traced("10.96.0.10:80", Verdict::Served(()));
    node.decisions[0].may =
        vec!["filter FORWARD > guard: -m mark --mark 0x1 -j DROP: this may drop it".to_owned()];
    let text = report(&sound(), node).to_string();
    assert!(text.contains("unless a rule marked with ? decides otherwise"), "{text}");
    assert!(text.contains("? filter FORWARD > guard: -m mark"), "{text}");

    let mut node = traced("10.96.0.10:80", Verdict::Untouched);
    node.decisions[0].decided_by = Some("raw PREROUTING: -j NOTRACK".to_owned());
    let report = report(&sound(), node);
    assert_eq!(codes(&report), [Code::TraceStopped]);
    assert!(
        report.to_string().contains("a rule of another program keeps it from the Service's rules"),
        "{report}"
    );
}

#[test]
fn a_foreign_rule_names_the_endpoints_and_the_clients_that_it_concerns() {
    let report = report(&sound(), kernel(|it| it.obstacles.push(obstacle(ForeignEffect::Drops, true, None))));
    let wanted = "filter FORWARD: -j DROP: this stops IPv4 packets from pods and other hosts to 1 of 2 endpoints (10.128.0.5:8080)";
    assert_eq!(report.findings[0].message, wanted);
}

#[test]
fn repeated_drift_is_a_finding_as_long_as_the_proxy_remembers_it() {
    let family =
        ProxyFamily { repeated_drift: Some("other programs have changed our rules 143 times".to_owned()) };
    let families = [("IPv4".to_owned(), family)].into();
    let proxy = Some(ProxyState { healthy: true, families, ..ProxyState::default() });
    let report = report(&sound(), NodeState { proxy, ..NodeState::default() });
    assert_eq!((codes(&report), report.exit_status()), (vec![Code::RepeatedDrift], 0));
    assert!(report.to_string().contains("IPv4: other programs have changed our rules 143 times"), "{report}");
}

#[test]
fn the_weight_of_an_endpoint_is_the_kernels_or_its_part_of_new_connections() {
    let mut all = report(&sound(), NodeState::default());
    let used =
        all.plan.as_ref().unwrap().families[0].ports[0].endpoints.iter().filter(|it| it.is_used()).count();
    assert!(Wide(&all).to_string().contains(&format!("1/{used}")), "{}", Wide(&all));
    let endpoint = all.plan.as_ref().unwrap().families[0].ports[0].endpoints[0].address().unwrap();
    all.weights.insert(endpoint, 37);
    assert!(Wide(&all).to_string().contains(" 37 "), "{}", Wide(&all));
}

#[test]
fn a_client_of_the_other_family_gets_an_answer() {
    let node = NodeState { other_family: Some("IPv6".to_owned()), ..NodeState::default() };
    assert_eq!(codes(&report(&sound(), node)), [Code::ClientOfOtherFamily]);
}

#[test]
fn flows_are_counted_by_port_and_protocol() {
    let by_endpoint = |count| [("10.128.0.5:8080".parse().unwrap(), count)].into();
    let port = |protocol: &str, count| PortFlows {
        family: "IPv4".to_owned(),
        port: "http".to_owned(),
        protocol: protocol.to_owned(),
        by_endpoint: by_endpoint(count),
    };
    let flows = Flows { ports: vec![port("udp", 7), port("tcp", 2)], is_cut: false };
    let report = report(&sound(), NodeState { flows: Some(flows), ..NodeState::default() });
    let text = report.to_string();
    assert!(
        text.contains("10.128.0.5:8080") && text.contains("  2 flows") && !text.contains("7 flows"),
        "{text}"
    );
}

fn told_by(api: ApiConnection) -> NodeState {
    let proxy = ProxyState { healthy: api.connected, api: Some(api), ..ProxyState::default() };
    NodeState { proxy: Some(proxy), ..NodeState::default() }
}

/// Such as one whose rules another program deletes, found between two deletions.
#[test]
fn nothing_found_is_not_said_to_be_all_while_the_proxy_is_degraded() {
    let proxy = ProxyState { healthy: false, ..ProxyState::default() };
    let text = report(&sound(), NodeState { proxy: Some(proxy), ..NodeState::default() }).to_string();
    assert!(text.contains("but the proxy is degraded: kube-proxy-rs status"), "{text}");
    assert!(!text.contains("Nothing is wrong"), "{text}");
}

#[test]
fn an_answer_out_of_an_old_picture_says_how_old_it_is() {
    let watch = |connected| WatchState {
        resource: "services".to_owned(),
        connected,
        last_error: Some("connection refused".to_owned()),
        ..WatchState::default()
    };
    let api = |connected, age_seconds| ApiConnection {
        server: "https://192.0.2.1/".to_owned(),
        connected,
        age_seconds,
        listed: true,
        watches: vec![watch(connected)],
    };
    let lost = report(&sound(), told_by(api(false, 44.6)));
    assert_eq!(codes(&lost), [Code::StalePicture]);
    let text = lost.to_string();
    assert!(text.contains("Objects 45 s old\n") && text.contains("connection refused"), "{text}");
    assert!(!text.contains("Nothing is wrong"), "{text}");
    assert_eq!(codes(&report(&sound(), told_by(api(true, 0.0)))), []);
}

#[test]
fn a_row_counts_endpoints_in_use_and_says_why_others_are_not() {
    let objects = [service(&json!({})), slice(&[endpoint(5, NODE), unready(6), unready(7)])];
    let row = Row::of(&view(&objects).unwrap());
    assert_eq!((row.used, row.unused, row.state.as_str()), (1, 2, "serving"));
    assert_eq!(row.reasons, [("not ready".to_owned(), 2)].into());
    assert_eq!(
        table(&[row], Columns { wide: true, headers: true }),
        "NAMESPACE   NAME   FRONTENDS           USED   STATE     DRAINING   NOT USED\n\
         shop        web    10.96.0.10:80/tcp   1/3    serving   0          2 not ready\n"
    );
}

#[test]
fn a_row_has_the_problems_that_its_service_has_without_the_kernel() {
    let row = Row::of(&view(&[service(&json!({}))]).unwrap());
    assert_eq!(row.problems.iter().map(|it| it.code).collect::<Vec<_>>(), [Code::NoEndpoints]);
    let text = problem_table(&[row], false);
    assert!(
        text.starts_with("shop        web    no-endpoints   port http (tcp): no IPv4 endpoints"),
        "{text}"
    );
    assert_eq!(Row::of(&view(&sound()).unwrap()).problems, []);
}

#[test]
fn what_is_sent_to_the_asker_reads_back() {
    let sent = view(&sound()).unwrap();
    let text = serde_json::to_string(&sent).unwrap();
    assert_eq!(serde_json::from_str::<ServiceView>(&text).unwrap(), sent);
}

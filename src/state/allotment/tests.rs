//! Who has what: by a tracker that is told of Services, slices, our Node and the API server.

use super::*;
use crate::model::{
    Cidr, EndpointFacts, External, PerFamily, ServicePort, SliceEndpoint, SlicePort, WatchEvent,
};
use crate::state::{Disputes, Tracker};
use rstest::rstest;
use std::sync::Arc;

use FrontendKind::{ClusterIp, ExternalIp, HealthCheckNodePort, LoadBalancerIp, NodePort};

/// A Service of these tests: `namespace/name`, created at a time, with a cluster IP of its own and port 80.
#[derive(Clone)]
struct Asking {
    service: Service,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn named(name: &str) -> ServiceName {
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    ServiceName::new(namespace, name)
}

impl Asking {
    fn new(name: &str, created: i64) -> Asking {
        let last = name.bytes().fold(0_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let [high, low] = last.to_be_bytes();
        let service = Service {
            name: named(name),
            created: Some(created),
            cluster_ips: PerFamily { v4: Some([172, 30, high, low].into()), v6: None },
            internal_traffic_policy: Default::default(),
            affinity_seconds: None,
            ipvs_scheduler: None,
            ports: [port(80, Protocol::Tcp, 0)].into(),
            external: None,
        };
        Asking { service }
    }

    fn cluster_ip(mut self, text: &str) -> Self {
        self.service.cluster_ips.v4 = Some(ip(text));
        self
    }

    fn ports(mut self, ports: &[ServicePort]) -> Self {
        self.service.ports = ports.into();
        self
    }

    fn change(mut self, change: impl FnOnce(&mut External)) -> Self {
        change(self.service.external.get_or_insert_default());
        self
    }

    fn external_ips(self, ips: &[&str]) -> Self {
        self.change(|it| it.external_ips = ips.iter().map(|text| ip(text)).collect())
    }

    fn balancers(self, ips: &[&str]) -> Self {
        self.change(|it| it.load_balancer_ips = ips.iter().map(|text| ip(text)).collect())
    }

    fn health_check(self, port: u16) -> Self {
        self.change(|it| it.health_check_node_port = port)
    }

    fn event(self) -> WatchEvent {
        WatchEvent::Service(Box::new(self.service))
    }
}

fn port(port: u16, protocol: Protocol, node_port: u16) -> ServicePort {
    ServicePort { name: format!("{port}{protocol}").into(), protocol, port, node_port }
}

fn tcp(node_port: u16) -> ServicePort {
    port(80, Protocol::Tcp, node_port)
}

fn gone(name: &str) -> WatchEvent {
    WatchEvent::ServiceGone(named(name))
}

fn slice(service: &str, port: u16, addresses: &[&str]) -> WatchEvent {
    let endpoint = |text: &&str| SliceEndpoint {
        address: ip(text),
        facts: EndpointFacts::new(true, true, false, false),
        hints: 0,
    };
    WatchEvent::Slice(Box::new(EndpointSlice {
        name: named(service).as_str().into(),
        service: named(service),
        family: IpFamily::V4,
        ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port }].into(),
        endpoints: addresses.iter().map(endpoint).collect(),
        hints: [].into(),
        refused: 0,
        triggered: None,
    }))
}

fn node(address: &str) -> WatchEvent {
    WatchEvent::Node(Arc::new(NodeFacts {
        addresses: [ip(address)].into(),
        pod_cidrs: ["10.128.1.0/24".parse().unwrap()].into(),
        ..NodeFacts::default()
    }))
}

fn api_server(at: &str, is_own: bool) -> WatchEvent {
    WatchEvent::ApiServer([ApiServerAddress { at: at.parse().unwrap(), is_own }].into())
}

fn reserved(strict: bool) -> Reserved {
    let cidrs = |text: &str| -> Vec<Cidr> { vec![text.parse().unwrap()] };
    Reserved {
        node_addresses: vec![ip("192.0.2.99")],
        node_cidrs: cidrs("192.0.2.0/25"),
        pod_cidrs: cidrs("10.128.0.0/16"),
        service_cidrs: cidrs("10.96.0.0/16"),
        strict,
        ..Reserved::default()
    }
}

fn tracker(strict: bool) -> Tracker {
    let mut tracker = Tracker::default().reserving(reserved(strict));
    tracker.fold(node("192.0.2.1"));
    tracker
}

/// What follows from events: the Services that are to be looked at, and what is newly said.
#[derive(Debug)]
struct Outcome {
    services: BTreeSet<ServiceName>,
    claims: Vec<ReservedClaim>,
    conflicts: Vec<FrontendConflict>,
}

fn fold(tracker: &mut Tracker, events: impl IntoIterator<Item = WatchEvent>) -> Outcome {
    events.into_iter().for_each(|event| tracker.fold(event));
    let Disputes { claims, conflicts, .. } = tracker.take_disputes();
    Outcome { services: tracker.take_changes(IpFamily::V4).services, claims, conflicts }
}

/// What is newly said, in words.
fn told(changes: &Outcome) -> Vec<String> {
    let claims = changes.claims.iter().map(ToString::to_string);
    claims.chain(changes.conflicts.iter().map(ToString::to_string)).collect()
}

fn names(changes: &Outcome) -> Vec<&str> {
    changes.services.iter().map(ServiceName::as_str).collect()
}

fn refused(tracker: &Tracker, name: &str) -> Vec<(FrontendKind, String, usize)> {
    let all = tracker.snapshot().services[&named(name)].refused.iter();
    all.map(|it| (it.kind, it.address.map(|ip| ip.to_string()).unwrap_or_default(), it.port)).collect()
}

fn lacks(tracker: &Tracker, name: &str) -> Vec<FrontendKind> {
    refused(tracker, name).into_iter().map(|(kind, ..)| kind).collect()
}

#[rstest]
#[case("127.0.0.2", Some("a loopback address"))]
#[case("::1", Some("a loopback address"))]
#[case("0.0.0.0", Some("in 0.0.0.0/8, which stands for no host"))]
#[case("0.1.2.3", Some("in 0.0.0.0/8, which stands for no host"))]
#[case("::", Some("the unspecified address"))]
#[case("169.254.169.254", Some("a link-local address"))]
#[case("fe80::1", Some("a link-local address"))]
#[case("224.0.0.1", Some("a multicast address"))]
#[case("239.255.0.1", Some("a multicast address"))]
#[case("ff02::1", Some("a multicast address"))]
#[case("240.0.0.1", Some("in 240.0.0.0/4, which is reserved"))]
#[case("255.255.255.255", Some("the broadcast address"))]
#[case("192.0.2.1", Some("this node's own address"))]
#[case("192.0.2.99", Some("this node's own address"))]
#[case("10.96.0.1", Some("a Service's cluster IP"))]
#[case("10.200.0.1", Some("the address of an endpoint of Service default/kubernetes"))]
#[case("10.200.0.7", Some("the address of an endpoint of Service other/web"))]
#[case("10.200.0.8", None)]
#[case("10.96.7.7", Some("within the Service network"))]
#[case("10.128.9.9", Some("within the pod network"))]
#[case("10.128.1.9", Some("within the pod network"))]
#[case("192.0.2.2", Some("within the nodes' network"))]
#[case("198.51.100.1", None)]
fn an_external_address_that_is_somebody_elses_is_named_and_in_strictness_refused(
    #[case] address: &str,
    #[case] whose: Option<&str>,
    #[values(false, true)] strict: bool,
    #[values(ExternalIp, LoadBalancerIp)] kind: FrontendKind,
) {
    let mut tracker = tracker(strict);
    let web = Asking::new("web", 1).ports(&[tcp(0), port(81, Protocol::Tcp, 0)]);
    let web = match kind {
        ExternalIp => web.external_ips(&[address, "198.51.100.200"]),
        _ => web.balancers(&["198.51.100.200", address]),
    };
    let others = [
        Asking::new("bank", 1).cluster_ip("10.96.0.1").ports(&[port(443, Protocol::Tcp, 0)]).event(),
        slice("default/kubernetes", 6443, &["10.200.0.1"]),
        slice("other/web", 80, &["10.200.0.7"]),
        slice("shop/other", 80, &["10.200.0.8"]),
    ];
    let changes = fold(&mut tracker, others.into_iter().chain([web.event()]));
    let outcome = if strict { "; this Service is programmed without it" } else { "" };
    let wanted: Vec<String> = whose
        .iter()
        .map(|whose| format!("Service shop/web: {}: {address} is {whose}{outcome}", kind.field()))
        .collect();
    assert_eq!(told(&changes), wanted, "once, whatever the number of ports");
    let all = if strict && whose.is_some() { vec![0, 1] } else { Vec::new() };
    let all: Vec<_> = all.into_iter().map(|port| (kind, address.to_owned(), port)).collect();
    assert_eq!(refused(&tracker, "web"), all, "the Service's other address works");
}

/// What is judged does not depend on what came first.
#[test]
fn endpoints_that_come_and_go_make_and_unmake_the_claim() {
    let mut tracker = tracker(true);
    let thief = Asking::new("thief", 1).external_ips(&["10.200.0.7"]);
    assert!(told(&fold(&mut tracker, [thief.event()])).is_empty());
    let own = slice("shop/web", 80, &["10.200.0.7"]);
    assert!(told(&fold(&mut tracker, [own])).is_empty(), "an endpoint of its own namespace");
    let changes = fold(&mut tracker, [slice("other/web", 80, &["10.200.0.7", "10.200.0.6"])]);
    assert_eq!((names(&changes), told(&changes).len()), (vec!["other/web", "shop/thief"], 1));
    assert_eq!(lacks(&tracker, "thief"), [ExternalIp]);
    let changes = fold(&mut tracker, [slice("other/web", 81, &["10.200.0.7"])]);
    assert_eq!((names(&changes), told(&changes).len()), (vec!["other/web"], 0), "the same endpoint");
    let changes = fold(&mut tracker, [slice("other/web", 80, &["10.200.0.6"])]);
    assert_eq!(names(&changes), ["other/web", "shop/thief"], "it gets its address back");
    assert!(lacks(&tracker, "thief").is_empty());
    fold(&mut tracker, [slice("other/web", 80, &["10.200.0.7"])]);
    fold(&mut tracker, [WatchEvent::SliceGone("other/web".into())]);
    assert!(lacks(&tracker, "thief").is_empty());
}

#[test]
fn a_cluster_ip_given_out_later_makes_the_claim_and_its_end_unmakes_it() {
    let mut tracker = tracker(true);
    let thief = Asking::new("thief", 1).external_ips(&["198.51.100.7"]);
    assert!(fold(&mut tracker, [thief.event()]).claims.is_empty());
    let changes = fold(&mut tracker, [Asking::new("bank", 9).cluster_ip("198.51.100.7").event()]);
    assert_eq!((names(&changes), changes.claims.len()), (vec!["shop/bank", "shop/thief"], 1));
    assert_eq!(lacks(&tracker, "thief"), [ExternalIp]);
    assert!(
        fold(&mut tracker, [gone("bank")]).services.contains(&named("thief")),
        "it gets its address back"
    );
    assert!(lacks(&tracker, "thief").is_empty());
}

#[test]
fn a_node_that_gets_the_address_makes_the_claim() {
    let mut tracker = tracker(true);
    let web = Asking::new("web", 1).balancers(&["203.0.113.1"]);
    assert!(fold(&mut tracker, [web.event()]).claims.is_empty());
    fold(&mut tracker, [node("203.0.113.1")]);
    assert_eq!(lacks(&tracker, "web"), [LoadBalancerIp]);
}

#[test]
fn what_stands_is_told_once() {
    let mut tracker = tracker(false);
    let web = Asking::new("web", 1).external_ips(&["10.128.0.9"]);
    assert_eq!(fold(&mut tracker, [web.clone().event()]).claims.len(), 1);
    let changes = fold(&mut tracker, [web.cluster_ip("172.30.0.2").event(), node("192.0.2.3")]);
    assert!(told(&changes).is_empty());
    let more = Asking::new("web", 1).external_ips(&["10.128.0.9", "10.128.0.10"]);
    let changes = fold(&mut tracker, [more.event()]);
    assert_eq!(told(&changes), ["Service shop/web: spec.externalIPs: 10.128.0.10 is within the pod network"]);
}

const API: &str = "203.0.113.1:6443";

#[rstest]
#[case::external_ip(Asking::new("thief", 1).ports(&[port(6443, Protocol::Tcp, 0)]).external_ips(&["203.0.113.1"]), &[ExternalIp])]
#[case::balancer(Asking::new("thief", 1).ports(&[port(6443, Protocol::Tcp, 0)]).balancers(&["203.0.113.1"]), &[LoadBalancerIp])]
#[case::cluster_ip(Asking::new("thief", 1).ports(&[port(6443, Protocol::Tcp, 0)]).cluster_ip("203.0.113.1"), &[ClusterIp])]
#[case::another_port(Asking::new("thief", 1).external_ips(&["203.0.113.1"]), &[])]
#[case::one_of_two_ports(Asking::new("thief", 1).ports(&[tcp(0), port(6443, Protocol::Tcp, 0)]).external_ips(&["203.0.113.1"]), &[ExternalIp])]
#[case::another_protocol(Asking::new("thief", 1).ports(&[port(6443, Protocol::Udp, 0)]).external_ips(&["203.0.113.1"]), &[])]
#[case::another_address(Asking::new("thief", 1).ports(&[port(6443, Protocol::Tcp, 0)]).external_ips(&["203.0.113.2"]), &[])]
#[case::a_node_port_here_when_it_is_elsewhere(Asking::new("thief", 1).ports(&[tcp(6443)]), &[])]
#[case::the_api_service_itself(Asking::new("default/kubernetes", 1).ports(&[port(6443, Protocol::Tcp, 0)]).external_ips(&["203.0.113.1"]), &[ExternalIp])]
fn where_the_api_server_is_reached_leads_to_no_service(
    #[case] thief: Asking,
    #[case] wanted: &[FrontendKind],
    #[values(false, true)] strict: bool,
    #[values(false, true)] told_first: bool,
) {
    let mut tracker = Tracker::default().reserving(Reserved { strict, ..Reserved::default() });
    let name = thief.service.name.clone();
    let mut events = [api_server(API, false), thief.event()];
    if !told_first {
        events.reverse();
    }
    let all: Vec<String> = events.into_iter().flat_map(|it| told(&fold(&mut tracker, [it]))).collect();
    assert_eq!(lacks(&tracker, name.as_str()), wanted);
    assert_eq!(all.len(), wanted.len());
    let reason = "is where this node reaches the API server; this Service is programmed without it";
    assert!(all.iter().all(|text| text.contains(reason)), "{all:?}");
}

#[rstest]
#[case::this_nodes("192.0.2.1:6443", true, &[NodePort, HealthCheckNodePort])]
#[case::loopback("127.0.0.1:6443", false, &[NodePort, HealthCheckNodePort])]
#[case::elsewhere("203.0.113.1:6443", false, &[])]
#[case::another_port("192.0.2.1:443", true, &[])]
fn a_node_port_is_in_the_way_where_the_api_server_is_on_this_node(
    #[case] at: &str,
    #[case] is_own: bool,
    #[case] wanted: &[FrontendKind],
) {
    let mut tracker = Tracker::default();
    let thief = Asking::new("thief", 1).ports(&[tcp(6443), port(81, Protocol::Udp, 6443)]);
    let changes = fold(&mut tracker, [thief.event(), Asking::new("web", 2).health_check(6443).event()]);
    assert_eq!(changes.conflicts.len(), 1, "of each other");
    let changes = fold(&mut tracker, [api_server(at, is_own)]);
    assert_eq!(changes.claims.len(), wanted.len());
    let all = [lacks(&tracker, "thief"), lacks(&tracker, "web")].concat();
    assert_eq!(all, if wanted.is_empty() { &[HealthCheckNodePort] } else { wanted });
    let said = "Service shop/thief: spec.ports[].nodePort: 6443/tcp is where this node reaches the API server; \
                this Service is programmed without it";
    assert!(wanted.is_empty() || told(&changes).iter().any(|text| text == said), "{changes:?}");
}

/// Where an address that leads to a Service becomes the node's own, no other port of it gets out any more.
#[test]
fn in_ipvs_mode_the_whole_address_is_the_api_servers_unless_it_is_this_nodes() {
    let reserved = Reserved { takes_whole_addresses: true, ..Reserved::default() };
    for (is_own, wanted) in [(false, &[ExternalIp][..]), (true, &[])] {
        let mut tracker = Tracker::default().reserving(reserved.clone());
        let web = Asking::new("web", 1).external_ips(&["203.0.113.1"]);
        let changes = fold(&mut tracker, [web.event(), api_server(API, is_own)]);
        assert_eq!(lacks(&tracker, "web"), wanted);
        let text = "Service shop/web: spec.externalIPs: 203.0.113.1 port 80/tcp is at the address where this node \
                    reaches the API server, and in this mode a Service takes all ports of an address; this Service is programmed without it";
        assert_eq!(told(&changes), if is_own { vec![] } else { vec![text] });
    }
}

/// Inside of a cluster the way to the API server is its cluster IP, and from there to its endpoints.
#[test]
fn the_api_servers_cluster_ip_leads_to_it_and_to_nobody_else() {
    let mut tracker = Tracker::default();
    let api =
        || Asking::new("default/kubernetes", 1).cluster_ip("10.96.0.1").ports(&[port(443, Protocol::Tcp, 0)]);
    let on_443 = |name| Asking::new(name, 0).ports(&[port(443, Protocol::Tcp, 0)]);
    let thief = || on_443("thief").external_ips(&["10.96.0.1"]);
    let at_endpoint =
        || Asking::new("second", 1).ports(&[port(6443, Protocol::Tcp, 0)]).balancers(&["10.200.0.1"]);
    let events = [api_server("10.96.0.1:443", false), thief().event(), at_endpoint().event()];
    fold(&mut tracker, events);
    assert_eq!((lacks(&tracker, "thief"), lacks(&tracker, "second")), (vec![ExternalIp], vec![]));
    fold(&mut tracker, [api().event(), slice("default/kubernetes", 6443, &["10.200.0.1"])]);
    assert!(lacks(&tracker, "default/kubernetes").is_empty(), "its cluster IP stays");
    assert_eq!(
        (lacks(&tracker, "thief"), lacks(&tracker, "second")),
        (vec![ExternalIp], vec![LoadBalancerIp])
    );
    // It is away for a while, and another Service wants its address.
    fold(&mut tracker, [gone("default/kubernetes"), on_443("late").cluster_ip("10.96.0.1").event()]);
    assert_eq!((lacks(&tracker, "thief"), lacks(&tracker, "late")), (vec![ExternalIp], vec![ClusterIp]));
    assert!(lacks(&tracker, "second").is_empty(), "nothing is known of where it leads");
}

/// A Service that wants one frontend, by kind.
fn wanting(name: &str, created: i64, kind: FrontendKind) -> Asking {
    let asking = Asking::new(name, created);
    match kind {
        ClusterIp => asking.cluster_ip("198.51.100.9"),
        ExternalIp => asking.external_ips(&["198.51.100.9"]),
        LoadBalancerIp => asking.balancers(&["198.51.100.9"]),
        NodePort => asking.ports(&[tcp(30080)]),
        HealthCheckNodePort => asking.health_check(30080),
    }
}

/// One rule for every kind: what the API server gives out goes before what authors write, the older before the
/// younger.
#[rstest]
#[case(ClusterIp, ClusterIp, "b-old")]
#[case(ClusterIp, ExternalIp, "b-old")]
#[case(ExternalIp, ClusterIp, "a-young")]
#[case(LoadBalancerIp, ClusterIp, "a-young")]
#[case(ExternalIp, ExternalIp, "b-old")]
#[case(ExternalIp, LoadBalancerIp, "b-old")]
#[case(LoadBalancerIp, ExternalIp, "b-old")]
#[case(LoadBalancerIp, LoadBalancerIp, "b-old")]
#[case(NodePort, NodePort, "b-old")]
#[case(NodePort, HealthCheckNodePort, "b-old")]
#[case(HealthCheckNodePort, NodePort, "b-old")]
#[case(HealthCheckNodePort, HealthCheckNodePort, "b-old")]
fn of_two_claimants_of_a_frontend_one_has_it_and_the_other_gets_it_when_it_goes(
    #[case] old: FrontendKind,
    #[case] young: FrontendKind,
    #[case] winner: &str,
    #[values(false, true)] old_first: bool,
) {
    let (old, young) = (wanting("b-old", 1, old), wanting("a-young", 9, young));
    let (has, lacking) = if winner == "b-old" { (&old, &young) } else { (&young, &old) };
    let kind = |asking: &Asking| claims_of(&asking.service, true).into_iter().map(|it| it.kind);
    let mut events = [old.clone().event(), young.clone().event()];
    if !old_first {
        events.reverse();
    }
    let mut tracker = Tracker::default();
    let said: Vec<_> = events.into_iter().flat_map(|it| fold(&mut tracker, [it]).conflicts).collect();
    let (winner, loser) = (has.service.name.as_str(), lacking.service.name.as_str());
    assert_eq!(lacks(&tracker, winner), []);
    let refused = lacks(&tracker, loser);
    assert!(refused.len() == 1 && kind(lacking).any(|kind| kind == refused[0]), "{refused:?}");
    let said: Vec<_> = said.iter().map(|it| (it.service.as_str(), it.owner.as_str())).collect();
    assert_eq!(said, [(loser, winner)]);
    assert_eq!(tracker.conflicts().count(), 1);

    let changes = fold(&mut tracker, [WatchEvent::ServiceGone(named(winner))]);
    assert!(changes.services.contains(&named(loser)), "it is written now");
    assert!(lacks(&tracker, loser).is_empty() && tracker.conflicts().next().is_none());
    let changes = fold(&mut tracker, [has.clone().event()]);
    assert_eq!((names(&changes).len(), changes.conflicts.len()), (2, 1), "and loses it again");
    fold(&mut tracker, [gone("b-old"), gone("a-young")]);
    assert!(tracker.allotment().is_empty());
}

#[rstest]
#[case::another_port(Asking::new("b", 2).ports(&[port(81, Protocol::Tcp, 0)]).external_ips(&["198.51.100.9"]))]
#[case::another_protocol(Asking::new("b", 2).ports(&[port(80, Protocol::Udp, 0)]).external_ips(&["198.51.100.9"]))]
#[case::another_address(Asking::new("b", 2).external_ips(&["198.51.100.8"]))]
#[case::of_both_kinds(Asking::new("b", 2).external_ips(&["198.51.100.8"]).balancers(&["198.51.100.8"]))]
#[case::twice(Asking::new("b", 2).external_ips(&["198.51.100.8", "198.51.100.8"]))]
#[case::another_port_of_a_cluster_ip(Asking::new("b", 2).ports(&[port(81, Protocol::Tcp, 0)]).external_ips(&["172.30.0.1"]))]
#[case::node_ports_of_two_protocols(Asking::new("b", 2).ports(&[tcp(30080), port(80, Protocol::Udp, 30080)]))]
fn what_is_no_conflict(#[case] second: Asking) {
    let mut tracker = Tracker::default();
    let first = Asking::new("a", 1).cluster_ip("172.30.0.1").external_ips(&["198.51.100.9"]);
    fold(&mut tracker, [first.event(), second.event()]);
    assert_eq!(
        (tracker.conflicts().count(), lacks(&tracker, "a"), lacks(&tracker, "b")),
        (0, vec![], vec![])
    );
}

#[test]
fn a_service_is_not_in_its_own_way() {
    let mut tracker = Tracker::default();
    let one = Asking::new("web", 1).external_ips(&["198.51.100.9"]).balancers(&["198.51.100.9"]);
    fold(&mut tracker, [one.clone().event()]);
    let own = one.cluster_ip("198.51.100.9").ports(&[tcp(0), port(81, Protocol::Tcp, 0)]);
    fold(&mut tracker, [own.event()]);
    assert_eq!((tracker.conflicts().count(), lacks(&tracker, "web")), (0, vec![]));
}

/// Contested is what both have: the other ports of the address stay with the Service that wants them.
#[test]
fn a_service_goes_without_the_contested_port_only() {
    let mut tracker = Tracker::default();
    let old = Asking::new("old", 1).external_ips(&["198.51.100.9"]);
    let ports = [port(443, Protocol::Tcp, 0), port(80, Protocol::Tcp, 0)];
    let young = Asking::new("young", 2).ports(&ports).external_ips(&["198.51.100.9", "198.51.100.8"]);
    let changes = fold(&mut tracker, [young.event(), old.event()]);
    assert_eq!(refused(&tracker, "young"), [(ExternalIp, "198.51.100.9".to_owned(), 1)]);
    let text = "Service shop/young: spec.externalIPs: 198.51.100.9 port 80/tcp belongs to Service shop/old \
                (spec.externalIPs); this Service is programmed without it";
    assert_eq!(told(&changes), [text]);
}

#[test]
fn a_port_that_a_cluster_ip_gets_is_no_others_any_more() {
    let mut tracker = Tracker::default();
    let bank = Asking::new("bank", 9).cluster_ip("198.51.100.9");
    let second =
        Asking::new("second", 1).ports(&[port(81, Protocol::Tcp, 0)]).external_ips(&["198.51.100.9"]);
    fold(&mut tracker, [bank.clone().event(), second.event()]);
    assert_eq!(lacks(&tracker, "second"), []);
    let both = bank.clone().ports(&[tcp(0), port(81, Protocol::Tcp, 0)]);
    let changes = fold(&mut tracker, [both.event()]);
    assert_eq!(
        (names(&changes), lacks(&tracker, "second")),
        (vec!["shop/bank", "shop/second"], vec![ExternalIp])
    );
    let changes = fold(&mut tracker, [bank.event()]);
    assert_eq!((names(&changes), lacks(&tracker, "second")), (vec!["shop/bank", "shop/second"], vec![]));
}

/// A node port is at every address of the node, so an external IP that is one of them can be in its way.
#[test]
fn a_node_port_goes_before_an_external_address_of_the_node_with_the_same_port() {
    let mut tracker = Tracker::default();
    fold(&mut tracker, [node("192.0.2.1")]);
    let old =
        |number| Asking::new("old", 1).ports(&[port(number, Protocol::Tcp, 0)]).balancers(&["192.0.2.1"]);
    let young = Asking::new("young", 9).ports(&[tcp(30080)]);
    for asking in [young, Asking::new("young", 9).health_check(30080)] {
        fold(&mut tracker, [old(80).event(), asking.event()]);
        assert_eq!((lacks(&tracker, "old"), lacks(&tracker, "young")), (vec![], vec![]));
        fold(&mut tracker, [old(30080).event()]);
        assert_eq!((lacks(&tracker, "old"), lacks(&tracker, "young")), (vec![LoadBalancerIp], vec![]));
        fold(&mut tracker, [node("192.0.2.2")]);
        assert_eq!(lacks(&tracker, "old"), [], "another's address");
        fold(&mut tracker, [node("192.0.2.1")]);
        assert_eq!(lacks(&tracker, "old"), [LoadBalancerIp]);
        let changes = fold(&mut tracker, [gone("young")]);
        assert_eq!((names(&changes), lacks(&tracker, "old")), (vec!["shop/old", "shop/young"], vec![]));
    }
    // Its own way to the same endpoints.
    fold(
        &mut tracker,
        [Asking::new("old", 1).ports(&[port(30080, Protocol::Tcp, 30080)]).balancers(&["192.0.2.1"]).event()],
    );
    assert_eq!((lacks(&tracker, "old"), tracker.conflicts().count()), (vec![], 0));
}

#[test]
fn one_service_has_a_port_of_the_node_once() {
    let mut tracker = Tracker::default();
    let both = [tcp(30080), port(81, Protocol::Tcp, 30080)];
    let changes = fold(&mut tracker, [Asking::new("web", 1).ports(&both).health_check(30080).event()]);
    assert_eq!(lacks(&tracker, "web"), [NodePort, HealthCheckNodePort]);
    assert!(changes.conflicts.iter().all(|it| it.owner_field == "spec.ports[].nodePort"), "{changes:?}");
}

/// Refused claims do not stand in another claim's way.
#[test]
fn a_claim_that_is_refused_leaves_the_place_to_the_next_one() {
    let mut tracker = tracker(true);
    let [old, own] = [("old", 1), ("other/own", 9)]
        .map(|(name, created)| Asking::new(name, created).external_ips(&["10.200.0.7"]));
    fold(&mut tracker, [old.event(), own.event()]);
    assert_eq!((lacks(&tracker, "old"), lacks(&tracker, "other/own")), (vec![], vec![ExternalIp]));
    fold(&mut tracker, [slice("other/own", 80, &["10.200.0.7"])]);
    assert_eq!((lacks(&tracker, "old"), lacks(&tracker, "other/own")), (vec![ExternalIp], vec![]));
}

#[test]
fn external_ips_that_are_switched_off_are_in_nobodys_way() {
    let reserved = Reserved { external_ips: false, ..Reserved::default() };
    let mut tracker = Tracker::default().reserving(reserved);
    let off = Asking::new("old", 1).external_ips(&["198.51.100.9", "127.0.0.1"]);
    let changes =
        fold(&mut tracker, [off.event(), Asking::new("web", 2).balancers(&["198.51.100.9"]).event()]);
    assert_eq!((told(&changes), lacks(&tracker, "web")), (vec![], vec![]));
}

#[test]
fn a_list_that_names_the_owner_last_tells_of_that_owner_only() {
    let mut tracker = Tracker::default();
    let all =
        [("c", 3), ("b", 2), ("a", 1)].map(|(name, created)| wanting(name, created, ExternalIp).event());
    let owners: Vec<_> = fold(&mut tracker, all).conflicts.into_iter().map(|it| it.owner).collect();
    assert_eq!(owners, [named("a"), named("a")]);
}

#[test]
fn services_of_the_same_age_are_ordered_by_name() {
    let mut tracker = Tracker::default();
    fold(&mut tracker, ["b", "a"].map(|name| wanting(name, 1, NodePort).event()));
    assert_eq!((lacks(&tracker, "a"), lacks(&tracker, "b")), (vec![], vec![NodePort]));
}

/// The same in whatever order things become known.
#[test]
fn the_order_of_events_does_not_matter() {
    let events = || {
        let kinds = [ClusterIp, ExternalIp, LoadBalancerIp, NodePort, HealthCheckNodePort];
        let services = kinds.into_iter().cycle().take(20).zip(0_i64..);
        let services =
            services.map(|(kind, number)| wanting(&format!("s{number}"), number % 7, kind).event());
        let rest = [
            api_server("198.51.100.9:80", false),
            node("198.51.100.9"),
            slice("other/web", 80, &["198.51.100.9"]),
        ];
        services.chain(rest).collect::<Vec<_>>()
    };
    let settled = |turn: usize, is_reversed: bool, at_once: bool| {
        let mut tracker = Tracker::default().reserving(reserved(false));
        let mut all = events();
        all.rotate_left(turn);
        if is_reversed {
            all.reverse();
        }
        for event in all {
            tracker.fold(event);
            if !at_once {
                tracker.allot();
            }
        }
        tracker.allot();
        let refused = tracker.snapshot().services.iter().map(|(name, it)| (name.clone(), it.refused.clone()));
        (
            refused.collect::<Vec<_>>(),
            tracker.claims().cloned().collect::<Vec<_>>(),
            tracker.conflicts().cloned().collect::<Vec<_>>(),
        )
    };
    let wanted = settled(0, false, true);
    for turn in 0..23 {
        for (is_reversed, at_once) in [(false, false), (true, false), (true, true)] {
            assert_eq!(settled(turn, is_reversed, at_once), wanted, "{turn} {is_reversed} {at_once}");
        }
    }
}

use super::*;
use crate::model::{
    Cidr, EndpointFacts, EndpointSlice, External, FrontendKind, Hints, NodeFacts, PerFamily, Protocol,
    Service, ServicePort, SliceEndpoint, SlicePort, Wanted,
};
use rstest::rstest;
use std::sync::Arc;

const READY: (bool, bool, bool) = (true, true, false);
const NOT_READY: (bool, bool, bool) = (false, false, false);
const SERVING_TERMINATING: (bool, bool, bool) = (false, true, true);
const TERMINATING: (bool, bool, bool) = (false, false, true);

/// One endpoint: last byte of its address, conditions, on our node, zones and nodes it is for.
type Given = (u8, (bool, bool, bool), bool, &'static [&'static str], &'static [&'static str]);

fn local(last: u8, facts: (bool, bool, bool)) -> Given {
    (last, facts, true, &[], &[])
}

fn hinted(
    last: u8,
    facts: (bool, bool, bool),
    zones: &'static [&'static str],
    nodes: &'static [&'static str],
) -> Given {
    (last, facts, false, zones, nodes)
}

fn remote(last: u8, facts: (bool, bool, bool)) -> Given {
    (last, facts, false, &[], &[])
}

fn slice(name: &str, given: &[Given]) -> EndpointSlice {
    let arcs = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
    let mut hints = vec![Hints::default()];
    let endpoints = given.iter().map(|(last, (ready, serving, terminating), is_local, zones, nodes)| {
        hints.push(Hints { zones: arcs(zones), nodes: arcs(nodes) });
        SliceEndpoint {
            address: [10, 128, 0, *last].into(),
            facts: EndpointFacts::new(*ready, *serving, *terminating, *is_local),
            hints: u16::try_from(hints.len() - 1).unwrap(),
        }
    });
    EndpointSlice {
        endpoints: endpoints.collect(),
        name: name.into(),
        service: ServiceName::new("shop", "web"),
        family: IpFamily::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }].into(),
        hints: hints.into(),
        refused: 0,
        triggered: None,
    }
}

#[derive(Default)]
struct Setup {
    internal: TrafficPolicy,
    external: TrafficPolicy,
    node_port: u16,
    ranges: Vec<Cidr>,
    zone: Option<&'static str>,
}

impl Setup {
    fn plan(&self, slices: Vec<EndpointSlice>) -> PortPlan {
        self.with(slices, |plan| plan.services().next().unwrap().ports.pop().unwrap())
    }

    /// Last byte of each endpoint's address, and why it has no internal and no external traffic.
    fn reasons(&self, slices: Vec<EndpointSlice>) -> Vec<(u8, Option<Unused>, Option<Unused>)> {
        let ports = self.with(slices, |plan| plan.reasons(&ServiceName::new("shop", "web")).unwrap());
        ports[0].endpoints.iter().map(|it| (last(it.ip), it.internal, it.external)).collect()
    }

    fn with<T>(&self, slices: Vec<EndpointSlice>, look: impl FnOnce(&Plan<'_>) -> T) -> T {
        let external = External {
            traffic_policy: self.external,
            load_balancer_ips: self.ranges.iter().map(|_| [192, 0, 2, 10].into()).take(1).collect(),
            source_ranges: self.ranges.clone().into(),
            ..External::default()
        };
        let service = Service {
            name: ServiceName::new("shop", "web"),
            created: None,
            cluster_ips: PerFamily { v4: Some([10, 96, 0, 1].into()), v6: None },
            internal_traffic_policy: self.internal,
            affinity_seconds: None,
            ipvs_scheduler: None,
            ports: [ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: self.node_port,
            }]
            .into(),
            external: Some(Box::new(external)),
        };
        let record = ServiceRecord { service: Some(Box::new(service)), slices, ..ServiceRecord::default() };
        let node =
            NodeFacts { name: "node-0".into(), zone: self.zone.map(Arc::from), ..NodeFacts::default() };
        let snapshot = Snapshot {
            services: [(ServiceName::new("shop", "web"), record)].into(),
            node: Arc::new(node),
            ..Snapshot::default()
        };
        let mut settings = FamilySettings::new(IpFamily::V4);
        settings.node_ip = [192, 168, 50, 4].into();
        look(&Plan::new(&settings, &snapshot, Scope::All))
    }
}

fn last(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    }
}

fn lasts(plan: &PortPlan, policy: TrafficPolicy) -> Vec<u8> {
    plan.list(policy).map(|target| last(target.address.ip())).collect()
}

use TrafficPolicy::{Cluster, Local};

#[rstest]
#[case::all_ready(&[local(1, READY), remote(2, READY)], Verdict::Served(Cluster), &[1, 2])]
#[case::unready_left_out(&[local(1, NOT_READY), remote(2, READY)], Verdict::Served(Cluster), &[2])]
#[case::terminating_ignored_while_one_is_ready(&[local(1, SERVING_TERMINATING), remote(2, READY)], Verdict::Served(Cluster), &[2])]
#[case::fallback_to_serving_terminating(&[local(1, SERVING_TERMINATING), remote(2, TERMINATING), remote(3, SERVING_TERMINATING)], Verdict::Served(Cluster), &[1, 3])]
#[case::terminating_not_serving_is_nothing(&[local(1, TERMINATING)], Verdict::Refused, &[])]
#[case::none(&[], Verdict::Refused, &[])]
fn cluster_policy(#[case] given: &[Given], #[case] verdict: Verdict<TrafficPolicy>, #[case] list: &[u8]) {
    let plan = Setup::default().plan(vec![slice("a", given)]);
    assert_eq!(plan.internal, verdict);
    assert_eq!(lasts(&plan, Cluster), list);
    assert!(lasts(&plan, Local).is_empty());
}

#[rstest]
#[case::local_ready(&[local(1, READY), remote(2, READY)], Verdict::Served(Local), &[1])]
#[case::local_fallback_although_remote_is_ready(&[local(1, SERVING_TERMINATING), remote(2, READY)], Verdict::Served(Local), &[1])]
#[case::only_remote(&[remote(2, READY)], Verdict::Dropped, &[])]
#[case::only_remote_terminating(&[remote(2, SERVING_TERMINATING)], Verdict::Dropped, &[])]
#[case::none_usable(&[remote(2, NOT_READY)], Verdict::Refused, &[])]
fn internal_local_policy(
    #[case] given: &[Given],
    #[case] verdict: Verdict<TrafficPolicy>,
    #[case] list: &[u8],
) {
    let plan = Setup { internal: Local, ..Setup::default() }.plan(vec![slice("a", given)]);
    assert_eq!(plan.internal, verdict);
    assert_eq!(lasts(&plan, Local), list);
    assert!(lasts(&plan, Cluster).is_empty(), "an internal-only Service has no cluster list");
}

#[test]
fn external_local_policy_keeps_the_cluster_list_for_pods_and_the_node() {
    let setup = Setup { external: Local, node_port: 30080, ..Setup::default() };
    let plan = setup.plan(vec![slice("a", &[local(1, READY), remote(2, READY)])]);
    assert_eq!((plan.internal, plan.external), (Verdict::Served(Cluster), Verdict::Served(Local)));
    assert_eq!(lasts(&plan, Cluster), [1, 2]);
    assert_eq!(lasts(&plan, Local), [1]);
    let plan = setup.plan(vec![slice("a", &[remote(2, READY)])]);
    assert_eq!((plan.internal, plan.external), (Verdict::Served(Cluster), Verdict::Dropped));
}

#[test]
fn external_local_policy_means_nothing_without_an_external_frontend() {
    let plan = Setup { external: Local, ..Setup::default() }.plan(vec![slice("a", &[remote(2, READY)])]);
    assert!(lasts(&plan, Local).is_empty());
    assert_eq!(plan.internal, Verdict::Served(Cluster));
}

#[rstest]
#[case::ours(Some("z0"), &[hinted(1, READY, &["z0"], &[]), hinted(2, READY, &["z1"], &[])], &[1])]
#[case::several_zones_each(Some("z0"), &[hinted(1, READY, &["z1", "z0"], &[]), hinted(2, READY, &["z1"], &[])], &[1])]
#[case::node_without_zone(None, &[hinted(1, READY, &["z0"], &[]), hinted(2, READY, &["z1"], &[])], &[1, 2])]
#[case::no_hint_for_us(Some("z9"), &[hinted(1, READY, &["z0"], &[]), hinted(2, READY, &["z1"], &[])], &[1, 2])]
#[case::one_ready_without_hints(Some("z0"), &[hinted(1, READY, &["z0"], &[]), hinted(2, READY, &[], &[])], &[1, 2])]
#[case::unready_without_hints_does_not_matter(Some("z0"), &[hinted(1, READY, &["z0"], &[]), hinted(2, NOT_READY, &[], &[]), hinted(3, READY, &["z1"], &[])], &[1])]
#[case::only_unready_in_our_zone(Some("z0"), &[hinted(1, NOT_READY, &["z0"], &[]), hinted(2, READY, &["z1"], &[])], &[2])]
#[case::node_hints_win(Some("z0"), &[hinted(1, READY, &["z0"], &["node-1"]), hinted(2, READY, &["z1"], &["node-0"])], &[2])]
#[case::unusable_node_hints_leave_zone_hints(Some("z0"), &[hinted(1, READY, &["z0"], &["node-1"]), hinted(2, READY, &["z1"], &[])], &[1])]
fn hints(#[case] zone: Option<&'static str>, #[case] given: &[Given], #[case] list: &[u8]) {
    let plan = Setup { zone, ..Setup::default() }.plan(vec![slice("a", given)]);
    assert_eq!(lasts(&plan, Cluster), list);
}

#[test]
fn the_local_list_ignores_hints_and_targets_are_the_union() {
    let setup = Setup { external: Local, node_port: 30080, zone: Some("z0"), ..Setup::default() };
    let given: &[Given] = &[(1, READY, true, &["z1"], &[]), (2, READY, false, &["z0"], &[])];
    let plan = setup.plan(vec![slice("a", given)]);
    assert_eq!(lasts(&plan, Local), [1]);
    assert_eq!(lasts(&plan, Cluster), [2]);
    assert_eq!(plan.targets.len(), 2);
}

#[rstest]
#[case::newcomer_wins(READY, NOT_READY, false)]
#[case::unless_it_terminates(READY, SERVING_TERMINATING, true)]
fn an_address_in_two_slices_counts_once(
    #[case] first: (bool, bool, bool),
    #[case] second: (bool, bool, bool),
    #[case] ready: bool,
) {
    let plan = Setup::default().plan(vec![slice("a", &[remote(1, first)]), slice("b", &[remote(1, second)])]);
    assert_eq!(lasts(&plan, Cluster).len(), usize::from(ready));
}

#[test]
fn targets_are_sorted_by_their_text() {
    let plan = Setup::default().plan(vec![slice("a", &[remote(1, READY), remote(10, READY)])]);
    assert_eq!(lasts(&plan, Cluster), [10, 1], "':' sorts after '0'");
}

#[rstest]
#[case::restricted(&["203.0.113.0/24"], 1, false)]
#[case::other_family_only(&["fd00::/64"], 0, false)]
#[case::zero_network_lifts_it(&["203.0.113.0/24", "0.0.0.0/0"], 0, false)]
#[case::node_inside(&["192.168.50.0/24"], 1, true)]
fn source_ranges(#[case] ranges: &[&str], #[case] count: usize, #[case] node_inside: bool) {
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    let plan = Setup { ranges, ..Setup::default() }.plan(Vec::new());
    assert_eq!(plan.frontends.source_ranges.len(), count);
    assert_eq!(plan.frontends.node_in_source_ranges, node_inside);
}

#[rstest]
#[case::none_given(&[], IpFamily::V4, true, true)]
#[case::only_the_other_family(&["fd00::/64"], IpFamily::V4, true, true)]
#[case::zero_network(&["10.0.0.0/8", "0.0.0.0/0"], IpFamily::V4, true, true)]
#[case::listed(&["10.0.0.0/8"], IpFamily::V4, false, false)]
#[case::listed_with_loopback(&["10.0.0.0/8", "127.0.0.1/32"], IpFamily::V4, false, true)]
fn node_port_addresses(
    #[case] cidrs: &[&str],
    #[case] family: IpFamily,
    #[case] all: bool,
    #[case] loopback: bool,
) {
    let cidrs: Vec<Cidr> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    let found = NodePortAddresses::of_family(&cidrs, family);
    assert_eq!(found == NodePortAddresses::All, all);
    assert_eq!(found.includes_v4_loopback(), loopback);
}

/// A Service that can be reached from outside like this.
fn exposed(external: External) -> ServiceRecord {
    let service = Service {
        name: ServiceName::new("shop", "web"),
        created: None,
        cluster_ips: PerFamily { v4: Some([10, 96, 0, 1].into()), v6: None },
        internal_traffic_policy: Cluster,
        affinity_seconds: None,
        ipvs_scheduler: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }].into(),
        external: Some(Box::new(external)),
    };
    ServiceRecord { service: Some(Box::new(service)), ..ServiceRecord::default() }
}

/// Its port's.
fn frontends(settings: &FamilySettings, record: &ServiceRecord) -> Frontends {
    Frontends::of_port(settings, record, record.service.as_ref().unwrap(), 0)
}

#[test]
fn refused_external_addresses_lead_nowhere_and_do_not_make_a_service_external() {
    let balancer = std::net::IpAddr::from([203, 0, 113, 9]);
    let external = External {
        external_ips: [[198, 51, 100, 1].into()].into(),
        load_balancer_ips: [balancer].into(),
        ..External::default()
    };
    let settings = FamilySettings::new(IpFamily::V4);
    let mut record = exposed(external);
    let external_ip = Wanted::at(FrontendKind::ExternalIp, [198, 51, 100, 1].into(), 0);
    record.refused = [external_ip].into();
    let one = frontends(&settings, &record);
    assert_eq!((one.external_ips, one.load_balancer_ips), (vec![], vec![balancer]));
    record.refused = [external_ip, Wanted::at(FrontendKind::LoadBalancerIp, balancer, 0)].into();
    assert!(!frontends(&settings, &record).externally_accessible());
}

#[test]
fn external_ips_that_are_switched_off_lead_nowhere_but_still_make_the_policy_count() {
    let mut settings = FamilySettings::new(IpFamily::V4);
    settings.external_ips = false;
    let external = External {
        external_ips: [[198, 51, 100, 1].into()].into(),
        traffic_policy: Local,
        ..External::default()
    };
    let frontends = frontends(&settings, &exposed(external));
    assert!(frontends.external_ips.is_empty() && frontends.externally_accessible());
}

use Unused::*;

#[rstest]
#[case::unready(None, &[local(1, READY), remote(2, NOT_READY)], &[None, Some(NotReady)])]
#[case::terminating(None, &[local(1, READY), remote(2, SERVING_TERMINATING), remote(3, TERMINATING)], &[None, Some(TerminatingWhileOthersReady), Some(Terminated)])]
#[case::fallback_is_used(None, &[remote(2, SERVING_TERMINATING)], &[None])]
#[case::other_zone(Some("z0"), &[hinted(1, READY, &["z0"], &[]), hinted(2, READY, &["z1"], &[])], &[None, Some(OtherZone)])]
#[case::other_node(Some("z0"), &[hinted(1, READY, &["z1"], &["node-0"]), hinted(2, READY, &["z0"], &["node-1"])], &[None, Some(OtherNode)])]
fn every_endpoint_has_its_reason(
    #[case] zone: Option<&'static str>,
    #[case] given: &[Given],
    #[case] reasons: &[Option<Unused>],
) {
    let setup = Setup { zone, node_port: 30080, ..Setup::default() };
    let found = setup.reasons(vec![slice("a", given)]);
    let internal: Vec<_> = found.iter().map(|it| it.1).collect();
    let external: Vec<_> = found.iter().map(|it| it.2).collect();
    assert_eq!((internal.as_slice(), external.as_slice()), (reasons, reasons));
}

#[test]
fn a_local_policy_leaves_endpoints_of_other_nodes_out_of_its_own_traffic_only() {
    let given = [local(1, READY), remote(2, READY)];
    let setup = Setup { external: Local, node_port: 30080, ..Setup::default() };
    let found = setup.reasons(vec![slice("a", &given)]);
    assert_eq!(found, [(1, None, None), (2, None, Some(NotLocal))]);
    let found = Setup { internal: Local, ..Setup::default() }.reasons(vec![slice("a", &given)]);
    assert_eq!(found, [(1, None, None), (2, Some(NotLocal), Some(NotLocal))]);
}

#[test]
fn endpoints_that_are_no_candidates_are_named_too() {
    let renamed = SlicePort { name: "other".into(), protocol: Protocol::Tcp, port: 80 };
    let without_port = EndpointSlice { ports: [renamed].into(), ..slice("a", &[local(1, READY)]) };
    let mut other_family = slice("b", &[]);
    other_family.family = IpFamily::V6;
    other_family.endpoints = [SliceEndpoint {
        address: "fd00::2".parse().unwrap(),
        facts: EndpointFacts::new(true, true, false, false),
        hints: 0,
    }]
    .into();
    let found = Setup::default().reasons(vec![without_port, other_family]);
    let all = |last, why| (last, Some(why), Some(why));
    assert_eq!(found, [all(1, PortMissingInSlice), all(2, WrongFamily)]);
}

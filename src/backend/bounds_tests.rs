//! What one Service makes of rules, set entries and virtual servers stays within its bounds, in both modes.

use super::iptables;
use super::ipvs;
use crate::kernel::iptables::Flavor;
use crate::model::{
    External, IpFamily, IpvsScheduler, NodeFacts, ServiceLimits, ServicePort, TrafficPolicy, WatchEvent,
};
use crate::plan::{FamilySettings, LocalDetector, Plan, Scope};
use crate::state::Tracker;
use crate::testing::cluster;
use rstest::rstest;
use std::collections::BTreeSet;
use std::net::IpAddr;

const PORTS: u16 = 60;

/// A small object that asks for very much.
fn greedy(external_policy: TrafficPolicy) -> WatchEvent {
    let WatchEvent::Service(mut service) = cluster::service(0) else { unreachable!() };
    let port = |number: u16| ServicePort {
        name: format!("p{number}").into(),
        port: number,
        node_port: 30_000 + number,
        ..service.ports[0].clone()
    };
    service.ports = (1..=PORTS).map(port).collect();
    service.affinity_seconds = Some(60);
    let ips = |third: u8, count: u8| (0..count).map(|last| IpAddr::from([198, 51, third, last])).collect();
    service.external = Some(Box::new(External {
        external_ips: ips(100, 100),
        load_balancer_ips: ips(101, 20),
        source_ranges: (0..40).map(|third| format!("10.1.{third}.0/24").parse().unwrap()).collect(),
        traffic_policy: external_policy,
        ..External::default()
    }));
    WatchEvent::Service(service)
}

/// Slices for all of its ports.
fn slice(endpoints: u32) -> WatchEvent {
    let WatchEvent::Slice(mut slice) = cluster::slice(0, endpoints) else { unreachable!() };
    let port = slice.ports[0].clone();
    let numbered = |number| crate::model::SlicePort { name: format!("p{number}").into(), ..port.clone() };
    slice.ports = (1..=PORTS).map(numbered).collect();
    WatchEvent::Slice(slice)
}

/// How many lines there are in the input of the tools, of rules and entries besides those of endpoints, and of those.
fn counted(limits: ServiceLimits, events: Vec<WatchEvent>) -> (usize, usize) {
    let mut tracker = Tracker::new(NodeFacts::default(), 0).limiting(limits);
    events.into_iter().for_each(|event| tracker.fold(event));
    tracker.allot();
    let mut settings = FamilySettings::new(IpFamily::V4);
    settings.detector = Some(LocalDetector::Cidr("10.128.0.0/16".parse().unwrap()));
    // The node itself is in a source range.
    settings.node_ip = [10, 1, 1, 1].into();
    settings.limits = limits;
    let plan = Plan::new(&settings, tracker.snapshot(), Scope::All);
    let texts = if limits.by_address {
        let scheduler = IpvsScheduler::parse("rr").unwrap();
        let features = ipvs::Features {
            masquerade_mark: 1 << 14,
            random_fully: true,
            scheduler,
            exclude: Vec::new(),
            upstream_compat: false,
            node_name: "node-0".into(),
        };
        let node = BTreeSet::from([IpAddr::from([10, 1, 1, 1])]);
        vec![ipvs::render_text(&plan, &features, &node)]
    } else {
        let features = iptables::Features { counts_localhost: true, ..iptables::Features::default() };
        iptables::render_inputs(&plan, &features, Flavor::Nft)
    };
    let lines = || texts.iter().flat_map(|text| text.lines());
    let is_of_endpoint = |line: &&str| line.starts_with("-a ") || line.contains("KUBE-SEP-");
    let is_one = |line: &&str| ["-A ", "-a ", "add "].iter().any(|start| line.starts_with(start));
    let of_endpoints = lines().filter(is_one).filter(is_of_endpoint).count();
    (lines().filter(is_one).count() - of_endpoints, of_endpoints)
}

#[rstest]
fn one_service_makes_no_more_rules_than_its_bound(
    #[values(false, true)] by_address: bool,
    #[values(TrafficPolicy::Cluster, TrafficPolicy::Local)] policy: TrafficPolicy,
    #[values(0, 3)] endpoints: u32,
) {
    let without = ServiceLimits { by_address, ..ServiceLimits::NONE };
    let objects = || vec![greedy(policy), slice(endpoints)];
    let (base, _) = counted(without, Vec::new());
    let (all, _) = counted(without, objects());
    let limits = ServiceLimits { rules: 3000, ..without };
    let (within, _) = counted(limits, objects());
    assert!(all > 2 * limits.rules, "the Service is greedy: {all}");
    assert!(within - base <= limits.rules, "{within}, of which {base} are there without it");
    let (next, _) = counted(ServiceLimits { rules: 2 * limits.rules, ..without }, objects());
    assert!(next > within, "it has as many as it may");
}

#[rstest]
fn one_service_makes_no_more_of_endpoints_than_its_bound(#[values(false, true)] by_address: bool) {
    let without = ServiceLimits { by_address, ports: 20, ..ServiceLimits::NONE };
    let objects = || vec![greedy(TrafficPolicy::Cluster), slice(50)];
    // Of an endpoint: its share, affinity, and two in its chain; in IPVS mode ten addresses count once.
    let (endpoints, each) = if by_address { (2000, 10) } else { (200, 4) };
    let (_, all) = counted(without, objects());
    let (_, within) = counted(ServiceLimits { endpoints, ..without }, objects());
    assert!(within <= endpoints * each && within < all / 4, "{within} of {all}");
    assert!(within > 0, "each port has some");
}

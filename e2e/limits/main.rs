//! One change must cost what one change costs, however large the cluster is: counted in requests
//! for memory and in lines sent, which, unlike time, are the same on every machine.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait; this one only counts")]

mod sink;

use kube_proxy_rs::backend::Backend;
use kube_proxy_rs::backend::iptables::{Baseline, Features, Iptables};
use kube_proxy_rs::model::{
    EndpointFacts, EndpointSlice, IpFamily, NodeFacts, PerFamily, Protocol, Service, ServiceName,
    ServicePort, SliceEndpoint, SlicePort, TrafficPolicy, WatchEvent,
};
use kube_proxy_rs::plan::{FamilySettings, Plan, Scope};
use kube_proxy_rs::state::Tracker;
use sink::Sink;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};

struct Counting;

thread_local! {
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        REQUESTS.with(|requests| requests.set(requests.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What a pass took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    requests: u64,
    lines: usize,
}

/// A cluster and the backend that follows it.
struct Cluster {
    tracker: Tracker,
    settings: FamilySettings,
    backend: Iptables<Sink>,
    baseline: Baseline,
}

impl Cluster {
    async fn of(services: u32) -> Cluster {
        let mut tracker = Tracker::new(NodeFacts::default(), 0);
        for number in 0..services {
            tracker.fold(service(number));
            // Every hundredth Service has nobody to serve it, which takes rules in other chains.
            tracker.fold(slice(number, if number % 100 == 7 { 0 } else { 5 }));
        }
        let features = Features { tree_threshold: 100, ..Features::default() };
        let mut backend = Iptables::new(Sink::default(), features);
        let baseline = backend.observe().await.unwrap();
        let settings = FamilySettings::new(IpFamily::V4);
        let mut cluster = Cluster { tracker, settings, backend, baseline };
        cluster.sync(true).await;
        cluster
    }

    /// One pass and its cost.
    async fn sync(&mut self, all: bool) -> Cost {
        let changes = self.tracker.take_changes();
        let scope = if all { Scope::All } else { Scope::Only(&changes.services) };
        let endpoints = self.tracker.endpoints(IpFamily::V4);
        self.backend.tools().lines = 0;
        let before = REQUESTS.get();
        let plan = Plan::new(&self.settings, self.tracker.snapshot(), scope).with_endpoint_count(endpoints);
        let desired = self.backend.render(&plan);
        let operations = self.backend.diff(&self.baseline, &desired);
        self.backend.apply(&desired, operations, &mut self.baseline).await.unwrap();
        Cost { requests: REQUESTS.get() - before, lines: self.backend.tools().lines }
    }

    async fn change(&mut self, event: WatchEvent) -> Cost {
        self.tracker.fold(event);
        self.sync(false).await
    }
}

fn name(number: u32) -> ServiceName {
    ServiceName::new("load", &format!("s-{number:06}"))
}

fn service(number: u32) -> WatchEvent {
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    // Spread as the API server spreads them: in no order.
    let low = number.wrapping_mul(2_654_435_761) >> 12;
    WatchEvent::Service(Box::new(Service {
        name: name(number),
        created: None,
        cluster_ips: PerFamily { v4: Some(IpAddr::V4(Ipv4Addr::from(0x0a60_0000 | low))), v6: None },
        internal_traffic_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        ipvs_scheduler: None,
        ports: [port].into(),
        external: None,
    }))
}

fn slice(number: u32, endpoints: u32) -> WatchEvent {
    let endpoint = |index| SliceEndpoint {
        address: IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + number * 8 + index)),
        facts: EndpointFacts::new(true, true, false, false),
        hints: 0,
    };
    WatchEvent::Slice(Box::new(EndpointSlice {
        name: format!("load/s-{number:06}-x").into(),
        service: name(number),
        family: IpFamily::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..endpoints).map(endpoint).collect(),
        hints: [].into(),
        triggered: None,
    }))
}

/// The costs of the same change in a small cluster and in one ten times as large.
async fn costs(events: impl Fn(u32) -> Vec<WatchEvent>) -> [Cost; 2] {
    let mut costs = Vec::new();
    for services in [400, 4000] {
        let mut cluster = Cluster::of(services).await;
        let mut worst = Cost { requests: 0, lines: 0 };
        for event in events(services) {
            let cost = cluster.change(event).await;
            worst.requests = worst.requests.max(cost.requests);
            worst.lines = worst.lines.max(cost.lines);
        }
        costs.push(worst);
    }
    costs.try_into().unwrap()
}

#[tokio::test]
async fn a_changed_endpoint_costs_the_same_in_a_cluster_ten_times_as_large() {
    let [small, large] = costs(|_| vec![slice(42, 4), slice(42, 5), slice(42, 3)]).await;
    assert_eq!(small.lines, large.lines);
    assert!(large.requests <= small.requests + 20, "{small:?} {large:?}");
    assert!(large.lines < 40 && large.requests < 500, "{large:?}");
}

#[tokio::test]
async fn a_service_that_comes_or_goes_touches_one_path_of_the_tree() {
    let come_and_go = |services: u32| {
        let numbers = services..services + 30;
        let come = numbers.clone().flat_map(|number| [slice(number, 5), service(number)]);
        come.chain(numbers.map(|number| WatchEvent::ServiceGone(name(number)))).collect()
    };
    // How many networks there are on the path, and whether one fills up and is cut, differs; but
    // it is a path: a few chains of sixteen rules at most.
    for cost in costs(come_and_go).await {
        assert!(cost.lines < 130 && cost.requests < 1700, "{cost:?}");
    }
}

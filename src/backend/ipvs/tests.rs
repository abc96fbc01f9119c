//! The laws of the backend, on an in-memory node.

use super::*;
use crate::backend::mode::OpenConnections;
use crate::backend::own_rules::OwnRules;
use crate::kernel::fake::iptables::FakeXtables;
use crate::kernel::fake::ipvs::{FakeNode, FakeObject, FakeServer, State};
use crate::kernel::iptables::Flavor;
use crate::model::{
    EndpointFacts, EndpointSlice, External, Frontend, IpvsScheduler, PerFamily, Protocol, RealServer,
    ServerOperation, Service, ServiceName, ServicePort, SetEntry, SliceEndpoint, SlicePort, TrafficPolicy,
    VirtualServer, WatchEvent,
};
use crate::plan::{FamilySettings, Scope};
use crate::state::Tracker;
use crate::testing::generate::Generator;
use crate::testing::pass;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

fn features(upstream_compat: bool) -> Features {
    let scheduler =
        if upstream_compat { IpvsScheduler::as_upstream("rr") } else { IpvsScheduler::parse("rr").unwrap() };
    Features {
        masquerade_mark: 1 << 14,
        random_fully: true,
        scheduler,
        exclude: Vec::new(),
        upstream_compat,
        node_name: "node-0".into(),
    }
}

/// A family's backend with what `sync` keeps for it.
pub(super) struct Bench {
    pub(super) tracker: Tracker,
    settings: FamilySettings,
    pub(super) node: FakeNode,
    pub(super) backend: Ipvs<FakeXtables>,
}

impl Bench {
    fn on(node: FakeNode, family: IpFamily, features: Features) -> Self {
        let (tracker, settings) = pass::start(family);
        let hands = Kernel {
            servers: Box::new(node.clone()),
            sets: Box::new(node.clone()),
            links: Box::new(node.clone()),
        };
        let backend = Ipvs::new(FakeXtables::new(Flavor::Nft), hands, family, features);
        Bench { tracker, settings, node, backend }
    }

    pub(super) fn new(family: IpFamily) -> Self {
        Bench::on(FakeNode::default(), family, features(false))
    }

    /// The same picture for another node.
    fn picture_for(&self, mut other: Bench) -> Bench {
        pass::copy_snapshot(&self.tracker, &mut other.tracker);
        other
    }

    fn afresh(&self) -> Bench {
        self.picture_for(Bench::on(FakeNode::default(), self.settings.family, self.backend.features.clone()))
    }

    /// Another process on the same node.
    pub(super) fn restarted(&self) -> Bench {
        let other = Bench::on(self.node.clone(), self.settings.family, self.backend.features.clone());
        let mut other = self.picture_for(other);
        other.backend.tools = self.backend.tools.clone();
        other
    }

    pub(super) async fn sync(&mut self) -> Result<Applied> {
        pass::run(&mut self.tracker, &self.settings, &mut self.backend).await
    }

    fn is_in_line(&mut self) -> bool {
        let plan = Plan::new(&self.settings, self.tracker.snapshot(), Scope::All);
        let baseline = self.backend.baseline.as_ref().unwrap();
        let desired = self.backend.render(&plan);
        let changes = self.backend.diff(baseline, &desired);
        changes.is_empty()
    }

    /// The first thing that a quick verification finds.
    async fn verify(&mut self) -> Option<String> {
        self.found(VerifyDepth::Quick).await.into_iter().next()
    }

    /// All that a thorough verification finds.
    async fn find(&mut self) -> Vec<String> {
        self.found(VerifyDepth::Thorough).await
    }

    async fn found(&mut self, depth: VerifyDepth) -> Vec<String> {
        let found = self.backend.verify(depth).await.unwrap();
        let words = |finding: &Deviation| match finding {
            Deviation::Drift(drift) => drift.to_string(),
            Deviation::Outdated(what) => (*what).to_owned(),
        };
        found.iter().map(words).collect()
    }

    pub(super) async fn tend(&mut self) {
        let mut baseline = self.backend.baseline.take().unwrap();
        self.backend.tend(&mut baseline).unwrap();
        self.backend.baseline = Some(baseline);
    }

    /// What is in the kernel, to compare.
    fn kernel(&self) -> (Servers, Sets, BTreeMap<String, BTreeSet<IpAddr>>, Vec<String>) {
        let state = self.node.state();
        // Jumps stand in the order in which they were mended.
        let place = |chain: &str, index: usize| if chain.starts_with("KUBE-") { index } else { 0 };
        let mut rules = Vec::new();
        for (table, chains) in &self.backend.tools.tables {
            for (chain, all) in chains {
                let line = |(index, rule)| format!("-A {chain} {rule} ({table} {})", place(chain, index));
                rules.extend(all.iter().enumerate().map(line));
            }
        }
        rules.sort();
        (state.servers.clone(), state.sets.clone(), state.interfaces.clone(), rules)
    }

    fn reals(&self, at: &Frontend) -> Vec<(String, u32)> {
        let state = self.node.state();
        let reals = state.servers.get(at).map(|server| server.reals.clone()).unwrap_or_default();
        reals.iter().map(|(address, weight)| (address.to_string(), *weight)).collect()
    }
}

type Servers = BTreeMap<Frontend, FakeServer>;
type Sets = BTreeMap<String, (crate::model::SetType, BTreeSet<SetEntry>)>;

fn web(protocol: Protocol) -> (Frontend, Box<Service>) {
    let address = IpAddr::from([10, 96, 0, 10]);
    let service = Service {
        name: ServiceName::new("shop", "web"),
        created: None,
        cluster_ips: PerFamily { v4: Some(address), v6: None },
        internal_traffic_policy: Default::default(),
        affinity_seconds: None,
        ipvs_scheduler: None,
        ports: [ServicePort { name: "p".into(), protocol, port: 80, node_port: 0 }].into(),
        external: None,
    };
    (Frontend { address, port: 80, protocol }, Box::new(service))
}

fn slice(protocol: Protocol, endpoints: &[u8]) -> WatchEvent {
    let endpoint = |last: &u8| SliceEndpoint {
        address: [10, 128, 1, *last].into(),
        facts: EndpointFacts::new(true, true, false, false),
        hints: 0,
    };
    WatchEvent::Slice(Box::new(EndpointSlice {
        name: "shop/web-1".into(),
        service: ServiceName::new("shop", "web"),
        family: IpFamily::V4,
        ports: [SlicePort { name: "p".into(), protocol, port: 8080 }].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        hints: [].into(),
        refused: 0,
        triggered: None,
    }))
}

async fn bench_with_web(protocol: Protocol, endpoints: &[u8]) -> (Bench, Frontend) {
    let mut bench = Bench::new(IpFamily::V4);
    let (at, service) = web(protocol);
    bench.tracker.fold(WatchEvent::Service(service));
    bench.tracker.fold(slice(protocol, endpoints));
    bench.sync().await.unwrap();
    (bench, at)
}

#[tokio::test]
async fn incremental_and_full_syncs_meet_in_the_same_kernel() {
    for seed in 0..100 {
        let family = IpFamily::ALL[usize::from(seed % 2 == 1)];
        let mut generator = Generator::new(seed);
        let mut bench = Bench::on(FakeNode::default(), family, features(seed % 3 == 0));
        for _ in 0..10 {
            for _ in 0..=generator.below(6) {
                bench.tracker.fold(generator.event());
            }
            bench.sync().await.unwrap();
            let mut fresh = bench.afresh();
            fresh.sync().await.unwrap();
            assert_eq!(bench.kernel(), fresh.kernel(), "seed {seed}");
            assert!(bench.is_in_line(), "seed {seed}: a second comparison finds nothing to do");
            assert_eq!(bench.verify().await, None, "seed {seed}");
            let found = bench.backend.observe().await.unwrap();
            assert!(
                found.servers.values().all(|held| !held.is_foreign),
                "seed {seed}: all are known as ours"
            );
        }
    }
}

#[tokio::test]
async fn a_failure_at_any_step_heals_at_the_next_sync() {
    for seed in 0..40 {
        let mut generator = Generator::new(seed);
        let mut bench = Bench::new(IpFamily::V4);
        for round in 0..6 {
            for _ in 0..4 {
                bench.tracker.fold(generator.event());
            }
            if round % 2 == 1 {
                let steps = usize::try_from(generator.below(8)).unwrap();
                bench.node.state().fails_after = Some(steps);
                bench.sync().await.ok();
                bench.node.state().fails_after = None;
            }
            bench.sync().await.unwrap();
            let mut fresh = bench.afresh();
            fresh.sync().await.unwrap();
            assert_eq!(bench.kernel(), fresh.kernel(), "seed {seed}");
        }
    }
}

#[tokio::test]
async fn removing_every_service_returns_to_the_empty_base() {
    let mut empty = Bench::new(IpFamily::V4);
    empty.sync().await.unwrap();
    let mut bench = Bench::new(IpFamily::V4);
    let mut generator = Generator::new(7);
    for _ in 0..200 {
        bench.tracker.fold(generator.event());
    }
    bench.sync().await.unwrap();
    assert!(bench.node.state().servers.len() > 10);
    for number in 0..12 {
        bench.tracker.fold(WatchEvent::ServiceGone(ServiceName::new("ns", &format!("svc-{number}"))));
    }
    bench.sync().await.unwrap();
    assert_eq!(bench.kernel(), empty.kernel());
    let baseline = bench.backend.baseline.as_ref().unwrap();
    assert_eq!((baseline.ours, baseline.addresses), ((0, 0), 0));
}

#[tokio::test]
async fn one_changed_endpoint_costs_a_handful_of_messages() {
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1, 2, 3]).await;
    bench.tracker.fold(slice(Protocol::Tcp, &[1, 2, 4]));
    bench.node.state().log.clear();
    let applied = bench.sync().await.unwrap();
    assert_eq!((applied.calls, applied.objects[0].written), (1, 0));
    let real = |last| std::net::SocketAddr::from(([10, 128, 1, last], 8080));
    let state = bench.node.state();
    assert_eq!(
        state.log,
        [
            ServerOperation::AddReal(at, RealServer { address: real(4), weight: 1 }),
            ServerOperation::UpdateReal(at, RealServer { address: real(3), weight: 0 }),
            ServerOperation::RemoveReal(at, real(3)),
        ]
    );
}

#[tokio::test]
async fn an_endpoint_with_connections_is_drained_and_gets_its_weight_back() {
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    let second = std::net::SocketAddr::from(([10, 128, 1, 2], 8080));
    bench.node.state().connections.insert((at, second), 3);
    bench.tracker.fold(slice(Protocol::Tcp, &[1]));
    bench.sync().await.unwrap();
    bench.tend().await;
    let drained = [("10.128.1.1:8080".to_owned(), 1), ("10.128.1.2:8080".to_owned(), 0)];
    assert_eq!(bench.reals(&at), drained);
    assert_eq!(bench.verify().await, None);
    assert!(bench.is_in_line());

    // Our restart does not cut it off, nor does a change of something else.
    let mut other = bench.restarted();
    other.sync().await.unwrap();
    other.tend().await;
    assert_eq!(other.reals(&at), drained);

    other.tracker.fold(slice(Protocol::Tcp, &[1, 2]));
    other.sync().await.unwrap();
    assert_eq!(other.reals(&at)[1], ("10.128.1.2:8080".to_owned(), 1));

    other.tracker.fold(slice(Protocol::Tcp, &[1]));
    other.sync().await.unwrap();
    other.node.state().connections.clear();
    other.tend().await;
    assert_eq!(other.reals(&at), drained[..1]);
    assert_eq!(other.verify().await, None);
}

#[tokio::test]
async fn endpoints_of_udp_go_at_once() {
    let (mut bench, at) = bench_with_web(Protocol::Udp, &[1, 2]).await;
    let second = std::net::SocketAddr::from(([10, 128, 1, 2], 8080));
    bench.node.state().connections.insert((at, second), 3);
    bench.tracker.fold(slice(Protocol::Udp, &[1]));
    bench.sync().await.unwrap();
    assert_eq!(bench.reals(&at), [("10.128.1.1:8080".to_owned(), 1)]);
}

#[tokio::test]
async fn a_changed_scheduler_or_affinity_is_applied_in_place() {
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    let (_, mut service) = web(Protocol::Tcp);
    service.affinity_seconds = Some(60);
    service.ipvs_scheduler = IpvsScheduler::parse("sh-port");
    bench.tracker.fold(WatchEvent::Service(service));
    bench.node.state().log.clear();
    bench.sync().await.unwrap();
    let with =
        VirtualServer { scheduler: IpvsScheduler::parse("sh-port").unwrap(), affinity_seconds: Some(60) };
    assert_eq!(bench.node.state().log, [ServerOperation::Update(at, with)]);
}

#[tokio::test]
async fn a_scheduler_that_the_kernel_lacks_is_refused_at_start_and_replaced_for_a_service() {
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    let (_, mut service) = web(Protocol::Tcp);
    service.ipvs_scheduler = IpvsScheduler::parse("sed");
    bench.tracker.fold(WatchEvent::Service(service));
    assert!(bench.sync().await.is_err());
    bench.sync().await.unwrap();
    let with = bench.node.state().servers[&at].with.clone().unwrap();
    assert_eq!(&*with.scheduler.name, "rr");

    bench.backend.features.scheduler = IpvsScheduler::parse("nq").unwrap();
    let error =
        setup::check_scheduler(bench.backend.kernel.servers.as_mut(), &bench.backend.features.scheduler)
            .unwrap_err();
    let want = "the kernel has no IPVS scheduler nq (module ip_vs_nq); it has: rr, lc, sh, mh";
    assert_eq!(error.to_string(), want);
}

#[tokio::test]
async fn a_virtual_server_that_was_not_seen_is_looked_for_anew_and_no_services_fault() {
    let (bench, at) = bench_with_web(Protocol::Tcp, &[1]).await;
    let mut next = bench.restarted();
    let foreign = "10.9.9.9:1".parse().unwrap();
    bench.node.state().servers.get_mut(&at).unwrap().reals = BTreeMap::from([(foreign, 1)]);
    bench.node.state().hidden = Some(at);
    // Without its entries nothing tells of it.
    bench.node.state().sets.clear();
    let error = next.sync().await.unwrap_err();
    assert!(format!("{error:#}").contains("it exists"), "{error:#}");
    // The entries have been added before it was refused.
    assert_eq!(next.sync().await.unwrap().refused, []);
    assert_eq!(next.reals(&at), [("10.128.1.1:8080".to_owned(), 1)]);
    assert_eq!(next.find().await, [""; 0], "it is asked for before it counts as gone");
}

#[tokio::test]
async fn what_a_run_before_left_goes_also_when_it_is_not_seen_among_all_others() {
    let (mut bench, _) = bench_with_web(Protocol::Tcp, &[1]).await;
    let (_, mut service) = web(Protocol::Tcp);
    service.ports[0].node_port = 30080;
    bench.tracker.fold(WatchEvent::Service(service.clone()));
    bench.sync().await.unwrap();
    let servers: Vec<Frontend> = bench.node.state().servers.keys().copied().collect();
    assert_eq!(servers.len(), 2);
    for at in servers {
        let mut next = bench.restarted();
        next.tracker.fold(WatchEvent::ServiceGone(service.name.clone()));
        bench.node.state().hidden = Some(at);
        next.sync().await.unwrap();
        assert!(!bench.node.state().servers.contains_key(&at), "{at}");
        bench.node.state().hidden = None;
        bench.backend.forget();
        bench.sync().await.unwrap();
    }
}

async fn remove_rules(tools: &mut FakeXtables) {
    let found = cleanup::own_rules(false).find(tools, &OwnRules::default()).await.unwrap();
    found.remove(tools, usize::MAX).await.unwrap();
}

#[tokio::test]
async fn others_virtual_servers_are_left_alone_unless_a_service_wants_them() {
    let foreign = Frontend { address: [192, 0, 2, 7].into(), port: 443, protocol: Protocol::Tcp };
    let theirs = FakeServer { with: None, reals: BTreeMap::from([("10.9.9.9:1".parse().unwrap(), 5)]) };
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1]).await;
    bench.node.state().servers.insert(foreign, theirs.clone());
    bench.node.state().servers.insert(at, theirs.clone());
    bench.backend.forget();
    bench.sync().await.unwrap();
    assert_eq!(bench.node.state().servers[&foreign], theirs);
    assert_eq!(bench.reals(&at)[0], ("10.128.1.1:8080".to_owned(), 1), "the Service's own is set right");
    for _ in 0..2 {
        let Ipvs { tools, kernel, family, features, .. } = &mut bench.backend;
        remove_rules(tools).await;
        kernel.remove_leftovers(*family, features, OpenConnections::End).unwrap();
        kernel.remove_interface().unwrap();
    }
    let state = bench.node.state();
    assert_eq!(state.servers, BTreeMap::from([(foreign, theirs)]));
    assert!(state.sets.is_empty() && !state.interfaces.contains_key("kube-ipvs0"));
    let tables = &bench.backend.tools.tables;
    assert!(tables.values().all(|table| table.keys().all(|chain| !chain.starts_with("KUBE-"))));
}

#[tokio::test]
async fn what_open_connections_need_outlives_the_mode_and_gets_no_new_ones() {
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    let (_, mut service) = web(Protocol::Tcp);
    service.ports[0].node_port = 30080;
    bench.tracker.fold(WatchEvent::Service(service));
    bench.sync().await.unwrap();
    assert!(bench.node.state().servers.len() > 1);
    let busy: SocketAddr = "10.128.1.2:8080".parse().unwrap();
    bench.node.state().connections.insert((at, busy), 1);
    let Ipvs { kernel, family, features, .. } = &mut bench.backend;
    let mut remove = || kernel.remove_leftovers(*family, features, OpenConnections::Outlive).unwrap();
    let sets = bench.node.state().sets.len();
    for others in [1, 0] {
        assert_eq!(remove(), Removed { servers: others, sets: 0, in_use: 1 });
        let state = bench.node.state();
        assert_eq!(state.servers.keys().collect::<Vec<_>>(), [&at]);
        assert_eq!(state.servers[&at].reals.values().copied().collect::<Vec<_>>(), [0, 0]);
        assert_eq!(state.interfaces["kube-ipvs0"], BTreeSet::from([at.address]));
        assert_eq!(state.sets.len(), sets, "by them it is known for ours");
    }
    bench.node.state().connections.clear();
    assert_eq!(remove(), Removed { servers: 1, sets, in_use: 0 });
    let state = bench.node.state();
    assert!(state.servers.is_empty() && state.interfaces["kube-ipvs0"].is_empty() && state.sets.is_empty());
}

#[tokio::test]
async fn others_addresses_on_our_interface_and_others_sets_are_left_alone() {
    let theirs: IpAddr = [192, 0, 2, 7].into();
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1]).await;
    bench.node.state().interfaces.get_mut("kube-ipvs0").unwrap().insert(theirs);
    bench.node.state().sets.insert("THEIRS".to_owned(), (crate::model::SetType::Ip, BTreeSet::new()));
    assert_eq!(bench.verify().await, None);
    let mut other = bench.restarted();
    other.sync().await.unwrap();
    assert_eq!(other.node.state().interfaces["kube-ipvs0"], BTreeSet::from([at.address, theirs]));
    let Ipvs { tools, kernel, family, features, .. } = &mut other.backend;
    remove_rules(tools).await;
    kernel.remove_leftovers(*family, features, OpenConnections::End).unwrap();
    assert!(!kernel.remove_interface().unwrap());
    let state = other.node.state();
    assert_eq!(state.interfaces["kube-ipvs0"], BTreeSet::from([theirs]));
    assert_eq!(state.sets.keys().collect::<Vec<_>>(), ["THEIRS"]);
}

#[tokio::test]
async fn what_is_drained_and_the_connections_of_the_first_services_are_told() {
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    let told = Rc::new(RefCell::new(Vec::new()));
    let tell = {
        let told = told.clone();
        Box::new(move |census| told.borrow_mut().push(census))
    };
    bench.backend.counting = Some(Counting::new(tell, 1));
    for (last, connections) in [(1, 4), (2, 3)] {
        let real = std::net::SocketAddr::from(([10, 128, 1, last], 8080));
        bench.node.state().connections.insert((at, real), connections);
    }
    bench.tracker.fold(slice(Protocol::Tcp, &[1]));
    bench.sync().await.unwrap();
    bench.tend().await;
    bench.tend().await;
    let counted = Some(vec![(ServiceName::new("shop", "web"), 7)]);
    let census = |connections| ConnectionCounts { family: IpFamily::V4, draining: 1, connections };
    assert_eq!(*told.borrow(), [census(counted), census(None)]);
}

#[tokio::test]
async fn with_upstreams_ways_only_excluded_networks_protect_what_is_foreign() {
    let at = |last| Frontend { address: [192, 0, 2, last].into(), port: 443, protocol: Protocol::Tcp };
    let node = FakeNode::default();
    for last in [7, 130] {
        node.state().servers.insert(at(last), FakeServer { with: None, reals: BTreeMap::new() });
    }
    let mut upstream = features(true);
    upstream.exclude = vec!["192.0.2.128/25".parse().unwrap()];
    let mut bench = Bench::on(node, IpFamily::V4, upstream);
    bench.sync().await.unwrap();
    assert_eq!(bench.node.state().servers.keys().collect::<Vec<_>>(), [&at(130)]);
}

#[tokio::test]
async fn what_an_earlier_run_left_goes_and_weights_are_set_right() {
    let (bench, at) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    bench.node.state().servers.get_mut(&at).unwrap().reals.values_mut().for_each(|weight| *weight = 0);
    let mut other = bench.restarted();
    other.sync().await.unwrap();
    assert!(other.reals(&at).iter().all(|(_, weight)| *weight == 1));

    let mut empty = Bench::on(bench.node.clone(), IpFamily::V4, features(false));
    empty.sync().await.unwrap();
    let state = empty.node.state();
    assert!(state.servers.is_empty() && state.interfaces["kube-ipvs0"].is_empty());
    assert!(state.sets.values().all(|(_, entries)| entries.is_empty()));
}

#[tokio::test]
async fn every_harm_is_noticed_and_healed() {
    type Harm = (&'static str, fn(&mut State));
    let harms: [Harm; 6] = [
        ("is gone", |state| drop(state.servers.pop_first())),
        ("was changed", |state| state.servers.values_mut().next().unwrap().with = None),
        ("were changed", |state| state.servers.values_mut().next().unwrap().reals.clear()),
        ("kube-ipvs0 has 0 addresses", |state| drop(state.interfaces.remove("kube-ipvs0"))),
        ("ipset KUBE-CLUSTER-IP is gone", |state| drop(state.sets.remove("KUBE-CLUSTER-IP"))),
        ("has 0 entries", |state| state.sets.get_mut("KUBE-IPVS-IPS").unwrap().1.clear()),
    ];
    for (what, harm) in harms {
        let (mut bench, _) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
        assert_eq!(bench.verify().await, None);
        let good = bench.kernel();
        harm(&mut bench.node.state());
        let noticed = bench.verify().await.expect(what);
        assert!(noticed.contains(what), "{noticed}");
        bench.sync().await.unwrap();
        bench.tend().await;
        assert_eq!(bench.kernel(), good, "{what}");
    }
    let (mut bench, _) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    assert_eq!(bench.verify().await, None);
    bench.backend.tools.flush("nat");
    let found = bench.found(VerifyDepth::Quick).await;
    for what in
        ["jump PREROUTING to KUBE-SERVICES", "chain KUBE-SERVICES of table nat was changed by meddler"]
    {
        assert!(found.iter().any(|it| it.starts_with(what)), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn a_quick_look_costs_the_same_however_many_services_there_are() {
    const LOOKS: usize = 110;
    let mut costs = Vec::new();
    for services in [200_u16, 1000] {
        let mut bench = Bench::new(IpFamily::V4);
        (0..services).flat_map(numbered).for_each(|event| bench.tracker.fold(event));
        bench.sync().await.unwrap();
        let node = bench.node.clone();
        let features = bench.backend.features.clone();
        // The other family has nothing, and the kernel lists the servers of both.
        let mut other = Bench::on(node, IpFamily::V6, features);
        other.sync().await.unwrap();
        // The first look after a sync reads the addresses that were written.
        assert_eq!((bench.verify().await, other.verify().await), (None, None));
        bench.node.state().asked = (0, 0);
        for _ in 0..LOOKS {
            assert_eq!((bench.verify().await, other.verify().await), (None, None));
        }
        let (asked, answered) = bench.node.state().asked;
        costs.push((asked.div_ceil(LOOKS), answered.div_ceil(LOOKS)));
        // A look at everything, for comparison.
        bench.node.state().asked = (0, 0);
        assert_eq!(bench.find().await, [] as [String; 0]);
        assert!(bench.node.state().asked.1 > 5 * usize::from(services));
    }
    // In both families: each of 19 sets, and now and then all virtual servers; the real servers of ten.
    assert!(costs.iter().all(|(asked, answered)| *asked <= 50 && *answered <= 200), "{costs:?}");
}

#[tokio::test]
async fn a_restart_asks_as_many_questions_however_many_services_there_are() {
    let mut questions = Vec::new();
    for services in [200_u16, 1000] {
        let mut bench = Bench::new(IpFamily::V4);
        (0..services).flat_map(numbered).for_each(|event| bench.tracker.fold(event));
        bench.sync().await.unwrap();
        let mut next = bench.restarted();
        bench.node.state().asked = (0, 0);
        next.sync().await.unwrap();
        assert!(next.is_in_line());
        questions.push(bench.node.state().asked.0);
    }
    assert_eq!(questions[0], questions[1]);
}

#[tokio::test]
async fn node_ports_follow_the_nodes_addresses() {
    let mut bench = Bench::new(IpFamily::V4);
    let (_, mut service) = web(Protocol::Tcp);
    service.ports[0].node_port = 30080;
    bench.tracker.fold(WatchEvent::Service(service));
    bench.tracker.fold(slice(Protocol::Tcp, &[1]));
    bench.sync().await.unwrap();
    let at = |last| Frontend { address: [10, 200, 0, last].into(), port: 30080, protocol: Protocol::Tcp };
    assert_eq!(bench.reals(&at(11)).len(), 1);
    bench.node.state().interfaces.get_mut("eth0").unwrap().insert([10, 200, 0, 12].into());
    assert_eq!(bench.verify().await.unwrap(), "the node's addresses changed");
    bench.backend.forget();
    bench.sync().await.unwrap();
    assert_eq!(bench.reals(&at(12)).len(), 1);
    bench.node.state().interfaces.get_mut("eth0").unwrap().remove(&IpAddr::from([10, 200, 0, 11]));
    bench.backend.forget();
    bench.sync().await.unwrap();
    assert!(!bench.node.state().servers.contains_key(&at(11)));
    assert!(!bench.node.state().servers.keys().any(|at| at.address.is_loopback()));
}

#[tokio::test]
async fn any_address_of_the_node_lets_it_into_source_ranges_but_not_in_upstreams_ways() {
    let address = IpAddr::from([192, 0, 2, 10]);
    let at = Frontend { address, port: 80, protocol: Protocol::Tcp };
    for (upstream_compat, lets_in) in [(false, true), (true, false)] {
        let mut bench = Bench::on(FakeNode::default(), IpFamily::V4, features(upstream_compat));
        bench.node.state().interfaces.get_mut("eth0").unwrap().insert([10, 200, 7, 1].into());
        let (_, mut service) = web(Protocol::Tcp);
        service.external = Some(Box::new(External {
            external_ips: [].into(),
            load_balancer_ips: [address].into(),
            // The Node object has no address at all.
            source_ranges: ["10.200.7.0/24".parse().unwrap()].into(),
            traffic_policy: TrafficPolicy::Cluster,
            health_check_node_port: 0,
        }));
        bench.tracker.fold(WatchEvent::Service(service));
        bench.sync().await.unwrap();
        let own = SetEntry::IpPortIp(at, address);
        let is_let_in = bench.node.state().sets["KUBE-LOAD-BALANCER-SOURCE-IP"].1.contains(&own);
        let is_guarded = bench.kernel().3.iter().any(|rule| rule.starts_with("-A KUBE-IPVS-OUT-FILTER"));
        assert_eq!((is_let_in, is_guarded), (lets_in, !lets_in), "upstream's ways: {upstream_compat}");
    }
}

/// `rr` begins with the real server that was added last.
#[tokio::test]
async fn the_first_endpoint_differs_from_node_to_node_but_not_in_upstreams_ways() {
    let (bench, _) = bench_with_web(Protocol::Tcp, &[1, 2, 3]).await;
    for (upstream_compat, orders) in [(false, 3), (true, 1)] {
        let order = |number: u8| {
            let features =
                Features { node_name: format!("node-{number}").into(), ..features(upstream_compat) };
            let other = bench.picture_for(Bench::on(FakeNode::default(), IpFamily::V4, features));
            let plan = Plan::new(&other.settings, other.tracker.snapshot(), Scope::All);
            let desired = other.backend.render(&plan);
            let changes = other.backend.diff(&Baseline::default(), &desired);
            changes.servers.iter().map(|operation| format!("{operation:?}")).collect::<Vec<_>>()
        };
        let found: BTreeSet<_> = (0..20).map(order).collect();
        assert_eq!(found.len(), orders, "upstream's ways: {upstream_compat}");
    }
}

#[tokio::test]
async fn link_local_addresses_of_new_interfaces_do_not_matter() {
    let mut bench = Bench::new(IpFamily::V6);
    bench.sync().await.unwrap();
    let fresh = "fe80::7".parse().unwrap();
    bench.node.state().interfaces.insert("veth7".to_owned(), BTreeSet::from([fresh]));
    assert_eq!(bench.verify().await, None);
    bench.node.state().interfaces.insert("eth1".to_owned(), BTreeSet::from(["fd00::7".parse().unwrap()]));
    assert!(bench.verify().await.is_some());
}

#[tokio::test]
async fn nodes_begin_with_different_endpoints() {
    let mut first = BTreeSet::new();
    for number in 0..20 {
        let mut bench = Bench::new(IpFamily::V4);
        bench.backend.features.node_name = format!("node-{number}").into();
        let (at, service) = web(Protocol::Tcp);
        bench.tracker.fold(WatchEvent::Service(service));
        bench.tracker.fold(slice(Protocol::Tcp, &[1, 2, 3]));
        bench.sync().await.unwrap();
        let state = bench.node.state();
        let added = state.log.iter().find_map(|operation| match operation {
            ServerOperation::AddReal(to, real) if *to == at => Some(real.address),
            _ => None,
        });
        first.insert(added.unwrap());
    }
    assert_eq!(first.len(), 3);
}

#[tokio::test]
async fn rules_come_before_virtual_servers_and_these_before_addresses() {
    let (bench, _) = bench_with_web(Protocol::Tcp, &[1]).await;
    let input = &bench.backend.tools.inputs[0];
    assert!(input.contains("KUBE-MARK-MASQ"));
    // A sync that fails at the virtual servers leaves rules, and no address that leads nowhere.
    let mut bench = bench.afresh();
    let sets = names::SetId::ALL.len() + 1;
    bench.node.state().fails_after = Some(sets + 2);
    bench.sync().await.unwrap_err();
    assert_eq!(bench.backend.tools.inputs.len(), 1);
    assert!(bench.node.state().servers.is_empty() && bench.node.state().interfaces["kube-ipvs0"].is_empty());
}

/// A Service of many, at the address that belongs to the number, with one endpoint.
fn numbered(number: u16) -> [WatchEvent; 2] {
    let [high, low] = number.to_be_bytes();
    let (_, mut service) = web(Protocol::Tcp);
    service.name = ServiceName::new("bulk", &format!("bulk-{number}"));
    service.cluster_ips.v4 = Some([10, 97, high, low].into());
    let WatchEvent::Slice(mut slice) = slice(Protocol::Tcp, &[1]) else { unreachable!() };
    slice.name = format!("bulk/bulk-{number}-1").into();
    slice.service = service.name.clone();
    slice.endpoints[0].address = [10, 129, high, low].into();
    [WatchEvent::Service(service), WatchEvent::Slice(slice)]
}

#[tokio::test]
async fn of_a_thousand_services_the_one_that_is_refused_is_named_and_left_out() {
    let address = |network, number: u16| {
        let [high, low] = number.to_be_bytes();
        IpAddr::from([10, network, high, low])
    };
    for (object, refused) in [
        (FakeObject::VirtualServer, address(97, 500)),
        (FakeObject::RealServer, address(129, 500)),
        (FakeObject::Entry, address(97, 500)),
        (FakeObject::Address, address(97, 500)),
    ] {
        let mut bench = Bench::new(IpFamily::V4);
        (0..1000).flat_map(numbered).for_each(|event| bench.tracker.fold(event));
        bench.node.state().refused.insert((object, refused));
        let applied = bench.sync().await.unwrap();
        let name = ServiceName::new("bulk", "bulk-500");
        let named: Vec<_> = applied.newly_refused().map(|refusal| refusal.service.clone()).collect();
        assert_eq!(named, std::slice::from_ref(&name), "{object:?}");
        let mut without = bench.afresh();
        without.tracker.fold(WatchEvent::ServiceGone(name.clone()));
        without.sync().await.unwrap();
        assert_eq!(bench.kernel().0, without.kernel().0, "{object:?}: all other Services, and nothing of it");
        assert_eq!(bench.kernel().1, without.kernel().1, "{object:?}");
        assert_eq!(bench.kernel().2, without.kernel().2, "{object:?}");
        assert_eq!(bench.verify().await, None, "{object:?}");

        // It stays named while other Services change, and comes back when it changes and the kernel takes it.
        bench.tracker.fold(WatchEvent::ServiceGone(ServiceName::new("bulk", "bulk-1")));
        let applied = bench.sync().await.unwrap();
        assert_eq!((applied.refused.len(), applied.newly_refused().count()), (1, 0), "{object:?}");
        bench.node.state().refused.clear();
        bench.tracker.fold(WatchEvent::ServiceGone(name));
        numbered(500).into_iter().for_each(|event| bench.tracker.fold(event));
        assert_eq!(bench.sync().await.unwrap().refused, [], "{object:?}");
        let mut fresh = bench.afresh();
        fresh.sync().await.unwrap();
        assert_eq!(bench.kernel(), fresh.kernel(), "{object:?}");
    }
}

#[tokio::test]
async fn a_refusal_of_what_changed_is_only_believed_after_looking_anew() {
    let (mut bench, at) = bench_with_web(Protocol::Tcp, &[1]).await;
    bench.node.state().refused.insert((FakeObject::RealServer, [10, 128, 1, 2].into()));
    bench.tracker.fold(slice(Protocol::Tcp, &[1, 2]));
    assert!(bench.sync().await.is_err());
    let applied = bench.sync().await.unwrap();
    assert_eq!(applied.newly_refused().count(), 1);
    assert!(!bench.node.state().servers.contains_key(&at));
}

/// Does one random harm to what is ours; returns words that must be named.
fn harm(state: &mut State, random: &mut Generator) -> &'static str {
    let mut pick = |count: usize| usize::try_from(random.below(count.max(1) as u64)).unwrap();
    let kind = pick(8);
    let servers: Vec<Frontend> = state.servers.keys().copied().collect();
    let at = servers[pick(servers.len())];
    let addresses: Vec<IpAddr> = state.interfaces["kube-ipvs0"].iter().copied().collect();
    let sets: Vec<String> = state
        .sets
        .iter()
        .filter(|(_, (_, entries))| !entries.is_empty())
        .map(|(name, _)| name.clone())
        .collect();
    let entries = &mut state.sets.get_mut(&sets[pick(sets.len())]).unwrap().1;
    let server = state.servers.get_mut(&at).unwrap();
    match kind {
        0 => {
            state.servers.remove(&at);
            "virtual server "
        }
        1 => {
            server.with = None;
            "virtual server "
        }
        2 if !server.reals.is_empty() => {
            server.reals.pop_first();
            "real servers of "
        }
        3 => {
            server.reals.insert("192.0.2.9:9".parse().unwrap(), 1);
            "real servers of "
        }
        4 if !server.reals.is_empty() => {
            *server.reals.values_mut().next().unwrap() = 7;
            "real servers of "
        }
        5 => {
            state.interfaces.get_mut("kube-ipvs0").unwrap().remove(&addresses[pick(addresses.len())]);
            "interface kube-ipvs0 "
        }
        6 => {
            entries.pop_first();
            "ipset KUBE-"
        }
        _ => {
            // The same number of entries: only the content tells.
            let old = entries.pop_first().unwrap();
            entries.insert(match old {
                SetEntry::Port(_) => SetEntry::Port(1),
                SetEntry::Ip(_) => SetEntry::Ip([192, 0, 2, 9].into()),
                SetEntry::IpPort(at) => SetEntry::IpPort(Frontend { port: 1, ..at }),
                SetEntry::IpPortIp(at, ip) => SetEntry::IpPortIp(Frontend { port: 1, ..at }, ip),
                SetEntry::IpPortNet(at, net) => SetEntry::IpPortNet(Frontend { port: 1, ..at }, net),
            });
            "ipset KUBE-"
        }
    }
}

#[tokio::test]
async fn each_of_two_hundred_random_harms_is_named_and_healed() {
    let mut bench = Bench::new(IpFamily::V4);
    let mut generator = Generator::new(7);
    (0..120).for_each(|_| bench.tracker.fold(generator.event()));
    (0..20).flat_map(numbered).for_each(|event| bench.tracker.fold(event));
    bench.sync().await.unwrap();
    for round in 0..200 {
        assert_eq!(bench.find().await, [] as [String; 0], "round {round}");
        let good = bench.kernel();
        let named = harm(&mut bench.node.state(), &mut generator);
        let found = bench.find().await;
        assert!(found.iter().any(|what| what.starts_with(named)), "round {round}: {named}: {found:?}");
        bench.sync().await.unwrap();
        bench.tend().await;
        assert_eq!(bench.kernel(), good, "round {round}: {named}");
    }
}

#[rstest::rstest]
#[tokio::test]
async fn harm_to_the_rules_around_ipvs_is_named_and_healed(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let (mut bench, _) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    bench.backend.tools = FakeXtables::new(flavor);
    bench.backend.forget();
    bench.sync().await.unwrap();
    let good = bench.backend.tools.tables.clone();
    let chains: Vec<(String, String)> = good
        .iter()
        .flat_map(|(table, chains)| chains.iter().map(move |(chain, rules)| (table, chain, rules)))
        .filter(|(_, chain, rules)| chain.starts_with("KUBE-") && !rules.is_empty())
        .map(|(table, chain, _)| (table.clone(), chain.clone()))
        .collect();
    assert!(chains.len() > 4);
    for (table, chain) in chains {
        bench.backend.tools.meddle(&table, |table| {
            let rule = &mut table.get_mut(&chain).unwrap()[0];
            *rule = format!("-s 192.0.2.1 {rule}");
        });
        let found = bench.find().await;
        let how = match flavor {
            Flavor::Nft => "was changed by meddler",
            Flavor::Legacy => "has other rules than were written",
        };
        assert_eq!(found, [format!("chain {chain} of table {table} {how}")]);
        bench.backend.tools.inputs.clear();
        bench.sync().await.unwrap();
        assert_eq!(bench.backend.tools.tables, good);
        let input = bench.backend.tools.inputs.concat();
        let declared: Vec<&str> = input.lines().filter(|line| line.starts_with(':')).collect();
        assert_eq!(declared, [format!(":{chain} - [0:0]")], "that chain alone is written");
    }
}

#[rstest::rstest]
#[tokio::test]
async fn what_kube_proxy_does_not_have_goes_when_we_are_to_do_as_it_does(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let (mut bench, _) = bench_with_web(Protocol::Tcp, &[1, 2]).await;
    bench.backend.tools = FakeXtables::new(flavor);
    bench.backend.forget();
    bench.sync().await.unwrap();
    let ours = |bench: &Bench| -> Vec<String> {
        let mangle = bench.backend.tools.tables["mangle"].iter();
        let rules = mangle.map(|(chain, rules)| format!("{chain} {rules:?}"));
        let sets = bench
            .node
            .state()
            .sets
            .keys()
            .filter(|name| name.contains("NO-LOCAL"))
            .cloned()
            .collect::<Vec<_>>();
        rules.filter(|rule| rule.contains("KUBE-LOCAL")).chain(sets).collect()
    };
    bench.backend.tools.meddle("mangle", |mangle| {
        mangle.get_mut("KUBE-LOCAL-POLICY").unwrap().push("-s 192.0.2.1 -j DROP".to_owned());
    });
    assert_eq!(ours(&bench).len(), 5, "a chain, two jumps, two sets: {:?}", ours(&bench));
    bench.backend.features = features(true);
    bench.backend.forget();
    bench.sync().await.unwrap();
    assert_eq!(ours(&bench), Vec::<String>::new());
    assert_eq!(bench.find().await, Vec::<String>::new());
}

#[tokio::test]
async fn random_source_ports_that_are_refused_are_left_out_whenever_that_shows() {
    let is_random = |bench: &Bench| {
        bench.backend.tools.rules("nat", "KUBE-POSTROUTING").join("\n").contains("--random-fully")
    };
    let mut bench = Bench::new(IpFamily::V4);
    bench.sync().await.unwrap();
    assert!(is_random(&bench));
    // Later, when everything is written again; the pass that shows it fails.
    bench.backend.tools.refused = vec!["--random-fully".to_owned()];
    bench.backend.forget();
    bench.sync().await.unwrap_err();
    bench.sync().await.unwrap();
    assert!(!is_random(&bench));
    // From the start, it is found out before the first input.
    let mut fresh = bench.afresh();
    fresh.backend.tools.refused = vec!["--random-fully".to_owned()];
    fresh.sync().await.unwrap();
    assert!(!is_random(&fresh));
    assert_eq!(fresh.backend.tools.inputs.len(), 1);
}

//! What Services carried, on an in-memory node.

use super::tests::Bench;
use super::*;
use crate::backend::Detail;
use crate::backend::counters::recorder::{Sums, connections, recording};
use crate::model::{Counts, ServiceName, Traffic, WatchEvent};
use crate::testing::generate::Generator;
use std::collections::BTreeMap;

fn measured(detail: Detail, limit: usize) -> (Bench, Sums) {
    let (measuring, sums) = recording(detail, limit);
    let mut bench = Bench::new(IpFamily::V4);
    bench.backend.counters = Some(ServiceCounters::new(measuring));
    (bench, sums)
}

/// As long as it takes until all was read.
async fn tend(bench: &mut Bench) {
    for _ in 0..30 {
        bench.tend().await;
    }
}

/// Opens a connection of each virtual server to each of its real servers; says how many.
fn pass_traffic(bench: &Bench) -> u64 {
    let mut state = bench.node.state();
    let pairs: Vec<_> = state
        .servers
        .iter()
        .flat_map(|(at, server)| server.reals.iter().map(move |(real, weight)| (*at, *real, *weight)))
        .filter(|(_, _, weight)| *weight > 0)
        .collect();
    for (at, real, _) in &pairs {
        *state.opened.entry((*at, *real)).or_default() += 1;
    }
    pairs.len() as u64
}

#[tokio::test]
async fn nothing_is_read_unless_services_are_measured() {
    for measures in [false, true] {
        let (mut bench, _) = measured(Detail::Endpoints, 1000);
        bench.backend.counters = bench.backend.counters.filter(|_| measures);
        let mut generator = Generator::new(1);
        (0..30).for_each(|_| bench.tracker.fold(generator.event()));
        bench.sync().await.unwrap();
        tend(&mut bench).await;
        assert_eq!(bench.node.state().counts_read > 0, measures);
    }
}

#[tokio::test]
async fn counts_follow_the_connections_through_any_sequence_of_changes() {
    let mut external = 0;
    for seed in 0..30 {
        let (mut bench, sums) = measured(Detail::Endpoints, 10_000);
        let mut generator = Generator::new(seed);
        for _ in 0..8 {
            (0..=generator.below(6)).for_each(|_| bench.tracker.fold(generator.event()));
            bench.sync().await.unwrap();
            // A frontend that went from one Service to another is counted from the next reading on.
            tend(&mut bench).await;
            let before: BTreeMap<String, Counts> = sums.borrow().clone();
            let passed = pass_traffic(&bench);
            tend(&mut bench).await;
            let frontends = |sums: &BTreeMap<String, Counts>, what: &str| {
                let of = sums.iter().filter(|(name, _)| name.contains(what));
                of.fold(Counts::default(), |sum, (_, counts)| sum.plus(*counts))
            };
            let now = sums.borrow().clone();
            let grown = |what| frontends(&now, what).since(frontends(&before, what));
            let sum = grown("ClusterIp").plus(grown("External"));
            let traffic = Traffic { bytes_in: 100 * passed, ..Traffic::default() };
            if passed > 0 {
                assert_eq!(sum, Counts { connections: passed, traffic: Some(traffic) }, "seed {seed}");
            }
            assert!(now.iter().all(|(name, it)| it.connections >= before[name].connections), "seed {seed}");
            external += grown("External").connections;
        }
    }
    assert!(external > 100);
}

#[tokio::test]
async fn counts_go_on_over_a_restart_of_the_kernels() {
    let (mut bench, sums) = measured(Detail::Frontends, 100);
    let mut generator = Generator::new(5);
    (0..60).for_each(|_| bench.tracker.fold(generator.event()));
    bench.sync().await.unwrap();
    let first = pass_traffic(&bench);
    tend(&mut bench).await;
    assert_eq!(connections(&sums, " "), first);
    // Somebody removes all, and it is healed.
    bench.node.state().servers.clear();
    bench.node.state().opened.clear();
    bench.backend.forget();
    bench.sync().await.unwrap();
    let second = pass_traffic(&bench) + pass_traffic(&bench);
    tend(&mut bench).await;
    assert_eq!(connections(&sums, " "), first + second);
    assert_eq!(connections(&sums, "Endpoint"), 0);
}

#[tokio::test]
async fn beyond_the_limit_services_are_neither_read_nor_told() {
    let (mut bench, sums) = measured(Detail::Endpoints, 5);
    let mut generator = Generator::new(3);
    (0..60).for_each(|_| bench.tracker.fold(generator.event()));
    bench.sync().await.unwrap();
    assert!(connections(&sums, "left out") > 0 && sums.borrow().len() <= 6, "{:?}", sums.borrow());
    let names: Vec<ServiceName> = bench.tracker.snapshot().services.keys().cloned().collect();
    names.into_iter().for_each(|name| bench.tracker.fold(WatchEvent::ServiceGone(name)));
    bench.sync().await.unwrap();
    assert_eq!(*sums.borrow(), BTreeMap::from([("left out".to_owned(), Counts::default())]));
}

#[tokio::test]
async fn a_virtual_server_is_asked_once_for_all_its_endpoints() {
    let (mut asked, mut reals, mut servers) = (0, 0, 0);
    for seed in 0..10 {
        let (mut bench, _) = measured(Detail::Endpoints, 1000);
        let mut generator = Generator::new(seed);
        (0..60).for_each(|_| bench.tracker.fold(generator.event()));
        bench.sync().await.unwrap();
        bench.tend().await;
        let state = bench.node.state();
        asked += state.counts_read;
        servers += state.servers.len();
        reals += state.servers.values().map(|server| server.reals.len()).sum::<usize>();
    }
    assert!(asked <= 2 * servers && asked < servers + reals, "{asked} for {reals} of {servers}");
}

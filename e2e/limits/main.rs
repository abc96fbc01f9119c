//! One change must cost what one change costs, however large the cluster is: counted in requests
//! for memory and in lines sent, which, unlike time, are the same on every machine.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait; this one only counts")]

use kube_proxy_rs::backend::{Dataplane as _, VerifyDepth};
use kube_proxy_rs::model::WatchEvent;
use kube_proxy_rs::state::ChangedObjects;
use kube_proxy_rs::testing::cluster::{Cluster, name, service, slice};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

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

/// One change and its cost, from the plan to the rules.
async fn change(cluster: &mut Cluster, event: WatchEvent) -> Cost {
    let changes = cluster.fold(event);
    cluster.backend.tools().lines = 0;
    let before = REQUESTS.get();
    cluster.sync(Some(&changes)).await.unwrap();
    Cost { requests: REQUESTS.get() - before, lines: cluster.backend.tools().lines }
}

/// The costs of the same change in a small cluster and in one ten times as large.
async fn costs(events: impl Fn(u32) -> Vec<WatchEvent>) -> [Cost; 2] {
    let mut costs = Vec::new();
    for services in [400, 4000] {
        let mut cluster = Cluster::of(services).await.unwrap();
        let mut worst = Cost { requests: 0, lines: 0 };
        for event in events(services) {
            let cost = change(&mut cluster, event).await;
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

/// One verification, and how often it had to read something.
async fn verify(cluster: &mut Cluster, depth: VerifyDepth) -> usize {
    cluster.backend.tools().listings = 0;
    assert_eq!(cluster.backend.verify(depth).await.unwrap(), []);
    cluster.backend.tools().listings
}

#[tokio::test]
async fn a_verification_costs_the_same_however_many_chains_there_are() {
    let mut costs = Vec::new();
    for services in [400, 4000] {
        let mut cluster = Cluster::of(services).await.unwrap();
        for others_write in [false, true, false] {
            if others_write {
                cluster.backend.tools().others_write("THEIRS");
            }
            for kind in [VerifyDepth::Quick, VerifyDepth::Thorough] {
                let before = REQUESTS.get();
                assert_eq!(verify(&mut cluster, kind).await, 0, "no rule and no chain is read");
                costs.push(REQUESTS.get() - before);
            }
        }
    }
    let (small, large) = costs.split_at(costs.len() / 2);
    assert_eq!(small, large);
    assert!(large.iter().all(|requests| *requests < 10), "{large:?}");
}

/// The nft-backed tool holds an input's rules in memory, some 2.5 kB each, and is part of our pod.
#[tokio::test]
async fn no_input_of_a_first_sync_is_long() {
    let mut cluster = Cluster::of(4000).await.unwrap();
    let longest = cluster.backend.tools().longest;
    assert!(longest < 3000, "{longest} lines in one input");
}

/// What mending a chain takes, in bytes of input.
async fn mend(cluster: &mut Cluster, chain: &str) -> usize {
    cluster.backend.tools().others_write(chain);
    let found = cluster.backend.verify(VerifyDepth::Quick).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    cluster.backend.tools().bytes = 0;
    let nothing = ChangedObjects::default();
    cluster.sync(Some(&nothing)).await.unwrap();
    cluster.backend.tools().bytes
}

#[tokio::test]
async fn a_lost_rule_costs_one_chain_in_a_cluster_of_any_size() {
    let mut costs = Vec::new();
    for services in [400, 4000] {
        let mut cluster = Cluster::of(services).await.unwrap();
        // The balancing chain of a Service, and one that always stands.
        costs.push([
            mend(&mut cluster, "KUBE-SVC-OIVEGGWTKVF5DKKA").await,
            mend(&mut cluster, "KUBE-POSTROUTING").await,
        ]);
    }
    assert_eq!(costs[0], costs[1]);
    assert!(costs[1].iter().all(|bytes| (100..1000).contains(bytes)), "{costs:?}");
}

#[tokio::test]
async fn a_storm_of_others_writes_to_chains_of_their_own_is_only_listened_to() {
    let mut cluster = Cluster::of(400).await.unwrap();
    for round in 0..1000 {
        for number in 0..100 {
            cluster.backend.tools().others_write(&format!("THEIRS-{round}-{number}"));
        }
        let before = REQUESTS.get();
        assert_eq!(verify(&mut cluster, VerifyDepth::Thorough).await, 0, "no rule and no chain is read");
        assert!(REQUESTS.get() - before < 10);
    }
    cluster.backend.tools().bytes = 0;
    cluster.sync(Some(&ChangedObjects::default())).await.unwrap();
    assert_eq!(cluster.backend.tools().bytes, 0, "nothing is written");
}

/// What a change takes in mode nftables: elements, bytes and transactions sent, lists read.
async fn elements(services: u32, events: &[WatchEvent]) -> Vec<[usize; 4]> {
    let mut cluster = Cluster::of_elements(services).await.unwrap();
    let mut costs = Vec::new();
    for event in events {
        let changes = cluster.fold(event.clone());
        cluster.backend.kernel().start_over();
        let before = REQUESTS.get();
        cluster.sync(Some(&changes)).await.unwrap();
        let requests = REQUESTS.get() - before;
        assert!(requests < 300, "{requests} requests for memory");
        let sent = cluster.backend.kernel();
        costs.push([sent.elements, sent.bytes, sent.transactions, sent.listings]);
    }
    costs
}

#[tokio::test]
async fn one_change_sends_the_same_elements_in_a_cluster_of_any_size() {
    // The same Services in each, so that names are of one length; new ones, too.
    let changes =
        [slice(42, 4), slice(42, 5), slice(42, 0), slice(42, 1), service(300_000), slice(300_000, 5)];
    let gone = [WatchEvent::ServiceGone(name(300_000))];
    let changes = [&changes[..], &gone].concat();
    let [small, large] = [elements(400, &changes).await, elements(4000, &changes).await];
    assert_eq!(small, large);
    // An endpoint went with its class, and came with it; all five and their class went for a refusal, and one came for that; a
    // Service came without endpoints, got five, and went.
    let counts: Vec<usize> = large.iter().map(|[elements, ..]| *elements).collect();
    assert_eq!(counts, [3, 3, 7, 2, 2, 7, 7]);
    assert!(
        large
            .iter()
            .all(|[_, bytes, transactions, listings]| *bytes < 1000 && (*transactions, *listings) == (1, 0))
    );
}

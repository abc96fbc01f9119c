//! Services that the kernel refuses, on an in-memory iptables: what other Services notice, and what finding them costs.

use super::tests::Bench;
use super::*;
use crate::kernel::fake::iptables::{FakeXtables, Table};
use crate::kernel::iptables::TRIAL;
use crate::model::{ServicePort, WatchEvent};
use crate::testing::cluster::{name, service, slice};
use crate::testing::generate::Generator;
use rstest::rstest;
use std::net::Ipv4Addr;

const SERVICES: u32 = 30;
const REFUSED: u32 = 7;

/// Words of rules in a Service's own chains, in what refuses its packets, and in what leads to it.
const WORDS: [&str; 3] = ["http ->", "http has no endpoints", LEADING];
const LEADING: &str = "http cluster IP";

/// What a line of the rules of a Service contains, in a chain of its own or only in those that lead to it.
fn line(service: &WatchEvent, words: &str) -> String {
    let WatchEvent::Service(service) = service else { unreachable!() };
    let address = service.cluster_ips.v4.unwrap();
    let rest = format!("\" -m tcp -p tcp -d {address} --dport 80 -j KUBE-SVC-");
    format!("{}:{words}{}", service.name, if words == LEADING { &rest } else { "" })
}

/// Programmed Services, of which the kernel refuses one from now on.
async fn bench(threshold: usize, poison: &str) -> Bench {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 20).with_tree_above(threshold);
    for number in 0..SERVICES {
        bench.tracker.fold(service(number));
        bench.tracker.fold(slice(number, 2));
    }
    bench.sync().await.unwrap();
    bench.backend.tools().inputs.clear();
    bench.backend.tools().refused = vec![line(&service(REFUSED), poison)];
    bench
}

/// The endpoints that packets may be sent to.
fn endpoints(nat: &Table) -> BTreeSet<String> {
    let (mut open, mut reached) = (vec!["KUBE-SERVICES".to_owned()], BTreeSet::new());
    while let Some(chain) = open.pop() {
        for rule in &nat[&chain] {
            reached.extend(rule.split_once("--to-destination ").map(|(_, to)| to.to_owned()));
            let target = rule.rsplit_once("-j ").map(|(_, to)| to.to_owned());
            open.extend(target.filter(|target| nat.contains_key(target)));
        }
    }
    reached
}

/// What a Service is without.
async fn expect_without(bench: &mut Bench) -> BTreeSet<String> {
    let mut without = bench.afresh(Flavor::Nft);
    without.tracker.fold(WatchEvent::ServiceGone(name(REFUSED)));
    without.sync().await.unwrap();
    assert_eq!(bench.tables(), without.tables());
    endpoints(&without.tables()["nat"])
}

#[rstest]
#[tokio::test]
async fn traffic_of_all_others_goes_on_while_the_one_at_fault_is_looked_for(
    #[values(usize::MAX, 0)] threshold: usize,
    #[values("http ->", LEADING)] poison: &str,
    #[values(true, false)] is_full: bool,
) {
    let mut bench = bench(threshold, poison).await;
    let mut replay: FakeXtables = bench.backend.tools().clone();
    replay.refused.clear();
    for number in REFUSED - 3..REFUSED + 3 {
        bench.tracker.fold(slice(number, 3));
    }
    bench.tracker.fold(WatchEvent::ServiceGone(name(REFUSED)));
    bench.sync().await.unwrap();
    bench.tracker.fold(service(REFUSED));
    bench.tracker.fold(slice(REFUSED, 2));
    if is_full {
        bench.forget_all();
    }
    let applied = bench.sync().await.unwrap();
    assert_eq!(applied.newly_refused().map(|it| it.service.clone()).collect::<Vec<_>>(), [name(REFUSED)]);
    let all = expect_without(&mut bench).await;
    let before = endpoints(&replay.tables["nat"]);
    let steady: BTreeSet<_> = all.intersection(&before).collect();
    assert!(steady.len() > 50, "{}", steady.len());
    let inputs = bench.backend.tools().inputs.clone();
    for input in inputs {
        replay.restore(&mut std::iter::once(input)).await.unwrap();
        let reached = endpoints(&replay.tables["nat"]);
        assert!(steady.iter().all(|endpoint| reached.contains(*endpoint)));
    }
    assert!(!bench.tables().values().any(|table| table.contains_key(TRIAL)));
}

/// A refusal in a change shows at once, and is no reason to write what did not change.
#[rstest]
#[tokio::test]
async fn a_refusal_of_what_changed_writes_nothing_of_other_services(
    #[values("http ->", LEADING)] poison: &str,
) {
    let mut bench = bench(usize::MAX, poison).await;
    bench.tracker.fold(WatchEvent::ServiceGone(name(REFUSED)));
    bench.sync().await.unwrap();
    bench.tracker.fold(service(REFUSED));
    bench.tracker.fold(slice(REFUSED, 2));
    bench.backend.tools().inputs.clear();
    let applied = bench.sync().await.unwrap();
    assert_eq!(applied.newly_refused().count(), 1);
    expect_without(&mut bench).await;
    let inputs = &bench.backend.tools().inputs;
    let written = inputs.iter().flat_map(|input| input.lines()).filter(|line| line.starts_with("-A KUBE-S"));
    let others = written.filter(|line| !line.contains(name(REFUSED).as_str())).collect::<Vec<_>>();
    assert!(others.iter().all(|line| line.starts_with("-A KUBE-SERVICES ")), "{others:?}");
}

#[tokio::test]
async fn when_the_kernel_refuses_very_many_services_something_else_is_wrong() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    for number in 0..150 {
        bench.tracker.fold(service(number));
        bench.tracker.fold(slice(number, 1));
    }
    bench.backend.tools().refused = vec!["http ->".to_owned()];
    let error = bench.sync().await.unwrap_err();
    assert!(error.to_string().starts_with("more than 100 Services refused, the last with: "), "{error:#}");
    assert!(bench.backend.needs_all());
}

/// Each input that is not done in time takes two minutes.
#[rstest]
#[case::much_larger(200, 2)]
#[case::as_small_as_all_others(2, 6)]
#[tokio::test]
async fn a_slow_service_is_found_in_a_few_tries(#[case] endpoints: u32, #[case] most: usize) {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    for number in 0..SERVICES {
        bench.tracker.fold(service(number));
        bench.tracker.fold(slice(number, if number == REFUSED { endpoints } else { 2 }));
    }
    bench.backend.tools().too_slow = vec![format!("{}:http ->", name(REFUSED))];
    let applied = bench.sync().await.unwrap();
    assert_eq!(applied.newly_refused().map(|it| it.service.clone()).collect::<Vec<_>>(), [name(REFUSED)]);
    assert!(bench.backend.tools().timeouts <= most, "{} tries", bench.backend.tools().timeouts);
    expect_without(&mut bench).await;
}

/// The filter table takes effect although the nat table of the same input does not.
#[tokio::test]
async fn nothing_stays_of_a_slow_service_that_has_rules_in_both_tables() {
    let mut bench = bench(usize::MAX, "no such words").await;
    let WatchEvent::Service(mut with_idle_port) = service(REFUSED) else { unreachable!() };
    let idle = ServicePort { name: "idle".into(), port: 81, ..with_idle_port.ports[0].clone() };
    with_idle_port.ports = [with_idle_port.ports[0].clone(), idle].into();
    bench.tracker.fold(WatchEvent::Service(with_idle_port));
    bench.tracker.fold(slice(REFUSED, 3));
    bench.backend.tools().too_slow = vec![format!("{}:http ->", name(REFUSED))];
    assert_eq!(bench.sync().await.unwrap().newly_refused().count(), 1);
    expect_without(&mut bench).await;
}

/// With and without the one at fault, the tree has other chains.
#[rstest]
#[tokio::test]
async fn no_chain_stays_of_a_tree_in_which_a_service_is_refused(#[values(true, false)] is_full: bool) {
    let dense = |number: u32| {
        let WatchEvent::Service(mut service) = service(number) else { unreachable!() };
        service.cluster_ips.v4 = Some(Ipv4Addr::from(0x0a60_0000 + number).into());
        WatchEvent::Service(service)
    };
    for services in 10..40 {
        let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 1).with_tree_above(0);
        for number in (0..services).filter(|number| *number != REFUSED) {
            bench.tracker.fold(dense(number));
            bench.tracker.fold(slice(number, 1));
        }
        if !is_full {
            bench.sync().await.unwrap();
        }
        bench.tracker.fold(dense(REFUSED));
        bench.tracker.fold(slice(REFUSED, 1));
        bench.backend.tools().refused = vec![line(&dense(REFUSED), LEADING)];
        assert_eq!(bench.sync().await.unwrap().newly_refused().count(), 1);
        expect_without(&mut bench).await;
    }
}

/// One random change of a Service that has no frontend in common with any other.
fn change(random: &mut Generator) -> WatchEvent {
    let number = u32::try_from(random.below(12)).unwrap();
    match random.below(6) {
        0 => WatchEvent::ServiceGone(name(number)),
        1..3 => service(number),
        _ => slice(number, u32::try_from(random.below(4)).unwrap()),
    }
}

/// Makes the kernel refuse up to two Services, in their chains or in what leads to them.
fn poison(random: &mut Generator) -> Vec<String> {
    let one = |random: &mut Generator| {
        let number = u32::try_from(random.below(12)).unwrap();
        line(&service(number), WORDS[usize::try_from(random.below(3)).unwrap()])
    };
    (0..random.below(3)).map(|_| one(random)).collect()
}

#[tokio::test]
async fn whatever_is_refused_the_kernel_is_as_if_the_refused_services_did_not_exist() {
    let (mut refused, mut tried) = (0, 0);
    for seed in 0..60 {
        let mut random = Generator::new(seed as u64);
        let flavor = if seed % 5 == 0 { Flavor::Legacy } else { Flavor::Nft };
        let (most_chains, threshold) = ([usize::MAX, 20, 5, 1][seed % 4], [usize::MAX, 0, 6][seed % 3]);
        let mut bench = Bench::new(IpFamily::V4, flavor, most_chains).with_tree_above(threshold);
        for round in 0..12 {
            (0..=random.below(8)).for_each(|_| bench.tracker.fold(change(&mut random)));
            bench.backend.tools().refused = poison(&mut random);
            if random.below(4) == 0 {
                bench.forget_all();
            }
            // A Service that did not change is not suspected before a full sync.
            let applied = match bench.sync().await {
                Ok(applied) => applied,
                Err(_) => bench.sync().await.unwrap(),
            };
            let mut without = bench.afresh(flavor);
            for refusal in &applied.refused {
                without.tracker.fold(WatchEvent::ServiceGone(refusal.service.clone()));
            }
            without.sync().await.unwrap();
            assert_eq!(bench.tables(), without.tables(), "seed {seed}, round {round}: {:?}", applied.refused);
            assert_eq!(bench.listed().await, [""; 0], "seed {seed}, round {round}");
            assert!(bench.changes().is_empty() || !applied.refused.is_empty());
            refused += applied.refused.len();
            tried += applied.newly_refused().count();
        }
    }
    assert!(refused > 150 && tried > 80, "{refused} refused, {tried} of them tried");
}

//! Services with very many endpoints, on an in-memory iptables.

use super::names::ChainKind;
use super::tests::Bench;
use super::*;
use crate::backend::packet_trace::Packet;
use crate::model::WatchEvent;
use crate::plan::Scope;
use crate::testing::cluster::{name, service, slice};
use rstest::rstest;
use std::collections::{BTreeMap, BTreeSet};

const LARGE: u32 = 7;
const ENDPOINTS: u32 = 40;

impl Bench {
    fn add(&mut self, number: u32, endpoints: u32) {
        self.tracker.fold(service(number));
        self.tracker.fold(slice(number, endpoints));
    }

    /// The endpoints that a Service leads to, by the chains that are there.
    fn leads_to(&mut self, number: u32) -> BTreeSet<String> {
        let nat = self.tables()["nat"].clone();
        let mut reached = BTreeSet::new();
        let comment = format!("{}:", name(number));
        let jumps = |rule: &String| rule.rsplit_once("-j ").map(|(_, to)| to.to_owned());
        let mut chains: Vec<String> =
            nat["KUBE-SERVICES"].iter().filter(|rule| rule.contains(&comment)).filter_map(jumps).collect();
        while let Some(chain) = chains.pop() {
            for rule in &nat[&chain] {
                reached.extend(rule.split_once("--to-destination ").map(|(_, to)| to.to_owned()));
                chains.extend(jumps(rule).filter(|to| nat.contains_key(to)));
            }
        }
        reached
    }

    async fn expect_like_fresh(&mut self) {
        let mut fresh = self.afresh(Flavor::Nft);
        fresh.sync().await.unwrap();
        assert_eq!(self.tables(), fresh.tables());
        assert_eq!(self.listed().await, [""; 0]);
    }
}

/// A pass writes four chains of one Service at most.
fn bench() -> Bench {
    Bench::new(IpFamily::V4, Flavor::Nft, 1)
}

#[rstest]
#[tokio::test]
async fn a_large_service_takes_several_passes_and_no_other_waits_for_it(
    #[values(usize::MAX, 0)] threshold: usize,
) {
    let mut bench = bench().with_tree_above(threshold);
    bench.add(LARGE, ENDPOINTS);
    let mut small = 10;
    while !bench.pass().await.unwrap().unfinished.is_empty() {
        if threshold == usize::MAX {
            assert_eq!(bench.leads_to(LARGE).len(), 0, "nothing leads to half of it");
            assert!(small == 10 || !bench.leads_to(small).is_empty(), "{small} waits");
        }
        small += 1;
        bench.add(small, 1);
    }
    assert!(small > 18, "it takes a pass for each four chains");
    bench.expect_like_fresh().await;

    // A change of it that is as large, and one that comes meanwhile.
    bench.tracker.fold(slice(LARGE, 0));
    bench.sync().await.unwrap();
    bench.tracker.fold(slice(LARGE, ENDPOINTS));
    for _ in 0..3 {
        assert!(!bench.pass().await.unwrap().unfinished.is_empty());
    }
    bench.tracker.fold(slice(LARGE, ENDPOINTS / 2));
    bench.sync().await.unwrap();
    bench.expect_like_fresh().await;
    bench.tracker.fold(slice(LARGE, ENDPOINTS));
    assert!(!bench.pass().await.unwrap().unfinished.is_empty());
    bench.tracker.fold(WatchEvent::ServiceGone(name(LARGE)));
    bench.sync().await.unwrap();
    bench.expect_like_fresh().await;
}

#[tokio::test]
async fn a_large_service_keeps_its_traffic_over_changes_and_over_a_restart() {
    let mut bench = bench();
    bench.add(LARGE, ENDPOINTS);
    bench.add(20, 1);
    bench.sync().await.unwrap();
    bench.tracker.fold(slice(LARGE, ENDPOINTS * 2));
    while !bench.pass().await.unwrap().unfinished.is_empty() {
        assert!(bench.leads_to(LARGE).len() >= ENDPOINTS as usize);
    }
    bench.tracker.fold(WatchEvent::ServiceGone(name(20)));
    bench.tracker.fold(slice(LARGE, ENDPOINTS));
    bench.forget_all();
    let mut passes = 0;
    while !bench.pass().await.unwrap().unfinished.is_empty() {
        passes += 1;
        assert!(bench.leads_to(LARGE).len() >= ENDPOINTS as usize, "after pass {passes}");
        assert_eq!(bench.listed().await, [""; 0], "what is not written yet is not drift");
    }
    assert!(passes > 8);
    bench.expect_like_fresh().await;
}

#[rstest]
#[tokio::test]
async fn after_a_restart_only_what_differs_is_written(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[values(0, usize::MAX)] threshold: usize,
) {
    let mut bench = Bench::new(IpFamily::V4, flavor, 500).with_tree_above(threshold);
    (0..30).for_each(|number| bench.add(number, 2));
    bench.sync().await.unwrap();
    let written = bench.backend.tools().inputs.len();
    bench.backend.forget();
    bench.sync().await.unwrap();
    assert_eq!(bench.backend.tools().inputs[written..], [""; 0]);

    // While it was down, an endpoint chain was changed, a Service came and one went.
    bench.backend.tools().meddle("nat", |nat| {
        let chain = nat.iter_mut().find(|(name, _)| name.starts_with("KUBE-SEP-")).unwrap();
        chain.1.pop();
    });
    bench.add(30, 2);
    bench.tracker.fold(WatchEvent::ServiceGone(name(4)));
    bench.backend.forget();
    bench.sync().await.unwrap();
    let text = bench.backend.tools().inputs[written..].concat();
    let endpoints = text.lines().filter(|line| line.starts_with("-A KUBE-SEP-") && line.contains("-j DNAT"));
    assert_eq!(endpoints.count(), 3, "{text}");
    let mut fresh = bench.afresh(flavor).with_tree_above(threshold);
    fresh.sync().await.unwrap();
    assert_eq!(bench.tables(), fresh.tables());
}

#[tokio::test]
async fn a_flush_while_a_large_service_is_written_is_healed() {
    for passes in 1..12 {
        let mut bench = bench();
        bench.add(LARGE, ENDPOINTS);
        bench.add(20, 1);
        for _ in 0..passes {
            bench.pass().await.unwrap();
        }
        bench.backend.tools().meddle("nat", |nat| {
            nat.get_mut("KUBE-SERVICES").unwrap().clear();
            nat.retain(|chain, _| !chain.starts_with("KUBE-S") || chain == "KUBE-SERVICES");
        });
        assert!(!bench.backend.verify(VerifyDepth::Quick).await.unwrap().is_empty());
        bench.sync().await.unwrap();
        bench.expect_like_fresh().await;
    }
}

#[tokio::test]
async fn a_service_whose_input_is_not_done_in_time_is_left_out_and_not_tried_again_at_once() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 7);
    (0..30).for_each(|number| bench.add(number, 2));
    bench.sync().await.unwrap();
    bench.add(LARGE, 5);
    bench.add(40, 2);
    bench.backend.tools().too_slow = vec![format!("{}:", name(LARGE))];
    let applied = loop {
        assert!(bench.backend.tools().timeouts < 3);
        if let Ok(applied) = bench.sync().await {
            break applied;
        }
    };
    let refused: Vec<_> = applied.newly_refused().map(|it| (it.service.clone(), it.reason.clone())).collect();
    let reason = "fake-iptables-restore was stopped after 120s: the input is too much for it";
    assert_eq!(refused, [(name(LARGE), reason.to_owned())]);
    assert!(!bench.leads_to(40).is_empty());
    let tries = bench.backend.tools().timeouts;
    assert!(tries < 10, "{tries} times");
    for number in 50..60 {
        bench.add(number, 1);
        bench.sync().await.unwrap();
    }
    assert_eq!(bench.backend.tools().timeouts, tries, "other Services' changes do not start it again");
}

#[rstest]
#[tokio::test]
async fn a_large_service_that_is_not_done_in_time_is_left_out(#[values(usize::MAX, 0)] threshold: usize) {
    let mut bench = bench().with_tree_above(threshold);
    (10..20).for_each(|number| bench.add(number, 2));
    bench.add(LARGE, ENDPOINTS);
    let mut fresh = bench.afresh(Flavor::Nft);
    fresh.sync().await.unwrap();
    let chain =
        fresh.tables()["nat"].iter().find(|(_, rules)| rules.len() > 30 && rules[0].contains("s-000007"));
    bench.backend.tools().too_slow = vec![format!("-A {} ", chain.unwrap().0)];
    let applied = bench.sync().await.unwrap();
    let refused: Vec<_> = applied.newly_refused().map(|it| it.service.clone()).collect();
    assert_eq!((refused, bench.backend.tools().timeouts), (vec![name(LARGE)], 1));
    bench.add(20, 2);
    bench.sync().await.unwrap();
    bench.add(21, 2);
    bench.sync().await.unwrap();
    assert_eq!(bench.backend.tools().timeouts, 1, "it is not tried again with the same input");
    let mut without = bench.afresh(Flavor::Nft);
    without.tracker.fold(WatchEvent::ServiceGone(name(LARGE)));
    without.sync().await.unwrap();
    assert_eq!(bench.tables(), without.tables());

    // A change of it, or the retry that writes everything again.
    bench.backend.tools().too_slow.clear();
    bench.backend.forget();
    assert!(bench.sync().await.unwrap().refused.is_empty());
    bench.expect_like_fresh().await;
}

/// The chance of each endpoint of a large Service to get a packet.
fn chances(bench: &Bench) -> BTreeMap<String, f64> {
    let plan = Plan::new(&bench.settings, bench.tracker.snapshot(), Scope::All).with_endpoint_count(5000);
    let objects = inspect::wanted(&plan, &Features::default());
    let packet = Packet {
        interface: Some("eth0".to_owned()),
        source: "192.0.2.1".parse().unwrap(),
        destination: "10.96.0.0:80".parse().unwrap(),
        protocol: crate::model::Protocol::Tcp,
    };
    let outcomes = inspect::trace(&objects, &packet, &[]);
    let mut chances = BTreeMap::new();
    for outcome in outcomes {
        *chances.entry(format!("{:?}", outcome.verdict)).or_default() += outcome.chance;
    }
    chances
}

#[rstest]
#[case(1000)]
#[case(1001)]
#[case(4500)]
#[tokio::test]
async fn every_endpoint_of_a_large_service_gets_its_share(#[case] endpoints: u32) {
    let mut bench = bench();
    bench.add(0, endpoints);
    let chances = chances(&bench);
    assert_eq!(chances.len(), endpoints as usize);
    for (verdict, chance) in chances {
        assert!((chance * f64::from(endpoints) - 1.0).abs() < 1e-3, "{verdict}: {chance}");
    }
}

#[tokio::test]
async fn one_endpoint_more_among_thousands_rewrites_one_part() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    bench.add(0, 4500);
    bench.sync().await.unwrap();
    bench.tracker.fold(slice(0, 4501));
    bench.backend.tools().inputs.clear();
    bench.sync().await.unwrap();
    let rules = bench.backend.tools().inputs.iter().flat_map(|input| input.lines());
    let count = rules.filter(|line| line.starts_with("-A ")).count();
    assert!((100..400).contains(&count), "{count} rules");
    bench.expect_like_fresh().await;
}

#[tokio::test]
async fn a_large_service_remembers_its_clients() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, usize::MAX);
    let WatchEvent::Service(mut sticky) = service(0) else { unreachable!() };
    sticky.affinity_seconds = Some(60);
    bench.tracker.fold(WatchEvent::Service(sticky));
    bench.tracker.fold(slice(0, 1500));
    bench.sync().await.unwrap();
    let nat = bench.tables()["nat"].clone();
    let top: Vec<_> = nat.iter().filter(|(chain, _)| chain.starts_with("KUBE-SVC-")).collect();
    let [(_, rules)] = top[..] else { panic!("{} chains", top.len()) };
    let (masquerade, rules) = rules.split_first().unwrap();
    assert!(masquerade.ends_with("-j KUBE-MARK-MASQ"));
    let (recall, choose) = rules.split_at(rules.len() / 2);
    assert!(
        recall.iter().all(|rule| rule.starts_with("-j KUBE-SVL-")),
        "all lists are asked before one is chosen: {rules:?}"
    );
    assert!(choose[0].contains("--probability"));
    let parts = nat.iter().filter(|(chain, _)| ChainId::parse(chain).is_some_and(|id| id.is_part()));
    let (mut asked, mut chosen) = (0, 0);
    for rule in parts.flat_map(|(_, rules)| rules) {
        *(if rule.contains("--rcheck") { &mut asked } else { &mut chosen }) += 1;
    }
    assert_eq!((asked, chosen), (1500, 1500));
    assert!(
        nat.keys()
            .filter_map(|chain| ChainId::parse(chain))
            .all(|id| id.kind() != ChainKind::Svl || id.is_part())
    );
}

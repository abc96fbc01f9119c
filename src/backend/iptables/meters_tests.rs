//! What Services carried, on an in-memory iptables.

use super::tests::Bench;
use super::*;
use crate::backend::Detail;
use crate::backend::counters::recorder::{Sums, connections, recording};
use crate::model::{Counts, IpFamily, WatchEvent};
use crate::testing::generate::Generator;
use std::collections::BTreeMap;

impl Bench {
    fn measuring(mut self, measuring: Measuring) -> Self {
        self.backend.counters = Some(ServiceCounters::new(measuring));
        self
    }

    /// As long as it takes until all was read.
    async fn tend(&mut self) {
        for _ in 0..50 {
            self.backend.verify(VerifyDepth::Quick).await.unwrap();
        }
    }

    /// Chains of a kind that the kernel has, with the rules that pass connections on.
    fn chains(&mut self, kind: &str) -> Vec<(String, Vec<String>)> {
        let nat = &self.tables()["nat"];
        let of_kind = nat.iter().filter(|(name, _)| name.starts_with(kind));
        let passing = |rules: &Vec<String>| {
            rules.iter().filter(|rule| !rule.ends_with("KUBE-MARK-MASQ")).cloned().collect()
        };
        of_kind.map(|(name, rules)| (name.clone(), passing(rules))).collect()
    }

    /// Lets one connection pass each way to each endpoint there is, as a kernel would count it.
    fn pass_traffic(&mut self) -> u64 {
        let mut passed = 0;
        for (chain, rules) in [self.chains("KUBE-SVC-"), self.chains("KUBE-SVL-")].concat() {
            for rule in rules.iter().filter(|rule| rule.contains("-j KUBE-SEP-")) {
                let endpoint = rule.rsplit(' ').next().unwrap().to_owned();
                self.backend.tools().count(&chain, rule, 1);
                let translation = self.chains(&endpoint)[0].1[0].clone();
                self.backend.tools().count(&endpoint, &translation, 1);
                passed += 1;
            }
        }
        passed
    }
}

fn endpoints(sums: &Sums) -> BTreeMap<String, u64> {
    let sums = sums.borrow();
    sums.iter()
        .filter(|(name, _)| name.contains("Endpoint"))
        .map(|(name, sum)| (name.clone(), sum.connections))
        .collect()
}

#[tokio::test]
async fn no_rule_is_read_unless_services_are_measured() {
    let mut readings = Vec::new();
    for measures in [false, true] {
        let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, usize::MAX);
        if measures {
            bench = bench.measuring(recording(Detail::Endpoints, 1000).0);
        }
        let mut generator = Generator::new(1);
        (0..30).for_each(|_| bench.tracker.fold(generator.event()));
        bench.sync().await.unwrap();
        let before = bench.backend.tools().readings;
        bench.tend().await;
        readings.push(bench.backend.tools().readings - before);
    }
    assert!(readings[0] == 0 && readings[1] > 0, "{readings:?}");
}

#[tokio::test]
async fn counts_follow_the_connections_through_any_sequence_of_changes() {
    for seed in 0..30 {
        let flavor = if seed % 3 == 0 { Flavor::Legacy } else { Flavor::Nft };
        let family = IpFamily::ALL[usize::from(seed % 2 == 1)];
        let (measuring, sums) = recording(Detail::Endpoints, 10_000);
        let mut bench = Bench::new(family, flavor, usize::MAX).measuring(measuring);
        let mut generator = Generator::new(seed);
        for _ in 0..8 {
            (0..=generator.below(6)).for_each(|_| bench.tracker.fold(generator.event()));
            let before = endpoints(&sums);
            bench.sync().await.unwrap();
            let after = endpoints(&sums);
            for (name, count) in &before {
                assert!(after.get(name).is_none_or(|now| now >= count), "seed {seed}: {name} fell");
            }
            let (balanced, to_endpoints) = (
                connections(&sums, "ClusterIp") + connections(&sums, "External"),
                after.values().sum::<u64>(),
            );
            // Some are counted by a periodic reading, some by the one before the next sync.
            let passed = bench.pass_traffic();
            if seed % 2 == 0 {
                bench.tend().await;
                assert_eq!(endpoints(&sums).values().sum::<u64>(), to_endpoints + passed, "seed {seed}");
                let now = connections(&sums, "ClusterIp") + connections(&sums, "External");
                assert_eq!(now, balanced + passed, "seed {seed}");
            }
        }
    }
}

#[tokio::test]
async fn what_comes_to_external_frontends_is_told_apart() {
    let (mut from_outside, mut from_inside) = (0, 0);
    for seed in 0..10 {
        let (measuring, sums) = recording(Detail::Frontends, 10_000);
        let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, usize::MAX).measuring(measuring);
        let mut generator = Generator::new(seed);
        (0..60).for_each(|_| bench.tracker.fold(generator.event()));
        bench.sync().await.unwrap();
        let passed = bench.pass_traffic();
        // Of each Service port with endpoints, one connection came from outside.
        let mut external = 0;
        for (chain, rules) in bench.chains("KUBE-EXT-") {
            if let Some(rule) = rules.last().filter(|rule| rule.contains("-j KUBE-SV")) {
                bench.backend.tools().count(&chain, rule, 1);
                external += 1;
            }
        }
        bench.tend().await;
        assert_eq!(connections(&sums, "External"), external, "seed {seed}");
        assert_eq!(connections(&sums, "ClusterIp"), passed - external, "seed {seed}");
        assert_eq!(connections(&sums, "Endpoint"), 0);
        (from_outside, from_inside) = (from_outside + external, from_inside + passed - external);
    }
    assert!(from_outside > 0 && from_inside > 0, "{from_outside} {from_inside}");
}

#[tokio::test]
async fn beyond_the_limit_services_are_neither_read_nor_told() {
    let (measuring, sums) = recording(Detail::Endpoints, 5);
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, usize::MAX).measuring(measuring);
    let mut generator = Generator::new(3);
    (0..60).for_each(|_| bench.tracker.fold(generator.event()));
    bench.sync().await.unwrap();
    let left_out = connections(&sums, "left out");
    assert!(left_out > 0 && sums.borrow().len() <= 6, "{:?}", sums.borrow());
    let before = bench.backend.tools().readings;
    bench.backend.verify(VerifyDepth::Quick).await.unwrap();
    assert!(bench.backend.tools().readings - before <= 15, "three chains make up a series, at most");
    let gone: Vec<_> = bench.tracker.snapshot().services.keys().cloned().collect();
    gone.into_iter().for_each(|name| bench.tracker.fold(WatchEvent::ServiceGone(name)));
    bench.sync().await.unwrap();
    assert_eq!(*sums.borrow(), BTreeMap::from([("left out".to_owned(), Counts::default())]));
}

#[tokio::test]
async fn what_is_in_a_table_too_large_to_be_read_counts_as_dropped() {
    let (measuring, sums) = recording(Detail::Frontends, 1000);
    let mut bench = Bench::new(IpFamily::V4, Flavor::Legacy, usize::MAX).measuring(measuring);
    let mut generator = Generator::new(1);
    (0..30).for_each(|_| bench.tracker.fold(generator.event()));
    bench.sync().await.unwrap();
    bench.tend().await;
    assert_eq!(connections(&sums, "left out"), 0);
    bench.backend.tools().is_too_large = true;
    bench.tend().await;
    assert_eq!(connections(&sums, "left out"), sums.borrow().len() as u64 - 1);
    bench.backend.tools().is_too_large = false;
    bench.pass_traffic();
    bench.tend().await;
    assert_eq!(connections(&sums, "left out"), 0);
    assert!(connections(&sums, "ClusterIp") > 0);
}

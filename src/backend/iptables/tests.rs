//! The laws of the backend, on an in-memory iptables.

use super::names::CANARY;
use super::*;
use crate::backend::DriftKind;
use crate::backend::mode::ProxyMode as _;
use crate::backend::own_rules::OwnRules;
use crate::kernel::fake::iptables::FakeXtables;
use crate::model::{IpFamily, ServiceName, WatchEvent};
use crate::plan::{FamilySettings, Scope};
use crate::state::Tracker;
use crate::testing::generate::Generator;
use crate::testing::pass;

/// A family's backend with what `sync` keeps for it.
pub(super) struct Bench {
    pub(super) tracker: Tracker,
    pub(super) settings: FamilySettings,
    pub(super) backend: Iptables<FakeXtables>,
}

impl Bench {
    pub(super) fn new(family: IpFamily, flavor: Flavor, most_chains: usize) -> Self {
        let (tracker, settings) = pass::start(family);
        let features = Features { counts_localhost: true, counts_invalid: true, ..Features::default() };
        let backend = Iptables::new(FakeXtables::new(flavor), family, features).with_most_chains(most_chains);
        Bench { tracker, settings, backend }
    }

    /// With a tree as soon as `KUBE-SERVICES` has more rules than this.
    pub(super) fn with_tree_above(mut self, threshold: usize) -> Self {
        let features = Features { tree_threshold: threshold, ..self.backend.features.clone() };
        let tools = self.backend.tools.clone();
        self.backend =
            Iptables::new(tools, self.settings.family, features).with_most_chains(self.backend.most_chains);
        self
    }

    /// The same picture on an empty kernel.
    pub(super) fn afresh(&self, flavor: Flavor) -> Bench {
        let mut fresh = Bench::new(self.settings.family, flavor, usize::MAX)
            .with_tree_above(self.backend.features.tree_threshold);
        pass::copy_snapshot(&self.tracker, &mut fresh.tracker);
        fresh
    }

    /// Makes the next pass write everything: it cannot see what is there.
    pub(super) fn forget_all(&mut self) {
        self.backend.tools().listing_fails = true;
        self.backend.forget();
    }

    /// As many passes as it takes.
    pub(super) async fn sync(&mut self) -> Result<Applied> {
        let mut applied = self.pass().await?;
        while !applied.unfinished.is_empty() {
            let next = self.pass().await?;
            let news = applied.newly_refused().map(|it| it.service.clone()).collect::<BTreeSet<_>>();
            applied = next;
            applied.refused.iter_mut().for_each(|it| it.is_new |= news.contains(&it.service));
        }
        Ok(applied)
    }

    pub(super) async fn pass(&mut self) -> Result<Applied> {
        pass::run(&mut self.tracker, &self.settings, &mut self.backend).await
    }

    /// Syncs; if the Service is refused, the kernel is as if it did not exist.
    async fn expect_without(&mut self, service: &str) -> usize {
        let mut fresh = self.afresh(Flavor::Nft);
        // Rules of a Service that did not change are not suspected before everything is.
        let applied = match self.sync().await {
            Ok(applied) => applied,
            Err(_) => self.sync().await.unwrap(),
        };
        for refusal in &applied.refused {
            assert_eq!(refusal.service.as_str(), service);
            fresh.tracker.fold(WatchEvent::ServiceGone(refusal.service.clone()));
        }
        fresh.sync().await.unwrap();
        if !applied.refused.is_empty() {
            assert_eq!(self.tables(), fresh.tables(), "{service}");
        }
        applied.refused.len()
    }

    /// What listing the tables shows, whether they tell what other programs do or not.
    pub(super) async fn listed(&mut self) -> Vec<String> {
        let drift = std::mem::replace(&mut self.backend.drift, DriftDetector::new(DriftDetection::Poll));
        let (found, _) = self.verify_thoroughly().await;
        self.backend.drift = drift;
        found
    }

    pub(super) fn changes(&mut self) -> Changes {
        let plan = Plan::new(&self.settings, self.tracker.snapshot(), Scope::All)
            .with_endpoint_count(self.tracker.endpoints(self.settings.family));
        let desired = self.backend.render(&plan);
        self.backend.diff(&desired)
    }

    pub(super) fn tables(
        &mut self,
    ) -> &std::collections::BTreeMap<String, crate::kernel::fake::iptables::Table> {
        &self.backend.tools().tables
    }

    fn assert_every_chain_is_used(&mut self) {
        for (name, table) in self.tables() {
            for chain in table.keys().filter(|chain| ChainId::parse(chain).is_some()) {
                let used = table.values().flatten().any(|rule| rule.ends_with(&format!("-j {chain}")));
                assert!(used, "{chain} of {name} is not used");
            }
        }
    }
}

#[tokio::test]
async fn incremental_and_full_syncs_meet_in_the_same_kernel() {
    let (mut crossings, mut had_tree) = (0, false);
    for seed in 0..150 {
        let family = IpFamily::ALL[usize::from(seed % 2 == 1)];
        let flavor = if seed % 3 == 0 { Flavor::Legacy } else { Flavor::Nft };
        let most_chains = [usize::MAX, 500, 7, 1][seed % 4];
        let mut generator = Generator::new(seed as u64);
        // The pictures have up to forty rules, so the middle ones are crossed both ways.
        let threshold = [usize::MAX, 18, 0, 12, 25][seed % 5];
        let mut bench = Bench::new(family, flavor, most_chains).with_tree_above(threshold);
        for _ in 0..12 {
            for _ in 0..=generator.below(6) {
                bench.tracker.fold(generator.event());
            }
            bench.sync().await.unwrap();
            let mut fresh = bench.afresh(flavor);
            fresh.sync().await.unwrap();
            assert_eq!(bench.tables(), fresh.tables(), "seed {seed}");
            let has_tree = bench.tables()["nat"].keys().any(|chain| chain.starts_with("KUBE-SVC-AAAAA"));
            crossings += usize::from(std::mem::replace(&mut had_tree, has_tree) != has_tree);
            bench.assert_every_chain_is_used();
            assert!(bench.changes().is_empty(), "seed {seed}: a second look finds nothing to do");
            assert_eq!(bench.listed().await, [""; 0], "seed {seed}: what is listed is what is expected");
        }
    }
    assert!(crossings > 40, "only {crossings} times from one form to the other");
}

#[tokio::test]
async fn a_refused_service_is_found_in_the_tree_which_stands_without_it_and_with_its_repair() {
    let mut generator = Generator::new(11);
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 5).with_tree_above(0);
    for _ in 0..80 {
        bench.tracker.fold(generator.event());
    }
    bench.sync().await.unwrap();
    assert!(bench.tables()["nat"].keys().any(|chain| chain.starts_with("KUBE-SVC-AAAAA")));
    let rules = bench.tables()["nat"].values().flatten();
    let number =
        (0..12).find(|number| rules.clone().any(|rule| rule.contains(&format!("ns/svc-{number}:")))).unwrap();
    let name = ServiceName::new("ns", &format!("svc-{number}"));
    bench.backend.tools().refused = vec![format!("{name}:")];
    bench.forget_all();
    let applied = bench.sync().await.unwrap();
    assert_eq!(applied.refused.len(), 1);
    let mut fresh = bench.afresh(Flavor::Nft);
    fresh.tracker.fold(WatchEvent::ServiceGone(name.clone()));
    fresh.sync().await.unwrap();
    assert_eq!(bench.tables(), fresh.tables());

    bench.backend.tools().refused.clear();
    bench.tracker.fold(WatchEvent::ServiceGone(name));
    bench.sync().await.unwrap();
    bench.tracker.fold(WatchEvent::ServiceGone(ServiceName::new("ns", "svc-11")));
    bench.sync().await.unwrap();
    let mut fresh = bench.afresh(Flavor::Nft).with_tree_above(0);
    fresh.sync().await.unwrap();
    assert_eq!(bench.tables(), fresh.tables());
    assert!(bench.tables()["nat"].keys().any(|chain| chain.starts_with("KUBE-SVC-AAAAA")));
}

#[tokio::test]
async fn a_failure_at_any_step_heals_at_the_next_sync() {
    for seed in 0..60 {
        let mut generator = Generator::new(seed);
        let threshold = if seed % 2 == 0 { 15 } else { usize::MAX };
        let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 3).with_tree_above(threshold);
        for round in 0..8 {
            for _ in 0..4 {
                bench.tracker.fold(generator.event());
            }
            if round % 2 == 1 {
                // Both tries of one step fail, at a step that differs from round to round.
                bench.backend.tools().failures_after = usize::try_from(generator.below(6)).unwrap();
                bench.backend.tools().failures = 2;
                bench.sync().await.ok();
                bench.backend.tools().failures = 0;
                bench.backend.tools().failures_after = 0;
            }
            bench.sync().await.unwrap();
            let mut fresh = bench.afresh(Flavor::Nft);
            fresh.sync().await.unwrap();
            assert_eq!(bench.tables(), fresh.tables(), "seed {seed}");
        }
    }
}

#[tokio::test]
async fn removing_every_service_returns_to_the_empty_base() {
    let mut empty = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    empty.sync().await.unwrap();
    let mut generator = Generator::new(7);
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    for _ in 0..200 {
        bench.tracker.fold(generator.event());
    }
    bench.sync().await.unwrap();
    assert!(bench.tables()["nat"].len() > 20);
    for number in 0..12 {
        bench.tracker.fold(WatchEvent::ServiceGone(ServiceName::new("ns", &format!("svc-{number}"))));
    }
    bench.sync().await.unwrap();
    assert_eq!(bench.tables(), empty.tables());
}

#[tokio::test]
async fn a_refused_service_is_named_and_left_out_and_all_others_work() {
    let mut refused = 0;
    for most_chains in [usize::MAX, 5] {
        for number in 0..12 {
            for poison in ["p0 ->", "p0 cluster IP", "p0 has no"] {
                refused += refuse(most_chains, &format!("ns/svc-{number}"), poison).await;
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

/// Has the kernel refuse one of many Services, at first sight and after it had worked; how
/// often it was refused.
async fn refuse(most_chains: usize, service: &str, poison: &str) -> usize {
    let mut generator = Generator::new(11);
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, most_chains);
    for _ in 0..80 {
        bench.tracker.fold(generator.event());
    }
    let poisoned = vec![format!("{service}:{poison}")];
    bench.backend.tools().refused = poisoned.clone();
    let first = bench.expect_without(service).await;

    // It stays out while other Services change, and comes back when everything is rewritten.
    bench.tracker.fold(WatchEvent::ServiceGone(ServiceName::new("ns", "svc-5")));
    assert_eq!(bench.sync().await.unwrap().newly_refused().count(), 0);
    bench.backend.tools().refused.clear();
    bench.backend.forget();
    bench.sync().await.unwrap();
    let mut fresh = bench.afresh(Flavor::Nft);
    fresh.sync().await.unwrap();
    assert_eq!(bench.tables(), fresh.tables(), "{poisoned:?}");

    bench.backend.tools().refused = poisoned;
    for _ in 0..20 {
        bench.tracker.fold(generator.event());
    }
    first + bench.expect_without(service).await
}

#[tokio::test]
async fn one_changed_endpoint_touches_only_its_services_chains() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    let mut generator = Generator::new(3);
    for _ in 0..100 {
        bench.tracker.fold(generator.event());
    }
    bench.sync().await.unwrap();
    let snapshot = bench.tracker.snapshot().clone();
    let usable = |slice: &&crate::model::EndpointSlice| {
        slice.family == IpFamily::V4 && slice.endpoints.iter().filter(|it| it.facts.ready()).count() > 1
    };
    let mut tried = 0;
    for record in snapshot.services.values().filter(|record| record.service.is_some()) {
        let Some(slice) = record.slices.iter().find(usable) else { continue };
        let mut slice = slice.clone();
        slice.endpoints = slice.endpoints.iter().skip(1).copied().collect();
        let name = slice.service.clone();
        bench.tracker.fold(WatchEvent::Slice(Box::new(slice)));
        bench.backend.tools().inputs.clear();
        bench.sync().await.unwrap();
        for line in bench.backend.tools().inputs.iter().flat_map(|input| input.lines()) {
            let ours = line.contains(&format!("{name}:"));
            assert!(!line.starts_with("-A ") || ours, "{line}");
        }
        tried += 1;
    }
    assert!(tried > 2);
}

#[tokio::test]
async fn rules_of_an_earlier_run_are_taken_over_and_leftovers_go_last() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 4);
    let mut generator = Generator::new(5);
    for _ in 0..60 {
        bench.tracker.fold(generator.event());
    }
    let mut other = bench.afresh(Flavor::Nft);
    for _ in 0..30 {
        other.tracker.fold(generator.event());
    }
    other.sync().await.unwrap();
    bench.backend.tools().tables = other.tables().clone();
    bench.sync().await.unwrap();
    let mut fresh = bench.afresh(Flavor::Nft);
    fresh.sync().await.unwrap();
    assert_eq!(bench.tables(), fresh.tables());

    let inputs = &bench.backend.tools().inputs;
    let last_written = inputs.iter().rposition(|input| input.contains("-A KUBE-SERVICES")).unwrap();
    let first_deleted = inputs.iter().position(|input| input.contains("-X ")).unwrap();
    assert!(first_deleted > last_written, "what is stale goes only once the new rules stand");
}

#[tokio::test]
async fn a_lost_rule_a_flush_and_a_lost_canary_are_noticed() {
    type Harm = fn(&mut FakeXtables);
    let harms: [Harm; 4] = [
        |tools| tools.flush("nat"),
        |tools| tools.meddle("filter", |filter| drop(filter.remove(CANARY))),
        |tools| tools.meddle("nat", |nat| drop(nat.get_mut("PREROUTING").unwrap().pop())),
        |tools| {
            tools.meddle("nat", |nat| {
                let chain = nat.iter_mut().find(|(name, _)| name.starts_with("KUBE-SEP-")).unwrap();
                chain.1.pop();
            });
        },
    ];
    for (index, harm) in harms.into_iter().enumerate() {
        let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
        let mut generator = Generator::new(5);
        for _ in 0..60 {
            bench.tracker.fold(generator.event());
        }
        bench.sync().await.unwrap();
        let good = bench.tables().clone();
        assert_eq!(bench.backend.verify(VerifyDepth::Thorough).await.unwrap(), []);
        harm(bench.backend.tools());
        assert!(!bench.backend.verify(VerifyDepth::Quick).await.unwrap().is_empty(), "harm {index}");
        bench.sync().await.unwrap();
        assert_eq!(bench.tables(), &good, "harm {index}");
    }
}

#[tokio::test]
async fn cleanup_takes_what_is_ours_and_nothing_else() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 3);
    let mut generator = Generator::new(5);
    for _ in 0..60 {
        bench.tracker.fold(generator.event());
    }
    let foreign = |tools: &mut FakeXtables| {
        let nat = tools.tables.get_mut("nat").unwrap();
        nat.insert("MINE".to_owned(), vec!["-j ACCEPT".to_owned()]);
        nat.get_mut("PREROUTING").unwrap().push("-j MINE".to_owned());
        nat.insert("KUBE-KUBELET-CANARY".to_owned(), Vec::new());
    };
    foreign(bench.backend.tools());
    bench.sync().await.unwrap();
    let left_by_a_trial = |table: &mut crate::kernel::fake::iptables::Table| {
        table.insert(crate::kernel::iptables::TRIAL.to_owned(), vec!["-j RETURN".to_owned()]);
    };
    for table in ["nat", "filter"] {
        bench.backend.tools().meddle(table, left_by_a_trial);
    }
    for holds in [true, false] {
        let tools = bench.backend.tools();
        let found = IptablesMode.own_rules().find(tools, &OwnRules::default()).await.unwrap();
        assert_eq!(!found.is_empty(), holds);
        found.remove(tools, 3).await.unwrap();
    }
    let mut untouched = FakeXtables::new(Flavor::Nft);
    foreign(&mut untouched);
    let nat = &bench.tables()["nat"];
    assert_eq!(nat, &untouched.tables["nat"]);
    let kubelets: Vec<_> = bench.tables()["filter"].keys().filter(|name| name.starts_with("KUBE-")).collect();
    assert_eq!(kubelets, ["KUBE-FIREWALL"]);
}

#[tokio::test]
async fn a_chain_that_others_hold_stays_and_all_else_goes_on() {
    for most_chains in [usize::MAX, 5] {
        let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, most_chains);
        let mut generator = Generator::new(5);
        for _ in 0..60 {
            bench.tracker.fold(generator.event());
        }
        bench.sync().await.unwrap();
        let nat = bench.backend.tools().tables.get_mut("nat").unwrap();
        let held = nat.keys().find(|name| name.starts_with("KUBE-SVC-")).unwrap().clone();
        nat.insert("MINE".to_owned(), vec![format!("-j {held}")]);
        for number in 0..12 {
            bench.tracker.fold(WatchEvent::ServiceGone(ServiceName::new("ns", &format!("svc-{number}"))));
        }
        if bench.sync().await.is_err() {
            bench.sync().await.unwrap();
        }
        let chains = bench.tables()["nat"].keys().filter(|name| ChainId::parse(name).is_some());
        assert_eq!(chains.collect::<Vec<_>>(), [&held]);
        assert_eq!(bench.listed().await, [""; 0]);
    }
}

#[tokio::test]
async fn damage_by_others_is_mended_and_blamed_on_no_service() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    let mut generator = Generator::new(5);
    for _ in 0..60 {
        bench.tracker.fold(generator.event());
    }
    bench.sync().await.unwrap();
    for _ in 0..20 {
        let nat = bench.backend.tools().tables.get_mut("nat").unwrap();
        nat.retain(|name, _| !name.starts_with("KUBE-SEP-"));
        nat.iter_mut().filter(|(name, _)| name.starts_with("KUBE-SV")).for_each(|(_, rules)| rules.clear());
        bench.tracker.fold(generator.event());
        let applied = match bench.sync().await {
            Ok(applied) => applied,
            Err(_) => bench.sync().await.unwrap(),
        };
        assert!(applied.refused.is_empty());
        bench.backend.forget();
        bench.sync().await.unwrap();
    }
}

#[tokio::test]
async fn a_flush_while_we_write_does_not_hide_behind_our_own_change() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    let mut generator = Generator::new(5);
    for _ in 0..60 {
        bench.tracker.fold(generator.event());
    }
    bench.sync().await.unwrap();
    assert_eq!(bench.backend.verify(VerifyDepth::Thorough).await.unwrap(), []);
    for _ in 0..5 {
        bench.tracker.fold(generator.event());
    }
    bench.backend.tools().flushed_after_restore = true;
    bench.sync().await.unwrap();
    assert!(!bench.backend.verify(VerifyDepth::Quick).await.unwrap().is_empty());
}

/// Does one random harm to a chain of ours; returns its table and name.
fn harm(tools: &mut FakeXtables, random: &mut Generator) -> (&'static str, String) {
    let table = ["nat", "nat", "nat", "filter"][usize::try_from(random.below(4)).unwrap()];
    let full = |(name, rules): (&String, &Vec<String>)| {
        // Foreign rules in kubelet's chain are left alone.
        let is_ours = name.starts_with("KUBE-") && name != "KUBE-FIREWALL";
        (is_ours && !rules.is_empty()).then(|| name.clone())
    };
    let chains: Vec<String> = tools.tables[table].iter().filter_map(full).collect();
    let chain = chains[usize::try_from(random.below(chains.len() as u64)).unwrap()].clone();
    let kind = random.below(6);
    let place = usize::try_from(random.below(1000)).unwrap();
    tools.meddle(table, |table| {
        let rules = table.get_mut(&chain).unwrap();
        let place = place % rules.len();
        match kind {
            0 => drop(rules.remove(place)),
            1 => rules.insert(place, "-s 192.0.2.1 -j DROP".to_owned()),
            2 => rules[place] = "-s 192.0.2.1 -j RETURN".to_owned(),
            3 => rules.clear(),
            4 if rules.first() != rules.last() => rules.rotate_left(1),
            // The same number of uses: only the content tells.
            _ => rules[place] = format!("-s 192.0.2.1 {}", rules[place]),
        }
    });
    (table, chain)
}

#[tokio::test]
async fn each_of_two_hundred_random_harms_is_named_and_healed() {
    for flavor in [Flavor::Nft, Flavor::Legacy] {
        let mut bench = Bench::new(IpFamily::V4, flavor, 500);
        let mut generator = Generator::new(5);
        for _ in 0..60 {
            bench.tracker.fold(generator.event());
        }
        bench.sync().await.unwrap();
        for round in 0..200 {
            if round % 10 == 0 {
                (0..3).for_each(|_| bench.tracker.fold(generator.event()));
                bench.sync().await.unwrap();
            }
            let good = bench.tables().clone();
            assert_eq!(bench.backend.verify(VerifyDepth::Thorough).await.unwrap(), [], "round {round}");
            let (table, chain) = harm(bench.backend.tools(), &mut generator);
            let found = bench.backend.verify(VerifyDepth::Thorough).await.unwrap();
            let name = match chain.as_str() {
                "KUBE-FIREWALL" => vec![],
                _ => vec![format!("{chain} of table {table}")],
            };
            let named: Vec<_> = found
                .iter()
                .filter_map(|finding| match finding {
                    Deviation::Drift(drift) if drift.kind == DriftKind::Chain => Some(drift.name.clone()),
                    _ => None,
                })
                .collect();
            if chain != "KUBE-FIREWALL" {
                assert_eq!(named, name, "round {round}: {found:?}");
            }
            bench.sync().await.unwrap();
            assert_eq!(bench.tables(), &good, "round {round}");
        }
    }
}

#[tokio::test]
async fn a_jump_that_was_changed_is_named() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500);
    bench.sync().await.unwrap();
    bench.backend.tools().meddle("nat", |nat| {
        let rule = &mut nat.get_mut("PREROUTING").unwrap()[0];
        *rule = format!("-s 192.0.2.1 {rule}");
    });
    let found = bench.backend.verify(VerifyDepth::Thorough).await.unwrap();
    let what = "jump PREROUTING to KUBE-SERVICES in table nat is gone or was changed";
    assert!(matches!(&found[..], [Deviation::Drift(drift)] if drift.to_string() == what), "{found:?}");
}

impl Bench {
    /// What a quick verification finds, and how often something was read for it.
    async fn verify_quickly(&mut self) -> (Vec<String>, usize) {
        self.verify_as(VerifyDepth::Quick).await
    }

    async fn verify_thoroughly(&mut self) -> (Vec<String>, usize) {
        self.verify_as(VerifyDepth::Thorough).await
    }

    async fn verify_as(&mut self, depth: VerifyDepth) -> (Vec<String>, usize) {
        let before = self.backend.tools().readings;
        let found = self.backend.verify(depth).await.unwrap();
        let text = |finding| match finding {
            Deviation::Drift(drift) => drift.to_string(),
            other => format!("{other:?}"),
        };
        (found.into_iter().map(text).collect(), self.backend.tools().readings - before)
    }
}

/// A cluster that is programmed and has been verified once.
async fn large() -> Bench {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, 500).with_tree_above(100);
    for number in 0..400 {
        bench.tracker.fold(crate::testing::cluster::service(number));
        bench.tracker.fold(crate::testing::cluster::slice(number, 5));
    }
    bench.sync().await.unwrap();
    assert_eq!(
        bench.verify_quickly().await,
        (vec![], 0),
        "no other program wrote, so there is nothing to look for"
    );
    bench
}

/// Puts another rule in the place of the last one of a chain: its uses stay the same.
fn replace_rule(tools: &mut FakeXtables, chain: &str) {
    tools.meddle("nat", |nat| {
        let rule = nat.get_mut(chain).unwrap().last_mut().unwrap();
        *rule = format!("-s 192.0.2.1 {rule}");
    });
}

#[tokio::test]
async fn a_rule_in_anothers_place_is_found_at_once_and_nothing_is_read_for_it() {
    let mut bench = large().await;
    let good = bench.tables().clone();
    let chains: Vec<String> = good["nat"].keys().filter(|name| name.starts_with("KUBE-S")).cloned().collect();
    for chain in [&chains[0], &chains[chains.len() / 2], chains.last().unwrap()] {
        replace_rule(bench.backend.tools(), chain);
        let what = format!("chain {chain} of table nat was changed by meddler");
        assert_eq!(bench.verify_quickly().await, (vec![what], 0));
        bench.sync().await.unwrap();
        assert_eq!(bench.tables(), &good);
        assert_eq!(bench.verify_quickly().await.0, Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_is_not_ours_costs_no_reading_whoever_writes_it() {
    let mut bench = large().await;
    let theirs = |tools: &mut FakeXtables| {
        tools.meddle("nat", |nat| nat.entry("THEIRS".to_owned()).or_default().push("-j RETURN".to_owned()));
        tools.meddle("filter", |filter| filter.get_mut("INPUT").unwrap().push("-j ACCEPT".to_owned()));
    };
    theirs(bench.backend.tools());
    assert_eq!(bench.verify_quickly().await, (vec![], 0));
    for round in 0..3 {
        theirs(bench.backend.tools());
        bench.tracker.fold(crate::testing::cluster::slice(round, 3));
        bench.sync().await.unwrap();
        assert_eq!(
            bench.verify_quickly().await,
            (vec![], 0),
            "our own changes do not look like foreign ones"
        );
    }
}

#[tokio::test]
async fn what_others_did_before_a_change_of_ours_is_found_after_it() {
    let mut bench = large().await;
    let chain = bench.tables()["nat"].keys().rfind(|name| name.starts_with("KUBE-SVC-")).unwrap().clone();
    replace_rule(bench.backend.tools(), &chain);
    bench.tracker.fold(crate::testing::cluster::slice(7, 3));
    bench.sync().await.unwrap();
    let what = format!("chain {chain} of table nat was changed by meddler");
    assert_eq!(bench.verify_quickly().await.0, [what]);
}

#[tokio::test]
async fn what_was_not_heard_is_mended_by_writing_everything_at_once_and_then_ever_more_seldom() {
    let mut bench = large().await;
    let good = bench.tables().clone();
    let chain = good["nat"].keys().rfind(|name| name.starts_with("KUBE-SVC-")).unwrap().clone();
    let mut rewritten = Vec::new();
    for look in 0..60 {
        bench.backend.tools().loses = true;
        replace_rule(bench.backend.tools(), &chain);
        let found = bench.backend.verify(VerifyDepth::Quick).await.unwrap();
        if let [Deviation::Outdated(_)] = found[..] {
            bench.backend.forget();
            bench.sync().await.unwrap();
            assert_eq!(bench.tables(), &good);
            rewritten.push(look);
        } else {
            assert_eq!(found, []);
        }
    }
    assert_eq!(rewritten, [0, 16, 47]);
    bench.backend.forget();
    bench.sync().await.unwrap();
    replace_rule(bench.backend.tools(), &chain);
    assert_eq!(
        bench.verify_quickly().await.0,
        [format!("chain {chain} of table nat was changed by meddler")]
    );
}

#[tokio::test]
async fn a_lost_rule_is_mended_by_writing_its_chain_alone() {
    for flavor in [Flavor::Nft, Flavor::Legacy] {
        let mut bench = Bench::new(IpFamily::V4, flavor, 500).with_tree_above(100);
        for number in 0..400 {
            bench.tracker.fold(crate::testing::cluster::service(number));
            bench.tracker.fold(crate::testing::cluster::slice(number, 5));
        }
        bench.sync().await.unwrap();
        let good = bench.tables().clone();
        let chains = |table: &str| {
            good[table].iter().filter(|(name, rules)| {
                name.starts_with("KUBE-") && !rules.is_empty() && *name != "KUBE-FIREWALL"
            })
        };
        let all = ["nat", "filter"].into_iter().flat_map(|table| chains(table).map(move |it| (table, it.0)));
        let harmed: Vec<_> = all.step_by(23).collect();
        assert!(harmed.len() > 50);
        for (table, chain) in harmed {
            bench.backend.tools().meddle(table, |table| drop(table.get_mut(chain).unwrap().pop()));
            let (found, _) = bench.verify_thoroughly().await;
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&format!("chain {chain} of table {table} ")), "{found:?}");
            bench.backend.tools().inputs.clear();
            bench.sync().await.unwrap();
            assert_eq!(bench.tables(), &good);
            let inputs = &bench.backend.tools().inputs;
            let declared = inputs.iter().flat_map(|input| input.lines()).filter(|line| line.starts_with(':'));
            assert_eq!(declared.collect::<Vec<_>>(), [format!(":{chain} - [0:0]")]);
        }
    }
}

#[tokio::test]
async fn a_chain_of_ours_that_is_none_of_ours_goes_again() {
    let mut bench = large().await;
    let good = bench.tables().clone();
    let chain = "KUBE-SVC-ABCDEFGHIJKLMNOP";
    bench
        .backend
        .tools()
        .meddle("nat", |nat| drop(nat.insert(chain.to_owned(), vec!["-j RETURN".to_owned()])));
    assert_eq!(
        bench.verify_quickly().await.0,
        [format!("chain {chain} of table nat was changed by meddler")]
    );
    bench.sync().await.unwrap();
    assert_eq!(bench.tables(), &good);
}

#[tokio::test]
async fn a_damaged_service_that_goes_or_changes_before_it_is_mended_leaves_nothing_behind() {
    for seed in 0..40 {
        let mut bench =
            Bench::new(IpFamily::V4, Flavor::Nft, 500).with_tree_above([15, usize::MAX][seed % 2]);
        let mut generator = Generator::new(seed as u64);
        (0..60).for_each(|_| bench.tracker.fold(generator.event()));
        bench.sync().await.unwrap();
        for _ in 0..5 {
            for _ in 0..4 {
                harm(bench.backend.tools(), &mut generator);
            }
            assert!(!bench.backend.verify(VerifyDepth::Quick).await.unwrap().is_empty());
            (0..6).for_each(|_| bench.tracker.fold(generator.event()));
            bench.sync().await.unwrap();
            let mut fresh = bench.afresh(Flavor::Nft);
            fresh.sync().await.unwrap();
            assert_eq!(bench.tables(), fresh.tables(), "seed {seed}");
            assert_eq!(bench.listed().await, [""; 0], "seed {seed}");
        }
    }
}

#[tokio::test]
async fn of_very_many_changed_chains_a_hundred_are_named() {
    let mut bench = large().await;
    bench.backend.tools().flush("nat");
    let (found, _) = bench.verify_quickly().await;
    let named = found.iter().filter(|what| what.starts_with("chain ")).count();
    assert_eq!(named, 100);
    assert!(found.iter().any(|what| what.contains("more chains that were changed")), "{found:?}");
}

/// A cluster in legacy tables.
async fn legacy() -> Bench {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Legacy, usize::MAX);
    for number in 0..20 {
        bench.tracker.fold(crate::testing::cluster::service(number));
        bench.tracker.fold(crate::testing::cluster::slice(number, 5));
    }
    bench.sync().await.unwrap();
    assert_eq!(bench.verify_quickly().await, (vec![], 0));
    assert_eq!(bench.verify_thoroughly().await, (vec![], LISTING));
    bench
}

/// All three tables.
const LISTING: usize = 3;

/// Puts a rule of the same length in the place of a chain's last one.
fn replace_with_like(tools: &mut FakeXtables, chain: &str) {
    tools.meddle("nat", |nat| {
        let rule = nat.get_mut(chain).unwrap().last_mut().unwrap();
        rule.pop();
        rule.push('!');
    });
}

fn has_other_rules(chain: &str) -> String {
    format!("chain {chain} of table nat has other rules than were written")
}

#[tokio::test]
async fn a_rule_in_anothers_place_is_found_in_a_legacy_table() {
    let mut bench = legacy().await;
    let good = bench.tables().clone();
    for chain in good["nat"].keys().filter(|name| name.starts_with("KUBE-S")).step_by(17) {
        replace_with_like(bench.backend.tools(), chain);
        assert_eq!(bench.verify_quickly().await, (vec![], 0), "its size is the same");
        assert_eq!(bench.verify_thoroughly().await, (vec![has_other_rules(chain)], LISTING));
        bench.sync().await.unwrap();
        assert_eq!(bench.tables(), &good);
        assert_eq!(bench.verify_thoroughly().await, (vec![], LISTING));
    }
}

#[tokio::test]
async fn a_rule_is_found_in_anothers_place_in_whatever_chain_we_have_just_written() {
    for harms_written in [true, false] {
        let mut bench = legacy().await;
        let before = bench.tables()["nat"].clone();
        bench.tracker.fold(crate::testing::cluster::slice(7, 3));
        bench.tracker.fold(WatchEvent::ServiceGone(crate::testing::cluster::name(3)));
        bench.sync().await.unwrap();
        assert_eq!(bench.verify_thoroughly().await, (vec![], LISTING));
        let after = bench.tables()["nat"].clone();
        let is_written = |name: &&String| (before.get(*name) != after.get(*name)) == harms_written;
        let chains: Vec<_> =
            after.keys().filter(|name| name.starts_with("KUBE-S")).filter(is_written).take(3).collect();
        assert!(!chains.is_empty());
        for chain in &chains {
            replace_with_like(bench.backend.tools(), chain);
        }
        let what: Vec<_> = chains.into_iter().map(|chain| has_other_rules(chain)).collect();
        assert_eq!(bench.verify_thoroughly().await, (what, LISTING));
    }
}

#[tokio::test]
async fn rules_of_legacy_tables_in_another_order_are_found() {
    let mut bench = legacy().await;
    let all = bench.tables()["nat"].clone();
    let is_long = |(name, rules): &(&String, &Vec<String>)| name.starts_with("KUBE-SVC-") && rules.len() > 3;
    let (chain, _) = all.iter().find(is_long).unwrap();
    bench.backend.tools().meddle("nat", |nat| nat.get_mut(chain).unwrap().swap(1, 2));
    assert_eq!(bench.verify_thoroughly().await, (vec![has_other_rules(chain)], LISTING));
}

#[tokio::test]
async fn rules_are_known_by_what_they_say_and_not_by_how_it_is_put() {
    let mut bench = legacy().await;
    bench.backend.tools().meddle("nat", |nat| {
        for rule in nat.values_mut().flatten() {
            *rule = rule
                .replace("--or-mark 0x00004000", "--set-xmark 0x4000/0x4000")
                .replace("-m tcp -p tcp", "-p tcp -m tcp");
        }
    });
    assert_eq!(bench.verify_thoroughly().await.0, Vec::<String>::new());
}

#[tokio::test]
async fn what_could_not_be_listed_is_an_error_and_is_listed_by_the_next_verification() {
    let mut bench = legacy().await;
    bench.backend.tools().listing_fails = true;
    assert!(bench.backend.verify(VerifyDepth::Thorough).await.is_err());
    assert_eq!(bench.verify_thoroughly().await, (vec![], LISTING));
}

#[tokio::test]
async fn a_jump_that_was_changed_in_a_legacy_table_is_named() {
    let mut bench = legacy().await;
    bench.backend.tools().meddle("nat", |nat| {
        let rule = &mut nat.get_mut("PREROUTING").unwrap()[0];
        *rule = rule.replace("portals", "portalz");
    });
    let what = "jump PREROUTING to KUBE-SERVICES in table nat is gone or was changed";
    assert_eq!(bench.verify_thoroughly().await.0, [what]);
}

#[tokio::test]
async fn what_others_put_into_a_canary_is_left_alone() {
    let mut bench = legacy().await;
    bench.backend.tools().meddle("nat", |nat| nat.get_mut(CANARY).unwrap().push("-j RETURN".to_owned()));
    assert_eq!(bench.verify_thoroughly().await, (vec![], LISTING));
}

#[tokio::test]
async fn rules_where_there_should_be_none_show_in_a_legacy_table() {
    let mut bench = legacy().await;
    bench.backend.tools().meddle("filter", |filter| {
        filter.get_mut("KUBE-EXTERNAL-SERVICES").unwrap().push("-j ACCEPT".to_owned());
    });
    let what = "chain KUBE-EXTERNAL-SERVICES of table filter has rules and should have none";
    assert_eq!(bench.verify_thoroughly().await.0, [what]);
}

#[tokio::test]
async fn a_chain_of_a_legacy_table_that_others_hold_has_to_be_empty() {
    let mut bench = legacy().await;
    let nat = bench.backend.tools().tables.get_mut("nat").unwrap();
    let held = nat.keys().find(|name| name.starts_with("KUBE-SVC-")).unwrap().clone();
    nat.insert("MINE".to_owned(), vec![format!("-j {held}")]);
    for number in 0..20 {
        bench.tracker.fold(WatchEvent::ServiceGone(crate::testing::cluster::name(number)));
    }
    bench.sync().await.unwrap();
    assert_eq!(bench.tables()["nat"].keys().filter(|name| ChainId::parse(name).is_some()).count(), 1);
    assert_eq!(bench.verify_thoroughly().await.0, Vec::<String>::new());
    bench.backend.tools().meddle("nat", |nat| nat.get_mut(&held).unwrap().push("-j ACCEPT".to_owned()));
    let what = format!("chain {held} of table nat has rules and should have none");
    assert_eq!(bench.verify_thoroughly().await.0, [what]);
}

#[tokio::test]
async fn a_refused_service_leaves_nothing_to_be_found() {
    let mut bench = legacy().await;
    bench.backend.tools().refused = vec!["s-000007:".to_owned()];
    bench.forget_all();
    assert_eq!(bench.sync().await.unwrap().refused.len(), 1);
    assert_eq!(bench.verify_thoroughly().await.0, Vec::<String>::new());
}

/// The tools find the place of a chain that comes out of order by looking at all that they know.
#[test]
fn chains_are_declared_in_the_order_of_their_names() {
    let mut bench = Bench::new(IpFamily::V4, Flavor::Nft, usize::MAX);
    let mut generator = Generator::new(5);
    (0..300).for_each(|_| bench.tracker.fold(generator.event()));
    bench.tracker.allot();
    let plan = crate::plan::Plan::new(&bench.settings, bench.tracker.snapshot(), Scope::All);
    let features = Features { tree_threshold: 10, ..Features::default() };
    let inputs = render_inputs(&plan, &features, Flavor::Nft);
    let of_services = |line: &&str| {
        let name = line.strip_prefix(':').and_then(|line| line.split(' ').next());
        name.is_some_and(|name| names::ChainId::parse(name).is_some())
    };
    for input in inputs {
        let declared: Vec<&str> = input.lines().filter(of_services).collect();
        assert!(declared.is_sorted(), "{declared:?}");
    }
}

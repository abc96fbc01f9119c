//! What tables hold of ours, as the tools list them.

use super::rule::{ChainHash, Name, Parsed};
use super::{Drift, DriftKind};
use crate::kernel::iptables::Xtables;
use crate::kernel::nft::{Act, Part};
use anyhow::Result;
use std::collections::BTreeSet;

/// A rule of ours in a chain where other programs have rules, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SharedRule {
    pub(super) table: &'static str,
    pub(super) chain: &'static str,
    pub(super) hash: u64,
    /// The chain of ours that it jumps to, if it stands in a built-in chain.
    pub(super) jumps_to: Option<&'static str>,
}

impl SharedRule {
    pub(super) fn missing(&self) -> Drift {
        let SharedRule { table, chain, jumps_to, .. } = self;
        match jumps_to {
            Some(to) => {
                let name = format!("{chain} to {to} in table {table}");
                Drift::new(DriftKind::Jump, name, "is gone or was changed")
            }
            None => Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), "lacks a rule of ours"),
        }
    }
}

/// The chains of a mode.
pub(super) trait OurChains: Clone + 'static {
    /// A chain, small: there are many.
    type Key: Copy + Ord;

    /// The chain of ours with this name.
    fn parse(&self, table: &str, chain: &str) -> Option<Self::Key>;

    /// The table and the name of a chain.
    fn place(&self, key: Self::Key) -> (&'static str, Name);

    /// The tables that hold chains of ours.
    fn tables(&self) -> &'static [&'static str];

    /// Whether rules that other programs put there stay: of a canary it only counts that it is there.
    fn is_open(&self, key: Self::Key) -> bool;

    /// All rules of ours in chains where other programs have rules, too.
    fn shared_rules(&self) -> Vec<SharedRule>;

    /// Whether such a rule may stand there.
    fn is_shared(&self, table: &str, chain: &str) -> bool {
        self.shared_rules().iter().any(|rule| (rule.table, rule.chain) == (table, chain))
    }

    /// Whether it matters that another program does this to a chain.
    fn concerns(&self, table: &str, chain: &str, act: Act) -> bool {
        let key = || self.parse(table, chain);
        match act {
            Act::RuleAdded => key().is_some_and(|key| !self.is_open(key)),
            Act::RuleDeleted => key().is_some_and(|key| !self.is_open(key)) || self.is_shared(table, chain),
            Act::Deleted => key().is_some(),
            // It may have had the name of one of ours.
            Act::Altered => self.tables().contains(&table) && key().is_none(),
        }
    }
}

/// What a chain has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Rules with this hash.
    Rules([u8; 8]),
    /// Anything, as long as it is there.
    Anything,
    /// It is about to be written.
    Unknown,
}

/// What tables hold.
struct Listing<'c, C: OurChains> {
    chains: &'c C,
    table: &'static str,
    /// The chains of ours that are there.
    found: Vec<(C::Key, ChainHash)>,
    /// Rules in chains where we share: table, chain, hash.
    shared: BTreeSet<(&'static str, String, u64)>,
    /// The chain whose rules are being listed, and its place in `found`.
    name: String,
    place: Option<usize>,
}

impl<'c, C: OurChains> Listing<'c, C> {
    fn new(chains: &'c C) -> Self {
        let (found, shared, name) = (Vec::new(), BTreeSet::new(), String::new());
        Listing { chains, table: "", found, shared, name, place: None }
    }

    fn take(&mut self, line: &str) {
        if let Some(declared) = line.strip_prefix(':') {
            let name = declared.split(' ').next().unwrap_or_default();
            let key = self.chains.parse(self.table, name);
            self.found.extend(key.map(|key| (key, ChainHash::EMPTY)));
        } else if let Some((chain, rule)) = rule_in(line) {
            self.take_rule(chain, rule);
        }
    }

    /// Those of one chain come one after the other.
    fn take_rule(&mut self, chain: &str, rule: &str) {
        if self.name != chain {
            chain.clone_into(&mut self.name);
            let key = self.chains.parse(self.table, chain);
            self.place = key.map(|key| self.place_of(key));
        }
        let is_shared = self.chains.is_shared(self.table, chain);
        if self.place.is_none() && !is_shared {
            return;
        }
        let parsed = Parsed::of(rule);
        if is_shared {
            self.shared.insert((self.table, chain.to_owned(), parsed.rule().hash()));
        }
        if let Some((_, hash)) = self.place.and_then(|place| self.found.get_mut(place)) {
            hash.push(&parsed.rule());
        }
    }

    /// Chains are listed in one order, declared and with their rules.
    fn place_of(&mut self, key: C::Key) -> usize {
        let next = self.place.map_or(0, |place| place + 1);
        let after = self.found.iter().skip(next).position(|(known, _)| *known == key);
        let place = after.map(|place| place + next);
        place.or_else(|| self.found.iter().position(|(known, _)| *known == key)).unwrap_or_else(|| {
            self.found.push((key, ChainHash::EMPTY));
            self.found.len() - 1
        })
    }

    fn missing(&self) -> Vec<SharedRule> {
        let is_there =
            |rule: &SharedRule| self.shared.contains(&(rule.table, rule.chain.to_owned(), rule.hash));
        self.chains.shared_rules().into_iter().filter(|rule| !is_there(rule)).collect()
    }
}

/// A chain and a rule in it.
pub(super) fn rule_in(line: &str) -> Option<(&str, &str)> {
    let rule = line.strip_prefix("-A ")?;
    Some(rule.split_once(' ').unwrap_or((rule, "")))
}

/// How tables differ from what they have to hold.
pub(super) struct Differences<K> {
    /// Chains, with what is wrong with them.
    pub(super) chains: Vec<(K, &'static str)>,
    pub(super) missing: Vec<SharedRule>,
}

/// Lists the tables and compares them with what they have to hold.
///
/// # Errors
/// When they cannot be listed.
pub(super) async fn compare<C: OurChains>(
    tools: &mut impl Xtables,
    chains: &C,
    mut expected: Vec<(C::Key, Expected)>,
) -> Result<Differences<C::Key>> {
    let mut listing = Listing::new(chains);
    for table in chains.tables() {
        listing.table = table;
        listing.name.clear();
        tools.list(table, None, &mut |line| listing.take(line)).await?;
    }
    let missing = listing.missing();
    let mut found: Vec<_> = listing.found.into_iter().map(|(key, hash)| (key, hash.short())).collect();
    found.sort_unstable_by_key(|(key, _)| *key);
    expected.sort_unstable_by_key(|(key, _)| *key);
    Ok(Differences { chains: differing(expected, found), missing })
}

const NO_RULES: [u8; 8] = ChainHash::EMPTY.short();

/// The chains that differ, of two lists in order.
fn differing<K: Copy + Ord>(
    expected: Vec<(K, Expected)>,
    found: Vec<(K, [u8; 8])>,
) -> Vec<(K, &'static str)> {
    let (mut expected, mut found) = (expected.into_iter().peekable(), found.into_iter().peekable());
    let mut differing = Vec::new();
    loop {
        let next = expected.peek().map(|it| it.0).into_iter().chain(found.peek().map(|it| it.0)).min();
        let Some(key) = next else { return differing };
        let wanted = expected.next_if(|(at, _)| *at == key).map(|(_, wanted)| wanted);
        let there = found.next_if(|(at, _)| *at == key).map(|(_, there)| there);
        let what = match (wanted, there) {
            (Some(Expected::Unknown), _) | (None, Some(NO_RULES) | None) => continue,
            (Some(Expected::Anything), Some(_)) => continue,
            (Some(Expected::Rules(wanted)), Some(there)) if wanted == there => continue,
            (Some(Expected::Anything | Expected::Rules(NO_RULES)), None) => "is gone",
            (Some(Expected::Rules(_)), None | Some(NO_RULES)) => "is gone or has no rules left",
            (None | Some(Expected::Rules(NO_RULES)), Some(_)) => "has rules and should have none",
            (Some(Expected::Rules(_)), Some(_)) => "has other rules than were written",
        };
        differing.push((key, what));
    }
}

/// Those rules of ours that are missing in shared chains.
///
/// # Errors
/// When the chains cannot be listed.
pub(super) async fn missing_shared_rules<C: OurChains>(
    tools: &mut impl Xtables,
    chains: &C,
) -> Result<Vec<SharedRule>> {
    let mut listing = Listing::new(chains);
    let places: BTreeSet<_> = chains.shared_rules().iter().map(|rule| (rule.table, rule.chain)).collect();
    for (table, chain) in places {
        listing.table = table;
        tools.list(table, Some(chain), &mut |line| listing.take(line)).await?;
    }
    Ok(listing.missing())
}

/// Those of our chains whose names are gone; no rule is read.
///
/// # Errors
/// When the chains cannot be listed.
pub(super) async fn missing_chains<C: OurChains>(
    tools: &mut impl Xtables,
    chains: &C,
    expected: Vec<(C::Key, Expected)>,
) -> Result<Vec<C::Key>> {
    let mut found = BTreeSet::new();
    for table in chains.tables() {
        let mut here = BTreeSet::new();
        tools
            .chains(table, &mut |part| match part {
                Part::Start => here.clear(),
                Part::Item(name) => here.extend(chains.parse(table, name)),
            })
            .await?;
        found.append(&mut here);
    }
    let known = expected.into_iter().filter(|(_, expected)| *expected != Expected::Unknown);
    Ok(known.map(|(key, _)| key).filter(|key| !found.contains(key)).collect())
}

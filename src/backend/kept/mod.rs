//! The rules of our chains as they have to be found later: one hash per chain, the order of its rules
//! included. Whatever differs is somebody else's doing.
//!
//! A legacy table is listed as a whole by a tool, and what a rule says there is compared with what we said. The rules
//! of nf_tables are not put into words, so there the reference is what the kernel showed after our own writes;
//! chains are read one by one, because the kernel finds its place anew for each piece of a table's list:
//! 170,000 rules took it 12 s that way.

mod reader;
mod record;

pub(super) use record::Record;

use super::jumps::Jump;
use super::{Drift, DriftKind};
use crate::kernel::iptables::{Flavor, Xtables};
use anyhow::Result;
use reader::Reader;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// A hash of a chain's rules.
type Print = [u8; 4];
/// That of a chain without rules, or of none.
const EMPTY: Print = [0; 4];

/// The print of a chain with one more rule.
fn with_rule(print: Print, content: u64) -> Print {
    let mut hasher = DefaultHasher::new();
    (print, content).hash(&mut hasher);
    let [.., a, b, c, d] = hasher.finish().to_be_bytes();
    // Whatever is there is not `EMPTY`.
    [a | 1, b, c, d]
}

/// How a backend calls its chains.
pub(super) trait Chains: Copy {
    /// A chain of ours, small: there are many.
    type Key: Copy + Ord;

    /// The chain of ours with this name; `None` if it is none of ours, or others write it, too.
    fn key(&self, table: &str, chain: &str) -> Option<Self::Key>;

    /// The same, if it holds rules of ours.
    fn holder(&self, table: &str, chain: &str) -> Option<Self::Key> {
        self.key(table, chain)
    }

    /// The table and the name of a chain of ours.
    fn place(&self, key: Self::Key) -> (&'static str, String);

    /// The tables that hold chains of ours.
    fn tables(&self) -> impl Iterator<Item = &'static str>;

    /// The jumps that we keep in built-in chains.
    fn jumps(&self) -> impl Iterator<Item = &'static Jump>;

    /// Whether one of these goes this way.
    fn has_jump(&self, table: &str, from: &str, to: &str) -> bool {
        self.jumps().any(|jump| (jump.table, jump.from, jump.to) == (table, from, to))
    }

    /// The table and the name of a chain with rules of ours, other than jumps, among those of others.
    fn mixed(&self) -> Option<(&'static str, &'static str)> {
        None
    }
}

/// Where a rule stands and leads to.
#[derive(Clone, Copy)]
struct At<'a> {
    table: &'static str,
    chain: &'a str,
    jumps_to: Option<&'a str>,
}

/// A rule of ours in a chain where others have rules, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SharedRule {
    table: &'static str,
    chain: String,
    /// The chain of ours that it jumps to.
    jumps_to: Option<String>,
    content: u64,
}

impl SharedRule {
    /// A rule, if it may be one of ours.
    fn of(chains: &impl Chains, at: At<'_>, content: impl FnOnce() -> u64) -> Option<Self> {
        let At { table, chain, jumps_to } = at;
        let jumps_to = jumps_to.filter(|to| chains.has_jump(table, chain, to)).map(str::to_owned);
        let is_ours = jumps_to.is_some() || chains.mixed() == Some((table, chain));
        is_ours.then(|| SharedRule { table, chain: chain.to_owned(), jumps_to, content: content() })
    }

    fn missed(&self) -> Drift {
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

/// The rules of our chains, and those of ours among rules of others.
#[derive(Debug)]
struct Rules<K> {
    prints: BTreeMap<K, Print>,
    shared: BTreeSet<SharedRule>,
}

/// The same as tables hold them now: only to be walked once, and there are very many.
struct Found<K> {
    /// In order.
    prints: Vec<(K, Print)>,
    shared: BTreeSet<SharedRule>,
}

/// What has to be found of our chains.
#[derive(Debug)]
pub(super) struct Kept<C: Chains> {
    chains: C,
    rules: Rules<C::Key>,
}

impl<C: Chains> Kept<C> {
    /// Chains of nf_tables that have just been written, as the kernel shows them, and the rules of ours among those
    /// of others.
    ///
    /// # Errors
    /// When that cannot be read.
    pub(super) fn shown(tools: &mut impl Xtables, chains: C, written: &[C::Key]) -> Result<Self> {
        let Found { prints, shared } = read(tools, chains, written.iter().copied())?;
        // Those without rules are to be read again, too.
        let prints = written.iter().map(|key| (*key, EMPTY)).chain(prints).collect();
        Ok(Kept { chains, rules: Rules { prints, shared } })
    }

    /// What was written to legacy tables: nothing but this is in force, and our jumps stand.
    pub(super) fn recorded(chains: C, record: Record<C>) -> Self {
        let mut rules = record.into_rules();
        rules.prints.retain(|_, print| *print != EMPTY);
        rules.shared.extend(record::jumps(&chains));
        Kept { chains, rules }
    }

    /// More was written to legacy tables.
    pub(super) fn add(&mut self, record: Record<C>) {
        let later = record.into_rules();
        self.rules.shared.extend(later.shared);
        for (key, print) in later.prints {
            match print {
                EMPTY => self.rules.prints.remove(&key),
                print => self.rules.prints.insert(key, print),
            };
        }
    }

    /// What differs now.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub(super) async fn compare(&self, tools: &mut impl Xtables) -> Result<Vec<Drift>> {
        let found = match tools.flavor() {
            Flavor::Legacy => list(tools, self.chains).await?,
            Flavor::Nft => read(tools, self.chains, self.rules.prints.keys().copied())?,
        };
        let missed = self.rules.shared.difference(&found.shared).map(SharedRule::missed);
        let drifted = differing(&self.rules.prints, found.prints).into_iter().map(|(key, what)| {
            let (table, chain) = self.chains.place(key);
            Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), what)
        });
        Ok(missed.chain(drifted).collect())
    }
}

/// The chains that are not the same in both, and what is wrong with them.
fn differing<K: Copy + Ord>(known: &BTreeMap<K, Print>, found: Vec<(K, Print)>) -> Vec<(K, &'static str)> {
    let known = known.iter().map(|(key, print)| (*key, *print));
    let (mut known, mut found) = (known.peekable(), found.into_iter().peekable());
    let mut differing = Vec::new();
    while let Some(key) = known.peek().into_iter().chain(found.peek()).map(|(key, _)| *key).min() {
        let known = known.next_if(|(at, _)| *at == key).map_or(EMPTY, |(_, print)| print);
        let found = found.next_if(|(at, _)| *at == key).map_or(EMPTY, |(_, print)| print);
        let what = match (known, found) {
            (known, found) if known == found => continue,
            (_, EMPTY) => "is gone or has no rules left",
            (EMPTY, _) => "has rules and should have none",
            _ => "has other rules than were written",
        };
        differing.push((key, what));
    }
    differing
}

/// Reads chains of nf_tables, and the rules of ours among those of others.
fn read<C: Chains>(
    tools: &mut impl Xtables,
    chains: C,
    keys: impl Iterator<Item = C::Key>,
) -> Result<Found<C::Key>> {
    let shared: BTreeSet<_> =
        chains.jumps().map(|jump| (jump.table, jump.from)).chain(chains.mixed()).collect();
    let shared = shared.into_iter().map(|(table, chain)| (table, chain.to_owned()));
    let mut reader = Reader::of(chains);
    for (table, chain) in shared.chain(keys.map(|key| chains.place(key))) {
        tools.visit_rules(table, Some(&chain), &mut |part| reader.take_part(table, part))?;
        reader.end_part();
    }
    Ok(reader.finish())
}

/// Lists the legacy tables that hold chains of ours.
async fn list<C: Chains>(tools: &mut impl Xtables, chains: C) -> Result<Found<C::Key>> {
    let mut reader = Reader::of(chains);
    for table in chains.tables() {
        tools.list_rules(table, &mut |rule| reader.take_said(table, rule)).await?;
        reader.end_part();
    }
    Ok(reader.finish())
}

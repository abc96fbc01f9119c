//! The rules of our chains as the kernel showed them after we wrote them.
//!
//! The kernel's form of a rule is not the text that we send, so the reference is what it shows
//! after our own writes: one hash per chain, the order of its rules included. Whatever differs later
//! is somebody else's doing.
//!
//! Chains of nf_tables are read one by one, because the kernel finds its place anew for each piece of
//! a table's list: 170,000 rules took it 12 s that way. A legacy table comes as a whole.

use super::{Drift, DriftKind};
use crate::kernel::iptables::{Flavor, Rule, Xtables};
use crate::kernel::nft::Part;
use anyhow::Result;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// A hash of a chain's rules.
type Print = [u8; 4];
/// That of a chain without rules, or of none.
const EMPTY: Print = [0; 4];

/// How a backend calls its chains.
pub(super) trait Chains {
    /// A chain of ours, small: there are many.
    type Key: Copy + Ord;

    /// The chain of ours with this name; `None` if it is none of ours, or others write it, too.
    fn key(&self, table: &str, chain: &str) -> Option<Self::Key>;

    /// The table and the name of a chain of ours.
    fn place(&self, key: Self::Key) -> (&'static str, String);

    /// The tables that hold chains of ours.
    fn tables(&self) -> &'static [&'static str];

    /// The tables and names of chains with rules of ours among those of others.
    fn shared(&self) -> BTreeSet<(&'static str, &'static str)>;

    /// Whether one of the jumps that we keep in built-in chains goes this way.
    fn has_jump(&self, table: &str, from: &str, to: &str) -> bool;

    /// Whether a chain has rules of ours, other than jumps, among those of others.
    fn is_mixed(&self, _table: &str, _chain: &str) -> bool {
        false
    }
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

/// What the kernel showed of our chains.
#[derive(Debug)]
pub(super) struct Kept<K> {
    chains: BTreeMap<K, Print>,
    shared: BTreeSet<SharedRule>,
}

impl<K: Copy + Ord> Kept<K> {
    /// These chains have just been written, and the rules of ours among those of others. `None` if
    /// reading them would cost too much.
    pub(super) fn all<C: Chains<Key = K>>(
        tools: &mut impl Xtables,
        chains: &C,
        written: &[K],
    ) -> Result<Option<Self>> {
        let reading = read(tools, chains, (written, true))?;
        Ok(reading.map(|Reading { chains, shared }| Kept { chains: chains.into_iter().collect(), shared }))
    }

    /// Reads chains that have just been written, and no others: these may have been changed by
    /// somebody since. `false` if that would cost too much.
    pub(super) fn refresh<C: Chains<Key = K>>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
        (written, deleted): (&[K], &[K]),
    ) -> Result<bool> {
        for key in deleted {
            self.chains.remove(key);
        }
        let Some(reading) = read(tools, chains, (written, false))? else { return Ok(false) };
        self.chains.extend(reading.chains);
        Ok(true)
    }

    /// What differs now. Nothing if reading it would cost too much.
    pub(super) fn compare<C: Chains<Key = K>>(
        &self,
        tools: &mut impl Xtables,
        chains: &C,
    ) -> Result<Vec<Drift>> {
        let keys: Vec<K> = self.chains.keys().copied().collect();
        let Some(reading) = read(tools, chains, (&keys, true))? else { return Ok(Vec::new()) };
        let missed = self.shared.difference(&reading.shared).map(SharedRule::missed);
        let drifted = |(key, found): (K, Print)| {
            let what = differs(*self.chains.get(&key)?, found)?;
            let (table, chain) = chains.place(key);
            Some(Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), what))
        };
        Ok(missed.chain(reading.chains.into_iter().filter_map(drifted)).collect())
    }
}

/// What is wrong with a chain, if anything is.
fn differs(known: Print, found: Print) -> Option<&'static str> {
    match (known, found) {
        (known, found) if known == found => None,
        (_, EMPTY) => Some("is gone or has no rules left"),
        (EMPTY, _) => Some("has rules and should have none"),
        _ => Some("has other rules than were written"),
    }
}

/// What a reading showed.
struct Reading<K> {
    chains: Vec<(K, Print)>,
    shared: BTreeSet<SharedRule>,
}

/// Reads chains and, if wanted, the rules of ours among those of others. `None` if it would cost
/// too much.
fn read<C: Chains>(
    tools: &mut impl Xtables,
    chains: &C,
    (keys, shared): (&[C::Key], bool),
) -> Result<Option<Reading<C::Key>>> {
    let mut seen = Seen::default();
    if tools.flavor() == Flavor::Legacy {
        for table in chains.tables() {
            if !seen.visit(tools, chains, (table, None))? {
                return Ok(None);
            }
        }
    } else {
        let shared = if shared { chains.shared() } else { BTreeSet::new() };
        for (table, chain) in shared {
            seen.visit(tools, chains, (table, Some(chain)))?;
        }
        for key in keys {
            let (table, chain) = chains.place(*key);
            seen.visit(tools, chains, (table, Some(&chain)))?;
        }
    }
    let print = |key: &C::Key| (*key, seen.chains.get(key).copied().unwrap_or(EMPTY));
    Ok(Some(Reading { chains: keys.iter().map(print).collect(), shared: seen.shared }))
}

/// What has been seen of tables.
struct Seen<K> {
    chains: BTreeMap<K, Print>,
    shared: BTreeSet<SharedRule>,
}

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Seen { chains: BTreeMap::new(), shared: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Seen<K> {
    /// Reads a table or one of its chains; `false` if that would cost too much.
    fn visit<C: Chains<Key = K>>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
        (table, chain): (&'static str, Option<&str>),
    ) -> Result<bool> {
        let mut new = Seen::default();
        let mut open: Option<(K, DefaultHasher)> = None;
        let mut look = |part: Part<Rule<'_>>| {
            let Part::Item(rule) = part else {
                (new, open) = (Seen::default(), None);
                return;
            };
            let Some(key) = chains.key(table, rule.chain) else {
                new.shared.extend(shared_rule(chains, table, rule));
                return;
            };
            if open.as_ref().is_none_or(|(known, _)| *known != key) {
                new.close(open.take());
            }
            let (_, hasher) = open.get_or_insert_with(|| (key, DefaultHasher::new()));
            rule.content.hash(hasher);
        };
        let is_read = tools.visit_rules(table, chain, &mut look)?;
        new.close(open);
        self.chains.extend(new.chains);
        self.shared.extend(new.shared);
        Ok(is_read)
    }

    fn close(&mut self, open: Option<(K, DefaultHasher)>) {
        if let Some((key, hasher)) = open {
            let [.., a, b, c, d] = hasher.finish().to_be_bytes();
            // Whatever is there is not `EMPTY`.
            self.chains.insert(key, [a | 1, b, c, d]);
        }
    }
}

fn shared_rule<C: Chains>(chains: &C, table: &'static str, rule: Rule<'_>) -> Option<SharedRule> {
    let jumps_to = rule.jumps_to.filter(|to| chains.has_jump(table, rule.chain, to)).map(str::to_owned);
    (jumps_to.is_some() || chains.is_mixed(table, rule.chain)).then(|| SharedRule {
        table,
        chain: rule.chain.to_owned(),
        jumps_to,
        content: rule.content,
    })
}

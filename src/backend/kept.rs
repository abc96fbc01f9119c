//! The rules of our chains as the kernel showed them after we wrote them.
//!
//! The kernel's form of a rule is not the text that we send, so the reference is what it shows
//! right after our own writes: one hash per chain, the order of its rules included. Whatever differs
//! later is somebody else's doing.

use super::{Drift, DriftKind};
use crate::kernel::iptables::{Flavor, Rule, Xtables};
use crate::kernel::nft::Part;
use anyhow::Result;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// Up to so many chains are read one by one, more by reading their table.
const READ_ONE_BY_ONE: usize = 50;

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

    /// Whether a chain of ours that we have written no rules to must stay empty. Others may be
    /// leftovers that wait for their deletion.
    fn is_fixed(&self, key: Self::Key) -> bool;

    /// Whether one of the jumps that we keep in built-in chains goes this way.
    fn has_jump(&self, table: &str, from: &str, to: &str) -> bool;

    /// Whether a chain has rules of ours among those of others.
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

/// What a reading of tables showed.
#[derive(Debug)]
struct Reading<K> {
    chains: BTreeMap<K, [u8; 4]>,
    shared: BTreeSet<SharedRule>,
}

/// What the kernel showed of all our chains.
#[derive(Debug)]
pub(super) struct Kept<K> {
    /// Hashes of the rules, by chain; a chain without rules is not there.
    chains: BTreeMap<K, [u8; 4]>,
    shared: BTreeSet<SharedRule>,
}

impl<K: Copy + Ord> Kept<K> {
    /// Reads everything, when all of it has just been written. `None` if that would cost too much.
    pub(super) fn all<C: Chains<Key = K>>(tools: &mut impl Xtables, chains: &C) -> Result<Option<Self>> {
        let reading = read_tables(tools, chains, chains.tables())?;
        Ok(reading.map(|Reading { chains, shared }| Kept { chains, shared }))
    }

    /// Reads chains that have just been written or deleted, and no others: these may have been
    /// changed by somebody since. `None` if that would cost too much.
    pub(super) fn refresh<C: Chains<Key = K>>(
        mut self,
        tools: &mut impl Xtables,
        chains: &C,
        written: &BTreeSet<K>,
    ) -> Result<Option<Self>> {
        // A legacy table comes as a whole, whatever is asked of it.
        let found = if written.len() <= READ_ONE_BY_ONE && tools.flavor() == Flavor::Nft {
            read_chains(tools, chains, written)?
        } else {
            read_tables(tools, chains, chains.tables())?.map(|reading| reading.chains)
        };
        let Some(found) = found else { return Ok(None) };
        for key in written {
            match found.get(key) {
                Some(print) => self.chains.insert(*key, *print),
                None => self.chains.remove(key),
            };
        }
        Ok(Some(self))
    }

    /// What differs now, as far as that can be told at little cost.
    pub(super) fn compare<C: Chains<Key = K>>(
        &self,
        tools: &mut impl Xtables,
        chains: &C,
    ) -> Result<Vec<Drift>> {
        let Some(now) = read_tables(tools, chains, chains.tables())? else { return Ok(Vec::new()) };
        let mut drift: Vec<Drift> = self.shared.difference(&now.shared).map(SharedRule::missed).collect();
        let named = |key: K| {
            let (table, chain) = chains.place(key);
            format!("{chain} of table {table}")
        };
        for (key, print) in &self.chains {
            match now.chains.get(key) {
                None => drift.push(Drift::new(DriftKind::Chain, named(*key), "is gone or has no rules left")),
                Some(found) if found != print => {
                    drift.push(Drift::new(
                        DriftKind::Chain,
                        named(*key),
                        "has other rules than were written",
                    ));
                }
                Some(_) => {}
            }
        }
        let added = now.chains.keys().filter(|key| chains.is_fixed(**key) && !self.chains.contains_key(key));
        drift.extend(
            added.map(|key| Drift::new(DriftKind::Chain, named(*key), "has rules and should have none")),
        );
        Ok(drift)
    }
}

fn read_tables<C: Chains>(
    tools: &mut impl Xtables,
    chains: &C,
    tables: &[&'static str],
) -> Result<Option<Reading<C::Key>>> {
    let mut all = Reading { chains: BTreeMap::new(), shared: BTreeSet::new() };
    for table in tables {
        let Some(reading) = read(tools, chains, table, None)? else { return Ok(None) };
        all.chains.extend(reading.chains);
        all.shared.extend(reading.shared);
    }
    Ok(Some(all))
}

fn read_chains<C: Chains>(
    tools: &mut impl Xtables,
    chains: &C,
    keys: &BTreeSet<C::Key>,
) -> Result<Option<BTreeMap<C::Key, [u8; 4]>>> {
    let mut all = BTreeMap::new();
    for key in keys {
        let (table, chain) = chains.place(*key);
        let Some(reading) = read(tools, chains, table, Some(&chain))? else { return Ok(None) };
        all.extend(reading.chains);
    }
    Ok(Some(all))
}

fn read<C: Chains>(
    tools: &mut impl Xtables,
    chains: &C,
    table: &'static str,
    chain: Option<&str>,
) -> Result<Option<Reading<C::Key>>> {
    let mut reading = Reading { chains: BTreeMap::new(), shared: BTreeSet::new() };
    let mut open: Option<(C::Key, DefaultHasher)> = None;
    let mut look = |part: Part<Rule<'_>>| {
        let Part::Item(rule) = part else {
            reading.chains.clear();
            reading.shared.clear();
            open = None;
            return;
        };
        let Some(key) = chains.key(table, rule.chain) else {
            reading.shared.extend(shared_rule(chains, table, rule));
            return;
        };
        if open.as_ref().is_none_or(|(known, _)| *known != key) {
            close(&mut reading.chains, open.take());
        }
        let (_, hasher) = open.get_or_insert_with(|| (key, DefaultHasher::new()));
        rule.content.hash(hasher);
    };
    if !tools.visit_rules(table, chain, &mut look)? {
        return Ok(None);
    }
    close(&mut reading.chains, open);
    Ok(Some(reading))
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

fn close<K: Ord>(chains: &mut BTreeMap<K, [u8; 4]>, open: Option<(K, DefaultHasher)>) {
    if let Some((key, hasher)) = open {
        let [.., a, b, c, d] = hasher.finish().to_be_bytes();
        chains.insert(key, [a, b, c, d]);
    }
}

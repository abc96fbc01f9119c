//! The rules of our chains as the kernel showed them after we wrote them.
//!
//! The kernel's form of a rule is not the text that we send, so the reference is what it shows
//! after our own writes: one hash per chain, the order of its rules included. Whatever differs later
//! is somebody else's doing.
//!
//! Chains of nf_tables are read one by one, a bounded number at a time, because the kernel finds
//! its place anew for each piece of a table's list: 170,000 rules took it 12 s that way. A legacy table comes as a whole.

use super::{Drift, DriftKind, Look};
use crate::kernel::iptables::{Flavor, Rule, Xtables};
use crate::kernel::nft::Part;
use anyhow::Result;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::ops::Bound;

/// So many chains and rules are read in one go: right after they were written, when nobody else can
/// have changed them yet, and in a thorough look. A chain of three rules takes 15 µs on a small
/// machine; what is beyond is left to the looks that follow.
const READ_AT_ONCE: usize = 6_000;
/// So many are read in a quick look while a round is under way: some 80 chains, less than a thousandth
/// of a core.
const READ_QUICKLY: usize = 300;
/// More chains than this are not named when all is read because rules are missing.
const MOST_NAMED: usize = 100;

/// A hash of a chain's rules.
type Print = [u8; 4];
/// That of a chain without rules, or of none.
const EMPTY: Print = [0; 4];
/// Stands for a chain that has not been read since we wrote it.
const UNREAD: Print = [0, 0, 0, 1];

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

/// What the kernel showed of all our chains, and how far the present round of comparing has got.
#[derive(Debug)]
pub(super) struct Kept<K> {
    chains: BTreeMap<K, Print>,
    shared: BTreeSet<SharedRule>,
    /// The chain that was looked at last.
    last: Option<K>,
    /// Chains that this round has still to look at.
    left: usize,
    /// It has still to look at the shared rules.
    shared_left: bool,
}

impl<K: Copy + Ord> Kept<K> {
    /// All of these have just been written. `None` if reading them would cost too much.
    pub(super) fn all<C: Chains<Key = K>>(
        tools: &mut impl Xtables,
        chains: &C,
        mut written: Vec<K>,
    ) -> Result<Option<Self>> {
        // In order, the map is made without slack.
        written.sort_unstable();
        let want = Want { keys: &written, shared: true, most: READ_AT_ONCE };
        let Some(Reading { chains: read, shared }) = read(tools, chains, want)? else { return Ok(None) };
        let unread = written.iter().skip(read.len()).map(|key| (*key, UNREAD));
        let mut kept = Kept {
            last: read.last().map(|(key, _)| *key),
            left: unread.len(),
            shared_left: false,
            chains: BTreeMap::new(),
            shared,
        };
        kept.chains = read.into_iter().chain(unread).collect();
        Ok(Some(kept))
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
        let want = Want { keys: written, shared: false, most: READ_AT_ONCE };
        let Some(reading) = read(tools, chains, want)? else { return Ok(false) };
        let unread = &written[reading.chains.len()..];
        self.chains.extend(reading.chains);
        self.chains.extend(unread.iter().map(|key| (*key, UNREAD)));
        if !unread.is_empty() {
            self.begin();
        }
        Ok(true)
    }

    /// Whether a round is under way.
    pub(super) fn is_looking(&self) -> bool {
        self.left > 0 || self.shared_left
    }

    /// Begins a round, which goes on from where the last one ended.
    pub(super) fn begin(&mut self) {
        (self.left, self.shared_left) = (self.chains.len(), true);
    }

    /// Goes on with the round, if one is under way, at a bounded cost: what differs.
    pub(super) fn look<C: Chains<Key = K>>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
        look: Look,
    ) -> Result<Vec<Drift>> {
        let most = match look {
            Look::Quick => READ_QUICKLY,
            Look::Thorough => READ_AT_ONCE,
        };
        self.look_on(tools, chains, most)
    }

    /// Looks at everything, or until very much is found: what differs.
    pub(super) fn compare<C: Chains<Key = K>>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
    ) -> Result<Vec<Drift>> {
        self.begin();
        let mut drift = Vec::new();
        while self.is_looking() && drift.len() < MOST_NAMED {
            drift.extend(self.look_on(tools, chains, READ_AT_ONCE)?);
        }
        Ok(drift)
    }

    /// Compares the next chains; one that has not been read since it was written is only noted.
    fn look_on<C: Chains<Key = K>>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
        most: usize,
    ) -> Result<Vec<Drift>> {
        if !self.is_looking() {
            return Ok(Vec::new());
        }
        let keys = match tools.flavor() {
            Flavor::Nft => self.next(most),
            Flavor::Legacy => self.next(usize::MAX),
        };
        let reading = read(tools, chains, Want { keys: &keys, shared: self.shared_left, most })?;
        let mut drift = Vec::new();
        let Some(reading) = reading.filter(|_| !self.chains.is_empty()) else {
            (self.left, self.shared_left) = (0, false);
            return Ok(drift);
        };
        self.left = self.left.saturating_sub(reading.chains.len());
        self.last = reading.chains.last().map(|(key, _)| *key);
        if std::mem::take(&mut self.shared_left) {
            drift.extend(self.shared.difference(&reading.shared).map(SharedRule::missed));
        }
        for (key, found) in reading.chains {
            let Some(known) = self.chains.get_mut(&key) else { continue };
            if *known == UNREAD {
                *known = found;
            } else if let Some(what) = differs(*known, found) {
                let (table, chain) = chains.place(key);
                drift.push(Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), what));
            }
        }
        Ok(drift)
    }

    /// The chains that come next, from the first again after the last.
    fn next(&self, most: usize) -> Vec<K> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.chains.range((after, Bound::Unbounded));
        rest.chain(&self.chains)
            .map(|(key, _)| *key)
            .take(most.min(self.left).min(self.chains.len()))
            .collect()
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

/// What a reading is to show.
struct Want<'a, K> {
    keys: &'a [K],
    /// The rules among those of others, too.
    shared: bool,
    /// No more chains are read once so many chains and rules have been.
    most: usize,
}

/// What a reading showed.
struct Reading<K> {
    /// The first of the chains wanted, or all.
    chains: Vec<(K, Print)>,
    shared: BTreeSet<SharedRule>,
}

/// `None` if it would cost too much.
fn read<C: Chains>(
    tools: &mut impl Xtables,
    chains: &C,
    want: Want<'_, C::Key>,
) -> Result<Option<Reading<C::Key>>> {
    let mut seen = Seen::default();
    if tools.flavor() == Flavor::Legacy {
        for table in chains.tables() {
            if !seen.visit(tools, chains, (table, None))? {
                return Ok(None);
            }
        }
        let print = |key: &C::Key| (*key, seen.chains.get(key).copied().unwrap_or(EMPTY));
        return Ok(Some(Reading { chains: want.keys.iter().map(print).collect(), shared: seen.shared }));
    }
    if want.shared {
        for (table, chain) in chains.shared() {
            seen.visit(tools, chains, (table, Some(chain)))?;
        }
    }
    let (mut read, before) = (Vec::new(), seen.rules);
    for key in want.keys {
        if read.len() + seen.rules - before >= want.most {
            break;
        }
        let (table, chain) = chains.place(*key);
        seen.visit(tools, chains, (table, Some(&chain)))?;
        read.push((*key, seen.chains.remove(key).unwrap_or(EMPTY)));
    }
    Ok(Some(Reading { chains: read, shared: seen.shared }))
}

/// What has been seen of tables.
struct Seen<K> {
    chains: BTreeMap<K, Print>,
    shared: BTreeSet<SharedRule>,
    rules: usize,
}

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Seen { chains: BTreeMap::new(), shared: BTreeSet::new(), rules: 0 }
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
            new.rules += 1;
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
        self.rules += new.rules;
        Ok(is_read)
    }

    fn close(&mut self, open: Option<(K, DefaultHasher)>) {
        if let Some((key, hasher)) = open {
            let [.., a, b, c, d] = hasher.finish().to_be_bytes();
            // Whatever is there is neither `EMPTY` nor `UNREAD`.
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

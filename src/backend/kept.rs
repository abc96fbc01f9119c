//! The rules of our chains as the kernel showed them after we wrote them.
//!
//! The kernel's form of a rule is not the text that we send, so the reference is what it shows
//! after our own writes: one hash per chain, the order of its rules included. Whatever differs later
//! is somebody else's doing.
//!
//! Chains of nf_tables are read one by one, because the kernel finds its place anew for each piece of
//! a table's list: 170,000 rules took it 12 s that way. A legacy table comes as a whole, or, if it is too
//! large for that, as a tool lists it.

use super::{Drift, DriftKind, Look};
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

    /// The same, if it holds rules of ours.
    fn holder(&self, table: &str, chain: &str) -> Option<Self::Key> {
        self.key(table, chain)
    }

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
    shown: Shown<K>,
    /// There if a table is too large to be read otherwise.
    listing: Option<Listing<K>>,
}

/// What may have changed since tables were listed.
#[derive(Debug)]
struct Listing<K> {
    /// What we have written. Whatever the next listing shows of it is taken for that.
    written: BTreeSet<K>,
    /// Something of it since the last thorough look.
    is_new: bool,
    /// Others have written, or used the tools.
    others_wrote: bool,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Listing { written: BTreeSet::new(), is_new: false, others_wrote: false }
    }
}

impl<K: Copy + Ord> Kept<K> {
    /// These chains have just been written, and the rules of ours among those of others.
    pub(super) async fn all<C: Chains<Key = K>>(
        tools: &mut impl Xtables,
        chains: &C,
        written: &[K],
    ) -> Result<Self> {
        let Some(mut shown) = read(tools, chains, (written, true))? else {
            return Kept::listed(tools, chains).await;
        };
        shown.chains = written.iter().map(|key| (*key, shown.print(*key))).collect();
        Ok(Kept { shown, listing: None })
    }

    /// The same where a table is too large to be read.
    async fn listed<C: Chains<Key = K>>(tools: &mut impl Xtables, chains: &C) -> Result<Self> {
        // What was done before the listing shows in it.
        let _: bool = tools.was_used();
        let shown = list(tools, chains).await?;
        Ok(Kept { shown, listing: Some(Listing::default()) })
    }

    /// Reads chains that have just been written, and no others: these may have been changed by
    /// somebody since. A listing has to wait, since it takes half as long as a write.
    pub(super) async fn refresh<C: Chains<Key = K>>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
        (written, deleted): (&[K], &[K]),
    ) -> Result<()> {
        if let Some(listing) = &mut self.listing {
            listing.written.extend(written.iter().chain(deleted));
            listing.is_new = true;
            return Ok(());
        }
        for key in deleted {
            self.shown.chains.remove(key);
        }
        if let Some(shown) = read(tools, chains, (written, false))? {
            self.shown.chains.extend(written.iter().map(|key| (*key, shown.print(*key))));
        } else {
            *self = Kept::listed(tools, chains).await?;
        }
        Ok(())
    }

    /// Whether rules are to be compared now, where nothing tells of changes: at each thorough look, but
    /// by a listing only if others may have changed something, or after we have ceased to.
    pub(super) fn is_due(&mut self, look: Look, others_wrote: bool) -> bool {
        let Some(listing) = &mut self.listing else { return look == Look::Thorough };
        listing.others_wrote |= others_wrote;
        if look == Look::Quick {
            return false;
        }
        let is_writing = std::mem::take(&mut listing.is_new);
        listing.others_wrote || !(is_writing || listing.written.is_empty())
    }

    /// What differs now.
    pub(super) async fn compare<C: Chains<Key = K>>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
    ) -> Result<Vec<Drift>> {
        if let Some(listing) = &self.listing {
            let shown = list(tools, chains).await?;
            let differing = differing(&self.shown.chains, &shown.chains);
            let unwritten = differing.into_iter().filter(|key| !listing.written.contains(key));
            let drift = self.shown.differences(chains, &shown, unwritten);
            if drift.is_empty() {
                // Rules among those of others are ours only as of a full write.
                self.shown.chains = shown.chains;
                self.listing = Some(Listing::default());
            }
            return Ok(drift);
        }
        let keys: Vec<K> = self.shown.chains.keys().copied().collect();
        if let Some(shown) = read(tools, chains, (&keys, true))? {
            return Ok(self.shown.differences(chains, &shown, keys));
        }
        // Others have made a table too large, and a listing compares with nothing but listings.
        *self = Kept::listed(tools, chains).await?;
        Ok(Vec::new())
    }
}

/// What tables showed.
#[derive(Debug)]
struct Shown<K> {
    chains: BTreeMap<K, Print>,
    shared: BTreeSet<SharedRule>,
}

impl<K: Copy + Ord> Shown<K> {
    fn print(&self, key: K) -> Print {
        self.chains.get(&key).copied().unwrap_or(EMPTY)
    }

    /// What is different now in some chains, and in the rules of ours among those of others.
    fn differences<C: Chains<Key = K>>(
        &self,
        chains: &C,
        now: &Shown<K>,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Drift> {
        let missed = self.shared.difference(&now.shared).map(SharedRule::missed);
        let drifted = |key: K| {
            let what = differs(self.print(key), now.print(key))?;
            let (table, chain) = chains.place(key);
            Some(Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), what))
        };
        missed.chain(keys.into_iter().filter_map(drifted)).collect()
    }
}

/// The chains that are not the same in both. There are very many, so both are walked and none is looked up.
fn differing<K: Copy + Ord>(known: &BTreeMap<K, Print>, found: &BTreeMap<K, Print>) -> Vec<K> {
    let (mut known, mut found) = (known.iter().peekable(), found.iter().peekable());
    let mut differing = Vec::new();
    while let Some(key) = known.peek().into_iter().chain(found.peek()).map(|(key, _)| **key).min() {
        if known.next_if(|(at, _)| **at == key) != found.next_if(|(at, _)| **at == key) {
            differing.push(key);
        }
    }
    differing
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

/// Reads chains and, if wanted, the rules of ours among those of others; perhaps more than these.
/// `None` if it would cost too much.
fn read<C: Chains>(
    tools: &mut impl Xtables,
    chains: &C,
    (keys, shared): (&[C::Key], bool),
) -> Result<Option<Shown<C::Key>>> {
    let mut places: Vec<(&'static str, Option<String>)> = Vec::new();
    if tools.flavor() == Flavor::Legacy {
        places.extend(chains.tables().iter().map(|table| (*table, None)));
    } else {
        let shared = if shared { chains.shared() } else { BTreeSet::new() };
        places.extend(shared.into_iter().map(|(table, chain)| (table, Some(chain.to_owned()))));
        let place = |key: &C::Key| chains.place(*key);
        places.extend(keys.iter().map(place).map(|(table, chain)| (table, Some(chain))));
    }
    let mut reader = Reader::of(chains);
    for (table, chain) in places {
        if !tools.visit_rules(table, chain.as_deref(), &mut |part| reader.take(table, part))? {
            return Ok(None);
        }
        reader.end_part();
    }
    Ok(Some(reader.finish()))
}

/// Lists the legacy tables that hold chains of ours.
async fn list<C: Chains>(tools: &mut impl Xtables, chains: &C) -> Result<Shown<C::Key>> {
    let mut reader = Reader::of(chains);
    for table in chains.tables() {
        tools.list_rules(table, &mut |part| reader.take(table, part)).await?;
        reader.end_part();
    }
    Ok(reader.finish())
}

/// Reads rules, table by table or chain by chain.
struct Reader<'c, C: Chains> {
    chains: &'c C,
    prints: Vec<(C::Key, Print)>,
    shared: Vec<SharedRule>,
    /// How many of these are of parts that have been read to their ends.
    done: (usize, usize),
    /// The chain that is being read; no key if it is none of ours.
    name: String,
    key: Option<C::Key>,
    hasher: DefaultHasher,
}

impl<'c, C: Chains> Reader<'c, C> {
    fn of(chains: &'c C) -> Self {
        let hasher = DefaultHasher::new();
        let (prints, shared, name) = (Vec::new(), Vec::new(), String::new());
        Reader { chains, prints, shared, done: (0, 0), name, key: None, hasher }
    }

    fn take(&mut self, table: &'static str, part: Part<Rule<'_>>) {
        let Part::Item(rule) = part else {
            self.prints.truncate(self.done.0);
            self.shared.truncate(self.done.1);
            (self.key, self.hasher) = (None, DefaultHasher::new());
            self.name.clear();
            return;
        };
        if self.name != rule.chain {
            self.end_chain();
            self.name.push_str(rule.chain);
            self.key = self.chains.holder(table, rule.chain);
        }
        match self.key {
            Some(_) => rule.content.hash(&mut self.hasher),
            None => self.shared.extend(shared_rule(self.chains, table, rule)),
        }
    }

    fn end_chain(&mut self) {
        let hasher = std::mem::take(&mut self.hasher);
        if let Some(key) = self.key.take() {
            let [.., a, b, c, d] = hasher.finish().to_be_bytes();
            // Whatever is there is not `EMPTY`.
            self.prints.push((key, [a | 1, b, c, d]));
        }
        self.name.clear();
    }

    fn end_part(&mut self) {
        self.end_chain();
        self.done = (self.prints.len(), self.shared.len());
    }

    fn finish(self) -> Shown<C::Key> {
        Shown { chains: self.prints.into_iter().collect(), shared: self.shared.into_iter().collect() }
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

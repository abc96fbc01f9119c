//! What others write to our chains, as nf_tables tells of it.
//!
//! Each transaction is told as a whole, with the generation that it makes, so that it is known
//! whether anything was missed. Our own are among them: what a pass of ours wrote is told apart by
//! how many transactions it took.

use super::chains::TABLES;
use super::watch::{ChainKey, OurChains};
use crate::backend::kept::Chains as _;
use crate::backend::{Drift, DriftKind};
use crate::kernel::iptables::{Stamp, Xtables};
use crate::kernel::nft::{RuleMark, Told};
use crate::model::word;
use anyhow::Result;
use std::collections::BTreeMap;

/// More chains than this are counted and not named.
const MOST_NAMED: usize = 100;

/// What was done to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Changed,
    Deleted,
}

/// What a transaction did to what is ours.
#[derive(Debug, Default)]
struct Commit {
    by: String,
    chains: BTreeMap<ChainKey, Act>,
    /// The rule that was taken out last; it may come back at once.
    taken: Option<(ChainKey, RuleMark)>,
    /// It took a rule that may be ours out of a chain where others have rules, too.
    shared: bool,
    /// It gave a chain another name, perhaps: the old one is not told.
    altered: bool,
}

impl Commit {
    fn is_about_ours(&self) -> bool {
        self.shared || !self.chains.is_empty()
    }

    fn add(&mut self, told: Told<'_>) {
        if let Told::RuleAdded { table, chain, rule } = told {
            let key = OurChains.holder(table, chain);
            // Whoever zeroes the counters of a rule takes it out and puts it back.
            if key.is_some() && self.taken == key.map(|key| (key, rule)) {
                self.taken = None;
            } else {
                self.close();
                self.note(key, Act::Changed);
            }
            return;
        }
        self.close();
        match told {
            Told::RuleDeleted { table, chain, rule, jumps_to } => {
                self.taken = OurChains.holder(table, chain).map(|key| (key, rule));
                let was_ours = jumps_to.is_some_and(|to| OurChains.has_jump(table, chain, to));
                self.shared |= was_ours || OurChains.mixed() == Some((table, chain));
            }
            Told::ChainDeleted { table, chain } => self.note(OurChains.key(table, chain), Act::Deleted),
            Told::ChainAltered { table, chain } => {
                self.altered |= TABLES.contains(&table) && OurChains.key(table, chain).is_none();
            }
            Told::RuleAdded { .. } | Told::Committed { .. } => {}
        }
    }

    /// What was taken out last is not put back.
    fn close(&mut self) {
        if let Some((key, _)) = self.taken.take() {
            self.note(Some(key), Act::Changed);
        }
    }

    fn note(&mut self, key: Option<ChainKey>, act: Act) {
        let Some(key) = key else { return };
        let known = self.chains.entry(key).or_insert(act);
        *known = act.max(*known);
    }
}

/// What has been heard and not been acted upon.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Of what is ours only.
    commits: Vec<Commit>,
    /// What is being told of, and not at its end yet.
    open: Commit,
    /// The generation that the last transaction of anybody made.
    generation: Option<u32>,
    /// Something was lost, and has not been looked for yet.
    missed: bool,
    /// A chain may have been given another name, which has not been looked for yet.
    altered: bool,
}

impl Heard {
    /// Stops to listen: a pass that writes much would be told of at length.
    pub(super) fn stop(&mut self, tools: &mut impl Xtables) -> Result<()> {
        self.reset();
        tools.listen(false)
    }

    /// Begins to listen.
    pub(super) fn begin(&mut self, tools: &mut impl Xtables) {
        self.reset();
        if let Err(error) = tools.listen(true) {
            tracing::warn!(error = format!("{error:#}"), "what others write to the tables is only counted");
        }
    }

    fn reset(&mut self) {
        (self.open, self.generation) = (Commit::default(), None);
    }

    /// Forgets what was heard, and stops to listen: everything is to be written anew.
    pub(super) fn forget_all(&mut self, tools: &mut impl Xtables) -> Result<()> {
        *self = Heard::default();
        self.stop(tools)
    }

    /// How many transactions on what is ours have not been acted upon.
    pub(super) fn len(&self) -> usize {
        self.commits.len()
    }

    /// Takes in what was told since the last time.
    pub(super) fn take_in(&mut self, tools: &mut impl Xtables) -> Result<()> {
        let is_whole = tools.hear(&mut |told| {
            self.open.add(told);
            if let Told::Committed { generation, by } = told {
                self.generation = Some(generation);
                let commit = std::mem::take(&mut self.open);
                self.altered |= commit.altered;
                if commit.is_about_ours() {
                    self.commits.push(Commit { by: word(by).into_owned(), ..commit });
                }
            }
        })?;
        self.missed |= !is_whole;
        Ok(())
    }

    /// What was missed has been looked for; whether anything was.
    pub(super) fn catch_up(&mut self) -> bool {
        self.altered = false;
        std::mem::take(&mut self.missed)
    }

    /// Of the transactions since `from`, so many were our own. If there are more, somebody wrote to
    /// what is ours meanwhile, and all of them count: which came last is not known.
    pub(super) fn forget_own(&mut self, from: usize, own: u32) {
        if self.commits.len() - from <= usize::try_from(own).unwrap_or(usize::MAX) {
            self.commits.truncate(from);
        }
    }

    /// Whether everything up to this stamp was heard.
    pub(super) fn has_heard(&self, stamp: Stamp) -> bool {
        !self.missed && self.generation.is_some_and(|generation| stamp == Stamp::Generation(generation))
    }

    /// Whether what was heard tells all that was done to our chains up to this stamp.
    pub(super) fn leads_to(&self, stamp: Stamp) -> bool {
        !self.altered && self.has_heard(stamp)
    }

    /// Whether others took rules out of chains that are not ours alone.
    pub(super) fn is_about_shared(&self) -> bool {
        self.commits.iter().any(|commit| commit.shared)
    }

    /// What others did to our chains. It is not told again.
    pub(super) fn drift(&mut self) -> Vec<Drift> {
        let mut acts = BTreeMap::new();
        for commit in std::mem::take(&mut self.commits) {
            acts.extend(commit.chains.into_iter().map(|(key, act)| (key, (act, commit.by.clone()))));
        }
        let unnamed = acts.len().saturating_sub(MOST_NAMED);
        let named = acts.into_iter().take(MOST_NAMED).map(|(key, (act, by))| {
            let (table, chain) = OurChains.place(key);
            let what = match act {
                Act::Changed => "was changed",
                Act::Deleted => "was deleted",
            };
            Drift { by: Some(by), ..Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), what) }
        });
        let more = (unnamed > 0).then(|| {
            Drift::new(
                DriftKind::Table,
                "nat or filter",
                format!("has {unnamed} more chains that were changed"),
            )
        });
        named.chain(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::iptables::names::CANARY;

    const CHAIN: &str = "KUBE-SVC-AAAABBBBCCCCDDDD";

    fn mark(handle: u64) -> RuleMark {
        RuleMark { handle, content: 7 }
    }

    fn added(chain: &str, handle: u64) -> Told<'_> {
        Told::RuleAdded { table: "nat", chain, rule: mark(handle) }
    }

    fn deleted(chain: &str, handle: u64) -> Told<'_> {
        Told::RuleDeleted { table: "nat", chain, rule: mark(handle), jumps_to: None }
    }

    fn is_about_ours(told: &[Told<'_>]) -> bool {
        let mut commit = Commit::default();
        told.iter().for_each(|told| commit.add(*told));
        commit.add(Told::Committed { generation: 1, by: "" });
        commit.is_about_ours()
    }

    #[test]
    fn zeroed_counters_are_no_change_and_everything_else_is() {
        let zeroed = [deleted(CHAIN, 1), added(CHAIN, 1), deleted(CHAIN, 2), added(CHAIN, 2)];
        assert!(!is_about_ours(&zeroed));
        for changed in [
            &[deleted(CHAIN, 1)][..],
            &[added(CHAIN, 1)],
            &[deleted(CHAIN, 1), added(CHAIN, 9)],
            &[deleted(CHAIN, 1), deleted(CHAIN, 2), added(CHAIN, 2), added(CHAIN, 1)],
            &[deleted(CHAIN, 1), added("THEIRS", 1), added(CHAIN, 1)],
            &[Told::ChainDeleted { table: "nat", chain: CHAIN }],
        ] {
            assert!(is_about_ours(changed), "{changed:?}");
        }
        assert!(!is_about_ours(&[added("THEIRS", 1), deleted("OUTPUT", 2), added(CANARY, 3)]));
    }
}

//! What others write to our chains, as nf_tables tells of it.
//!
//! Each transaction is told as a whole, with the generation that it makes, so that it is known
//! whether anything was missed. Our own are among them: what a pass of ours wrote is told apart by
//! how many transactions it took.

use super::names::CANARY;
use super::watch::{ChainKey, OurChains};
use crate::backend::kept::Chains as _;
use crate::backend::{Drift, DriftKind};
use crate::kernel::iptables::{Stamp, Xtables};
use crate::kernel::nft::Told;
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
    /// It took a rule that may be ours out of a chain where others have rules, too.
    shared: bool,
}

impl Commit {
    fn is_about_ours(&self) -> bool {
        self.shared || !self.chains.is_empty()
    }

    fn add(&mut self, told: Told<'_>) {
        let (table, chain, act) = match told {
            Told::RuleAdded { table, chain } | Told::RuleDeleted { table, chain, .. } => {
                (table, chain, Act::Changed)
            }
            Told::ChainDeleted { table, chain } => (table, chain, Act::Deleted),
            Told::Committed { .. } => return,
        };
        // What stands in a canary is nothing to us.
        if let Some(key) = OurChains.key(table, chain).filter(|_| chain != CANARY || act == Act::Deleted) {
            let known = self.chains.entry(key).or_insert(act);
            *known = act.max(*known);
        }
        if let Told::RuleDeleted { jumps_to, .. } = told {
            let was_ours = jumps_to.is_some_and(|to| OurChains.has_jump(table, chain, to));
            self.shared |= was_ours || OurChains.is_mixed(table, chain);
        }
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
    /// The kernel tells us.
    listens: bool,
}

impl Heard {
    /// Stops to listen: a pass that writes much would be told of at length.
    pub(super) fn stop(&mut self, tools: &mut impl Xtables) -> Result<()> {
        self.reset();
        tools.listen(false).map(drop)
    }

    /// Begins to listen.
    pub(super) fn begin(&mut self, tools: &mut impl Xtables) {
        self.reset();
        match tools.listen(true) {
            Ok(listens) => self.listens = listens,
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "changes of single rules by others go unnoticed until everything is written anew"
            ),
        }
    }

    fn reset(&mut self) {
        *self = Heard { commits: std::mem::take(&mut self.commits), ..Heard::default() };
    }

    /// Forgets what was heard, and stops to listen: everything is to be written anew.
    pub(super) fn forget_all(&mut self, tools: &mut impl Xtables) -> Result<()> {
        self.commits.clear();
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
                if commit.is_about_ours() {
                    self.commits.push(Commit { by: by.escape_debug().to_string(), ..commit });
                }
            }
        })?;
        self.missed |= self.listens && !is_whole;
        Ok(())
    }

    /// What was missed has been looked for; whether anything was.
    pub(super) fn catch_up(&mut self) -> bool {
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
    pub(super) fn leads_to(&self, stamp: Stamp) -> bool {
        !self.missed && self.generation.is_some_and(|generation| stamp == Stamp::Generation(generation))
    }

    /// What others did, and whether they took rules out of chains that are not ours alone.
    pub(super) fn drift(&mut self) -> (Vec<Drift>, bool) {
        let (mut acts, mut shared) = (BTreeMap::new(), false);
        for commit in std::mem::take(&mut self.commits) {
            shared |= commit.shared;
            acts.extend(commit.chains.into_iter().map(|(key, act)| (key, (act, commit.by.clone()))));
        }
        let unnamed = acts.len().saturating_sub(MOST_NAMED);
        let named = acts.into_iter().take(MOST_NAMED).map(|(key, (act, by))| {
            let (table, chain) = OurChains.place(key);
            let what = match act {
                Act::Changed => format!("was changed by {by}"),
                Act::Deleted => format!("was deleted by {by}"),
            };
            Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), what)
        });
        let more = (unnamed > 0).then(|| {
            Drift::new(
                DriftKind::Table,
                "nat or filter",
                format!("has {unnamed} more chains that were changed"),
            )
        });
        (named.chain(more).collect(), shared)
    }
}

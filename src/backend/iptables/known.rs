//! Whether the tables are as we left them.
//!
//! nf_tables counts transactions, and tells of each. What is between the generation that we left and the
//! present one is known if all of it was heard, or if this process made all of it. Otherwise the
//! uses of chains are counted, and because that does not show everything, there is doubt.

use super::apply::Outcome;
use super::doubt::Doubt;
use super::heard::Heard;
use super::watch::Reread;
use crate::backend::Drift;
use crate::kernel::iptables::{Stamp, Xtables};
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many generations this process has made, in all families: all of them share one count.
#[derive(Clone, Debug, Default)]
pub struct OwnGenerations(Arc<AtomicU32>);

impl OwnGenerations {
    fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    pub(super) fn add(&self, generations: u32) {
        self.0.fetch_add(generations, Relaxed);
    }
}

/// The tables when we last knew them.
#[derive(Clone, Copy, Debug)]
struct Left {
    stamp: Stamp,
    /// The generations that this process had made by then.
    own: u32,
}

/// What is known of the tables.
#[derive(Debug, Default)]
pub(super) struct Known {
    own: OwnGenerations,
    /// `None` when they have to be looked at.
    left: Option<Left>,
    heard: Heard,
    doubt: Doubt,
}

/// How a pass of ours begins.
#[derive(Debug)]
pub(super) struct Begun {
    stamp: Stamp,
    /// The tables are known, or all of them is written anew.
    was_known: bool,
    /// Transactions of others that were known then.
    heard: usize,
    is_large: bool,
}

/// Transactions between two stamps; none where they are not counted.
fn generations(from: Stamp, to: Stamp) -> Option<u32> {
    match (from, to) {
        (Stamp::Generation(from), Stamp::Generation(to)) => Some(to.wrapping_sub(from)),
        _ => None,
    }
}

impl Known {
    pub(super) fn sharing(own: OwnGenerations) -> Self {
        Known { own, ..Known::default() }
    }

    /// Nothing is known any more, until all is written anew.
    pub(super) fn forget(&mut self, tools: &mut impl Xtables) -> Result<()> {
        self.left = None;
        self.heard.forget_all(tools)
    }

    /// Before we write: what has been heard so far is others' doing.
    pub(super) fn begin(&mut self, tools: &mut impl Xtables, reread: &Reread) -> Result<Begun> {
        let (stamp, is_known) = self.look(tools)?;
        let begun = Begun {
            stamp,
            was_known: is_known || reread.is_of_all(),
            heard: self.heard.len(),
            is_large: reread.is_large(),
        };
        if begun.is_large {
            self.heard.stop(tools)?;
        }
        Ok(begun)
    }

    /// After we have written: what others have done meanwhile is told apart from what we have.
    pub(super) fn end(&mut self, tools: &mut impl Xtables, begun: &Begun, outcome: &Outcome) -> Result<()> {
        if begun.is_large {
            self.heard.begin(tools);
        }
        let stamp = tools.stamp()?;
        self.heard.take_in(tools)?;
        if !begun.is_large {
            self.heard.forget_own(begun.heard, outcome.commits);
        }
        // The legacy tools hold a lock, so little can happen in between.
        let made = outcome.begun.and_then(|begun| generations(begun, stamp));
        let is_alone = made.is_none_or(|made| made == outcome.commits);
        let is_followed = begun.was_known && self.heard.leads_to(stamp);
        if !outcome.failed {
            let jumps = outcome.begun.and_then(|set_up| generations(begun.stamp, set_up));
            self.own.add(outcome.commits.wrapping_add(jumps.unwrap_or_default()));
            if !is_alone && !is_followed {
                self.doubt.raise();
            }
        }
        self.left = None;
        if is_alone && begun.was_known || is_followed {
            self.leave(stamp);
        }
        Ok(())
    }

    /// The tables as they are, and whether all that made them so is known.
    pub(super) fn look(&mut self, tools: &mut impl Xtables) -> Result<(Stamp, bool)> {
        let stamp = tools.stamp()?;
        self.heard.take_in(tools)?;
        let Some(left) = self.left else { return Ok((stamp, false)) };
        let is_own = match generations(left.stamp, stamp) {
            Some(made) => made == self.own.get().wrapping_sub(left.own),
            None => left.stamp == stamp,
        };
        if is_own {
            // What was lost was about a pass of the other family.
            self.heard.catch_up();
        }
        Ok((stamp, is_own || self.heard.leads_to(stamp)))
    }

    /// What others did to what is ours since the last time, and whether they took rules out of chains that
    /// are not ours alone.
    pub(super) fn drift(&mut self) -> (Vec<Drift>, bool) {
        self.heard.drift()
    }

    /// The tables are as they should be, as far as looking shows.
    pub(super) fn settle(&mut self, stamp: Stamp) {
        if self.heard.catch_up() {
            self.doubt.raise();
        }
        self.leave(stamp);
    }

    /// Whether everything is to be written anew because of what looking does not show; asked at each
    /// thorough look.
    pub(super) fn is_in_doubt(&mut self) -> bool {
        self.doubt.is_due()
    }

    fn leave(&mut self, stamp: Stamp) {
        self.left = Some(Left { stamp, own: self.own.get() });
    }
}

//! Whether the tables are as we left them.
//!
//! nf_tables counts transactions, and tells of each. What is between the generation that we left and the
//! present one is known if all of it was heard, or if this process made all of it. Otherwise the
//! uses of chains are counted, and because that does not show everything, there is doubt.

use super::apply::Outcome;
use super::doubt::Doubt;
use super::heard::Heard;
use super::watch::Written;
use crate::backend::Drift;
use crate::kernel::iptables::{Stamp, Xtables};
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What this process does to the tables, in all families: they share one count of generations.
#[derive(Clone, Debug, Default)]
pub struct OwnWrites(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    generations: AtomicU32,
    large_passes: AtomicU32,
}

impl OwnWrites {
    fn generations(&self) -> u32 {
        self.0.generations.load(Relaxed)
    }

    pub(super) fn add(&self, generations: u32) {
        self.0.generations.fetch_add(generations, Relaxed);
    }

    /// Passes of which others hear more than they can keep.
    fn large_passes(&self) -> u32 {
        self.0.large_passes.load(Relaxed)
    }

    pub(super) fn begin_large(&self) {
        self.0.large_passes.fetch_add(1, Relaxed);
    }
}

/// The tables when we last knew them.
#[derive(Clone, Copy, Debug)]
struct Left {
    stamp: Stamp,
    /// The generations that this process had made by then, and its large passes.
    own: u32,
    large_passes: u32,
}

/// What is known of the tables.
#[derive(Debug, Default)]
pub(super) struct Known {
    own: OwnWrites,
    /// `None` when they have to be looked at.
    left: Option<Left>,
    heard: Heard,
    doubt: Doubt,
}

/// How a pass of ours begins.
#[derive(Debug)]
pub(super) struct Begun {
    stamp: Stamp,
    /// The tables are known, or it does not matter: everything is written anew.
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

/// Who wrote while a pass of ours did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    Nobody,
    Others,
    /// Perhaps somebody: an input of ours failed, and may have taken effect in part.
    Perhaps,
}

/// Judges by the generations that were made meanwhile, where they are counted.
fn judge(made: Option<u32>, outcome: &Outcome) -> Company {
    // The legacy tools hold a lock, so little can happen in between.
    let Some(made) = made else { return Company::Nobody };
    if made > outcome.commits + outcome.doubtful_commits {
        Company::Others
    } else if outcome.failed || made < outcome.commits {
        Company::Perhaps
    } else {
        Company::Nobody
    }
}

impl Known {
    pub(super) fn sharing(own: OwnWrites) -> Self {
        Known { own, ..Known::default() }
    }

    /// Nothing is known any more, until all is written anew.
    pub(super) fn forget(&mut self, tools: &mut impl Xtables) -> Result<()> {
        self.left = None;
        self.doubt.lower();
        self.heard.forget_all(tools)
    }

    /// Before we write: what has been heard so far is others' doing.
    pub(super) fn begin(&mut self, tools: &mut impl Xtables, written: &Written) -> Result<Begun> {
        let (stamp, is_known) = self.look(tools)?;
        let begun = Begun {
            stamp,
            was_known: is_known || written.is_all(),
            heard: self.heard.len(),
            is_large: written.is_large(),
        };
        if begun.is_large {
            self.own.begin_large();
            self.heard.stop(tools)?;
        }
        if written.is_all() {
            self.heard.catch_up();
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
        let made = outcome.begun.and_then(|begun| generations(begun, stamp));
        let company = judge(made, outcome);
        if let Some(made) = made {
            let set_up = outcome.begun.and_then(|set_up| generations(begun.stamp, set_up));
            let ours = if company == Company::Nobody { made } else { outcome.commits };
            self.own.add(ours.wrapping_add(set_up.unwrap_or_default()));
        }
        if !begun.is_large {
            let doubtful = if outcome.failed { 0 } else { outcome.doubtful_commits };
            self.heard.forget_own(begun.heard, outcome.commits + doubtful);
        }
        self.conclude(stamp, begun, company);
        Ok(())
    }

    fn conclude(&mut self, stamp: Stamp, begun: &Begun, company: Company) {
        self.left = None;
        if company == Company::Nobody && begun.was_known {
            // Whatever was lost was our own.
            self.heard.catch_up();
            self.leave(stamp);
        } else if begun.is_large || !self.heard.has_heard(stamp) {
            if company == Company::Others {
                self.doubt.raise();
            }
        } else if begun.was_known && self.heard.leads_to(stamp) {
            self.leave(stamp);
        }
    }

    /// The tables as they are, and whether all that made them so is known.
    pub(super) fn look(&mut self, tools: &mut impl Xtables) -> Result<(Stamp, bool)> {
        let stamp = tools.stamp()?;
        self.heard.take_in(tools)?;
        let Some(left) = self.left else { return Ok((stamp, false)) };
        let is_own = match generations(left.stamp, stamp) {
            Some(made) => made == self.own.generations().wrapping_sub(left.own),
            None => left.stamp == stamp,
        };
        let is_followed = self.heard.leads_to(stamp);
        // What was lost was about a pass of the other family.
        if is_own || left.large_passes != self.own.large_passes() {
            self.heard.catch_up();
        }
        Ok((stamp, is_own || is_followed))
    }

    /// Whether others took rules out of chains that are not ours alone.
    pub(super) fn is_about_shared(&self) -> bool {
        self.heard.is_about_shared()
    }

    /// What others did to our chains since the last time.
    pub(super) fn drift(&mut self) -> Vec<Drift> {
        self.heard.drift()
    }

    /// The tables are as they should be, as far as looking shows.
    pub(super) fn settle(&mut self, stamp: Stamp) {
        // Legacy tables are never heard, and they are compared.
        if self.heard.catch_up() && matches!(stamp, Stamp::Generation(_)) {
            self.doubt.raise();
        }
        self.leave(stamp);
    }

    /// What was written is not known as the kernel shows it.
    pub(super) fn raise_doubt(&mut self) {
        self.doubt.raise();
    }

    /// Whether everything is to be written anew because of what looking does not show; asked at each
    /// thorough look.
    pub(super) fn is_in_doubt(&mut self) -> bool {
        self.doubt.is_due()
    }

    fn leave(&mut self, stamp: Stamp) {
        let (own, large_passes) = (self.own.generations(), self.own.large_passes());
        self.left = Some(Left { stamp, own, large_passes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_beside_us_shows_by_the_generations_made() {
        let outcome = |commits, doubtful_commits, failed| Outcome {
            commits,
            doubtful_commits,
            failed,
            ..Outcome::default()
        };
        for (made, outcome, company) in [
            (Some(2), outcome(2, 0, false), Company::Nobody),
            (Some(3), outcome(2, 0, false), Company::Others),
            (Some(2), outcome(2, 1, false), Company::Nobody),
            (Some(3), outcome(2, 1, false), Company::Nobody),
            (Some(4), outcome(2, 1, false), Company::Others),
            (Some(3), outcome(2, 2, true), Company::Perhaps),
            (Some(5), outcome(2, 2, true), Company::Others),
            (Some(1), outcome(2, 0, false), Company::Perhaps),
            (None, outcome(2, 0, false), Company::Nobody),
        ] {
            assert_eq!(judge(made, &outcome), company, "{made:?} {outcome:?}");
        }
    }
}

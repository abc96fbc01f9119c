//! Whose transactions there were: the kernel counts them all in one generation.

use crate::kernel::nftables::Generations;
use nftables_rs::Generation;

/// What is known of the ruleset's generation: whether other processes changed something since.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The generation that is known: one of ours, or one at which the table was compared.
    known: Option<Generation>,
    /// Other processes have made transactions since elements were compared last.
    pub(super) is_compare_due: bool,
    /// What this process did since, whichever family it was for.
    pub(super) ours: Generations,
}

impl Watched {
    /// The generation up to which all is known.
    pub(super) fn known(&self) -> Option<Generation> {
        self.known.map(|known| self.ours.after(known))
    }

    pub(super) fn know(&mut self, now: Generation) {
        self.known = Some(now);
    }

    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    /// Notes that a transaction of ours was made on top of one generation, and which one there is now.
    pub(super) fn committed(&mut self, before: Generation, now: Generation) {
        if now == before.next() {
            self.ours.note(before, now);
        } else {
            self.is_compare_due |= now != before;
        }
        self.know(now);
    }

    /// The same of a transaction that does not stand on what is known: what other processes did before is still to be compared.
    pub(super) fn committed_unseen(&mut self, before: Generation, now: Generation) {
        if now == before.next() {
            self.ours.note(before, now);
        }
    }
}

//! Whether tables still hold what we wrote, and if not, what drifted.
//!
//! nf_tables tells what other processes do, so that only what they did to chains of ours is looked at. Legacy tables
//! tell nothing: these, and nf_tables with `--drift-detection=poll`, are listed and compared, once in a sync period;
//! legacy tables also as soon as their sizes change.

use super::listing::{self, Expected, OurChains, SharedRule};
use super::{Deviation, Drift, DriftKind, VerifyDepth};
use crate::config::DriftDetection;
use crate::kernel::iptables::{Flavor, Stamp, Xtables};
use crate::kernel::nft::{Act, ForeignWrite};
use anyhow::Result;
use std::collections::BTreeMap;
use std::rc::Rc;

/// More chains than this are counted and not named.
const MOST_NAMED: usize = 100;

/// After as many resyncs in a row they come no less often: an hour apart, with a verification every two seconds.
const MOST_DOUBLINGS: u32 = 7;
/// Verifications that pass after the first resync; twice as many after each of the next.
const FIRST_REST: u32 = 15;

/// Notices of what other programs did were lost, so that everything has to be written once more: at once, and ever more
/// seldom if that happens each time.
#[derive(Debug, Default)]
struct ResyncBackoff {
    is_wanted: bool,
    /// Resyncs in a row.
    resyncs: u32,
    /// Verifications that pass before the next resync.
    rest: u32,
}

impl ResyncBackoff {
    fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Everything is written for another reason.
    fn done(&mut self) {
        self.is_wanted = false;
    }

    /// Whether everything is to be written now; asked once by each verification.
    fn is_due(&mut self) -> bool {
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        if !self.is_wanted {
            self.resyncs = 0;
            return false;
        }
        self.is_wanted = false;
        self.rest = FIRST_REST << self.resyncs;
        self.resyncs = (self.resyncs + 1).min(MOST_DOUBLINGS);
        true
    }
}

/// What drifted.
#[derive(Debug)]
pub(super) struct Lost<K> {
    pub(super) chains: BTreeMap<K, Drift>,
    /// Rules of ours that are missing in shared chains.
    pub(super) shared: Vec<SharedRule>,
    /// What else drifted is not known.
    pub(super) is_unknown: bool,
}

impl<K> Default for Lost<K> {
    fn default() -> Self {
        Lost { chains: BTreeMap::new(), shared: Vec::new(), is_unknown: false }
    }
}

impl<K: Copy + Ord> Lost<K> {
    fn add(&mut self, chains: &impl OurChains<Key = K>, key: K, what: &str, by: Option<String>) {
        let (table, chain) = chains.place(key);
        let drift = Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), what);
        self.chains.insert(key, Drift { by, ..drift });
    }

    /// All of it, by name; of very many chains some are only counted.
    pub(super) fn findings(&self) -> Vec<Deviation> {
        let outdated = Deviation::Outdated("so much was changed that not all of it is known");
        let outdated = self.is_unknown.then_some(outdated);
        self.drifts().into_iter().map(Deviation::Drift).chain(outdated).collect()
    }

    fn drifts(&self) -> Vec<Drift> {
        let unnamed = self.chains.len().saturating_sub(MOST_NAMED);
        let more = (unnamed > 0).then(|| {
            let what = format!("hold {unnamed} more chains that were changed");
            Drift::new(DriftKind::Table, "of ours", what)
        });
        let named = self.chains.values().take(MOST_NAMED).cloned();
        self.shared.iter().map(SharedRule::missing).chain(named).chain(more).collect()
    }
}

/// Detects what drifted in the tables of one family.
#[derive(Debug, Default)]
pub(super) struct DriftDetector {
    detection: DriftDetection,
    /// We are told of what other programs do.
    listens: bool,
    /// The stamp of the tables when all of ours was last known to be in them; `None` when they have to be listed.
    left: Option<Stamp>,
    backoff: ResyncBackoff,
}

impl DriftDetector {
    pub(super) fn new(detection: DriftDetection) -> Self {
        DriftDetector { detection, ..DriftDetector::default() }
    }

    /// Everything is about to be written: what other programs did before does not matter any more.
    pub(super) fn begin(&mut self, tools: &mut impl Xtables, chains: &impl OurChains) {
        self.left = None;
        self.backoff.done();
        if self.detection != DriftDetection::Events {
            return;
        }
        let ours = chains.clone();
        let concerns = Rc::new(move |table: &str, chain: &str, act| ours.concerns(table, chain, act));
        self.listens = tools.listen(concerns).unwrap_or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                "the kernel does not tell of changes to its tables: they are listed instead"
            );
            false
        });
    }

    /// A pass of ours has written.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) fn wrote(&mut self, tools: &mut impl Xtables) -> Result<()> {
        // The sizes of legacy tables tell what comes and goes from now on. A generation does not tell whose it is.
        self.left = match tools.flavor() {
            Flavor::Legacy if self.detection != DriftDetection::Off => Some(tools.stamp()?),
            _ => None,
        };
        Ok(())
    }

    /// What drifted since this was last called.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub(super) async fn verify<C: OurChains>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
        expected: impl FnOnce() -> Vec<(C::Key, Expected)>,
        depth: VerifyDepth,
    ) -> Result<Lost<C::Key>> {
        if self.detection == DriftDetection::Off {
            return Ok(Lost::default());
        }
        if self.listens {
            return self.hear(tools, chains, expected).await;
        }
        let stamp = tools.stamp()?;
        let has_moved = self.left != Some(stamp);
        let is_due = match tools.flavor() {
            // Their stamp is their size, which a rule in another's place does not change.
            Flavor::Legacy => has_moved || depth == VerifyDepth::Thorough,
            Flavor::Nft => has_moved && depth == VerifyDepth::Thorough,
        };
        if !is_due {
            return Ok(Lost::default());
        }
        let differences = listing::compare(tools, chains, expected()).await?;
        let mut lost = Lost { shared: differences.missing, ..Lost::default() };
        for (key, what) in differences.chains {
            lost.add(chains, key, what, None);
        }
        // What is written again is compared again.
        self.left = (lost.chains.is_empty() && lost.shared.is_empty()).then_some(stamp);
        Ok(lost)
    }

    async fn hear<C: OurChains>(
        &mut self,
        tools: &mut impl Xtables,
        chains: &C,
        expected: impl FnOnce() -> Vec<(C::Key, Expected)>,
    ) -> Result<Lost<C::Key>> {
        let heard = tools.hear();
        if heard.is_incomplete {
            self.backoff.want();
        }
        let mut lost = Lost::default();
        for ForeignWrite { table, chain, act, by } in &heard.writes {
            let what = if *act == Act::Deleted { "was deleted" } else { "was changed" };
            let key = chains.parse(table, chain).filter(|key| *act == Act::Deleted || !chains.is_open(*key));
            key.into_iter().for_each(|key| lost.add(chains, key, what, Some(by.clone())));
        }
        let is_any = |is_so: &dyn Fn(&ForeignWrite) -> bool| heard.writes.iter().any(is_so);
        if is_any(&|it| it.act == Act::RuleDeleted && chains.is_shared(&it.table, &it.chain)) {
            lost.shared = listing::missing_shared_rules(tools, chains).await?;
        }
        if is_any(&|it| it.act == Act::Altered) {
            for key in listing::missing_chains(tools, chains, expected()).await? {
                lost.add(chains, key, "is gone", None);
            }
        }
        lost.is_unknown = self.backoff.is_due();
        Ok(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verifications after which everything is written while that is wanted at each.
    fn due(rounds: u32, backoff: &mut ResyncBackoff) -> Vec<u32> {
        let mut due = Vec::new();
        for round in 0..rounds {
            backoff.want();
            due.extend(backoff.is_due().then_some(round));
        }
        due
    }

    #[test]
    fn everything_is_written_at_once_and_then_ever_more_seldom_while_something_is_lost_each_time() {
        let due = due(10_000, &mut ResyncBackoff::default());
        assert_eq!(due[..6], [0, 16, 47, 108, 229, 470]);
        assert_eq!(due[due.len() - 1] - due[due.len() - 2], 1921, "an hour, at two seconds each");
    }

    #[test]
    fn after_a_time_without_losses_the_next_one_counts_as_the_first() {
        let mut backoff = ResyncBackoff::default();
        assert!((0..10).all(|_| !backoff.is_due()));
        assert_eq!(due(17, &mut backoff), [0, 16]);
        assert!((0..31).all(|_| !backoff.is_due()));
        assert_eq!(due(20, &mut backoff), [0, 16]);
    }
}

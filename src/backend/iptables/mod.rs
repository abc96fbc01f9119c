//! The iptables dataplane: KUBE-SERVICES, KUBE-SVC-…, KUBE-SEP-… and the chains around them, as
//! kube-proxy programs them, in either flavour of the tools.
//!
//! `docs/dataplane-iptables.md` says what is programmed and why. Here, `names`, `base`, `render`
//! and `desired` say what is wanted, `diff` what to do about it and in which order, `input` how
//! iptables-restore is told, and `apply` tells it.

mod apply;
mod base;
mod baseline;
mod chains;
mod cleanup;
mod desired;
mod diff;
mod input;
mod inspect;
mod kinds;
mod meters;
mod mode;
mod names;
mod parts;
mod render;
mod setup;
mod tree;

pub use base::Features;
pub use baseline::Baseline;
#[cfg(test)]
pub(super) use cleanup::{remove_rules, standing};
pub use desired::Desired;
pub use diff::Changes;
pub use mode::IptablesMode;

use super::counters::{Measuring, ServiceCounters};
use super::drift::TableWatch;
use super::kinds::RANDOM_FULLY;
use super::options::{Options, OptionsRefused};
use super::{
    Applied, Dataplane, Deviation, KernelObject, KernelObjectKind, ObjectCount, Refusal, VerifyDepth,
};
use crate::config::DriftDetection;
use crate::kernel::iptables::{Flavor, RestoreError, Trial, Version, Xtables};
use crate::kernel::nft::Part;
use crate::model::{IpFamily, ServiceName};
use crate::plan::Plan;
use anyhow::{Context, Result};
use apply::TooSlow;
use baseline::TableChains;
use futures::future::LocalBoxFuture;
use kinds::NFACCT;
use meters::ChainCounters;
use names::{ChainId, INVALID_DROPPED, LOCALHOST_ACCEPTED};
use std::collections::{BTreeMap, BTreeSet};

/// A Service with more chains to write than this many times what an input of a first sync names takes several passes.
const PIECE: usize = 4;

/// How many chains one input holds. The nft-backed tool searches its chains one by one, so large
/// inputs take it minutes; the legacy tool rewrites the whole table at each call, so there
/// everything goes into one (`docs/performance.md`).
fn most_chains(flavor: Flavor) -> usize {
    match flavor {
        Flavor::Nft => 500,
        Flavor::Legacy => usize::MAX,
    }
}

/// The iptables backend of one IP family.
#[derive(Debug)]
pub struct Iptables<X> {
    tools: X,
    features: Features,
    options: Options,
    most_chains: usize,
    /// The threshold of the tree as it was asked for; `features` has the one in force.
    tree_threshold: usize,
    /// Services whose input was not done in time: the next pass does without them.
    left_out: BTreeMap<ServiceName, String>,
    /// The tree is off for as long as a Service is refused.
    tree_waits: bool,
    family: IpFamily,
    /// What is in the kernel, as far as we know; `None` when nothing is known.
    baseline: Option<Baseline>,
    watch: TableWatch,
    /// What Services carried, if that is measured.
    counters: Option<ServiceCounters<ChainId>>,
}

impl<X: Xtables> Iptables<X> {
    /// A backend on these tools.
    pub fn new(tools: X, family: IpFamily, features: Features) -> Self {
        let most_chains = most_chains(tools.flavor());
        let tree_threshold = features.tree_threshold;
        Iptables {
            tools,
            features,
            options: Options::default(),
            most_chains,
            tree_threshold,
            left_out: BTreeMap::new(),
            tree_waits: false,
            family,
            baseline: None,
            watch: TableWatch::default(),
            counters: None,
        }
    }

    /// Makes it measure what Services carry.
    #[must_use]
    pub fn measuring(mut self, measuring: Option<Measuring>) -> Self {
        self.counters = measuring.map(ServiceCounters::new);
        self
    }

    /// Sets how drift is detected.
    #[must_use]
    pub fn detecting(mut self, detection: DriftDetection) -> Self {
        self.watch = TableWatch::new(detection);
        self
    }

    /// Sets how many chains one input holds, whatever suits the flavour.
    #[cfg(test)]
    fn with_most_chains(mut self, most_chains: usize) -> Self {
        self.most_chains = most_chains;
        self
    }

    /// The tools it works with.
    pub fn tools(&mut self) -> &mut X {
        &mut self.tools
    }

    /// How many chains of one Service a pass writes.
    fn piece(&self) -> usize {
        self.most_chains.saturating_mul(PIECE)
    }

    /// Reads what is about to begin anew, if that is measured; returns which counters that will be.
    fn measure_before(&mut self, changes: &Changes) -> BTreeSet<ChainId> {
        let Some(counters) = &mut self.counters else { return BTreeSet::new() };
        let names = changes.services.iter().map(|service| &service.name);
        counters.read_before(names, &mut ChainCounters::new(&mut self.tools));
        changes.services.iter().flat_map(|service| service.write.iter().copied()).collect()
    }

    /// Measures what there is now.
    fn measure_after(&mut self, desired: &Desired<'_>, written: &BTreeSet<ChainId>) {
        let Some(counters) = &mut self.counters else { return };
        counters.update(&desired.plan, &meters::meters, &|chain| written.contains(chain));
    }

    /// Finds out which options rules can have, given the counters that are there.
    async fn learn_options(&mut self, [invalid, localhost]: [bool; 2], trial: Trial) -> Result<()> {
        let is_known = self.tools.version() >= Version::RANDOM_FULLY;
        let wanted = [(RANDOM_FULLY, is_known), (NFACCT, invalid)];
        let wanted: Vec<_> = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|it| it.0).collect();
        let found_out = self.options.find_out(&mut self.tools, (&wanted, trial)).await;
        let counts = self.options.allow(&NFACCT);
        self.features.counts_invalid = invalid && counts;
        self.features.counts_localhost = localhost && counts;
        self.features.random_fully = is_known && self.options.allow(&RANDOM_FULLY);
        Ok(found_out?)
    }

    /// Deviation the Service that the kernel refuses is done without the tree: it is off from a
    /// refusal on until a sync goes well.
    fn settle_tree(&mut self, is_refused: bool) {
        if is_refused {
            (self.tree_waits, self.features.tree_threshold) = (true, usize::MAX);
        } else if self.tree_waits {
            (self.tree_waits, self.features.tree_threshold) = (false, self.tree_threshold);
        }
    }
}

/// The input of one iptables-restore call, as `kube-proxy-rs render` prints it.
#[must_use]
pub fn render_inputs(plan: &Plan<'_>, features: &Features, flavor: Flavor) -> Vec<String> {
    let desired = Desired::of(plan, features, &BTreeSet::new());
    let baseline = Baseline::default();
    let changes = Changes::between(&baseline, &desired, usize::MAX);
    let steps = changes.steps(most_chains(flavor));
    let text = |step: &diff::Step| {
        let services: Vec<usize> = step.services.clone().collect();
        let input = input::Input {
            desired: &desired,
            changes: &changes,
            baseline: &baseline,
            step,
            services: &services,
            delete: &changes.delete[step.delete.clone()],
            excluded: &BTreeSet::new(),
        };
        input.pieces().collect()
    };
    steps.iter().map(text).collect()
}

impl<X: Xtables> Iptables<X> {
    /// Everything in the plan's scope, and whatever else is not as it should be.
    pub fn render<'a>(&self, plan: &Plan<'a>) -> Desired<'a> {
        let nothing = BTreeSet::new();
        let unfinished = self.baseline.as_ref().map_or(&nothing, |baseline| &baseline.unfinished);
        Desired::of(plan, &self.features, unfinished)
    }

    /// What separates the kernel from what is wanted, as far as we know.
    pub fn diff(&self, desired: &Desired<'_>) -> Changes {
        match &self.baseline {
            Some(baseline) => Changes::between(baseline, desired, self.piece()),
            None => Changes::between(&Baseline::default(), desired, self.piece()),
        }
    }

    /// What of ours is in the kernel: names of chains, nothing of their content.
    async fn observe(&mut self) -> Result<Baseline> {
        let mut strays = BTreeSet::new();
        let mut look = |part: Part<&str>| match part {
            Part::Start => strays.clear(),
            Part::Item(chain) => strays.extend(ChainId::parse(chain)),
        };
        self.watch.begin(&mut self.tools, &TableChains::default());
        self.tools.chains("nat", &mut look).await.context("listing the chains of the nat table")?;
        let counters = [INVALID_DROPPED, LOCALHOST_ACCEPTED].map(|name| self.tools.ensure_counter(name));
        self.learn_options(counters, Trial::Write).await.context("trying what rules can have")?;
        Ok(Baseline::observed(strays))
    }

    async fn try_sync(&mut self, plan: &Plan<'_>) -> Result<Applied> {
        let mut baseline = match self.baseline.take() {
            Some(baseline) => baseline,
            None => self.observe().await.context("looking at the kernel")?,
        };
        let mut desired = Desired::of(plan, &self.features, &baseline.unfinished);
        desired.leave_out(&self.left_out);
        let changes = Changes::between(&baseline, &desired, self.piece());
        let applied = self.apply(&desired, changes, &mut baseline).await?;
        self.baseline = Some(baseline);
        Ok(applied)
    }

    /// Carries the changes out and notes them in the baseline.
    async fn apply(
        &mut self,
        desired: &Desired<'_>,
        mut changes: Changes,
        baseline: &mut Baseline,
    ) -> Result<Applied> {
        let mut applied = Applied::default();
        let (mut written, mut found) = ([0, 0], Vec::new());
        if changes.is_empty() {
            baseline.unfinished.clear();
        } else {
            let began_anew = self.measure_before(&changes);
            let outcome =
                apply::run(&mut self.tools, desired, (&changes, self.most_chains), baseline, &self.left_out)
                    .await;
            if let Err(error) = &outcome
                && changes.nets.is_some()
                && !error.is::<OptionsRefused>()
                && matches!(
                    error.downcast_ref(),
                    Some(RestoreError::Refused { .. } | RestoreError::TimedOut { .. })
                )
            {
                tracing::warn!("input refused; the next sync does without the tree of networks");
                self.settle_tree(true);
            }
            if let Err(error) = &outcome {
                self.options.failed(error);
                if let Some(TooSlow { service, reason }) = error.downcast_ref() {
                    self.left_out.insert(service.clone(), reason.clone());
                }
            }
            let outcome = outcome?;
            self.watch.wrote(&mut self.tools)?;
            (applied.calls, written) = (outcome.calls, outcome.written);
            found = outcome.refused;
            changes.postponed.extend(outcome.postponed);
            baseline.commit(changes, desired.fixed, (&found, outcome.stuck));
            self.settle_tree(!baseline.refused.is_empty());
            for (service, reason) in std::mem::take(&mut self.left_out) {
                baseline.refused.insert(service.clone(), reason.clone());
                found.push(Refusal { service, reason, is_new: true });
            }
            self.measure_after(desired, &began_anew);
        }
        applied.refused = Refusal::standing(&baseline.refused, &found);
        applied.unfinished.clone_from(&baseline.unfinished);
        let [nat, filter] = baseline.rules();
        let count = |kind, total, written| ObjectCount { kind, total, written };
        applied.objects = vec![
            count(KernelObjectKind::FilterRules, filter, written[1]),
            count(KernelObjectKind::NatRules, nat, written[0]),
        ];
        Ok(applied)
    }

    async fn check(&mut self, look: VerifyDepth) -> Result<Vec<Deviation>> {
        let Some(baseline) = &mut self.baseline else { return Ok(Vec::new()) };
        if let Some(counters) = &mut self.counters {
            counters.round(&mut ChainCounters::new(&mut self.tools));
        }
        let (family, known) = (self.family, &*baseline);
        let expected = || known.expected(family);
        let lost = self.watch.look(&mut self.tools, &known.chains(), expected, look).await?;
        baseline.lose(lost.chains.keys(), &lost.shared);
        if lost.is_unknown {
            self.baseline = None;
        }
        Ok(lost.findings())
    }
}

impl<X: Xtables + 'static> Dataplane for Iptables<X> {
    fn needs_all(&self) -> bool {
        self.baseline.is_none()
    }

    fn sync<'a>(&'a mut self, plan: &'a Plan<'a>) -> LocalBoxFuture<'a, Result<Applied>> {
        Box::pin(self.try_sync(plan))
    }

    fn verify(&mut self, look: VerifyDepth) -> LocalBoxFuture<'_, Result<Vec<Deviation>>> {
        Box::pin(self.check(look))
    }

    fn flavor(&self) -> Option<Flavor> {
        Some(self.tools.flavor())
    }

    fn forget(&mut self) {
        self.baseline = None;
    }

    fn holds_services(&mut self) -> LocalBoxFuture<'_, Result<bool>> {
        Box::pin(async { Ok(!self.observe().await?.strays.is_empty()) })
    }

    fn learn(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            let counters = [INVALID_DROPPED, LOCALHOST_ACCEPTED].map(|name| self.tools.has_counter(name));
            // Who may not run the tool may look at the rest.
            let _ = self.learn_options(counters, Trial::Read).await;
            Ok(())
        })
    }

    fn wanted(&self, plan: &Plan<'_>) -> Vec<KernelObject> {
        // One Service makes no tree; where it stands in one is for the reader to find.
        let features = Features { tree_threshold: usize::MAX, ..self.features.clone() };
        inspect::wanted(plan, &features)
    }
}

#[cfg(test)]
mod large_tests;
#[cfg(test)]
mod meters_tests;
#[cfg(test)]
mod options_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;

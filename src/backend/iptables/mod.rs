//! The iptables dataplane: KUBE-SERVICES, KUBE-SVC-…, KUBE-SEP-… and the chains around them, as
//! kube-proxy programs them, in either flavour of the tools.
//!
//! `docs/dataplane-iptables.md` says what is programmed and why. Here, `names`, `chains`, `base`, `render`, `parts` and
//! `desired` say what is wanted, `baseline` what is believed to be there, `diff` and `dispatch_tree` what to do about it
//! and in which order, `restore_input` how iptables-restore is told, and `apply` tells it.

mod apply;
mod base;
mod baseline;
mod chains;
mod desired;
mod diff;
mod dispatch_tree;
mod inspect;
mod kinds;
mod meters;
mod mode;
mod names;
mod parts;
mod render;
mod restore_input;
mod setup;

pub use base::Features;
pub use baseline::Baseline;
pub use desired::Desired;
pub use diff::Changes;
pub use mode::IptablesMode;

use super::counters::{Measuring, ServiceCounters};
use super::drift::DriftDetector;
use super::kinds::RANDOM_FULLY;
use super::listing;
use super::options::Options;
use super::quarantine::Quarantine;
use super::{Applied, Dataplane, Deviation, KernelObject, KernelObjectKind, ObjectCount, VerifyDepth};
use crate::config::DriftDetection;
use crate::kernel::iptables::{Flavor, Trial, Version, Xtables};
use crate::kernel::nft::Part;
use crate::model::IpFamily;
use crate::plan::Plan;
use anyhow::{Context, Result};
use apply::{End, Outcome, Run};
use baseline::TableChains;
use futures::future::LocalBoxFuture;
use kinds::NFACCT;
use meters::ChainCounters;
use names::{ChainId, INVALID_DROPPED, LOCALHOST_ACCEPTED};
use std::collections::BTreeSet;

/// A Service with more chains to write than this many times what an input of a first sync names takes several passes.
const INPUTS_OF_A_SERVICE: usize = 4;

/// The iptables backend of one IP family.
#[derive(Debug)]
pub struct Iptables<X> {
    tools: X,
    features: Features,
    options: Options,
    most_chains: usize,
    family: IpFamily,
    /// What is in the kernel, as far as we know; `None` when nothing is known.
    baseline: Option<Baseline>,
    quarantine: Quarantine,
    drift: DriftDetector,
    /// What Services carried, if that is measured.
    counters: Option<ServiceCounters<ChainId>>,
}

impl<X: Xtables> Iptables<X> {
    /// A backend on these tools.
    pub fn new(tools: X, family: IpFamily, features: Features) -> Self {
        let most_chains = tools.flavor().most_chains();
        Iptables {
            tools,
            features,
            options: Options::default(),
            most_chains,
            family,
            baseline: None,
            quarantine: Quarantine::default(),
            drift: DriftDetector::default(),
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
        self.drift = DriftDetector::new(detection);
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
    fn most_of_a_service(&self) -> usize {
        self.most_chains.saturating_mul(INPUTS_OF_A_SERVICE)
    }

    /// Reads the counters that are about to be set to zero, if Services are measured; returns which these are.
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
}

/// The inputs for iptables-restore, one a call, that program a plan on a node with nothing programmed yet.
#[must_use]
pub fn render_inputs(plan: &Plan<'_>, features: &Features, flavor: Flavor) -> Vec<String> {
    let desired = Desired::of(plan, features, &BTreeSet::new());
    let baseline = Baseline::default();
    let changes = Changes::between(&baseline, &desired, usize::MAX);
    let steps = changes.steps(flavor.most_chains());
    let text = |step: &diff::Step| {
        let input =
            restore_input::RestoreInput { desired: &desired, changes: &changes, baseline: &baseline, step };
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
            Some(baseline) => Changes::between(baseline, desired, self.most_of_a_service()),
            None => Changes::between(&Baseline::default(), desired, self.most_of_a_service()),
        }
    }

    /// The names of our chains in the kernel. From now on other programs' writes
    /// are listened to, and it is known which options rules can have.
    async fn observe(&mut self) -> Result<Baseline> {
        let mut strays = BTreeSet::new();
        let mut visit = |part: Part<&str>| match part {
            Part::Start => strays.clear(),
            Part::Item(chain) => strays.extend(ChainId::parse(chain)),
        };
        self.drift.begin(&mut self.tools, &TableChains::default());
        self.tools.chains("nat", &mut visit).await.context("listing the chains of the nat table")?;
        let counters = [INVALID_DROPPED, LOCALHOST_ACCEPTED].map(|name| self.tools.ensure_counter(name));
        self.learn_options(counters, Trial::Write).await.context("trying which options rules can have")?;
        Ok(Baseline::observed(strays))
    }

    /// What a first pass goes on from. Chains that an earlier run left, ours or kube-proxy's, are taken for what the plan
    /// wants, and the tables are compared with that: only what differs is written.
    async fn begin(&mut self, plan: &Plan<'_>) -> Result<Baseline> {
        let observed = self.observe().await?;
        if observed.strays.is_empty() {
            return Ok(observed);
        }
        let strays = observed.strays.clone();
        let mut supposed = observed.supposed(Desired::of(plan, &self.features, &BTreeSet::new()));
        match self.compare(&mut supposed).await {
            Ok(()) => Ok(supposed),
            Err(error) => {
                // Foreign rules that the tool cannot print do not stop it from writing ours.
                let error = format!("{error:#}");
                tracing::warn!(error, "cannot list the rules that an earlier run left; writing all of them");
                Ok(Baseline::observed(strays))
            }
        }
    }

    /// One pass. A run that the kernel refuses is followed by one without the Services at fault, or, before that, by a
    /// comparison of the tables.
    async fn try_sync(&mut self, plan: &Plan<'_>) -> Result<Applied> {
        let mut baseline = match self.baseline.take() {
            Some(baseline) => baseline,
            None => self.begin(plan).await.context("looking at the kernel")?,
        };
        self.quarantine.begin(plan);
        let (mut outcome, mut began_anew) = (Outcome::default(), BTreeSet::new());
        let mut is_verified = baseline.is_observed;
        loop {
            let left_out = self.quarantine.names();
            let desired = Desired::of(&plan.without(&left_out), &self.features, &baseline.unfinished);
            let changes = Changes::between(&baseline, &desired, self.most_of_a_service());
            if !changes.is_empty() {
                began_anew.extend(self.measure_before(&changes));
            }
            let run = Run {
                tools: &mut self.tools,
                desired: &desired,
                changes: &changes,
                baseline: &baseline,
                quarantine: &mut self.quarantine,
                outcome: &mut outcome,
                is_verified,
            };
            let end = run.run(self.most_chains).await?;
            if end == End::Done {
                baseline.commit(changes, desired.fixed, std::mem::take(&mut outcome.stuck));
                if outcome.restored.calls > 0 {
                    self.drift.wrote(&mut self.tools)?;
                    self.measure_after(&desired, &began_anew);
                }
                let applied = self.applied(&baseline, &outcome);
                self.baseline = Some(baseline);
                return Ok(applied);
            }
            baseline.commit_steps(self.family, &changes, std::mem::take(&mut outcome.inputs));
            if end == End::Doubtful {
                self.compare(&mut baseline).await.context("comparing the tables after a refusal")?;
                is_verified = true;
            }
        }
    }

    /// Lists the tables. What is not as it was left there is written again.
    async fn compare(&mut self, baseline: &mut Baseline) -> Result<()> {
        let expected = baseline.expected(self.family);
        let found = listing::compare(&mut self.tools, &baseline.chains(), expected).await?;
        baseline.lose(found.chains.iter().map(|(chain, _)| chain), &found.missing);
        Ok(())
    }

    fn applied(&self, baseline: &Baseline, outcome: &Outcome) -> Applied {
        let [nat, filter] = baseline.rules();
        let count = |kind, total, written| ObjectCount { kind, total, written };
        Applied {
            objects: vec![
                count(KernelObjectKind::FilterRules, filter, outcome.restored.filter_rules),
                count(KernelObjectKind::NatRules, nat, outcome.restored.nat_rules),
            ],
            calls: outcome.restored.calls,
            refused: self.quarantine.refusals(),
            unfinished: baseline.unfinished.clone(),
        }
    }

    /// Finds what other programs changed, and notes it in the baseline.
    async fn try_verify(&mut self, depth: VerifyDepth) -> Result<Vec<Deviation>> {
        let Some(baseline) = &mut self.baseline else { return Ok(Vec::new()) };
        if let Some(counters) = &mut self.counters {
            counters.round(&mut ChainCounters::new(&mut self.tools));
        }
        let (family, known) = (self.family, &*baseline);
        let expected = || known.expected(family);
        let lost = self.drift.verify(&mut self.tools, &known.chains(), expected, depth).await?;
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
        Box::pin(async {
            let synced = self.try_sync(plan).await;
            synced.inspect_err(|error| self.options.failed(error))
        })
    }

    fn verify(&mut self, depth: VerifyDepth) -> LocalBoxFuture<'_, Result<Vec<Deviation>>> {
        Box::pin(self.try_verify(depth))
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
            // A user who may not run the tool may look at the rest.
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
mod refusal_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;

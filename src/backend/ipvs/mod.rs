//! The IPVS dataplane: a virtual server per frontend, Service addresses on `kube-ipvs0`, ipsets,
//! and the few iptables rules around them.
//!
//! `docs/dataplane-ipvs.md` says what is programmed and why. Here, `names`, `render`, `desired` and
//! `restore_input` say what is wanted, `diff` what to do about it and in which order, `apply` does it,
//! `drain` lets connections end before their real server goes, and `observe` looks at the kernel.

mod apply;
mod cleanup;
mod connections;
mod desired;
mod diff;
mod drain;
mod inspect;
mod kinds;
mod meters;
mod metrics;
mod mode;
mod names;
mod observe;
mod render;
mod restore_input;
mod setup;
mod text;
mod verify;

pub use connections::ConnectionCounts;
pub use desired::{Baseline, Desired};
pub use diff::Changes;
pub use mode::IpvsMode;
pub use restore_input::Features;

use super::counters::{Measuring, ServiceCounters};
use super::drift::DriftDetector;
use super::kinds::RANDOM_FULLY;
use super::listing::Expected;
use super::options::Options;
use super::quarantine::Quarantine;
use super::restore::Restored;
use super::{Applied, Dataplane, Deviation, KernelObject, KernelObjectKind, ObjectCount, VerifyDepth};
use crate::config::DriftDetection;
use crate::kernel::ipset::Ipsets;
use crate::kernel::iptables::{Flavor, RuleKind, Trial, Version, Xtables};
use crate::kernel::ipvs::VirtualServers;
use crate::kernel::links::Links;
use crate::model::{Frontend, IpFamily};
use crate::plan::{Plan, ServicePlan};
use anyhow::{Context, Result, bail};
use apply::Refused;
use cleanup::Removed;
use connections::Counting;
use futures::future::LocalBoxFuture;
use meters::{ServerCounters, Statistics};
use observe::Addresses;
use render::RenderContext;
use restore_input::{ChainHashes, TableChains};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
pub(super) use text::render_text;
use verify::{Compared, VerifyRounds};

/// Refusals that an error tells about.
const SHOWN_REFUSALS: usize = 3;

/// What the backend needs of the kernel besides the iptables tools.
pub struct Kernel {
    /// IPVS itself.
    pub servers: Box<dyn VirtualServers>,
    /// The ipsets.
    pub sets: Box<dyn Ipsets>,
    /// The interfaces.
    pub links: Box<dyn Links>,
}

/// The IPVS backend of one IP family.
pub struct Ipvs<X> {
    tools: X,
    kernel: Kernel,
    family: IpFamily,
    features: Features,
    options: Options,
    /// The node's own addresses when we last looked.
    node_addresses: BTreeSet<IpAddr>,
    missing_schedulers: BTreeSet<Arc<str>>,
    /// What is in the kernel, as far as we know; `None` when nothing is known.
    baseline: Option<Baseline>,
    quarantine: Quarantine,
    tables: DriftDetector,
    rounds: VerifyRounds,
    detection: DriftDetection,
    counting: Option<Counting>,
    /// What Services carried, if that is measured.
    counters: Option<ServiceCounters<Statistics>>,
}

impl<X: Xtables> Ipvs<X> {
    /// A backend on these tools and handles.
    pub fn new(tools: X, kernel: Kernel, family: IpFamily, features: Features) -> Self {
        Ipvs {
            tools,
            kernel,
            family,
            features,
            options: Options::default(),
            node_addresses: BTreeSet::new(),
            missing_schedulers: BTreeSet::new(),
            baseline: None,
            quarantine: Quarantine::default(),
            tables: DriftDetector::default(),
            rounds: VerifyRounds::default(),
            detection: DriftDetection::default(),
            counting: None,
            counters: None,
        }
    }

    /// Sets how drift is detected.
    #[must_use]
    pub fn detecting(mut self, detection: DriftDetection) -> Self {
        (self.tables, self.detection) = (DriftDetector::new(detection), detection);
        self
    }

    /// Makes it measure what Services carry.
    #[must_use]
    pub fn measuring(mut self, measuring: Option<Measuring>) -> Self {
        self.counters = measuring.map(ServiceCounters::new);
        self
    }

    /// Makes it tell every two seconds what is being drained, and every ten the connections of at
    /// most `services` Services.
    #[must_use]
    pub fn counting(mut self, tell: Box<dyn Fn(ConnectionCounts)>, services: usize) -> Self {
        self.counting = Some(Counting::new(tell, services));
        self
    }

    /// The tools it works with.
    pub fn tools(&mut self) -> &mut X {
        &mut self.tools
    }

    /// Finds out which options rules can have.
    async fn learn_options(&mut self, trial: Trial) -> Result<()> {
        let is_known = self.tools.version() >= Version::RANDOM_FULLY;
        let wanted: &[RuleKind] = if is_known { &[RANDOM_FULLY] } else { &[] };
        let found_out = self.options.find_out(&mut self.tools, (wanted, trial)).await;
        self.features.random_fully = is_known && self.options.allow(&RANDOM_FULLY);
        Ok(found_out?)
    }

    fn chains(&self) -> TableChains {
        TableChains { upstream_compat: self.features.upstream_compat }
    }

    fn context(&self, plan: &Plan<'_>) -> RenderContext<'_> {
        RenderContext {
            upstream_compat: self.features.upstream_compat,
            scheduler: &self.features.scheduler,
            missing_schedulers: &self.missing_schedulers,
            node_addresses: &self.node_addresses,
            node_port_ips: render::node_port_ips(plan.settings, &self.node_addresses),
        }
    }

    /// Measures what there is now; the statistics of new servers begin at zero.
    fn measure(&mut self, desired: &Desired<'_>, new: &BTreeSet<(Frontend, Option<SocketAddr>)>) {
        let Some(mut counters) = self.counters.take() else { return };
        let context = self.context(&desired.plan);
        let meters = |service: &ServicePlan<'_>, detail| meters::meters(service, &context, detail);
        counters.update(&desired.plan, &meters, &|statistics| new.contains(&statistics.server()));
        self.counters = Some(counters);
    }

    /// Tells the kernel. The Services that want an object that it refuses are left out from then on.
    ///
    /// Only when everything was compared with what is there: before that another program may
    /// be the cause, which is no Service's fault, and a new comparison mends it.
    async fn carry_out(&mut self, changes: Changes, baseline: &mut Baseline) -> Result<(usize, Restored)> {
        let mut apply = apply::Apply {
            tools: &mut self.tools,
            kernel: &mut self.kernel,
            family: self.family,
            upstream_compat: self.features.upstream_compat,
            missing_schedulers: &mut self.missing_schedulers,
            requests: 0,
            restored: Restored::default(),
        };
        let schedulers = apply.missing_schedulers.len();
        let refused = if changes.is_empty() { Vec::new() } else { apply.run(&changes).await? };
        let is_nobodys_fault = !changes.is_full
            || apply.missing_schedulers.len() > schedulers
            || refused.iter().any(|refused| refused.was_unseen);
        if !refused.is_empty() && is_nobodys_fault {
            bail!("the kernel refused {} operations: {}", refused.len(), shown(&refused));
        }
        for Refused { object, reason, .. } in &refused {
            let mut wanting = changes.wanting(*object).peekable();
            if wanting.peek().is_none() {
                bail!("the kernel refused an object that no Service wants: {reason}");
            }
            wanting.try_for_each(|service| self.quarantine.add(service, reason))?;
        }
        let (requests, restored) = (apply.requests, apply.restored);
        changes.commit(baseline);
        Ok((requests, restored))
    }
}

/// The first few refusals, for an error.
fn shown(refused: &[Refused]) -> String {
    let reasons = refused.iter().take(SHOWN_REFUSALS).map(|refused| refused.reason.as_str());
    reasons.collect::<Vec<_>>().join("; ")
}

/// The rules of a table.
fn count_rules(hashes: &ChainHashes, table: &str) -> usize {
    let index = restore_input::CHAINS.iter().position(|(known, _)| *known == table);
    let of_table = hashes.iter().filter(|((table, _), _)| Some(usize::from(*table)) == index);
    of_table.map(|(_, hash)| usize::try_from(hash.rules()).unwrap_or(usize::MAX)).sum()
}

impl<X: Xtables> Ipvs<X> {
    /// What of ours is in the kernel.
    async fn observe(&mut self) -> Result<Baseline> {
        let addresses = Addresses::read(&mut self.kernel, self.family)?;
        let baseline = observe::all(&mut self.kernel, self.family, &self.features, &addresses)
            .context("listing what IPVS mode left in the kernel")?;
        self.learn_options(Trial::Write).await.context("trying which options rules can have")?;
        self.node_addresses = addresses.node;
        let chains = self.chains();
        self.tables.begin(&mut self.tools, &chains);
        Ok(baseline)
    }

    fn render<'a>(&self, plan: &Plan<'a>) -> Desired<'a> {
        Desired::of(plan, &self.context(plan))
    }

    fn diff(&self, baseline: &Baseline, desired: &Desired<'_>) -> Changes {
        Changes::between(baseline, desired, &self.features)
    }

    async fn try_sync(&mut self, plan: &Plan<'_>) -> Result<Applied> {
        let mut baseline = match self.baseline.take() {
            Some(baseline) => baseline,
            None => self.observe().await.context("looking at the kernel")?,
        };
        self.quarantine.begin(plan);
        let mut applied = self.apply(plan, &mut baseline).await?;
        if applied.newly_refused().next().is_some() {
            let mut back = self.apply(plan, &mut baseline).await.context("taking back what was refused")?;
            let first = applied.objects.iter().map(|count| count.written);
            back.objects.iter_mut().zip(first).for_each(|(count, written)| count.written += written);
            applied = Applied { calls: applied.calls + back.calls, ..back };
        }
        self.baseline = Some(baseline);
        Ok(applied)
    }

    async fn try_verify(&mut self, depth: VerifyDepth) -> Result<Vec<Deviation>> {
        let Some(mut baseline) = self.baseline.take() else { return Ok(Vec::new()) };
        let found = match self.tend(&mut baseline) {
            Ok(()) => self.compare(&mut baseline, depth).await,
            Err(error) => Err(error),
        };
        let is_outdated = found.iter().flatten().any(|finding| matches!(finding, Deviation::Outdated(_)));
        self.baseline = (!is_outdated).then_some(baseline);
        found
    }

    async fn apply(&mut self, plan: &Plan<'_>, baseline: &mut Baseline) -> Result<Applied> {
        let left_out = self.quarantine.names();
        let desired = self.render(&plan.without(&left_out));
        let changes = self.diff(baseline, &desired);
        let drain = changes.drain.clone();
        let programmed = changes.operations();
        let new = if self.counters.is_some() { changes.new_servers() } else { BTreeSet::new() };
        let carried_out = self.carry_out(changes, baseline).await;
        let (requests, restored) = carried_out.inspect_err(|error| self.options.failed(error))?;
        self.tables.wrote(&mut self.tools)?;
        drain::sweep(self.kernel.servers.as_mut(), drain, baseline)?;
        self.measure(&desired, &new);
        let count = |kind, table: &str, written| ObjectCount {
            kind,
            total: count_rules(&baseline.rules, table),
            written,
        };
        let (virtual_servers, real_servers) = baseline.ours;
        let objects = vec![
            count(KernelObjectKind::FilterRules, "filter", restored.filter_rules),
            count(KernelObjectKind::NatRules, "nat", restored.nat_rules),
            ObjectCount {
                kind: KernelObjectKind::VirtualServers,
                total: virtual_servers,
                written: programmed,
            },
            ObjectCount { kind: KernelObjectKind::RealServers, total: real_servers, written: 0 },
        ];
        let refused = self.quarantine.refusals();
        Ok(Applied { objects, calls: requests + restored.calls, refused, unfinished: BTreeSet::new() })
    }

    async fn compare(&mut self, baseline: &mut Baseline, depth: VerifyDepth) -> Result<Vec<Deviation>> {
        self.rounds.addresses_due |=
            self.kernel.links.addresses_changed(self.family)? || depth == VerifyDepth::Thorough;
        let addresses = match self.rounds.addresses_due {
            true => Some(Addresses::read(&mut self.kernel, self.family)?),
            false => None,
        };
        if addresses.as_ref().is_some_and(|addresses| addresses.node != self.node_addresses) {
            return Ok(vec![Deviation::Outdated("the node's addresses changed")]);
        }
        if self.detection == DriftDetection::Off {
            self.rounds.addresses_due = false;
            return Ok(Vec::new());
        }
        let chains = self.chains();
        let known = &baseline.rules;
        let expected = || known.iter().map(|(key, hash)| (*key, Expected::Rules(hash.short()))).collect();
        let lost = self.tables.verify(&mut self.tools, &chains, expected, depth).await?;
        baseline.rules.retain(|key, _| !lost.chains.contains_key(key));
        baseline.set_up &= lost.shared.is_empty();
        let compared = Compared {
            kernel: &mut self.kernel,
            family: self.family,
            upstream_compat: self.features.upstream_compat,
            addresses: addresses.as_ref(),
            baseline,
        };
        let drift = self.rounds.verify(compared, depth)?;
        self.rounds.addresses_due = false;
        Ok(lost.findings().into_iter().chain(drift.into_iter().map(Deviation::Drift)).collect())
    }

    /// Does what `apply` had to leave for later, and reads counters.
    fn tend(&mut self, baseline: &mut Baseline) -> Result<()> {
        let frontends = baseline.draining.clone();
        let removed = drain::sweep(self.kernel.servers.as_mut(), frontends, baseline)?;
        if removed > 0 {
            tracing::debug!(family = %self.family, removed, "endpoints have finished their connections");
        }
        if let Some(counters) = &mut self.counters {
            counters.round(&mut ServerCounters::new(self.kernel.servers.as_mut()));
        }
        match &mut self.counting {
            Some(counting) => counting.take(self.kernel.servers.as_mut(), self.family, baseline),
            None => Ok(()),
        }
    }
}

impl<X: Xtables + 'static> Dataplane for Ipvs<X> {
    fn needs_all(&self) -> bool {
        self.baseline.is_none()
    }

    fn sync<'a>(&'a mut self, plan: &'a Plan<'a>) -> LocalBoxFuture<'a, Result<Applied>> {
        Box::pin(self.try_sync(plan))
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
        Box::pin(async { Ok(self.observe().await?.ours.0 > 0) })
    }

    fn learn(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.node_addresses = Addresses::read(&mut self.kernel, self.family)?.node;
            // A user who may not run the tool may look at the rest.
            let _ = self.learn_options(Trial::Read).await;
            Ok(())
        })
    }

    fn wanted(&self, plan: &Plan<'_>) -> Vec<KernelObject> {
        inspect::wanted(&Desired::of(plan, &self.context(plan)), &self.features)
    }
}

#[cfg(test)]
mod meters_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;

//! The nftables dataplane: Services are elements of sets and maps, written by netlink.
//!
//! `docs/dataplane-nftables.md` says what is programmed and why. Here, `layout` says which chains, rules, sets and maps there
//! are, `render`, `desired` and `element` what a Service is in them, `diff` what to do about it, `apply` does it, `observe` and
//! `verify` read the kernel.

mod apply;
mod baseline;
mod clients;
mod desired;
mod diff;
mod element;
mod found;
mod inspect;
mod kernel_sets;
mod layout;
mod meters;
mod mode;
mod names;
mod observe;
mod ownership;
mod pack;
mod packet_trace;
mod probe;
mod render;
mod text;
mod verify;
mod watched;

pub use mode::NftablesMode;

use super::counters::{Measuring, ServiceCounters};
use super::quarantine::Quarantine;
use super::{Applied, Dataplane, Deviation, KernelObject, KernelObjectKind, ObjectCount, VerifyDepth};
use crate::config::DriftDetection;
use crate::kernel::iptables::Flavor;
use crate::kernel::nftables::{Generations, Ruleset};
use crate::model::{IpFamily, ServiceName};
use crate::plan::{FamilySettings, NodePortAddresses, Plan, Scope, ServicePlan};
use anyhow::{Context, Result};
use apply::{Surprise, Writing};
use baseline::{Baseline, Structure};
use desired::{Member, ServiceElements};
use diff::Change;
use element::{ElementId, Key};
use futures::future::LocalBoxFuture;
use layout::{Layout, Settings};
use meters::ElementCounters;
use names::{NODE_PORT_ADDRESSES, SetId};
use std::collections::BTreeSet;
use std::net::IpAddr;
use verify::Verified;
use watched::Watched;

/// At most this many Services are compared one by one with what was written for them. Of more, as of all, elements may go from one
/// to the other, so they are compared with all that is there.
const FEW: usize = 400;

/// After a comparison of all elements, the next waits for one verification for each of this many elements.
const ELEMENTS_A_VERIFICATION: usize = 5_000;

/// After remembered clients were swept, the next sweep waits for one verification for each of this many: at most a twentieth of
/// the time goes into it.
const CLIENTS_A_VERIFICATION: usize = 20_000;

/// What the mode does beyond what is settled for every mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The bit of the mark that says "masquerade".
    pub masquerade_mark: u32,
    /// Connections are counted by destination and endpoint.
    pub counts: bool,
    /// The table is this process's alone.
    pub owns_table: bool,
}

/// Reads this node's addresses of a family.
pub type ReadAddresses = Box<dyn Fn(IpFamily) -> Result<Vec<IpAddr>>>;

/// The nftables dataplane of one IP family.
pub struct Nftables<K> {
    kernel: K,
    family: IpFamily,
    read_addresses: ReadAddresses,
    detection: DriftDetection,
    /// What is in the kernel, as far as we know; `None` when nothing is known.
    baseline: Option<Baseline>,
    quarantine: Quarantine,
    watched: Watched,
    layouts: Layouts,
    /// The node's addresses at the last pass, where node ports answer on all of them.
    addresses: Vec<IpAddr>,
    /// Verifications since all elements were compared.
    verifications: usize,
    /// Clients may be remembered that lead where nothing leads any more.
    are_clients_due: bool,
    /// Verifications before clients are swept again.
    clients_rest: usize,
    /// What Services carried, if that is measured.
    counters: Option<ServiceCounters<ElementId>>,
    /// Is told when chains of an earlier proxy could not be deleted.
    on_failed_sweep: Box<dyn Fn()>,
}

impl<K: Ruleset> Nftables<K> {
    /// A dataplane on this kernel.
    pub fn new(kernel: K, family: IpFamily, features: Features, read_addresses: ReadAddresses) -> Self {
        Nftables {
            kernel,
            family,
            layouts: Layouts::new(features),
            read_addresses,
            detection: DriftDetection::default(),
            baseline: None,
            quarantine: Quarantine::default(),
            watched: Watched::default(),
            addresses: Vec::new(),
            verifications: 0,
            are_clients_due: false,
            clients_rest: 0,
            counters: None,
            on_failed_sweep: Box::new(|| ()),
        }
    }

    /// Makes it tell when chains of an earlier proxy could not be deleted.
    #[must_use]
    pub fn telling_failed_sweeps(mut self, tell: Box<dyn Fn()>) -> Self {
        self.on_failed_sweep = tell;
        self
    }

    /// Sets whether drift is detected.
    #[must_use]
    pub fn detecting(mut self, detection: DriftDetection) -> Self {
        self.detection = detection;
        self
    }

    /// Makes it know the transactions of the other family's dataplane.
    #[must_use]
    pub fn counting_with(mut self, generations: Generations) -> Self {
        self.watched.ours = generations;
        self
    }

    /// Makes it measure what Services carry.
    #[must_use]
    pub(super) fn measuring(mut self, measuring: Option<Measuring>) -> Self {
        self.counters = measuring.map(ServiceCounters::new);
        self
    }

    /// The kernel that it works on.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    fn observe(&mut self) -> Result<Baseline> {
        self.watched.forget();
        let baseline = observe::all(&mut self.kernel, &Layout::bare(self.family, &self.layouts.features))
            .context("reading the table")?;
        self.watched.know(self.kernel.generation()?);
        self.watched.is_compare_due = false;
        self.verifications = 0;
        Ok(baseline)
    }

    async fn try_sync(&mut self, plan: &Plan<'_>) -> Result<Applied> {
        self.addresses = self.node_addresses(plan)?;
        let mut baseline = match self.baseline.take() {
            Some(baseline) => baseline,
            None => self.observe()?,
        };
        self.quarantine.begin(plan);
        self.read_before(plan);
        let applied = match self.program(plan, &mut baseline, false).await {
            Err(error) if error.is::<Surprise>() => {
                tracing::info!(family = %self.family, %error, "the kernel refused changes; comparing the table with what was written");
                let found = self.compare(plan.settings, &mut baseline)?;
                if found.is_lost {
                    return Err(error);
                }
                self.program(plan, &mut baseline, true).await?
            }
            applied => applied?,
        };
        self.baseline = Some(baseline);
        Ok(applied)
    }

    /// Reads what is counted of few Services before they are written.
    fn read_before(&mut self, plan: &Plan<'_>) {
        if let (Some(counters), Scope::Only(names)) = (&mut self.counters, plan.scope()) {
            counters.read_before(names.iter(), &mut ElementCounters::new(&mut self.kernel, self.family));
        }
    }

    /// The addresses of this node, where node ports answer on all of them.
    fn node_addresses(&self, plan: &Plan<'_>) -> Result<Vec<IpAddr>> {
        match plan.settings.node_port_addresses {
            NodePortAddresses::All => {
                (self.read_addresses)(self.family).context("reading the node's addresses")
            }
            NodePortAddresses::Within(_) => Ok(Vec::new()),
        }
    }

    /// Compares everything with what is believed to be there.
    fn compare(&mut self, settings: &FamilySettings, baseline: &mut Baseline) -> Result<Verified> {
        let layout = self.layouts.get(settings, &baseline.structure);
        let mut verified = verify::structure(&mut self.kernel, layout, baseline)?;
        if !verified.is_lost {
            verified.drift.extend(verify::elements(&mut self.kernel, layout, baseline)?);
            (self.watched.is_compare_due, self.verifications) = (false, 0);
        }
        Ok(verified)
    }

    /// Brings the kernel in line with a plan.
    async fn program(&mut self, plan: &Plan<'_>, baseline: &mut Baseline, is_sure: bool) -> Result<Applied> {
        let names = take_scope(plan, baseline);
        let layouts = &mut self.layouts;
        let mut writing =
            Writing::new(&mut self.kernel, names::table(self.family), (&mut self.watched, baseline), is_sure);
        writing.sweep_strange()?;
        writing.begin(layouts.get(plan.settings, &writing.baseline.structure))?;
        let addresses = plan.node_port_ips().unwrap_or_else(|| self.addresses.clone());
        let node = (node_name(), Some(node_elements(addresses)));
        let counts = layouts.features.counts;
        for (name, elements) in std::iter::once(node).chain(service_elements(plan, &names, counts)) {
            writing.need(elements.as_ref());
            let change = Change::of(writing.baseline, name, elements);
            if writing.push(change) {
                writing.flush(layouts.get(plan.settings, &writing.baseline.structure), false)?;
                // The other tasks of this process get their turn.
                tokio::task::yield_now().await;
            }
        }
        let layout = layouts.get(plan.settings, &writing.baseline.structure);
        writing.flush(layout, true)?;
        writing.ensure_rules(layout)?;
        writing.sweep(layout)?;
        (0..writing.failed_sweeps).for_each(|_| (self.on_failed_sweep)());
        let (calls, written) = (writing.calls, writing.written);
        let refused = std::mem::take(&mut writing.refused);
        let counted = std::mem::take(&mut writing.counted);
        self.are_clients_due |= writing.is_affinity_lost || names.is_none();
        refused.iter().try_for_each(|(service, reason)| self.quarantine.add(service, reason))?;
        if let Some(counters) = &mut self.counters {
            counters.update(plan, &meters::meters, &|id| counted.contains(id));
        }
        Ok(Applied {
            objects: vec![ObjectCount {
                kind: KernelObjectKind::Elements,
                total: baseline.elements,
                written,
            }],
            calls,
            refused: self.quarantine.refusals(),
            unfinished: BTreeSet::new(),
        })
    }

    fn try_verify(&mut self, depth: VerifyDepth) -> Result<Vec<Deviation>> {
        let Some(mut baseline) = self.baseline.take() else { return Ok(Vec::new()) };
        let found = self.find_drift(&mut baseline, depth);
        let is_lost = found.as_ref().is_ok_and(|(_, is_lost)| *is_lost);
        self.baseline = (!is_lost).then_some(baseline);
        let is_rested = self.clients_rest == 0;
        self.clients_rest = self.clients_rest.saturating_sub(1);
        if !is_lost && is_rested && std::mem::take(&mut self.are_clients_due) {
            self.sweep_clients();
        }
        found.map(|(findings, _)| findings)
    }

    /// Deletes remembered clients that lead where nothing leads any more. That is a transaction of our own.
    fn sweep_clients(&mut self) {
        match clients::sweep(&mut self.kernel, &mut self.watched, self.family) {
            Ok(swept) => {
                self.clients_rest = swept.seen / CLIENTS_A_VERIFICATION;
                tracing::debug!(family = %self.family, ?swept, "remembered clients swept");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::debug!(family = %self.family, error, "the next verification forgets clients");
                self.are_clients_due = true;
            }
        }
    }

    /// What other processes have changed, and whether nothing can be relied on.
    fn find_drift(&mut self, baseline: &mut Baseline, depth: VerifyDepth) -> Result<(Vec<Deviation>, bool)> {
        let Some(settings) = self.layouts.settings.clone() else { return Ok((Vec::new(), false)) };
        if settings.node_port_addresses == NodePortAddresses::All
            && (self.read_addresses)(self.family)? != self.addresses
        {
            return Ok((vec![Deviation::Outdated("the node's addresses changed")], true));
        }
        if !baseline.structure.surplus_chains.is_empty() {
            let table = names::table(self.family);
            let mut writing = Writing::new(&mut self.kernel, table, (&mut self.watched, baseline), true);
            writing.sweep_chains()?;
            (0..writing.failed_sweeps).for_each(|_| (self.on_failed_sweep)());
        }
        self.verifications += 1;
        let now = self.kernel.generation()?;
        let is_changed = self.watched.known() != Some(now);
        if self.detection == DriftDetection::Off || !is_changed && !self.watched.is_compare_due {
            return Ok((Vec::new(), false));
        }
        // Another process changed something, ours or not.
        let is_due = depth == VerifyDepth::Thorough
            || self.verifications > baseline.elements / ELEMENTS_A_VERIFICATION;
        let verified = match is_due {
            true => self.compare(&settings, baseline)?,
            false => {
                self.watched.is_compare_due = true;
                let layout = self.layouts.get(&settings, &baseline.structure);
                verify::structure(&mut self.kernel, layout, baseline)?
            }
        };
        // What was done after that is seen by the next verification.
        self.watched.know(now);
        Ok((verified.drift.into_iter().map(Deviation::Drift).collect(), verified.is_lost))
    }
}

/// The Services to compare; `None` for all. What is known of them is put where it is compared by keys if they are many.
fn take_scope(plan: &Plan<'_>, baseline: &mut Baseline) -> Option<BTreeSet<ServiceName>> {
    if matches!(plan.scope(), Scope::All) {
        baseline.unsettle_all();
        baseline.damaged.clear();
        baseline.structure.forget_needs();
        return None;
    }
    let mut names: BTreeSet<ServiceName> = plan.names_in_scope().cloned().collect();
    names.extend(baseline.damaged.iter().filter(|name| **name != node_name()).cloned());
    if names.len() > FEW {
        names.iter().for_each(|name| baseline.unsettle(name));
    }
    Some(names)
}

/// What Services are to be, in the order of names.
fn service_elements<'p>(
    plan: &'p Plan<'_>,
    names: &'p Option<BTreeSet<ServiceName>>,
    counts: bool,
) -> Box<dyn Iterator<Item = (ServiceName, Option<ServiceElements>)> + 'p> {
    let render = move |service: ServicePlan<'_>| render::service(&service, counts);
    match names {
        None => Box::new(plan.services().map(move |service| (service.name.clone(), Some(render(service))))),
        Some(names) => Box::new(names.iter().map(move |name| (name.clone(), plan.service(name).map(render)))),
    }
}

/// Under this name, the node's own elements are held like a Service's. No Service can have it.
fn node_name() -> ServiceName {
    ServiceName::new("", NODE_PORT_ADDRESSES)
}

/// The node's own elements: the addresses that answer on node ports.
fn node_elements(addresses: Vec<IpAddr>) -> ServiceElements {
    let usable = addresses.into_iter().filter(|address| !address.is_loopback());
    let member = |address| {
        let id = ElementId { set: SetId::NodePortIps, key: Key::Address(address) };
        Member { id, port: 0 }
    };
    ServiceElements { members: usable.map(member).collect(), ..ServiceElements::default() }
}

/// The structure, made again only when something that it depends on changes.
#[derive(Debug)]
struct Layouts {
    features: Features,
    /// Those of the last pass.
    settings: Option<FamilySettings>,
    made: Option<Layout>,
}

impl Layouts {
    fn new(features: Features) -> Self {
        Layouts { features, settings: None, made: None }
    }

    fn get(&mut self, family: &FamilySettings, structure: &Structure) -> &Layout {
        let timeouts = structure.timeouts.iter().copied().collect();
        let settings = Settings::new(family, &self.features, (structure.largest, timeouts));
        if self.made.as_ref().is_none_or(|made| made.settings != settings) {
            self.settings = Some(family.clone());
            self.made = None;
        }
        self.made.get_or_insert_with(|| Layout::new(settings))
    }
}

impl<K: Ruleset + 'static> Dataplane for Nftables<K> {
    fn needs_all(&self) -> bool {
        self.baseline.is_none()
    }

    fn sync<'a>(&'a mut self, plan: &'a Plan<'a>) -> LocalBoxFuture<'a, Result<Applied>> {
        Box::pin(self.try_sync(plan))
    }

    fn verify(&mut self, depth: VerifyDepth) -> LocalBoxFuture<'_, Result<Vec<Deviation>>> {
        Box::pin(async move {
            if let Some(counters) = &mut self.counters {
                counters.round(&mut ElementCounters::new(&mut self.kernel, self.family));
            }
            self.try_verify(depth)
        })
    }

    fn flavor(&self) -> Option<Flavor> {
        None
    }

    fn forget(&mut self) {
        self.baseline = None;
    }

    fn holds_services(&mut self) -> LocalBoxFuture<'_, Result<bool>> {
        Box::pin(async { Ok(self.observe()?.holds_services()) })
    }

    fn learn(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn wanted(&self, plan: &Plan<'_>) -> Vec<KernelObject> {
        text::wanted(plan, self.layouts.features.counts)
    }
}

#[cfg(test)]
mod fixtures_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;

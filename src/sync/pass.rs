//! One pass over one family: plan, render, diff, apply.

use super::report::{PassKind, PassOutcome};
use crate::backend::{Applied, Dataplane, Deviation, KernelObject, Refusal, VerifyDepth};
use crate::model::{IpFamily, ServiceName, Snapshot};
use crate::plan::{FamilySettings, NodePortAddresses, Plan, Scope};
use crate::state::{ChangedObjects, Tracker};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Trigger times that are kept while a family cannot be programmed; they only feed a metric.
const MOST_TRIGGERED: usize = 10_000;

/// Reads this node's addresses of a family, each once, sorted.
pub type ReadAddresses = Box<dyn Fn(IpFamily) -> Result<Vec<IpAddr>>>;

/// Makes a family's settings of what is known of our Node and of the networks of cluster IPs.
pub type MakeSettings = Box<dyn Fn(&Snapshot) -> FamilySettings>;

/// One family's dataplane, and what its plans are made of.
pub struct FamilySync {
    dataplane: Box<dyn Dataplane>,
    settings: FamilySettings,
    make_settings: Option<MakeSettings>,
    read_addresses: ReadAddresses,
    /// The node's addresses at the last pass, where rules depend on them.
    addresses: Vec<IpAddr>,
    /// Trigger times of endpoint changes that no successful pass has covered yet.
    pub(super) triggered: Vec<i64>,
    /// Services that the kernel refused at the last pass.
    refused: Vec<Refusal>,
    /// Services that the last pass has not finished.
    unfinished: BTreeSet<ServiceName>,
    /// A pass of this process has succeeded: nothing in the kernel is an earlier one's.
    stands: bool,
}

impl FamilySync {
    /// A family that nothing has been programmed for by this process.
    pub fn new(
        dataplane: Box<dyn Dataplane>,
        settings: FamilySettings,
        read_addresses: ReadAddresses,
    ) -> Self {
        FamilySync {
            dataplane,
            settings,
            make_settings: None,
            read_addresses,
            addresses: Vec::new(),
            triggered: Vec::new(),
            refused: Vec::new(),
            unfinished: BTreeSet::new(),
            stands: false,
        }
    }

    /// Has the settings made again when what they are made of changes.
    #[must_use]
    pub fn following(mut self, make_settings: MakeSettings) -> Self {
        self.make_settings = Some(make_settings);
        self
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.settings.family
    }

    /// The node's own IP, where it is known.
    #[must_use]
    pub fn node_ip(&self) -> Option<IpAddr> {
        Some(self.settings.node_ip).filter(|ip| !ip.is_loopback())
    }

    /// The addresses that answered on node ports at the last pass; `None` means every address.
    #[must_use]
    pub fn node_port_ips(&self) -> Option<Vec<IpAddr>> {
        self.settings.node_port_ips(&self.addresses)
    }

    /// Makes the next pass look at the whole kernel, and believe nothing of it.
    pub fn forget(&mut self) {
        self.dataplane.forget();
    }

    /// The dataplane, to look at in tests.
    #[cfg(test)]
    pub(super) fn dataplane(&mut self) -> &mut dyn Dataplane {
        &mut *self.dataplane
    }

    /// Brings the kernel in line with the snapshot. After a failure nothing is believed of the
    /// kernel any more.
    pub(super) async fn pass(
        &mut self,
        tracker: &Tracker,
        changes: &ChangedObjects,
    ) -> (PassKind, PassOutcome) {
        let kind = self.next_kind(changes);
        let is_due = kind == PassKind::Full || changes.service_cidrs;
        if let Some(make_settings) = self.make_settings.as_ref().filter(|_| is_due) {
            self.settings = make_settings(tracker.snapshot());
        }
        self.triggered.extend(&changes.triggered);
        self.triggered.truncate(MOST_TRIGGERED);
        match self.try_pass(tracker, changes).await {
            Ok(applied) => {
                self.stands = true;
                self.refused.clone_from(&applied.refused);
                self.unfinished.clone_from(&applied.unfinished);
                (kind, PassOutcome::Done(applied))
            }
            Err(error) => {
                self.forget();
                (kind, PassOutcome::Failed(error))
            }
        }
    }

    /// Services that are in the scope of the next pass, whatever else changes.
    pub(super) fn take_unfinished(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.unfinished)
    }

    fn next_kind(&self, changes: &ChangedObjects) -> PassKind {
        match self.dataplane.needs_all() || changes.node {
            true => PassKind::Full,
            false => PassKind::Partial,
        }
    }

    /// The plan of all that a snapshot holds, with the settings of the last pass.
    #[must_use]
    pub fn plan_of<'a>(&'a self, snapshot: &'a Snapshot) -> Plan<'a> {
        Plan::new(&self.settings, snapshot, Scope::All).with_local_addresses(&self.addresses)
    }

    /// What a plan of few Services needs of the kernel.
    #[must_use]
    pub fn wanted(&self, plan: &Plan<'_>) -> Vec<KernelObject> {
        self.dataplane.wanted(plan)
    }

    /// Why the kernel refused a Service at the last pass, if it did.
    #[must_use]
    pub fn refused(&self, name: &ServiceName) -> Option<&str> {
        let refusal = self.refused.iter().find(|refusal| refusal.service == *name);
        refusal.map(|refusal| refusal.reason.as_str())
    }

    /// Reads what a plan and what is wanted depend on, and changes nothing.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub async fn learn(&mut self) -> Result<()> {
        self.dataplane.learn().await?;
        self.addresses = self.read_addresses()?;
        Ok(())
    }

    /// The plan of a pass of this kind.
    pub(super) fn plan<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        changes: &'a ChangedObjects,
        kind: PassKind,
    ) -> Plan<'a> {
        plan(&self.settings, &self.addresses, snapshot, changes, kind)
    }

    async fn try_pass(&mut self, tracker: &Tracker, changes: &ChangedObjects) -> Result<Applied> {
        let kind = self.next_kind(changes);
        if let Some(unknown) = tracker.unknown().filter(|_| !self.stands)
            && self.dataplane.holds_services().await.context("looking at the kernel")?
        {
            bail!("{unknown}; until it can be read or is gone, all stays as an earlier process left it");
        }
        self.addresses = self.read_addresses()?;
        // Not by `self.plan`: the dataplane is borrowed next to it.
        let plan = plan(&self.settings, &self.addresses, tracker.snapshot(), changes, kind)
            .with_endpoint_count(tracker.endpoints(self.family()));
        self.dataplane.sync(&plan).await
    }

    /// Whether the node's addresses have changed since the last pass, where rules depend on them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn addresses_changed(&self) -> Result<bool> {
        Ok(!self.dataplane.needs_all() && self.read_addresses()? != self.addresses)
    }

    /// The node's addresses, where node ports answer on some of them only.
    fn read_addresses(&self) -> Result<Vec<IpAddr>> {
        match self.settings.node_port_addresses {
            NodePortAddresses::All => Ok(Vec::new()),
            NodePortAddresses::Within(_) => {
                (self.read_addresses)(self.family()).context("reading the node's addresses")
            }
        }
    }

    /// Whether the kernel still has what we programmed. The next pass writes again what drifted; before the first pass
    /// there is nothing to compare.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) async fn verify(&mut self, depth: VerifyDepth) -> Result<Vec<Deviation>> {
        self.dataplane.verify(depth).await
    }
}

fn plan<'a>(
    settings: &'a FamilySettings,
    addresses: &'a [IpAddr],
    snapshot: &'a Snapshot,
    changes: &'a ChangedObjects,
    kind: PassKind,
) -> Plan<'a> {
    let scope = match kind {
        PassKind::Full => Scope::All,
        PassKind::Partial => Scope::Only(&changes.services),
    };
    Plan::new(settings, snapshot, scope).with_local_addresses(addresses)
}

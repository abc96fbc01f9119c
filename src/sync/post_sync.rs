//! What follows from rules being in force: flows that they do not lead anywhere any more, and
//! Services that have no endpoint where their policy wants one.

use crate::conntrack::{Reconciler, Update};
use crate::health::{PortTaken, ServicePorts};
use crate::model::{PerFamily, ServiceName, TrafficPolicy, Verdict};
use crate::plan::{Plan, Scope, ServicePlan};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tokio::sync::oneshot;

/// Told the plan of every pass that succeeded.
#[derive(Default)]
pub struct PostSync {
    conntrack: Option<Reconciler>,
    ports: Option<PerFamily<ServicePorts>>,
    /// Who waits for our rules to stand.
    waiting: Option<oneshot::Sender<()>>,
    /// Who waits for them to have been checked, too.
    waiting_for_check: Option<oneshot::Sender<()>>,
    no_local: PerFamily<BTreeMap<ServiceName, NoLocal>>,
}

/// Service ports with a Local policy and endpoints elsewhere only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostSyncResult {
    /// Over all Services of the family.
    pub no_local: NoLocal,
    /// Health-check node ports that could not be opened: another program has them.
    pub taken: Vec<PortTaken>,
    /// The addresses that answer on node ports; `None` means every address of the node.
    pub node_port_ips: Option<Vec<IpAddr>>,
}

impl PostSync {
    /// Has stale flows deleted.
    #[must_use]
    pub fn with_conntrack(mut self, reconciler: Reconciler) -> Self {
        self.conntrack = Some(reconciler);
        self
    }

    /// Serves health-check node ports.
    #[must_use]
    pub fn with_service_ports(mut self, ports: PerFamily<ServicePorts>) -> Self {
        self.ports = Some(ports);
        self
    }

    /// Tells, once, that the rules of every family are in force.
    #[must_use]
    pub fn standing(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.waiting = Some(sender);
        receiver
    }

    /// Tells, once, that the rules of every family are in force and were found so in the kernel.
    #[must_use]
    pub fn working(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.waiting_for_check = Some(sender);
        receiver
    }

    /// Every family was found as it was left.
    pub(super) fn works(&mut self) {
        if let Some(waiting) = self.waiting_for_check.take() {
            // The receiver may be gone.
            let _ = waiting.send(());
        }
    }

    /// Every family has been synced.
    pub(super) fn stands(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            // The receiver may be gone.
            let _ = waiting.send(());
        }
    }

    /// Tries once more what did not work; returns the ports that fail for a new reason.
    pub(super) fn retry(&mut self) -> Vec<PortTaken> {
        let Some(ports) = &mut self.ports else { return Vec::new() };
        let families = [&mut ports.v4, &mut ports.v6].into_iter();
        families.filter(|ports| ports.is_incomplete()).flat_map(ServicePorts::retry).collect()
    }

    /// Does what follows from a plan that is in force now, but for the Services that are refused.
    pub(super) async fn run(&mut self, plan: &Plan<'_>, refused: &BTreeSet<ServiceName>) -> PostSyncResult {
        if let Some(conntrack) = &self.conntrack {
            conntrack.update(Update::of(plan));
        }
        let taken = match &mut self.ports {
            Some(ports) => ports.get_mut(plan.family()).update(plan, refused).await,
            None => Vec::new(),
        };
        PostSyncResult { no_local: self.count_no_local(plan), taken, node_port_ips: plan.node_port_ips() }
    }

    fn count_no_local(&mut self, plan: &Plan<'_>) -> NoLocal {
        let known = self.no_local.get_mut(plan.family());
        if matches!(plan.scope(), Scope::All) {
            known.clear();
        }
        for name in plan.names_in_scope() {
            match plan.service(name).map(|service| NoLocal::of(&service)) {
                Some(count) if count != NoLocal::default() => {
                    known.insert(name.clone(), count);
                }
                _ => {
                    known.remove(name);
                }
            }
        }
        known.values().fold(NoLocal::default(), |sum, count| NoLocal {
            internal: sum.internal + count.internal,
            external: sum.external + count.external,
        })
    }
}

impl NoLocal {
    fn of(service: &ServicePlan<'_>) -> NoLocal {
        let dropped = |verdict: Verdict<TrafficPolicy>| verdict == Verdict::Dropped;
        let ports = service.ports.iter();
        let reachable = |port: &&crate::plan::PortPlan| port.frontends.externally_accessible();
        NoLocal {
            internal: ports.clone().filter(|port| dropped(port.internal)).count(),
            external: ports.filter(reachable).filter(|port| dropped(port.external)).count(),
        }
    }
}

//! All Kubernetes semantics live here and nowhere else: which addresses a Service port answers
//! on, which endpoints serve it, who may reach it, and what happens when none do.
//!
//! Pure. A `Plan` is one family's view of the snapshot; a Service's part of it is built when it
//! is asked for, so that a plan of ten thousand Services takes no memory of its own. Backends
//! translate what they read here; they decide nothing about traffic.

mod endpoints;
mod frontends;
mod reasons;
mod settings;
mod topology;
mod tracked;

pub use endpoints::Target;
pub use frontends::Frontends;
pub use reasons::{EndpointUse, ReasonedPort, Unused};
pub use settings::{FamilySettings, LocalDetector, NodePortAddresses};
pub use tracked::TrackedPort;

use crate::model::{
    IpFamily, IpvsScheduler, Service, ServiceName, ServicePort, ServicePortName, ServiceRecord, Snapshot,
    TrafficPolicy, Verdict,
};
use endpoints::{Candidate, Choice};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Which Services a pass looks at.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// All of them: nothing is known of the kernel.
    All,
    /// Those that changed; the others are as they were at the last pass.
    Only(&'a BTreeSet<ServiceName>),
}

/// What one IP family is to look like.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// What holds for every Service.
    pub settings: &'a FamilySettings,
    /// How many endpoints the family has in all.
    pub endpoint_count: usize,
    /// The addresses of this node's interfaces.
    pub local_addresses: &'a [IpAddr],
    snapshot: &'a Snapshot,
    scope: Scope<'a>,
    /// Services that it has nothing of.
    left_out: Option<&'a BTreeSet<ServiceName>>,
}

/// What one Service is to look like in one family.
#[derive(Clone, Debug)]
pub struct ServicePlan<'a> {
    /// The Service.
    pub name: &'a ServiceName,
    /// Its ports that something leads to, in the API's order.
    pub ports: Vec<PortPlan>,
}

/// One Service port in one family.
#[derive(Clone, Debug)]
pub struct PortPlan {
    /// Its name.
    pub name: ServicePortName,
    /// Where it answers.
    pub frontends: Frontends,
    /// The timeout of `ClientIP` session affinity, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Traffic to the cluster IP; served by the list of a policy.
    pub internal: Verdict<TrafficPolicy>,
    /// Traffic to the node port, the external IPs and the load-balancer IPs.
    pub external: Verdict<TrafficPolicy>,
    /// There is an endpoint somewhere that could be used.
    pub has_endpoints: bool,
    /// Every endpoint that traffic from this node can reach, sorted by its text.
    pub targets: Vec<Target>,
    /// Every endpoint on this node, in whatever condition.
    pub local_endpoints: Vec<SocketAddr>,
    /// The scheduler that the Service asks for, where there are schedulers (IPVS).
    pub ipvs_scheduler: Option<IpvsScheduler>,
}

impl PortPlan {
    /// The endpoints of a policy's list.
    pub fn list(&self, policy: TrafficPolicy) -> impl Iterator<Item = &Target> + Clone {
        self.targets.iter().filter(move |target| match policy {
            TrafficPolicy::Cluster => target.in_cluster,
            TrafficPolicy::Local => target.in_local,
        })
    }
}

impl<'a> Plan<'a> {
    /// One family's plan of the snapshot.
    #[must_use]
    pub fn new(settings: &'a FamilySettings, snapshot: &'a Snapshot, scope: Scope<'a>) -> Self {
        Plan { settings, snapshot, scope, endpoint_count: 0, local_addresses: &[], left_out: None }
    }

    /// The same plan, knowing how many endpoints there are.
    #[must_use]
    pub fn with_endpoint_count(mut self, endpoint_count: usize) -> Self {
        self.endpoint_count = endpoint_count;
        self
    }

    /// The same plan, knowing the addresses of this node's interfaces.
    #[must_use]
    pub fn with_local_addresses(mut self, addresses: &'a [IpAddr]) -> Self {
        self.local_addresses = addresses;
        self
    }

    /// The same plan, as if these Services did not exist.
    #[must_use]
    pub fn without(mut self, left_out: &'a BTreeSet<ServiceName>) -> Self {
        self.left_out = Some(left_out);
        self
    }

    /// The addresses on which node ports answer; `None` means every address of the node.
    #[must_use]
    pub fn node_port_ips(&self) -> Option<Vec<IpAddr>> {
        self.settings.node_port_ips(self.local_addresses)
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.settings.family
    }

    /// Which Services this pass looks at.
    #[must_use]
    pub fn scope(&self) -> Scope<'a> {
        self.scope
    }

    /// The Services that this pass looks at, whether they still exist or not.
    pub fn names_in_scope(&self) -> Box<dyn Iterator<Item = &'a ServiceName> + 'a> {
        match self.scope {
            Scope::All => Box::new(self.snapshot.services.keys()),
            Scope::Only(names) => Box::new(names.iter()),
        }
    }

    /// One Service's part; `None` when the family has nothing of it.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<ServicePlan<'a>> {
        let (name, record) = self.snapshot.services.get_key_value(name)?;
        self.build(name, record)
    }

    /// Every Service that the family has something of, in the order of names, whatever the scope.
    pub fn services(&self) -> impl Iterator<Item = ServicePlan<'a>> + use<'a> {
        let plan = *self;
        self.snapshot.services.iter().filter_map(move |(name, record)| plan.build(name, record))
    }

    /// Which endpoints of a Service's port count: those of the family, and no more than this.
    fn endpoints_of(&self, record: &ServiceRecord) -> (IpFamily, Option<usize>) {
        (self.family(), self.settings.limits.share(record, self.family()))
    }

    fn build(&self, name: &'a ServiceName, record: &'a ServiceRecord) -> Option<ServicePlan<'a>> {
        let service = record.service.as_deref()?;
        service.cluster_ips.get(self.family()).as_ref()?;
        if self.left_out.is_some_and(|names| names.contains(name)) {
            return None;
        }
        let node = &self.snapshot.node;
        let scope = self.endpoints_of(record);
        let ports = service.ports.iter().enumerate().filter_map(|(index, port)| {
            let frontends = Frontends::of_port(self.settings, record, service, index);
            if !frontends.accessible() {
                return None;
            }
            let candidates = endpoints::candidates(scope, record, port, node);
            let choice = Choice::of(&candidates, service.internal_traffic_policy, &frontends);
            Some(port_plan(service, port, frontends, (choice, candidates)))
        });
        Some(ServicePlan { name, ports: ports.collect() })
    }
}

/// A port's plan from what was settled about it.
fn port_plan(
    service: &Service,
    port: &ServicePort,
    frontends: Frontends,
    (choice, candidates): (Choice, Vec<Candidate>),
) -> PortPlan {
    let local = candidates.iter().filter(|it| it.facts.local()).map(|it| it.address);
    PortPlan {
        local_endpoints: local.collect(),
        ipvs_scheduler: service.ipvs_scheduler.clone(),
        name: service.port_name(port),
        affinity_seconds: service.affinity_seconds,
        internal: choice.internal(),
        external: choice.external(),
        has_endpoints: choice.has_any,
        targets: choice.into_targets(candidates),
        frontends,
    }
}

#[cfg(test)]
mod tests;

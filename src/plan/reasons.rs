//! Why each endpoint of a Service port is used or not: read off the same choice that makes the plan.

use super::endpoints::{self, Candidate, Choice};
use super::topology::Preference;
use super::{Frontends, Plan, PortPlan, port_plan};
use crate::model::{
    Cidr, EndpointFacts, IpFamily, Service, ServiceName, ServicePort, ServiceRecord, TrafficPolicy,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Why an endpoint gets no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Unused {
    /// It is not ready.
    NotReady,
    /// It still serves while it terminates, and other endpoints are ready.
    TerminatingWhileOthersReady,
    /// It terminates and serves no longer.
    Terminated,
    /// Its hints name other zones, and our zone has endpoints.
    OtherZone,
    /// Its hints name other nodes, and our node has endpoints.
    OtherNode,
    /// It is on another node, and the policy is Local.
    NotLocal,
    /// The Service has no cluster IP of its family.
    WrongFamily,
    /// Its slice has no port of the Service port's name and protocol.
    PortMissingInSlice,
}

/// One endpoint of a Service port and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUse {
    /// Its address.
    pub ip: IpAddr,
    /// Its port; `None` when its slice does not have the Service port.
    pub port: Option<u16>,
    /// Its conditions, and whether it is on this node.
    pub facts: EndpointFacts,
    /// It has zone hints, and they name other zones only.
    pub hinted_elsewhere: bool,
    /// Why it gets no traffic of the cluster IP; `None` when it does get some.
    pub internal: Option<Unused>,
    /// Why it gets no traffic from outside; `None` when it does get some.
    pub external: Option<Unused>,
}

/// A Service port's plan, and what became of every endpoint.
#[derive(Clone, Debug)]
pub struct ReasonedPort {
    /// The plan.
    pub plan: PortPlan,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// The node port that the Service asks for; 0 for none. It may be refused.
    pub node_port: u16,
    /// Source ranges of the other family, where the load-balancer IPs of this one are open to all clients because no range
    /// is of it.
    pub ranges_of_other_family: Vec<Cidr>,
    /// Every endpoint, in the order of addresses.
    pub endpoints: Vec<EndpointUse>,
}

impl Plan<'_> {
    /// Each port of a Service with the reasons; `None` when the family has nothing of it.
    #[must_use]
    pub fn reasons(&self, name: &ServiceName) -> Option<Vec<ReasonedPort>> {
        let record = self.snapshot.services.get(name)?;
        let service = record.service.as_deref()?;
        service.cluster_ips.get(self.family()).as_ref()?;
        let scope = self.endpoints_of(record);
        let ports = service.ports.iter().enumerate().map(|(index, port)| {
            let frontends = Frontends::of_port(self.settings, record, service, index);
            let internal = service.internal_traffic_policy;
            let candidates = endpoints::candidates(scope, record, port, &self.snapshot.node);
            let choice = Choice::of(&candidates, internal, &frontends);
            // Without a way in from outside, the external policy means nothing.
            let external =
                if frontends.externally_accessible() { frontends.external_policy } else { internal };
            let judged = candidates.iter().enumerate().map(|(index, candidate)| {
                let why = |policy| why_not(&choice, index, candidate, policy);
                EndpointUse {
                    ip: candidate.address.ip(),
                    port: Some(candidate.address.port()),
                    facts: candidate.facts,
                    hinted_elsewhere: candidate.is_hinted_elsewhere(),
                    internal: why(internal),
                    external: why(external),
                }
            });
            let mut endpoints: Vec<EndpointUse> = judged.collect();
            endpoints.extend(passed_over(self.family(), record, port));
            endpoints.sort_by_key(|it| (it.ip, it.port));
            let ranges_of_other_family = ranges_of_other_family(service, &frontends, self.family());
            let plan = port_plan(service, port, frontends, (choice, candidates));
            let node_port = port.node_port;
            ReasonedPort { plan, internal_policy: internal, node_port, ranges_of_other_family, endpoints }
        });
        Some(ports.collect())
    }
}

/// The source ranges, where they restrict no client because none is of this family.
fn ranges_of_other_family(service: &Service, frontends: &Frontends, family: IpFamily) -> Vec<Cidr> {
    let ranges = service.external.as_deref().map(|it| &*it.source_ranges).unwrap_or_default();
    let has_own = ranges.iter().any(|range| IpFamily::of_cidr(range) == family);
    if has_own || frontends.load_balancer_ips.is_empty() { Vec::new() } else { ranges.to_vec() }
}

/// Why a candidate is not in the list of a policy; `None` if it is.
fn why_not(choice: &Choice, index: usize, candidate: &Candidate, policy: TrafficPolicy) -> Option<Unused> {
    if choice.list(policy).get(index) == Some(&true) {
        return None;
    }
    let facts = candidate.facts;
    Some(match (facts.ready(), policy) {
        (_, TrafficPolicy::Local) if !facts.local() => Unused::NotLocal,
        (true, _) if choice.preference == Preference::SameNode => Unused::OtherNode,
        (true, _) => Unused::OtherZone,
        (false, _) if candidate.is_fallback() => Unused::TerminatingWhileOthersReady,
        (false, _) if facts.terminating() => Unused::Terminated,
        (false, _) => Unused::NotReady,
    })
}

/// Endpoints that are no candidates at all: of the other family, which the Service does not have,
/// and of slices without the port.
fn passed_over(family: IpFamily, record: &ServiceRecord, port: &ServicePort) -> Vec<EndpointUse> {
    let mut found: Vec<EndpointUse> = Vec::new();
    let served =
        |of: IpFamily| record.service.as_deref().is_some_and(|service| service.cluster_ips.get(of).is_some());
    for slice in &record.slices {
        let cause = if slice.family != family {
            if served(slice.family) {
                continue;
            }
            Unused::WrongFamily
        } else if endpoints::numbers(slice, port).next().is_none() {
            Unused::PortMissingInSlice
        } else {
            continue;
        };
        found.extend(slice.endpoints.iter().map(|endpoint| EndpointUse {
            ip: endpoint.address,
            port: None,
            facts: endpoint.facts,
            hinted_elsewhere: false,
            internal: Some(cause),
            external: Some(cause),
        }));
    }
    found
}

impl EndpointUse {
    /// Address and port, where the port is known.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.port.map(|port| SocketAddr::new(self.ip, port))
    }
}

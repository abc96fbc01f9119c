//! What a Service's plan means as elements.

use super::desired::{List, Member, ServiceElements};
use super::element::{Destination, ElementId, Endpoint, Key};
use super::names::SetId;
use crate::model::{Cidr, TrafficPolicy, Verdict};
use crate::plan::{PortPlan, ServicePlan, Target};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// One Service's elements, with those that count connections if these are wanted. Endpoints have their numbers in the order of the
/// plan.
pub(super) fn service(plan: &ServicePlan<'_>, counts: bool) -> ServiceElements {
    let mut elements = ServiceElements::default();
    for (index, port) in (0..).zip(&plan.ports) {
        elements.ports.push(port.name.port.clone());
        Port { plan: port, index, counts, elements: &mut elements }.render();
    }
    elements.members.sort_unstable();
    elements.members.dedup_by_key(|member| member.id);
    elements
}

struct Port<'p> {
    plan: &'p PortPlan,
    index: u16,
    counts: bool,
    elements: &'p mut ServiceElements,
}

impl Port<'_> {
    fn render(&mut self) {
        let frontends = &self.plan.frontends;
        self.hairpins();
        if let Some(address) = frontends.cluster_ip {
            self.member(SetId::ClusterIps, Key::Address(address));
            self.internal(self.at(address));
        }
        let addresses = frontends.external_ips.iter().chain(&frontends.load_balancer_ips);
        // The same address can be an external and a load-balancer IP.
        let addresses: BTreeSet<IpAddr> = addresses.copied().collect();
        addresses.into_iter().for_each(|address| self.external(self.at(address)));
        if let Some(port) = frontends.node_port {
            self.external(Destination::NodePort { protocol: self.plan.name.protocol, port });
        }
        if frontends.restricts_sources() {
            self.restrict_sources();
        }
    }

    fn at(&self, address: IpAddr) -> Destination {
        let (protocol, port) = (self.plan.name.protocol, self.plan.frontends.port);
        Destination::Service { address, protocol, port }
    }

    fn member(&mut self, set: SetId, key: Key) {
        self.elements.members.push(Member { id: ElementId { set, key }, port: self.index });
    }

    fn mark(&mut self, set: SetId, at: Destination) {
        self.member(set, Key::Destination(at));
    }

    /// Endpoints of this node that may be sent what they send to the Service.
    fn hairpins(&mut self) {
        let local: BTreeSet<&SocketAddr> = self.plan.local_endpoints.iter().collect();
        let here = self.plan.targets.iter().filter(|target| local.contains(&target.address));
        for target in here {
            let key = Key::Hairpin(self.plan.name.protocol, target.address.into());
            self.member(SetId::Hairpin, key);
        }
    }

    fn internal(&mut self, at: Destination) {
        match self.plan.internal {
            Verdict::Served(policy) => {
                let endpoints = self.endpoints(policy);
                self.lists(at, &[(false, endpoints)]);
            }
            Verdict::Refused => self.mark(SetId::Reject(at.plane()), at),
            Verdict::Dropped => self.mark(SetId::Drop(at.plane()), at),
            Verdict::Untouched => {}
        }
    }

    /// A node port, an external or a load-balancer IP. Under policy Local, pods and the node itself use the cluster-wide
    /// list even where the rest is dropped.
    fn external(&mut self, at: Destination) {
        let is_local = self.plan.frontends.external_policy == TrafficPolicy::Local;
        match self.plan.external {
            Verdict::Refused => return self.mark(SetId::Reject(at.plane()), at),
            Verdict::Dropped => self.mark(SetId::Drop(at.plane()), at),
            Verdict::Served(_) | Verdict::Untouched => {}
        }
        let mut lists = vec![(false, self.endpoints(TrafficPolicy::Cluster))];
        if is_local {
            self.mark(SetId::LocalPolicy(at.plane()), at);
            lists.push((true, self.endpoints(TrafficPolicy::Local)));
        } else {
            self.mark(SetId::Masquerade(at.plane()), at);
        }
        self.lists(at, &lists);
    }

    fn endpoints(&self, policy: TrafficPolicy) -> Vec<Endpoint> {
        self.plan.list(policy).map(|target: &Target| target.address.into()).collect()
    }

    fn lists(&mut self, at: Destination, lists: &[(bool, Vec<Endpoint>)]) {
        for (is_local, endpoints) in lists.iter().filter(|(_, endpoints)| !endpoints.is_empty()) {
            let endpoints = endpoints.clone();
            self.elements.lists.push(List { port: self.index, is_local: *is_local, at, endpoints });
        }
        if !self.counts && self.plan.affinity_seconds.is_none() {
            return;
        }
        let reachable: BTreeSet<Endpoint> =
            lists.iter().flat_map(|(_, endpoints)| endpoints.iter().copied()).collect();
        if self.counts {
            for endpoint in &reachable {
                self.member(SetId::Counted(at.plane()), Key::Endpoint(at, *endpoint));
            }
        }
        let Some(seconds) = self.plan.affinity_seconds else { return };
        if !reachable.is_empty() {
            self.mark(SetId::Affinity(at.plane(), seconds), at);
        }
        for endpoint in reachable {
            self.member(SetId::AffinityEndpoints(at.plane()), Key::Endpoint(at, endpoint));
        }
    }

    /// Ranges within others are left out: the kernel takes no overlapping ones.
    fn restrict_sources(&mut self) {
        let frontends = &self.plan.frontends;
        let mut ranges = frontends.source_ranges.clone();
        if frontends.node_in_source_ranges {
            // What the node itself sends to an address has that address as its source.
            ranges.extend(frontends.load_balancer_ips.iter().copied().map(Cidr::from));
        }
        let ranges = Cidr::aggregate(&ranges);
        for address in frontends.load_balancer_ips.clone() {
            let at = self.at(address);
            self.mark(SetId::Firewall, at);
            ranges.iter().for_each(|range| self.member(SetId::FirewallSources, Key::Source(at, *range)));
        }
    }
}

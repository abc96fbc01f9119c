//! What the kernel's connection tracking may hold for a Service: a flow to one of these frontends
//! is good as long as one of these endpoints answers it.

use super::endpoints::{self, Candidate};
use super::{Frontends, Plan};
use crate::model::{IpFamily, Protocol, ServiceName};
use std::net::{IpAddr, SocketAddr};

/// A Service port of a protocol whose flows outlive their endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedPort {
    /// UDP or SCTP. The end of a TCP connection is the business of its two sides (kube-proxy).
    pub protocol: Protocol,
    /// Cluster IP, load-balancer IPs and external IPs.
    pub addresses: Vec<SocketAddr>,
    /// The node port.
    pub node_port: Option<u16>,
    /// Endpoints that serve, on whatever node and for whatever zone, terminating or not: none of
    /// them loses a flow that it has.
    pub serving: Vec<SocketAddr>,
}

impl Plan<'_> {
    /// The ports of a Service whose flows may be stale; none when the family has nothing of it.
    #[must_use]
    pub fn tracked(&self, name: &ServiceName) -> Vec<TrackedPort> {
        let Some(record) = self.snapshot.services.get(name) else { return Vec::new() };
        let Some(service) = record.service.as_deref() else { return Vec::new() };
        if service.cluster_ips.get(self.family()).is_none() {
            return Vec::new();
        }
        let of_interest = |(_, port): &(usize, &crate::model::ServicePort)| port.protocol != Protocol::Tcp;
        let scope = self.endpoints_of(record);
        let tracked = service.ports.iter().enumerate().filter(of_interest).map(|(index, port)| {
            let frontends = Frontends::of_port(self.settings, record, service, index);
            let candidates = endpoints::candidates(scope, record, port, &self.snapshot.node);
            let serving = |candidate: &Candidate| candidate.facts.serving().then_some(candidate.address);
            TrackedPort {
                protocol: port.protocol,
                addresses: addresses(&frontends),
                node_port: frontends.node_port,
                serving: candidates.iter().filter_map(serving).collect(),
            }
        });
        tracked.collect()
    }

    /// The port on which load balancers ask for a Service; none when the family has nothing of it.
    #[must_use]
    pub fn health_check_node_port(&self, name: &ServiceName) -> Option<u16> {
        let record = self.snapshot.services.get(name)?;
        (*record.service.as_deref()?.cluster_ips.get(self.family()))?;
        record.health_check_node_port()
    }

    /// How many endpoints of a Service on this node are ready, by address: what a load balancer
    /// asks on the health-check node port. Terminating ones do not count (kube-proxy).
    #[must_use]
    pub fn local_endpoints(&self, name: &ServiceName) -> usize {
        let Some(record) = self.snapshot.services.get(name) else { return 0 };
        let family: IpFamily = self.family();
        let slices = record.slices.iter().filter(|slice| slice.family == family);
        let ready = slices.flat_map(|slice| {
            let has_port = !slice.ports.is_empty();
            slice.endpoints.iter().filter(move |it| has_port && it.facts.ready() && it.facts.local())
        });
        let mut found: Vec<IpAddr> = ready.map(|endpoint| endpoint.address).collect();
        found.sort_unstable();
        found.dedup();
        found.len()
    }
}

fn addresses(frontends: &Frontends) -> Vec<SocketAddr> {
    let all = frontends.cluster_ip.iter().chain(&frontends.load_balancer_ips).chain(&frontends.external_ips);
    all.map(|address| SocketAddr::new(*address, frontends.port)).collect()
}

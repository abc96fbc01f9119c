//! What a Service's plan means in IPVS: virtual servers, set entries, addresses.

use super::desired::{Fact, Server, ServicePart};
use super::names::SetId;
use crate::model::{
    Frontend, IpvsScheduler, Protocol, RealServer, SetEntry, TrafficPolicy, Verdict, VirtualServer,
};
use crate::plan::{FamilySettings, NodePortAddresses, PortPlan, ServicePlan};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// What a Service's part depends on besides its plan.
#[derive(Clone, Debug)]
pub(super) struct RenderContext<'a> {
    /// As kube-proxy does it, where we think that it is wrong.
    pub(super) upstream_compat: bool,
    /// The scheduler of Services that ask for none.
    pub(super) scheduler: &'a IpvsScheduler,
    /// Schedulers that this kernel turned out not to have.
    pub(super) missing_schedulers: &'a BTreeSet<Arc<str>>,
    /// The node's own addresses: those on all interfaces but ours.
    pub(super) node_addresses: &'a BTreeSet<IpAddr>,
    /// The addresses on which node ports answer.
    pub(super) node_port_ips: Vec<IpAddr>,
}

/// The addresses on which node ports answer: never loopback ones, which IPVS cannot serve.
pub(super) fn node_port_ips(settings: &FamilySettings, node_addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let wanted = |ip: &&IpAddr| match &settings.node_port_addresses {
        NodePortAddresses::All => true,
        NodePortAddresses::Within(cidrs) => cidrs.iter().any(|cidr| cidr.contains(*ip)),
    };
    node_addresses.iter().filter(|ip| !ip.is_loopback()).filter(wanted).copied().collect()
}

/// One Service's part.
pub(super) fn service(plan: &ServicePlan<'_>, context: &RenderContext<'_>) -> ServicePart {
    let mut part = ServicePart::default();
    for port in &plan.ports {
        Port { plan: port, context, part: &mut part }.render();
    }
    part.servers.sort_by_key(|(frontend, _)| *frontend);
    // The same address can be an external and a load-balancer IP.
    part.servers.dedup_by_key(|(frontend, _)| *frontend);
    part.facts.sort_unstable();
    part.facts.dedup();
    part.servers.shrink_to_fit();
    part.facts.shrink_to_fit();
    part
}

struct Port<'p> {
    plan: &'p PortPlan,
    context: &'p RenderContext<'p>,
    part: &'p mut ServicePart,
}

impl Port<'_> {
    fn render(&mut self) {
        for address in &self.plan.local_endpoints {
            let at = Frontend { address: address.ip(), port: address.port(), protocol: self.protocol() };
            self.entry(SetId::LoopBack, SetEntry::IpPortIp(at, address.ip()));
        }
        self.cluster_ip();
        let external = self.server(self.plan.external);
        self.external_ips(&external);
        self.load_balancer_ips(&external);
        self.node_port(&external);
        if let Some(port) = self.plan.frontends.health_check_node_port {
            self.entry(SetId::HealthCheckNodePort, SetEntry::Port(port));
        }
    }

    fn protocol(&self) -> Protocol {
        self.plan.name.protocol
    }

    fn at(&self, address: IpAddr) -> Frontend {
        Frontend { address, port: self.plan.frontends.port, protocol: self.protocol() }
    }

    fn is_local_externally(&self) -> bool {
        self.plan.frontends.external_policy == TrafficPolicy::Local
    }

    fn entry(&mut self, set: SetId, entry: SetEntry) {
        self.part.facts.push(Fact::Entry(set, entry));
    }

    fn cluster_ip(&mut self) {
        let Some(cluster_ip) = self.plan.frontends.cluster_ip else { return };
        let at = self.at(cluster_ip);
        let server = match self.plan.internal {
            Verdict::Dropped if !self.context.upstream_compat => {
                // Nobody may be sent elsewhere, so nobody is sent anywhere.
                self.entry(SetId::NobodyLocal, SetEntry::IpPort(at));
                self.server(Verdict::Refused)
            }
            verdict => self.server(verdict),
        };
        self.entry(SetId::ClusterIp, SetEntry::IpPort(at));
        self.bind(at.address);
        self.part.servers.push((at, server));
    }

    fn external_ips(&mut self, server: &Arc<Server>) {
        let set = if self.is_local_externally() { SetId::ExternalIpLocal } else { SetId::ExternalIp };
        for ip in &self.plan.frontends.external_ips {
            let at = self.at(*ip);
            self.entry(set, SetEntry::IpPort(at));
            self.outside(at, server);
        }
    }

    fn load_balancer_ips(&mut self, server: &Arc<Server>) {
        let frontends = &self.plan.frontends;
        for ip in &frontends.load_balancer_ips {
            let at = self.at(*ip);
            self.entry(SetId::LoadBalancer, SetEntry::IpPort(at));
            if self.is_local_externally() {
                self.entry(SetId::LoadBalancerLocal, SetEntry::IpPort(at));
            }
            if frontends.restricts_sources() {
                self.entry(SetId::LoadBalancerFw, SetEntry::IpPort(at));
                for range in &frontends.source_ranges {
                    self.entry(SetId::LoadBalancerSourceCidr, SetEntry::IpPortNet(at, *range));
                }
                if self.node_is_within_ranges() {
                    // What the node itself sends to the address has that address as its source.
                    self.entry(SetId::LoadBalancerSourceIp, SetEntry::IpPortIp(at, *ip));
                } else {
                    self.part.facts.push(Fact::Guard(at));
                }
            }
            self.outside(at, server);
        }
    }

    /// kube-proxy looks at the address of its Node object only, which may be unknown.
    fn node_is_within_ranges(&self) -> bool {
        let frontends = &self.plan.frontends;
        let within = |ip: &IpAddr| frontends.source_ranges.iter().any(|range| range.contains(ip));
        frontends.node_in_source_ranges
            || !self.context.upstream_compat && self.context.node_addresses.iter().any(within)
    }

    /// An address that is bound unless the node has it anyway.
    fn outside(&mut self, at: Frontend, server: &Arc<Server>) {
        if !self.context.node_addresses.contains(&at.address) {
            self.bind(at.address);
        }
        self.external_frontend(at, server);
    }

    fn external_frontend(&mut self, at: Frontend, server: &Arc<Server>) {
        if self.plan.external == Verdict::Dropped && !self.context.upstream_compat {
            self.entry(SetId::OutsideLocal, SetEntry::IpPort(at));
        }
        self.part.servers.push((at, server.clone()));
    }

    fn node_port(&mut self, server: &Arc<Server>) {
        let Some(port) = self.plan.frontends.node_port else { return };
        let protocol = self.protocol();
        let sets = match protocol {
            Protocol::Tcp => [SetId::NodePortTcp, SetId::NodePortLocalTcp],
            Protocol::Udp => [SetId::NodePortUdp, SetId::NodePortLocalUdp],
            Protocol::Sctp => [SetId::NodePortSctp, SetId::NodePortLocalSctp],
        };
        let sets = if self.is_local_externally() { &sets[..] } else { &sets[..1] };
        for ip in &self.context.node_port_ips {
            let at = Frontend { address: *ip, port, protocol };
            for set in sets {
                let entry =
                    if protocol == Protocol::Sctp { SetEntry::IpPort(at) } else { SetEntry::Port(port) };
                self.entry(*set, entry);
            }
            self.external_frontend(at, server);
        }
    }

    fn bind(&mut self, address: IpAddr) {
        self.part.facts.push(Fact::Address(address));
        self.entry(SetId::IpvsIps, SetEntry::Ip(address));
    }

    /// The virtual server of traffic that goes this way. Without real servers, IPVS itself refuses
    /// connections with an ICMP message, as the iptables rules of other modes do.
    fn server(&self, verdict: Verdict<TrafficPolicy>) -> Arc<Server> {
        let list = match verdict {
            Verdict::Served(policy) => Some(policy),
            // Pods and the node itself are sent to endpoints elsewhere; who comes from outside is
            // dropped before, or, in kube-proxy's way, sent there, too.
            Verdict::Dropped => Some(TrafficPolicy::Cluster),
            Verdict::Refused | Verdict::Untouched => None,
        };
        let targets = list.into_iter().flat_map(|policy| self.plan.list(policy));
        let mut reals: Vec<_> =
            targets.map(|target| RealServer { address: target.address, weight: 1 }).collect();
        reals.sort_unstable();
        let with =
            VirtualServer { scheduler: self.scheduler(), affinity_seconds: self.plan.affinity_seconds };
        Arc::new(Server { with, reals })
    }

    fn scheduler(&self) -> IpvsScheduler {
        let asked_for = self.plan.ipvs_scheduler.as_ref();
        let usable = asked_for.filter(|it| !self.context.missing_schedulers.contains(&it.name));
        usable.unwrap_or(self.context.scheduler).clone()
    }
}

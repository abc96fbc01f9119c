//! A Service's rules: what a plan says, as rules of iptables.
//!
//! `dispatch` makes the rules that stand in shared chains and lead to a Service, `chains` those of the
//! Service's own chains, chain by chain. The order of rules within a chain is kube-proxy's.

use super::base::{Features, Out};
use super::chains::{Chain, Fixed};
use super::names::{ChainId, ChainKind, LOCALHOST_ACCEPTED, MARK_MASQ, PortHash};
use super::parts::{self, PartKind};
use crate::backend::masquerade::{is_local, loopback};
use crate::backend::rule::{Asks, Comment, Match, Name, Rule, Share, Spelling, Target};
use crate::model::{IpFamily, Protocol, TrafficPolicy, Verdict};
use crate::plan::{FamilySettings, PortPlan, ServicePlan, Target as Endpoint};
use std::net::IpAddr;

/// Above this many endpoints, kube-proxy leaves the comments off the rules that stand once per
/// endpoint; people's tools have seen both.
const MOST_COMMENTED_ENDPOINTS: usize = 1000;

/// What a Service's rules depend on besides its own plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) settings: &'a FamilySettings,
    pub(super) features: &'a Features,
    /// Rules that stand once per endpoint carry a comment.
    pub(super) endpoint_comments: bool,
}

impl<'a> Context<'a> {
    pub(super) fn new(settings: &'a FamilySettings, features: &'a Features, endpoints: usize) -> Self {
        Context { settings, features, endpoint_comments: endpoints <= MOST_COMMENTED_ENDPOINTS }
    }
}

/// A Service port with what its rules have in common.
struct Port<'a> {
    plan: &'a PortPlan,
    context: Context<'a>,
    hash: PortHash,
}

impl<'a> Port<'a> {
    fn new(plan: &'a PortPlan, context: Context<'a>) -> Self {
        Port { plan, context, hash: PortHash::of(&plan.name) }
    }

    fn chain(&self, kind: ChainKind) -> ChainId {
        ChainId::of_port(kind, &self.hash)
    }

    fn jump(&self, kind: ChainKind) -> Target {
        Target::Jump(self.chain(kind).name())
    }

    fn endpoint_chain(&self, endpoint: &Endpoint) -> ChainId {
        ChainId::of_endpoint(&self.plan.name, &endpoint.text)
    }

    /// External traffic has a way to some endpoint, if only for local clients.
    fn has_external_chain(&self) -> bool {
        self.plan.has_endpoints && self.plan.frontends.externally_accessible()
    }

    fn has_firewall_chain(&self) -> bool {
        self.plan.has_endpoints && self.plan.frontends.restricts_sources()
    }

    /// Its name between two pieces of text.
    fn comment(&self, before: &'static str, after: &'static str) -> Match<'a> {
        Asks::Comment(Comment::Port(before, &self.plan.name, after)).into()
    }

    fn protocol(&self) -> Match<'static> {
        Asks::Protocol(self.plan.name.protocol, Spelling(true)).into()
    }

    fn port(&self) -> Match<'static> {
        Asks::DestinationPort(self.plan.frontends.port).into()
    }

    fn dispatch(&self, out: Out<'_>) {
        self.dispatch_cluster_ip(out);
        self.dispatch_external_ips(out);
        self.dispatch_load_balancer_ips(out);
        self.dispatch_node_port(out);
        if let Some(port) = self.plan.frontends.health_check_node_port {
            let tcp = Asks::Protocol(Protocol::Tcp, Spelling(true)).into();
            let matches =
                [self.comment("", " health check node port"), tcp, Asks::DestinationPort(port).into()];
            out(Chain::Fixed(Fixed::HealthCheckNodePorts), Rule::new(&matches, Target::Accept));
        }
    }

    /// The rule that leads from one of the Service's addresses to one of its chains.
    fn lead(&self, out: Out<'_>, what: &'static str, destination: IpAddr, kind: ChainKind) {
        let matches = [self.comment("", what), self.protocol(), Match::destination(destination), self.port()];
        out(Chain::Fixed(Fixed::Services), Rule::new(&matches, self.jump(kind)));
    }

    fn dispatch_cluster_ip(&self, out: Out<'_>) {
        let Some(cluster_ip) = self.plan.frontends.cluster_ip else { return };
        match self.plan.internal {
            Verdict::Served(policy) => self.lead(out, " cluster IP", cluster_ip, balancing(policy)),
            refused => self.refuse_destination(out, Fixed::FilterServices, refused, cluster_ip),
        }
    }

    fn dispatch_external_ips(&self, out: Out<'_>) {
        for ip in &self.plan.frontends.external_ips {
            if self.plan.has_endpoints {
                self.lead(out, " external IP", *ip, ChainKind::Ext);
            }
            self.refuse_destination(out, Fixed::ExternalServices, self.plan.external, *ip);
        }
    }

    fn dispatch_load_balancer_ips(&self, out: Out<'_>) {
        let is_restricted = self.has_firewall_chain();
        for ip in &self.plan.frontends.load_balancer_ips {
            if self.plan.has_endpoints {
                let kind = if is_restricted { ChainKind::Fw } else { ChainKind::Ext };
                self.lead(out, " loadbalancer IP", *ip, kind);
            }
            if is_restricted {
                let firewall = self.chain(ChainKind::Fw).name();
                let comment = Comment::Chain(&self.plan.name, " traffic not accepted by ", firewall);
                let matches =
                    [Asks::Comment(comment).into(), self.protocol(), Match::destination(*ip), self.port()];
                out(Chain::Fixed(Fixed::ProxyFirewall), Rule::new(&matches, Target::Drop));
            }
        }
        for ip in &self.plan.frontends.load_balancer_ips {
            self.refuse_destination(out, Fixed::ExternalServices, self.plan.external, *ip);
        }
    }

    fn dispatch_node_port(&self, out: Out<'_>) {
        let Some(port) = self.plan.frontends.node_port else { return };
        let (protocol, port) = (self.protocol(), Asks::DestinationPort(port).into());
        if self.plan.has_endpoints {
            let (comment, target) = (self.comment("", ""), self.jump(ChainKind::Ext));
            let node_ports = Chain::Fixed(Fixed::NodePorts);
            if self.context.settings.localhost_node_ports && self.context.features.counts_localhost {
                let counter = Asks::Count(Name::new(LOCALHOST_ACCEPTED)).into();
                let matches = [comment, protocol, Match::destination(loopback(IpFamily::V4)), port, counter];
                out(node_ports, Rule::new(&matches, target));
            }
            out(node_ports, Rule::new(&[comment, protocol, port], target));
        }
        let matching = [Asks::DestinationIsLocal.into(), protocol, port];
        self.refuse(out, Fixed::ExternalServices, self.plan.external, matching);
    }

    fn refuse_destination(&self, out: Out<'_>, chain: Fixed, verdict: Verdict<TrafficPolicy>, to: IpAddr) {
        self.refuse(out, chain, verdict, [self.protocol(), Match::destination(to), self.port()]);
    }

    /// The filter rule for traffic that has nowhere to go, if it has nowhere to go.
    fn refuse(&self, out: Out<'_>, chain: Fixed, verdict: Verdict<TrafficPolicy>, matching: [Match<'_>; 3]) {
        let (why, target) = match verdict {
            Verdict::Served(_) | Verdict::Untouched => return,
            Verdict::Refused => (" has no endpoints", Target::Reject(None)),
            Verdict::Dropped => (" has no local endpoints", Target::Drop),
        };
        let [first, second, third] = matching;
        out(Chain::Fixed(chain), Rule::new(&[self.comment("", why), first, second, third], target));
    }

    fn chains(&self, out: Out<'_>) {
        if self.has_external_chain() {
            self.external_rules(out);
        }
        if self.has_firewall_chain() {
            self.firewall_rules(out);
        }
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            if self.plan.list(policy).next().is_some() {
                self.balancing_rules(out, policy);
            }
        }
        for endpoint in &self.plan.targets {
            self.endpoint_rules(out, endpoint);
        }
    }

    fn external_rules(&self, out: Out<'_>) {
        let chain = Chain::Own(self.chain(ChainKind::Ext));
        let mark = Target::Jump(Name::new(MARK_MASQ));
        let comment = |what| self.comment(what, " external destinations");
        match self.plan.frontends.external_policy {
            TrafficPolicy::Cluster => out(chain, Rule::new(&[comment("masquerade traffic for ")], mark)),
            TrafficPolicy::Local => {
                // Pods and the node itself get what they would get from the cluster IP; only
                // traffic from outside is bound to local endpoints and keeps its source.
                let all = self.jump(ChainKind::Svc);
                if let Some(local) = self.is_local() {
                    out(chain, Rule::new(&[comment("pod traffic for "), local.into()], all));
                }
                let from_node = Asks::SourceIsLocal.into();
                out(chain, Rule::new(&[comment("masquerade LOCAL traffic for "), from_node], mark));
                out(chain, Rule::new(&[comment("route LOCAL traffic for "), from_node], all));
            }
        }
        if let Verdict::Served(policy) = self.plan.external {
            out(chain, Rule::new(&[], self.jump(balancing(policy))));
        }
    }

    fn firewall_rules(&self, out: Out<'_>) {
        let frontends = &self.plan.frontends;
        let chain = Chain::Own(self.chain(ChainKind::Fw));
        let (comment, external) = (self.comment("", " loadbalancer IP"), self.jump(ChainKind::Ext));
        for range in &frontends.source_ranges {
            out(chain, Rule::new(&[comment, Match::source(*range)], external));
        }
        if frontends.node_in_source_ranges {
            // The node's own traffic to a load-balancer IP may carry that IP as its source.
            for ip in &frontends.load_balancer_ips {
                out(chain, Rule::new(&[comment, Match::source(*ip)], external));
            }
        }
        let rest = self.comment("other traffic to ", " will be dropped by KUBE-PROXY-FIREWALL");
        out(chain, Rule::new(&[rest], Target::None));
    }

    fn balancing_rules(&self, out: Out<'_>, policy: TrafficPolicy) {
        let chain = Chain::Own(self.chain(balancing(policy)));
        if self.plan.internal == Verdict::Served(policy) {
            self.masquerade_cluster_ip(out, chain);
        }
        let endpoints = self.plan.list(policy).map(|endpoint| (endpoint, self.endpoint_chain(endpoint)));
        let endpoints: Vec<_> = endpoints.collect();
        match parts::count(endpoints.len()) {
            None => {
                self.recall_rules(out, chain, &endpoints);
                self.choice_rules(out, chain, &endpoints);
            }
            Some(count) => self.part_rules(out, (chain, policy), &parts::cut(&endpoints, count)),
        }
    }

    /// Rules that send a client to the endpoint that remembers it.
    fn recall_rules(&self, out: Out<'_>, chain: Chain, endpoints: &[(&Endpoint, ChainId)]) {
        let Some(seconds) = self.plan.affinity_seconds else { return };
        for (endpoint, id) in endpoints {
            let to = id.name();
            let matches = [self.endpoint_comment(endpoint), Asks::Recent(to, seconds).into()];
            out(chain, Rule::new(&matches, Target::Jump(to)));
        }
    }

    /// Rules that choose one of the endpoints, each as likely as the others.
    fn choice_rules(&self, out: Out<'_>, chain: Chain, endpoints: &[(&Endpoint, ChainId)]) {
        for (index, (endpoint, id)) in endpoints.iter().enumerate() {
            let share = share(1, endpoints.len() - index);
            out(chain, Rule::new(&[self.endpoint_comment(endpoint), share], Target::Jump(id.name())));
        }
    }

    /// The same rules in chains of their own, part by part, and rules that lead there.
    fn part_rules(
        &self,
        out: Out<'_>,
        (chain, policy): (Chain, TrafficPolicy),
        parts: &[Vec<(&Endpoint, ChainId)>],
    ) {
        let recalls = self.plan.affinity_seconds.is_some();
        let id = |kind, index| parts::chain(&self.plan.name, (policy, kind), index);
        let filled = || parts.iter().enumerate().filter(|(_, part)| !part.is_empty());
        for (index, _) in filled().filter(|_| recalls) {
            out(chain, Rule::new(&[], Target::Jump(id(PartKind::Recall, index).name())));
        }
        let mut left: usize = parts.iter().map(Vec::len).sum();
        for (index, part) in filled() {
            let share = share(part.len(), left);
            left -= part.len();
            out(chain, Rule::new(&[share], Target::Jump(id(PartKind::Choose, index).name())));
        }
        for (index, part) in filled() {
            self.recall_rules(out, Chain::Own(id(PartKind::Recall, index)), part);
            self.choice_rules(out, Chain::Own(id(PartKind::Choose, index)), part);
        }
    }

    fn masquerade_cluster_ip(&self, out: Out<'_>, chain: Chain) {
        let Some(cluster_ip) = self.plan.frontends.cluster_ip else { return };
        let not_local = match (self.context.settings.masquerade_all, self.is_local()) {
            (true, _) => Match::NOTHING,
            (false, Some(local)) => Match::not(local),
            (false, None) => return,
        };
        let to = Match::destination(cluster_ip);
        let matches = [self.comment("", " cluster IP"), self.protocol(), to, self.port(), not_local];
        out(chain, Rule::new(&matches, Target::Jump(Name::new(MARK_MASQ))));
    }

    fn endpoint_rules(&self, out: Out<'_>, endpoint: &Endpoint) {
        let id = self.endpoint_chain(endpoint);
        let comment = if self.context.endpoint_comments { self.comment("", "") } else { Match::NOTHING };
        let remember = match self.plan.affinity_seconds {
            Some(_) => Asks::Remember(id.name()),
            None => Asks::Nothing,
        };
        // An endpoint that reaches itself through its Service would answer itself directly.
        let itself = [comment, Match::source(endpoint.address.ip())];
        out(Chain::Own(id), Rule::new(&itself, Target::Jump(Name::new(MARK_MASQ))));
        let matches = [comment, remember.into(), self.protocol()];
        out(Chain::Own(id), Rule::new(&matches, Target::Dnat(endpoint.address)));
    }

    fn endpoint_comment<'t>(&'t self, endpoint: &'t Endpoint) -> Match<'t> {
        if self.context.endpoint_comments {
            Asks::Comment(Comment::Endpoint(&self.plan.name, &endpoint.text)).into()
        } else {
            Match::NOTHING
        }
    }

    fn is_local(&self) -> Option<Asks<'a>> {
        self.context.settings.detector.as_ref().map(is_local)
    }
}

/// The chance that one of the first so many of those that are left is meant.
fn share(first: usize, left: usize) -> Match<'static> {
    if first == left { Match::NOTHING } else { Asks::Share(Share::of_first(first, left)).into() }
}

fn balancing(policy: TrafficPolicy) -> ChainKind {
    match policy {
        TrafficPolicy::Cluster => ChainKind::Svc,
        TrafficPolicy::Local => ChainKind::Svl,
    }
}

/// A Service's rules in shared chains.
pub(super) fn dispatch(service: &ServicePlan<'_>, context: Context<'_>, out: Out<'_>) {
    service.ports.iter().for_each(|port| Port::new(port, context).dispatch(out));
}

/// The rules of a Service's own chains, chain by chain.
pub(super) fn chains(service: &ServicePlan<'_>, context: Context<'_>, out: Out<'_>) {
    service.ports.iter().for_each(|port| Port::new(port, context).chains(out));
}

//! A Service's rules: what a plan says, in the words of iptables-restore.
//!
//! `dispatch` writes the rules that stand in shared chains and lead to a Service, `chains` the
//! Service's own chains. The order of rules within a chain is kube-proxy's.

use super::base::Features;
use super::names::{
    ChainId, ChainKind, EXTERNAL_SERVICES, LOCALHOST_ACCEPTED, MARK_MASQ, NODE_PORTS, PROXY_FIREWALL,
    PortHash, SERVICES,
};
use crate::backend::lines::{Text, line};
use crate::model::TrafficPolicy;
use crate::plan::{FamilySettings, LocalDetector, PortPlan, Route, ServicePlan, Target};
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;

/// Above this many endpoints, kube-proxy leaves the comments off the rules that stand once per
/// endpoint; people's tools have seen both.
const MOST_COMMENTED_ENDPOINTS: usize = 1000;

/// What a Service's rules depend on besides its own plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style<'a> {
    pub(super) settings: &'a FamilySettings,
    pub(super) features: &'a Features,
    /// Rules that stand once per endpoint carry a comment.
    pub(super) endpoint_comments: bool,
}

impl<'a> Style<'a> {
    pub(super) fn new(settings: &'a FamilySettings, features: &'a Features, endpoints: usize) -> Self {
        Style { settings, features, endpoint_comments: endpoints <= MOST_COMMENTED_ENDPOINTS }
    }
}

/// A Service's rules in the shared chains of both tables.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    /// Those of the nat table's `KUBE-SERVICES`.
    pub(super) services: Text,
    /// Where in `services` which destination's rules are.
    destinations: Vec<(IpAddr, Range<usize>)>,
    /// Those of the nat table's `KUBE-NODEPORTS`.
    pub(super) node_ports: Text,
    pub(super) filter: Text,
}

impl Dispatch {
    pub(super) fn clear(&mut self) {
        self.services.clear();
        self.destinations.clear();
        self.node_ports.clear();
        self.filter.clear();
    }

    /// The destinations of `services`, each with how many rules it has.
    pub(super) fn destinations(&self) -> Box<[(IpAddr, u16)]> {
        let mut counts: Vec<(IpAddr, u16)> = Vec::new();
        for (address, _) in &self.destinations {
            match counts.iter_mut().find(|(known, _)| known == address) {
                Some((_, rules)) => *rules = rules.saturating_add(1),
                None => counts.push((*address, 1)),
            }
        }
        counts.into()
    }

    /// The rules of one destination, as they stand in another chain than `KUBE-SERVICES`.
    pub(super) fn write_destination(&self, address: IpAddr, chain: ChainId, text: &mut Text) {
        for (_, range) in self.destinations.iter().filter(|(known, _)| *known == address) {
            let rule = self.services.as_str()[range.clone()].trim_end();
            let rule = rule.strip_prefix("-A ").and_then(|rule| rule.strip_prefix(SERVICES)).unwrap_or(rule);
            line!(text, "-A {chain}{rule}");
        }
    }
}

/// A Service's own chains.
#[derive(Debug, Default)]
pub(super) struct Chains {
    text: Text,
    chains: Vec<(ChainId, Range<usize>)>,
}

impl Chains {
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.chains.clear();
    }

    /// Each chain with its rules.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ChainId, &str)> {
        self.chains.iter().map(|(id, range)| (*id, &self.text.as_str()[range.clone()]))
    }

    fn write(&mut self, id: ChainId, rules: impl FnOnce(&mut Text)) {
        let start = self.text.len();
        rules(&mut self.text);
        self.chains.push((id, start..self.text.len()));
    }
}

/// A Service port with what its rules have in common.
struct Port<'a> {
    plan: &'a PortPlan,
    style: Style<'a>,
    hash: PortHash,
    /// `-m tcp -p tcp`
    protocol: &'static str,
}

impl<'a> Port<'a> {
    fn new(plan: &'a PortPlan, style: Style<'a>) -> Self {
        let protocol = match plan.name.protocol {
            crate::model::Protocol::Tcp => "-m tcp -p tcp",
            crate::model::Protocol::Udp => "-m udp -p udp",
            crate::model::Protocol::Sctp => "-m sctp -p sctp",
        };
        Port { plan, style, hash: PortHash::of(&plan.name), protocol }
    }

    fn chain(&self, kind: ChainKind) -> ChainId {
        ChainId::of_port(kind, &self.hash)
    }

    fn balancing(&self, policy: TrafficPolicy) -> ChainId {
        self.chain(match policy {
            TrafficPolicy::Cluster => ChainKind::Svc,
            TrafficPolicy::Local => ChainKind::Svl,
        })
    }

    /// External traffic has a way to some endpoint, if only for local clients.
    fn has_external_chain(&self) -> bool {
        self.plan.has_endpoints && self.plan.frontends.externally_accessible()
    }

    fn has_firewall_chain(&self) -> bool {
        self.plan.has_endpoints && self.plan.frontends.restricts_sources()
    }

    /// `-m tcp -p tcp -d 10.96.0.1 --dport 80`
    fn matching(&self, destination: IpAddr) -> String {
        format!("{} -d {destination} --dport {}", self.protocol, self.plan.frontends.port)
    }

    fn dispatch(&self, out: &mut Dispatch) {
        self.dispatch_cluster_ip(out);
        self.dispatch_external_ips(out);
        self.dispatch_load_balancer_ips(out);
        self.dispatch_node_port(out);
        if let Some(port) = self.plan.frontends.health_check_node_port {
            let name = &self.plan.name;
            line!(
                out.filter,
                "-A {NODE_PORTS} -m comment --comment \"{name} health check node port\" -m tcp -p tcp \
                 --dport {port} -j ACCEPT"
            );
        }
    }

    /// The rule that leads from one of the Service's addresses to one of its chains.
    fn lead(&self, out: &mut Dispatch, what: &str, destination: IpAddr, chain: ChainId) {
        let (name, matching) = (&self.plan.name, self.matching(destination));
        let start = out.services.len();
        line!(out.services, "-A {SERVICES} -m comment --comment \"{name} {what}\" {matching} -j {chain}");
        out.destinations.push((destination, start..out.services.len()));
    }

    fn dispatch_cluster_ip(&self, out: &mut Dispatch) {
        let Some(cluster_ip) = self.plan.frontends.cluster_ip else { return };
        let matching = self.matching(cluster_ip);
        match self.plan.internal {
            Route::Balance(policy) => self.lead(out, "cluster IP", cluster_ip, self.balancing(policy)),
            refused => self.refuse(&mut out.filter, SERVICES, refused, &matching),
        }
    }

    fn dispatch_external_ips(&self, out: &mut Dispatch) {
        for ip in &self.plan.frontends.external_ips {
            let matching = self.matching(*ip);
            if self.plan.has_endpoints {
                self.lead(out, "external IP", *ip, self.chain(ChainKind::Ext));
            }
            self.refuse(&mut out.filter, EXTERNAL_SERVICES, self.plan.external, &matching);
        }
    }

    fn dispatch_load_balancer_ips(&self, out: &mut Dispatch) {
        let name = &self.plan.name;
        let firewall = self.has_firewall_chain().then(|| self.chain(ChainKind::Fw));
        for ip in &self.plan.frontends.load_balancer_ips {
            let matching = self.matching(*ip);
            if self.plan.has_endpoints {
                let chain = firewall.unwrap_or_else(|| self.chain(ChainKind::Ext));
                self.lead(out, "loadbalancer IP", *ip, chain);
            }
            if let Some(firewall) = firewall {
                line!(
                    out.filter,
                    "-A {PROXY_FIREWALL} -m comment --comment \"{name} traffic not accepted by {firewall}\" \
                     {matching} -j DROP"
                );
            }
        }
        for ip in &self.plan.frontends.load_balancer_ips {
            self.refuse(&mut out.filter, EXTERNAL_SERVICES, self.plan.external, &self.matching(*ip));
        }
    }

    fn dispatch_node_port(&self, out: &mut Dispatch) {
        let Some(port) = self.plan.frontends.node_port else { return };
        let (name, protocol) = (&self.plan.name, self.protocol);
        if self.plan.has_endpoints {
            let chain = self.chain(ChainKind::Ext);
            if self.style.settings.localhost_node_ports && self.style.features.counts_localhost {
                line!(
                    out.node_ports,
                    "-A {NODE_PORTS} -m comment --comment {name} {protocol} -d 127.0.0.0/8 --dport {port} \
                     -m nfacct --nfacct-name {LOCALHOST_ACCEPTED} -j {chain}"
                );
            }
            line!(
                out.node_ports,
                "-A {NODE_PORTS} -m comment --comment {name} {protocol} --dport {port} -j {chain}"
            );
        }
        let matching = format!("-m addrtype --dst-type LOCAL {protocol} --dport {port}");
        self.refuse(&mut out.filter, EXTERNAL_SERVICES, self.plan.external, &matching);
    }

    /// The filter rule for traffic that has nowhere to go, if it has nowhere to go.
    fn refuse(&self, out: &mut Text, chain: &str, route: Route, matching: &str) {
        let (why, target) = match route {
            Route::Balance(_) => return,
            Route::Reject => ("has no endpoints", "REJECT"),
            Route::Drop => ("has no local endpoints", "DROP"),
        };
        let name = &self.plan.name;
        line!(out, "-A {chain} -m comment --comment \"{name} {why}\" {matching} -j {target}");
    }

    fn chains(&self, out: &mut Chains) {
        if self.has_external_chain() {
            let chain = self.chain(ChainKind::Ext);
            out.write(chain, |text| self.external_chain(text, chain));
        }
        if self.has_firewall_chain() {
            let chain = self.chain(ChainKind::Fw);
            out.write(chain, |text| self.firewall_chain(text, chain));
        }
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            if self.plan.list(policy).next().is_some() {
                let chain = self.balancing(policy);
                out.write(chain, |text| self.balancing_chain(text, chain, policy));
            }
        }
        for target in &self.plan.targets {
            let chain = ChainId::of_endpoint(&self.plan.name, &target.text);
            out.write(chain, |text| self.endpoint_chain(text, chain, target));
        }
    }

    fn external_chain(&self, text: &mut Text, chain: ChainId) {
        let name = &self.plan.name;
        match self.plan.frontends.external_policy {
            TrafficPolicy::Cluster => line!(
                text,
                "-A {chain} -m comment --comment \"masquerade traffic for {name} external destinations\" \
                 -j {MARK_MASQ}"
            ),
            TrafficPolicy::Local => {
                // Pods and the node itself get what they would get from the cluster IP; only
                // traffic from outside is bound to local endpoints and keeps its source.
                let all = self.balancing(TrafficPolicy::Cluster);
                if let Some(local) = self.is_local() {
                    line!(
                        text,
                        "-A {chain} -m comment --comment \"pod traffic for {name} external destinations\" \
                         {local} -j {all}"
                    );
                }
                let from_node = "-m addrtype --src-type LOCAL";
                line!(
                    text,
                    "-A {chain} -m comment --comment \"masquerade LOCAL traffic for {name} external \
                     destinations\" {from_node} -j {MARK_MASQ}"
                );
                line!(
                    text,
                    "-A {chain} -m comment --comment \"route LOCAL traffic for {name} external \
                     destinations\" {from_node} -j {all}"
                );
            }
        }
        if let Route::Balance(policy) = self.plan.external {
            line!(text, "-A {chain} -j {}", self.balancing(policy));
        }
    }

    fn firewall_chain(&self, text: &mut Text, chain: ChainId) {
        let (name, frontends) = (&self.plan.name, &self.plan.frontends);
        let external = self.chain(ChainKind::Ext);
        let mut allow = |source: &dyn fmt::Display| {
            line!(
                text,
                "-A {chain} -m comment --comment \"{name} loadbalancer IP\" -s {source} -j {external}"
            );
        };
        frontends.source_ranges.iter().for_each(|range| allow(range));
        if frontends.node_in_source_ranges {
            // The node's own traffic to a load-balancer IP may carry that IP as its source.
            frontends.load_balancer_ips.iter().for_each(|ip| allow(ip));
        }
        line!(
            text,
            "-A {chain} -m comment --comment \"other traffic to {name} will be dropped by {PROXY_FIREWALL}\""
        );
    }

    fn balancing_chain(&self, text: &mut Text, chain: ChainId, policy: TrafficPolicy) {
        if self.plan.internal == Route::Balance(policy) {
            self.masquerade_cluster_ip(text, chain);
        }
        let targets = self.plan.list(policy);
        if let Some(seconds) = self.plan.affinity_seconds {
            for target in targets.clone() {
                let endpoint = ChainId::of_endpoint(&self.plan.name, &target.text);
                let comment = self.endpoint_comment(target);
                line!(
                    text,
                    "-A {chain}{comment} -m recent --name {endpoint} --rcheck --seconds {seconds} --reap \
                     -j {endpoint}"
                );
            }
        }
        let count = targets.clone().count();
        for (index, target) in targets.enumerate() {
            let endpoint = ChainId::of_endpoint(&self.plan.name, &target.text);
            let comment = self.endpoint_comment(target);
            match count - index {
                1 => line!(text, "-A {chain}{comment} -j {endpoint}"),
                left => line!(
                    text,
                    "-A {chain}{comment} -m statistic --mode random --probability {} -j {endpoint}",
                    probability(left)
                ),
            }
        }
    }

    fn masquerade_cluster_ip(&self, text: &mut Text, chain: ChainId) {
        let Some(cluster_ip) = self.plan.frontends.cluster_ip else { return };
        let not_local = match (self.style.settings.masquerade_all, self.is_not_local()) {
            (true, _) => String::new(),
            (false, Some(not_local)) => format!(" {not_local}"),
            (false, None) => return,
        };
        let name = &self.plan.name;
        let matching = self.matching(cluster_ip);
        line!(
            text,
            "-A {chain} -m comment --comment \"{name} cluster IP\" {matching}{not_local} -j {MARK_MASQ}"
        );
    }

    fn endpoint_chain(&self, text: &mut Text, chain: ChainId, target: &Target) {
        let comment = if self.style.endpoint_comments {
            format!(" -m comment --comment {}", self.plan.name)
        } else {
            String::new()
        };
        let remember = match self.plan.affinity_seconds {
            Some(_) => format!(" -m recent --name {chain} --set"),
            None => String::new(),
        };
        // An endpoint that reaches itself through its Service would answer itself directly.
        line!(text, "-A {chain}{comment} -s {} -j {MARK_MASQ}", target.address.ip());
        line!(
            text,
            "-A {chain}{comment}{remember} {} -j DNAT --to-destination {}",
            self.protocol,
            target.text
        );
    }

    fn endpoint_comment(&self, target: &Target) -> String {
        if self.style.endpoint_comments {
            format!(" -m comment --comment \"{} -> {}\"", self.plan.name, target.text)
        } else {
            String::new()
        }
    }

    fn is_local(&self) -> Option<String> {
        self.style.settings.detector.as_ref().map(|detector| match detector {
            LocalDetector::Cidr(cidr) => format!("-s {cidr}"),
            LocalDetector::BridgeInterface(name) => format!("-i {name}"),
            LocalDetector::InterfacePrefix(prefix) => format!("-i {prefix}+"),
        })
    }

    fn is_not_local(&self) -> Option<String> {
        self.is_local().map(|local| format!("! {local}"))
    }
}

/// The share of the first of `left` endpoints, with kube-proxy's ten decimals.
fn probability(left: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "endpoint counts are far below 2^52")]
    let share = 1.0 / left as f64;
    format!("{share:.10}")
}

/// Writes a Service's rules in shared chains.
pub(super) fn dispatch(service: &ServicePlan<'_>, style: Style<'_>, out: &mut Dispatch) {
    service.ports.iter().for_each(|port| Port::new(port, style).dispatch(out));
}

/// Writes a Service's own chains.
pub(super) fn chains(service: &ServicePlan<'_>, style: Style<'_>, out: &mut Chains) {
    service.ports.iter().for_each(|port| Port::new(port, style).chains(out));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_have_ten_decimals_and_never_grow() {
        assert_eq!(probability(1), "1.0000000000");
        assert_eq!(probability(3), "0.3333333333");
        assert_eq!(probability(100_001), "0.0000099999");
        for count in 1..2000 {
            assert!(probability(count + 1) <= probability(count));
        }
    }
}

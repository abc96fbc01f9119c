//! The iptables rules around IPVS, as one input for iptables-restore.
//!
//! They mark what has to be masqueraded, let load balancers' source ranges in, and refuse what is
//! sent to a Service's address but not to its port. The order within each chain is kube-proxy's.

use super::names::{
    FILTER, FORWARD, LOAD_BALANCER, LOCAL_POLICY, MARK_MASQ, NODE_PORT, OUT_FILTER, POSTROUTING,
    PROXY_FIREWALL, SERVICES, SOURCE_RANGES, SetId,
};
use super::render::loopback;
use crate::backend::jumps::Jump;
use crate::backend::lines::{Text, line};
use crate::backend::masquerade;
use crate::model::{Frontend, IpvsScheduler, SetType};
use crate::plan::{FamilySettings, LocalDetector};
use std::sync::Arc;

/// What the operator set and the tools can do; fixed after the start.
#[derive(Clone, Debug)]
pub struct Features {
    /// The bit of the packet mark that asks for masquerading, as a mask.
    pub masquerade_mark: u32,
    /// The tool knows `--random-fully` (1.6.2 and later).
    pub random_fully: bool,
    /// The scheduler of Services that ask for none.
    pub scheduler: IpvsScheduler,
    /// Networks in which nobody's virtual servers are removed.
    pub exclude: Vec<crate::model::Cidr>,
    /// Everything as kube-proxy does it.
    pub upstream_compat: bool,
    /// Our node; what comes first differs from node to node by it.
    pub node_name: Arc<str>,
}

static JUMPS: [Jump; 11] = [
    Jump::new("nat", "OUTPUT", SERVICES, "kubernetes service portals"),
    Jump::new("nat", "PREROUTING", SERVICES, "kubernetes service portals"),
    Jump::new("nat", "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    Jump::new("filter", "FORWARD", FORWARD, "kubernetes forwarding rules"),
    Jump::new("filter", "INPUT", NODE_PORT, "kubernetes health check rules"),
    Jump::new("filter", "INPUT", PROXY_FIREWALL, "kube-proxy firewall rules"),
    Jump::new("filter", "FORWARD", PROXY_FIREWALL, "kube-proxy firewall rules"),
    Jump::new("filter", "INPUT", FILTER, "kubernetes ipvs access filter"),
    Jump::new("filter", "OUTPUT", OUT_FILTER, "kubernetes ipvs access filter"),
    Jump::new("mangle", "INPUT", LOCAL_POLICY, "kubernetes local traffic policy"),
    Jump::new("mangle", "OUTPUT", LOCAL_POLICY, "kubernetes local traffic policy"),
];

/// The jumps; each is inserted at the top if it is missing.
pub(super) fn jumps(upstream_compat: bool) -> impl Iterator<Item = &'static Jump> {
    JUMPS.iter().filter(move |jump| !upstream_compat || jump.table != "mangle")
}

/// Our chains, by table; kube-proxy does not have the last one.
pub(super) static CHAINS: [(&str, &[&str]); 3] = [
    ("nat", &[SERVICES, POSTROUTING, NODE_PORT, LOAD_BALANCER, MARK_MASQ]),
    ("filter", &[FORWARD, NODE_PORT, PROXY_FIREWALL, SOURCE_RANGES, FILTER, OUT_FILTER]),
    ("mangle", &[LOCAL_POLICY]),
];

/// Those that are in use.
pub(super) fn chains(upstream_compat: bool) -> &'static [(&'static str, &'static [&'static str])] {
    if upstream_compat { &CHAINS[..2] } else { &CHAINS }
}

/// What the rules depend on.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub(super) settings: &'a FamilySettings,
    pub(super) features: &'a Features,
    /// How many entries each set has; rules about empty sets are left out.
    pub(super) set_sizes: [usize; SetId::ALL.len()],
    /// Load-balancer frontends that the node must not reach.
    pub(super) guards: Vec<Frontend>,
}

impl Rules<'_> {
    /// The whole input.
    pub(super) fn text(&self) -> String {
        let mut input = Text::default();
        for (table, chains) in chains(self.features.upstream_compat) {
            line!(input, "*{table}");
            chains.iter().for_each(|chain| line!(input, ":{chain} - [0:0]"));
            match *table {
                "nat" => self.nat(&mut input),
                "filter" => self.filter(&mut input),
                _ => self.mangle(&mut input),
            }
            line!(input, "COMMIT");
        }
        input.into_string()
    }

    fn has(&self, set: SetId) -> bool {
        self.set_sizes[set.index()] > 0
    }

    /// `-m set --match-set NAME dst,dst`
    fn set(&self, set: SetId) -> String {
        let directions = match set.kind() {
            SetType::Port | SetType::Ip => "dst",
            SetType::IpPort => "dst,dst",
            SetType::IpPortIp | SetType::IpPortNet => "dst,dst,src",
        };
        format!("-m set --match-set {} {directions}", set.name(self.settings.family))
    }

    /// The same with the set's comment before it.
    fn matching(&self, set: SetId) -> String {
        format!("-m comment --comment \"{}\" {}", set.comment(), self.set(set))
    }

    /// Matches what the cluster's own pods did not send.
    fn not_local(&self) -> Option<String> {
        self.settings.detector.as_ref().map(|detector| match detector {
            LocalDetector::Cidr(cidr) => format!("! -s {cidr}"),
            LocalDetector::BridgeInterface(name) => format!("! -i {name}"),
            LocalDetector::InterfacePrefix(prefix) => format!("! -i {prefix}+"),
        })
    }

    fn nat(&self, out: &mut Text) {
        line!(out, "-A {SERVICES} -s {} -j RETURN", loopback(self.settings.family));
        if self.has(SetId::LoopBack) {
            line!(out, "-A {POSTROUTING} {} -j MASQUERADE", self.matching(SetId::LoopBack));
        }
        if self.has(SetId::LoadBalancer) {
            line!(out, "-A {SERVICES} {} -j {LOAD_BALANCER}", self.matching(SetId::LoadBalancer));
        }
        if self.has(SetId::LoadBalancerLocal) {
            let matching = self.matching(SetId::LoadBalancerLocal);
            self.masquerade_own(out, LOAD_BALANCER, &matching);
            line!(out, "-A {LOAD_BALANCER} {matching} -j RETURN");
        }
        self.node_ports(out);
        self.cluster_ips(out);
        self.external_ips(out);
        line!(out, "-A {SERVICES} -m addrtype --dst-type LOCAL -j {NODE_PORT}");
        line!(out, "-A {LOAD_BALANCER} -j {MARK_MASQ}");
        for set in [SetId::ClusterIp, SetId::LoadBalancer] {
            if self.has(set) {
                line!(out, "-A {SERVICES} {} -j ACCEPT", self.set(set));
            }
        }
        masquerade::write(out, self.features.masquerade_mark, self.features.random_fully);
    }

    /// The node's own connections to an address of its own have that as their source: nobody
    /// elsewhere could answer. kube-proxy leaves them to it under the Local policy.
    fn masquerade_own(&self, out: &mut Text, chain: &str, matching: &str) {
        if !self.features.upstream_compat {
            line!(out, "-A {chain} {matching} -m addrtype --src-type LOCAL -j {MARK_MASQ}");
        }
    }

    fn node_ports(&self, out: &mut Text) {
        for (protocol, local, all) in [
            ("tcp", SetId::NodePortLocalTcp, SetId::NodePortTcp),
            ("udp", SetId::NodePortLocalUdp, SetId::NodePortUdp),
            ("sctp", SetId::NodePortLocalSctp, SetId::NodePortSctp),
        ] {
            if self.has(local) {
                let matching = format!("-p {protocol} {}", self.matching(local));
                self.masquerade_own(out, NODE_PORT, &matching);
                line!(out, "-A {NODE_PORT} {matching} -j RETURN");
            }
            if self.has(all) {
                line!(out, "-A {NODE_PORT} -p {protocol} {} -j {MARK_MASQ}", self.matching(all));
            }
        }
    }

    fn cluster_ips(&self, out: &mut Text) {
        if !self.has(SetId::ClusterIp) {
            return;
        }
        let matching = self.matching(SetId::ClusterIp);
        match self.not_local() {
            _ if self.settings.masquerade_all => line!(out, "-A {SERVICES} {matching} -j {MARK_MASQ}"),
            Some(not_local) => line!(out, "-A {SERVICES} {matching} {not_local} -j {MARK_MASQ}"),
            None => {
                // What the node itself sends to a cluster IP has that IP as its source.
                let own = matching.replace("dst,dst", "src,dst");
                line!(out, "-A {SERVICES} {own} -j {MARK_MASQ}");
            }
        }
    }

    fn external_ips(&self, out: &mut Text) {
        for set in [SetId::ExternalIp, SetId::ExternalIpLocal].into_iter().filter(|set| self.has(*set)) {
            let matching = self.matching(set);
            if set == SetId::ExternalIp {
                line!(out, "-A {SERVICES} {matching} -j {MARK_MASQ}");
            } else {
                self.masquerade_own(out, SERVICES, &matching);
            }
            line!(
                out,
                "-A {SERVICES} {matching} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT"
            );
            line!(out, "-A {SERVICES} {matching} -m addrtype --dst-type LOCAL -j ACCEPT");
        }
    }

    fn filter(&self, out: &mut Text) {
        if self.has(SetId::LoadBalancerFw) {
            line!(out, "-A {PROXY_FIREWALL} {} -j {SOURCE_RANGES}", self.matching(SetId::LoadBalancerFw));
        }
        for set in [SetId::LoadBalancerSourceCidr, SetId::LoadBalancerSourceIp] {
            if self.has(set) {
                line!(out, "-A {SOURCE_RANGES} {} -j RETURN", self.matching(set));
            }
        }
        line!(out, "-A {SOURCE_RANGES} -j DROP");
        for Frontend { address, port, protocol } in &self.guards {
            line!(
                out,
                "-A {OUT_FILTER} -s {address} -m ipvs --vaddr {address} --vproto {protocol} --vport {port} -j DROP"
            );
        }
        let mark = masquerade::mark(self.features.masquerade_mark);
        line!(
            out,
            "-A {FORWARD} -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark}/{mark} -j ACCEPT"
        );
        line!(
            out,
            "-A {FORWARD} -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
             --ctstate RELATED,ESTABLISHED -j ACCEPT"
        );
        line!(out, "-A {NODE_PORT} {} -j ACCEPT", self.matching(SetId::HealthCheckNodePort));
        for set in [
            SetId::LoadBalancer,
            SetId::ClusterIp,
            SetId::ExternalIp,
            SetId::ExternalIpLocal,
            SetId::HealthCheckNodePort,
        ] {
            line!(out, "-A {FILTER} {} -j RETURN", self.set(set));
        }
        // Other ports of a Service's address do not lead to the node's own programs.
        line!(out, "-A {FILTER} -m conntrack --ctstate NEW {} -j REJECT", self.set(SetId::IpvsIps));
    }

    /// Before IPVS, which takes the node's own packets before the filter table sees them.
    fn mangle(&self, out: &mut Text) {
        let new = "-m conntrack --ctstate NEW";
        if self.has(SetId::NobodyLocal) {
            line!(out, "-A {LOCAL_POLICY} {new} {} -j DROP", self.matching(SetId::NobodyLocal));
        }
        if self.has(SetId::OutsideLocal) {
            let not_local = self.not_local().map(|it| it + " ").unwrap_or_default();
            line!(
                out,
                "-A {LOCAL_POLICY} {not_local}{new} -m addrtype ! --src-type LOCAL {} -j DROP",
                self.matching(SetId::OutsideLocal)
            );
        }
    }
}

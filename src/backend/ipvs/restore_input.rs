//! The iptables rules around IPVS, as one input for iptables-restore.
//!
//! They mark what has to be masqueraded, let load balancers' source ranges in, and refuse what is
//! sent to a Service's address but not to its port. The order within each chain is kube-proxy's.

use super::names::{
    FILTER, FORWARD, LOAD_BALANCER, LOCAL_POLICY, MARK_MASQ, NODE_PORT, OUT_FILTER, POSTROUTING,
    PROXY_FIREWALL, SERVICES, SOURCE_RANGES, SetId,
};
use crate::backend::jumps::Jump;
use crate::backend::lines::{Text, line};
use crate::backend::listing::{OurChains, SharedRule};
use crate::backend::masquerade::{self, is_local, loopback};
use crate::backend::rule::{Asks, ChainHash, Match, Name, Rule, Spelling, States, Target};
use crate::model::{Frontend, IpvsScheduler, Protocol, SetType};
use crate::plan::FamilySettings;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the operator set, and what tools and kernel can do.
#[derive(Clone, Debug)]
pub struct Features {
    /// The bit of the packet mark that asks for masquerading, as a mask.
    pub masquerade_mark: u32,
    /// Tool (1.6.2 and later) and kernel take `--random-fully`; found out whenever nothing is known of the kernel.
    pub random_fully: bool,
    /// The scheduler of Services that ask for none.
    pub scheduler: IpvsScheduler,
    /// Networks in which no virtual server is removed, ours included.
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

/// The tables that these are in.
static TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// A chain, by its table's place in `CHAINS` and its own place there.
pub(super) type ChainKey = (u8, u8);

/// The chains of IPVS mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableChains {
    pub(super) upstream_compat: bool,
}

impl OurChains for TableChains {
    type Key = ChainKey;

    fn parse(&self, table: &str, chain: &str) -> Option<ChainKey> {
        let index = chains(self.upstream_compat).iter().position(|(known, _)| *known == table)?;
        let place = CHAINS[index].1.iter().position(|known| *known == chain)?;
        Some((u8::try_from(index).ok()?, u8::try_from(place).ok()?))
    }

    fn place(&self, (table, chain): ChainKey) -> (&'static str, Name) {
        let (name, chains) = CHAINS[usize::from(table)];
        (name, Name::new(chains[usize::from(chain)]))
    }

    fn tables(&self) -> &'static [&'static str] {
        &TABLES[..chains(self.upstream_compat).len()]
    }

    fn is_open(&self, _: ChainKey) -> bool {
        false
    }

    fn shared_rules(&self) -> Vec<SharedRule> {
        jumps(self.upstream_compat).map(Jump::rule).collect()
    }

    fn is_shared(&self, table: &str, chain: &str) -> bool {
        jumps(self.upstream_compat).any(|jump| (jump.table, jump.from) == (table, chain))
    }
}

/// What all chains hold.
pub(super) type ChainHashes = BTreeMap<ChainKey, ChainHash>;

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

/// Takes one rule after the other, each with its table and its chain.
type Out<'o> = &'o mut dyn FnMut(&'static str, &'static str, Rule<'_>);
/// The same, for one table.
type TableOut<'o> = &'o mut dyn FnMut(&'static str, &[Match<'_>], Target);

impl Rules<'_> {
    /// The rules of all chains in use, by their hashes.
    pub(super) fn hashes(&self) -> ChainHashes {
        let chains = TableChains { upstream_compat: self.features.upstream_compat };
        let mut hashes: ChainHashes = all_chains(chains).map(|(key, ..)| (key, ChainHash::EMPTY)).collect();
        self.each(&mut |table, chain, rule| {
            let hash = chains.parse(table, chain).and_then(|key| hashes.get_mut(&key));
            hash.into_iter().for_each(|hash| hash.push(&rule));
        });
        hashes
    }

    /// The input that writes some of the chains.
    pub(super) fn text(&self, is_wanted: impl Fn(ChainKey) -> bool) -> String {
        let chains = TableChains { upstream_compat: self.features.upstream_compat };
        let mut input = Text::default();
        for table in chains.tables() {
            let wanted: Vec<&str> = all_chains(chains)
                .filter(|(key, of, _)| of == table && is_wanted(*key))
                .map(|(.., name)| name)
                .collect();
            if wanted.is_empty() {
                continue;
            }
            line!(input, "*{table}");
            wanted.iter().for_each(|chain| line!(input, ":{chain} - [0:0]"));
            self.each(&mut |of, chain, rule| {
                if of == *table && wanted.contains(&chain) {
                    line!(input, "-A {chain} {rule}");
                }
            });
            line!(input, "COMMIT");
        }
        input.into_string()
    }

    /// Makes all rules, table by table; those of one chain are in order.
    pub(super) fn each(&self, out: Out<'_>) {
        self.nat(&mut |chain, matches, target| out("nat", chain, Rule::new(matches, target)));
        self.filter(&mut |chain, matches, target| out("filter", chain, Rule::new(matches, target)));
        if !self.features.upstream_compat {
            self.mangle(&mut |chain, matches, target| out("mangle", chain, Rule::new(matches, target)));
        }
    }

    fn has(&self, set: SetId) -> bool {
        self.set_sizes[set.index()] > 0
    }

    /// Whether a set has a packet's destination.
    fn set(&self, set: SetId) -> Match<'static> {
        let parts = match set.kind() {
            SetType::Port | SetType::Ip => "dst",
            SetType::IpPort => "dst,dst",
            SetType::IpPortIp | SetType::IpPortNet => "dst,dst,src",
        };
        Asks::InSet(Name::new(&set.name(self.settings.family)), parts).into()
    }

    /// The same with the set's comment before it.
    fn matching(&self, set: SetId) -> [Match<'static>; 2] {
        [Match::comment(set.comment()), self.set(set)]
    }

    /// Asks for what the cluster's own pods did not send.
    fn not_local(&self) -> Option<Match<'_>> {
        self.settings.detector.as_ref().map(|detector| Match::not(is_local(detector)))
    }

    fn nat(&self, out: TableOut<'_>) {
        out(SERVICES, &[Match::source(loopback(self.settings.family))], Target::Return);
        if self.has(SetId::LoopBack) {
            out(POSTROUTING, &self.matching(SetId::LoopBack), Target::Masquerade(false));
        }
        if self.has(SetId::LoadBalancer) {
            out(SERVICES, &self.matching(SetId::LoadBalancer), jump(LOAD_BALANCER));
        }
        if self.has(SetId::LoadBalancerLocal) {
            let matching = self.matching(SetId::LoadBalancerLocal);
            self.masquerade_own(out, LOAD_BALANCER, &matching);
            out(LOAD_BALANCER, &matching, Target::Return);
        }
        self.node_ports(out);
        self.cluster_ips(out);
        self.external_ips(out);
        out(SERVICES, &[Asks::DestinationIsLocal.into()], jump(NODE_PORT));
        out(LOAD_BALANCER, &[], jump(MARK_MASQ));
        for set in [SetId::ClusterIp, SetId::LoadBalancer] {
            if self.has(set) {
                out(SERVICES, &[self.set(set)], Target::Accept);
            }
        }
        let Features { masquerade_mark, random_fully, .. } = *self.features;
        masquerade::rules(masquerade_mark, random_fully, &mut |chain, rule| {
            out(chain, rule.matches, rule.target);
        });
    }

    /// The node's own connections to an address of its own have that as their source, which no
    /// endpoint elsewhere could answer. kube-proxy leaves them to it under the Local policy.
    fn masquerade_own(&self, out: TableOut<'_>, chain: &'static str, matching: &[Match<'_>]) {
        if !self.features.upstream_compat {
            let own = [matching, &[Asks::SourceIsLocal.into()]].concat();
            out(chain, &own, jump(MARK_MASQ));
        }
    }

    fn node_ports(&self, out: TableOut<'_>) {
        for (protocol, local, all) in [
            (Protocol::Tcp, SetId::NodePortLocalTcp, SetId::NodePortTcp),
            (Protocol::Udp, SetId::NodePortLocalUdp, SetId::NodePortUdp),
            (Protocol::Sctp, SetId::NodePortLocalSctp, SetId::NodePortSctp),
        ] {
            let matching = |set| {
                let [comment, set] = self.matching(set);
                [Asks::Protocol(protocol, Spelling(false)).into(), comment, set]
            };
            if self.has(local) {
                self.masquerade_own(out, NODE_PORT, &matching(local));
                out(NODE_PORT, &matching(local), Target::Return);
            }
            if self.has(all) {
                out(NODE_PORT, &matching(all), jump(MARK_MASQ));
            }
        }
    }

    fn cluster_ips(&self, out: TableOut<'_>) {
        if !self.has(SetId::ClusterIp) {
            return;
        }
        let [comment, set] = self.matching(SetId::ClusterIp);
        let mark = jump(MARK_MASQ);
        match self.not_local() {
            _ if self.settings.masquerade_all => out(SERVICES, &[comment, set], mark),
            Some(not_local) => out(SERVICES, &[comment, set, not_local], mark),
            None => {
                // What the node itself sends to a cluster IP has that IP as its source.
                let name = SetId::ClusterIp.name(self.settings.family);
                let own = Asks::InSet(Name::new(&name), "src,dst").into();
                out(SERVICES, &[comment, own], mark);
            }
        }
    }

    fn external_ips(&self, out: TableOut<'_>) {
        for set in [SetId::ExternalIp, SetId::ExternalIpLocal].into_iter().filter(|set| self.has(*set)) {
            let [comment, at] = self.matching(set);
            if set == SetId::ExternalIp {
                out(SERVICES, &[comment, at], jump(MARK_MASQ));
            } else {
                self.masquerade_own(out, SERVICES, &[comment, at]);
            }
            let from_elsewhere = [Match::not(Asks::FromBridgePort), Match::not(Asks::SourceIsLocal)];
            let [bridged, local] = from_elsewhere;
            out(SERVICES, &[comment, at, bridged, local], Target::Accept);
            out(SERVICES, &[comment, at, Asks::DestinationIsLocal.into()], Target::Accept);
        }
    }

    fn filter(&self, out: TableOut<'_>) {
        if self.has(SetId::LoadBalancerFw) {
            out(PROXY_FIREWALL, &self.matching(SetId::LoadBalancerFw), jump(SOURCE_RANGES));
        }
        for set in [SetId::LoadBalancerSourceCidr, SetId::LoadBalancerSourceIp] {
            if self.has(set) {
                out(SOURCE_RANGES, &self.matching(set), Target::Return);
            }
        }
        out(SOURCE_RANGES, &[], Target::Drop);
        for at in &self.guards {
            out(OUT_FILTER, &[Match::source(at.address), Asks::Through(*at).into()], Target::Drop);
        }
        let marked = masquerade::marked(self.features.masquerade_mark).into();
        out(FORWARD, &[Match::comment("kubernetes forwarding rules"), marked], Target::Accept);
        let known = Asks::State(States::KNOWN).into();
        out(FORWARD, &[Match::comment("kubernetes forwarding conntrack rule"), known], Target::Accept);
        out(NODE_PORT, &self.matching(SetId::HealthCheckNodePort), Target::Accept);
        for set in [
            SetId::LoadBalancer,
            SetId::ClusterIp,
            SetId::ExternalIp,
            SetId::ExternalIpLocal,
            SetId::HealthCheckNodePort,
        ] {
            out(FILTER, &[self.set(set)], Target::Return);
        }
        // Other ports of a Service's address do not lead to the node's own programs.
        out(FILTER, &[NEW, self.set(SetId::IpvsIps)], Target::Reject(None));
    }

    /// Before IPVS, which takes the node's own packets before the filter table sees them.
    fn mangle(&self, out: TableOut<'_>) {
        if self.has(SetId::NobodyLocal) {
            let [comment, set] = self.matching(SetId::NobodyLocal);
            out(LOCAL_POLICY, &[NEW, comment, set], Target::Drop);
        }
        if self.has(SetId::OutsideLocal) {
            let not_local = self.not_local().unwrap_or(Match::NOTHING);
            let [comment, set] = self.matching(SetId::OutsideLocal);
            let matches = [not_local, NEW, Match::not(Asks::SourceIsLocal), comment, set];
            out(LOCAL_POLICY, &matches, Target::Drop);
        }
    }
}

/// All chains in use, with their tables and names.
fn all_chains(of: TableChains) -> impl Iterator<Item = (ChainKey, &'static str, &'static str)> {
    let named = chains(of.upstream_compat).iter();
    let all = named.flat_map(|(table, names)| names.iter().map(move |name| (*table, *name)));
    all.filter_map(move |(table, name)| Some((of.parse(table, name)?, table, name)))
}

const NEW: Match<'static> = Match { is_negated: false, asks: Asks::State(States::NEW) };

fn jump(chain: &str) -> Target {
    Target::Jump(Name::new(chain))
}

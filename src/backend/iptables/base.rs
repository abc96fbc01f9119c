//! What is there whatever the Services are: jumps from the built-in chains, and the chains that
//! mark, masquerade, forward and protect.

use super::names::{
    CANARY, EXTERNAL_SERVICES, FIREWALL, FORWARD, INVALID_DROPPED, MARK_MASQ, NODE_PORTS, POSTROUTING,
    PROXY_FIREWALL, SERVICES,
};
use crate::backend::jumps::Jump;
use crate::backend::lines::{Text, line};
use crate::backend::masquerade;
use crate::model::IpFamily;
use crate::plan::{FamilySettings, Plan};

/// What the node's kernel and tools can do, and what the operator set; fixed after `probe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// The bit of the packet mark that asks for masquerading, as a mask.
    pub masquerade_mark: u32,
    /// Tool and kernel take `--random-fully`.
    pub random_fully: bool,
    /// Conntrack is lenient (`nf_conntrack_tcp_be_liberal`), so INVALID packets are not dropped.
    pub be_liberal: bool,
    /// The nfacct object that counts dropped INVALID packets is there, and rules can name it.
    pub counts_invalid: bool,
    /// The nfacct object that counts node-port packets on localhost is there, and rules can name it.
    pub counts_localhost: bool,
    /// With more rules than this in the nat table's `KUBE-SERVICES`, a tree of chains takes over.
    pub tree_threshold: usize,
}

impl Features {
    /// The same without what changes no packet's way; `None` if there is nothing of the kind.
    pub(super) fn without_options(&self) -> Option<Features> {
        let plain =
            Features { random_fully: false, counts_invalid: false, counts_localhost: false, ..self.clone() };
        (plain != *self).then_some(plain)
    }
}

impl Default for Features {
    fn default() -> Self {
        Features {
            masquerade_mark: 1 << 14,
            random_fully: true,
            be_liberal: false,
            counts_invalid: false,
            counts_localhost: false,
            tree_threshold: usize::MAX,
        }
    }
}

/// All jumps. Each is inserted at the top if it is missing, so on an empty host they end up in
/// the reverse of this order, as kube-proxy's do.
pub(super) static JUMPS: [Jump; 14] = [
    Jump::new("filter", "INPUT", EXTERNAL_SERVICES, "kubernetes externally-visible service portals")
        .only_new(),
    Jump::new("filter", "FORWARD", EXTERNAL_SERVICES, "kubernetes externally-visible service portals")
        .only_new(),
    Jump::new("filter", "INPUT", NODE_PORTS, "kubernetes health check service ports"),
    Jump::new("filter", "FORWARD", SERVICES, "kubernetes service portals").only_new(),
    Jump::new("filter", "OUTPUT", SERVICES, "kubernetes service portals").only_new(),
    Jump::new("filter", "FORWARD", FORWARD, "kubernetes forwarding rules"),
    Jump::new("filter", "INPUT", PROXY_FIREWALL, "kubernetes load balancer firewall").only_new(),
    Jump::new("filter", "OUTPUT", PROXY_FIREWALL, "kubernetes load balancer firewall").only_new(),
    Jump::new("filter", "FORWARD", PROXY_FIREWALL, "kubernetes load balancer firewall").only_new(),
    Jump::new("nat", "OUTPUT", SERVICES, "kubernetes service portals"),
    Jump::new("nat", "PREROUTING", SERVICES, "kubernetes service portals"),
    Jump::new("nat", "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    Jump::new("filter", "INPUT", FIREWALL, "").shared_with_kubelet(),
    Jump::new("filter", "OUTPUT", FIREWALL, "").shared_with_kubelet(),
];

/// Where the canary stands: if these chains vanish, somebody flushed the tables.
pub(super) const CANARY_TABLES: [&str; 3] = ["mangle", "nat", "filter"];

/// Chains of ours that hold no Service's own rules, by table; `cleanup` removes these.
pub(super) fn fixed_chains(table: &str) -> &'static [&'static str] {
    match table {
        "filter" => &[SERVICES, EXTERNAL_SERVICES, FORWARD, NODE_PORTS, PROXY_FIREWALL, CANARY],
        "nat" => &[SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ, CANARY],
        "mangle" => &[CANARY],
        _ => &[],
    }
}

/// Whether we keep the rule that shields 127.0.0.0/8; without localhost node ports it is kubelet's
/// alone.
pub(super) fn keeps_firewall(settings: &FamilySettings) -> bool {
    settings.family == IpFamily::V4 && settings.localhost_node_ports
}

/// The fixed rules of the filter table.
pub(super) fn write_filter(text: &mut Text, settings: &FamilySettings, features: &Features) {
    if keeps_firewall(settings) {
        line!(
            text,
            "-A {FIREWALL} -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 \
             ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
        );
    }
    if !features.be_liberal {
        // Without it, conntrack gives up on a connection whose window it lost sight of, and the
        // endpoint's answer goes out with the endpoint's own address.
        let counter = if features.counts_invalid {
            format!(" -m nfacct --nfacct-name {INVALID_DROPPED}")
        } else {
            String::new()
        };
        line!(text, "-A {FORWARD} -m conntrack --ctstate INVALID{counter} -j DROP");
    }
    let mark = masquerade::mark(features.masquerade_mark);
    line!(
        text,
        "-A {FORWARD} -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark}/{mark} -j ACCEPT"
    );
    line!(
        text,
        "-A {FORWARD} -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
         --ctstate RELATED,ESTABLISHED -j ACCEPT"
    );
}

/// The fixed rules of the nat table.
pub(super) fn write_nat(text: &mut Text, features: &Features) {
    masquerade::write(text, features.masquerade_mark, features.random_fully);
}

/// The end of the nat table's `KUBE-SERVICES`: what is left over and meant for this node goes to
/// the node ports.
pub(super) fn write_node_port_jump(text: &mut Text, plan: &Plan<'_>) {
    let comment = "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"";
    match plan.node_port_ips() {
        Some(ips) => {
            for ip in ips {
                line!(text, "-A {SERVICES} {comment} -d {ip} -j {NODE_PORTS}");
            }
        }
        None => {
            let except = match (plan.family(), plan.settings.localhost_node_ports) {
                (IpFamily::V6, _) => " ! -d ::1/128",
                (IpFamily::V4, false) => " ! -d 127.0.0.0/8",
                (IpFamily::V4, true) => "",
            };
            line!(text, "-A {SERVICES} {comment} -m addrtype --dst-type LOCAL{except} -j {NODE_PORTS}");
        }
    }
}

//! The rules that are there whatever the Services are: those that mark, masquerade, forward and protect.

use super::chains::{Chain, Fixed};
use super::names::{INVALID_DROPPED, MARK_MASQ, NODE_PORTS};
use crate::backend::masquerade::{self, loopback};
use crate::backend::rule::{Asks, Match, Name, Rule, States, Target};
use crate::model::IpFamily;
use crate::plan::{FamilySettings, Plan};

/// What the node's kernel and tools can do, and what the operator set. `Iptables::learn_options` finds out the options
/// (`random_fully`, the counters) whenever nothing is known of the kernel; all else is fixed from the start.
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

/// Whether we keep the rule that shields 127.0.0.0/8; without localhost node ports it is kubelet's
/// alone.
pub(super) fn keeps_firewall(settings: &FamilySettings) -> bool {
    settings.family == IpFamily::V4 && settings.localhost_node_ports
}

/// Takes one rule after the other, each with its chain.
pub(super) type Out<'o> = &'o mut dyn FnMut(Chain, Rule<'_>);

/// The rules of the chains that hold nothing else, but for `KUBE-POSTROUTING` and `KUBE-MARK-MASQ`.
fn filter_rules(settings: &FamilySettings, features: &Features, out: Out<'_>) {
    if keeps_firewall(settings) {
        let loopback = loopback(IpFamily::V4);
        let matches = [
            Match::comment("block incoming localnet connections"),
            Match::destination(loopback),
            Match::not(Asks::Source(loopback.into())),
            Match::not(Asks::State(States::KNOWN_OR_DNAT)),
        ];
        out(Chain::Fixed(Fixed::Firewall), Rule::new(&matches, Target::Drop));
    }
    let forward = Chain::Fixed(Fixed::Forward);
    if !features.be_liberal {
        // Without it, conntrack gives up on a connection whose window it lost sight of, and the
        // endpoint's answer goes out with the endpoint's own address.
        let counter = match features.counts_invalid {
            true => Asks::Count(Name::new(INVALID_DROPPED)),
            false => Asks::Nothing,
        };
        out(forward, Rule::new(&[Asks::State(States::INVALID).into(), counter.into()], Target::Drop));
    }
    let marked = masquerade::marked(features.masquerade_mark).into();
    out(forward, Rule::new(&[Match::comment("kubernetes forwarding rules"), marked], Target::Accept));
    let known = Asks::State(States::KNOWN).into();
    out(forward, Rule::new(&[Match::comment("kubernetes forwarding conntrack rule"), known], Target::Accept));
}

/// The rules of all chains that depend on settings only.
pub(super) fn fixed_rules(settings: &FamilySettings, features: &Features, out: Out<'_>) {
    filter_rules(settings, features, out);
    masquerade::rules(features.masquerade_mark, features.random_fully, &mut |chain, rule| {
        let chain = if chain == MARK_MASQ { Fixed::MarkMasq } else { Fixed::Postrouting };
        out(Chain::Fixed(chain), rule);
    });
}

/// The end of the nat table's `KUBE-SERVICES`: what is left over and meant for this node goes to
/// the node ports.
pub(super) fn node_port_jumps(plan: &Plan<'_>, out: Out<'_>) {
    let comment =
        Match::comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
    let mut jump = |matches: &[Match<'_>]| {
        out(Chain::Fixed(Fixed::Services), Rule::new(matches, Target::Jump(Name::new(NODE_PORTS))));
    };
    match plan.node_port_ips() {
        Some(ips) => ips.into_iter().for_each(|ip| jump(&[comment, Match::destination(ip)])),
        None => {
            let except = match (plan.family(), plan.settings.localhost_node_ports) {
                (IpFamily::V4, true) => Match::NOTHING,
                (family, _) => Match::not(Asks::Destination(loopback(family).into())),
            };
            jump(&[comment, Asks::DestinationIsLocal.into(), except]);
        }
    }
}

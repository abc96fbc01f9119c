//! What a plan wants, chain by chain, for people: to be compared with what the kernel has, and to walk
//! a packet through. The text is the one that is sent.

use super::base::{self, Features};
use super::chains::{Fixed, JUMPS};
use super::names::{ChainId, FIREWALL};
use super::render_inputs;
use crate::backend::KernelObject;
use crate::backend::packet_trace::{Packet, PacketTrace, Tables, TraceOutcome};
use crate::backend::rule::{Asks, Parsed};
use crate::kernel::iptables::Flavor;
use crate::plan::Plan;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Every chain that a plan needs, with its rules; built-in ones with the jumps that lead to ours.
pub(super) fn wanted(plan: &Plan<'_>, features: &Features) -> Vec<KernelObject> {
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut table = String::new();
    let inputs = render_inputs(plan, features, Flavor::Legacy);
    for line in inputs.iter().flat_map(|input| input.lines()) {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(declared) = line.strip_prefix(':') {
            let chain = declared.split(' ').next().unwrap_or_default();
            chains.entry(format!("{table} {chain}")).or_default();
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            chains.entry(format!("{table} {chain}")).or_default().push(rule.to_owned());
        }
    }
    for jump in
        JUMPS.iter().filter(|jump| !jump.is_shared_with_kubelet() || base::keeps_firewall(plan.settings))
    {
        // Each was inserted at the top, so the last one stands first.
        chains.entry(format!("{} {}", jump.table, jump.from)).or_default().insert(0, jump.arguments());
    }
    let object = |(name, lines): (String, Vec<String>)| {
        let chain = name.split(' ').nth(1).unwrap_or_default();
        KernelObject { is_shared: ChainId::parse(chain).is_none(), name, lines }
    };
    chains.into_iter().map(object).collect()
}

/// Whether nothing but our rules belongs in a chain (`table CHAIN`).
pub(super) fn is_ours_alone(object: &str) -> bool {
    let Some((table, chain)) = object.split_once(' ') else { return false };
    Fixed::parse(table, chain).is_some() && chain != FIREWALL
}

/// Whether a rule leads to a chain of the tree of networks, which a plan is compared without.
pub(super) fn leads_into_tree(rule: &str) -> bool {
    let parsed = Parsed::of(rule);
    parsed
        .rule()
        .target
        .chain()
        .and_then(|chain| ChainId::parse(&chain.to_string()))
        .is_some_and(|id| id.is_of_prefix())
}

/// Where a dispatch rule may be instead: the chain that leads on to the rule's destination, in the tree
/// that stands for a long `KUBE-SERVICES`. `None` when no rule among `found` leads there.
pub(super) fn branch(rule: &str, found: &[String]) -> Option<String> {
    let wanted = Parsed::of(rule);
    let destination = wanted.rule().asks().find_map(|it| match it.asks {
        Asks::Destination(network) if !it.is_negated => Some(network.cidr.addr()),
        _ => None,
    })?;
    found.iter().find_map(|line| {
        let parsed = Parsed::of(line);
        let rule = parsed.rule();
        let [asked] = rule.asks().collect::<Vec<_>>()[..] else { return None };
        let leads = matches!(asked.asks, Asks::Destination(net) if net.cidr.contains(&destination));
        rule.target.chain().filter(|_| leads && !asked.is_negated).map(ToString::to_string)
    })
}

/// What becomes of a packet on its way through these chains (names as [`wanted`] has them).
pub(super) fn trace(
    objects: &[KernelObject],
    packet: &Packet,
    node_addresses: &[IpAddr],
) -> Vec<TraceOutcome> {
    let mut tables = Tables::default();
    for object in objects {
        let Some((table, chain)) = object.name.split_once(' ') else { continue };
        tables.add_ours(table, chain, object.lines.iter().map(String::as_str));
    }
    let is_local = |address: IpAddr| address.is_loopback() || node_addresses.contains(&address);
    PacketTrace { tables: &tables, is_local: &is_local }.trace(packet, None)
}

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
use std::collections::{BTreeMap, HashMap};
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

/// What a rule does, as a hash.
pub(super) fn effect(line: &str) -> u64 {
    Parsed::of(line).rule().effect()
}

/// The lines of `wanted` that are not among `found`, and those of `found` that are not among `wanted`. What
/// stands in a chain that others share with us is never unwanted. Comments are left out when there are many
/// endpoints, and come back with the next full sync, so they make no difference.
pub(super) fn differences(wanted: &KernelObject, found: &[String]) -> (Vec<String>, Vec<String>) {
    let read = |lines: &[String]| lines.iter().map(|line| effect(line)).collect::<Vec<_>>();
    let (ours, theirs) = (read(&wanted.lines), read(found));
    let beyond = |lines: &[String], all: &[u64], other: &[u64]| {
        let mut left: HashMap<u64, usize> = HashMap::new();
        other.iter().for_each(|says| *left.entry(*says).or_default() += 1);
        let mut is_lacking = |says: &u64| match left.get_mut(says).filter(|count| **count > 0) {
            Some(count) => {
                *count -= 1;
                false
            }
            None => true,
        };
        let lacking = lines.iter().zip(all).filter(|(_, says)| is_lacking(says));
        lacking.map(|(line, _)| line.clone()).collect()
    };
    let missing = beyond(&wanted.lines, &ours, &theirs);
    let surplus = if wanted.is_shared { Vec::new() } else { beyond(found, &theirs, &ours) };
    (missing, surplus)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn object(lines: &[&str], is_shared: bool) -> KernelObject {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        KernelObject { name: "nat X".to_owned(), lines, is_shared }
    }

    fn strings(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_missing_and_a_surplus_rule_show() {
        let wanted = object(&["-j A", "-j B"], false);
        assert_eq!(differences(&wanted, &strings(&["-j A", "-j B"])), (vec![], vec![]));
        assert_eq!(
            differences(&wanted, &strings(&["-j A", "-j C"])),
            (strings(&["-j B"]), strings(&["-j C"]))
        );
        assert_eq!(differences(&wanted, &strings(&["-j A", "-j A", "-j B"])), (vec![], strings(&["-j A"])));
    }

    #[test]
    fn a_comment_makes_no_difference() {
        let (with, without) = ("-s 10.0.0.1 -m comment --comment a/b -j A", "-s 10.0.0.1 -j A");
        assert_eq!(differences(&object(&[with], false), &strings(&[without])), (vec![], vec![]));
        assert_eq!(differences(&object(&[without], false), &strings(&[with])), (vec![], vec![]));
    }

    #[test]
    fn rules_of_others_in_a_shared_chain_are_nothing_to_us() {
        let wanted = object(&["-j A"], true);
        assert_eq!(differences(&wanted, &strings(&["-j Z", "-j A"])), (vec![], vec![]));
        assert_eq!(differences(&wanted, &strings(&["-j Z"])), (strings(&["-j A"]), vec![]));
    }
}

//! The table as nft reads it: for people, and for tests.

use super::desired::ServiceElements;
use super::element::{ElementId, Item};
use super::layout::{self, Layout};
use super::names::SetId;
use super::{node_elements, render};
use crate::backend::KernelObject;
use crate::model::ServiceName;
use crate::plan::Plan;
use nftables_rs::{Chain, DataType, MapData, Set, SetFlags, SetType, TypeOf};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

/// Elements of a statement.
const ELEMENTS_A_LINE: usize = 32;

/// An element as nft writes it.
fn element((id, content): &Item) -> String {
    let mut text = id.key.to_string();
    if let Some(comment) = &content.comment {
        let _ = write!(text, " comment \"{}\"", nftables_rs::cut_comment(comment));
    }
    if let Some(to) = content.to {
        let _ = write!(text, " : {to}");
    }
    text
}

/// A Service's elements, by sets. Services share some.
fn by_sets(name: &ServiceName, elements: &ServiceElements, sets: &mut BTreeMap<SetId, BTreeSet<String>>) {
    for item in elements.items(name) {
        sets.entry(item.0.set).or_default().insert(element(&item));
    }
    for (protocol, endpoint) in elements.hairpins() {
        let id = ElementId::hairpin(protocol, endpoint);
        sets.entry(id.set).or_default().insert(id.key.to_string());
    }
}

/// What a plan of few Services needs, by sets. The numbers of endpoints are left out: which of them is which is no matter.
pub(super) fn wanted(plan: &Plan<'_>, counts: bool) -> Vec<KernelObject> {
    let mut sets = BTreeMap::new();
    for service in plan.services() {
        by_sets(service.name, &render::service(&service, counts), &mut sets);
    }
    let object = |(set, lines): (SetId, BTreeSet<String>)| KernelObject {
        name: format!("set {}", set.name()),
        lines: lines.iter().map(|line| without_number(set, line)).collect(),
        is_shared: true,
    };
    sets.into_iter().map(object).collect()
}

/// An element of a map of endpoints without its number.
pub(super) fn without_number(set: SetId, line: &str) -> String {
    match (set, line.split_once(" : ")) {
        (SetId::Endpoints(_), Some((key, to))) => {
            format!("{} : {to}", key.rsplit_once(" . ").map_or(key, |(at, _)| at))
        }
        _ => line.to_owned(),
    }
}

/// An element that was read.
pub(super) fn read_element(item: &Item) -> String {
    element(item)
}

/// How rules are written, by chain.
pub(super) fn rules(layout: &Layout) -> BTreeMap<String, Vec<String>> {
    let mut rules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    layout.visit(&mut |item| {
        if let layout::Item::Rule(rule, text) = item {
            let comment = rule.comment.map(|comment| format!(" comment \"{comment}\"")).unwrap_or_default();
            rules.entry(rule.chain.to_owned()).or_default().push(format!("{text}{comment}"));
        }
    });
    rules
}

/// The whole table, for a plan on a node with these addresses.
pub(super) fn table(plan: &Plan<'_>, layout: &Layout, addresses: Vec<IpAddr>) -> String {
    let mut text = format!("table {} {{\n\tcomment \"{}\"\n", layout.table, super::names::TABLE_COMMENT);
    for id in layout.sets.iter().copied() {
        layout.with_set(id, |set| text.push_str(&set_text(set)));
    }
    let rules = rules(layout);
    layout.visit(&mut |item| {
        if let layout::Item::Chain(chain) = item {
            text.push_str(&chain_text(chain, rules.get(chain.name).map_or(&[], Vec::as_slice)));
        }
    });
    text.push_str("}\n");
    let mut sets = BTreeMap::new();
    by_sets(&super::node_name(), &node_elements(addresses), &mut sets);
    for service in plan.services() {
        by_sets(service.name, &render::service(&service, layout.settings.counts), &mut sets);
    }
    for (set, lines) in sets {
        let lines: Vec<String> = lines.into_iter().collect();
        for lines in lines.chunks(ELEMENTS_A_LINE) {
            let (table, name) = (layout.table, set.name());
            let _ = writeln!(text, "add element {table} {name} {{ {} }}", lines.join(", "));
        }
    }
    text
}

fn chain_text(chain: &Chain<'_>, rules: &[String]) -> String {
    let mut text = format!("\n\tchain {} {{\n", chain.name);
    if let Some(base) = chain.base {
        let hook = format!("{:?}", base.hook).to_lowercase();
        let _ =
            writeln!(text, "\t\ttype {} hook {hook} priority {}; policy accept;", base.kind, base.priority);
    }
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
    text
}

fn set_text(set: &Set<'_>) -> String {
    let kind = if set.data.is_some() { "map" } else { "set" };
    let mut text = format!("\n\t{kind} {} {{\n\t\t{} {}", set.name, word(set.key), parts(set.key));
    if let Some(MapData::Value(data)) = set.data {
        let _ = write!(text, " : {}", parts(data));
    }
    text.push('\n');
    if let Some(size) = set.size {
        let _ = writeln!(text, "\t\tsize {size}");
    }
    if set.flags.contains(SetFlags::INTERVAL) {
        text.push_str("\t\tflags interval\n");
    }
    if set.flags.contains(SetFlags::DYNAMIC) {
        text.push_str("\t\tflags dynamic,timeout\n");
    }
    if set.counter {
        text.push_str("\t\tcounter\n");
    }
    if let Some(timeout) = set.timeout {
        let _ = writeln!(text, "\t\ttimeout {}s", timeout.as_secs());
    }
    if let Some(comment) = set.comment {
        let _ = writeln!(text, "\t\tcomment \"{comment}\"");
    }
    text.push_str("\t}\n");
    text
}

fn word(key: SetType<'_>) -> &'static str {
    match key {
        SetType::Types(_) => "type",
        SetType::TypeOf(_) => "typeof",
    }
}

fn parts(of: SetType<'_>) -> String {
    let words: Vec<String> = match of {
        SetType::Types(types) => types.iter().map(|part| type_word(*part).to_owned()).collect(),
        SetType::TypeOf(expressions) => expressions.iter().map(type_of_words).collect(),
    };
    words.join(" . ")
}

fn type_word(part: DataType) -> &'static str {
    match part {
        DataType::IPV4_ADDRESS => "ipv4_addr",
        DataType::IPV6_ADDRESS => "ipv6_addr",
        DataType::INET_PROTO => "inet_proto",
        DataType::INET_SERVICE => "inet_service",
        _ => "integer",
    }
}

fn type_of_words(part: &TypeOf) -> String {
    match part {
        TypeOf::Ipv4Destination => "ip daddr".to_owned(),
        TypeOf::Ipv6Destination => "ip6 daddr".to_owned(),
        TypeOf::DestinationPort => "th dport".to_owned(),
        TypeOf::L4Protocol => "meta l4proto".to_owned(),
        TypeOf::Numgen { modulus, .. } => format!("numgen random mod {modulus}"),
        other => format!("{other:?}"),
    }
}

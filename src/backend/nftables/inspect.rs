//! Reading the table for people who ask.

use super::Features;
use super::apply::write_rules;
use super::element::{self, Content};
use super::kernel_sets::KernelSets;
use super::layout::Layout;
use super::names::{Class, SetId, table};
use super::packet_trace::PacketTrace;
use super::text;
use crate::backend::mode::Inspection;
use crate::backend::{Difference, KernelObject, Packet, TraceOutcome};
use crate::kernel::nftables::Ruleset;
use crate::model::IpFamily;
use anyhow::{Context as _, Result, bail};
use nftables_rs::{Batch, Part, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

fn set_named(name: &str) -> Option<SetId> {
    let mut all = SetId::all(Class::LARGEST, &[]).chain(SetId::COUNTED);
    all.find(|id| id.name() == name).or_else(|| SetId::of_timeout(name))
}

/// What the kernel has of wanted elements.
pub(super) fn inspect(
    kernel: &mut impl Ruleset,
    family: IpFamily,
    wanted: &[KernelObject],
) -> Result<Inspection> {
    let mut inspection = Inspection::default();
    inspection.differences.extend(emptied_chains(kernel, family)?);
    for object in wanted {
        let Some(set) = object.name.strip_prefix("set ").and_then(set_named) else { continue };
        let Some(there) = lines(kernel, family, set)? else {
            inspection.differences.push(Difference::gone(object));
            continue;
        };
        let (found, missing): (Vec<String>, Vec<String>) =
            object.lines.iter().cloned().partition(|line| there.contains(line));
        let wanted: BTreeSet<&String> = object.lines.iter().filter(|_| !object.is_shared).collect();
        let beyond = there.iter().filter(|line| !object.is_shared && !wanted.contains(line));
        let surplus = beyond.cloned().collect();
        inspection.differences.extend(Difference::of(object, missing, surplus));
        inspection.found.push(KernelObject { lines: found, ..object.clone() });
    }
    Ok(inspection)
}

/// Chains that have rules whatever the settings, and have none: packets do not get to the sets there.
fn emptied_chains(kernel: &mut impl Ruleset, family: IpFamily) -> Result<Vec<Difference>> {
    let mut filled = BTreeSet::new();
    kernel.rules(table(family), &mut |part| match part {
        Part::Start => filled.clear(),
        Part::Item(rule) => _ = filled.insert(rule.chain.to_owned()),
    })?;
    let layout = Layout::bare(family, &Features::default());
    let mut usual = Batch::new();
    write_rules(&mut usual, &layout);
    let needed: BTreeSet<String> = usual.rules().map(|rule| rule.chain.to_owned()).collect();
    let texts = text::rules(&layout);
    let emptied = |chain: &String| {
        let lines = texts.get(chain.as_str()).cloned().unwrap_or_default();
        let object = KernelObject { name: format!("chain {chain}"), lines, is_shared: false };
        Difference { is_gone: false, ..Difference::gone(&object) }
    };
    Ok(needed.difference(&filled).map(emptied).collect())
}

/// A set's elements; `None` if it is not there.
fn lines(kernel: &mut impl Ruleset, family: IpFamily, set: SetId) -> Result<Option<BTreeSet<String>>> {
    let mut lines = BTreeSet::new();
    let is_there = kernel.elements(table(family), &set.name(), &mut |part| match part {
        Part::Start => lines.clear(),
        Part::Item(listed) => {
            if let Some((id, to)) = element::read(family, set, &listed.element) {
                let comment = listed.element.comment.map(Into::into);
                let line = text::read_element(&(id, Content { to, comment }));
                lines.insert(text::without_number(set, &line));
            }
        }
    })?;
    Ok(is_there.then_some(lines))
}

/// Walks a packet through the rules and elements that are in the kernel.
pub(super) fn trace(
    kernel: &mut nftables_rs::Nftables,
    (family, addresses): (IpFamily, &[IpAddr]),
    packet: &Packet,
) -> Result<Vec<TraceOutcome>> {
    let mut rules = Batch::new();
    kernel.rules(table(family), None, &mut |part| match part {
        Part::Start => rules.clear(),
        Part::Item(rule) => {
            let expressions: Vec<_> = rule.expressions().map_while(Result::ok).collect();
            let (table, chain, comment) = (rule.table, rule.chain, rule.comment);
            rules.add_rule(&Rule { table, chain, expressions: &expressions, comment });
        }
    })?;
    if rules.is_empty() {
        bail!("the kernel has no table {}", table(family));
    }
    let texts = known_texts(family, &rules);
    let mut sets = KernelSets::of(kernel, family)?;
    let mut failed = None;
    let mut look_up = |set: &str, key: &[u8]| {
        sets.find(set, key).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            None
        })
    };
    let is_local = |address: IpAddr| address.is_loopback() || addresses.contains(&address);
    let outcomes = PacketTrace::new(&rules, &texts, (&mut look_up, &is_local)).trace(packet);
    failed.map_or(Ok(outcomes), |error| Err(error).context("a set of the table cannot be read"))
}

/// How those rules are written that are the same whatever the settings.
fn known_texts(family: IpFamily, rules: &Batch) -> BTreeMap<String, Vec<String>> {
    let counting = Features { counts: true, ..Features::default() };
    let layout = Layout::bare(family, &counting);
    let mut usual = Batch::new();
    write_rules(&mut usual, &layout);
    let mut known = BTreeMap::new();
    let texts = text::rules(&layout);
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for rule in usual.rules() {
        let place = places.entry(rule.chain.to_owned()).or_default();
        let text = texts.get(rule.chain).and_then(|texts| texts.get(*place));
        known.extend(text.map(|text| (words(&rule), text.clone())));
        *place += 1;
    }
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for rule in rules.rules() {
        let words = words(&rule);
        let text = known.get(&words).cloned().unwrap_or(words);
        found.entry(rule.chain.to_owned()).or_default().push(text);
    }
    found
}

fn words(rule: &nftables_rs::ListedRule<'_>) -> String {
    let steps: Vec<String> = rule.expressions().map_while(Result::ok).map(|it| format!("{it:?}")).collect();
    let comment = rule.comment.map(|comment| format!(" comment \"{comment}\"")).unwrap_or_default();
    format!("{}{comment}", steps.join(" "))
}

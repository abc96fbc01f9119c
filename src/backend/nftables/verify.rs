//! Whether the table still is as it was left. What others have changed is noted in the baseline, so that the next pass mends that and
//! nothing else.

use super::apply::write_rules;
use super::baseline::Baseline;
use super::desired::ServiceElements;
use super::element::ElementId;
use super::found::{Found, Print};
use super::layout::Layout;
use super::names::{SetId, TABLE};
use super::observe;
use crate::backend::{Drift, DriftKind};
use crate::kernel::nftables::Ruleset;
use crate::model::ServiceName;
use anyhow::Result;
use nftables_rs::Batch;

/// More elements of a set that are not ours are counted, not named.
const NAMED: usize = 3;

/// What other processes changed.
#[derive(Debug, Default)]
pub(super) struct Verified {
    pub(super) drift: Vec<Drift>,
    /// Nothing of what was there can be relied on.
    pub(super) is_lost: bool,
}

/// Compares sets, chains and rules: cheap in a cluster of any size.
pub(super) fn structure(
    kernel: &mut impl Ruleset,
    layout: &Layout,
    baseline: &mut Baseline,
) -> Result<Verified> {
    let mut verified = Verified::default();
    let mut note = |kind, name: &str, what: &str| verified.drift.push(Drift::new(kind, name, what));
    let found = observe::structure(kernel, layout)?;
    if !found.is_there || found.is_unfit {
        let what = if found.is_there { "was replaced" } else { "is gone" };
        note(DriftKind::Table, TABLE, what);
        return Ok(Verified { is_lost: true, ..verified });
    }
    let structure = &mut baseline.structure;
    for set in structure.sets.difference(&found.sets) {
        note(DriftKind::Set, &set.name(), "is gone");
    }
    for set in found.surplus_sets.difference(&structure.surplus_sets) {
        note(DriftKind::Set, set, "is not ours");
    }
    for chain in found.surplus_chains.difference(&structure.surplus_chains) {
        note(DriftKind::Chain, chain, "is not ours");
    }
    let mut expected = Batch::new();
    write_rules(&mut expected, layout);
    let differing = observe::differing_chains(kernel, layout, &expected)?;
    for chain in differing.iter().filter(|chain| !found.surplus_chains.contains(*chain)) {
        note(DriftKind::Chain, chain, "was changed");
    }
    structure.sets = found.sets;
    structure.surplus_sets = found.surplus_sets;
    structure.surplus_chains = found.surplus_chains;
    if !verified.drift.is_empty() {
        structure.rules = None;
    }
    Ok(verified)
}

/// A Service whose elements are not as they were written.
struct Damaged {
    name: ServiceName,
    elements: ServiceElements,
    there: Vec<(ElementId, Print)>,
    what: (SetId, String),
}

/// Compares all elements.
pub(super) fn elements(
    kernel: &mut impl Ruleset,
    layout: &Layout,
    baseline: &mut Baseline,
) -> Result<Vec<Drift>> {
    let read = observe::elements(kernel, layout.settings.family, &baseline.structure.sets)?;
    let mut left = read.found;
    let damaged: Vec<Damaged> =
        baseline.services().filter_map(|(name, elements)| compare(name, elements, &mut left)).collect();
    // Whatever was found before is among what is there now.
    baseline.found.clear();
    let mut drift: Vec<Drift> = damaged.iter().map(|it| of_set(it.what.0, it.what.1.clone())).collect();
    for damaged in damaged {
        baseline.damage(&damaged.name, &damaged.elements, damaged.there);
    }
    for (key, shared) in &mut baseline.hairpins {
        let is_there = read.hairpins.contains(key);
        if shared.is_there && !is_there {
            let id = ElementId::hairpin(key.0, key.1);
            drift.push(of_set(SetId::Hairpin, format!("lacks {}", id.key)));
        }
        shared.is_there = is_there;
    }
    for key in read.hairpins {
        let shared = baseline.hairpins.entry(key).or_default();
        if !std::mem::replace(&mut shared.is_there, true) {
            let id = ElementId::hairpin(key.0, key.1);
            drift.push(of_set(SetId::Hairpin, format!("has {}, which is not ours", id.key)));
        }
    }
    drift.extend(foreign(&left));
    baseline.found.absorb(left);
    Ok(drift)
}

fn of_set(set: SetId, what: String) -> Drift {
    Drift::new(DriftKind::Set, set.name(), what)
}

/// Takes a Service's elements from those that are there.
fn compare(name: &ServiceName, elements: ServiceElements, left: &mut Found) -> Option<Damaged> {
    let (mut there, mut what) = (Vec::new(), None);
    let whose = if name.namespace().is_empty() { "the node" } else { name.as_str() };
    for (id, content) in elements.items(name) {
        match left.remove(&id) {
            Some(print) => {
                if print != Print::of(&content) {
                    what.get_or_insert_with(|| (id.set, format!("has another {} of {whose}", id.key)));
                }
                there.push((id, print));
            }
            None => _ = what.get_or_insert_with(|| (id.set, format!("lacks {} of {whose}", id.key))),
        }
    }
    what.map(|what| Damaged { name: name.clone(), elements, there, what })
}

/// Elements that nothing of ours has.
fn foreign(left: &Found) -> Vec<Drift> {
    let mut drift = Vec::new();
    for same_set in left.ids().chunk_by(|a, b| a.set == b.set) {
        let Some(set) = same_set.first().map(|id| id.set) else { continue };
        for id in same_set.iter().take(NAMED) {
            drift.push(of_set(set, format!("has {}, which is not ours", id.key)));
        }
        if same_set.len() > NAMED {
            drift.push(of_set(set, format!("has {} more that are not ours", same_set.len() - NAMED)));
        }
    }
    drift.extend(
        left.strange().iter().map(|it| of_set(it.set, format!("has {:?}, which is not ours", it.key))),
    );
    drift
}

//! The table as nft reads it: for people, and for tests.

use super::element::Item;
use super::render;
use crate::backend::KernelObject;
use crate::plan::Plan;
use std::collections::BTreeMap;
use std::fmt::Write;

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

/// What a plan of few Services needs, by sets.
pub(super) fn wanted(plan: &Plan<'_>) -> Vec<KernelObject> {
    let mut sets: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for service in plan.services() {
        let part = render::service(&service);
        for item in part.items(service.name) {
            sets.entry(item.0.set).or_default().push(element(&item));
        }
        let hairpins = part.hairpins().into_iter();
        for (protocol, endpoint) in hairpins {
            let id = super::element::ElementId::hairpin(protocol, endpoint);
            sets.entry(id.set).or_default().push(id.key.to_string());
        }
    }
    let object = |(set, lines): (super::names::SetId, Vec<String>)| KernelObject {
        name: format!("set {}", set.name()),
        lines,
        is_shared: true,
    };
    sets.into_iter().map(object).collect()
}

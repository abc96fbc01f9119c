//! What separates a Service as it is to be from what is there of it, and many of them as one transaction.

use super::baseline::{Baseline, Old, hairpin_of};
use super::desired::ServiceElements;
use super::element::{Content, ElementId, Endpoint, Item};
use super::found::Print;
use crate::model::{Protocol, ServiceName};
use std::collections::BTreeSet;

/// What is to be done about one Service.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) name: ServiceName,
    /// What it is to be; `None` if nothing.
    pub(super) elements: Option<ServiceElements>,
    /// All that is there of it.
    old: Old,
    pub(super) delete: Vec<ElementId>,
    pub(super) add: Vec<Item>,
    /// Elements to add that other Services may have, too.
    pub(super) shared: BTreeSet<(Protocol, Endpoint)>,
}

impl Change {
    /// Compares a Service with what is there of it, which is taken from among what was found.
    pub(super) fn of(
        baseline: &mut Baseline,
        name: ServiceName,
        mut elements: Option<ServiceElements>,
    ) -> Change {
        let mut old = baseline.old(&name, elements.as_ref());
        let mut wanted = Vec::new();
        if let Some(elements) = &mut elements {
            elements.keep_numbers(&old.numbered);
            wanted = elements.items(&name);
        }
        old.items.sort_unstable_by_key(|(id, _)| *id);
        let is_old = |id: &ElementId| old.items.binary_search_by_key(id, |(id, _)| *id).is_ok();
        // What was found may be anyone's, as long as its key is ours.
        let claimed = wanted.iter().filter(|(id, _)| !is_old(id));
        let claimed: Vec<_> = claimed.filter_map(|(id, _)| Some((*id, baseline.found.remove(id)?))).collect();
        old.items.extend(claimed);
        old.items.sort_unstable_by_key(|(id, _)| *id);
        let shared = elements.as_ref().map(ServiceElements::hairpins).unwrap_or_default();
        let (delete, add) = compare(&old.items, wanted);
        Change { name, elements, old, delete, add, shared }
    }

    /// How many elements it changes.
    pub(super) fn len(&self) -> usize {
        self.delete.len() + self.add.len()
    }

    /// Makes it leave nothing of the Service.
    pub(super) fn take_back(&mut self) {
        self.elements = None;
        self.delete = self.old.items.iter().map(|(id, _)| *id).collect();
        self.add.clear();
        self.shared.clear();
    }

    /// Notes that it was carried out.
    pub(super) fn commit(self, baseline: &mut Baseline) {
        baseline.share(&self.old.hairpins, &self.shared);
        baseline.elements = (baseline.elements + self.add.len()).saturating_sub(self.delete.len());
        baseline.note(&self.name, self.elements.as_ref());
    }
}

/// What is to be deleted, and what is to be added after that. What has another content is replaced.
fn compare(old: &[(ElementId, Print)], wanted: Vec<Item>) -> (Vec<ElementId>, Vec<Item>) {
    let (mut delete, mut add) = (Vec::new(), Vec::new());
    let mut old = old.iter().peekable();
    for (id, content) in wanted {
        while let Some((gone, _)) = old.next_if(|(there, _)| *there < id) {
            delete.push(*gone);
        }
        match old.next_if(|(there, _)| *there == id) {
            Some((_, print)) if *print == Print::of(&content) => continue,
            Some(_) => delete.push(id),
            None => {}
        }
        add.push((id, content));
    }
    delete.extend(old.map(|(gone, _)| *gone));
    (delete, add)
}

/// Elements of a transaction, in the order in which they are written: those to delete, then those to add, each by sets.
#[derive(Debug, Default)]
pub(super) struct Writes<'a> {
    /// Each with its place among the changes; `None` if it is no Service's.
    pub(super) delete: Vec<(ElementId, Option<usize>)>,
    pub(super) add: Vec<(ElementId, &'a Content, Option<usize>)>,
}

/// Nothing besides a key.
static BARE: Content = Content { to: None, comment: None };

impl<'a> Writes<'a> {
    /// What changes come to. Shared elements are added with the first Service that needs them.
    pub(super) fn of(changes: &'a [Change], baseline: &Baseline) -> Writes<'a> {
        let mut writes = Writes::default();
        let mut shared = BTreeSet::new();
        for (index, change) in changes.iter().enumerate() {
            writes.delete.extend(change.delete.iter().map(|id| (*id, Some(index))));
            writes.add.extend(change.add.iter().map(|(id, content)| (*id, content, Some(index))));
            for (protocol, endpoint) in &change.shared {
                let is_there = baseline.hairpins.get(&(*protocol, *endpoint)).is_some_and(|it| it.is_there);
                if !is_there && shared.insert((*protocol, *endpoint)) {
                    writes.add.push((ElementId::hairpin(*protocol, *endpoint), &BARE, Some(index)));
                }
            }
        }
        writes.sort();
        writes
    }

    /// Deletes what is no Service's.
    pub(super) fn deleting(ids: &[ElementId]) -> Writes<'a> {
        let mut writes = Writes { delete: ids.iter().map(|id| (*id, None)).collect(), add: Vec::new() };
        writes.sort();
        writes
    }

    /// What Services share: deletes what none of them has any more, adds what others have deleted.
    pub(super) fn finish(&mut self, changes: &[Change], baseline: &Baseline) {
        let added: BTreeSet<_> = self.added_hairpins().collect();
        for (key, shared) in &baseline.hairpins {
            let id = ElementId::hairpin(key.0, key.1);
            match (users(*key, shared.users, changes), shared.is_there) {
                (0, true) => self.delete.push((id, None)),
                (1.., false) if !added.contains(key) => self.add.push((id, &BARE, None)),
                _ => {}
            }
        }
        self.sort();
    }

    fn sort(&mut self) {
        self.delete.sort_by_key(|(id, _)| id.set);
        self.add.sort_by_key(|(id, ..)| id.set);
    }

    /// Whose the element of this number is, of those to delete and to add in a row.
    pub(super) fn owner(&self, number: usize) -> Option<usize> {
        match number.checked_sub(self.delete.len()) {
            None => self.delete.get(number)?.1,
            Some(number) => self.add.get(number)?.2,
        }
    }

    /// Shared elements that it adds.
    pub(super) fn added_hairpins(&self) -> impl Iterator<Item = (Protocol, Endpoint)> + '_ {
        self.add.iter().filter_map(|(id, ..)| hairpin_of(id))
    }

    /// Shared elements that it deletes.
    pub(super) fn deleted_hairpins(&self) -> impl Iterator<Item = (Protocol, Endpoint)> + '_ {
        self.delete.iter().filter_map(|(id, _)| hairpin_of(id))
    }
}

/// How many Services have a shared element once these changes are carried out.
fn users(key: (Protocol, Endpoint), before: u32, changes: &[Change]) -> u32 {
    changes.iter().fold(before, |users, change| {
        let (lost, won) = (change.old.hairpins.contains(&key), change.shared.contains(&key));
        users.saturating_add(won.into()).saturating_sub(lost.into())
    })
}

//! What we believe is in the kernel.

use super::desired::{Numbered, ServiceElements};
use super::element::{ElementId, Endpoint, Item, Key};
use super::found::{Found, Print};
use super::layout::Settings;
use super::names::{Class, SetId};
use super::pack::Packed;
use crate::model::{Protocol, ServiceName};
use std::collections::{BTreeMap, BTreeSet};

/// An element that several Services may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shared {
    /// How many Services have it.
    pub(super) users: u32,
    pub(super) is_there: bool,
}

/// The table's own objects, as far as they are known.
#[derive(Debug)]
pub(super) struct Structure {
    pub(super) is_there: bool,
    /// It has other flags, or sets of our names of which other things are made: all has to be made again, in one transaction.
    pub(super) is_unfit: bool,
    /// It is to be owned, and its owner is gone.
    pub(super) is_orphan: bool,
    /// The netlink port of the other socket that owns it.
    pub(super) owner: Option<u32>,
    /// Those of our sets that are there.
    pub(super) sets: BTreeSet<SetId>,
    /// What the rules were made of; `None` if they are not known.
    pub(super) rules: Option<Settings>,
    /// Sets that are not ours.
    pub(super) surplus_sets: BTreeSet<String>,
    /// Chains that are not ours.
    pub(super) surplus_chains: BTreeSet<String>,
    /// The largest class that is needed.
    pub(super) largest: Class,
    /// Timeouts of affinity that are needed, in seconds.
    pub(super) timeouts: BTreeSet<u32>,
}

impl Default for Structure {
    fn default() -> Self {
        Structure {
            is_there: false,
            is_unfit: false,
            is_orphan: false,
            owner: None,
            sets: BTreeSet::new(),
            rules: None,
            surplus_sets: BTreeSet::new(),
            surplus_chains: BTreeSet::new(),
            largest: Class::USUAL,
            timeouts: BTreeSet::new(),
        }
    }
}

impl Structure {
    /// Forgets what Services need; those in a plan of all will say.
    pub(super) fn forget_needs(&mut self) {
        (self.largest, self.timeouts) = (Class::USUAL, BTreeSet::new());
    }

    /// Notes what a Service needs.
    pub(super) fn need(&mut self, elements: &ServiceElements) {
        let (largest, timeouts) = elements.needs();
        self.largest = self.largest.max(largest.unwrap_or(Class::USUAL));
        self.timeouts.extend(timeouts);
    }
}

/// What we believe is in the kernel.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    pub(super) structure: Structure,
    /// Each Service's elements, as last written.
    packed: BTreeMap<ServiceName, Packed>,
    /// Elements of no Service in `packed`.
    pub(super) found: Found,
    pub(super) hairpins: BTreeMap<(Protocol, Endpoint), Shared>,
    /// Services whose elements another process has changed. What is left of them is among those found.
    pub(super) damaged: BTreeSet<ServiceName>,
    /// How many elements are there.
    pub(super) elements: usize,
}

/// What is there of a Service.
#[derive(Debug, Default)]
pub(super) struct Old {
    pub(super) items: Vec<(ElementId, Print)>,
    pub(super) numbered: Numbered,
    pub(super) hairpins: BTreeSet<(Protocol, Endpoint)>,
}

impl Baseline {
    /// All Services that are known, with their elements.
    pub(super) fn services(&self) -> impl Iterator<Item = (&ServiceName, ServiceElements)> {
        self.packed.iter().map(|(name, packed)| (name, packed.unpack()))
    }

    /// What is there of a Service that is to be as `wanted`.
    pub(super) fn old(&mut self, name: &ServiceName, wanted: Option<&ServiceElements>) -> Old {
        if let Some(packed) = self.packed.get(name) {
            let elements = packed.unpack();
            return Old {
                items: prints(elements.items(name)),
                numbered: elements.numbered(),
                hairpins: elements.hairpins(),
            };
        }
        let (items, numbered) = wanted.map(|elements| self.found.take_lists(elements)).unwrap_or_default();
        Old { items, numbered, hairpins: BTreeSet::new() }
    }

    /// Notes that a Service now is as it says.
    pub(super) fn note(&mut self, name: &ServiceName, elements: Option<&ServiceElements>) {
        self.damaged.remove(name);
        match elements {
            Some(elements) => self.packed.insert(name.clone(), Packed::of(elements)),
            None => self.packed.remove(name),
        };
    }

    /// Forgets of a Service which elements it has; they are among those found then.
    pub(super) fn unsettle(&mut self, name: &ServiceName) {
        let Some(packed) = self.packed.remove(name) else { return };
        let elements = packed.unpack();
        self.found.extend(prints(elements.items(name)));
        self.release(&elements.hairpins());
    }

    /// The same of all.
    pub(super) fn unsettle_all(&mut self) {
        for (name, packed) in std::mem::take(&mut self.packed) {
            self.found.extend(prints(packed.unpack().items(&name)));
        }
        self.hairpins.values_mut().for_each(|shared| shared.users = 0);
    }

    /// Notes that another process has changed a Service's elements, and which of them are there now.
    pub(super) fn damage(
        &mut self,
        name: &ServiceName,
        elements: &ServiceElements,
        there: Vec<(ElementId, Print)>,
    ) {
        self.packed.remove(name);
        self.found.extend(there);
        self.release(&elements.hairpins());
        self.damaged.insert(name.clone());
    }

    fn release(&mut self, hairpins: &BTreeSet<(Protocol, Endpoint)>) {
        for hairpin in hairpins {
            if let Some(shared) = self.hairpins.get_mut(hairpin) {
                shared.users = shared.users.saturating_sub(1);
            }
        }
    }

    /// Notes which shared elements a Service had and has now.
    pub(super) fn share(
        &mut self,
        old: &BTreeSet<(Protocol, Endpoint)>,
        new: &BTreeSet<(Protocol, Endpoint)>,
    ) {
        self.release(old);
        for hairpin in new {
            self.hairpins.entry(*hairpin).or_default().users += 1;
        }
    }

    /// Whether Services are there.
    pub(super) fn holds_services(&self) -> bool {
        !self.packed.is_empty() || self.found.has_any_of(SetId::ClusterIps)
    }
}

/// What is there of elements that were written so.
fn prints(items: Vec<Item>) -> Vec<(ElementId, Print)> {
    items.into_iter().map(|(id, content)| (id, Print::of(&content))).collect()
}

/// The key of a shared element.
pub(super) fn hairpin_of(id: &ElementId) -> Option<(Protocol, Endpoint)> {
    match id.key {
        Key::Hairpin(protocol, endpoint) => Some((protocol, endpoint)),
        _ => None,
    }
}

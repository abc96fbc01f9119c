//! Elements that are in the kernel, of which it is not known for which Service.
//!
//! After a restart these are all: 70,000 for 10,000 Services of 5 endpoints. So they are held as the kernel has them, one record after
//! the other, and looked up by their order.

use super::desired::{Numbered, ServiceElements};
use super::element::{self, Content, ElementId, Endpoint};
use super::names::{Class, SetId};
use crate::model::IpFamily;
use nftables_rs::{Data, Element, Value};
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// What an element that is there has besides its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print {
    pub(super) to: Option<Endpoint>,
    /// A hash of its comment.
    comment: Option<u64>,
}

impl Print {
    pub(super) fn new(to: Option<Endpoint>, comment: Option<&str>) -> Self {
        let hash = |comment: &str| {
            let mut hasher = DefaultHasher::new();
            nftables_rs::cut_comment(comment).hash(&mut hasher);
            hasher.finish()
        };
        Print { to, comment: comment.map(hash) }
    }

    pub(super) fn of(content: &Content) -> Self {
        Print::new(content.to, content.comment.as_deref())
    }
}

/// An element of a set of ours that nothing of ours could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Strange {
    pub(super) set: SetId,
    pub(super) key: Value,
    pub(super) key_end: Option<Value>,
}

/// Elements, each once.
#[derive(Debug, Default)]
pub(super) struct Found {
    sets: BTreeMap<SetId, Records>,
    /// How many there are.
    left: usize,
    strange: Vec<Strange>,
}

impl Found {
    pub(super) fn insert(&mut self, id: ElementId, print: Print) {
        self.sets.entry(id.set).or_default().push(&id, print);
        self.left += 1;
    }

    pub(super) fn extend(&mut self, items: impl IntoIterator<Item = (ElementId, Print)>) {
        items.into_iter().for_each(|(id, print)| self.insert(id, print));
    }

    pub(super) fn remove(&mut self, id: &ElementId) -> Option<Print> {
        // Most of the time there is nothing.
        if self.left == 0 {
            return None;
        }
        let records = self.sets.get_mut(&id.set)?;
        self.left -= records.sort();
        let print = records.take(id)?;
        self.left -= 1;
        if self.left == 0 {
            self.sets.clear();
        }
        Some(print)
    }

    pub(super) fn insert_strange(&mut self, strange: Strange) {
        self.strange.push(strange);
    }

    pub(super) fn clear(&mut self) {
        *self = Found::default();
    }

    pub(super) fn strange(&self) -> &[Strange] {
        &self.strange
    }

    pub(super) fn take_strange(&mut self) -> Vec<Strange> {
        std::mem::take(&mut self.strange)
    }

    /// All, in order.
    pub(super) fn ids(&self) -> Vec<ElementId> {
        let mut ids: Vec<ElementId> = self
            .sets
            .iter()
            .flat_map(|(set, records)| records.ids().filter_map(|it| it.read(*set)))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    pub(super) fn has_any_of(&self, set: SetId) -> bool {
        self.sets.get(&set).is_some_and(|records| records.ids().next().is_some())
    }

    /// Takes over what another has.
    pub(super) fn absorb(&mut self, other: Found) {
        for (set, records) in other.sets {
            self.sets.entry(set).or_default().append(records);
        }
        self.left += other.left;
        self.strange.extend(other.strange);
    }

    pub(super) fn len(&self) -> usize {
        self.left
    }

    /// Takes all, in order.
    pub(super) fn take_all(&mut self) -> Vec<ElementId> {
        let ids = self.ids();
        (self.sets, self.left) = (BTreeMap::new(), 0);
        ids
    }

    /// Takes what looks like an earlier form of a Service's lists: the numbers of their destinations, and their classes.
    pub(super) fn take_lists(&mut self, wanted: &ServiceElements) -> (Vec<(ElementId, Print)>, Numbered) {
        let (mut taken, mut numbered) = (Vec::new(), Numbered::new());
        if self.left == 0 {
            return (taken, numbered);
        }
        for list in &wanted.lists {
            let (kind, at) = (list.kind(), list.at);
            let classes =
                Class::LARGEST.up_to().map(|class| ElementId::destination(SetId::Class(kind, class), at));
            taken.extend(classes.filter_map(|id| Some((id, self.remove(&id)?))));
            let endpoints = u32::try_from(list.endpoints.len()).unwrap_or(u32::MAX);
            let numbers = numbered.entry((list.is_local, at)).or_default();
            for number in 0.. {
                let id = ElementId::endpoint(kind, at, number);
                match self.remove(&id) {
                    Some(print) => {
                        numbers.extend(print.to.map(|to| (number, to)));
                        taken.push((id, print));
                    }
                    None if number >= endpoints => break,
                    None => {}
                }
            }
        }
        (taken, numbered)
    }
}

const IS_V6: u8 = 1;
const HAS_COMMENT: u8 = 2;
const IS_TAKEN: u8 = 4;
const IS_RANGE: u8 = 8;

/// Elements of one set. A record is a byte of flags, the key (and last key), where it leads to, each after its length, and the hash of the
/// comment.
#[derive(Debug, Default)]
struct Records {
    bytes: Vec<u8>,
    /// Where records begin. In the order of keys, if `is_sorted`; then each key is there once.
    places: Vec<u32>,
    is_sorted: bool,
}

impl Records {
    fn push(&mut self, id: &ElementId, print: Print) {
        let Ok(place) = u32::try_from(self.bytes.len()) else { return };
        let wire = element::wire(id, print.to);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        self.bytes.push(
            flag(wire.family == IpFamily::V6, IS_V6)
                | flag(print.comment.is_some(), HAS_COMMENT)
                | flag(wire.key_end.is_some(), IS_RANGE),
        );
        let empty = Value::EMPTY;
        let (key, last) = (wire.key.as_bytes(), wire.key_end.as_ref().unwrap_or(&empty).as_bytes());
        // Keys have at most 64 bytes.
        self.bytes.push((key.len() + last.len()) as u8);
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(last);
        let data = wire.data.as_ref().unwrap_or(&empty).as_bytes();
        self.bytes.push(data.len() as u8);
        self.bytes.extend_from_slice(data);
        self.bytes.extend(print.comment.into_iter().flat_map(u64::to_ne_bytes));
        self.places.push(place);
        self.is_sorted = false;
    }

    fn append(&mut self, other: Records) {
        let Ok(shift) = u32::try_from(self.bytes.len()) else { return };
        self.bytes.extend(other.bytes);
        self.places.extend(other.places.into_iter().map(|place| place + shift));
        self.is_sorted = shift == 0 && other.is_sorted;
    }

    /// Orders records, without those that were taken; of those with one key, the last stays. Says how many went that were there.
    fn sort(&mut self) -> usize {
        if self.is_sorted {
            return 0;
        }
        let Records { bytes, places, is_sorted } = self;
        let record = |place: &u32| Record::at(bytes, *place);
        places.retain(|place| record(place).is_some_and(|it| !it.is_taken()));
        let before = places.len();
        // The last of equal ones comes first.
        places.reverse();
        places.sort_by_key(|place| record(place).map(|it| it.keys));
        places.dedup_by_key(|place| record(place).map(|it| it.keys));
        *is_sorted = true;
        before - places.len()
    }

    fn take(&mut self, id: &ElementId) -> Option<Print> {
        let wire = element::wire(id, None);
        let mut keys = [0; 2 * 64];
        let mut len = 0;
        for value in std::iter::once(&wire.key).chain(&wire.key_end) {
            let bytes = value.as_bytes();
            keys.get_mut(len..len + bytes.len())?.copy_from_slice(bytes);
            len += bytes.len();
        }
        let keys = keys.get(..len)?;
        let record = |place: &u32| Record::at(&self.bytes, *place);
        let index =
            self.places.binary_search_by_key(&Some(keys), |place| record(place).map(|it| it.keys)).ok()?;
        let place = *self.places.get(index)?;
        let found = Record::at(&self.bytes, place).filter(|it| !it.is_taken())?;
        let print = Print { to: found.to(), comment: found.comment };
        *self.bytes.get_mut(usize::try_from(place).ok()?)? |= IS_TAKEN;
        Some(print)
    }

    /// Those that were not taken.
    fn ids(&self) -> impl Iterator<Item = Record<'_>> {
        self.places.iter().filter_map(|place| Record::at(&self.bytes, *place)).filter(|it| !it.is_taken())
    }
}

/// One of them.
#[derive(Clone, Copy)]
struct Record<'a> {
    flags: u8,
    keys: &'a [u8],
    data: &'a [u8],
    comment: Option<u64>,
}

impl<'a> Record<'a> {
    fn at(bytes: &'a [u8], place: u32) -> Option<Record<'a>> {
        let bytes = bytes.get(usize::try_from(place).ok()?..)?;
        let (flags, bytes) = bytes.split_first()?;
        let (len, bytes) = bytes.split_first()?;
        let (keys, bytes) = bytes.split_at_checked(usize::from(*len))?;
        let (len, bytes) = bytes.split_first()?;
        let (data, bytes) = bytes.split_at_checked(usize::from(*len))?;
        let comment = match flags & HAS_COMMENT {
            0 => None,
            _ => bytes.first_chunk().map(|hash| u64::from_ne_bytes(*hash)),
        };
        Some(Record { flags: *flags, keys, data, comment })
    }

    fn is_taken(&self) -> bool {
        self.flags & IS_TAKEN != 0
    }

    fn family(&self) -> IpFamily {
        if self.flags & IS_V6 == 0 { IpFamily::V4 } else { IpFamily::V6 }
    }

    fn to(&self) -> Option<Endpoint> {
        element::read_endpoint(self.family(), self.data)
    }

    fn read(&self, set: SetId) -> Option<ElementId> {
        let (key, key_end) = match self.flags & IS_RANGE {
            0 => (self.keys, None),
            _ => self.keys.split_at_checked(self.keys.len() / 2).map(|(first, last)| (first, Some(last)))?,
        };
        let data = (!self.data.is_empty()).then_some(Data::Value(self.data));
        let element = Element { key_end, data, ..Element::new(key) };
        element::read(self.family(), set, &element).map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::element::{Destination, Key};
    use super::super::names::{Kind, Plane};
    use super::*;
    use crate::model::Protocol;
    use proptest::prelude::*;
    use std::collections::BTreeMap as Reference;

    fn endpoint(is_v6: bool, last: u8) -> Endpoint {
        let address =
            if is_v6 { [0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into() } else { [10, 0, 0, last].into() };
        Endpoint { address, port: 80 }
    }

    /// Elements of all forms, few enough that some come twice.
    fn id(is_v6: bool, form: u8, number: u8) -> ElementId {
        let address = endpoint(is_v6, number).address;
        let service = Destination::Service { address, protocol: Protocol::Udp, port: 53 };
        let node_port = Destination::NodePort { protocol: Protocol::Tcp, port: 30_000 + u16::from(number) };
        let kind = |plane| Kind { plane, is_local: false };
        match form {
            0 => ElementId { set: SetId::ClusterIps, key: Key::Address(address) },
            1 => ElementId::endpoint(kind(Plane::Services), service, 7),
            2 => ElementId::endpoint(kind(Plane::NodePorts), node_port, number.into()),
            3 => ElementId { set: SetId::FirewallSources, key: Key::Source(service, address.into()) },
            4 => ElementId::destination(SetId::Masquerade(Plane::NodePorts), node_port),
            _ => ElementId {
                set: SetId::AffinityEndpoints(Plane::Services),
                key: Key::Endpoint(service, endpoint(is_v6, 9)),
            },
        }
    }

    fn print(id: ElementId, is_v6: bool, content: u8) -> Print {
        let to = matches!(id.set, SetId::Endpoints(_)).then(|| endpoint(is_v6, content));
        Print::new(to, content.is_multiple_of(2).then_some("shop/web").filter(|_| to.is_none()))
    }

    proptest! {
        /// Against a plain map.
        #[test]
        fn what_is_inserted_is_found_once(
            is_v6: bool,
            acts in proptest::collection::vec((0..4_u8, 0..6_u8, 0..5_u8, 0..4_u8), 0..80),
        ) {
            let (mut found, mut reference) = (Found::default(), Reference::new());
            for (act, form, number, content) in acts {
                let id = id(is_v6, form, number);
                match act {
                    0 | 1 => {
                        found.insert(id, print(id, is_v6, content));
                        reference.insert(id, print(id, is_v6, content));
                    }
                    2 => prop_assert_eq!(found.remove(&id), reference.remove(&id)),
                    _ => {
                        let mut other = Found::default();
                        other.absorb(std::mem::take(&mut found));
                        found.absorb(other);
                    }
                }
                let ids: Vec<_> = reference.keys().copied().collect();
                prop_assert_eq!(found.ids(), ids);
                let has = reference.keys().any(|id| id.set == SetId::ClusterIps);
                prop_assert_eq!(found.has_any_of(SetId::ClusterIps), has);
            }
            let ids: Vec<_> = reference.keys().copied().collect();
            prop_assert_eq!(found.take_all(), ids);
            prop_assert_eq!(found.len(), 0);
        }
    }
}

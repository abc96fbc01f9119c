//! One Service's elements of the table.

use super::element::{Content, Destination, ElementId, Endpoint, Item, Key};
use super::names::{Class, Kind, SetId};
use crate::model::{Protocol, ServiceName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Endpoints that traffic to a destination is balanced over. Their places are the numbers by which they are drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    /// Which of its ports it is of.
    pub(super) port: u16,
    pub(super) is_local: bool,
    pub(super) at: Destination,
    pub(super) endpoints: Vec<Endpoint>,
}

impl List {
    pub(super) fn kind(&self) -> Kind {
        Kind { plane: self.at.plane(), is_local: self.is_local }
    }

    pub(super) fn class(&self) -> Option<Class> {
        Class::of(self.endpoints.len())
    }
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) id: ElementId,
    /// Which of its ports it is of.
    pub(super) port: u16,
}

/// What is in the table for one Service; for the node, its own elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServiceElements {
    /// The names of its ports, as in comments after the Service's name; empty where a port has none.
    pub(super) ports: Vec<Box<str>>,
    /// One for each destination and kind of list; none is empty.
    pub(super) lists: Vec<List>,
    /// Sorted, each once; without those of classes, which follow from lists.
    pub(super) members: Vec<Member>,
}

/// What an element is commented with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    None,
    Service,
    Port,
}

/// Comments cost memory in the kernel and cannot be changed without replacing the element. So of a destination's elements, one or
/// two have one, which no change of endpoints replaces.
fn label(set: SetId) -> Label {
    match set {
        SetId::ClusterIps => Label::Service,
        SetId::Class(..)
        | SetId::Masquerade(_)
        | SetId::LocalPolicy(_)
        | SetId::Reject(_)
        | SetId::Drop(_)
        | SetId::Firewall => Label::Port,
        SetId::NodePortIps
        | SetId::Hairpin
        | SetId::Endpoints(_)
        | SetId::FirewallSources
        | SetId::Clients(_)
        | SetId::Affinity(..)
        | SetId::AffinityEndpoints(_)
        | SetId::Counted(_) => Label::None,
    }
}

/// The texts of one Service's comments.
struct Labels {
    service: Arc<str>,
    ports: Vec<Arc<str>>,
}

impl Labels {
    fn of(service: &ServiceName, ports: &[Box<str>]) -> Self {
        let text = |port: &str| match port.is_empty() {
            true => service.as_str().into(),
            false => format!("{service}:{port}").into(),
        };
        Labels { service: service.as_str().into(), ports: ports.iter().map(|port| text(port)).collect() }
    }

    fn comment(&self, set: SetId, port: u16) -> Option<Arc<str>> {
        match label(set) {
            Label::None => None,
            Label::Service => Some(self.service.clone()),
            Label::Port => self.ports.get(usize::from(port)).cloned(),
        }
    }
}

impl ServiceElements {
    /// All its elements but those that Services share, each once.
    pub(super) fn items(&self, service: &ServiceName) -> Vec<Item> {
        let labels = Labels::of(service, &self.ports);
        let mut items: Vec<Item> = Vec::new();
        for list in &self.lists {
            let kind = list.kind();
            if let Some(class) = list.class() {
                let set = SetId::Class(kind, class);
                let comment = labels.comment(set, list.port);
                items.push((ElementId::destination(set, list.at), Content { to: None, comment }));
            }
            let numbered = (0..).zip(&list.endpoints).map(|(number, endpoint)| {
                let content = Content { to: Some(*endpoint), comment: None };
                (ElementId::endpoint(kind, list.at, number), content)
            });
            items.extend(numbered);
        }
        let own = self.members.iter().filter(|member| member.id.set != SetId::Hairpin);
        items.extend(own.map(|member| {
            let comment = labels.comment(member.id.set, member.port);
            (member.id, Content { to: None, comment })
        }));
        items.sort_by_key(|(id, _)| *id);
        items.dedup_by_key(|(id, _)| *id);
        items
    }

    /// Those of its elements that other Services may have, too, each once.
    pub(super) fn hairpins(&self) -> BTreeSet<(Protocol, Endpoint)> {
        let hairpin = |member: &Member| match member.id.key {
            Key::Hairpin(protocol, endpoint) => Some((protocol, endpoint)),
            _ => None,
        };
        self.members.iter().filter_map(hairpin).collect()
    }

    /// The class of its largest list, and the timeouts of affinity that it has.
    pub(super) fn needs(&self) -> (Option<Class>, BTreeSet<u32>) {
        let timeout = |member: &Member| match member.id.set {
            SetId::Affinity(_, seconds) => Some(seconds),
            _ => None,
        };
        let largest = self.lists.iter().filter_map(List::class).max();
        (largest, self.members.iter().filter_map(timeout).collect())
    }

    /// Gives endpoints the numbers that they have already, as far as the numbers from 0 on have no gap.
    pub(super) fn keep_numbers(&mut self, old: &Numbered) {
        for list in &mut self.lists {
            if let Some(numbers) = old.get(&(list.is_local, list.at)) {
                list.endpoints = arrange(numbers, &list.endpoints);
            }
        }
    }

    /// The numbers of its endpoints.
    pub(super) fn numbered(&self) -> Numbered {
        let numbers = |list: &List| (0..).zip(list.endpoints.iter().copied()).collect();
        self.lists.iter().map(|list| ((list.is_local, list.at), numbers(list))).collect()
    }
}

/// The endpoints of lists by their numbers.
pub(super) type Numbered = HashMap<(bool, Destination), BTreeMap<u32, Endpoint>>;

/// Orders `wanted` so that as many as possible keep their number. Of a list that loses one endpoint, at most one
/// other gets another number: the last takes the place of the lost one.
fn arrange(old: &BTreeMap<u32, Endpoint>, wanted: &[Endpoint]) -> Vec<Endpoint> {
    let mut unplaced: BTreeSet<Endpoint> = wanted.iter().copied().collect();
    let len = unplaced.len();
    let mut places: Vec<Option<Endpoint>> = vec![None; len];
    for (place, number) in places.iter_mut().zip(0..) {
        *place = old.get(&number).copied().filter(|endpoint| unplaced.remove(endpoint));
    }
    // In the order in which they were wanted.
    let mut rest = wanted.iter().filter(|endpoint| unplaced.remove(*endpoint));
    places.into_iter().filter_map(|place| place.or_else(|| rest.next().copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(number: u8) -> Endpoint {
        Endpoint { address: [10, 0, 0, number].into(), port: 80 }
    }

    fn arranged(old: &[u8], wanted: &[u8]) -> Vec<u8> {
        let old = (0..).zip(old.iter().copied().map(endpoint)).collect();
        let wanted: Vec<_> = wanted.iter().copied().map(endpoint).collect();
        let last = |endpoint: Endpoint| match endpoint.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!(),
        };
        arrange(&old, &wanted).into_iter().map(last).collect()
    }

    #[test]
    fn endpoints_keep_their_numbers() {
        assert_eq!(arranged(&[], &[3, 1, 2]), [3, 1, 2]);
        assert_eq!(arranged(&[3, 1, 2], &[1, 2, 3, 4]), [3, 1, 2, 4], "one more comes last");
        assert_eq!(arranged(&[3, 1, 2, 4], &[1, 2, 4]), [4, 1, 2], "the last takes the place");
        assert_eq!(arranged(&[3, 1, 2], &[1, 3]), [3, 1]);
        assert_eq!(arranged(&[3, 1, 2], &[2, 3, 7]), [3, 7, 2], "one replaces the other");
        assert_eq!(arranged(&[3, 3, 1], &[1, 3]), [3, 1], "what stands twice counts once");
    }

    proptest! {
        #[test]
        fn every_endpoint_has_one_number_and_few_change(
            old in proptest::collection::vec(0..40_u8, 0..30),
            wanted in proptest::collection::btree_set(0..40_u8, 0..30),
        ) {
            let wanted: Vec<u8> = wanted.into_iter().collect();
            let found = arranged(&old, &wanted);
            let mut sorted = found.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &wanted);
            for (number, endpoint) in old.iter().enumerate().take(found.len()) {
                let is_first = old.iter().position(|it| it == endpoint) == Some(number);
                if is_first && wanted.contains(endpoint) {
                    prop_assert_eq!(found[number], *endpoint);
                }
            }
        }
    }
}

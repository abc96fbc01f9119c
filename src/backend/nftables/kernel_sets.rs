//! Looking keys up in the sets that are in the kernel, for a packet trace.

use super::names::table;
use super::packet_trace::{Found, Says};
use crate::model::IpFamily;
use nftables_rs::{Data, Element, Error, ListedElement, Nftables, Part, SetFlags};
use std::collections::{BTreeMap, HashMap};

/// Keys of one set that the kernel is asked for one by one. A trace that asks for more reads the list of the set: a question takes
/// some 100 µs, and a list as long as the set is large.
const MOST_ASKED: usize = 128;

/// The sets of a table.
pub(super) struct KernelSets<'k> {
    kernel: &'k mut Nftables,
    family: IpFamily,
    sets: BTreeMap<String, KernelSet>,
}

struct KernelSet {
    /// Bytes of a key.
    key_len: usize,
    /// A key is in it if it is within a range: only the kernel is asked.
    has_ranges: bool,
    asked: usize,
    elements: Option<HashMap<Vec<u8>, Found>>,
}

impl<'k> KernelSets<'k> {
    pub(super) fn of(kernel: &'k mut Nftables, family: IpFamily) -> Result<Self, Error> {
        let mut sets = BTreeMap::new();
        kernel.sets(table(family), &mut |part| match part {
            Part::Start => sets.clear(),
            Part::Item(set) => {
                let has_ranges = set.flags.contains(SetFlags::INTERVAL);
                let of = |key_len| KernelSet { key_len, has_ranges, asked: 0, elements: None };
                sets.extend(usize::try_from(set.key_len).map(|len| (set.name.to_owned(), of(len))));
            }
        })?;
        Ok(KernelSets { kernel, family, sets })
    }

    /// What the key that comes first of these bytes leads to.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    pub(super) fn find(&mut self, name: &str, bytes: &[u8]) -> Result<Option<Found>, Error> {
        let Some(set) = self.sets.get_mut(name) else { return Ok(None) };
        let Some(key) = bytes.get(..set.key_len) else { return Ok(None) };
        set.asked += 1;
        if !set.has_ranges && set.elements.is_none() && set.asked > MOST_ASKED {
            set.elements = Some(list(self.kernel, self.family, name)?);
        }
        if let Some(elements) = &set.elements {
            return Ok(elements.get(key).cloned());
        }
        let element = Element { key_end: set.has_ranges.then_some(key), ..Element::new(key) };
        let mut leads_to = Found::Data(Vec::new());
        let is_there = self.kernel.element(table(self.family), name, &element, &mut |listed| {
            leads_to = found(&listed);
        })?;
        Ok(is_there.then_some(leads_to))
    }
}

fn list(kernel: &mut Nftables, family: IpFamily, name: &str) -> Result<HashMap<Vec<u8>, Found>, Error> {
    let mut elements = HashMap::new();
    kernel.elements(table(family), name, &mut |part| match part {
        Part::Start => elements.clear(),
        Part::Item(listed) => _ = elements.insert(listed.element.key.to_vec(), found(&listed)),
    })?;
    Ok(elements)
}

fn found(listed: &ListedElement<'_>) -> Found {
    match listed.element.data {
        Some(Data::Value(bytes)) => Found::Data(bytes.to_vec()),
        Some(Data::Verdict(verdict)) => Found::Says(Says::of(verdict)),
        None => Found::Data(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    #[test]
    fn keys_are_found_alike_one_by_one_and_in_a_list() {
        in_fresh_netns(|| {
            run("nft add table ip kube-proxy
                 nft 'add map ip kube-proxy to { type inet_service : ipv4_addr; elements = { 80 : 10.0.0.1, 81 : 10.0.0.2 }; }'
                 nft 'add map ip kube-proxy says { type inet_service : verdict; elements = { 80 : drop }; }'
                 nft 'add set ip kube-proxy ranges { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }'");
            let mut kernel = Nftables::open().unwrap();
            let mut sets = KernelSets::of(&mut kernel, IpFamily::V4).unwrap();
            let mut find = |set, key: [u8; 4]| sets.find(set, &key).unwrap();
            let (port, other) = ([0, 80, 0, 0], [0, 82, 0, 0]);
            for _ in 0..MOST_ASKED {
                assert_eq!(find("to", port), Some(Found::Data(vec![10, 0, 0, 1])));
                assert_eq!(find("to", other), None);
                assert_eq!(find("says", port), Some(Found::Says(Says::Drop)));
                assert_eq!(find("says", other), None);
                assert_eq!(find("ranges", [10, 1, 2, 3]), Some(Found::Data(Vec::new())));
                assert_eq!(find("ranges", [11, 1, 2, 3]), None);
            }
            // By now, the lists have been read.
            run("nft flush map ip kube-proxy to
                 nft flush map ip kube-proxy says
                 nft flush set ip kube-proxy ranges");
            assert_eq!(find("to", [0, 81, 0, 0]), Some(Found::Data(vec![10, 0, 0, 2])));
            assert_eq!(find("says", port), Some(Found::Says(Says::Drop)));
            assert_eq!(find("ranges", [10, 1, 2, 3]), None);
            assert_eq!(find("unknown", port), None);
        });
    }
}

//! The tree that leads to the Services of a large cluster.
//!
//! One rule per Service in `KUBE-SERVICES` costs every new connection a walk over half of them.
//! From a threshold on, the rules stand in chains of their own instead, each for one network, and
//! the chains above send a packet there by its destination. A network is cut at a multiple of four
//! bits; one with few rules is not cut further, and a cut that separates nothing is left out.
//!
//! Nothing of the tree is stored but the destinations themselves: which networks have a chain, and
//! what it holds, follows from the destinations below it and below the network that encloses it.
//! So a change looks at one path only, and a tree that grew is equal to one that was built at once.

use super::names::ChainId;
use crate::backend::rule::{ChainHash, Match, Rule, Target};
use crate::model::{Cidr, IpFamily, ServiceName};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network with more rules than this is cut.
const MOST_RULES: usize = 16;
/// How many bits one cut looks at.
const CUT: u32 = 4;

/// A network whose prefix length is a multiple of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    /// Cuts above it. First in the order: a network comes after those that enclose it.
    level: u8,
    family: IpFamily,
    /// The network's address, at the upper end of the number.
    bits: u128,
}

impl Prefix {
    pub(super) fn root(family: IpFamily) -> Self {
        Prefix { level: 0, family, bits: 0 }
    }

    fn of(address: IpAddr) -> Self {
        let family = IpFamily::of(address);
        Prefix { level: deepest(family), family, bits: bits(address) }
    }

    pub(super) fn is_root(self) -> bool {
        self.level == 0
    }

    fn host_bits(self) -> u128 {
        u128::MAX.checked_shr(CUT * u32::from(self.level)).unwrap_or(0)
    }

    fn range(self) -> std::ops::RangeInclusive<u128> {
        self.bits..=(self.bits | self.host_bits())
    }

    /// The network of a level that encloses this one.
    fn above(self, level: u8) -> Self {
        let cut = Prefix { level, ..self };
        Prefix { bits: self.bits & !cut.host_bits(), ..cut }
    }

    /// The networks that a cut makes of this one.
    fn below(self) -> impl Iterator<Item = Prefix> {
        let level = self.level + 1;
        let place = move |number: u128| number << (128 - CUT * u32::from(level));
        (0..1 << CUT).map(move |number| Prefix { level, bits: self.bits | place(number), ..self })
    }

    #[cfg(test)]
    fn holds(self, address: IpAddr) -> bool {
        self.range().contains(&bits(address))
    }

    pub(super) fn cidr(self) -> Cidr {
        let length = u8::try_from(CUT).unwrap_or_default() * self.level;
        let address = match self.family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from_bits((self.bits >> 96) as u32)),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from_bits(self.bits)),
        };
        Cidr::new(address, length).unwrap_or_else(|_| Cidr::from(address))
    }

    /// Makes the rule that leads to its chain.
    pub(super) fn with_jump(self, take: impl FnOnce(&Rule<'_>)) {
        take(&Rule::new(&[Match::destination(self.cidr())], Target::Jump(self.chain().name())));
    }

    /// The name of its chain.
    pub(super) fn chain(self) -> ChainId {
        ChainId::of_prefix(self.level, &self.to_string())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cidr(), f)
    }
}

fn deepest(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 8,
        IpFamily::V6 => 32,
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The rules of one Service that a destination has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    service: ServiceName,
    rules: ChainHash,
}

impl Entry {
    fn count(&self) -> usize {
        count(self.rules)
    }
}

fn count(rules: ChainHash) -> usize {
    usize::try_from(rules.rules()).unwrap_or(usize::MAX)
}

/// Every destination that `KUBE-SERVICES` leads to.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    /// By address, then in the order of names.
    by_address: BTreeMap<u128, Box<[Entry]>>,
    /// Rules in all.
    rules: usize,
}

impl Destinations {
    /// Takes changes over.
    pub(super) fn commit(&mut self, edits: Edits) {
        self.rules = edits.rules;
        for (address, entries) in edits.by_address {
            if entries.is_empty() {
                self.by_address.remove(&address);
            } else {
                self.by_address.insert(address, entries.into());
            }
        }
    }
}

/// What changes of the destinations.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// All that an address has afterwards.
    by_address: BTreeMap<u128, Vec<Entry>>,
    /// Rules in all, afterwards.
    pub(super) rules: usize,
}

impl Edits {
    pub(super) fn of(base: &Destinations) -> Self {
        Edits { by_address: BTreeMap::new(), rules: base.rules }
    }

    /// Notes that a Service has these rules for an address from now on.
    pub(super) fn set(
        &mut self,
        base: &Destinations,
        service: &ServiceName,
        (address, rules): (IpAddr, ChainHash),
    ) {
        let address = bits(address);
        let known = || base.by_address.get(&address).map(|entries| entries.to_vec()).unwrap_or_default();
        let entries = self.by_address.entry(address).or_insert_with(known);
        let place = entries.binary_search_by(|entry| entry.service.cmp(service));
        self.rules += count(rules);
        match place {
            Ok(index) => {
                self.rules -= entries[index].count();
                entries[index].rules = rules;
                if rules.is_empty() {
                    entries.remove(index);
                }
            }
            Err(index) if !rules.is_empty() => {
                entries.reserve_exact(1);
                entries.insert(index, Entry { service: service.clone(), rules });
            }
            Err(_) => {}
        }
    }
}

/// What the chain of a network holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Jumps to these networks.
    Jumps(Vec<Prefix>),
    /// The rules of these Services, by destination.
    Rules(Vec<(IpAddr, ServiceName)>),
}

/// A chain of the tree to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrefixChain {
    pub(super) prefix: Prefix,
    pub(super) content: Content,
}

/// What changes of the tree.
#[derive(Debug, Default)]
pub(super) struct TreeChange {
    /// The smallest networks first, so that every jump finds its target; the root last.
    pub(super) write: Vec<PrefixChain>,
    /// The largest networks first.
    pub(super) delete: Vec<Prefix>,
    /// How many chains there are more, or fewer, afterwards, not counting the root.
    pub(super) grown_by: isize,
}

/// The tree of some destinations.
#[derive(Clone, Copy)]
pub(super) struct DispatchTree<'a> {
    family: IpFamily,
    base: &'a Destinations,
    edits: Option<&'a Edits>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Absent,
    Rules,
    Jumps,
}

impl<'a> DispatchTree<'a> {
    /// The tree as it is, or with edits.
    pub(super) fn new(family: IpFamily, base: &'a Destinations, edits: Option<&'a Edits>) -> Self {
        DispatchTree { family, base, edits }
    }

    /// The destinations in a network, each with what it has; in no order.
    fn within(self, prefix: Prefix) -> impl Iterator<Item = (u128, &'a [Entry])> {
        let edited = move |address: &u128| self.edits.is_some_and(|it| it.by_address.contains_key(address));
        let kept =
            self.base.by_address.range(prefix.range()).map(|(address, entries)| (*address, &**entries));
        let edits = self.edits.map(|edits| edits.by_address.range(prefix.range()));
        let edits = edits.into_iter().flatten().map(|(address, entries)| (*address, entries.as_slice()));
        kept.filter(move |(address, _)| !edited(address))
            .chain(edits.filter(|(_, entries)| !entries.is_empty()))
    }

    fn is_empty(self, prefix: Prefix) -> bool {
        self.within(prefix).next().is_none()
    }

    /// Whether it has too many rules for one chain.
    fn is_large(self, prefix: Prefix) -> bool {
        let rules = self.within(prefix).flat_map(|(_, entries)| entries).map(Entry::count);
        let mut sum = 0;
        prefix.is_root()
            || rules.into_iter().any(|rules| {
                sum += rules;
                sum > MOST_RULES
            })
    }

    /// The smallest network around all that is in this one.
    fn common(self, prefix: Prefix) -> Prefix {
        let edited = |address: &u128| self.edits.is_some_and(|it| it.by_address.contains_key(address));
        let kept = || {
            self.base.by_address.range(prefix.range()).map(|(address, _)| *address).filter(|it| !edited(it))
        };
        let edits = self.edits.map(|edits| edits.by_address.range(prefix.range())).into_iter().flatten();
        let mut new = edits.filter(|(_, entries)| !entries.is_empty()).map(|(address, _)| *address);
        let first = kept().next().into_iter().chain(new.clone().next()).min();
        let last = kept().next_back().into_iter().chain(new.next_back()).max();
        let (Some(first), Some(last)) = (first, last) else { return prefix };
        let equal = (first ^ last).leading_zeros() / CUT;
        let level = u8::try_from(equal).unwrap_or(u8::MAX).min(deepest(self.family));
        Prefix { bits: first, ..prefix }.above(level.max(prefix.level))
    }

    fn shape(self, prefix: Prefix) -> Shape {
        if prefix.is_root() {
            return Shape::Jumps;
        }
        if !self.is_large(prefix.above(prefix.level - 1)) || self.is_empty(prefix) {
            return Shape::Absent;
        }
        if !self.is_large(prefix) || prefix.level == deepest(self.family) {
            return Shape::Rules;
        }
        if self.common(prefix) == prefix { Shape::Jumps } else { Shape::Absent }
    }

    fn jumps(self, prefix: Prefix) -> Vec<Prefix> {
        let below = prefix.below().filter(|prefix| !self.is_empty(*prefix));
        below.map(|prefix| if self.is_large(prefix) { self.common(prefix) } else { prefix }).collect()
    }

    fn content(self, prefix: Prefix, shape: Shape) -> Content {
        if shape == Shape::Jumps {
            return Content::Jumps(self.jumps(prefix));
        }
        let mut rules: Vec<(u128, &ServiceName)> = Vec::new();
        for (address, entries) in self.within(prefix) {
            rules.extend(entries.iter().map(|entry| (address, &entry.service)));
        }
        rules.sort_unstable();
        let rules = rules.into_iter().map(|(address, service)| (self.address(address), service.clone()));
        Content::Rules(rules.collect())
    }

    fn address(self, bits: u128) -> IpAddr {
        match self.family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from_bits((bits >> 96) as u32)),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    /// Where the root leads.
    pub(super) fn root(self) -> Vec<Prefix> {
        self.jumps(Prefix::root(self.family))
    }

    /// The hash of the rules of a chain with this content.
    pub(super) fn hash(self, content: &Content) -> ChainHash {
        let mut hash = ChainHash::EMPTY;
        match content {
            Content::Jumps(prefixes) => {
                prefixes.iter().for_each(|prefix| prefix.with_jump(|rule| hash.push(rule)))
            }
            Content::Rules(rules) => rules.iter().for_each(|(address, service)| {
                let entries = self.base.by_address.get(&bits(*address));
                let entry = entries.and_then(|all| all.iter().find(|entry| entry.service == *service));
                hash.append(entry.map_or(ChainHash::EMPTY, |entry| entry.rules));
            }),
        }
        hash
    }

    /// Every chain of the tree, in the order in which they are written.
    pub(super) fn all(self) -> Vec<PrefixChain> {
        let mut open = vec![Prefix::root(self.family)];
        let mut chains = Vec::new();
        while let Some(prefix) = open.pop() {
            let content = self.content(prefix, self.shape(prefix));
            if let Content::Jumps(prefixes) = &content {
                open.extend(prefixes);
            }
            chains.push(PrefixChain { prefix, content });
        }
        chains.sort_unstable_by_key(|chain| std::cmp::Reverse(chain.prefix));
        chains
    }

    /// What separates the tree without its edits from the tree with them.
    pub(super) fn change(self) -> TreeChange {
        let old = DispatchTree { edits: None, ..self };
        let mut change = TreeChange::default();
        let Some(edits) = self.edits else { return change };
        for prefix in self.touched(old) {
            let (before, after) = (old.shape(prefix), self.shape(prefix));
            let rewritten = after == Shape::Rules && edits.by_address.range(prefix.range()).next().is_some();
            let redirected = || after == Shape::Jumps && old.jumps(prefix) != self.jumps(prefix);
            if after == Shape::Absent {
                change.delete.extend((before != Shape::Absent).then_some(prefix));
            } else if before != after || rewritten || redirected() {
                change.write.push(PrefixChain { prefix, content: self.content(prefix, after) });
            }
            change.grown_by += isize::from(after != Shape::Absent) - isize::from(before != Shape::Absent);
        }
        change.write.reverse();
        change
    }

    /// The networks whose chains the edits may change: those around an edited destination, and the
    /// networks below any that is cut now and was not, or the other way round.
    fn touched(self, old: DispatchTree<'_>) -> BTreeSet<Prefix> {
        let mut touched = BTreeSet::from([Prefix::root(self.family)]);
        for address in self.edits.iter().flat_map(|edits| edits.by_address.keys()) {
            let destination = Prefix::of(self.address(*address));
            for level in 1..=destination.level {
                let (part, whole) = (destination.above(level), destination.above(level - 1));
                let (was, is) = (old.is_large(whole), self.is_large(whole));
                if !was && !is {
                    break;
                }
                if was != is {
                    touched.extend(whole.below());
                }
                touched.insert(part);
            }
        }
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::generate::Generator;

    fn service(number: u64) -> ServiceName {
        ServiceName::new("ns", &format!("s-{number}"))
    }

    fn address(family: IpFamily, random: &mut Generator) -> IpAddr {
        // Dense in places, sparse in others, as Services' and load balancers' addresses are.
        let low = match random.below(3) {
            0 => random.below(40),
            1 => random.below(1 << 20),
            _ => 0x1234 + (random.below(3) << 16),
        };
        match family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + u32::try_from(low).unwrap())),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from_bits((0xfd00_u128 << 112) | u128::from(low))),
        }
    }

    fn rules(count: u64) -> ChainHash {
        let mut rules = ChainHash::EMPTY;
        (0..count).for_each(|_| rules.push(&Rule::new(&[], Target::Accept)));
        rules
    }

    fn random_edits(base: &Destinations, family: IpFamily, random: &mut Generator) -> Edits {
        let mut edits = Edits::of(base);
        for _ in 0..=random.below(30) {
            let service = service(random.below(20));
            edits.set(base, &service, (address(family, random), rules(random.below(4))));
        }
        edits
    }

    fn chains(tree: DispatchTree<'_>) -> BTreeMap<Prefix, Content> {
        tree.all().into_iter().map(|chain| (chain.prefix, chain.content)).collect()
    }

    #[test]
    fn a_tree_that_grows_and_shrinks_equals_one_that_is_built_at_once() {
        for seed in 0..16 {
            let family = IpFamily::ALL[usize::from(seed % 2 == 1)];
            let mut random = Generator::new(seed);
            let mut base = Destinations::default();
            let mut grown = chains(DispatchTree::new(family, &base, None));
            for round in 0..20 {
                let edits = random_edits(&base, family, &mut random);
                let change = DispatchTree::new(family, &base, Some(&edits)).change();
                let before = grown.len();
                for chain in change.write {
                    grown.insert(chain.prefix, chain.content);
                }
                for prefix in &change.delete {
                    assert!(grown.remove(prefix).is_some());
                }
                assert_eq!(change.grown_by, grown.len().cast_signed() - before.cast_signed());
                base.commit(edits);
                let built = chains(DispatchTree::new(family, &base, None));
                assert_eq!(grown, built, "seed {seed}, round {round}");
                let rules: usize = base.by_address.values().flat_map(|it| it.iter()).map(Entry::count).sum();
                assert_eq!(base.rules, rules);
            }
        }
    }

    #[test]
    fn every_destination_is_reached_over_few_rules() {
        for family in IpFamily::ALL {
            let mut random = Generator::new(5);
            let mut base = Destinations::default();
            let mut edits = Edits::of(&base);
            for number in 0..5000 {
                edits.set(&base, &service(number), (address(family, &mut random), rules(1)));
            }
            base.commit(edits);
            let tree = DispatchTree::new(family, &base, None);
            let chains = chains(tree);
            for bits in base.by_address.keys() {
                let address = tree.address(*bits);
                let (mut prefix, mut jumps) = (Prefix::root(family), 0);
                while let Content::Jumps(prefixes) = &chains[&prefix] {
                    let next: Vec<_> = prefixes.iter().filter(|prefix| prefix.holds(address)).collect();
                    assert_eq!(next.len(), 1, "{address} in {prefix}");
                    (prefix, jumps) = (*next[0], jumps + 1);
                }
                let Content::Rules(rules) = &chains[&prefix] else { unreachable!() };
                assert!(rules.iter().any(|(found, _)| *found == address));
                assert!(jumps <= 7, "{address} is {jumps} jumps away");
            }
        }
    }

    #[test]
    fn networks_read_as_prefixes() {
        let prefix = Prefix::of("10.96.17.5".parse().unwrap());
        assert_eq!(prefix.above(5).to_string(), "10.96.16.0/20");
        assert_eq!(prefix.to_string(), "10.96.17.5/32");
        assert_eq!(Prefix::of("fd00:96::1".parse().unwrap()).above(8).to_string(), "fd00:96::/32");
        assert_eq!(Prefix::root(IpFamily::V4).to_string(), "0.0.0.0/0");
    }
}

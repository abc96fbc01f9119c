//! The jumps from built-in chains to ours.

use super::listing::{self, SharedRule};
use super::rule::{Asks, Match, Name, Parsed, Rule, States, Target};
use crate::kernel::iptables::{Place, Xtables};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

/// A jump from a built-in chain to one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jump {
    /// The table.
    pub(super) table: &'static str,
    /// The built-in chain.
    pub(super) from: &'static str,
    /// The chain it leads to.
    pub(super) to: &'static str,
    comment: &'static str,
    only_new: bool,
    shared: bool,
}

impl Jump {
    /// A jump for all packets; an empty comment is left out.
    pub(super) const fn new(
        table: &'static str,
        from: &'static str,
        to: &'static str,
        comment: &'static str,
    ) -> Self {
        Jump { table, from, to, comment, only_new: false, shared: false }
    }

    /// For the first packet of a connection only.
    pub(super) const fn only_new(self) -> Self {
        Jump { only_new: true, ..self }
    }

    /// Kubelet makes the same chain and jump.
    pub(super) const fn shared_with_kubelet(self) -> Self {
        Jump { shared: true, ..self }
    }

    /// Whether kubelet makes the same one, so that cleanup leaves it.
    pub(super) fn is_shared_with_kubelet(&self) -> bool {
        self.shared
    }

    fn matches(&self) -> [Match<'static>; 2] {
        let state = if self.only_new { Asks::State(States::NEW) } else { Asks::Nothing };
        let comment = if self.comment.is_empty() { Match::NOTHING } else { Match::comment(self.comment) };
        [state.into(), comment]
    }

    /// The rule's arguments, as the tool takes them after the chain's name.
    pub(super) fn arguments(&self) -> String {
        Rule::new(&self.matches(), self.target()).to_string()
    }

    /// The rule, as it stands in the built-in chain.
    pub(super) fn rule(&self) -> SharedRule {
        let hash = Rule::new(&self.matches(), self.target()).hash();
        SharedRule { table: self.table, chain: self.from, hash, jumps_to: Some(self.to) }
    }

    fn target(&self) -> Target {
        Target::Jump(Name::new(self.to))
    }

    fn place(&self) -> Place<'static> {
        Place { table: self.table, chain: self.from }
    }
}

/// Inserts those that are missing, each at the top of its chain, so that on an empty host they
/// stand in the reverse of this order. Starting a tool is what costs: one lists each built-in chain, and one
/// inserts all that are missing.
pub(super) async fn ensure(
    tools: &mut impl Xtables,
    jumps: impl IntoIterator<Item = &'static Jump>,
) -> Result<()> {
    let (mut listed, mut missing) = (BTreeMap::new(), Vec::new());
    for jump in jumps {
        let found = match listed.entry((jump.table, jump.from)) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(unknown) => {
                let mut found = BTreeSet::new();
                let mut take = |line: &str| found.extend(listing::rule_in(line).map(|(_, rule)| hash(rule)));
                tools.list(jump.table, Some(jump.from), &mut take).await?;
                unknown.insert(found)
            }
        };
        if !found.contains(&jump.rule().hash) {
            missing.push((jump.place(), jump.arguments()));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = missing.iter().map(|(place, arguments)| (*place, arguments.as_str())).collect();
    tools.insert_rules(&missing).await.context("inserting the jumps to our chains")
}

fn hash(rule: &str) -> u64 {
    Parsed::of(rule).rule().hash()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::iptables::FakeXtables;
    use crate::kernel::iptables::Flavor;

    const JUMPS: [Jump; 3] = [
        Jump::new("filter", "INPUT", "KUBE-A", "to A"),
        Jump::new("filter", "INPUT", "KUBE-B", "to B"),
        Jump::new("filter", "OUTPUT", "KUBE-A", "to A"),
    ];

    #[tokio::test]
    async fn what_is_missing_is_inserted_at_the_top_in_one_input() {
        let mut tools = FakeXtables::new(Flavor::Nft);
        for chain in ["KUBE-A", "KUBE-B"] {
            tools.ensure_chain(Place { table: "filter", chain }).await.unwrap();
        }
        // Leads there, but says something else.
        tools.meddle("filter", |filter| filter.get_mut("INPUT").unwrap().push("-j KUBE-A".to_owned()));
        ensure(&mut tools, &JUMPS).await.unwrap();
        let [a, b, output] = JUMPS.map(|jump| jump.arguments());
        assert_eq!(tools.rules("filter", "INPUT"), [b.as_str(), &a, "-j KUBE-A"]);
        assert_eq!(tools.rules("filter", "OUTPUT"), [output]);
        let before = tools.stamp().unwrap();
        ensure(&mut tools, &JUMPS).await.unwrap();
        assert_eq!(tools.stamp().unwrap(), before, "all stand");
    }
}

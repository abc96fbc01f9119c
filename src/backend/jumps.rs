//! The jumps from built-in chains to ours.

use super::rule::{Asks, Match, Name, Rule, States, Target};
use crate::kernel::iptables::{self, Place, Xtables};
use crate::kernel::nft::Part;
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
        Rule::new(&self.matches(), Target::Jump(Name::new(self.to))).to_string()
    }

    fn place(&self) -> Place<'static> {
        Place { table: self.table, chain: self.from }
    }
}

/// Inserts those that are missing, each at the top of its chain, so that on an empty host they
/// stand in the reverse of this order. Starting a tool is what costs: one asks for each jump that
/// seems to be there, and one inserts all others.
pub(super) async fn ensure(
    tools: &mut impl Xtables,
    jumps: impl IntoIterator<Item = &'static Jump>,
) -> Result<()> {
    let mut missing = Vec::new();
    let mut targets = BTreeMap::new();
    for jump in jumps {
        let known = match targets.entry((jump.table, jump.from)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(leads_to(tools, jump.place())?),
        };
        // Only the tool can tell whether the rest of the rule is as it should be, too.
        let may_stand = known.as_ref().is_none_or(|known| known.contains(jump.to));
        let arguments = jump.arguments();
        if !(may_stand && tools.has_rule(jump.place(), &arguments).await?) {
            missing.push((jump.place(), arguments));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<_> = missing.iter().map(|(place, arguments)| (*place, arguments.as_str())).collect();
    tools.insert_rules(&missing).await.context("inserting the jumps to our chains")
}

/// The chains that a chain's rules jump to; `None` if telling would cost too much.
fn leads_to(tools: &mut impl Xtables, from: Place<'_>) -> Result<Option<BTreeSet<String>>> {
    let mut targets = BTreeSet::new();
    let mut look = |part: Part<iptables::Rule<'_>>| match part {
        Part::Start => targets.clear(),
        Part::Item(iptables::Rule { jumps_to, .. }) => targets.extend(jumps_to.map(str::to_owned)),
    };
    let seen = tools.visit_rules(from.table, Some(from.chain), &mut look)?;
    Ok(seen.then_some(targets))
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

//! The jumps from built-in chains to ours.

use crate::kernel::iptables::{Place, Rule, Xtables};
use crate::kernel::nft::Part;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

/// A jump that has to stand.
#[derive(Clone, Debug)]
pub(super) struct Jump {
    /// The table.
    pub(super) table: &'static str,
    /// The built-in chain.
    pub(super) from: &'static str,
    /// The chain it leads to.
    pub(super) to: &'static str,
    /// The rule's arguments, as the tool takes them after the chain's name.
    pub(super) arguments: String,
}

impl Jump {
    fn place(&self) -> Place<'static> {
        Place { table: self.table, chain: self.from }
    }
}

/// Inserts those that are missing, each at the top of its chain, so that on an empty host they
/// stand in the reverse of this order. Starting a tool is what costs: one asks for each jump that
/// seems to be there, and one inserts all others.
pub(super) async fn ensure(tools: &mut impl Xtables, jumps: &[Jump]) -> Result<()> {
    let mut missing = Vec::new();
    let mut targets = BTreeMap::new();
    for jump in jumps {
        let known = match targets.entry((jump.table, jump.from)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(leads_to(tools, jump.place())?),
        };
        // Only the tool can tell whether the rest of the rule is as it should be, too.
        let may_stand = known.as_ref().is_none_or(|known| known.contains(jump.to));
        if !(may_stand && tools.has_rule(jump.place(), &jump.arguments).await?) {
            missing.push((jump.place(), jump.arguments.as_str()));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    tools.insert_rules(&missing).await.context("inserting the jumps to our chains")
}

/// The chains that a chain's rules jump to; `None` if telling would cost too much.
fn leads_to(tools: &mut impl Xtables, from: Place<'_>) -> Result<Option<BTreeSet<String>>> {
    let mut targets = BTreeSet::new();
    let mut look = |part: Part<Rule<'_>>| match part {
        Part::Start => targets.clear(),
        Part::Item(Rule { jumps_to, .. }) => targets.extend(jumps_to.map(str::to_owned)),
    };
    let seen = tools.visit_rules(from.table, Some(from.chain), &mut look)?;
    Ok(seen.then_some(targets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::iptables::FakeXtables;
    use crate::kernel::iptables::Flavor;

    fn jump(from: &'static str, to: &'static str) -> Jump {
        let arguments = format!("-m comment --comment \"to {to}\" -j {to}");
        Jump { table: "filter", from, to, arguments }
    }

    #[tokio::test]
    async fn what_is_missing_is_inserted_at_the_top_in_one_input() {
        let mut tools = FakeXtables::new(Flavor::Nft);
        let jumps = [jump("INPUT", "KUBE-A"), jump("INPUT", "KUBE-B"), jump("OUTPUT", "KUBE-A")];
        for chain in ["KUBE-A", "KUBE-B"] {
            tools.ensure_chain(Place { table: "filter", chain }).await.unwrap();
        }
        // Leads there, but says something else.
        tools.meddle("filter", |filter| filter.get_mut("INPUT").unwrap().push("-j KUBE-A".to_owned()));
        ensure(&mut tools, &jumps).await.unwrap();
        let wanted = [jumps[1].arguments.as_str(), &jumps[0].arguments, "-j KUBE-A"];
        assert_eq!(tools.rules("filter", "INPUT"), wanted);
        assert_eq!(tools.rules("filter", "OUTPUT"), [jumps[2].arguments.as_str()]);
        let before = tools.stamp().unwrap();
        ensure(&mut tools, &jumps).await.unwrap();
        assert_eq!(tools.stamp().unwrap(), before, "all stand");
    }
}

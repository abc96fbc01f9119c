//! What separates the baseline from what is wanted, and the order in which to mend it.

use super::baseline::Baseline;
use super::chains::{Fixed, Holds};
use super::desired::{ChainPrint, Desired, Fingerprint};
use super::dispatch_tree::{Content, DispatchTree, Edits, Prefix, PrefixChain};
use super::names::ChainId;
use crate::backend::rule::ChainHash;
use crate::model::ServiceName;
use crate::plan::Scope;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// How many rules a chain of a Service has, more or less. The tool's memory goes by the rules of an
/// input, so a chain with more of them, of the tree of networks, counts for several.
const RULES_OF_A_CHAIN: usize = 4;
/// So much larger than those of a first sync are the inputs of a change: nothing leads to what a
/// first sync writes, but behind the jumps of a change the kernel walks all chains for each input.
const LARGER_CHANGE: usize = 4;

/// What has to be done.
#[derive(Debug, Default)]
pub struct Changes {
    /// Make the jumps from the built-in chains and the canaries.
    pub(super) set_up: bool,
    /// Everything is looked at, against what an earlier run left.
    pub(super) is_full: bool,
    /// Chains to write of those that always stand.
    pub(super) fixed: BTreeSet<Fixed>,
    /// What changes of that to which `KUBE-SERVICES` leads.
    pub(super) edits: Edits,
    /// How many chains the tree has afterwards; `None` for no tree.
    pub(super) tree_chains: Option<usize>,
    /// Chains of the tree to write.
    pub(super) write_prefixes: Vec<PrefixChain>,
    /// Where `KUBE-SERVICES` leads if there is a tree.
    pub(super) root: Vec<Prefix>,
    /// Services of which something changed.
    pub(super) services: Vec<ServiceChange>,
    /// Chains that nothing will use any more.
    pub(super) delete: Vec<ChainId>,
    /// Services too large for one input, of which the next passes write more.
    pub(super) unfinished: BTreeSet<ServiceName>,
    /// Those of them that nothing leads to yet.
    pub(super) withheld: BTreeSet<ServiceName>,
    /// Among the chains to delete are some that foreign rules may refer to.
    pub(super) deletes_strays: bool,
    /// Chains of earlier runs that stay until no Service is unfinished: it may still use them.
    pub(super) postponed: BTreeSet<ChainId>,
}

/// What changes of one Service.
#[derive(Debug)]
pub(super) struct ServiceChange {
    pub(super) name: ServiceName,
    /// What it is then; `None` when it is gone.
    pub(super) print: Option<Arc<Fingerprint>>,
    /// Its chains to write.
    pub(super) write: Vec<ChainId>,
    /// Its rules in dispatch chains change.
    pub(super) dispatch: bool,
}

impl ServiceChange {
    /// How many chains its rules name, written or jumped to, at most: the tool looks each of them up.
    fn names(&self) -> usize {
        let print = self.print.as_ref().filter(|_| !self.write.is_empty());
        print.map_or(0, |print| print.chains.len())
    }
}

/// One input for iptables-restore; each table of it takes effect as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Chains to write of those that always stand.
    pub(super) fixed: BTreeSet<Fixed>,
    /// Which of `Changes::write_prefixes` to write.
    pub(super) prefixes: Range<usize>,
    /// Which of `Changes::services` to write.
    pub(super) services: Vec<usize>,
    /// Which of `Changes::delete` to delete.
    pub(super) delete: Range<usize>,
}

impl Changes {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let written = !(self.services.is_empty() && self.write_prefixes.is_empty() && self.delete.is_empty());
        !(self.set_up || written) && self.fixed.is_empty()
    }

    /// Of a Service whose chains to write name more than `most` chains, only some are written, what is led to first.
    pub(super) fn between(baseline: &Baseline, desired: &Desired<'_>, most: usize) -> Self {
        let is_wanted = |chain: &Fixed| {
            let wanted = desired.fixed[chain.index()];
            chain.holds() != Holds::Nothing && wanted.is_some() && wanted != baseline.fixed[chain.index()]
        };
        let mut changes = Changes {
            set_up: !baseline.set_up,
            is_full: baseline.is_observed,
            fixed: Fixed::all().filter(is_wanted).collect(),
            edits: Edits::of(&baseline.destinations),
            ..Changes::default()
        };
        for (name, print) in &desired.services {
            changes.compare(baseline, name, (print.as_ref(), most));
        }
        if matches!(desired.plan.scope(), Scope::All) {
            changes.remove_missing(baseline, desired);
        }
        // Finished Services do not wait for unfinished ones.
        let Changes { services, unfinished, .. } = &mut changes;
        services.sort_by_key(|change| unfinished.contains(&change.name));
        changes.lead(baseline, desired);
        changes.delete_strays(baseline, desired);
        // What jumps goes before what is jumped to.
        changes.delete.sort_unstable();
        changes.delete.dedup();
        changes
    }

    /// Compares one Service.
    fn compare(
        &mut self,
        baseline: &Baseline,
        name: &ServiceName,
        (new, most): (Option<&Arc<Fingerprint>>, usize),
    ) {
        let old = baseline.services.get(name);
        if old == new {
            return;
        }
        let nothing = Fingerprint::default();
        let before = old.map_or(&nothing, |old| &**old);
        let mut write = new.map_or(Vec::new(), |new| new.chains_beyond(before));
        // What leads to it changes as a whole.
        let divisible =
            |new: &&Arc<Fingerprint>| !before.leads_somewhere() || before.dispatch == new.dispatch;
        let is_large = write.iter().map(|chain| chain.names()).sum::<usize>() > most;
        let next = new.filter(|_| is_large).filter(divisible).map(|new| {
            // One Service at a time.
            write = if self.unfinished.is_empty() {
                first_chains(std::mem::take(&mut write), most)
            } else {
                Vec::new()
            };
            self.unfinished.insert(name.clone());
            let next = before.advanced(new, &write, &baseline.strays);
            if next.dispatch.is_empty() {
                self.withheld.insert(name.clone());
            }
            Arc::new(next)
        });
        let new = next.as_ref().or(new);
        let after = new.map_or(&nothing, |new| &**new);
        let differs = |chain: &Fixed| before.in_chain(*chain) != after.in_chain(*chain);
        let differing: Vec<Fixed> = Fixed::all().filter(differs).collect();
        if differing.contains(&Fixed::Services) {
            let gone = before.destinations.iter().map(|(address, _)| (*address, ChainHash::EMPTY));
            gone.chain(after.destinations.iter().copied())
                .for_each(|it| self.edits.set(&baseline.destinations, name, it));
        }
        let kept: BTreeSet<ChainId> = after.ids().collect();
        self.delete.extend(before.ids().filter(|id| !kept.contains(id)));
        self.services.push(ServiceChange {
            name: name.clone(),
            write: write.iter().map(|chain| chain.id).collect(),
            print: new.cloned(),
            dispatch: !differing.is_empty(),
        });
        self.fixed.extend(differing);
    }

    /// Settles whether there is a tree, and what changes of it. What leads to Services stands in `KUBE-SERVICES` or there.
    fn lead(&mut self, baseline: &Baseline, desired: &Desired<'_>) {
        let family = desired.plan.family();
        let tree = DispatchTree::new(family, &baseline.destinations, Some(&self.edits));
        let old = DispatchTree::new(family, &baseline.destinations, None);
        let has_tree = self.edits.rules > desired.features.tree_threshold;
        let (mut write, delete) = match (baseline.tree_chains, has_tree) {
            (None, false) => return,
            (Some(_), false) => (Vec::new(), old.all().into_iter().map(|chain| chain.prefix).rev().collect()),
            (None, true) => {
                let all = tree.all();
                self.tree_chains = Some(all.len().saturating_sub(1));
                (all, Vec::new())
            }
            (Some(known), true) => {
                let change = tree.change();
                self.tree_chains = Some(known.saturating_add_signed(change.grown_by));
                (change.write, change.delete)
            }
        };
        if baseline.tree_chains.is_some() && has_tree {
            // Services' rules are not in this chain, so that it is written only for other reasons.
            let own = Fixed::Services.index();
            let is_root_written = write.iter().any(|chain| chain.prefix.is_root());
            if desired.fixed[own] == baseline.fixed[own] && !is_root_written {
                self.fixed.remove(&Fixed::Services);
            } else {
                self.fixed.insert(Fixed::Services);
            }
            write.extend(damaged_prefixes(baseline, tree, &write));
        } else {
            self.fixed.insert(Fixed::Services);
        }
        if has_tree && self.fixed.contains(&Fixed::Services) {
            self.root = tree.root();
        }
        self.delete.extend(delete.into_iter().filter(|prefix: &Prefix| !prefix.is_root()).map(Prefix::chain));
        self.write_prefixes = write;
        self.write_prefixes.retain(|chain| !chain.prefix.is_root());
    }

    fn remove_missing(&mut self, baseline: &Baseline, desired: &Desired<'_>) {
        let wanted: BTreeSet<&ServiceName> = desired.services.iter().map(|(name, _)| name).collect();
        for name in baseline.services.keys().filter(|name| !wanted.contains(name)) {
            self.compare(baseline, name, (None, usize::MAX));
        }
    }

    fn delete_strays(&mut self, baseline: &Baseline, desired: &Desired<'_>) {
        let mut strays = baseline.surplus.clone();
        if matches!(desired.plan.scope(), Scope::All) {
            strays.extend(&baseline.strays);
        }
        if strays.is_empty() {
            return;
        }
        let finished = desired.services.iter().filter(|(name, _)| !self.unfinished.contains(name));
        let begun = self.services.iter().filter(|change| self.unfinished.contains(&change.name));
        let prints = finished.filter_map(|it| it.1.as_ref()).chain(begun.filter_map(|it| it.print.as_ref()));
        for id in prints.flat_map(|print| print.ids()) {
            strays.remove(&id);
        }
        for chain in &self.write_prefixes {
            strays.remove(&chain.prefix.chain());
        }
        if self.unfinished.is_empty() {
            self.deletes_strays = !strays.is_empty();
            self.delete.extend(strays);
        } else if !strays.is_empty() {
            // They may jump to what else is to go.
            strays.extend(self.delete.drain(..));
            self.postponed = strays;
        }
    }

    /// The inputs, in an order that is safe at every step. `most_chains` is how many chains one input of a first sync may
    /// name; a Service is never split.
    pub(super) fn steps(&self, most_chains: usize) -> Vec<Step> {
        let most_chains = most_chains.saturating_mul(if self.is_full { 1 } else { LARGER_CHANGE });
        let is_written = |index: &usize| !self.services[*index].write.is_empty();
        let all = Step {
            fixed: self.fixed.clone(),
            prefixes: 0..self.write_prefixes.len(),
            services: (0..self.services.len()).filter(is_written).collect(),
            delete: 0..self.delete.len(),
        };
        if self.weight(&all) > most_chains {
            return self.split(&all, most_chains);
        }
        // Foreign rules may refer to what is left of earlier runs, which must not stop the rest.
        let first = if self.deletes_strays { 0..0 } else { all.delete.clone() };
        let last = Step { delete: first.end..all.delete.end, ..Step::default() };
        [Step { delete: first, ..all }, last].into_iter().filter(|step| !step.is_empty()).collect()
    }

    /// A step whose input was refused, as steps about half as large; one that cannot be split is the only one.
    pub(super) fn halves(&self, step: &Step) -> Vec<Step> {
        self.split(step, (self.weight(step) / 2).max(1))
    }

    /// How many chains an input names.
    fn weight(&self, step: &Step) -> usize {
        let services = step.services.iter().map(|index| self.services[*index].names());
        let prefixes = self.write_prefixes[step.prefixes.clone()].iter().map(weight);
        services.chain(prefixes).sum::<usize>().saturating_add(step.delete.len())
    }

    /// Splits a step: what marks and masquerades first, then the Services' chains, then what leads into them (of a tree
    /// the smallest networks first, `KUBE-SERVICES` last), and only then what is left over goes.
    fn split(&self, step: &Step, most_chains: usize) -> Vec<Step> {
        let (dispatch, own): (BTreeSet<Fixed>, _) =
            step.fixed.iter().partition(|chain| chain.holds() == Holds::Dispatch);
        let names = step.services.iter().map(|index| self.services[*index].names());
        let services = batches(names, most_chains).into_iter().map(|range| step.services[range].to_vec());
        let prefixes = batches(self.write_prefixes[step.prefixes.clone()].iter().map(weight), most_chains);
        let prefixes = prefixes
            .into_iter()
            .map(|range| step.prefixes.start + range.start..step.prefixes.start + range.end);
        let deletes = step.delete.clone().step_by(most_chains);
        let deletes = deletes.map(|start| start..step.delete.end.min(start.saturating_add(most_chains)));
        let mut steps = vec![Step { fixed: own, ..Step::default() }];
        steps.extend(services.map(|services| Step { services, ..Step::default() }));
        steps.extend(prefixes.map(|prefixes| Step { prefixes, ..Step::default() }));
        steps.push(Step { fixed: dispatch, ..Step::default() });
        steps.extend(deletes.map(|delete| Step { delete, ..Step::default() }));
        steps.retain(|step| !step.is_empty());
        steps
    }
}

/// Those of a Service's chains that are written first: they name at most `most` chains, and jump only to each other
/// and to chains that stand.
fn first_chains(mut chains: Vec<ChainPrint>, most: usize) -> Vec<ChainPrint> {
    // None jumps to an earlier one.
    chains.sort_unstable_by_key(|chain| chain.id);
    let mut names = 0;
    let fits = |chain: &&ChainPrint| {
        let is_first = names == 0;
        names += chain.names();
        is_first || names <= most
    };
    chains.iter().rev().take_while(fits).copied().collect()
}

/// The chains of the tree that another program has changed, but for those that are written anyway.
fn damaged_prefixes(
    baseline: &Baseline,
    tree: DispatchTree<'_>,
    written: &[PrefixChain],
) -> Vec<PrefixChain> {
    if baseline.unknown_prefixes.is_empty() {
        return Vec::new();
    }
    let is_written = |prefix: Prefix| written.iter().any(|chain| chain.prefix == prefix);
    let is_damaged =
        |it: &PrefixChain| baseline.unknown_prefixes.contains(&it.prefix.chain()) && !is_written(it.prefix);
    tree.all().into_iter().filter(is_damaged).collect()
}

/// How many chains one of the tree counts for.
fn weight(chain: &PrefixChain) -> usize {
    let rules = match &chain.content {
        Content::Jumps(prefixes) => prefixes.len(),
        Content::Rules(rules) => rules.len(),
    };
    rules.div_ceil(RULES_OF_A_CHAIN).max(1)
}

/// Cuts a row of things into batches that weigh at most `most`; one that weighs more is a batch of its own.
fn batches(weights: impl Iterator<Item = usize>, most: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for (index, weight) in weights.enumerate() {
        match batches.last_mut() {
            Some(batch) if sum + weight <= most => (batch.end, sum) = (index + 1, sum + weight),
            _ => {
                batches.push(index..index + 1);
                sum = weight;
            }
        }
    }
    batches
}

impl Step {
    pub(super) fn only_deletes(&self) -> bool {
        self.fixed.is_empty() && self.prefixes.is_empty() && self.services.is_empty()
    }

    /// It writes chains of Services and nothing else.
    pub(super) fn only_services(&self) -> bool {
        self.fixed.is_empty() && self.prefixes.is_empty() && self.delete.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.only_deletes() && self.delete.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_full_but_not_overfull() {
        let cut = |weights: &[usize]| batches(weights.iter().copied(), 10);
        assert!(cut(&[]).is_empty());
        assert_eq!(cut(&[4, 4, 2, 1]), [0..3, 3..4]);
        assert_eq!(cut(&[3, 50, 3, 7]), [0..1, 1..2, 2..4], "one that weighs too much stands alone");
        assert_eq!(batches([4, 5000].into_iter(), usize::MAX).len(), 1);
    }
}

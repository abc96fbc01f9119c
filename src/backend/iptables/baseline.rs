//! What we believe is in the kernel.

use super::chains::{Chain, Fixed, Holds, JUMPS};
use super::desired::{ChainPrint, Desired, Fingerprint, FixedPrint};
use super::diff::{Changes, ServiceChange, Step};
use super::dispatch_tree::{Content, Destinations, DispatchTree};
use super::names::ChainId;
use crate::backend::listing::{Expected, OurChains, SharedRule};
use crate::backend::rule::{ChainHash, Name};
use crate::model::{IpFamily, ServiceName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What we believe is in the kernel.
#[derive(Debug, Default)]
pub struct Baseline {
    /// The jumps and the canaries stand.
    pub(super) set_up: bool,
    pub(super) fixed: FixedPrint,
    pub(super) services: BTreeMap<ServiceName, Arc<Fingerprint>>,
    /// The Services that have rules in those dispatch chains in which few have some (`SPARSE`), so that these chains
    /// are written without asking every Service.
    pub(super) members: BTreeMap<Fixed, BTreeSet<ServiceName>>,
    /// What `KUBE-SERVICES` leads to.
    pub(super) destinations: Destinations,
    /// How many chains the tree has; `None` where all rules stand in `KUBE-SERVICES` itself.
    pub(super) tree_chains: Option<usize>,
    /// Chains of the tree whose content is not known.
    pub(super) unknown_prefixes: BTreeSet<ChainId>,
    /// Services that the next sync looks at, whatever its scope: a chain of theirs drifted, or they take several
    /// passes.
    pub(super) unfinished: BTreeSet<ServiceName>,
    /// Nothing has been written since the tables were looked at.
    pub(super) is_observed: bool,
    /// Per-Service chains that an earlier run left: those that no Service needs are deleted last.
    pub(super) strays: BTreeSet<ChainId>,
    /// Those that another program has filled meanwhile, or that an earlier run left: to be deleted as soon as no
    /// Service needs several passes.
    pub(super) surplus: BTreeSet<ChainId>,
    /// The Services' rules in the nat and the filter table.
    rules: [u32; 2],
}

/// Dispatch chains in which few Services have rules.
const SPARSE: [Fixed; 5] = [
    Fixed::FilterServices,
    Fixed::ExternalServices,
    Fixed::HealthCheckNodePorts,
    Fixed::ProxyFirewall,
    Fixed::NodePorts,
];

impl Baseline {
    /// The names of chains were found, and nothing is known of their content.
    pub(super) fn observed(strays: BTreeSet<ChainId>) -> Self {
        Baseline { is_observed: true, strays, ..Baseline::default() }
    }

    /// With everything that is wanted, but for Services of which a chain is missing.
    pub(super) fn supposed(self, mut desired: Desired<'_>) -> Self {
        let is_found = |print: &Fingerprint| print.ids().all(|id| self.strays.contains(&id));
        desired.services.retain(|(_, print)| print.as_deref().is_some_and(is_found));
        let changes = Changes::between(&Baseline::default(), &desired, usize::MAX);
        let mut supposed = Baseline::default();
        supposed.commit(changes, desired.fixed, BTreeSet::new());
        let mut strays = self.strays;
        if supposed.tree_chains.is_some() {
            let tree = DispatchTree::new(desired.plan.family(), &supposed.destinations, None);
            tree.all().into_iter().for_each(|it| _ = strays.remove(&it.prefix.chain()));
        }
        Baseline { set_up: false, is_observed: true, strays, ..supposed }
    }

    /// Notes that a Service is now as printed, or gone.
    fn note(&mut self, name: ServiceName, print: Option<Arc<Fingerprint>>) {
        self.unfinished.remove(&name);
        if let Some(old) = self.services.remove(&name) {
            let gone = rules(&old);
            self.rules = [self.rules[0].saturating_sub(gone[0]), self.rules[1].saturating_sub(gone[1])];
            for members in self.members.values_mut() {
                members.remove(&name);
            }
        }
        if let Some(print) = print {
            for id in print.ids().filter(|_| !self.surplus.is_empty()).collect::<Vec<_>>() {
                self.surplus.remove(&id);
            }
            for (chain, _) in print.dispatch.iter().filter(|(chain, _)| SPARSE.contains(chain)) {
                self.members.entry(*chain).or_default().insert(name.clone());
            }
            let here = rules(&print);
            self.rules = [self.rules[0].saturating_add(here[0]), self.rules[1].saturating_add(here[1])];
            self.services.insert(name, print);
        }
    }

    /// Notes what some inputs wrote, of a run that did not come to its end.
    pub(super) fn commit_steps(&mut self, family: IpFamily, changes: &Changes, inputs: Vec<Step>) {
        self.set_up = true;
        for step in inputs {
            step.fixed.iter().for_each(|chain| self.fixed[chain.index()] = None);
            if !step.prefixes.is_empty() {
                // All of the tree is written again.
                let old = self
                    .tree_chains
                    .take()
                    .map(|_| DispatchTree::new(family, &self.destinations, None).all());
                let prefixes = old.iter().flatten().chain(&changes.write_prefixes);
                self.surplus.extend(prefixes.filter(|it| !it.prefix.is_root()).map(|it| it.prefix.chain()));
            }
            for change in step.services.iter().filter_map(|index| changes.services.get(*index)) {
                self.note_chains(change, changes);
            }
        }
    }

    /// Notes that the chains of a Service are written, and nothing else of it.
    fn note_chains(&mut self, change: &ServiceChange, changes: &Changes) {
        let written = change.write.iter().copied();
        match &change.print {
            Some(next) if !changes.unfinished.contains(&change.name) => {
                let old = self.services.remove(&change.name).unwrap_or_default();
                self.services.insert(change.name.clone(), Arc::new(old.with_chains(next, written)));
            }
            _ => self.surplus.extend(written),
        }
    }

    /// Notes that changes took effect, but for chains that could not be deleted.
    pub(super) fn commit(&mut self, changes: Changes, fixed: FixedPrint, stuck: BTreeSet<ChainId>) {
        (self.set_up, self.is_observed) = (true, false);
        self.fixed = fixed;
        self.strays.retain(|id| !changes.is_full && !changes.delete.contains(id));
        self.strays.extend(stuck);
        self.surplus.clear();
        self.unknown_prefixes.clear();
        self.tree_chains = changes.tree_chains;
        for change in changes.services {
            self.note(change.name, change.print);
        }
        self.unfinished = changes.unfinished;
        if !self.unfinished.is_empty() {
            self.surplus = changes.postponed;
        }
        self.destinations.commit(changes.edits);
    }

    /// All our rules of the nat and of the filter table, fixed ones included.
    pub(super) fn rules(&self) -> [usize; 2] {
        let jumps = self.tree_chains.unwrap_or_default();
        let fixed = |is_filter| {
            let of_table = Fixed::all().filter(move |chain| chain.is_filter() == is_filter);
            of_table.filter_map(|chain| self.fixed[chain.index()]).map(ChainHash::rules).sum::<u32>()
        };
        let sum = |rules: u32| usize::try_from(rules).unwrap_or(usize::MAX);
        // One jump leads to each chain of the tree.
        [sum(self.rules[0] + fixed(false)) + jumps, sum(self.rules[1] + fixed(true))]
    }

    /// What every chain has to hold, as far as it is known.
    pub(super) fn expected(&self, family: IpFamily) -> Vec<(Chain, Expected)> {
        let mut expected: Vec<_> =
            Fixed::all().filter_map(|chain| self.expected_fixed(family, chain)).collect();
        let own = |chain: &ChainPrint| match chain.is_unknown() {
            true => (Chain::Own(chain.id), Expected::Unknown),
            false => (Chain::Own(chain.id), Expected::Rules(chain.content)),
        };
        expected.extend(self.services.values().flat_map(|print| print.chains.iter()).map(own));
        expected.extend(self.surplus.iter().map(|id| (Chain::Own(*id), Expected::Unknown)));
        if self.tree_chains.is_some() {
            let tree = DispatchTree::new(family, &self.destinations, None);
            let prefixes = tree.all().into_iter().filter(|chain| !chain.prefix.is_root());
            expected.extend(prefixes.map(|chain| {
                let id = chain.prefix.chain();
                let is_unknown = self.unknown_prefixes.contains(&id);
                let hash = || Expected::Rules(tree.hash(&chain.content).short());
                (Chain::Own(id), if is_unknown { Expected::Unknown } else { hash() })
            }));
        }
        expected
    }

    /// `None` for a chain that is not ours to write.
    fn expected_fixed(&self, family: IpFamily, chain: Fixed) -> Option<(Chain, Expected)> {
        let key = Chain::Fixed(chain);
        if chain.holds() == Holds::Nothing {
            return Some((key, if self.set_up { Expected::Anything } else { Expected::Unknown }));
        }
        if chain.is_shared() {
            return None;
        }
        let Some(own) = self.fixed[chain.index()] else { return Some((key, Expected::Unknown)) };
        let mut hash = ChainHash::EMPTY;
        match (chain, self.tree_chains) {
            (Fixed::Services, Some(_)) => {
                let tree = DispatchTree::new(family, &self.destinations, None);
                hash.append(tree.hash(&Content::Jumps(tree.root())));
            }
            _ if chain.holds() == Holds::Dispatch => {
                self.services.values().for_each(|print| hash.append(print.in_chain(chain)));
            }
            _ => {}
        }
        hash.append(own);
        Some((key, Expected::Rules(hash.short())))
    }

    /// What the baseline knows of our chains, for looks at the tables.
    pub(super) fn chains(&self) -> TableChains {
        TableChains { firewall: self.fixed[Fixed::Firewall.index()] }
    }

    /// Notes that chains and shared rules are not as we left them: what they hold is unknown, and only that.
    pub(super) fn lose<'c>(&mut self, chains: impl Iterator<Item = &'c Chain>, shared: &[SharedRule]) {
        let mut own = BTreeSet::new();
        for chain in chains {
            match chain {
                Chain::Own(id) => _ = own.insert(*id),
                Chain::Fixed(chain) if chain.holds() == Holds::Nothing => self.set_up = false,
                Chain::Fixed(chain) => self.fixed[chain.index()] = None,
            }
        }
        for rule in shared {
            match rule.jumps_to {
                Some(_) => self.set_up = false,
                None => self.fixed[Fixed::Firewall.index()] = None,
            }
        }
        if !own.is_empty() {
            self.lose_own(own);
        }
    }

    fn lose_own(&mut self, mut lost: BTreeSet<ChainId>) {
        for (name, print) in &mut self.services {
            if !print.ids().any(|id| lost.contains(&id)) {
                continue;
            }
            let unknown = print.chains.iter().map(|chain| match lost.remove(&chain.id) {
                true => chain.unknown(),
                false => *chain,
            });
            let chains = unknown.collect();
            *print = Arc::new(Fingerprint { chains, ..Fingerprint::clone(print) });
            self.unfinished.insert(name.clone());
        }
        // What no Service has is of the tree, or another program made it.
        let (prefixes, surplus) = lost
            .into_iter()
            .partition::<BTreeSet<_>, _>(|id| self.tree_chains.is_some() && id.is_of_prefix());
        self.unknown_prefixes.extend(prefixes);
        self.surplus.extend(surplus);
    }
}

/// A Service's rules in the nat and the filter table.
fn rules(print: &Fingerprint) -> [u32; 2] {
    let in_table = |is_filter| {
        let dispatch = print.dispatch.iter().filter(move |(chain, _)| chain.is_filter() == is_filter);
        dispatch.map(|(_, hash)| hash.rules()).sum::<u32>()
    };
    [print.rules + in_table(false), in_table(true)]
}

/// The chains of iptables mode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TableChains {
    /// Our rule in kubelet's chain, if we keep one.
    firewall: Option<ChainHash>,
}

impl OurChains for TableChains {
    type Key = Chain;

    fn parse(&self, table: &str, chain: &str) -> Option<Chain> {
        let chain = Chain::parse(table, chain)?;
        (!matches!(chain, Chain::Fixed(chain) if chain.is_shared())).then_some(chain)
    }

    fn place(&self, chain: Chain) -> (&'static str, Name) {
        (chain.table(), chain.name())
    }

    fn tables(&self) -> &'static [&'static str] {
        &super::chains::TABLES
    }

    fn is_open(&self, chain: Chain) -> bool {
        matches!(chain, Chain::Fixed(chain) if chain.holds() == Holds::Nothing)
    }

    fn shared_rules(&self) -> Vec<SharedRule> {
        let firewall = self.firewall.into_iter().filter_map(ChainHash::only_rule).map(|hash| SharedRule {
            table: Fixed::Firewall.table(),
            chain: Fixed::Firewall.as_str(),
            hash,
            jumps_to: None,
        });
        let jumps = JUMPS.iter().filter(|jump| !jump.is_shared_with_kubelet());
        jumps.map(|jump| jump.rule()).chain(firewall).collect()
    }

    fn is_shared(&self, table: &str, chain: &str) -> bool {
        Fixed::parse(table, chain).is_some_and(Fixed::is_shared)
            || JUMPS.iter().any(|jump| (jump.table, jump.from) == (table, chain))
    }
}

//! What is wanted and what is there, as fingerprints.
//!
//! The rendered rules of a large cluster are tens of megabytes; nobody needs them twice. So both
//! sides hold a hash per chain, and the text is rendered again when it is sent.

use super::base::{self, Features};
use super::chains::{Chain, Fixed, JUMPS};
use super::diff::Changes;
use super::names::{CANARY, ChainId, MARK_MASQ};
use super::render::{self, Context};
use super::tree::Destinations;
use super::watch::OurChains;
use crate::backend::Refusal;
use crate::backend::kept::Kept;
use crate::backend::rule::{Asks, ChainHash, Rule};
use crate::backend::rule_count::RuleCount;
use crate::model::ServiceName;
use crate::plan::{Plan, Scope, ServicePlan};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Some rules, by hash and number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Print {
    hash: ChainHash,
    pub(super) count: RuleCount,
}

impl Print {
    fn add(&mut self, chain: Chain, rule: &Rule<'_>) {
        self.hash.push(rule);
        self.count.add(chain.name().as_str(), rule);
    }
}

/// One chain of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainPrint {
    pub(super) id: ChainId,
    content: [u8; 8],
}

/// One Service's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServicePrint {
    /// Its own chains, in the order in which they are written.
    pub(super) chains: Box<[ChainPrint]>,
    /// The rules in them.
    pub(super) count: RuleCount,
    /// Its rules in the nat table's `KUBE-SERVICES`, or in the tree that stands for it.
    pub(super) services: Print,
    /// The destinations of these, with how many rules each has.
    pub(super) destinations: Box<[(IpAddr, u16)]>,
    /// Its rules in the nat table's `KUBE-NODEPORTS`.
    pub(super) node_ports: Print,
    /// Its rules in the shared chains of the filter table.
    pub(super) filter: Print,
}

impl ServicePrint {
    fn of(service: &ServicePlan<'_>, context: Context<'_>) -> Self {
        let mut print = ServicePrint::default();
        let mut chains: Vec<(ChainId, ChainHash)> = Vec::new();
        render::chains(service, context, &mut |chain, rule| {
            let Chain::Own(id) = chain else { return };
            print.count.add(chain.name().as_str(), &rule);
            match chains.last_mut().filter(|(last, _)| *last == id) {
                Some((_, hash)) => hash.push(&rule),
                None => {
                    let mut hash = ChainHash::EMPTY;
                    hash.push(&rule);
                    chains.push((id, hash));
                }
            }
        });
        print.chains =
            chains.into_iter().map(|(id, hash)| ChainPrint { id, content: hash.short() }).collect();
        let mut destinations: Vec<(IpAddr, u16)> = Vec::new();
        render::dispatch(service, context, &mut |chain, rule| match chain {
            Chain::Fixed(Fixed::Services) => {
                print.services.add(chain, &rule);
                let Some(address) = destination(&rule) else { return };
                match destinations.iter_mut().find(|(known, _)| *known == address) {
                    Some((_, rules)) => *rules = rules.saturating_add(1),
                    None => destinations.push((address, 1)),
                }
            }
            Chain::Fixed(Fixed::NodePorts) => print.node_ports.add(chain, &rule),
            _ => print.filter.add(chain, &rule),
        });
        print.destinations = destinations.into();
        print
    }

    pub(super) fn nat_count(&self) -> RuleCount {
        self.count.plus(self.services.count).plus(self.node_ports.count)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ChainId> + '_ {
        self.chains.iter().map(|chain| chain.id)
    }

    /// Those of its chains that `old` does not have just so.
    pub(super) fn chains_beyond(&self, old: &ServicePrint) -> Vec<ChainId> {
        let new = self.chains.iter().filter(|chain| !old.chains.contains(chain));
        new.map(|chain| chain.id).collect()
    }
}

/// Where a rule leads to.
pub(super) fn destination(rule: &Rule<'_>) -> Option<IpAddr> {
    rule.asks().find_map(|it| match it.asks {
        Asks::Destination(network) => Some(network.cidr.addr()),
        _ => None,
    })
}

/// Rules that are there whatever the Services are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FixedPrint {
    pub(super) filter: Print,
    pub(super) nat: Print,
    /// The node-port jump at the end of the nat table's `KUBE-SERVICES`.
    pub(super) node_port_jump: Print,
}

/// Everything wanted within a plan's scope.
#[derive(Debug)]
pub struct Desired<'a> {
    pub(super) plan: Plan<'a>,
    pub(super) features: Features,
    pub(super) fixed: FixedPrint,
    /// In the order of names; `None` for a Service that this family has nothing of.
    pub(super) services: Vec<(ServiceName, Option<Arc<ServicePrint>>)>,
}

impl<'a> Desired<'a> {
    pub(super) fn of(plan: &Plan<'a>, features: &Features) -> Self {
        let mut desired = Desired {
            plan: *plan,
            features: features.clone(),
            fixed: FixedPrint::default(),
            services: Vec::new(),
        };
        desired.fixed = desired.print_fixed();
        let context = desired.context();
        let print = |service: &ServicePlan<'_>| Arc::new(ServicePrint::of(service, context));
        desired.services = match plan.scope() {
            Scope::All => plan.services().map(|it| (it.name.clone(), Some(print(&it)))).collect(),
            Scope::Only(names) => {
                names.iter().map(|name| (name.clone(), plan.service(name).as_ref().map(print))).collect()
            }
        };
        desired
    }

    /// The same plan for rules without options, as far as an input needs it; `None` if there are no options.
    pub(super) fn without_options(&self) -> Option<Self> {
        let features = self.features.without_options()?;
        Some(Desired { plan: self.plan, features, fixed: FixedPrint::default(), services: Vec::new() })
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context::new(self.plan.settings, &self.features, self.plan.endpoint_count)
    }

    fn print_fixed(&self) -> FixedPrint {
        let mut print = FixedPrint::default();
        base::fixed_rules(self.plan.settings, &self.features, &mut |chain, rule| {
            if chain.table() == "filter" { &mut print.filter } else { &mut print.nat }.add(chain, &rule);
        });
        base::node_port_jumps(&self.plan, &mut |chain, rule| print.node_port_jump.add(chain, &rule));
        print
    }
}

/// What we believe is in the kernel.
#[derive(Debug, Default)]
pub struct Baseline {
    /// The jumps and the canaries stand.
    pub(super) set_up: bool,
    pub(super) fixed: Option<FixedPrint>,
    pub(super) services: BTreeMap<ServiceName, Arc<ServicePrint>>,
    /// The Services that have rules in the shared chains of the filter table, and those that have
    /// some in `KUBE-NODEPORTS`: few, so these chains are written without asking every Service.
    pub(super) in_filter: BTreeSet<ServiceName>,
    pub(super) in_node_ports: BTreeSet<ServiceName>,
    /// What `KUBE-SERVICES` leads to.
    pub(super) destinations: Destinations,
    /// How many chains the tree has; `None` where all rules stand in `KUBE-SERVICES` itself.
    pub(super) nets: Option<usize>,
    /// Per-Service chains that were found and of which nothing else is known.
    pub(super) strays: BTreeSet<ChainId>,
    /// What has to be found of our chains; `None` when that is not known.
    pub(super) kept: Option<Kept<OurChains>>,
    /// Services that the kernel refused, and its words.
    pub(super) refused: BTreeMap<ServiceName, String>,
    /// The Services' rules in the nat and the filter table.
    pub(super) nat: RuleCount,
    pub(super) filter: RuleCount,
}

impl Baseline {
    /// What was found of earlier runs: names of chains, nothing of their content.
    pub(super) fn observed(strays: BTreeSet<ChainId>) -> Self {
        Baseline { strays, ..Baseline::default() }
    }

    /// Notes that a Service is now as printed, or gone.
    pub(super) fn note(&mut self, name: ServiceName, print: Option<Arc<ServicePrint>>) {
        if let Some(old) = self.services.remove(&name) {
            self.nat = self.nat.minus(old.nat_count());
            self.filter = self.filter.minus(old.filter.count);
            self.in_filter.remove(&name);
            self.in_node_ports.remove(&name);
        }
        if let Some(print) = print {
            if print.filter.count.rules > 0 {
                self.in_filter.insert(name.clone());
            }
            if print.node_ports.count.rules > 0 {
                self.in_node_ports.insert(name.clone());
            }
            self.nat = self.nat.plus(print.nat_count());
            self.filter = self.filter.plus(print.filter.count);
            self.services.insert(name, print);
        }
    }

    /// Notes that changes took effect, except for Services that were refused.
    pub(super) fn commit(
        &mut self,
        changes: Changes,
        fixed: FixedPrint,
        (refused, stuck): (&[Refusal], BTreeSet<ChainId>),
    ) {
        self.set_up = true;
        self.fixed = Some(fixed);
        self.strays = stuck;
        self.nets = changes.nets;
        let mut edits = changes.edits;
        for change in changes.services {
            self.refused.remove(&change.name);
            let refusal = refused.iter().find(|refusal| refusal.service == change.name);
            match refusal {
                Some(refusal) => {
                    let known = self.services.get(&change.name);
                    for print in known.into_iter().chain(change.print.as_ref()) {
                        for (address, _) in &print.destinations {
                            edits.set(&self.destinations, &change.name, (*address, 0));
                        }
                    }
                    self.refused.insert(change.name.clone(), refusal.reason.clone());
                    self.note(change.name, None);
                }
                None => self.note(change.name, change.print),
            }
        }
        self.destinations.commit(edits);
    }

    /// Compares how often our chains of a table are used with how often they should be. `Some`
    /// says how many rules are missing; more uses are rules of others that jump to our chains.
    pub(super) fn judge(&self, table: &str, found: RuleCount) -> Option<u32> {
        let expected = self.expected_uses(table);
        let missing = |expected: u32, found: u32| expected.saturating_sub(found);
        match missing(expected.uses, found.uses) + missing(expected.marks, found.marks) {
            0 => None,
            missing => Some(missing),
        }
    }

    /// All our rules of a table, fixed ones included.
    pub(super) fn count(&self, table: &str) -> RuleCount {
        let fixed = self.fixed.unwrap_or_default();
        match table {
            "nat" => self.nat.plus(fixed.nat.count).plus(fixed.node_port_jump.count).plus(self.tree_jumps()),
            _ => self.filter.plus(fixed.filter.count),
        }
    }

    /// The jumps within the tree: one leads to each of its chains.
    fn tree_jumps(&self) -> RuleCount {
        let jumps = small(self.nets.unwrap_or_default());
        RuleCount { rules: jumps, uses: jumps.saturating_mul(2), marks: 0 }
    }

    /// How often the chains of a table are used if everything of ours is in place: by their own
    /// rules, and by jumps from ours and from the built-in chains.
    fn expected_uses(&self, table: &str) -> RuleCount {
        let jumps = JUMPS.iter().filter(|jump| jump.table == table && !jump.is_shared_with_kubelet());
        let jumps = RuleCount { rules: 0, uses: small(jumps.count()), marks: 0 };
        self.count(table).plus(jumps)
    }
}

/// The uses that count of a chain with so many: all of our chains, except the canary, which is
/// not used, and the one that kubelet shares.
pub(super) fn counted(table: &str, chain: &str, uses: u32) -> RuleCount {
    let ours = Chain::parse(table, chain).is_some_and(|chain| chain != Chain::Fixed(Fixed::Firewall));
    match chain {
        MARK_MASQ => RuleCount { marks: uses, ..RuleCount::default() },
        CANARY => RuleCount::default(),
        _ if ours => RuleCount { uses, ..RuleCount::default() },
        _ => RuleCount::default(),
    }
}

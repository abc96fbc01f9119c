//! What is wanted, as fingerprints.
//!
//! The rendered rules of a large cluster are tens of megabytes, and are needed once, when they are sent. So what is
//! wanted and what is there are a hash per chain, and the text is rendered again when it is sent.

use super::base::{self, Features};
use super::chains::{Chain, Fixed};
use super::names::{ChainId, ChainKind};
use super::render::{self, Context};
use crate::backend::rule::{Asks, ChainHash, Rule};
use crate::model::ServiceName;
use crate::plan::{Plan, Scope, ServicePlan};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// One chain of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainPrint {
    pub(super) id: ChainId,
    /// The short hash of its rules.
    pub(super) content: [u8; 8],
    /// How many there are.
    rules: u32,
}

impl ChainPrint {
    /// The hash of a chain whose content is not known; no rules that are wanted have it.
    const UNKNOWN: [u8; 8] = [0xff; 8];

    /// The same chain after another program has changed it.
    pub(super) fn unknown(self) -> Self {
        ChainPrint { content: Self::UNKNOWN, ..self }
    }

    /// How many chains it names, itself and those that it jumps to, at most: the tool looks each of them up.
    pub(super) fn names(self) -> usize {
        let jumps = if self.id.kind() == ChainKind::Sep { 0 } else { self.rules };
        usize::try_from(jumps).unwrap_or(usize::MAX).saturating_add(1)
    }

    pub(super) fn is_unknown(self) -> bool {
        self.content == Self::UNKNOWN
    }
}

/// One Service's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Its own chains, in the order in which they are written.
    pub(super) chains: Box<[ChainPrint]>,
    /// The rules in them.
    pub(super) rules: u32,
    /// Its rules in dispatch chains, in the order of these. A tree may stand for the nat table's `KUBE-SERVICES`.
    pub(super) dispatch: Box<[(Fixed, ChainHash)]>,
    /// Its rules in the nat table's `KUBE-SERVICES`, by destination.
    pub(super) destinations: Box<[(IpAddr, ChainHash)]>,
}

impl Fingerprint {
    fn of(service: &ServicePlan<'_>, context: Context<'_>) -> Self {
        let mut chains: Vec<(ChainId, ChainHash)> = Vec::new();
        render::chains(service, context, &mut |chain, rule| {
            let Chain::Own(id) = chain else { return };
            match chains.last_mut().filter(|(last, _)| *last == id) {
                Some((_, hash)) => hash.push(&rule),
                None => chains.push((id, ChainHash::of(&rule))),
            }
        });
        let (mut dispatch, mut destinations) = (BTreeMap::new(), Vec::new());
        render::dispatch(service, context, &mut |chain, rule| {
            let Chain::Fixed(chain) = chain else { return };
            dispatch.entry(chain).or_insert(ChainHash::EMPTY).push(&rule);
            if let Some(address) = destination(&rule).filter(|_| chain == Fixed::Services) {
                match destinations.iter_mut().find(|(known, _)| *known == address) {
                    Some((_, hash)) => ChainHash::push(hash, &rule),
                    None => destinations.push((address, ChainHash::of(&rule))),
                }
            }
        });
        let print = |(id, hash): &(ChainId, ChainHash)| ChainPrint {
            id: *id,
            content: hash.short(),
            rules: hash.rules(),
        };
        Fingerprint {
            chains: chains.iter().map(print).collect(),
            rules: chains.iter().map(|(_, hash)| hash.rules()).sum(),
            dispatch: dispatch.into_iter().collect(),
            destinations: destinations.into(),
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ChainId> + '_ {
        self.chains.iter().map(|chain| chain.id)
    }

    /// Its rules in a dispatch chain.
    pub(super) fn in_chain(&self, chain: Fixed) -> ChainHash {
        let found = self.dispatch.iter().find(|(it, _)| *it == chain);
        found.map_or(ChainHash::EMPTY, |(_, hash)| *hash)
    }

    /// Whether rules in dispatch chains lead to chains of its own.
    pub(super) fn leads_somewhere(&self) -> bool {
        self.dispatch.iter().any(|(chain, _)| !chain.is_filter())
    }

    /// Those of its chains that `old` does not have just so.
    pub(super) fn chains_beyond(&self, old: &Fingerprint) -> Vec<ChainPrint> {
        let old: HashMap<ChainId, [u8; 8]> =
            old.chains.iter().map(|chain| (chain.id, chain.content)).collect();
        self.chains.iter().filter(|chain| old.get(&chain.id) != Some(&chain.content)).copied().collect()
    }

    /// This, with some chains of `next` written, and nothing else.
    pub(super) fn with_chains(&self, next: &Fingerprint, written: impl Iterator<Item = ChainId>) -> Self {
        let written: HashSet<ChainId> = written.collect();
        let old = self.chains.iter().filter(|chain| !written.contains(&chain.id));
        let new = next.chains.iter().filter(|chain| written.contains(&chain.id));
        Fingerprint { chains: old.chain(new).copied().collect(), ..self.clone() }
    }

    /// This, with some chains of `next` written. What leads to the Service stays, and is there from the start if
    /// its chains were: an earlier run has left them in `found`.
    pub(super) fn advanced(
        &self,
        next: &Fingerprint,
        written: &[ChainPrint],
        found: &BTreeSet<ChainId>,
    ) -> Self {
        let mut led_to = next.chains.iter().filter(|chain| chain.id.is_led_to()).peekable();
        let is_found = led_to.peek().is_some() && led_to.all(|chain| found.contains(&chain.id));
        let is_known = !self.chains.iter().any(|chain| chain.id.is_led_to() && chain.is_unknown());
        let nothing = Fingerprint::default();
        let leads = match is_known && !self.chains.is_empty() {
            true if self.leads_somewhere() => self,
            false if is_found => next,
            _ => &nothing,
        };
        Fingerprint {
            dispatch: leads.dispatch.clone(),
            destinations: leads.destinations.clone(),
            ..self.with_chains(next, written.iter().map(|chain| chain.id))
        }
    }
}

/// Where a rule leads to.
pub(super) fn destination(rule: &Rule<'_>) -> Option<IpAddr> {
    rule.asks().find_map(|it| match it.asks {
        Asks::Destination(network) => Some(network.cidr.addr()),
        _ => None,
    })
}

/// Our own rules in chains that always stand, by chain; `None` for a chain that is not ours to write, or whose content is
/// not known. Those of Services are not among them.
pub(super) type FixedPrint = [Option<ChainHash>; Fixed::COUNT];

/// Everything wanted within a plan's scope.
#[derive(Debug)]
pub struct Desired<'a> {
    pub(super) plan: Plan<'a>,
    pub(super) features: Features,
    pub(super) fixed: FixedPrint,
    /// In the order of names; `None` for a Service that this family has nothing of.
    pub(super) services: Vec<(ServiceName, Option<Arc<Fingerprint>>)>,
}

impl<'a> Desired<'a> {
    /// What a plan wants of the Services in its scope, and of `unfinished` ones, whose rules are not as they should be.
    pub(super) fn of(plan: &Plan<'a>, features: &Features, unfinished: &BTreeSet<ServiceName>) -> Self {
        let mut desired = Desired {
            plan: *plan,
            features: features.clone(),
            fixed: FixedPrint::default(),
            services: Vec::new(),
        };
        desired.fixed = desired.print_fixed();
        let context = desired.context();
        let print = |service: &ServicePlan<'_>| Arc::new(Fingerprint::of(service, context));
        desired.services = match plan.scope() {
            Scope::All => plan.services().map(|it| (it.name.clone(), Some(print(&it)))).collect(),
            Scope::Only(names) => {
                let names = names.union(unfinished);
                names.map(|name| (name.clone(), plan.service(name).as_ref().map(print))).collect()
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
        let mut fixed = [Some(ChainHash::EMPTY); Fixed::COUNT];
        if !base::keeps_firewall(self.plan.settings) {
            fixed[Fixed::Firewall.index()] = None;
        }
        let mut push = |chain, rule: Rule<'_>| {
            if let Chain::Fixed(chain) = chain
                && let Some(hash) = &mut fixed[chain.index()]
            {
                hash.push(&rule);
            }
        };
        base::fixed_rules(self.plan.settings, &self.features, &mut push);
        base::node_port_jumps(&self.plan, &mut push);
        fixed
    }
}

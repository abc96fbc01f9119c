//! What is wanted of the kernel, Service by Service, and what we believe is there.

use super::names::SetId;
use super::render::{self, RenderContext};
use super::restore_input::ChainHashes;
use crate::model::{Frontend, RealServer, ServiceName, SetEntry, VirtualServer};
use crate::plan::{Plan, Scope};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A virtual server with its real servers, sorted. In what is wanted all of these have weight 1; in
/// what is there, those of weight 0 are being drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) with: VirtualServer,
    pub(super) reals: Vec<RealServer>,
}

/// A kernel object that several Services may want; it is there as long as one of them does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fact {
    /// An entry of a set.
    Entry(SetId, SetEntry),
    /// An address on our interface.
    Address(IpAddr),
    /// The node must not reach this load-balancer frontend: it is not in its source ranges.
    Guard(Frontend),
}

/// One Service's part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServicePart {
    /// In the order of frontends.
    pub(super) servers: Vec<(Frontend, Arc<Server>)>,
    /// Sorted, each once.
    pub(super) facts: Vec<Fact>,
}

impl ServicePart {
    pub(super) fn server(&self, at: &Frontend) -> Option<&Arc<Server>> {
        let index = self.servers.binary_search_by_key(at, |(frontend, _)| *frontend).ok()?;
        Some(&self.servers[index].1)
    }
}

/// Everything wanted within a plan's scope.
#[derive(Debug)]
pub struct Desired<'a> {
    pub(super) plan: Plan<'a>,
    /// In the order of names; `None` for a Service that this family has nothing of.
    pub(super) services: Vec<(ServiceName, Option<ServicePart>)>,
    /// What is not named is not wanted.
    pub(super) covers_all: bool,
}

impl<'a> Desired<'a> {
    pub(super) fn of(plan: &Plan<'a>, context: &RenderContext<'_>) -> Self {
        let part = |service: &crate::plan::ServicePlan<'_>| render::service(service, context);
        let services = match plan.scope() {
            Scope::All => plan.services().map(|it| (it.name.clone(), Some(part(&it)))).collect(),
            Scope::Only(names) => {
                names.iter().map(|name| (name.clone(), plan.service(name).as_ref().map(part))).collect()
            }
        };
        Desired { plan: *plan, services, covers_all: matches!(plan.scope(), Scope::All) }
    }
}

/// A virtual server that is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// As it is there; `None` if it has switches that we never set.
    pub(super) server: Arc<Server>,
    /// It has switches that we never set.
    pub(super) is_strange: bool,
    /// Another program's, as far as we can tell: it is only touched if a Service wants it.
    pub(super) is_foreign: bool,
    /// The Services that want it; the first one says how it looks.
    pub(super) owners: Vec<ServiceName>,
}

impl Held {
    /// It has real servers that get no new connections.
    pub(super) fn drains(&self) -> bool {
        self.server.reals.iter().any(|real| real.weight == 0)
    }
}

/// What we believe is in the kernel.
#[derive(Debug, Default)]
pub struct Baseline {
    /// Chains, jumps, sets and the interface stand.
    pub(super) set_up: bool,
    /// Changes have been carried out since the kernel was observed: all of it has been compared with what was wanted.
    pub(super) is_compared: bool,
    /// The rules of our chains, as last written; a chain that another program has changed is missing.
    pub(super) rules: ChainHashes,
    /// Each Service's part, as last carried out.
    pub(super) services: BTreeMap<ServiceName, ServicePart>,
    /// How many Services want what is there; none wants some of what was found at the start.
    pub(super) facts: BTreeMap<Fact, u32>,
    /// Virtual servers, ours and foreign ones.
    pub(super) servers: BTreeMap<Frontend, Held>,
    /// What was found in place of virtual servers that another program has changed; nothing where they are gone.
    pub(super) damaged: BTreeMap<Frontend, Option<Held>>,
    /// Facts that another program has undone.
    pub(super) missing: BTreeSet<Fact>,
    /// Entries that another program has added to our sets.
    pub(super) surplus: BTreeSet<Fact>,
    /// Virtual servers with real servers that are being drained.
    pub(super) draining: BTreeSet<Frontend>,
    /// How many entries each set has.
    pub(super) set_sizes: [usize; SetId::ALL.len()],
    /// How many addresses our interface has.
    pub(super) addresses: usize,
    /// How many virtual and real servers are ours.
    pub(super) ours: (usize, usize),
}

impl Baseline {
    /// A virtual server as it is in the kernel, with changes of other programs.
    pub(super) fn there(&self, at: &Frontend) -> Option<&Held> {
        match self.damaged.get(at) {
            Some(found) => found.as_ref(),
            None => self.servers.get(at),
        }
    }

    /// Notes what is there, and brings the sums in line.
    pub(super) fn note_fact(&mut self, fact: Fact, count: u32) {
        let was_there = if count == 0 {
            self.facts.remove(&fact).is_some()
        } else {
            self.facts.insert(fact, count).is_some()
        };
        let sum = match fact {
            Fact::Entry(id, _) => &mut self.set_sizes[id.index()],
            Fact::Address(_) => &mut self.addresses,
            Fact::Guard(_) => return,
        };
        match (was_there, count) {
            (false, 1..) => *sum += 1,
            (true, 0) => *sum -= 1,
            _ => {}
        }
    }

    /// The entries of a set that are there by our doing.
    pub(super) fn wanted_entries(&self, id: SetId) -> impl Iterator<Item = SetEntry> + '_ {
        self.facts.keys().filter_map(move |fact| match fact {
            Fact::Entry(of, entry) if *of == id => Some(*entry),
            _ => None,
        })
    }

    /// The addresses on our interface that are there by our doing.
    pub(super) fn wanted_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.facts.keys().filter_map(|fact| match fact {
            Fact::Address(address) => Some(*address),
            _ => None,
        })
    }

    /// Notes what was found and no Service is known to want.
    pub(super) fn note_found(&mut self, fact: Fact) {
        self.note_fact(fact, 1);
        self.facts.insert(fact, 0);
    }

    /// How many real servers of ours are being drained.
    pub(super) fn draining_reals(&self) -> usize {
        let held = self.draining.iter().filter_map(|at| self.servers.get(at));
        held.flat_map(|held| &held.server.reals).filter(|real| real.weight == 0).count()
    }

    pub(super) fn note_server(&mut self, at: Frontend, held: Option<Held>) {
        let size = |held: &Held| if held.is_foreign { (0, 0) } else { (1, held.server.reals.len()) };
        if held.as_ref().is_some_and(|held| !held.is_foreign && held.drains()) {
            self.draining.insert(at);
        } else {
            self.draining.remove(&at);
        }
        let new = held.as_ref().map(size).unwrap_or_default();
        let old = match held {
            Some(held) => self.servers.insert(at, held),
            None => self.servers.remove(&at),
        };
        let old = old.as_ref().map(size).unwrap_or_default();
        self.ours = (self.ours.0 + new.0 - old.0, self.ours.1 + new.1 - old.1);
    }
}

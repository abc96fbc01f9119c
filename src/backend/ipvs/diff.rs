//! What separates the wanted from what is there, in an order that is safe at every step.

use super::desired::{Baseline, Desired, Fact, Held, Server, ServicePart};
use super::names::SetId;
use super::restore_input::{ChainHashes, Features, Rules};
use crate::model::{Cidr, Frontend, Protocol, RealServer, ServerOperation, ServiceName, SetEntry};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A kernel object that some Service wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// A virtual server, with its real servers.
    Server(Frontend),
    /// Anything else.
    Fact(Fact),
}

/// What has to be done. The fields are carried out in this order: what traffic needs before it
/// comes, then what brings it, then what it needs no more.
#[derive(Debug, Default)]
pub struct Changes {
    /// Chains, jumps, sets and the interface have to be made sure of.
    pub(super) set_up: bool,
    /// Everything is compared with what was found in the kernel.
    pub(super) is_full: bool,
    pub(super) add_entries: BTreeMap<SetId, Vec<SetEntry>>,
    /// The iptables rules of chains that differ.
    pub(super) rules: Option<String>,
    /// Virtual servers added and changed, with their real servers.
    pub(super) servers: Vec<ServerOperation>,
    pub(super) add_addresses: Vec<IpAddr>,
    pub(super) delete_addresses: Vec<IpAddr>,
    /// Virtual servers removed.
    pub(super) removed: Vec<ServerOperation>,
    pub(super) delete_entries: BTreeMap<SetId, Vec<SetEntry>>,
    /// Virtual servers that lose real servers, which finish their connections first.
    pub(super) drain: BTreeSet<Frontend>,
    /// What to note when all is done.
    hashes: ChainHashes,
    services: Vec<(ServiceName, Option<ServicePart>)>,
    facts: BTreeMap<Fact, u32>,
    held: BTreeMap<Frontend, Option<Held>>,
}

impl Changes {
    pub(super) fn between(baseline: &Baseline, desired: &Desired<'_>, features: &Features) -> Self {
        let (set_up, is_full) = (!baseline.set_up, !baseline.is_compared);
        let mut changes = Changes { set_up, is_full, ..Changes::default() };
        changes.services = changed_services(baseline, desired);
        changes.count_facts(baseline, desired.covers_all);
        changes.sort_facts(baseline);
        changes.compare_servers(baseline, desired.covers_all, features);
        changes.write_rules(baseline, desired, features);
        changes
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.set_up
            && self.rules.is_none()
            && self.add_entries.is_empty()
            && self.delete_entries.is_empty()
            && self.add_addresses.is_empty()
            && self.delete_addresses.is_empty()
            && self.servers.is_empty()
            && self.removed.is_empty()
    }

    /// How many operations on virtual and real servers there are.
    pub(super) fn operations(&self) -> usize {
        self.servers.len() + self.removed.len()
    }

    /// The servers that it adds: virtual ones, and real ones with theirs.
    pub(super) fn new_servers(&self) -> BTreeSet<(Frontend, Option<SocketAddr>)> {
        let added = |operation: &ServerOperation| match operation {
            ServerOperation::Add(at, _) => Some((*at, None)),
            ServerOperation::AddReal(at, real) => Some((*at, Some(real.address))),
            _ => None,
        };
        self.servers.iter().filter_map(added).collect()
    }

    /// The Services among those that changed that want an object.
    pub(super) fn wanting(&self, object: Object) -> impl Iterator<Item = &ServiceName> {
        let wants = move |part: &ServicePart| match object {
            Object::Server(at) => part.server(&at).is_some(),
            Object::Fact(fact) => part.facts.binary_search(&fact).is_ok(),
        };
        self.services.iter().filter(move |(_, part)| part.as_ref().is_some_and(wants)).map(|(name, _)| name)
    }

    /// Notes that all of it was done.
    pub(super) fn commit(self, baseline: &mut Baseline) {
        (baseline.set_up, baseline.is_compared) = (true, true);
        baseline.rules = self.hashes;
        baseline.damaged.clear();
        baseline.missing.clear();
        baseline.surplus.clear();
        for (name, part) in self.services {
            match part {
                Some(part) => baseline.services.insert(name, part),
                None => baseline.services.remove(&name),
            };
        }
        self.facts.into_iter().for_each(|(fact, count)| baseline.note_fact(fact, count));
        self.held.into_iter().for_each(|(at, held)| baseline.note_server(at, held));
    }

    /// How many Services want each fact from now on.
    fn count_facts(&mut self, baseline: &Baseline, covers_all: bool) {
        let known = |fact: &Fact| baseline.facts.get(fact).copied().unwrap_or_default();
        for (name, part) in &self.services {
            let old = baseline.services.get(name).map_or(&[][..], |old| &old.facts);
            let new = part.as_ref().map_or(&[][..], |new| &new.facts);
            for fact in new {
                *self.facts.entry(*fact).or_insert_with(|| known(fact)) += 1;
            }
            for fact in old {
                let count = self.facts.entry(*fact).or_insert_with(|| known(fact));
                *count = count.saturating_sub(1);
            }
        }
        if covers_all {
            // Whatever else was found is left over from an earlier run.
            let stale = baseline.facts.iter().filter(|(_, count)| **count == 0);
            for (fact, _) in stale {
                self.facts.entry(*fact).or_insert(0);
            }
        }
    }

    fn sort_facts(&mut self, baseline: &Baseline) {
        let changed = self.facts.iter().map(|(fact, count)| (*fact, *count));
        let damaged = baseline.missing.union(&baseline.surplus).filter(|fact| !self.facts.contains_key(fact));
        let damaged = damaged.map(|fact| (*fact, baseline.facts.get(fact).copied().unwrap_or_default()));
        for (fact, count) in changed.chain(damaged).collect::<Vec<_>>() {
            let is_known = baseline.facts.contains_key(&fact) && !baseline.missing.contains(&fact);
            let is_there = is_known || baseline.surplus.contains(&fact);
            match (is_there, count > 0, fact) {
                (false, true, Fact::Entry(set, entry)) => {
                    self.add_entries.entry(set).or_default().push(entry);
                }
                (true, false, Fact::Entry(set, entry)) => {
                    self.delete_entries.entry(set).or_default().push(entry);
                }
                (false, true, Fact::Address(address)) => self.add_addresses.push(address),
                (true, false, Fact::Address(address)) => self.delete_addresses.push(address),
                _ => {}
            }
        }
    }

    fn compare_servers(&mut self, baseline: &Baseline, covers_all: bool, features: &Features) {
        let changed: BTreeMap<&ServiceName, Option<&ServicePart>> =
            self.services.iter().map(|(name, part)| (name, part.as_ref())).collect();
        let mut touched = BTreeSet::new();
        for (name, part) in &self.services {
            touched.extend(touched_servers(baseline.services.get(name), part.as_ref()));
        }
        touched.extend(baseline.damaged.keys());
        if covers_all {
            touched.extend(
                baseline.servers.iter().filter(|(_, held)| held.owners.is_empty()).map(|(at, _)| *at),
            );
        }
        let mut claims: BTreeMap<Frontend, Vec<ServiceName>> = BTreeMap::new();
        for (name, part) in &changed {
            for (at, _) in part.iter().flat_map(|part| &part.servers).filter(|(at, _)| touched.contains(at)) {
                claims.entry(*at).or_default().push((*name).clone());
            }
        }
        let mut held = BTreeMap::new();
        let mut comparison = Comparison { changes: Changes::default(), features };
        for at in touched {
            let old = baseline.servers.get(&at);
            let kept = old.iter().flat_map(|old| &old.owners).filter(|name| !changed.contains_key(name));
            let mut owners: Vec<ServiceName> = kept.cloned().collect();
            owners.extend(claims.remove(&at).unwrap_or_default());
            owners.sort();
            let wanted = owners.first().and_then(|name| match changed.get(name) {
                Some(part) => part.and_then(|part| part.server(&at)),
                None => baseline.services.get(name).and_then(|part| part.server(&at)),
            });
            let new = comparison.compare(at, baseline.there(&at), wanted.map(|server| (server, owners)));
            held.insert(at, new);
        }
        self.servers = comparison.changes.servers;
        self.removed = comparison.changes.removed;
        self.drain = comparison.changes.drain;
        self.held = held;
    }

    fn write_rules(&mut self, baseline: &Baseline, desired: &Desired<'_>, features: &Features) {
        // As they are then, whatever has to be mended.
        let mut set_sizes = baseline.set_sizes;
        for (fact, count) in &self.facts {
            if let Fact::Entry(set, _) = fact {
                match (baseline.facts.contains_key(fact), *count > 0) {
                    (false, true) => set_sizes[set.index()] += 1,
                    (true, false) => set_sizes[set.index()] -= 1,
                    _ => {}
                }
            }
        }
        // Guards sort last, so looking for them costs nothing where there are none.
        let old = baseline.facts.keys().rev().take_while(|fact| matches!(fact, Fact::Guard(_)));
        let mut guards: BTreeSet<&Fact> = old.collect();
        for (fact, count) in &self.facts {
            if *count == 0 {
                guards.remove(fact)
            } else {
                guards.insert(fact)
            };
        }
        let guards = guards.into_iter().filter_map(|fact| match fact {
            Fact::Guard(at) => Some(*at),
            _ => None,
        });
        let rules = Rules { settings: desired.plan.settings, features, set_sizes, guards: guards.collect() };
        self.hashes = rules.hashes();
        let differs = |key| baseline.rules.get(&key) != self.hashes.get(&key);
        let is_any = self.hashes.keys().any(|key| differs(*key));
        self.rules = is_any.then(|| rules.text(differs));
    }
}

/// The Services in scope whose part differs from the last one, and those that are gone.
fn changed_services(baseline: &Baseline, desired: &Desired<'_>) -> Vec<(ServiceName, Option<ServicePart>)> {
    let differs =
        |(name, part): &&(ServiceName, Option<ServicePart>)| baseline.services.get(name) != part.as_ref();
    let mut changed: Vec<_> = desired.services.iter().filter(differs).cloned().collect();
    if desired.covers_all {
        let wanted: BTreeSet<&ServiceName> = desired.services.iter().map(|(name, _)| name).collect();
        let gone = baseline.services.keys().filter(|name| !wanted.contains(name));
        changed.extend(gone.map(|name| (name.clone(), None)));
    }
    changed
}

/// The frontends that differ between two parts of a Service.
fn touched_servers(old: Option<&ServicePart>, new: Option<&ServicePart>) -> BTreeSet<Frontend> {
    let all = |part: Option<&ServicePart>| -> Vec<(Frontend, Arc<Server>)> {
        part.map(|part| part.servers.clone()).unwrap_or_default()
    };
    let differs = |part: Option<&ServicePart>, at: &Frontend, server: &Arc<Server>| {
        part.and_then(|part| part.server(at)) != Some(server)
    };
    let from_old = all(old).into_iter().filter(|(at, server)| differs(new, at, server));
    let from_new = all(new).into_iter().filter(|(at, server)| differs(old, at, server));
    from_old.chain(from_new).map(|(at, _)| at).collect()
}

/// Compares virtual servers one by one and collects what there is to do.
struct Comparison<'f> {
    changes: Changes,
    features: &'f Features,
}

impl Comparison<'_> {
    /// What is there after the changes.
    fn compare(
        &mut self,
        at: Frontend,
        old: Option<&Held>,
        wanted: Option<(&Arc<Server>, Vec<ServiceName>)>,
    ) -> Option<Held> {
        match (old, wanted) {
            (None, None) => None,
            (Some(old), None) if old.is_foreign || self.is_excluded(&at) => {
                Some(Held { is_foreign: true, owners: Vec::new(), ..old.clone() })
            }
            (Some(_), None) => {
                self.changes.removed.push(ServerOperation::Remove(at));
                None
            }
            (None, Some((server, owners))) => {
                self.add(at, server);
                Some(Held { server: server.clone(), is_strange: false, is_foreign: false, owners })
            }
            (Some(old), Some((server, owners))) => {
                let server = self.change(at, old, server);
                Some(Held { server, is_strange: false, is_foreign: false, owners })
            }
        }
    }

    fn is_excluded(&self, at: &Frontend) -> bool {
        self.features.exclude.iter().any(|cidr: &Cidr| cidr.contains(&at.address))
    }

    fn add(&mut self, at: Frontend, server: &Server) {
        let operations = &mut self.changes.servers;
        operations.push(ServerOperation::Add(at, server.with.clone()));
        // `rr` starts with the one that came last. Were it the same one on every node, it would get
        // the first connection of each of them.
        let turn = match (server.reals.len(), self.features.upstream_compat) {
            (0, _) | (_, true) => 0,
            (count, false) => turn(&self.features.node_name, &at, count),
        };
        let (first, second) = server.reals.split_at(turn);
        operations.extend(second.iter().chain(first).map(|real| ServerOperation::AddReal(at, *real)));
    }

    fn change(&mut self, at: Frontend, old: &Held, wanted: &Arc<Server>) -> Arc<Server> {
        let operations = &mut self.changes.servers;
        if old.is_strange || old.server.with != wanted.with {
            operations.push(ServerOperation::Update(at, wanted.with.clone()));
        }
        let there: BTreeMap<_, _> = old.server.reals.iter().map(|real| (real.address, real.weight)).collect();
        for real in &wanted.reals {
            match there.get(&real.address) {
                None => operations.push(ServerOperation::AddReal(at, *real)),
                Some(weight) if *weight != real.weight => {
                    operations.push(ServerOperation::UpdateReal(at, *real));
                }
                Some(_) => {}
            }
        }
        let wants = |real: &RealServer| wanted.reals.iter().any(|it| it.address == real.address);
        let mut draining = Vec::new();
        for real in old.server.reals.iter().filter(|real| !wants(real)) {
            if at.protocol != Protocol::Tcp {
                // Nothing tells when a client of UDP is done, and its packets would go on to an
                // endpoint that is gone.
                operations.push(ServerOperation::RemoveReal(at, real.address));
                continue;
            }
            let drained = RealServer { weight: 0, ..*real };
            if real.weight != 0 {
                operations.push(ServerOperation::UpdateReal(at, drained));
            }
            self.changes.drain.insert(at);
            draining.push(drained);
        }
        if draining.is_empty() {
            return wanted.clone();
        }
        let mut server = Server::clone(wanted);
        server.reals.extend(draining);
        server.reals.sort_unstable();
        Arc::new(server)
    }
}

/// With which of `count` real servers this node begins.
fn turn(node: &str, at: &Frontend, count: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    (node, at).hash(&mut hasher);
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    usize::try_from(hasher.finish() % count).unwrap_or_default()
}

//! Whether the kernel still has our sets, addresses and servers as they were programmed. What it has instead is noted in
//! the baseline, so that the next pass mends that and nothing else. Of the iptables rules, `drift` takes care.

use super::Kernel;
use super::apply::set_spec;
use super::desired::{Baseline, Fact, Held, Server};
use super::names::{INTERFACE, SetId};
use super::observe::Addresses;
use crate::backend::{Drift, DriftKind, VerifyDepth};
use crate::model::{Frontend, IpFamily, IpvsScheduler, RealServer, SetEntry, VirtualServer};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

/// Virtual servers whose real servers one quick verification reads.
const VERIFIED_AT_ONCE: usize = 10;
/// Up to this many virtual servers in the kernel, every verification lists them; above, one in several, so that it costs
/// the same however many there are.
const LISTED_IN_EVERY_ROUND: usize = 100;

/// How far the rounds of verification have got.
#[derive(Debug, Default)]
pub(super) struct VerifyRounds {
    /// Verifications so far.
    rounds: usize,
    /// Virtual servers of both families, foreign ones included, when they were listed last.
    listed: usize,
    /// The virtual server whose real servers were read last.
    last: Option<Frontend>,
    /// Addresses may have changed since they were last compared.
    pub(super) addresses_due: bool,
}

/// What is compared with what.
pub(super) struct Compared<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) family: IpFamily,
    pub(super) upstream_compat: bool,
    /// If they may have changed.
    pub(super) addresses: Option<&'a Addresses>,
    pub(super) baseline: &'a mut Baseline,
}

impl VerifyRounds {
    /// What of ours is missing or different.
    pub(super) fn verify(&mut self, mut with: Compared<'_>, depth: VerifyDepth) -> Result<Vec<Drift>> {
        let mut drift: Vec<Drift> = with
            .addresses
            .and_then(|addresses| compare_addresses(&addresses.on_interface, with.baseline))
            .into_iter()
            .collect();
        for id in SetId::in_use(with.upstream_compat) {
            drift.extend(compare_set(&mut with, id, depth)?);
        }
        self.rounds += 1;
        let is_turn = self.rounds.is_multiple_of(1 + self.listed / LISTED_IN_EVERY_ROUND);
        let reals = self.compare_real_servers(with.kernel, with.baseline, depth)?;
        // A virtual server that is gone has no real servers either: it is to be named, too.
        let mut differing: BTreeSet<Frontend> = reals.keys().copied().collect();
        if depth == VerifyDepth::Thorough || is_turn || !reals.is_empty() {
            let servers = self.compare_servers(with.kernel, with.baseline)?;
            differing.extend(servers.iter().map(|(at, _)| at));
            drift.extend(servers.into_iter().map(|(_, drift)| drift));
        }
        drift.extend(reals.into_values());
        for at in differing {
            let found = find(with.kernel, &at, with.baseline)?;
            with.baseline.damaged.insert(at, found);
        }
        Ok(drift)
    }

    /// Costs as much as there are virtual servers in the kernel, foreign ones included. What is not listed is
    /// looked up before it counts as gone.
    fn compare_servers(
        &mut self,
        kernel: &mut Kernel,
        baseline: &Baseline,
    ) -> Result<Vec<(Frontend, Drift)>> {
        let listed = kernel.servers.list()?;
        self.listed = listed.len();
        let mut listed: BTreeMap<_, _> = listed.into_iter().collect();
        let mut drift = Vec::new();
        for (at, held) in ours(baseline, Bound::Unbounded) {
            let found = match listed.remove_entry(at) {
                Some(found) => Some(found),
                None => kernel.servers.find(at)?,
            };
            let what = match found {
                None => "is gone",
                Some((_, with)) if with.as_ref() != Some(&held.server.with) => "was changed",
                Some(_) => continue,
            };
            drift.push((*at, Drift::new(DriftKind::VirtualServer, at.to_string(), what)));
        }
        Ok(drift)
    }

    fn compare_real_servers(
        &mut self,
        kernel: &mut Kernel,
        baseline: &Baseline,
        depth: VerifyDepth,
    ) -> Result<BTreeMap<Frontend, Drift>> {
        let suspects: Vec<Frontend> = match depth {
            VerifyDepth::Thorough => suspects(kernel, baseline).into_iter().collect(),
            VerifyDepth::Quick => self.next_in_turn(baseline),
        };
        let mut drift = BTreeMap::new();
        for at in suspects {
            let Some(held) = baseline.servers.get(&at) else { continue };
            let there: BTreeSet<RealServer> =
                kernel.servers.real_servers(&at)?.into_iter().map(|(real, _)| real).collect();
            drift.extend(differing_reals(&at, held, &there).map(|drift| (at, drift)));
        }
        Ok(drift)
    }

    fn next_in_turn(&mut self, baseline: &Baseline) -> Vec<Frontend> {
        let start = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<Frontend> = ours(baseline, start).take(VERIFIED_AT_ONCE).map(|(at, _)| *at).collect();
        // The end is reached: the next round starts over.
        self.last = turn.last().copied().filter(|_| turn.len() == VERIFIED_AT_ONCE);
        turn
    }
}

/// A virtual server as it is there, with its real servers.
fn find(kernel: &mut Kernel, at: &Frontend, baseline: &Baseline) -> Result<Option<Held>> {
    let Some((_, with)) = kernel.servers.find(at)? else { return Ok(None) };
    let is_strange = with.is_none();
    let with = with.unwrap_or_else(|| VirtualServer {
        scheduler: IpvsScheduler::as_upstream(""),
        affinity_seconds: None,
    });
    let mut reals: Vec<RealServer> = kernel.servers.real_servers(at)?.into_iter().map(|it| it.0).collect();
    reals.sort_unstable();
    let owners = baseline.servers.get(at).map(|held| held.owners.clone()).unwrap_or_default();
    Ok(Some(Held { server: Arc::new(Server { with, reals }), is_strange, is_foreign: false, owners }))
}

/// The virtual servers whose real servers the survey does not show as they should be. To look up each is dear, so one
/// survey covers all, and only these have to be looked up.
fn suspects(kernel: &mut Kernel, baseline: &Baseline) -> BTreeSet<Frontend> {
    let mut suspects: BTreeSet<Frontend> = ours(baseline, Bound::Unbounded).map(|(at, _)| *at).collect();
    if suspects.is_empty() {
        return suspects;
    }
    let mut there = BTreeSet::new();
    kernel.servers.survey(&mut |at, reals| {
        let Some(held) = baseline.servers.get(&at) else { return };
        there.clear();
        there.extend(reals);
        if differing_reals(&at, held, &there).is_none() {
            suspects.remove(&at);
        }
    });
    suspects
}

fn ours(baseline: &Baseline, start: Bound<Frontend>) -> impl Iterator<Item = (&Frontend, &Held)> {
    baseline.servers.range((start, Bound::Unbounded)).filter(|(_, held)| !held.is_foreign)
}

fn differing_reals(at: &Frontend, held: &Held, there: &BTreeSet<RealServer>) -> Option<Drift> {
    let wanted: BTreeSet<RealServer> = held.server.reals.iter().copied().collect();
    let missing = wanted.difference(there).next();
    let changed = |real: &RealServer| there.iter().any(|found| found.address == real.address);
    let what = match (missing, there.difference(&wanted).next()) {
        (None, None) => return None,
        (Some(real), _) if changed(real) => format!("were changed: {} has another weight", real.address),
        (Some(real), _) => format!("were changed: {} is gone", real.address),
        (None, Some(real)) => format!("were changed: {} is not ours", real.address),
    };
    Some(Drift::new(DriftKind::RealServers, format!("of {at}"), what))
}

/// Foreign addresses are left alone.
fn compare_addresses(found: &BTreeSet<IpAddr>, baseline: &mut Baseline) -> Option<Drift> {
    let missing: Vec<IpAddr> =
        baseline.wanted_addresses().filter(|address| !found.contains(address)).collect();
    let (wanted, has) = (baseline.addresses, baseline.addresses.saturating_sub(missing.len()));
    let is_missing = !missing.is_empty();
    // The interface itself may be gone.
    baseline.set_up &= !is_missing;
    baseline.missing.extend(missing.into_iter().map(Fact::Address));
    let what = || format!("has {has} addresses and not {wanted}");
    is_missing.then(|| Drift::new(DriftKind::Interface, INTERFACE, what()))
}

/// A quick verification only counts the entries.
fn compare_set(with: &mut Compared<'_>, id: SetId, depth: VerifyDepth) -> Result<Option<Drift>> {
    let name = id.name(with.family);
    let spec = set_spec(id, &name, with.family);
    if depth == VerifyDepth::Quick
        && with.kernel.sets.count(spec)? == Some(with.baseline.set_sizes[id.index()])
    {
        return Ok(None);
    }
    let wanted: BTreeSet<SetEntry> = with.baseline.wanted_entries(id).collect();
    let found = with.kernel.sets.entries(spec)?;
    let Some(what) = found.as_ref().map_or(Some("is gone".to_owned()), |found| differing(found, &wanted))
    else {
        return Ok(None);
    };
    with.baseline.set_up &= found.is_some();
    let found = found.unwrap_or_default();
    let fact = |entry: &SetEntry| Fact::Entry(id, *entry);
    with.baseline.missing.extend(wanted.difference(&found).map(fact));
    with.baseline.surplus.extend(found.difference(&wanted).map(fact));
    Ok(Some(Drift::new(DriftKind::Ipset, name, what)))
}

fn differing(found: &BTreeSet<SetEntry>, wanted: &BTreeSet<SetEntry>) -> Option<String> {
    match (wanted.difference(found).next(), found.difference(wanted).next()) {
        (None, None) => None,
        _ if found.len() != wanted.len() => {
            Some(format!("has {} entries and not {}", found.len(), wanted.len()))
        }
        (Some(entry), _) => Some(format!("lacks {entry:?}")),
        (None, Some(entry)) => Some(format!("has {entry:?}, which is not ours")),
    }
}

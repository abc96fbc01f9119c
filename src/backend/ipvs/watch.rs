//! Whether the kernel still has our rules, sets, addresses and servers as they were programmed.

use super::Kernel;
use super::apply::set_spec;
use super::desired::{Baseline, Held};
use super::input::{CHAINS, chains, jumps};
use super::names::{INTERFACE, MARK_MASQ, SetId};
use super::observe::Addresses;
use crate::backend::jumps::Jump;
use crate::backend::kept::{Chains, Kept, Record};
use crate::backend::rule::Parsed;
use crate::backend::rule_count::RuleCount;
use crate::backend::{Drift, DriftKind, Look};
use crate::kernel::iptables::{Flavor, Stamp, Xtables};
use crate::kernel::nft::{ChainUse, Part};
use crate::model::{Frontend, IpFamily, RealServer, SetEntry};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

/// Virtual servers whose real servers one quick look reads.
const CHECKED_AT_ONCE: usize = 10;
/// Up to this many virtual servers in the kernel, every look lists them; above, only every so often, so that a look
/// costs the same however many there are.
const LISTED_AT_EVERY_CHECK: usize = 100;

/// A chain, by its table's place in `CHAINS` and its own place there.
pub(super) type ChainKey = (u8, u8);

/// The chains of IPVS mode.
#[derive(Clone, Copy, Debug)]
struct OurChains {
    upstream_compat: bool,
}

impl Chains for OurChains {
    type Key = ChainKey;

    fn key(&self, table: &str, chain: &str) -> Option<ChainKey> {
        let index = chains(self.upstream_compat).iter().position(|(known, _)| *known == table)?;
        let place = CHAINS[index].1.iter().position(|known| *known == chain)?;
        Some((u8::try_from(index).ok()?, u8::try_from(place).ok()?))
    }

    fn place(&self, (table, chain): ChainKey) -> (&'static str, String) {
        let (name, chains) = CHAINS[usize::from(table)];
        (name, chains[usize::from(chain)].to_owned())
    }

    fn tables(&self) -> impl Iterator<Item = &'static str> {
        chains(self.upstream_compat).iter().map(|(table, _)| *table)
    }

    fn jumps(&self) -> impl Iterator<Item = &'static Jump> {
        jumps(self.upstream_compat)
    }
}

/// What is known of the tables since we last wrote them.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// As they were left; `None` when they have to be looked at.
    stamp: Option<Stamp>,
    /// How often our chains have to be used there.
    uses: u32,
    /// What has to be found of our chains.
    kept: Option<Kept<OurChains>>,
    /// Somebody else has changed tables since all rules were compared.
    changed_by_others: bool,
}

impl Tables {
    /// Notes what has to be found of rules that were just written, and of their jumps.
    ///
    /// What somebody else has changed since then is not ours: fewer uses than were written leave no
    /// stamp, so that the next look counts and tells.
    pub(super) async fn keep(
        &mut self,
        tools: &mut impl Xtables,
        rules: &str,
        upstream_compat: bool,
    ) -> Result<()> {
        *self = Tables::default();
        let jumps = u32::try_from(jumps(upstream_compat).count()).unwrap_or(u32::MAX);
        self.uses = count_written(rules).uses.saturating_add(jumps);
        let stamp = tools.stamp()?;
        self.kept = Some(kept(tools, OurChains { upstream_compat }, rules)?);
        self.stamp = (count_uses(tools).await? >= self.uses).then_some(stamp);
        Ok(())
    }

    /// Costs one small question unless somebody changed tables.
    async fn check(&mut self, tools: &mut impl Xtables, look: Look) -> Result<Vec<Drift>> {
        let stamp = tools.stamp()?;
        let is_ours = self.stamp == Some(stamp);
        let lost = if is_ours { 0 } else { self.uses.saturating_sub(count_uses(tools).await?) };
        // A legacy table's stamp is its size, which a rule in another's place does not change.
        self.changed_by_others |= !is_ours || tools.flavor() == Flavor::Legacy;
        let is_due = look == Look::Thorough && self.changed_by_others;
        let mut drift = match &self.kept {
            Some(kept) if is_due || lost > 0 => kept.compare(tools).await?,
            _ => Vec::new(),
        };
        if drift.is_empty() && lost > 0 {
            drift.push(Drift::new(
                DriftKind::Table,
                "nat, filter or mangle",
                format!("lacks about {lost} rules"),
            ));
        }
        if drift.is_empty() {
            self.stamp = Some(stamp);
            self.changed_by_others &= !is_due;
        }
        Ok(drift)
    }
}

/// What has to be found of rules that were just written: in legacy tables what they say, and in nf_tables how the
/// kernel shows them.
fn kept(tools: &mut impl Xtables, ours: OurChains, rules: &str) -> Result<Kept<OurChains>> {
    if tools.flavor() == Flavor::Legacy {
        let mut record = Record::of(ours);
        rules.lines().for_each(|line| record.take(line));
        return Ok(Kept::recorded(ours, record));
    }
    let all = CHAINS.iter().flat_map(|(table, names)| names.iter().map(move |name| (table, name)));
    let all: Vec<_> = all.filter_map(|(table, name)| ours.key(table, name)).collect();
    Kept::shown(tools, ours, &all)
}

/// How often the rules of an input use chains.
fn count_written(rules: &str) -> RuleCount {
    let mut count = RuleCount::default();
    for line in rules.lines() {
        if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            count.add(chain, &Parsed::of(rule).rule());
        }
    }
    count
}

/// How often our chains are used: by rules in them and jumps to them. Not counted is the one that
/// rules of others may jump to.
async fn count_uses(tools: &mut impl Xtables) -> Result<u32> {
    let mut total = 0u32;
    for (table, chains) in CHAINS {
        let mut uses = 0u32;
        let mut look = |part: Part<ChainUse<'_>>| match part {
            Part::Start => uses = 0,
            Part::Item(chain) if chain.name != MARK_MASQ && chains.contains(&chain.name) => {
                uses = uses.saturating_add(chain.uses);
            }
            Part::Item(_) => {}
        };
        tools.survey(table, &mut look).await?;
        total = total.saturating_add(uses);
    }
    Ok(total)
}

/// Where the rounds of looking have got to, and what is known of the tables.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) tables: Tables,
    /// Quick looks so far.
    looks: usize,
    /// Virtual servers of both families and of others, when they were listed last.
    listed: usize,
    /// The virtual server whose real servers were looked at last.
    last: Option<Frontend>,
    /// Addresses may have changed since they were last compared.
    pub(super) addresses_due: bool,
}

/// What a look compares with what.
pub(super) struct Compared<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) family: IpFamily,
    pub(super) upstream_compat: bool,
    /// If they may have changed.
    pub(super) addresses: Option<&'a Addresses>,
    pub(super) baseline: &'a Baseline,
}

impl Watch {
    /// What of ours is missing or different.
    pub(super) async fn check(
        &mut self,
        tools: &mut impl Xtables,
        mut with: Compared<'_>,
        look: Look,
    ) -> Result<Vec<Drift>> {
        let mut drift: Vec<Drift> = with
            .addresses
            .and_then(|addresses| compare_addresses(&addresses.on_interface, with.baseline))
            .into_iter()
            .collect();
        drift.extend(self.tables.check(tools, look).await?);
        for id in SetId::in_use(with.upstream_compat) {
            drift.extend(compare_set(&mut with, id, look)?);
        }
        self.looks += 1;
        let is_turn = self.looks.is_multiple_of(1 + self.listed / LISTED_AT_EVERY_CHECK);
        let reals = self.compare_real_servers(with.kernel, with.baseline, look)?;
        // A virtual server that is gone has no real servers either: it is to be named, too.
        if look == Look::Thorough || is_turn || !reals.is_empty() {
            drift.extend(self.compare_servers(with.kernel, with.baseline)?);
        }
        drift.extend(reals);
        Ok(drift)
    }

    /// Costs as much as there are virtual servers in the kernel, whosever they are. What is not listed is asked
    /// for before it counts as gone.
    fn compare_servers(&mut self, kernel: &mut Kernel, baseline: &Baseline) -> Result<Vec<Drift>> {
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
            drift.push(Drift::new(DriftKind::VirtualServer, at.to_string(), what));
        }
        Ok(drift)
    }

    fn compare_real_servers(
        &mut self,
        kernel: &mut Kernel,
        baseline: &Baseline,
        look: Look,
    ) -> Result<Vec<Drift>> {
        let suspects: Vec<Frontend> = match look {
            Look::Thorough => suspects(kernel, baseline).into_iter().collect(),
            Look::Quick => self.next_in_turn(baseline),
        };
        let mut drift = Vec::new();
        for at in suspects {
            let Some(held) = baseline.servers.get(&at) else { continue };
            let there: BTreeSet<RealServer> =
                kernel.servers.real_servers(&at)?.into_iter().map(|(real, _)| real).collect();
            drift.extend(differing_reals(&at, held, &there));
        }
        Ok(drift)
    }

    fn next_in_turn(&mut self, baseline: &Baseline) -> Vec<Frontend> {
        let start = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<Frontend> = ours(baseline, start).take(CHECKED_AT_ONCE).map(|(at, _)| *at).collect();
        // The end is reached: the next look begins anew.
        self.last = turn.last().copied().filter(|_| turn.len() == CHECKED_AT_ONCE);
        turn
    }
}

/// The virtual servers whose real servers are not seen to be as they should be. To ask for each is dear, so all are
/// surveyed, and what is said of these has to be asked for.
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

/// Addresses that others put there are theirs.
fn compare_addresses(found: &BTreeSet<IpAddr>, baseline: &Baseline) -> Option<Drift> {
    let missing = baseline.wanted_addresses().filter(|address| !found.contains(address)).count();
    let has = baseline.addresses.saturating_sub(missing);
    let what = || format!("has {has} addresses and not {}", baseline.addresses);
    (missing > 0).then(|| Drift::new(DriftKind::Interface, INTERFACE, what()))
}

/// A quick look only counts the entries.
fn compare_set(with: &mut Compared<'_>, id: SetId, look: Look) -> Result<Option<Drift>> {
    let name = id.name(with.family);
    let wanted = with.baseline.set_sizes[id.index()];
    let spec = set_spec(id, &name, with.family);
    let what = match look {
        Look::Quick => match with.kernel.sets.count(spec)? {
            Some(found) if found == wanted => return Ok(None),
            Some(found) => format!("has {found} entries and not {wanted}"),
            None => "is gone".to_owned(),
        },
        Look::Thorough => match with.kernel.sets.entries(spec)? {
            Some(found) => match differing_entry(&found, with.baseline, id) {
                Some(what) => what,
                None => return Ok(None),
            },
            None => "is gone".to_owned(),
        },
    };
    Ok(Some(Drift::new(DriftKind::Ipset, name, what)))
}

fn differing_entry(found: &BTreeSet<SetEntry>, baseline: &Baseline, id: SetId) -> Option<String> {
    let wanted: BTreeSet<SetEntry> = baseline.wanted_entries(id).collect();
    match (wanted.difference(found).next(), found.difference(&wanted).next()) {
        (None, None) => None,
        (Some(_), _) if found.len() != wanted.len() => {
            Some(format!("has {} entries and not {}", found.len(), wanted.len()))
        }
        (Some(entry), _) => Some(format!("lacks {entry:?}")),
        (None, Some(entry)) => Some(format!("has {entry:?}, which is not ours")),
    }
}

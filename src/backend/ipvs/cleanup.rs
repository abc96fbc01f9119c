//! Taking down what carries our names, and no foreign virtual servers.

use super::Kernel;
use super::desired::{Baseline, Fact};
use super::names::{INTERFACE, SetId};
use super::observe::{self, Addresses};
use super::restore_input::{self, CHAINS, Features};
use crate::backend::SharedNames;
use crate::backend::mode::OpenConnections;
use crate::kernel::iptables::{Place, Xtables};
use crate::kernel::nft::Part;
use crate::model::{Frontend, IpFamily, RealServer, ServerOperation};
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// All that went wrong, in one.
fn in_one(outcomes: impl IntoIterator<Item = (&'static str, Result<()>)>) -> Result<()> {
    let failed = outcomes.into_iter().filter_map(|(what, outcome)| Some((what, outcome.err()?)));
    let errors: Vec<String> = failed.map(|(what, error)| format!("{what}: {error:#}")).collect();
    if errors.is_empty() { Ok(()) } else { Err(anyhow!("{}", errors.join("; "))) }
}

/// Removes the jumps and chains of this mode, but for those that another mode of ours has put in
/// force under the same names. Says whether there were any.
///
/// # Errors
/// All that went wrong, in one.
pub(in crate::backend) async fn remove_rules(
    tools: &mut impl Xtables,
    standing: &SharedNames,
) -> Result<bool> {
    let there = existing_chains(tools).await?;
    let leftover = |table, chain| there.contains(&(table, chain)) && !standing.has_chain(table, chain);
    if !CHAINS.iter().any(|(table, chains)| chains.iter().any(|chain| leftover(table, chain))) {
        return Ok(false);
    }
    let mut outcomes = Vec::new();
    // The tools refuse to look for a jump to a chain that does not exist.
    for jump in restore_input::jumps(false).filter(|jump| there.contains(&(jump.table, jump.to))) {
        if !standing.has_jump(jump.table, jump.from, &jump.arguments()) {
            let place = Place { table: jump.table, chain: jump.from };
            outcomes.push(("jump", tools.delete_rule_throughout(place, &jump.arguments()).await));
        }
    }
    for (table, chains) in CHAINS {
        let chains: Vec<&str> = chains.iter().copied().filter(|chain| leftover(table, chain)).collect();
        outcomes.push((table, rewrite(tools, table, &chains, true).await));
    }
    in_one(outcomes).map(|()| true)
}

/// Removes the rules and sets that kube-proxy does not have: a run before this one made them.
///
/// # Errors
/// All that went wrong, in one. As long as rules are left, so are the sets.
pub(super) async fn remove_additions(
    tools: &mut impl Xtables,
    kernel: &mut Kernel,
    family: IpFamily,
) -> Result<()> {
    remove_rules(tools, &in_force(true)).await?;
    for id in SetId::ALL.into_iter().filter(|id| id.is_ours()) {
        kernel.sets.destroy(&id.name(family))?;
    }
    Ok(())
}

/// Empties all chains that this mode has, also under names that another mode uses, so that none of
/// them leads to another.
///
/// # Errors
/// All that went wrong, in one.
pub(in crate::backend) async fn empty_chains(tools: &mut impl Xtables) -> Result<()> {
    let there = existing_chains(tools).await?;
    let mut outcomes = Vec::new();
    for (table, _) in CHAINS {
        let chains: Vec<&str> =
            there.iter().filter(|(of, _)| *of == table).map(|(_, chain)| *chain).collect();
        outcomes.push((table, rewrite(tools, table, &chains, false).await));
    }
    in_one(outcomes)
}

/// Whether there are chains that only this mode has.
///
/// # Errors
/// When the tables cannot be read.
pub(super) async fn holds_rules(tools: &mut impl Xtables) -> Result<bool> {
    Ok(!existing_chains(tools).await?.is_empty())
}

/// The rules of this mode whose names another mode uses, too.
pub(in crate::backend) fn standing() -> SharedNames {
    in_force(false)
}

fn in_force(upstream_compat: bool) -> SharedNames {
    let chains = restore_input::chains(upstream_compat).iter();
    let chains = chains.flat_map(|(table, chains)| chains.iter().map(|chain| (*table, *chain)));
    let jumps = restore_input::jumps(upstream_compat).map(|jump| (jump.table, jump.from, jump.arguments()));
    SharedNames { chains: chains.collect(), jumps: jumps.collect() }
}

/// How many things of a family were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Virtual servers.
    pub servers: usize,
    /// ipsets.
    pub sets: usize,
    /// Virtual servers that stay until the connections through them have ended.
    pub in_use: usize,
}

impl Kernel {
    /// Removes our virtual servers and addresses, and then the sets by which they are known for ours. What open
    /// connections need stays if they are to outlive it: their virtual servers, which get no new ones, and the addresses of
    /// these.
    ///
    /// # Errors
    /// All that went wrong, in one. As long as virtual servers are left, so are the sets.
    pub fn remove_leftovers(
        &mut self,
        family: IpFamily,
        features: &Features,
        connections: OpenConnections,
    ) -> Result<Removed> {
        let addresses = Addresses::read(self, family)?;
        let found = observe::all(self, family, features, &addresses)?;
        let mut ours = removable(&found, features);
        let stays = match connections {
            OpenConnections::End => BTreeSet::new(),
            OpenConnections::Outlive => drain(self, &ours)?,
        };
        ours.retain(|at| !stays.contains(at));
        remove_servers(self, &ours)?;
        remove_addresses(self, &found, &stays)?;
        if !stays.is_empty() {
            return Ok(Removed { servers: ours.len(), sets: 0, in_use: stays.len() });
        }
        let (mut sets, mut outcomes) = (0, Vec::new());
        for id in SetId::ALL {
            match self.sets.destroy(&id.name(family)) {
                Ok(was_there) => sets += usize::from(was_there),
                Err(error) => outcomes.push(("set", Err(error))),
            }
        }
        in_one(outcomes).map(|()| Removed { servers: ours.len(), sets, in_use: 0 })
    }

    /// Removes the interface that holds the Services' addresses, unless it has foreign ones; says
    /// whether it was removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_interface(&mut self) -> Result<bool> {
        for family in IpFamily::ALL {
            if !Addresses::read(self, family)?.on_interface.is_empty() {
                return Ok(false);
            }
        }
        self.links.delete(INTERFACE)
    }
}

/// Our virtual servers, but for those that were excluded.
fn removable(found: &Baseline, features: &Features) -> Vec<Frontend> {
    let excluded = |it: &IpAddr| features.exclude.iter().any(|cidr| cidr.contains(it));
    let ours = found.servers.iter().filter(|(at, held)| !held.is_foreign && !excluded(&at.address));
    ours.map(|(at, _)| *at).collect()
}

/// Lets virtual servers get no new connections; returns those that have connections now.
fn drain(kernel: &mut Kernel, ours: &[Frontend]) -> Result<BTreeSet<Frontend>> {
    let (mut in_use, mut changes) = (BTreeSet::new(), Vec::new());
    for at in ours {
        let reals = kernel.servers.real_servers(at)?;
        if reals.iter().all(|(_, connections)| *connections == 0) {
            continue;
        }
        in_use.insert(*at);
        let taking = reals.into_iter().map(|(real, _)| real).filter(|real| real.weight > 0);
        changes.extend(taking.map(|real| ServerOperation::UpdateReal(*at, RealServer { weight: 0, ..real })));
    }
    run(kernel, &changes).map(|()| in_use)
}

/// Removes our addresses from our interface, but for those of virtual servers that stay.
fn remove_addresses(kernel: &mut Kernel, found: &Baseline, stays: &BTreeSet<Frontend>) -> Result<()> {
    let needed: BTreeSet<IpAddr> = stays.iter().map(|at| at.address).collect();
    let ours = found.facts.keys().filter_map(|fact| match fact {
        Fact::Address(address) if !needed.contains(address) => Some(*address),
        _ => None,
    });
    kernel.links.change_addresses(INTERFACE, &[], &ours.collect::<Vec<_>>()).map(|_| ())
}

fn remove_servers(kernel: &mut Kernel, ours: &[Frontend]) -> Result<()> {
    let removals: Vec<_> = ours.iter().map(|at| ServerOperation::Remove(*at)).collect();
    run(kernel, &removals)
}

/// Changes virtual servers; what has gone meanwhile is no error.
fn run(kernel: &mut Kernel, operations: &[ServerOperation]) -> Result<()> {
    let refused = kernel.servers.run(operations)?;
    match refused.iter().find(|refused| !refused.is_missing()) {
        Some(refused) => bail!("virtual server: {}", refused.message),
        None => Ok(()),
    }
}

/// Those of our chains that there are, with their tables.
async fn existing_chains(tools: &mut impl Xtables) -> Result<BTreeSet<(&'static str, &'static str)>> {
    let mut found = BTreeSet::new();
    for (table, chains) in CHAINS {
        let mut visit = |part: Part<&str>| match part {
            Part::Start => found.retain(|(known, _)| *known != table),
            Part::Item(chain) => {
                let ours = chains.iter().copied().find(|ours| *ours == chain);
                found.extend(ours.map(|ours| (table, ours)));
            }
        };
        tools.chains(table, &mut visit).await?;
    }
    Ok(found)
}

/// Empties chains that are there, and deletes them if asked to.
async fn rewrite(tools: &mut impl Xtables, table: &str, chains: &[&str], delete: bool) -> Result<()> {
    if chains.is_empty() {
        return Ok(());
    }
    let mut text = format!("*{table}\n");
    chains.iter().for_each(|chain| text.push_str(&format!(":{chain} - [0:0]\n")));
    chains.iter().filter(|_| delete).for_each(|chain| text.push_str(&format!("-X {chain}\n")));
    text.push_str("COMMIT\n");
    Ok(tools.restore(&mut std::iter::once(text)).await?)
}

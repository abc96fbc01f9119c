//! Taking down what carries our names, and no foreign virtual servers.

use super::Kernel;
use super::desired::{Baseline, Fact};
use super::names::{INTERFACE, SetId};
use super::observe::{self, Addresses};
use super::restore_input::{self, Features};
use crate::backend::mode::OpenConnections;
use crate::backend::own_rules::{OwnRules, in_one};
use crate::kernel::iptables::Xtables;
use crate::model::{Frontend, IpFamily, RealServer, ServerOperation};
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Removes the rules and sets that kube-proxy does not have: a run before this one made them.
///
/// # Errors
/// All that went wrong, in one. As long as rules are left, so are the sets.
pub(super) async fn remove_additions(
    tools: &mut impl Xtables,
    kernel: &mut Kernel,
    family: IpFamily,
) -> Result<()> {
    let found = own_rules(false).find(tools, &own_rules(true)).await?;
    if !found.is_empty() {
        found.remove(tools, tools.flavor().most_chains()).await?;
    }
    for id in SetId::ALL.into_iter().filter(|id| id.is_ours()) {
        kernel.sets.destroy(&id.name(family))?;
    }
    Ok(())
}

/// What this mode has by its names, all of it or what kube-proxy has, too.
pub(in crate::backend) fn own_rules(upstream_compat: bool) -> OwnRules {
    let chains = restore_input::chains(upstream_compat).iter();
    OwnRules {
        chains: chains.flat_map(|(table, chains)| chains.iter().map(|chain| (*table, *chain))).collect(),
        jumps: restore_input::jumps(upstream_compat).collect(),
        services: None,
    }
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

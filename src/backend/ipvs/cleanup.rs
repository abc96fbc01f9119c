//! Taking down what carries our names, and no foreign virtual servers.

use super::Kernel;
use super::desired::{Baseline, Fact};
use super::names::{INTERFACE, SetId};
use super::observe::{self, Addresses};
use super::restore_input::{self, Features};
use crate::backend::own_rules::{OwnRules, in_one};
use crate::kernel::iptables::Xtables;
use crate::model::{IpFamily, ServerOperation};
use anyhow::{Result, bail};

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
}

impl Kernel {
    /// Removes our virtual servers and addresses, and then the sets by which they are known for ours.
    ///
    /// # Errors
    /// All that went wrong, in one. As long as virtual servers are left, so are the sets.
    pub fn remove_leftovers(&mut self, family: IpFamily, features: &Features) -> Result<Removed> {
        let addresses = Addresses::read(self, family)?;
        let found = observe::all(self, family, features, &addresses)?;
        let servers = remove_servers(self, features, &found)?;
        remove_addresses(self, &found)?;
        let (mut sets, mut outcomes) = (0, Vec::new());
        for id in SetId::ALL {
            match self.sets.destroy(&id.name(family)) {
                Ok(was_there) => sets += usize::from(was_there),
                Err(error) => outcomes.push(("set", Err(error))),
            }
        }
        in_one(outcomes).map(|()| Removed { servers, sets })
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

fn remove_addresses(kernel: &mut Kernel, found: &Baseline) -> Result<()> {
    let ours = found.facts.keys().filter_map(|fact| match fact {
        Fact::Address(address) => Some(*address),
        _ => None,
    });
    kernel.links.change_addresses(INTERFACE, &[], &ours.collect::<Vec<_>>()).map(|_| ())
}

fn remove_servers(kernel: &mut Kernel, features: &Features, found: &Baseline) -> Result<usize> {
    let excluded = |it: &std::net::IpAddr| features.exclude.iter().any(|cidr| cidr.contains(it));
    let ours = found.servers.iter().filter(|(at, held)| !held.is_foreign && !excluded(&at.address));
    let removals: Vec<_> = ours.map(|(at, _)| ServerOperation::Remove(*at)).collect();
    let refused = kernel.servers.run(&removals)?;
    match refused.iter().find(|refused| !refused.is_missing()) {
        Some(refused) => bail!("virtual server: {}", refused.message),
        None => Ok(removals.len()),
    }
}

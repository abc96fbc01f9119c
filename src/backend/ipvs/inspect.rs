//! What a plan wants of IPVS and of the rules around it, and what the kernel has of it, for people.

use super::Kernel;
use super::apply::set_spec;
use super::desired::{Desired, Fact, Server};
use super::names::{INTERFACE, SetId};
use super::restore_input::{self, Features, Rules};
use super::text::entry_text;
use crate::backend::KernelObject;
use crate::backend::packet_trace::{Packet, PacketTrace, Tables, TraceOutcome};
use crate::model::{Frontend, IpFamily, Protocol, RealServer, SetEntry, VirtualServer};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

const SERVER: &str = "virtual server ";
const SET: &str = "set ";

/// Virtual servers, entries of sets, the addresses on our interface, and the rules around them.
pub(super) fn wanted(desired: &Desired<'_>, features: &Features) -> Vec<KernelObject> {
    let parts = desired.services.iter().filter_map(|(_, part)| part.as_ref());
    let mut objects: Vec<KernelObject> = Vec::new();
    let mut shared: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for part in parts {
        objects.extend(part.servers.iter().map(|(at, server)| object(at, server)));
        for fact in &part.facts {
            let (name, line) = match fact {
                Fact::Address(address) => (INTERFACE.to_owned(), address.to_string()),
                Fact::Entry(id, entry) => {
                    (format!("{SET}{}", id.name(desired.plan.settings.family)), entry_text(entry))
                }
                // A rule of its own, which is watched with all other rules.
                Fact::Guard(_) => continue,
            };
            shared.entry(name).or_default().insert(line);
        }
    }
    let of_several = |(name, lines): (String, BTreeSet<String>)| KernelObject {
        name,
        lines: lines.into_iter().collect(),
        is_shared: true,
    };
    objects.extend(shared.into_iter().map(of_several));
    objects.extend(chains(desired, features));
    objects
}

/// Our chains, and the built-in ones with the jumps that lead to them. What they hold depends on which sets have entries.
fn chains(desired: &Desired<'_>, features: &Features) -> impl Iterator<Item = KernelObject> + use<> {
    let parts = desired.services.iter().filter_map(|(_, part)| part.as_ref());
    let facts: BTreeSet<&Fact> = parts.flat_map(|part| &part.facts).collect();
    let (mut set_sizes, mut guards) = ([0; SetId::ALL.len()], Vec::new());
    for fact in facts {
        match fact {
            Fact::Entry(id, _) => set_sizes[id.index()] += 1,
            Fact::Guard(at) => guards.push(*at),
            Fact::Address(_) => {}
        }
    }
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (table, names) in restore_input::chains(features.upstream_compat) {
        chains.extend(names.iter().map(|name| (format!("{table} {name}"), Vec::new())));
    }
    let rules = Rules { settings: desired.plan.settings, features, set_sizes, guards };
    rules.each(&mut |table, chain, rule| {
        chains.entry(format!("{table} {chain}")).or_default().push(rule.to_string());
    });
    for jump in restore_input::jumps(features.upstream_compat) {
        chains.entry(format!("{} {}", jump.table, jump.from)).or_default().push(jump.arguments());
    }
    chains.into_iter().map(|(name, lines)| KernelObject { name, lines, is_shared: true })
}

/// Whether an object is a chain.
pub(super) fn is_chain(object: &KernelObject) -> bool {
    let table = object.name.split_once(' ').map_or("", |(table, _)| table);
    restore_input::CHAINS.iter().any(|(known, _)| *known == table)
}

/// Whether an object, by its name, is a built-in chain, in which other programs have rules, too.
pub(super) fn is_built_in(object: &str) -> bool {
    restore_input::jumps(false).any(|jump| object.split_once(' ') == Some((jump.table, jump.from)))
}

fn object(at: &Frontend, server: &Server) -> KernelObject {
    let lines = std::iter::once(switches(&server.with)).chain(server.reals.iter().map(real));
    KernelObject { name: format!("{SERVER}{at}"), lines: lines.collect(), is_shared: false }
}

fn switches(with: &VirtualServer) -> String {
    let affinity = with.affinity_seconds.map(|seconds| format!(", clients stick for {seconds} s"));
    format!("scheduler {}{}", with.scheduler.name, affinity.unwrap_or_default())
}

fn real(real: &RealServer) -> String {
    format!("real server {} weight {}", real.address, real.weight)
}

/// What the kernel has of these objects: the lines of each, or `None` where there is no such object.
/// Real servers that are being drained (weight 0) are part of it.
///
/// # Errors
/// When the kernel cannot be asked.
pub(super) fn found(
    kernel: &mut Kernel,
    family: IpFamily,
    wanted: &[KernelObject],
) -> Result<Vec<Option<Vec<String>>>> {
    let addresses = kernel.links.addresses(family)?;
    let mut found = Vec::new();
    for object in wanted {
        if object.name == INTERFACE {
            let ours = addresses.iter().filter(|it| it.interface == INTERFACE);
            found.push(Some(ours.map(|it| it.address.to_string()).collect()));
            continue;
        }
        if let Some(id) = SetId::ALL.into_iter().find(|id| object.name == format!("{SET}{}", id.name(family)))
        {
            let entries = kernel.sets.entries(set_spec(id, &id.name(family), family))?;
            found.push(entries.map(|entries| entries.iter().map(entry_text).collect()));
            continue;
        }
        let at = frontend(&object.name).with_context(|| format!("no kernel object: {}", object.name))?;
        let Some((_, with)) = kernel.servers.find(&at)? else {
            found.push(None);
            continue;
        };
        let first = with.as_ref().map_or_else(|| "switches that are not ours".to_owned(), switches);
        let reals = real_servers(kernel, &at)?;
        found.push(Some(std::iter::once(first).chain(reals.iter().map(real)).collect()));
    }
    Ok(found)
}

/// Of which frontend a virtual server is, by the name that `object` gave it.
fn frontend(name: &str) -> Option<Frontend> {
    let (at, protocol) = name.strip_prefix(SERVER)?.rsplit_once('/')?;
    let at: SocketAddr = at.parse().ok()?;
    let protocol = Protocol::ALL.into_iter().find(|it| it.as_str() == protocol)?;
    Some(Frontend { address: at.ip(), port: at.port(), protocol })
}

fn real_servers(kernel: &mut Kernel, at: &Frontend) -> Result<Vec<RealServer>> {
    let mut reals: Vec<RealServer> = kernel.servers.real_servers(at)?.into_iter().map(|it| it.0).collect();
    reals.sort_unstable();
    Ok(reals)
}

/// What besides rules decides about packets to a frontend.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// Our sets, by name.
    pub(super) sets: BTreeMap<String, BTreeSet<SetEntry>>,
    /// The frontend and its real servers, if it has a virtual server.
    pub(super) server: Option<(Frontend, Vec<RealServer>)>,
    /// The node's addresses, those of Services included.
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl Surroundings {
    /// As the kernel has them.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) fn read(kernel: &mut Kernel, to: Frontend) -> Result<Surroundings> {
        let family = to.family();
        let mut found = Surroundings::default();
        for id in SetId::ALL {
            let name = id.name(family);
            if let Some(entries) = kernel.sets.entries(set_spec(id, &name, family))? {
                found.sets.insert(name, entries);
            }
        }
        if kernel.servers.find(&to)?.is_some() {
            found.server = Some((to, real_servers(kernel, &to)?));
        }
        found.addresses = kernel.links.addresses(family)?.into_iter().map(|it| it.address).collect();
        Ok(found)
    }
}

/// What becomes of a packet on its way through these chains (`table CHAIN`), the sets and the virtual
/// server.
pub(super) fn trace(chains: &[KernelObject], around: &Surroundings, packet: &Packet) -> Vec<TraceOutcome> {
    let mut tables = Tables::default();
    for object in chains {
        let Some((table, chain)) = object.name.split_once(' ') else { continue };
        tables.add_ours(table, chain, object.lines.iter().map(String::as_str));
    }
    around.sets.iter().for_each(|(name, entries)| tables.add_set(name, entries.clone()));
    if let Some((at, reals)) = &around.server {
        tables.add_server(*at, reals.clone());
    }
    let is_local = |address: IpAddr| address.is_loopback() || around.addresses.contains(&address);
    let mut packet = packet.clone();
    let to = packet.destination.ip();
    if packet.interface.is_none() && is_local(to) && !to.is_loopback() {
        // What the node sends to an address of its own has that address as its source, too.
        packet.source = to;
    }
    PacketTrace { tables: &tables, is_local: &is_local }.trace(&packet, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_server_is_found_again_by_its_name() {
        for address in ["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()] {
            for protocol in Protocol::ALL {
                let at = Frontend { address, port: 80, protocol };
                assert_eq!(frontend(&format!("{SERVER}{at}")), Some(at));
            }
        }
        assert_eq!(frontend("set KUBE-CLUSTER-IP"), None);
    }
}

//! What a plan wants of IPVS, and what the kernel has of it, for people.

use super::desired::{Desired, Fact, Server};
use super::names::INTERFACE;
use crate::backend::KernelObject;
use crate::kernel::ipvs::VirtualServers;
use crate::kernel::links::Links;
use crate::model::{Frontend, IpFamily, RealServer, VirtualServer};
use anyhow::Result;
use std::collections::BTreeMap;

const SERVER: &str = "virtual server ";

/// Virtual servers, and the addresses on our interface.
pub(super) fn wanted(desired: &Desired<'_>) -> Vec<KernelObject> {
    let parts = desired.services.iter().filter_map(|(_, part)| part.as_ref());
    let mut objects: Vec<KernelObject> = Vec::new();
    let mut addresses = Vec::new();
    for part in parts {
        objects.extend(part.servers.iter().map(|(at, server)| object(at, server)));
        addresses.extend(part.facts.iter().filter_map(|fact| match fact {
            Fact::Address(address) => Some(address.to_string()),
            _ => None,
        }));
    }
    addresses.sort();
    addresses.dedup();
    if !addresses.is_empty() {
        objects.push(KernelObject { name: INTERFACE.to_owned(), lines: addresses, is_shared: true });
    }
    objects
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
pub fn look(
    servers: &mut dyn VirtualServers,
    links: &mut dyn Links,
    (family, wanted): (IpFamily, &[KernelObject]),
) -> Result<Vec<Option<Vec<String>>>> {
    let listed: BTreeMap<String, (Frontend, Option<VirtualServer>)> =
        servers.list()?.into_iter().map(|(at, with)| (format!("{SERVER}{at}"), (at, with))).collect();
    let addresses = links.addresses(family)?;
    let mut found = Vec::new();
    for object in wanted {
        if object.name == INTERFACE {
            let ours = addresses.iter().filter(|it| it.interface == INTERFACE);
            found.push(Some(ours.map(|it| it.address.to_string()).collect()));
            continue;
        }
        let Some((at, with)) = listed.get(&object.name) else {
            found.push(None);
            continue;
        };
        let first = with.as_ref().map_or_else(|| "switches that are not ours".to_owned(), switches);
        let mut reals: Vec<RealServer> = servers.real_servers(at)?.into_iter().map(|it| it.0).collect();
        reals.sort_unstable();
        found.push(Some(std::iter::once(first).chain(reals.iter().map(real)).collect()));
    }
    Ok(found)
}

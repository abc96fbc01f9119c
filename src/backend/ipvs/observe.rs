//! Looking at the kernel: what is there, whose it is, and whether it is still as we left it.

use super::Kernel;
use super::apply::set_spec;
use super::desired::{Baseline, Fact, Held, Server};
use super::input::Features;
use super::names::{INTERFACE, SetId};
use crate::model::{Frontend, IpFamily, IpvsScheduler, Protocol, RealServer, SetEntry, VirtualServer};
use anyhow::Result;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

/// Virtual servers whose real servers one check looks at.
const CHECKED_AT_ONCE: usize = 100;
/// Up to this many virtual servers, every check looks at all of them; above, only every so often.
const LISTED_AT_EVERY_CHECK: usize = 500;

/// The node's addresses of a family: those on our interface, and all others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) on_interface: BTreeSet<IpAddr>,
    pub(super) node: BTreeSet<IpAddr>,
}

impl Addresses {
    pub(super) fn read(kernel: &mut Kernel, family: IpFamily) -> Result<Self> {
        let mut addresses = Addresses::default();
        for found in kernel.links.addresses(family)? {
            // The kernel gives one to every interface; no Service has one, and new pods bring new ones.
            if matches!(found.address, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
                continue;
            }
            match found.interface == INTERFACE {
                true => addresses.on_interface.insert(found.address),
                false => addresses.node.insert(found.address),
            };
        }
        Ok(addresses)
    }

    /// How many of those that we gave our interface it still has.
    pub(super) fn count_ours(&self, baseline: &Baseline) -> usize {
        let is_ours = |address: &&IpAddr| baseline.facts.contains_key(&Fact::Address(**address));
        self.on_interface.iter().filter(is_ours).count()
    }
}

/// Everything of a family that is there.
pub(super) fn all(
    kernel: &mut Kernel,
    family: IpFamily,
    features: &Features,
    addresses: &Addresses,
) -> Result<Baseline> {
    let mut baseline = Baseline::default();
    for id in SetId::in_use(features.upstream_compat) {
        let entries = kernel.sets.entries(set_spec(id, &id.name(family), family))?;
        entries.into_iter().flatten().for_each(|entry| baseline.note_found(Fact::Entry(id, entry)));
    }
    // Entries come before addresses and go after them: an address without an entry is not ours.
    for address in &addresses.on_interface {
        let entry = Fact::Entry(SetId::IpvsIps, SetEntry::Ip(*address));
        if features.upstream_compat || baseline.facts.contains_key(&entry) {
            baseline.note_found(Fact::Address(*address));
        }
    }
    for (at, with) in kernel.servers.list()? {
        if at.family() != family {
            continue;
        }
        let mut reals: Vec<RealServer> =
            kernel.servers.real_servers(&at)?.into_iter().map(|(real, _)| real).collect();
        reals.sort_unstable();
        let is_strange = with.is_none();
        let with = with.unwrap_or_else(|| VirtualServer {
            scheduler: IpvsScheduler::as_upstream(""),
            affinity_seconds: None,
        });
        let is_foreign = !is_ours(&baseline, &at, features);
        let held =
            Held { server: Arc::new(Server { with, reals }), is_strange, is_foreign, owners: Vec::new() };
        baseline.note_server(at, Some(held));
    }
    Ok(baseline)
}

/// Whether a virtual server was made by us, or by a kube-proxy before us: our sets name every
/// frontend. Entries come before a virtual server and go after it, so a crash does not part them.
fn is_ours(baseline: &Baseline, at: &Frontend, features: &Features) -> bool {
    let has = |set, entry| baseline.facts.contains_key(&Fact::Entry(set, entry));
    let node_port = match at.protocol {
        Protocol::Tcp => has(SetId::NodePortTcp, SetEntry::Port(at.port)),
        Protocol::Udp => has(SetId::NodePortUdp, SetEntry::Port(at.port)),
        Protocol::Sctp => has(SetId::NodePortSctp, SetEntry::IpPort(*at)),
    };
    let by_address = [SetId::ClusterIp, SetId::ExternalIp, SetId::ExternalIpLocal, SetId::LoadBalancer];
    features.upstream_compat || node_port || by_address.into_iter().any(|set| has(set, SetEntry::IpPort(*at)))
}

/// Where the rounds of checking have got to.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// Checks made so far.
    checks: usize,
    /// The virtual server whose real servers were looked at last.
    last: Option<Frontend>,
}

impl Rounds {
    /// What of ours is missing or different.
    pub(super) fn check(
        &mut self,
        kernel: &mut Kernel,
        family: IpFamily,
        upstream_compat: bool,
        baseline: &Baseline,
    ) -> Result<Option<String>> {
        for id in SetId::in_use(upstream_compat) {
            let name = id.name(family);
            let (found, wanted) =
                (kernel.sets.count(set_spec(id, &name, family))?, baseline.set_sizes[id.index()]);
            match found {
                None => return Ok(Some(format!("ipset {name} is gone"))),
                Some(found) if found != wanted => {
                    return Ok(Some(format!("ipset {name} has {found} entries and not {wanted}")));
                }
                Some(_) => {}
            }
        }
        self.checks += 1;
        if !self.checks.is_multiple_of(1 + baseline.servers.len() / LISTED_AT_EVERY_CHECK) {
            return Ok(None);
        }
        if let Some(lost) = lost_server(kernel, baseline)? {
            return Ok(Some(lost));
        }
        self.check_real_servers(kernel, baseline)
    }

    fn check_real_servers(&mut self, kernel: &mut Kernel, baseline: &Baseline) -> Result<Option<String>> {
        let start = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let ours = baseline.servers.range((start, Bound::Unbounded)).filter(|(_, held)| !held.is_foreign);
        let (mut last, mut looked) = (None, 0);
        for (at, held) in ours.take(CHECKED_AT_ONCE) {
            (last, looked) = (Some(*at), looked + 1);
            let there: BTreeSet<RealServer> =
                kernel.servers.real_servers(at)?.into_iter().map(|(real, _)| real).collect();
            if !held.server.reals.iter().copied().eq(there) {
                return Ok(Some(format!("real servers of {at} were changed")));
            }
        }
        // The end is reached: the next check begins anew.
        self.last = last.filter(|_| looked == CHECKED_AT_ONCE);
        Ok(None)
    }
}

fn lost_server(kernel: &mut Kernel, baseline: &Baseline) -> Result<Option<String>> {
    let listed: std::collections::BTreeMap<_, _> = kernel.servers.list()?.into_iter().collect();
    let ours = baseline.servers.iter().filter(|(_, held)| !held.is_foreign);
    for (at, held) in ours {
        match listed.get(at) {
            None => return Ok(Some(format!("virtual server {at} is gone"))),
            Some(with) if with.as_ref() != Some(&held.server.with) => {
                return Ok(Some(format!("virtual server {at} was changed")));
            }
            Some(_) => {}
        }
    }
    Ok(None)
}

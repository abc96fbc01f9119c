//! Looking at the kernel: what is there, and whose it is.

use super::Kernel;
use super::apply::set_spec;
use super::desired::{Baseline, Fact, Held, Server};
use super::names::{INTERFACE, SetId};
use super::restore_input::Features;
use crate::model::{Frontend, IpFamily, IpvsScheduler, Protocol, RealServer, SetEntry, VirtualServer};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

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
}

/// Sets whose entries are frontends.
const BY_ADDRESS: [SetId; 5] =
    [SetId::ClusterIp, SetId::ExternalIp, SetId::ExternalIpLocal, SetId::LoadBalancer, SetId::NodePortSctp];

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
    let named: BTreeSet<Frontend> = named(&baseline, addresses).collect();
    for (at, with, reals) in servers(kernel, family, &named)? {
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

/// A virtual server, its switches if they are ours, and its real servers.
type Found = (Frontend, Option<VirtualServer>, Vec<RealServer>);

/// All virtual servers of a family. The list may lack some, and so may the survey; the kernel is then asked for each
/// that is `named`, so that none of ours is passed over.
fn servers(kernel: &mut Kernel, family: IpFamily, named: &BTreeSet<Frontend>) -> Result<Vec<Found>> {
    let mut surveyed: BTreeMap<Frontend, Vec<RealServer>> = BTreeMap::new();
    kernel.servers.survey(&mut |at, reals| {
        if at.family() == family {
            surveyed.insert(at, reals.to_vec());
        }
    });
    let mut listed: BTreeMap<_, _> = kernel.servers.list()?.into_iter().collect();
    for at in surveyed.keys().chain(named) {
        if !listed.contains_key(at) {
            listed.extend(kernel.servers.find(at)?);
        }
    }
    let mut found = Vec::new();
    for (at, with) in listed.into_iter().filter(|(at, _)| at.family() == family) {
        let mut reals = match surveyed.remove(&at) {
            Some(reals) => reals,
            None => kernel.servers.real_servers(&at)?.into_iter().map(|(real, _)| real).collect(),
        };
        reals.sort_unstable();
        found.push((at, with, reals));
    }
    Ok(found)
}

/// Whether a virtual server was made by us, or by a kube-proxy before us: our sets name every
/// frontend. Entries come before a virtual server and go after it, so a crash does not part them.
fn is_ours(baseline: &Baseline, at: &Frontend, features: &Features) -> bool {
    let has = |set, entry| baseline.facts.contains_key(&Fact::Entry(set, entry));
    let by_port = match at.protocol {
        Protocol::Tcp => has(SetId::NodePortTcp, SetEntry::Port(at.port)),
        Protocol::Udp => has(SetId::NodePortUdp, SetEntry::Port(at.port)),
        Protocol::Sctp => false,
    };
    features.upstream_compat || by_port || BY_ADDRESS.into_iter().any(|set| has(set, SetEntry::IpPort(*at)))
}

/// The frontends that our sets name.
fn named(baseline: &Baseline, addresses: &Addresses) -> impl Iterator<Item = Frontend> {
    let node_port = |protocol, port| {
        // The kernel has no virtual servers there.
        let usable = addresses.node.iter().filter(|address| !address.is_loopback());
        usable.map(move |address| Frontend { address: *address, port, protocol }).collect()
    };
    baseline.facts.keys().flat_map(move |fact| match *fact {
        Fact::Entry(set, SetEntry::IpPort(at)) if BY_ADDRESS.contains(&set) => vec![at],
        Fact::Entry(SetId::NodePortTcp, SetEntry::Port(port)) => node_port(Protocol::Tcp, port),
        Fact::Entry(SetId::NodePortUdp, SetEntry::Port(port)) => node_port(Protocol::Udp, port),
        _ => Vec::new(),
    })
}

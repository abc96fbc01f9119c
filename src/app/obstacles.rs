//! Rules of other programs in the way of Services' packets: read once for a family, then walked for each Service.

use crate::backend::{ChainRules, ForeignEffect, ForeignRule, KnownPart, foreign_rules};
use crate::explain::{Bridged, EndpointView, FamilyView, Obstacle, PortView};
use crate::kernel::addresses::{InterfaceAddress, interface_addresses};
use crate::kernel::iptables::{Flavor, Place, Tools, find};
use crate::kernel::sysctl::Sysctls;
use crate::kernel::{links, xtables_info};
use crate::model::{IpFamily, Protocol};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The rules that Services' packets meet besides our own.
pub(super) struct Surroundings {
    /// What stands before a rule, where it is not of the tools that the proxy uses.
    prefix: &'static str,
    filter: ChainRules,
    /// The tables whose rules see a packet before the Services' rules do.
    before_ours: [(&'static str, ChainRules); 2],
    interfaces: Vec<InterfaceAddress>,
}

impl Surroundings {
    /// Reads them, with as many processes as there are tables.
    ///
    /// # Errors
    /// The tools' words.
    pub(super) async fn read(tools: &Tools, family: IpFamily) -> Result<Surroundings> {
        Ok(Surroundings {
            prefix: "",
            filter: tools.table("filter").await?,
            before_ours: before_ours(tools).await?,
            interfaces: interface_addresses(family).unwrap_or_default(),
        })
    }

    /// Reads the legacy tables beside those of nf_tables: packets meet both. A table that is not there is not made.
    ///
    /// # Errors
    /// The tools' words.
    pub(super) async fn of_legacy(family: IpFamily) -> Result<Option<Surroundings>> {
        let is_used = |table: &str| xtables_info::num_entries(family, table).is_ok_and(|size| size.is_some());
        if !["filter", "nat", "raw"].into_iter().any(is_used) {
            return Ok(None);
        }
        let tools = find(family, Some(Flavor::Legacy)).await?;
        let nat = tools.table_in_use("nat").await?;
        Ok(Some(Surroundings {
            prefix: "iptables-legacy: ",
            filter: if is_used("filter") { tools.table("filter").await? } else { ChainRules::new() },
            before_ours: [("raw", tools.table_in_use("raw").await?), ("nat", nat)],
            interfaces: interface_addresses(family).unwrap_or_default(),
        }))
    }

    /// What stands in the way of these Services' packets; each rule once, with the Services that it concerns.
    pub(super) fn obstacles<'v>(
        &self,
        services: impl IntoIterator<Item = (&'v str, &'v FamilyView)>,
        own: &[IpAddr],
    ) -> Vec<Obstacle> {
        let mut found: BTreeMap<Obstacle, BTreeSet<&str>> = BTreeMap::new();
        let mut outgoing = HashMap::new();
        for (service, family) in services {
            for obstacle in self.of_family(family, own, &mut outgoing) {
                found.entry(obstacle).or_default().insert(service);
            }
        }
        let with_services = |(obstacle, services): (Obstacle, BTreeSet<&str>)| Obstacle {
            rule: format!("{}{}", self.prefix, obstacle.rule),
            services: services.into_iter().map(str::to_owned).collect(),
            ..obstacle
        };
        found.into_iter().map(with_services).collect()
    }

    /// Forwarded packets meet rules on their way to an endpoint, and others before our rules see them.
    fn of_family(
        &self,
        family: &FamilyView,
        own: &[IpAddr],
        outgoing: &mut HashMap<IpAddr, Option<String>>,
    ) -> BTreeSet<Obstacle> {
        let mut found = BTreeSet::new();
        for port in &family.ports {
            let used = port.endpoints.iter().filter(|endpoint| endpoint.is_used());
            // What goes to the node itself is not forwarded.
            let forwarded = used.filter(|endpoint| !own.contains(&endpoint.ip));
            for to in forwarded.filter_map(EndpointView::address) {
                let out_interface = outgoing.entry(to.ip()).or_insert_with(|| self.out_interface(to)).clone();
                let packet = KnownPart { to, protocol: protocol(port), out_interface };
                let rules = foreign_rules(&self.filter, "FORWARD", &packet).into_iter();
                found.extend(rules.map(|rule| Obstacle::of(&rule, None)));
            }
            for to in port.frontends.iter().filter_map(|frontend| frontend.address.parse().ok()) {
                for (table, chains) in &self.before_ours {
                    found.extend(met_before_ours(chains, table, (to, protocol(port)), own));
                }
            }
        }
        found
    }

    /// The interface by which packets leave for an address: the one that has the address that the kernel would send
    /// from.
    fn out_interface(&self, to: SocketAddr) -> Option<String> {
        let from = source_towards(to)?;
        self.interfaces.iter().find(|it| it.address == from).map(|it| it.interface.clone())
    }
}

/// The address that the kernel sends from to another one. Nothing is sent.
fn source_towards(to: SocketAddr) -> Option<IpAddr> {
    let unspecified: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((unspecified, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The bridges that used endpoints of this node are on, where packets between their ports go past the rules of a family.
pub(super) fn bridged<'v>(
    family: IpFamily,
    views: impl IntoIterator<Item = &'v FamilyView>,
) -> Option<Bridged> {
    let (path, setting) = match family {
        IpFamily::V4 => ("net/bridge/bridge-nf-call-iptables", "net.bridge.bridge-nf-call-iptables"),
        IpFamily::V6 => ("net/bridge/bridge-nf-call-ip6tables", "net.bridge.bridge-nf-call-ip6tables"),
    };
    let value = Sysctls::default().read(path).ok();
    if value.as_deref() == Some("1") {
        return None;
    }
    let addresses = interface_addresses(family).ok()?;
    let interface =
        |from: IpAddr| addresses.iter().find(|it| it.address == from).map(|it| it.interface.clone());
    let endpoints = views.into_iter().flat_map(|view| &view.ports).flat_map(|port| &port.endpoints);
    let local = endpoints.filter(|it| it.local && it.is_used()).filter_map(EndpointView::address);
    let local: BTreeSet<SocketAddr> = local.collect();
    let interfaces: BTreeSet<String> =
        local.into_iter().filter_map(source_towards).filter_map(interface).collect();
    // A pod alone on its bridge has no neighbour there.
    let bridges: Vec<String> = interfaces.into_iter().filter(|name| links::bridge_ports(name) > 1).collect();
    (!bridges.is_empty()).then_some(Bridged { bridges, setting, is_loaded: value.is_some() })
}

async fn before_ours(tools: &Tools) -> Result<[(&'static str, ChainRules); 2]> {
    let mut nat = ChainRules::new();
    for chain in ["PREROUTING", "OUTPUT"] {
        let rules = tools.rules(Place { table: "nat", chain }).await?.unwrap_or_default();
        nat.insert(chain.to_owned(), rules);
    }
    // The rest of the table is nearly all Services', so that it is read only where it has to be.
    if nat.values().flatten().any(|rule| leads_to_foreign_chain(rule)) {
        nat = tools.table("nat").await?;
    }
    for ours in ["KUBE-SERVICES", "KUBE-POSTROUTING"] {
        nat.entry(ours.to_owned()).or_default();
    }
    Ok([("raw", tools.table_in_use("raw").await?), ("nat", nat)])
}

/// Whether a rule's target is a chain that is not a service proxy's.
fn leads_to_foreign_chain(rule: &str) -> bool {
    const TARGETS: [&str; 14] = [
        "ACCEPT",
        "DROP",
        "RETURN",
        "DNAT",
        "REDIRECT",
        "NOTRACK",
        "CT",
        "MARK",
        "LOG",
        "REJECT",
        "CONNMARK",
        "SNAT",
        "MASQUERADE",
        "TPROXY",
    ];
    let mut words = rule.split_whitespace().skip_while(|word| !["-j", "-g"].contains(word)).skip(1);
    words.next().is_some_and(|target| !TARGETS.contains(&target) && !target.starts_with("KUBE-"))
}

fn met_before_ours(
    chains: &ChainRules,
    table: &str,
    (to, protocol): (SocketAddr, Protocol),
    own: &[IpAddr],
) -> Vec<Obstacle> {
    let packet = KnownPart { to, protocol, out_interface: None };
    let local = own.contains(&to.ip()).then_some(to.ip());
    let rules = ["PREROUTING", "OUTPUT"].into_iter().flat_map(|start| foreign_rules(chains, start, &packet));
    let wanted = |rule: &ForeignRule| match table {
        "raw" => rule.effect != ForeignEffect::Redirects,
        _ => rule.effect == ForeignEffect::Redirects,
    };
    rules.filter(wanted).map(|rule| Obstacle::of(&rule, local)).collect()
}

/// The protocol of a port.
pub(super) fn protocol(port: &PortView) -> Protocol {
    Protocol::ALL.into_iter().find(|it| it.as_str() == port.protocol).unwrap_or_default()
}

//! What the node has for one Service, read live: rules or servers, settings, flows. Runs in the process
//! of the command that asks, never in the loop.

use super::output::complain;
use crate::backend::{
    self, ChainRules, ForeignEffect, ForeignRule, InspectedNode, Inspection, KnownPart, Packet, SERVER_RULE,
    TraceOutcome, foreign_rules,
};
use crate::config::{Config, Explain, Mode};
use crate::explain::{
    Decision, EndpointView, FamilyFacts, FamilyView, Flows, NodeState, Obstacle, PortFlows, PortView,
    ServiceView, Tracking,
};
use crate::kernel::addresses::{interface_addresses, local_addresses};
use crate::kernel::conntrack::{Conntrack, Destination, Part};
use crate::kernel::iptables::{Flavor, Place, Tools};
use crate::kernel::nft::Nft;
use crate::kernel::sysctl::Sysctls;
use crate::model::{IpFamily, Protocol, Verdict};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Frontends for each of which the table is listed by itself.
const MOST_LISTS: usize = 4;
/// Flows that are counted; a table can hold millions.
const MOST_FLOWS: u64 = 1_000_000;
/// Endpoints that are asked whether anything listens, and for how long.
const MOST_PROBED: usize = 16;
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// Everything there is to be seen around a Service.
pub(super) async fn around(config: &Config, view: &ServiceView, asked: &Explain) -> NodeState {
    let mut node = NodeState {
        tracking: tracking(),
        flows: or_warn("open flows are not counted", flows(view)),
        refusing: refusing(view).await,
        excluded_client: excluded_client(view, asked),
        node_port_range: Some(config.node_ports.range),
        ..NodeState::default()
    };
    let mode = backend::open(Mode::named(&view.mode).unwrap_or(config.mode));
    for family in &view.families {
        let Some(of) = family.ip_family() else { continue };
        let tools = tools(config, view, of).await;
        let own = or_warn("the node's addresses are unknown", local_addresses(of)).unwrap_or_default();
        let inspected = InspectedNode { family: of, tools: tools.as_ref(), addresses: &own };
        let looked = async {
            let obstacles = match inspected.tools() {
                Ok(tools) => obstacles(tools, family, &own).await?,
                // Nothing of this mode is written with them.
                Err(_) if !mode.facts().writes_iptables => Vec::new(),
                Err(error) => return Err(error),
            };
            Ok((obstacles, mode.inspect(&inspected, &family.wanted).await?))
        };
        let looked = looked.await;
        let found = looked.as_ref().map(|(_, inspection)| inspection.found.clone()).unwrap_or_default();
        node.families.push(family_facts((of, family), looked));
        for packet in packets((of, family), asked, &own) {
            // Where the kernel could not be read, what should be there decides.
            let objects = if found.is_empty() { &family.wanted } else { &found };
            match mode.trace(&inspected, objects, &packet).await {
                Ok(outcomes) => {
                    node.decisions.extend(outcomes.iter().map(|outcome| decision(outcome, &packet)))
                }
                Err(error) => complain(format_args!("Warning: the packet was not traced: {error:#}")),
            }
        }
    }
    node
}

/// What was found; where it could not be looked for, a warning and nothing.
fn or_warn<T>(what: &str, found: Result<T>) -> Option<T> {
    found.map_err(|error| complain(format_args!("Warning: {what}: {error:#}"))).ok()
}

fn family_facts(
    (of, family): (IpFamily, &FamilyView),
    looked: Result<(Vec<Obstacle>, Inspection)>,
) -> FamilyFacts {
    let forwarding = match of {
        IpFamily::V4 => "net/ipv4/ip_forward",
        IpFamily::V6 => "net/ipv6/conf/all/forwarding",
    };
    let forwards = Sysctls::default().read(forwarding).ok().map(|value| value != "0");
    let unseen = or_warn("nftables tables of other programs are not looked for", unseen_tables(of));
    let unseen_tables = unseen.unwrap_or_default();
    let facts =
        FamilyFacts { family: family.family.clone(), forwards, unseen_tables, ..FamilyFacts::default() };
    match looked {
        Ok((obstacles, Inspection { differences, .. })) => FamilyFacts { obstacles, differences, ..facts },
        Err(error) => FamilyFacts { unreadable: Some(format!("{error:#}")), ..facts },
    }
}

/// The nftables tables of other programs that packets of a family meet.
fn unseen_tables(family: IpFamily) -> Result<Vec<String>> {
    match Nft::open_if_there()? {
        Some(mut nft) => Ok(nft.foreign_tables(family)?.into_iter().collect()),
        None => Ok(Vec::new()),
    }
}

/// The tools that the proxy uses.
async fn tools(config: &Config, view: &ServiceView, family: IpFamily) -> Result<Tools> {
    let used = [Flavor::Nft, Flavor::Legacy].into_iter().find(|flavor| flavor.as_str() == view.flavor);
    backend::usable_tools(family, used.or_else(|| backend::flavor(config))).await
}

/// Rules of other programs in the way of the Service's packets: those that forwarded ones meet on their way to an
/// endpoint, and those that others meet before our rules.
async fn obstacles(tools: &Tools, family: &FamilyView, own: &[IpAddr]) -> Result<Vec<Obstacle>> {
    let filter = tools.table("filter").await?;
    let (mut found, mut interfaces) = (BTreeSet::new(), HashMap::new());
    for port in &family.ports {
        let used = port.endpoints.iter().filter(|endpoint| endpoint.is_used());
        for to in used.filter_map(EndpointView::address) {
            let out_interface = interfaces.entry(to.ip()).or_insert_with(|| out_interface(to)).clone();
            let packet = KnownPart { to, protocol: protocol(port), out_interface };
            let rules = foreign_rules(&filter, "FORWARD", &packet).into_iter();
            found.extend(rules.map(|rule| Obstacle::of(&rule, None)));
        }
    }
    for (table, chains) in before_ours(tools).await? {
        for port in &family.ports {
            for to in port.frontends.iter().filter_map(|frontend| frontend.address.parse().ok()) {
                found.extend(met_before_ours(&chains, table, (to, protocol(port)), own));
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// The tables whose rules see a packet before the Services' rules do.
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

/// The interface by which packets leave for an address: the one that has the address that the kernel would send from.
fn out_interface(to: SocketAddr) -> Option<String> {
    let unspecified: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((unspecified, 0)).ok()?;
    // Nothing is sent.
    socket.connect(to).ok()?;
    let from = socket.local_addr().ok()?.ip();
    let addresses = interface_addresses(IpFamily::of(from)).ok()?;
    addresses.into_iter().find(|it| it.address == from).map(|it| it.interface)
}

fn tracking() -> Option<Tracking> {
    let sysctls = Sysctls::default();
    let read = |name: &str| sysctls.read(&format!("net/netfilter/{name}")).ok()?.parse().ok();
    Some(Tracking { count: read("nf_conntrack_count")?, max: read("nf_conntrack_max")? })
}

fn protocol(port: &PortView) -> Protocol {
    Protocol::ALL.into_iter().find(|it| it.as_str() == port.protocol).unwrap_or_default()
}

/// Counts the flows to the Service's frontends, by port and by the endpoint that answers them.
fn flows(view: &ServiceView) -> Result<Flows> {
    let mut conntrack = Conntrack::open()?;
    let mut flows = Flows::default();
    for family in &view.families {
        let Some(of) = family.ip_family() else { continue };
        for protocol in Protocol::ALL {
            let ports: Vec<&PortView> =
                family.ports.iter().filter(|port| port.protocol == protocol.as_str()).collect();
            count(&mut conntrack, (of, protocol), &ports, &mut flows)?;
        }
    }
    Ok(flows)
}

/// Where flows to a Service's ports of one protocol go to.
#[derive(Default)]
struct Frontends {
    /// The port of an address.
    at: HashMap<SocketAddr, usize>,
    /// The port of a node port on every address.
    on_node: HashMap<u16, usize>,
}

impl Frontends {
    fn of(ports: &[&PortView]) -> Frontends {
        let mut frontends = Frontends::default();
        for (index, port) in ports.iter().enumerate() {
            for frontend in &port.frontends {
                if let Ok(address) = frontend.address.parse() {
                    frontends.at.insert(address, index);
                } else if let Some(number) =
                    frontend.address.strip_prefix("*:").and_then(|it| it.parse().ok())
                {
                    frontends.on_node.insert(number, index);
                }
            }
        }
        frontends
    }

    /// What the kernel is asked for: each frontend, or everything where that is cheaper.
    fn destinations(&self, protocol: Protocol) -> Vec<Destination> {
        if self.at.len() + self.on_node.len() > MOST_LISTS {
            return vec![Destination { protocol, address: None, port: None }];
        }
        let at = self.at.keys().map(|at| (Some(at.ip()), at.port()));
        let all = at.chain(self.on_node.keys().map(|port| (None, *port)));
        all.map(|(address, port)| Destination { protocol, address, port: Some(port) }).collect()
    }

    fn port_of(&self, to: SocketAddr) -> Option<usize> {
        self.at.get(&to).or_else(|| self.on_node.get(&to.port())).copied()
    }
}

fn count(
    conntrack: &mut Conntrack,
    (family, protocol): (IpFamily, Protocol),
    ports: &[&PortView],
    flows: &mut Flows,
) -> Result<()> {
    let frontends = Frontends::of(ports);
    let endpoints: Vec<HashSet<SocketAddr>> =
        ports.iter().map(|port| port.endpoints.iter().filter_map(EndpointView::address).collect()).collect();
    let mut counts: Vec<BTreeMap<SocketAddr, u64>> = vec![BTreeMap::new(); ports.len()];
    for to in frontends.destinations(protocol) {
        let (before, mut seen) = (counts.clone(), 0);
        conntrack.list(family, &to, &mut |part| match part {
            Part::Start => {
                counts.clone_from(&before);
                seen = 0;
            }
            Part::Item(flow) if seen < MOST_FLOWS => {
                seen += 1;
                let index = frontends.port_of(flow.destination).filter(|_| flow.protocol == protocol);
                let is_ours = |set: &HashSet<SocketAddr>| set.contains(&flow.reply_source);
                let index = index.filter(|index| endpoints.get(*index).is_some_and(is_ours));
                if let Some(counts) = index.and_then(|index| counts.get_mut(index)) {
                    *counts.entry(flow.reply_source).or_default() += 1;
                }
            }
            Part::Item(_) => {}
        })?;
        flows.is_cut |= seen == MOST_FLOWS;
    }
    let of_port = |(port, by_endpoint): (&&PortView, BTreeMap<SocketAddr, u64>)| PortFlows {
        family: family.to_string(),
        port: port.name.clone(),
        protocol: port.protocol.clone(),
        by_endpoint,
    };
    flows.ports.extend(ports.iter().zip(counts).map(of_port));
    Ok(())
}

/// Used TCP endpoints on this node on whose port nothing listens.
async fn refusing(view: &ServiceView) -> Vec<SocketAddr> {
    let ports = view.families.iter().flat_map(|family| &family.ports).filter(|port| port.protocol == "tcp");
    let local = ports.flat_map(|port| &port.endpoints).filter(|it| it.local && it.is_used());
    let addresses: BTreeSet<SocketAddr> = local.filter_map(EndpointView::address).collect();
    let probes = addresses.into_iter().take(MOST_PROBED).map(|address| async move {
        let connected = tokio::time::timeout(PROBE_LIMIT, tokio::net::TcpStream::connect(address)).await;
        let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        matches!(connected, Ok(Err(error)) if refused(&error)).then_some(address)
    });
    futures::future::join_all(probes).await.into_iter().flatten().collect()
}

/// The client, if source ranges leave it out of the load-balancer IP that it asks.
fn excluded_client(view: &ServiceView, asked: &Explain) -> Option<(String, Vec<String>)> {
    let client = asked.client?;
    let ports = view.families.iter().flat_map(|family| &family.ports);
    let concerned = |port: &&PortView| {
        let asks = |address: &str| asked.to.is_none_or(|to| to.to_string() == address);
        port.frontends.iter().any(|it| it.kind == "load-balancer IP" && asks(&it.address))
    };
    let mut ranges = ports.filter(concerned).filter(|port| !port.source_ranges.is_empty());
    let ranges = &ranges.next()?.source_ranges;
    let within = |range: &String| range.parse::<crate::model::Cidr>().is_ok_and(|it| it.contains(&client));
    (!ranges.iter().any(within)).then(|| (client.to_string(), ranges.clone()))
}

/// The packets to trace in a family: what was asked for, or one of the client to the cluster IP; one for each protocol
/// that the Service has at the destination, unless one was named.
fn packets((of, family): (IpFamily, &FamilyView), asked: &Explain, own: &[IpAddr]) -> Vec<Packet> {
    let fits = |address: IpAddr| IpFamily::of(address) == of;
    if asked.client.is_none() && asked.to.is_none() {
        return Vec::new();
    }
    let cluster_ip = || family.ports.first()?.frontends.first()?.address.parse().ok();
    let destination = asked.to.or_else(cluster_ip).filter(|to: &SocketAddr| fits(to.ip()));
    // Without a client, the node itself asks.
    let source = asked.client.or_else(|| own.iter().copied().find(|ip| !ip.is_loopback()));
    let (Some(destination), Some(source)) = (destination, source.filter(|ip| fits(*ip))) else {
        return Vec::new();
    };
    let is_own = own.contains(&source) || source.is_loopback();
    let interface = asked.interface.clone().or_else(|| (!is_own).then(|| "another".to_owned()));
    let protocols = protocols(family, destination, asked.protocol);
    let packet = |protocol| Packet { interface: interface.clone(), source, destination, protocol };
    protocols.into_iter().map(packet).collect()
}

/// The protocols that the Service has at a destination; its first one where it has none there.
fn protocols(family: &FamilyView, to: SocketAddr, wanted: Option<Protocol>) -> BTreeSet<Protocol> {
    if let Some(protocol) = wanted {
        return BTreeSet::from([protocol]);
    }
    let number = format!(":{}", to.port());
    let answers = |port: &&PortView| port.frontends.iter().any(|it| it.address.ends_with(&number));
    let found: BTreeSet<Protocol> = family.ports.iter().filter(answers).map(protocol).collect();
    if found.is_empty() { family.ports.iter().take(1).map(protocol).collect() } else { found }
}

/// An outcome, and the rule that decides: the last one that sends the packet somewhere.
fn decision(outcome: &TraceOutcome, packet: &Packet) -> Decision {
    let (endpoint, target) = match outcome.verdict {
        Verdict::Served(endpoint) => (Some(endpoint), Some("-j DNAT")),
        Verdict::Refused => (None, Some("-j REJECT")),
        Verdict::Dropped => (None, Some("-j DROP")),
        Verdict::Untouched => (None, None),
    };
    let decides =
        |rule: &&String| target.is_some_and(|target| rule.contains(target) || rule.starts_with(SERVER_RULE));
    Decision {
        to: packet.destination,
        protocol: packet.protocol.to_string(),
        verdict: outcome.verdict.kind(),
        endpoint: endpoint.map(|endpoint| endpoint.address),
        masqueraded: endpoint.is_some_and(|endpoint| endpoint.masqueraded),
        percent: outcome.chance * 100.0,
        decided_by: outcome.rules.iter().rev().find(decides).cloned(),
        rules: outcome.rules.clone(),
    }
}

//! What the node has for one Service, read live: rules or servers, settings, flows. Runs in the process
//! of the command that asks, never in the loop.

use super::obstacles::{Surroundings, bridged, protocol};
use super::output::complain;
use super::routes::still;
use crate::backend::{
    self, InspectedNode, Inspection, KernelObject, Packet, ProxyMode, SERVER_RULE, TracedPast,
};
use crate::config::{Config, Explain, Mode};
use crate::explain::{
    Decision, EndpointView, FamilyFacts, FamilyView, Flows, Node, NodeState, PortFlows, PortView,
    ServiceView, Tracking,
};
use crate::kernel::addresses::local_addresses;
use crate::kernel::conntrack::{Conntrack, Destination, Part};
use crate::kernel::iptables::{Flavor, Tools, Xtables as _};
use crate::kernel::sysctl::Sysctls;
use crate::model::{IpFamily, Protocol, Verdict};
use anyhow::Result;
use futures::StreamExt as _;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Frontends for each of which the table is listed by itself.
const MOST_LISTS: usize = 4;
/// Flows that are counted; a table can hold millions.
const MOST_FLOWS: u64 = 1_000_000;
/// Endpoints that are asked whether anything listens, and for how long.
const MOST_PROBED: usize = 16;
const MOST_PROBED_OF_ALL: usize = 256;
const PROBED_AT_ONCE: usize = 64;
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// Everything there is to be seen around a Service.
pub(super) async fn around(config: &Config, view: &ServiceView, asked: &Explain) -> NodeState {
    let mut node = NodeState {
        tracking: tracking(),
        flows: or_warn("open flows are not counted", flows(view)),
        refusing: refusing([view], MOST_PROBED).await,
        excluded_client: excluded_client(view, asked),
        node_port_range: Some(config.node_ports.range),
        ..NodeState::default()
    };
    let mode = backend::open(Mode::named(&view.mode).unwrap_or(config.mode));
    for family in &view.families {
        let Some(of) = family.ip_family() else { continue };
        let tools = tools(config, &view.flavor, of).await;
        let own = or_warn("the node's addresses are unknown", local_addresses(of)).unwrap_or_default();
        let inspected = InspectedNode { family: of, tools: tools.as_ref(), addresses: &own };
        let services = [(view.service.as_str(), family)];
        let packets = packets((of, family), asked, &own);
        let looked = inspect(mode, &inspected, &family.wanted, !packets.is_empty()).await;
        node.families.push(FamilyFacts {
            bridged: bridged((of, mode.facts().by_address), [family]),
            ..family_facts(mode, (of, &own), looked.as_ref(), &services)
        });
        node.weights.extend(looked.iter().flat_map(|it| weights(&it.inspection.found)));
        for packet in packets {
            match trace(mode, &inspected, (looked.as_ref().ok(), &family.wanted), &packet).await {
                Ok(decisions) => node.decisions.extend(decisions),
                Err(error) => complain(format_args!("Warning: the packet was not traced: {error:#}")),
            }
        }
    }
    node
}

/// The weights that virtual servers have their real servers at.
fn weights(found: &[KernelObject]) -> impl Iterator<Item = (SocketAddr, u32)> {
    let lines = found.iter().flat_map(|object| &object.lines);
    lines.filter_map(|line| {
        let (address, weight) = line.strip_prefix("real server ")?.split_once(" weight ")?;
        Some((address.parse().ok()?, weight.parse().ok()?))
    })
}

/// All that can become of a packet.
async fn trace(
    mode: &dyn ProxyMode,
    node: &InspectedNode<'_>,
    (looked, wanted): (Option<&Looked>, &[KernelObject]),
    packet: &Packet,
) -> Result<Vec<Decision>> {
    // Where the kernel could not be read, what should be there decides.
    let found = looked.map(|it| it.inspection.found.as_slice()).filter(|found| !found.is_empty());
    let outcomes = mode.trace(node, found.unwrap_or(wanted), packet).await?;
    let (nothing, unread) = (Surroundings::default(), ["the rules of other programs".to_owned()]);
    let (around, unseen) =
        looked.map_or((&nothing, unread.as_slice()), |it| (&it.around, it.around.unseen.as_slice()));
    let past = around.past(outcomes, packet, node.addresses);
    Ok(past.iter().map(|it| decision(it, unseen, packet)).collect())
}

/// Everything there is to be seen around all Services: what is read for one is read once for all.
pub(super) async fn around_all(config: &Config, node: &Node) -> NodeState {
    let mut state = NodeState {
        tracking: tracking(),
        refusing: refusing(&node.services, MOST_PROBED_OF_ALL).await,
        node_port_range: Some(config.node_ports.range),
        ..NodeState::default()
    };
    let mode = backend::open(Mode::named(&node.identity.mode).unwrap_or(config.mode));
    for (of, wanted) in &node.wanted {
        let tools = tools(config, &node.identity.flavor, *of).await;
        let own = or_warn("the node's addresses are unknown", local_addresses(*of)).unwrap_or_default();
        let inspected = InspectedNode { family: *of, tools: tools.as_ref(), addresses: &own };
        let parts =
            node.services.iter().flat_map(|view| view.families.iter().map(|it| (view.service.as_str(), it)));
        let services: Vec<(&str, &FamilyView)> =
            parts.filter(|(_, it)| it.ip_family() == Some(*of)).collect();
        let looked = inspect(mode, &inspected, wanted, false).await;
        let bridged = bridged((*of, mode.facts().by_address), services.iter().map(|(_, family)| *family));
        state
            .families
            .push(FamilyFacts { bridged, ..family_facts(mode, (*of, &own), looked.as_ref(), &services) });
    }
    state
}

/// What the kernel has of all that Services want, by family.
pub(super) async fn kernel_objects(
    config: &Config,
    node: &Node,
) -> Result<BTreeMap<String, Vec<KernelObject>>> {
    let mode = backend::open(Mode::named(&node.identity.mode).unwrap_or(config.mode));
    let mut found = BTreeMap::new();
    for (of, wanted) in &node.wanted {
        let tools = tools(config, &node.identity.flavor, *of).await;
        let inspected = InspectedNode { family: *of, tools: tools.as_ref(), addresses: &[] };
        found.insert(of.to_string(), mode.inspect(&inspected, wanted).await?.found);
    }
    Ok(found)
}

/// All iptables rules of both families, table by table.
pub(super) async fn rules(config: &Config) -> Result<String> {
    let mut text = String::new();
    for family in IpFamily::ALL {
        let tools = match backend::usable_tools(family, backend::flavor(config)).await {
            Ok(tools) => tools,
            Err(error) => {
                text.push_str(&format!("# {family}: {error:#}\n"));
                continue;
            }
        };
        for table in ["raw", "mangle", "nat", "filter"] {
            text.push_str(&format!("# {family}, iptables-{}\n*{table}\n", tools.flavor()));
            for (chain, rules) in tools.table_in_use(table).await? {
                rules.iter().for_each(|rule| text.push_str(&format!("-A {chain} {rule}\n")));
            }
        }
    }
    Ok(text)
}

/// How full connection tracking is, and how many flows of each family and protocol there are.
pub(super) fn tracked() -> Result<String> {
    let mut text = match tracking() {
        Some(Tracking { count, max }) => format!("{count} of {max} flows\n"),
        None => "the settings of connection tracking cannot be read\n".to_owned(),
    };
    let mut conntrack = Conntrack::open()?;
    for family in IpFamily::ALL {
        for protocol in Protocol::ALL {
            let mut count = 0_u64;
            let all = Destination { protocol, address: None, port: None };
            conntrack.list(family, &all, &mut |part| match part {
                Part::Start => count = 0,
                Part::Item(flow) => count += u64::from(flow.protocol == protocol),
            })?;
            text.push_str(&format!("{family} {protocol}: {count}\n"));
        }
    }
    Ok(text)
}

/// What was read of the kernel.
struct Looked {
    around: Surroundings,
    inspection: Inspection,
}

/// Reads whether the kernel has what is wanted, and the rules of other programs; with those that only a traced packet
/// meets, if there is one.
async fn inspect(
    mode: &dyn ProxyMode,
    inspected: &InspectedNode<'_>,
    wanted: &[KernelObject],
    traces: bool,
) -> Result<Looked> {
    let facts = mode.facts();
    let asked = (facts.writes_iptables, traces, facts.by_address);
    let around = Surroundings::read(inspected.tools(), inspected.family, asked).await?;
    Ok(Looked { around, inspection: mode.inspect(inspected, wanted).await? })
}

/// What was found; where it could not be looked for, a warning and nothing.
fn or_warn<T>(what: &str, found: Result<T>) -> Option<T> {
    found.map_err(|error| complain(format_args!("Warning: {what}: {error:#}"))).ok()
}

fn family_facts(
    mode: &dyn ProxyMode,
    (of, own): (IpFamily, &[IpAddr]),
    looked: Result<&Looked, &anyhow::Error>,
    services: &[(&str, &FamilyView)],
) -> FamilyFacts {
    let forwarding = match of {
        IpFamily::V4 => "net/ipv4/ip_forward",
        IpFamily::V6 => "net/ipv6/conf/all/forwarding",
    };
    let read = |name: &str| Sysctls::default().read(name).ok();
    let forwards = read(forwarding).map(|value| value != "0");
    let tracking = mode.facts().tracking_setting.filter(|name| read(name).as_deref() == Some("0"));
    let untracked_by = tracking.map(|name| name.replace('/', "."));
    let facts = FamilyFacts { family: of.to_string(), forwards, untracked_by, ..FamilyFacts::default() };
    match looked {
        Ok(Looked { around, inspection }) => FamilyFacts {
            obstacles: around.obstacles(services.iter().copied(), own),
            unseen_tables: around.unseen.clone(),
            unrouted: around.routes.lacking(services),
            still: still(of, around.towards_endpoints(services.iter().map(|(_, family)| *family))),
            differences: inspection.differences.clone(),
            ..facts
        },
        Err(error) => FamilyFacts { unreadable: Some(format!("{error:#}")), ..facts },
    }
}

/// The tools that the proxy uses.
async fn tools(config: &Config, flavor: &str, family: IpFamily) -> Result<Tools> {
    let used = [Flavor::Nft, Flavor::Legacy].into_iter().find(|it| it.as_str() == flavor);
    backend::usable_tools(family, used.or_else(|| backend::flavor(config))).await
}

fn tracking() -> Option<Tracking> {
    let sysctls = Sysctls::default();
    let read = |name: &str| sysctls.read(&format!("net/netfilter/{name}")).ok()?.parse().ok();
    Some(Tracking { count: read("nf_conntrack_count")?, max: read("nf_conntrack_max")? })
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

/// Used TCP endpoints on this node on whose port nothing listens; at most this many are asked.
async fn refusing(views: impl IntoIterator<Item = &ServiceView>, most: usize) -> Vec<SocketAddr> {
    let families = views.into_iter().flat_map(|view| &view.families);
    let ports = families.flat_map(|family| &family.ports).filter(|port| port.protocol == "tcp");
    let local = ports.flat_map(|port| &port.endpoints).filter(|it| it.local && it.is_used());
    let addresses: BTreeSet<SocketAddr> = local.filter_map(EndpointView::address).collect();
    let probes = addresses.into_iter().take(most).map(|address| async move {
        let connected = tokio::time::timeout(PROBE_LIMIT, tokio::net::TcpStream::connect(address)).await;
        let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        matches!(connected, Ok(Err(error)) if refused(&error)).then_some(address)
    });
    let refused = futures::stream::iter(probes).buffer_unordered(PROBED_AT_ONCE);
    let mut refused: Vec<SocketAddr> = refused.filter_map(std::future::ready).collect().await;
    refused.sort_unstable();
    refused
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
    let interface = asked.interface.clone().or_else(|| (!is_own).then(|| Packet::SOME_INTERFACE.to_owned()));
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

/// An outcome, and the rule that decides: a foreign one, or the last of ours that sends the packet somewhere.
fn decision(past: &TracedPast, unseen: &[String], packet: &Packet) -> Decision {
    let TracedPast { outcome, decided_by, may } = past;
    let (endpoint, target) = match outcome.verdict {
        Verdict::Served(endpoint) => (Some(endpoint), Some("-j DNAT")),
        Verdict::Refused => (None, Some("-j REJECT")),
        Verdict::Dropped => (None, Some("-j DROP")),
        Verdict::Untouched => (None, None),
    };
    let decides =
        |rule: &&String| target.is_some_and(|target| rule.contains(target) || rule.starts_with(SERVER_RULE));
    let ours = || outcome.rules.iter().rev().find(decides).cloned();
    let may = may.iter().map(|rule| format!("{rule}: this may {}", rule.effect.verb(false)));
    let doubts =
        outcome.doubts.iter().map(|rule| format!("{rule}: what this asks of the packet is not known"));
    let unseen = unseen.iter().map(|what| format!("{what}: not followed, and may stop it"));
    Decision {
        to: packet.destination,
        protocol: packet.protocol.to_string(),
        verdict: outcome.verdict.kind(),
        endpoint: endpoint.map(|endpoint| endpoint.address),
        masqueraded: endpoint.is_some_and(|endpoint| endpoint.masqueraded),
        percent: outcome.chance * 100.0,
        decided_by: decided_by.as_ref().map(ToString::to_string).or_else(ours),
        rules: outcome.rules.clone(),
        may: may.chain(doubts).chain(unseen).collect(),
    }
}

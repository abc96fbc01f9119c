//! What the node has for one Service, read live: rules or servers, settings, flows. Runs in the process
//! of whoever asks, never in the loop.

use super::output::complain;
use crate::backend::{KernelObject, Outcome, Packet, SERVER_RULE, Verdict, iptables, ipvs};
use crate::config::{Config, Explain, Flavor};
use crate::explain::{
    Decision, Difference, EndpointView, FamilyFacts, FamilyView, Fate, Flows, NodeState, Obstacle, PortView,
    ServiceView, Tracking,
};
use crate::kernel::addresses::local_addresses;
use crate::kernel::conntrack::{Conntrack, Destination, Part};
use crate::kernel::iptables::{Place, Tools};
use crate::kernel::sysctl::Sysctls;
use crate::model::{Frontend, IpFamily, Protocol};
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Flows that are counted; a table can hold millions.
const MOST_FLOWS: u64 = 1_000_000;
/// Endpoints that are asked whether anything listens, and for how long.
const MOST_PROBED: usize = 16;
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// Levels of the tree of networks, and some to spare.
const DEEPEST: usize = 16;
/// The mode that has virtual servers.
const IPVS: &str = "ipvs";

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
    for family in &view.families {
        let Some(of) = family.ip_family() else { continue };
        let tools = tools(config, view, of).await;
        let (facts, found) = family_facts(view, (of, family), tools.as_ref()).await;
        node.families.push(facts);
        let own = or_warn("the node's addresses are unknown", local_addresses(of)).unwrap_or_default();
        let Some(packet) = packet((of, family), asked, &own) else { continue };
        let outcomes = match (view.mode.as_str(), &tools) {
            (IPVS, Ok(tools)) => traced_by_servers(tools, &packet).await,
            // That they cannot be read is said already.
            (IPVS, Err(_)) => continue,
            _ => {
                // Where the kernel could not be read, what should be there decides.
                let objects = if found.is_empty() { &family.wanted } else { &found };
                Ok(iptables::trace_packet(objects, &packet, &own))
            }
        };
        match outcomes {
            Ok(outcomes) => node.decisions.extend(outcomes.iter().map(decision)),
            Err(error) => complain(format_args!("Warning: the packet was not traced: {error:#}")),
        }
    }
    node
}

/// What was found; where it could not be looked for, a warning and nothing.
fn or_warn<T>(what: &str, found: Result<T>) -> Option<T> {
    found.map_err(|error| complain(format_args!("Warning: {what}: {error:#}"))).ok()
}

/// What becomes of a packet in mode ipvs: by all rules of the tables, others' included, the sets, and
/// the virtual server.
async fn traced_by_servers(tools: &Tools, packet: &Packet) -> Result<Vec<Outcome>> {
    let Packet { destination, protocol, .. } = *packet;
    let to = Frontend { address: destination.ip(), port: destination.port(), protocol };
    let mut chains = Vec::new();
    for table in ipvs::tables() {
        let object =
            |(chain, lines)| KernelObject { name: format!("{table} {chain}"), lines, is_shared: true };
        chains.extend(tools.table(table).await?.into_iter().map(object));
    }
    let around = ipvs::Surroundings::read(&mut ipvs::Kernel::open()?, to)?;
    Ok(ipvs::trace_packet(&chains, &around, packet))
}

async fn family_facts(
    view: &ServiceView,
    (of, family): (IpFamily, &FamilyView),
    tools: Result<&Tools, &anyhow::Error>,
) -> (FamilyFacts, Vec<KernelObject>) {
    let mut facts = FamilyFacts { family: family.family.clone(), ..FamilyFacts::default() };
    let forwarding = match of {
        IpFamily::V4 => "net/ipv4/ip_forward",
        IpFamily::V6 => "net/ipv6/conf/all/forwarding",
    };
    facts.forwards = Sysctls::default().read(forwarding).ok().map(|value| value != "0");
    let looked = async {
        let tools = tools.map_err(|error| anyhow!("{error:#}"))?;
        facts.obstacles = obstacles(tools, family).await?;
        match view.mode.as_str() {
            IPVS => look_at_servers(of, &family.wanted),
            _ => look_at_rules(tools, &family.wanted).await,
        }
    };
    let (differences, found) = match looked.await {
        Ok(found) => found,
        Err(error) => {
            facts.unreadable = Some(format!("{error:#}"));
            (Vec::new(), Vec::new())
        }
    };
    facts.differences = differences;
    (facts, found)
}

/// The tools that the proxy uses.
async fn tools(config: &Config, view: &ServiceView, family: IpFamily) -> Result<Tools> {
    let mut config = config.clone();
    config.iptables.flavor = match view.flavor.as_str() {
        "nft" => Flavor::Nft,
        "legacy" => Flavor::Legacy,
        _ => config.iptables.flavor,
    };
    super::families::usable_tools(&config, family).await
}

type Found = (Vec<Difference>, Vec<KernelObject>);

async fn look_at_rules(tools: &Tools, wanted: &[KernelObject]) -> Result<Found> {
    let (mut differences, mut found) = (Vec::new(), Vec::new());
    for object in wanted {
        let Some(lines) = chain(tools, &object.name).await? else {
            differences.push(gone(object));
            continue;
        };
        let (missing, surplus) = iptables::differences(object, &lines);
        found.push(KernelObject { lines: lines.clone(), ..object.clone() });
        let mut left = Vec::new();
        for rule in missing {
            if !in_tree(tools, (&object.name, &lines), &rule, &mut found).await? {
                left.push(rule);
            }
        }
        differences.extend(difference(object, left, surplus));
    }
    Ok((differences, found))
}

/// Whether a rule of a long chain stands where a tree of networks has it; notes the chains on the way.
async fn in_tree(
    tools: &Tools,
    (name, lines): (&str, &[String]),
    rule: &str,
    found: &mut Vec<KernelObject>,
) -> Result<bool> {
    let Some((table, _)) = name.split_once(' ') else { return Ok(false) };
    let mut lines = lines.to_vec();
    for _ in 0..DEEPEST {
        let Some(next) = iptables::branch(rule, &lines) else { return Ok(false) };
        let name = format!("{table} {next}");
        let Some(there) = chain(tools, &name).await? else { return Ok(false) };
        lines.clone_from(&there);
        if !found.iter().any(|known| known.name == name) {
            found.push(KernelObject { name, lines: there, is_shared: true });
        }
        let wanted = KernelObject { name: next, lines: vec![rule.to_owned()], is_shared: true };
        if iptables::differences(&wanted, &lines).0.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn chain(tools: &Tools, name: &str) -> Result<Option<Vec<String>>> {
    let (table, chain) = name.split_once(' ').context("a chain without a table")?;
    tools.rules(Place { table, chain }).await
}

fn look_at_servers(family: IpFamily, wanted: &[KernelObject]) -> Result<Found> {
    let mut kernel = ipvs::Kernel::open()?;
    let all = ipvs::look(&mut kernel, family, wanted)?;
    let (mut differences, mut found) = (Vec::new(), Vec::new());
    for (object, lines) in wanted.iter().zip(all) {
        let Some(lines) = lines else {
            differences.push(gone(object));
            continue;
        };
        let beyond = |all: &[String], other: &[String]| {
            all.iter().filter(|line| !other.contains(line)).cloned().collect::<Vec<_>>()
        };
        let mut surplus = if object.is_shared { Vec::new() } else { beyond(&lines, &object.lines) };
        // Those let their connections end.
        surplus.retain(|line| !line.ends_with(" weight 0"));
        differences.extend(difference(object, beyond(&object.lines, &lines), surplus));
        found.push(KernelObject { lines, ..object.clone() });
    }
    Ok((differences, found))
}

fn gone(object: &KernelObject) -> Difference {
    Difference {
        object: object.name.clone(),
        is_gone: true,
        missing: object.lines.clone(),
        surplus: Vec::new(),
    }
}

fn difference(object: &KernelObject, missing: Vec<String>, surplus: Vec<String>) -> Option<Difference> {
    let differs = !(missing.is_empty() && surplus.is_empty());
    differs.then(|| Difference { object: object.name.clone(), is_gone: false, missing, surplus })
}

/// Rules of others that may stop packets forwarded to an endpoint.
async fn obstacles(tools: &Tools, family: &FamilyView) -> Result<Vec<Obstacle>> {
    let forward = chain(tools, "filter FORWARD").await?.unwrap_or_default();
    let endpoints = family.ports.iter().flat_map(|port| &port.endpoints).filter(|it| it.is_used());
    let mut found = BTreeSet::new();
    for endpoint in endpoints {
        let rules = iptables::foreign_obstacles(&forward, endpoint.ip).into_iter();
        found.extend(rules.map(|(rule, stops_all)| Obstacle { rule, stops_all }));
    }
    Ok(found.into_iter().collect())
}

fn tracking() -> Option<Tracking> {
    let sysctls = Sysctls::default();
    let read = |name: &str| sysctls.read(&format!("net/netfilter/{name}")).ok()?.parse().ok();
    Some(Tracking { count: read("nf_conntrack_count")?, max: read("nf_conntrack_max")? })
}

fn protocol(port: &PortView) -> Protocol {
    Protocol::ALL.into_iter().find(|it| it.as_str() == port.protocol).unwrap_or_default()
}

/// Counts the flows to the Service's frontends by the endpoint that answers them.
fn flows(view: &ServiceView) -> Result<Flows> {
    let mut conntrack = Conntrack::open()?;
    let mut flows = Flows::default();
    for family in &view.families {
        let Some(of) = family.ip_family() else { continue };
        for port in &family.ports {
            for frontend in &port.frontends {
                count(&mut conntrack, (of, destination(port, &frontend.address)), port, &mut flows)?;
            }
        }
    }
    Ok(flows)
}

/// A frontend; a node port stands on every address.
fn destination(port: &PortView, frontend: &str) -> Destination {
    let address: Option<SocketAddr> = frontend.parse().ok();
    let number = address.map(|it| it.port()).or_else(|| frontend.strip_prefix("*:")?.parse().ok());
    Destination { protocol: protocol(port), address: address.map(|it| it.ip()), port: number }
}

fn count(
    conntrack: &mut Conntrack,
    (family, to): (IpFamily, Destination),
    port: &PortView,
    flows: &mut Flows,
) -> Result<()> {
    let endpoints: BTreeSet<SocketAddr> = port.endpoints.iter().filter_map(EndpointView::address).collect();
    let before = flows.clone();
    let mut seen = 0;
    conntrack.list(family, &to, &mut |part| match part {
        Part::Start => {
            flows.clone_from(&before);
            seen = 0;
        }
        Part::Item(flow) if endpoints.contains(&flow.reply_source) && seen < MOST_FLOWS => {
            seen += 1;
            *flows.by_endpoint.entry(flow.reply_source).or_default() += 1;
        }
        Part::Item(_) => {}
    })?;
    flows.is_cut |= seen == MOST_FLOWS;
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

/// The packet to trace in a family: what was asked for, or one of the client to the cluster IP.
fn packet((of, family): (IpFamily, &FamilyView), asked: &Explain, own: &[IpAddr]) -> Option<Packet> {
    let fits = |address: IpAddr| IpFamily::of(address) == of;
    if asked.client.is_none() && asked.to.is_none() {
        return None;
    }
    let cluster_ip = || family.ports.first()?.frontends.first()?.address.parse().ok();
    let destination: SocketAddr = asked.to.or_else(cluster_ip).filter(|to| fits(to.ip()))?;
    // Without a client, the node itself asks.
    let source = asked.client.or_else(|| own.iter().copied().find(|ip| !ip.is_loopback()));
    let source = source.filter(|ip| fits(*ip))?;
    let answers = |port: &&PortView| {
        port.frontends.iter().any(|it| it.address.ends_with(&format!(":{}", destination.port())))
    };
    let port = family.ports.iter().find(answers).or(family.ports.first())?;
    let is_own = own.contains(&source) || source.is_loopback();
    let interface = asked.interface.clone().or_else(|| (!is_own).then(|| "another".to_owned()));
    Some(Packet { interface, source, destination, protocol: protocol(port) })
}

/// An outcome, and the rule that decides: the last one that sends the packet somewhere.
fn decision(outcome: &Outcome) -> Decision {
    let (fate, endpoint, target) = match outcome.verdict {
        Verdict::Served { endpoint, .. } => (Fate::Served, Some(endpoint), Some("-j DNAT")),
        Verdict::Rejected => (Fate::Refused, None, Some("-j REJECT")),
        Verdict::Dropped => (Fate::Dropped, None, Some("-j DROP")),
        Verdict::Untouched => (Fate::Untouched, None, None),
    };
    let decides =
        |rule: &&String| target.is_some_and(|target| rule.contains(target) || rule.starts_with(SERVER_RULE));
    Decision {
        fate,
        endpoint,
        masqueraded: matches!(outcome.verdict, Verdict::Served { masqueraded: true, .. }),
        percent: outcome.chance * 100.0,
        decided_by: outcome.rules.iter().rev().find(decides).cloned(),
        rules: outcome.rules.clone(),
    }
}

//! What the node has for one Service, read live: rules or servers, settings, flows. Runs in the process
//! of whoever asks, never in the loop.

use super::output::complain;
use crate::backend::{self, InspectedNode, Inspection, Packet, SERVER_RULE, TraceOutcome};
use crate::config::{Config, Explain, Mode};
use crate::explain::{
    Decision, EndpointView, FamilyFacts, FamilyView, Flows, NodeState, Obstacle, PortView, ServiceView,
    Tracking,
};
use crate::kernel::addresses::local_addresses;
use crate::kernel::conntrack::{Conntrack, Destination, Part};
use crate::kernel::iptables::{Flavor, Place, Tools};
use crate::kernel::sysctl::Sysctls;
use crate::model::{IpFamily, Protocol, Verdict};
use anyhow::Result;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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
            let obstacles = obstacles(inspected.tools()?, family).await?;
            Ok((obstacles, mode.inspect(&inspected, &family.wanted).await?))
        };
        let looked = looked.await;
        let found = looked.as_ref().map(|(_, inspection)| inspection.found.clone()).unwrap_or_default();
        node.families.push(family_facts((of, family), looked));
        let Some(packet) = packet((of, family), asked, &own) else { continue };
        // Where the kernel could not be read, what should be there decides.
        let objects = if found.is_empty() { &family.wanted } else { &found };
        match mode.trace(&inspected, objects, &packet).await {
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

fn family_facts(
    (of, family): (IpFamily, &FamilyView),
    looked: Result<(Vec<Obstacle>, Inspection)>,
) -> FamilyFacts {
    let forwarding = match of {
        IpFamily::V4 => "net/ipv4/ip_forward",
        IpFamily::V6 => "net/ipv6/conf/all/forwarding",
    };
    let forwards = Sysctls::default().read(forwarding).ok().map(|value| value != "0");
    let facts = FamilyFacts { family: family.family.clone(), forwards, ..FamilyFacts::default() };
    match looked {
        Ok((obstacles, Inspection { differences, .. })) => FamilyFacts { obstacles, differences, ..facts },
        Err(error) => FamilyFacts { unreadable: Some(format!("{error:#}")), ..facts },
    }
}

/// The tools that the proxy uses.
async fn tools(config: &Config, view: &ServiceView, family: IpFamily) -> Result<Tools> {
    let used = [Flavor::Nft, Flavor::Legacy].into_iter().find(|flavor| flavor.as_str() == view.flavor);
    backend::usable_tools(family, used.or_else(|| backend::flavor(config))).await
}

/// Rules of others that may stop packets forwarded to an endpoint.
async fn obstacles(tools: &Tools, family: &FamilyView) -> Result<Vec<Obstacle>> {
    let forward = tools.rules(Place { table: "filter", chain: "FORWARD" }).await?.unwrap_or_default();
    let endpoints = family.ports.iter().flat_map(|port| &port.endpoints).filter(|it| it.is_used());
    let mut found = BTreeSet::new();
    for endpoint in endpoints {
        let rules = backend::foreign_obstacles(&forward, endpoint.ip).into_iter();
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
fn decision(outcome: &TraceOutcome) -> Decision {
    let (endpoint, target) = match outcome.verdict {
        Verdict::Served(endpoint) => (Some(endpoint), Some("-j DNAT")),
        Verdict::Refused => (None, Some("-j REJECT")),
        Verdict::Dropped => (None, Some("-j DROP")),
        Verdict::Untouched => (None, None),
    };
    let decides =
        |rule: &&String| target.is_some_and(|target| rule.contains(target) || rule.starts_with(SERVER_RULE));
    Decision {
        verdict: outcome.verdict.kind(),
        endpoint: endpoint.map(|endpoint| endpoint.address),
        masqueraded: endpoint.is_some_and(|endpoint| endpoint.masqueraded),
        percent: outcome.chance * 100.0,
        decided_by: outcome.rules.iter().rev().find(decides).cloned(),
        rules: outcome.rules.clone(),
    }
}

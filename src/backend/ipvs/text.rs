//! What is programmed, as the usual tools would take it: for people to read, and for tests.

use super::desired::{Baseline, Desired};
use super::diff::Changes;
use super::names::{INTERFACE, SetId};
use super::render::{RenderContext, node_port_ips};
use super::restore_input::{self, Features};
use crate::model::{
    Frontend, IpFamily, Protocol, RealServer, ServerOperation, SetEntry, SetType, VirtualServer,
};
use crate::plan::Plan;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Everything that a plan means on a node with these addresses and nothing programmed yet, in the
/// order in which it is done.
pub(in crate::backend) fn render_text(
    plan: &Plan<'_>,
    features: &Features,
    node_addresses: &BTreeSet<IpAddr>,
) -> String {
    let missing_schedulers = BTreeSet::new();
    let context = RenderContext {
        upstream_compat: features.upstream_compat,
        scheduler: &features.scheduler,
        missing_schedulers: &missing_schedulers,
        node_addresses,
        node_port_ips: node_port_ips(plan.settings, node_addresses),
    };
    let changes = Changes::between(&Baseline::default(), &Desired::of(plan, &context), features);
    let family = plan.settings.family;
    let tool = if family == IpFamily::V4 { "iptables" } else { "ip6tables" };
    let interface = format!("link add {INTERFACE} type dummy");
    let mut lines = vec!["# ip -batch -".to_owned(), interface, "# ipset restore".to_owned()];
    lines.extend(SetId::in_use(features.upstream_compat).map(|id| create(id, family)));
    for (id, entries) in &changes.add_entries {
        let name = id.name(family);
        lines.extend(entries.iter().map(|entry| format!("add {name} {}", entry_text(entry))));
    }
    lines.push(format!("# {tool}-restore --noflush"));
    lines.extend(changes.rules.iter().flat_map(|rules| rules.lines()).map(str::to_owned));
    lines.push(format!("# {tool}, where they are missing"));
    lines.extend(
        restore_input::jumps(features.upstream_compat)
            .map(|jump| format!("-t {} -I {} {}", jump.table, jump.from, jump.arguments())),
    );
    lines.push("# ipvsadm --restore".to_owned());
    lines.extend(changes.servers.iter().map(operation_text));
    lines.push("# ip -batch -".to_owned());
    let length = if family == IpFamily::V4 { 32 } else { 128 };
    let address = |ip: &IpAddr| format!("address add {ip}/{length} dev {INTERFACE}");
    lines.extend(changes.add_addresses.iter().map(address));
    lines.join("\n") + "\n"
}

fn create(id: SetId, family: IpFamily) -> String {
    let (name, kind) = (id.name(family), id.kind().as_str());
    match (id.kind(), family) {
        (SetType::Port, _) => format!("create {name} {kind} range 0-65535"),
        (_, IpFamily::V4) => format!("create {name} {kind} family inet"),
        (_, IpFamily::V6) => format!("create {name} {kind} family inet6"),
    }
}

/// An entry as the tool takes and prints it.
pub(super) fn entry_text(entry: &SetEntry) -> String {
    let at =
        |at: &Frontend| format!("{},{}:{}", at.address, at.protocol.as_str().to_ascii_lowercase(), at.port);
    match entry {
        SetEntry::Port(port) => port.to_string(),
        SetEntry::Ip(ip) => ip.to_string(),
        SetEntry::IpPort(frontend) => at(frontend),
        SetEntry::IpPortIp(frontend, ip) => format!("{},{ip}", at(frontend)),
        SetEntry::IpPortNet(frontend, net) => format!("{},{net}", at(frontend)),
    }
}

fn frontend_text(at: &Frontend) -> String {
    let flag = match at.protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    };
    format!("{flag} {}", std::net::SocketAddr::new(at.address, at.port))
}

fn operation_text(operation: &ServerOperation) -> String {
    let real = |real: &RealServer| format!("-r {} -m -w {}", real.address, real.weight);
    let at = frontend_text(operation.frontend());
    match operation {
        ServerOperation::Add(_, with) => format!("-A {at}{}", switches_text(with)),
        ServerOperation::Update(_, with) => format!("-E {at}{}", switches_text(with)),
        ServerOperation::Remove(_) => format!("-D {at}"),
        ServerOperation::AddReal(_, it) => format!("-a {at} {}", real(it)),
        ServerOperation::UpdateReal(_, it) => format!("-e {at} {}", real(it)),
        ServerOperation::RemoveReal(_, address) => format!("-d {at} -r {address}"),
    }
}

fn switches_text(with: &VirtualServer) -> String {
    let name = &with.scheduler.name;
    let mut text = format!(" -s {name}");
    if let Some(seconds) = with.affinity_seconds {
        text += &format!(" -p {seconds}");
    }
    let flags = [(with.scheduler.fallback, "fallback"), (with.scheduler.by_port, "port")];
    let flags: Vec<String> =
        flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| format!("{name}-{flag}")).collect();
    if !flags.is_empty() {
        text += &format!(" -b {}", flags.join(","));
    }
    text
}

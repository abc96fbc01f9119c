//! Ports that two could want.

use super::CheckResult;
use super::facts::{CheckRequest, Facts, Purpose, ServicePortUse};
use super::settings::{LOCAL_PORTS, RESERVED_PORTS};
use crate::kernel::sockets::Listener;
use crate::model::Protocol;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// At most this many are named; the rest is counted.
const SHOWN: usize = 5;
/// The name of our own process.
const OURS: &str = "kube-proxy-rs";

pub(super) fn judge(facts: &Facts, request: &CheckRequest) -> Vec<CheckResult> {
    let mut findings = vec![ephemeral(facts, request)];
    match &facts.listeners {
        Ok(listeners) => {
            findings.push(claimed(listeners, request));
            findings.extend(request.servers.iter().map(|server| own_server(listeners, server)));
        }
        Err(error) => findings.push(CheckResult::unknown("listening sockets", error, facts)),
    }
    findings
}

/// Node ports must not be given to connections that leave the node: their answers would be taken
/// for requests to the Service.
fn ephemeral(facts: &Facts, request: &CheckRequest) -> CheckResult {
    const CHECK: &str = "ephemeral ports";
    let Some(range) = facts.value(LOCAL_PORTS).and_then(pair) else {
        return CheckResult::unknown(CHECK, "there is no net.ipv4.ip_local_port_range", facts);
    };
    let reserved = facts.value(RESERVED_PORTS).map(ranges).unwrap_or_default();
    let is_taken = |port: u16| {
        (range.0..=range.1).contains(&port)
            && !reserved.iter().any(|(from, to)| (*from..=*to).contains(&port))
    };
    let (first, last) = request.node_port_range;
    let in_range = (first..=last).filter(|port| is_taken(*port)).count();
    let outside: Vec<String> = node_ports(request)
        .filter(|it| !(first..=last).contains(&it.port) && is_taken(it.port))
        .map(|it| format!("{}/{} of {}", it.port, it.protocol, it.service))
        .collect();
    let ephemeral = format!("net.ipv4.ip_local_port_range ({} to {})", range.0, range.1);
    if in_range > 0 {
        return CheckResult::problem(
            CHECK,
            format!("{in_range} of the node ports {first}-{last} are within {ephemeral}"),
            format!(
                "sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}, and keep it in /etc/sysctl.d"
            ),
        );
    }
    if !outside.is_empty() {
        return CheckResult::problem(
            CHECK,
            format!("node ports within {ephemeral}: {}", some_of(&outside)),
            "add them to net.ipv4.ip_local_reserved_ports",
        );
    }
    CheckResult::ok(CHECK, format!("no node port is within {ephemeral}"))
}

fn node_ports(request: &CheckRequest) -> impl Iterator<Item = &ServicePortUse> {
    let all = request.service_ports.iter().flatten();
    all.filter(|it| it.purpose == Purpose::NodePort)
}

/// Two numbers with space between them.
fn pair(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A list like `8080,9000-9010`; what is not a range is left out.
fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    text.split(',').filter_map(range).collect()
}

/// What Services claim, and others listen on.
fn claimed(listeners: &[Listener], request: &CheckRequest) -> CheckResult {
    const CHECK: &str = "node ports";
    let Some(ports) = &request.service_ports else {
        let (first, last) = request.node_port_range;
        let inside: BTreeSet<String> = listeners
            .iter()
            .filter(|it| (first..=last).contains(&it.address.port()) && !is_ours(it))
            .map(describe)
            .collect();
        if inside.is_empty() {
            return CheckResult::ok(CHECK, format!("no program listens on {first}-{last}"));
        }
        let inside: Vec<String> = inside.into_iter().collect();
        let message =
            format!("{first}-{last} are for Services, but other programs listen there: {}", some_of(&inside));
        return CheckResult::problem(
            CHECK,
            message,
            "give these programs other ports, or name the Services with --kubeconfig",
        );
    };
    let conflict = |it: &ServicePortUse| {
        let same = |found: &&Listener| {
            found.protocol == it.protocol && found.address.port() == it.port && !is_ours(found)
        };
        let listener = listeners.iter().find(same)?;
        Some(format!("{}/{} of {} ({})", it.port, it.protocol, it.service, describe(listener)))
    };
    let of = |purpose| ports.iter().filter(move |it| it.purpose == purpose).filter_map(conflict).collect();
    let (health_checks, node_ports): (Vec<String>, Vec<String>) =
        (of(Purpose::HealthCheck), of(Purpose::NodePort));
    if !health_checks.is_empty() {
        let message =
            format!("health-check node ports that other programs listen on: {}", some_of(&health_checks));
        return CheckResult::broken(
            CHECK,
            message,
            "stop these programs: load balancers ask there for local endpoints",
        );
    }
    if !node_ports.is_empty() {
        let message = format!("other programs listen on them and get no traffic: {}", some_of(&node_ports));
        return CheckResult::problem(CHECK, message, "give these programs other ports");
    }
    CheckResult::ok(CHECK, format!("no other program listens on the {} that Services claim", ports.len()))
}

fn is_ours(listener: &Listener) -> bool {
    listener.program.as_deref() == Some(OURS)
}

fn describe(listener: &Listener) -> String {
    let program = listener.program.as_deref().unwrap_or("some program");
    format!("{program} on {}/{}", listener.address, listener.protocol)
}

fn own_server(listeners: &[Listener], (name, wanted): &(&'static str, SocketAddr)) -> CheckResult {
    let check = format!("{name} port");
    let overlaps = |it: &&Listener| {
        let (one, other) = (it.address.ip(), wanted.ip());
        it.protocol == Protocol::Tcp
            && it.address.port() == wanted.port()
            && (one == other || one.is_unspecified() || other.is_unspecified())
    };
    match listeners.iter().find(overlaps) {
        None => CheckResult::ok(check, format!("{wanted} is free")),
        Some(found) if is_ours(found) => {
            CheckResult::ok(check, format!("{wanted} is held by {OURS}, which runs"))
        }
        Some(found) => CheckResult::broken(
            check,
            format!("{wanted} is taken: {}", describe(found)),
            format!("stop that program, or choose another --{name}-bind-address"),
        ),
    }
}

fn some_of(items: &[String]) -> String {
    let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

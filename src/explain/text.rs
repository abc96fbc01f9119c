//! A report, for people.

use super::facts::{Decision, Flows, ProxyState};
use super::findings::severity_words;
use super::report::Report;
use super::table::aligned;
use super::view::{EndpointView, FamilyView, PortView};
use crate::backend::Difference;
use crate::model::Verdict;
use crate::plan::Unused;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// At most this many of a kind are shown; JSON has them all.
const MOST_OUTCOMES: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

/// A report with all that is known of each endpoint, in columns.
pub struct Wide<'r>(pub &'r Report);

impl fmt::Display for Wide<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, true)
    }
}

impl Report {
    fn write(&self, f: &mut fmt::Formatter<'_>, is_wide: bool) -> fmt::Result {
        writeln!(f, "Service {}", self.service)?;
        if let Some(view) = &self.plan {
            let zone = view.zone.as_deref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
            writeln!(f, "Node    {}{zone}, mode {}", view.node, view.mode)?;
            write_proxy(f, self.proxy.as_ref())?;
            for family in &view.families {
                write_family(f, family, (self.flows.as_ref(), is_wide.then_some(&self.weights)))?;
            }
            let words = match self.is_looked_at {
                true => kernel_words(self.kernel_is_right),
                false => "not looked at",
            };
            writeln!(f, "\nKernel  {words}")?;
            write_differences(f, &self.differences)?;
        }
        self.write_trace(f)?;
        self.write_findings(f)
    }
}

impl Report {
    fn write_trace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.trace.is_empty() {
            writeln!(f, "\nTrace")?;
        }
        for decision in self.trace.iter().take(MOST_OUTCOMES) {
            let Decision { to, protocol, percent, .. } = decision;
            writeln!(f, "  {percent:>5.1}%  {to}/{protocol}: {}", verdict_words(decision))?;
            for rule in &decision.rules {
                let mark = if decision.decided_by.as_ref() == Some(rule) { "=>" } else { "  " };
                writeln!(f, "        {mark} {rule}")?;
            }
            for may in &decision.may {
                writeln!(f, "         ? {may}")?;
            }
        }
        if self.trace.len() > MOST_OUTCOMES {
            writeln!(f, "  and {} more outcomes (-o json shows them)", self.trace.len() - MOST_OUTCOMES)?;
        }
        Ok(())
    }

    fn write_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            let seen = if self.is_looked_at { "that can be seen from this node" } else { "with the objects" };
            return write_nothing(f, self.proxy.as_ref(), seen);
        }
        writeln!(f, "\nFindings")?;
        for (index, finding) in self.findings.iter().enumerate() {
            let severity = severity_words(finding.severity);
            writeln!(f, "  {severity} {}: {}", finding.code, finding.message)?;
            // What helps against several is said after the last of them.
            let is_repeated = self.findings.get(index + 1).is_some_and(|next| next.advice == finding.advice);
            if !finding.advice.is_empty() && !is_repeated {
                writeln!(f, "          {}", finding.advice)?;
            }
        }
        Ok(())
    }
}

/// That nothing was found; not that nothing is wrong, where the proxy itself is in trouble.
pub(super) fn write_nothing(
    f: &mut fmt::Formatter<'_>,
    proxy: Option<&ProxyState>,
    seen: &str,
) -> fmt::Result {
    match proxy {
        Some(proxy) if !proxy.healthy => writeln!(
            f,
            "\nNothing else is wrong at this moment {seen}, but the proxy is degraded: kube-proxy-rs status says why."
        ),
        _ => writeln!(f, "\nNothing is wrong {seen}."),
    }
}

/// Whether the kernel is as it should be, in words.
pub(super) fn kernel_words(is_right: Option<bool>) -> &'static str {
    match is_right {
        Some(true) => "as it should be",
        Some(false) => "NOT as it should be",
        None => "UNKNOWN: it could not be read",
    }
}

/// The judgement of `status`, with its reasons.
pub(super) fn write_proxy(f: &mut fmt::Formatter<'_>, proxy: Option<&ProxyState>) -> fmt::Result {
    let Some(proxy) = proxy else { return Ok(()) };
    writeln!(f, "Proxy   {}", if proxy.healthy { "healthy" } else { "DEGRADED" })?;
    for reason in proxy.why() {
        writeln!(f, "        {reason}")?;
    }
    let age = proxy.api.as_ref().filter(|api| !api.connected).map(|api| api.age_seconds);
    age.map_or(Ok(()), |age| writeln!(f, "Objects {age:.0} s old"))
}

/// What is missing with a minus sign, what is not wanted with a plus sign.
pub(super) fn write_differences(f: &mut fmt::Formatter<'_>, differences: &[Difference]) -> fmt::Result {
    for difference in differences.iter().take(MOST_OUTCOMES) {
        writeln!(f, "  {}{}", difference.object, if difference.is_gone { " (not there)" } else { "" })?;
        let missing = difference.missing.iter().map(|line| ('-', line));
        let surplus = difference.surplus.iter().map(|line| ('+', line));
        for (sign, line) in missing.chain(surplus).take(MOST_OUTCOMES) {
            writeln!(f, "    {sign} {line}")?;
        }
    }
    match differences.len().saturating_sub(MOST_OUTCOMES) {
        0 => Ok(()),
        more => writeln!(f, "  and {more} more objects; -o json has all"),
    }
}

fn write_family(
    f: &mut fmt::Formatter<'_>,
    family: &FamilyView,
    (flows, weights): (Option<&Flows>, Option<&BTreeMap<SocketAddr, u32>>),
) -> fmt::Result {
    for port in &family.ports {
        writeln!(f, "\n{} port {}", family.family, port.label())?;
        for frontend in &port.frontends {
            let answer = if frontend.kind == "cluster IP" {
                port.internal
            } else {
                port.external.unwrap_or(port.internal)
            };
            writeln!(f, "  {:<17} {:<28} {}", frontend.kind, frontend.address, answer_words(answer))?;
        }
        write_policies(f, port)?;
        writeln!(f, "  endpoints")?;
        let flows = flows.map(|flows| (flows, family.family.as_str()));
        if let Some(weights) = weights.filter(|_| !port.endpoints.is_empty()) {
            write!(f, "{}", endpoint_table(port, (flows, weights)))?;
        }
        for endpoint in port.endpoints.iter().filter(|_| weights.is_none()) {
            write_endpoint(f, endpoint, port, flows)?;
        }
        if port.endpoints.is_empty() {
            writeln!(f, "    none")?;
        }
    }
    Ok(())
}

/// Every condition of each endpoint, its weight in the choice, and the connections that it has.
fn endpoint_table(
    port: &PortView,
    (flows, weights): (Option<(&Flows, &str)>, &BTreeMap<SocketAddr, u32>),
) -> String {
    const HEAD: [&str; 8] =
        ["    ENDPOINT", "NODE", "READY", "SERVING", "TERMINATING", "WEIGHT", "CONNECTIONS", "USED"];
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let row = |it: &EndpointView| {
        let connections = flows.zip(it.address()).map(|((flows, family), address)| {
            format!("{}{}", flows.to(address, family, port), if flows.is_cut { "+" } else { "" })
        });
        let address = it.address().map_or_else(|| it.ip.to_string(), |address| address.to_string());
        vec![
            format!("    {address}"),
            if it.local { "this" } else { "another" }.to_owned(),
            yes(it.ready),
            yes(it.serving),
            yes(it.terminating),
            weight(it, port, weights),
            connections.unwrap_or_else(|| "-".to_owned()),
            use_words(it, port.external.is_some()),
        ]
    };
    aligned(&HEAD, port.endpoints.iter().map(row).collect(), true)
}

/// The weight that the kernel has, or the part of new connections that it gets: those in use share them evenly.
fn weight(endpoint: &EndpointView, port: &PortView, weights: &BTreeMap<SocketAddr, u32>) -> String {
    let known = endpoint.address().and_then(|address| weights.get(&address));
    let alike = |is_alike: fn(&EndpointView) -> bool| port.endpoints.iter().filter(|it| is_alike(it)).count();
    match (known, endpoint.internal, endpoint.external) {
        (Some(weight), ..) => weight.to_string(),
        (None, None, _) => format!("1/{}", alike(|it| it.internal.is_none())),
        (None, _, None) => format!("1/{}", alike(|it| it.external.is_none())),
        (None, Some(_), Some(_)) => "0".to_owned(),
    }
}

fn write_policies(f: &mut fmt::Formatter<'_>, port: &PortView) -> fmt::Result {
    let mut policies = Vec::new();
    if port.internal_local {
        policies.push("internalTrafficPolicy Local".to_owned());
    }
    if port.external_local {
        policies.push("externalTrafficPolicy Local".to_owned());
    }
    if !port.source_ranges.is_empty() {
        policies.push(format!("load-balancer IPs only from {}", port.source_ranges.join(", ")));
    }
    if policies.is_empty() { Ok(()) } else { writeln!(f, "  {}", policies.join("; ")) }
}

fn write_endpoint(
    f: &mut fmt::Formatter<'_>,
    endpoint: &EndpointView,
    port: &PortView,
    flows: Option<(&Flows, &str)>,
) -> fmt::Result {
    let address = endpoint.address().map_or_else(|| endpoint.ip.to_string(), |address| address.to_string());
    let place = if endpoint.local { "this node" } else { "elsewhere" };
    let flows = flows.zip(endpoint.address()).map(|((flows, family), address)| {
        let count = flows.to(address, family, port);
        format!("  {count}{} flows", if flows.is_cut { "+" } else { "" })
    });
    writeln!(
        f,
        "    {address:<28} {place}  {}{}",
        use_words(endpoint, port.external.is_some()),
        flows.unwrap_or_default()
    )
}

fn use_words(endpoint: &EndpointView, has_outside: bool) -> String {
    match (endpoint.internal, endpoint.external) {
        (None, None) => "used".to_owned(),
        (Some(why), _) if !has_outside => format!("not used: {}", unused_words(why)),
        (Some(why), Some(other)) if why == other => format!("not used: {}", unused_words(why)),
        (None, Some(why)) => format!("used inside, not from outside: {}", unused_words(why)),
        (Some(why), None) => format!("used from outside, not inside: {}", unused_words(why)),
        (Some(inside), Some(outside)) => {
            format!("not used: inside {}, from outside {}", unused_words(inside), unused_words(outside))
        }
    }
}

/// A reason, in words.
pub(super) fn unused_words(why: Unused) -> &'static str {
    match why {
        Unused::NotReady => "not ready",
        Unused::TerminatingWhileOthersReady => "terminating while others are ready",
        Unused::Terminated => "terminating and no longer serving",
        Unused::OtherZone => "its hints name another zone",
        Unused::OtherNode => "its hints name another node",
        Unused::NotLocal => "on another node, and the policy is Local",
        Unused::WrongFamily => "of a family that the Service does not have",
        Unused::PortMissingInSlice => "its slice does not have this port",
    }
}

/// Where a packet ends; what may keep it from that is listed below it.
fn verdict_words(decision: &Decision) -> String {
    let sees = if decision.masqueraded { "one of the node's addresses" } else { "the client's address" };
    let is_ours = decision.decided_by.is_none();
    let words = match (decision.verdict, decision.endpoint) {
        (Verdict::Served(()), Some(endpoint)) => format!("goes to endpoint {endpoint}, which sees {sees}"),
        (Verdict::Served(()), None) => "goes to an endpoint".to_owned(),
        (Verdict::Refused, _) => "is refused at once".to_owned(),
        (Verdict::Dropped, _) => "is dropped silently".to_owned(),
        (Verdict::Untouched, _) if is_ours => "no Service rule matches; routed unchanged".to_owned(),
        (Verdict::Untouched, _) => "a rule of another program keeps it from the Service's rules".to_owned(),
    };
    let unless = if decision.may.is_empty() { "" } else { ", unless a rule marked with ? decides otherwise" };
    format!("{words}{unless}")
}

fn answer_words(answer: Verdict) -> &'static str {
    match answer {
        Verdict::Served(()) => "served",
        Verdict::Refused => "refused: no endpoints",
        Verdict::Dropped => "dropped: no local endpoints",
        Verdict::Untouched => "not translated",
    }
}

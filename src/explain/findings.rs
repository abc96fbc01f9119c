//! What is wrong with a Service, and what to do about it.

use super::facts::NodeState;
use super::kernel::kernel;
use super::object::{api, no_endpoints};
use super::packet::{client, other_family, trace};
use super::view::{Contest, ContestedIp, EndpointView, FamilyView, PortView, ServiceView};
use crate::model::Verdict;
use crate::plan::Unused;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The cause of a problem. The names are part of the output: they stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// No slice has an endpoint for the port.
    NoEndpoints,
    /// There are endpoints, and none is ready.
    NoneReady,
    /// All endpoints in use are hinted for other zones.
    AllInOtherZones,
    /// `internalTrafficPolicy: Local` and no endpoint on this node.
    NoLocalEndpointsInternal,
    /// `externalTrafficPolicy: Local` and no endpoint on this node.
    NoLocalEndpointsExternal,
    /// Slices have no port of the Service port's name.
    PortMissingInSlice,
    /// An endpoint refuses connections to the port.
    NothingListens,
    /// Slices of a family that the Service does not have.
    WrongFamily,
    /// The client of `--client` is outside the source ranges.
    ClientOutsideSourceRanges,
    /// The node port, or the health-check node port, belongs to another Service.
    NodePortTaken,
    /// The node has no address that may answer on node ports.
    NodePortWithoutAddress,
    /// The node port is outside the range of the cluster.
    NodePortOutsideRange,
    /// Rules or servers that should be in the kernel are not.
    KernelObjectMissing,
    /// The kernel has more than it should.
    KernelStateStale,
    /// More than is programmed of one Service.
    ServiceTooLarge,
    /// An address and port belongs to another Service.
    AddressTaken,
    /// The API server is reached there.
    ApiServerAddress,
    /// An external IP is not the Service's and is refused.
    ExternalIpRefused,
    /// An external IP is not the Service's.
    ExternalIpContested,
    /// Endpoints whose address is in a range that none may be in.
    EndpointsRefused,
    /// The kernel refuses the Service.
    RefusedByKernel,
    /// The kernel could not be read.
    KernelUnreadable,
    /// A rule of another program may drop forwarded packets.
    ForeignDropRule,
    /// Tables of other programs stand in the way and could not be read.
    ForeignNftTable,
    /// A rule of another program sends packets to the Service elsewhere.
    ForeignTranslation,
    /// A rule of another program lets packets to the Service out of the nat table before they are translated.
    ForeignAccept,
    /// A rule of another program keeps packets to the Service out of connection tracking.
    NotTracked,
    /// Packets between pods of one bridge go past the rules.
    BridgedPastRules,
    /// Bridges show packets to the rules and send none back to the port where it came from.
    HairpinOff,
    /// All source ranges are of the other family: the load balancer is open to every client.
    SourceRangesOfOtherFamily,
    /// The Service has no selector, and no slice written by hand gives it endpoints.
    NoSelector,
    /// The endpoints are names.
    FqdnEndpoints,
    /// The node, or an interface, does not forward packets.
    ForwardingOff,
    /// Connection tracking does not know the connections of virtual servers.
    MasqueradingOff,
    /// The node has no route to an endpoint, or to a cluster IP.
    NoRoute,
    /// Connection tracking has no room.
    ConntrackFull,
    /// A headless Service: no proxy is involved.
    Headless,
    /// An `ExternalName` Service: a matter of DNS.
    ExternalName,
    /// A label makes it another proxy's.
    OtherProxy,
    /// It has no cluster IP yet.
    NoClusterIp,
    /// A slice lacks the label that names its Service.
    SliceWithoutLabel,
    /// There is no such Service.
    UnknownService,
    /// The API has it and the proxy has not heard of it.
    NotSeenYet,
    /// No rule takes the traced packet to a frontend.
    TraceUntaken,
    /// The traced packet goes to an address and port that is none of the Service's.
    NoFrontend,
    /// A rule stops the traced packet although the Service has endpoints.
    TraceStopped,
    /// The client or destination of the traced packet is of a family that the Service does not have.
    ClientOfOtherFamily,
    /// What the proxy knows is not current: a watch of the API server is closed.
    StalePicture,
    /// Other programs have changed the proxy's rules again and again.
    RepeatedDrift,
}

impl Code {
    /// It tells of objects of the kernel that differ.
    pub(super) fn is_difference(self) -> bool {
        matches!(self, Code::KernelObjectMissing | Code::KernelStateStale)
    }
}

impl fmt::Display for Code {
    /// The same word in every output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = serde_json::to_value(self).unwrap_or_default();
        f.write_str(code.as_str().unwrap_or_default())
    }
}

/// How bad a finding is, in seven letters.
pub(super) fn severity_words(severity: Severity) -> &'static str {
    match severity {
        Severity::Broken => "BROKEN ",
        Severity::Unknown => "UNKNOWN",
        Severity::Problem => "PROBLEM",
        Severity::Note => "note   ",
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The node's kernel is not as it should be.
    Broken,
    /// Whether it is cannot be found out.
    Unknown,
    /// The Service cannot work like this.
    Problem,
    /// Worth knowing.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its cause.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

pub(super) fn finding(
    (code, severity): (Code, Severity),
    message: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding { code, severity, message: message.into(), advice: advice.into() }
}

/// Everything that is wrong, the worst first.
pub(super) fn all(view: Option<&ServiceView>, node: &NodeState) -> Vec<Finding> {
    let mut found = api(view, node);
    found.extend(view.into_iter().flat_map(left_out));
    for family in view.iter().flat_map(|view| &view.families) {
        for port in &family.ports {
            found.extend(port_findings(family, port, node));
        }
        found.extend(node_port_without_address(family));
        if let Some(reason) = &family.refused {
            found.push(finding(
                (Code::RefusedByKernel, Severity::Broken),
                format!("the kernel refuses the {} rules of this Service: {reason}", family.family),
                "Change the field that the message names; the other Services are not affected.",
            ));
        }
        if let Some(facts) = node.families.iter().find(|facts| facts.family == family.family) {
            found.extend(kernel(facts, family.expected()));
        }
    }
    if view.is_some() {
        found.extend(whole_node(node));
    }
    found.extend(client(node));
    found.extend(trace(view, node));
    found.extend(other_family(node));
    found.extend(stale_picture(node));
    found.extend(repeated_drift(node));
    found.sort_by_key(|finding| finding.severity);
    found.dedup();
    found
}

/// The problems that a Service has whatever the kernel says, for a list of many.
pub(super) fn of_service(view: &ServiceView) -> Vec<Finding> {
    let mut found = all(Some(view), &NodeState::default());
    found.retain(|finding| finding.severity <= Severity::Problem);
    found
}

/// What is refused of the Service before the kernel is asked.
fn left_out(view: &ServiceView) -> Vec<Finding> {
    let mut found: Vec<Finding> = view.contested_ips.iter().map(contested_ip).collect();
    found.extend(view.contested_ports.iter().map(|port| match port.contest {
        Contest::ApiServer => api_server_address(&port.complaint),
        Contest::Foreign | Contest::Taken => finding(
            (Code::NodePortTaken, Severity::Problem),
            port.complaint.as_str(),
            "Of two Services the older one has the port. Give one of the two another port.",
        ),
    }));
    found.extend(view.too_large.iter().map(|complaint| {
        finding(
            (Code::ServiceTooLarge, Severity::Problem),
            complaint.as_str(),
            "Divide the Service, or start the proxy with a higher bound; 0 lifts it.",
        )
    }));
    if view.refused_endpoints > 0 {
        found.push(finding(
            (Code::EndpointsRefused, Severity::Problem),
            format!(
                "{} endpoints are not used: their addresses are loopback, link-local, unspecified or multicast ones",
                view.refused_endpoints
            ),
            "The program that writes the slices has to give the pods' own addresses; the log names each one.",
        ));
    }
    found
}

fn contested_ip(ip: &ContestedIp) -> Finding {
    match (ip.contest, ip.refused) {
        (Contest::ApiServer, _) => api_server_address(&ip.complaint),
        (Contest::Taken, _) => finding(
            (Code::AddressTaken, Severity::Problem),
            ip.complaint.as_str(),
            "A cluster IP goes before an external one; of two external ones the older Service's counts. Give one \
             of the two another address or port.",
        ),
        (Contest::Foreign, true) => finding(
            (Code::ExternalIpRefused, Severity::Problem),
            ip.complaint.as_str(),
            "Take the address out of the Service, or start the proxy without --strict-external-ips.",
        ),
        (Contest::Foreign, false) => finding(
            (Code::ExternalIpContested, Severity::Note),
            format!("{}: the Service draws its traffic", ip.complaint),
            "If that is not meant, take the address out; --strict-external-ips refuses such addresses.",
        ),
    }
}

fn api_server_address(complaint: &str) -> Finding {
    finding(
        (Code::ApiServerAddress, Severity::Problem),
        complaint,
        "Give the Service another address or port: with this one, the proxy and other programs of the node would \
         reach the Service's endpoints in the place of the API server. If the Service is meant to lead to the API \
         server, have the proxy's kubeconfig name an address that is no Service's.",
    )
}

fn port_findings(family: &FamilyView, port: &PortView, node: &NodeState) -> Vec<Finding> {
    let mut found: Vec<Finding> = endpoints(family, port, node).into_iter().collect();
    found.extend(policies(family, port));
    found.extend(open_to_all(family, port));
    found.extend(node_port(port, node));
    let refusing: Vec<String> = port
        .endpoints
        .iter()
        .filter_map(EndpointView::address)
        .filter(|address| node.refusing.contains(address))
        .map(|address| address.to_string())
        .collect();
    if !refusing.is_empty() {
        found.push(finding(
            (Code::NothingListens, Severity::Problem),
            format!("port {}: nothing listens on {}", port.label(), refusing.join(", ")),
            "The targetPort of the Service is not the port that the program in the pod listens on, or it \
             listens on 127.0.0.1 only.",
        ));
    }
    found
}

/// Whether there are endpoints that can be used at all.
fn endpoints(family: &FamilyView, port: &PortView, node: &NodeState) -> Option<Finding> {
    let (label, family) = (port.label(), &family.family);
    let because = |why: Unused| port.endpoints.iter().filter(|it| it.internal == Some(why)).count();
    let (missing, strange) = (because(Unused::PortMissingInSlice), because(Unused::WrongFamily));
    let candidates = port.endpoints.len() - missing - strange;
    if candidates == 0 && missing > 0 {
        return Some(finding(
            (Code::PortMissingInSlice, Severity::Problem),
            format!(
                "port {label}: {missing} {family} endpoints are in slices without a port of this name and protocol"
            ),
            "A targetPort that is a name must be the name of a port of the pods; slices written by hand must \
             name their ports as the Service does.",
        ));
    }
    if candidates == 0 && strange > 0 {
        return Some(finding(
            (Code::WrongFamily, Severity::Problem),
            format!(
                "port {label}: the Service has {family} addresses and its {strange} endpoints are of the other family"
            ),
            "Give the Service the pods' family (spec.ipFamilies), or run the pods with both.",
        ));
    }
    if candidates == 0 {
        return Some(no_endpoints(&label, family, node));
    }
    let usable = |it: &EndpointView| it.ready || (it.serving && it.terminating);
    if !port.endpoints.iter().any(usable) {
        return Some(finding(
            (Code::NoneReady, Severity::Problem),
            format!(
                "port {label}: {candidates} {family} endpoints, none of them ready; connections are refused"
            ),
            "Look at the pods' readiness probes: kubectl describe pod says why they fail.",
        ));
    }
    let mut used = port.endpoints.iter().filter(|it| it.is_used()).peekable();
    if used.peek().is_some() && used.all(|it| it.hinted_elsewhere) {
        return Some(finding(
            (Code::AllInOtherZones, Severity::Note),
            format!(
                "port {label}: all {family} endpoints are meant for other zones; traffic leaves this one"
            ),
            "No ready endpoint has a hint for this node's zone. Run pods in every zone if that costs too much.",
        ));
    }
    None
}

/// Source ranges that restrict no client.
fn open_to_all(family: &FamilyView, port: &PortView) -> Option<Finding> {
    let ranges = Some(&port.ranges_of_other_family).filter(|ranges| !ranges.is_empty())?;
    let at = port.frontends.iter().filter(|it| it.kind == "load-balancer IP");
    let at: Vec<&str> = at.map(|it| it.address.as_str()).collect();
    Some(finding(
        (Code::SourceRangesOfOtherFamily, Severity::Problem),
        format!(
            "port {}: {} is open to every client: no range of loadBalancerSourceRanges ({}) is an {} one",
            port.label(),
            at.join(", "),
            ranges.join(", "),
            family.family
        ),
        "Add a range of this family to spec.loadBalancerSourceRanges.",
    ))
}

/// Local policies without local endpoints.
fn policies(family: &FamilyView, port: &PortView) -> Vec<Finding> {
    let (label, family) = (port.label(), &family.family);
    let mut found = Vec::new();
    if port.internal == Verdict::Dropped {
        found.push(finding(
            (Code::NoLocalEndpointsInternal, Severity::Problem),
            format!(
                "port {label}: internalTrafficPolicy is Local and no {family} endpoint is on this node; \
                 packets to the cluster IP are dropped"
            ),
            "Run an endpoint on every node (DaemonSet), or set internalTrafficPolicy to Cluster.",
        ));
    }
    if port.external == Some(Verdict::Dropped) {
        found.push(finding(
            (Code::NoLocalEndpointsExternal, Severity::Problem),
            format!(
                "port {label}: externalTrafficPolicy is Local and no {family} endpoint is on this node; \
                 packets from outside are dropped here"
            ),
            "A load balancer that asks the health-check node port leaves this node out. Otherwise ask a node \
             with an endpoint, or set externalTrafficPolicy to Cluster.",
        ));
    }
    found
}

fn node_port_without_address(family: &FamilyView) -> Option<Finding> {
    let is_nowhere = family.node_port_ips.as_ref().is_some_and(Vec::is_empty);
    let is_wanted = family.ports.iter().any(|port| port.node_port != 0);
    (is_nowhere && is_wanted).then(|| {
        finding(
            (Code::NodePortWithoutAddress, Severity::Problem),
            format!(
                "the node port answers on no {} address: the node has none that --nodeport-addresses allows",
                family.family
            ),
            "Compare --nodeport-addresses (primary: the addresses in the Node's status) with the addresses of the \
             node's interfaces.",
        )
    })
}

fn node_port(port: &PortView, node: &NodeState) -> Vec<Finding> {
    let (label, number) = (port.label(), port.node_port);
    let mut found = Vec::new();
    if let Some((first, last)) = node.node_port_range
        && number != 0
        && !(first..=last).contains(&number)
    {
        found.push(finding(
            (Code::NodePortOutsideRange, Severity::Note),
            format!("port {label}: node port {number} is outside {first}-{last}"),
            "It is programmed all the same. Firewalls that open the range only will stop it.",
        ));
    }
    found
}

/// What is said here is of the past.
pub(super) fn stale_picture(node: &NodeState) -> Option<Finding> {
    let api = node.proxy.as_ref()?.api.as_ref()?;
    let complaint = api.complaint()?;
    Some(finding(
        (Code::StalePicture, Severity::Problem),
        format!("what the proxy knows is {:.0} s old: {complaint}", api.age_seconds),
        "Services and endpoints may have changed since. The rules go on working as they are; see kube-proxy-rs status \
         for each watch, and whether the API server answers: kubectl get --raw /readyz.",
    ))
}

/// The kernel may be right now, and was not each time.
pub(super) fn repeated_drift(node: &NodeState) -> Vec<Finding> {
    let families = node.proxy.iter().flat_map(|proxy| &proxy.families);
    let sentences = families.filter_map(|(family, it)| Some((family, it.repeated_drift.as_ref()?)));
    let advice = "Find the program and have it leave the chains and tables of the proxy alone. The log names each change, and \
                  kubeproxy_rs_drift_total counts them.";
    let found = |(family, what): (&String, &String)| {
        finding((Code::RepeatedDrift, Severity::Problem), format!("{family}: {what}"), advice)
    };
    sentences.map(found).collect()
}

pub(super) fn whole_node(node: &NodeState) -> Option<Finding> {
    let tracking = node.tracking.filter(|it| it.max > 0 && it.count.saturating_mul(100) >= it.max * 95)?;
    Some(finding(
        (Code::ConntrackFull, Severity::Broken),
        format!(
            "connection tracking holds {} of {} flows: new connections are dropped",
            tracking.count, tracking.max
        ),
        "Raise --conntrack-max-per-core (or --conntrack-min), and see who opens so many connections.",
    ))
}

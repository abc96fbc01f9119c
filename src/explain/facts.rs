//! What was found on the node and at the API server, besides the plan.

use super::view::PortView;
use crate::backend::{Difference, ForeignEffect, ForeignRule, PacketHook};
use crate::model::{ApiConnection, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// What the API has of a Service, looked at without the selectors of the watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiFacts {
    /// The Service; `None` when there is none of the name.
    pub kind: Option<Kind>,
    /// Slices that look as if they were the Service's, but lack the label that says so.
    pub unlabelled_slices: Vec<String>,
    /// Slices of the Service whose endpoints are names (`addressType: FQDN`).
    pub fqdn_slices: Vec<String>,
    /// It has no selector, so that no controller writes its slices.
    pub lacks_selector: bool,
}

/// What a Service is to a service proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has a cluster IP.
    Ordinary,
    /// `clusterIP: None`.
    Headless,
    /// A name for another name.
    ExternalName,
    /// Another proxy's, by label; its name.
    OtherProxy(String),
    /// It has no cluster IP yet.
    NoClusterIp,
}

/// How the proxy that was asked is doing: the part of its status that its answers depend on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyState {
    /// The judgement of `status`.
    pub healthy: bool,
    /// Why it is not ready, in sentences.
    pub reasons: Vec<String>,
    /// Why it is not healthy though it is ready, in sentences.
    pub concerns: Vec<String>,
    /// The connection to the API server; absent where objects come from manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiConnection>,
    /// What it knows of its families.
    #[serde(skip_serializing)]
    pub families: BTreeMap<String, ProxyFamily>,
}

/// What a proxy knows of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyFamily {
    /// That other programs changed its rules again and again, in a sentence.
    pub repeated_drift: Option<String>,
}

impl ProxyState {
    /// Why it is not healthy, in sentences.
    pub fn why(&self) -> impl Iterator<Item = &String> {
        self.reasons.iter().chain(&self.concerns)
    }
}

/// The connection-tracking table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// Flows in it.
    pub count: u64,
    /// The most it can hold.
    pub max: u64,
}

/// Flows now open to the endpoints of one Service port in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortFlows {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The name of the port; empty when it has none.
    pub port: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// By endpoint.
    pub by_endpoint: BTreeMap<SocketAddr, u64>,
}

/// Flows now open to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// By port.
    pub ports: Vec<PortFlows>,
    /// There are more than were counted.
    pub is_cut: bool,
}

impl Flows {
    /// The flows to an endpoint that came by a port of a family.
    #[must_use]
    pub fn to(&self, endpoint: SocketAddr, family: &str, port: &PortView) -> u64 {
        let is_it =
            |it: &&PortFlows| it.family == family && it.port == port.name && it.protocol == port.protocol;
        let found = self.ports.iter().find(is_it).and_then(|it| it.by_endpoint.get(&endpoint));
        found.copied().unwrap_or_default()
    }
}

/// What was found of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyFacts {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// For each wanted object what is missing and what is not wanted; empty when the kernel has
    /// exactly what it should have.
    pub differences: Vec<Difference>,
    /// The kernel could not be read, and why.
    pub unreadable: Option<String>,
    /// Foreign rules that may stop packets forwarded to the endpoints.
    pub obstacles: Vec<Obstacle>,
    /// Tables of other programs that packets meet and whose rules could not be read, each with the reason.
    pub unseen_tables: Vec<String>,
    /// Bridges with endpoints of this node that do something to packets, with the setting that says so.
    pub bridged: Option<Bridged>,
    /// The node forwards packets of the family; `None` when that cannot be read.
    pub forwards: Option<bool>,
    /// Interfaces towards endpoints that do not, though the node does.
    pub still: Vec<String>,
    /// What the node has no route to.
    pub unrouted: Vec<Unrouted>,
    /// The setting, as sysctl spells it, that keeps connection tracking from what the mode sends on.
    pub untracked_by: Option<String>,
}

/// Addresses that the node has no route to, for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unrouted {
    /// What there is: `no route`, `a blackhole route`.
    pub reason: &'static str,
    /// They are endpoints; otherwise cluster IPs.
    pub is_endpoint: bool,
    /// They.
    pub at: BTreeSet<SocketAddr>,
    /// Their Services.
    pub services: BTreeSet<String>,
}

/// Bridges that do something to packets between pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridged {
    /// The bridges that endpoints of this node are on.
    pub bridges: Vec<String>,
    /// The setting, as sysctl spells it.
    pub setting: &'static str,
    /// What it says.
    pub state: BridgeFilter,
}

/// Whether bridges show packets to the rules of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeFilter {
    /// They do. A translated packet is then sent to its port by the bridge, which sends nothing back to the port where it came
    /// from unless that is in hairpin mode.
    On,
    /// They do not: packets between pods of one bridge go past the rules.
    Off,
    /// The same, and the module is not loaded.
    NotLoaded,
}

/// One thing that can become of the traced packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Where the packet was sent.
    pub to: SocketAddr,
    /// Its protocol: `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// What.
    pub verdict: Verdict,
    /// The endpoint that gets it.
    pub endpoint: Option<SocketAddr>,
    /// The endpoint sees one of the node's addresses.
    pub masqueraded: bool,
    /// The chance that it does, in percent.
    pub percent: f64,
    /// The rule that decides.
    pub decided_by: Option<String>,
    /// All rules on the way.
    pub rules: Vec<String>,
    /// Rules that may decide otherwise, in sentences.
    pub may: Vec<String>,
}

/// A rule of another program in the way of the Service's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The rule with its table and the way to it, or the policy of a chain.
    pub rule: String,
    /// What it does to them.
    pub effect: ForeignEffect,
    /// It does so to every packet; another one depends on more than the packet's destination.
    pub is_certain: bool,
    /// Which clients' packets meet it.
    pub clients: String,
    /// It is met by the answers of endpoints, not by what clients send.
    pub by_answers: bool,
    /// Virtual servers send the packets on, which no rule has to translate.
    pub is_by_server: bool,
    /// The frontend's address, where this node has it: then the node may mean to answer itself.
    pub local: Option<IpAddr>,
    /// The endpoints that it concerns, or the frontends where it stands before their rules.
    pub at: BTreeSet<SocketAddr>,
    /// How many endpoints the Services concerned have; `None` where `at` has frontends.
    pub of_endpoints: Option<usize>,
    /// The Services whose packets meet it.
    pub services: Vec<String>,
}

impl Obstacle {
    /// A foreign rule, with the frontend that it concerns where the node has its address.
    #[must_use]
    pub fn of(rule: &ForeignRule, local: Option<IpAddr>) -> Obstacle {
        let clients = match (rule.clients(), rule.hook) {
            (Some(network), _) => network.to_owned(),
            (None, PacketHook::Output | PacketHook::Postrouting) => "this node itself".to_owned(),
            (None, _) => "pods and other hosts".to_owned(),
        };
        Obstacle {
            rule: rule.to_string(),
            effect: rule.effect,
            is_certain: rule.is_certain,
            clients,
            by_answers: false,
            is_by_server: false,
            local,
            at: BTreeSet::new(),
            of_endpoints: None,
            services: Vec::new(),
        }
    }
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// The proxy, if it was asked.
    pub proxy: Option<ProxyState>,
    /// What the API has, if it was asked.
    pub api: Option<ApiFacts>,
    /// Services with names like the one that was asked for, where there is none of that name.
    pub similar: Vec<String>,
    /// By family.
    pub families: Vec<FamilyFacts>,
    /// Connection tracking, where it can be read.
    pub tracking: Option<Tracking>,
    /// Open flows, where they can be read.
    pub flows: Option<Flows>,
    /// Endpoints on this node that refused a connection to their port.
    pub refusing: Vec<SocketAddr>,
    /// The client of `--client`, and the source ranges that leave it out, by port.
    pub excluded_client: Option<(String, Vec<String>)>,
    /// The family of the client or destination that was asked for, where the Service does not have it.
    pub other_family: Option<String>,
    /// The node ports that the cluster is said to give out.
    pub node_port_range: Option<(u16, u16)>,
    /// The traced packet.
    pub decisions: Vec<Decision>,
    /// The weights of real servers, where a virtual server chooses by weight.
    pub weights: BTreeMap<SocketAddr, u32>,
}

//! What was found on the node and at the API server, besides the plan.

use crate::backend::Difference;
use crate::model::Verdict;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What the API has of a Service, looked at without the selectors of the watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiFacts {
    /// The Service; `None` when there is none of the name.
    pub kind: Option<Kind>,
    /// Slices that look as if they were the Service's, but lack the label that says so.
    pub unlabelled_slices: Vec<String>,
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

/// The connection-tracking table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// Flows in it.
    pub count: u64,
    /// The most it can hold.
    pub max: u64,
}

/// Flows now open to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// By endpoint.
    pub by_endpoint: BTreeMap<SocketAddr, u64>,
    /// There are more than were counted.
    pub is_cut: bool,
}

/// What was found of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyFacts {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// For each wanted object what is missing and what nobody wants; empty when the kernel has
    /// exactly what it should have.
    pub differences: Vec<Difference>,
    /// The kernel could not be read, and why.
    pub unreadable: Option<String>,
    /// Foreign rules that may stop packets forwarded to the endpoints.
    pub obstacles: Vec<Obstacle>,
    /// The node forwards packets of the family; `None` when that cannot be read.
    pub forwards: Option<bool>,
}

/// One thing that can become of the traced packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
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
}

/// A rule of somebody else that stands in the way of forwarded packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// The rule.
    pub rule: String,
    /// It stops every client; others hang on more than the endpoint's address.
    pub stops_all: bool,
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// What the API has, if it was asked.
    pub api: Option<ApiFacts>,
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
    /// The node ports that the cluster is said to give out.
    pub node_port_range: Option<(u16, u16)>,
    /// The traced packet.
    pub decisions: Vec<Decision>,
}

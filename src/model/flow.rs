//! The types that pass between rooms.

use super::{EndpointSlice, NodeFacts, Service, ServiceName, SliceName};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The kinds of object we watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Node, ours only.
    Node,
}

/// What a source (API server or manifests) tells `state`.
///
/// A source lists a kind as `Listing`, its objects, `Listed`: whatever the list did not name is
/// gone. Between lists, objects come one at a time.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// A list of this kind begins. It may be cut short by another `Listing`.
    Listing(ObjectKind),
    /// The list of this kind is complete.
    Listed(ObjectKind),
    /// A Service appeared or changed.
    Service(Box<Service>),
    /// A Service is gone, or is none of ours any more (headless, `ExternalName`, other proxy).
    ServiceGone(ServiceName),
    /// An EndpointSlice appeared or changed.
    Slice(Box<EndpointSlice>),
    /// An EndpointSlice is gone, or cannot be used any more.
    SliceGone(SliceName),
    /// Our Node appeared or changed.
    Node(Arc<NodeFacts>),
    /// Our Node is gone.
    NodeGone,
    /// All that the source cannot tell at the moment, in place of what it could not before.
    Problems(Box<[SourceProblem]>),
}

/// What a source cannot tell of its objects at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceProblem {
    /// The file or folder.
    pub source: String,
    /// What is wrong with it, and where.
    pub reason: String,
    /// It is not known which objects there are.
    pub hides_objects: bool,
    /// What was said last is in force.
    pub stands: bool,
}

impl fmt::Display for SourceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cannot = if self.hides_objects { "cannot be read: " } else { "" };
        let then = match self.stands {
            true => "what it said last stays in force",
            false => "what it said before is not known",
        };
        write!(f, "{}: {cannot}{}; {then}", self.source, self.reason)
    }
}

/// What a Service wants a port of the node for. Where it wants one port for several uses, the first in this
/// order has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodePortUse {
    /// As the node port of its port with this index.
    Traffic(usize),
    /// For load balancers to ask on.
    HealthCheck,
}

impl NodePortUse {
    /// The field of the Service that asks for it.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            NodePortUse::Traffic(_) => "spec.ports[].nodePort",
            NodePortUse::HealthCheck => "spec.healthCheckNodePort",
        }
    }
}

/// All that is known about one Service name: the Service, its slices, or only one of the two.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceRecord {
    /// The Service, once it is known.
    pub service: Option<Box<Service>>,
    /// Its slices, sorted by name.
    pub slices: Vec<EndpointSlice>,
    /// Ports of the node that the Service asks for and that belong to another Service, or to another use.
    pub refused_node_ports: Vec<NodePortUse>,
    /// External and load-balancer IPs that are somebody else's, where those are refused.
    pub refused_external_ips: Box<[IpAddr]>,
}

impl ServiceRecord {
    /// The node port of the Service's port with this index, if the Service has it.
    #[must_use]
    pub fn node_port(&self, index: usize) -> Option<u16> {
        let port = self.service.as_deref()?.ports.get(index)?.node_port;
        self.unless_refused(NodePortUse::Traffic(index), port)
    }

    /// The port on which load balancers ask for the Service, if the Service has it.
    #[must_use]
    pub fn health_check_node_port(&self) -> Option<u16> {
        let port = self.service.as_deref()?.external.as_deref()?.health_check_node_port;
        self.unless_refused(NodePortUse::HealthCheck, port)
    }

    fn unless_refused(&self, wanted_for: NodePortUse, port: u16) -> Option<u16> {
        (port != 0 && !self.refused_node_ports.contains(&wanted_for)).then_some(port)
    }
}

/// The whole picture: every Service with its slices, and our node.
///
/// There is one, owned by the sync loop together with the tracker that changes it; all others
/// get it by reference for the length of a pass, so it is never copied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Every Service name seen, in the order in which rules are written.
    pub services: BTreeMap<ServiceName, ServiceRecord>,
    /// Our node.
    pub node: Arc<NodeFacts>,
}

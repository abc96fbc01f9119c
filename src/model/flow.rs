//! The types that pass between rooms.

use super::{EndpointSlice, NodeFacts, Service, ServiceName, SliceName};
use std::collections::BTreeMap;
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
}

/// All that is known about one Service name: the Service, its slices, or only one of the two.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceRecord {
    /// The Service, once it is known.
    pub service: Option<Box<Service>>,
    /// Its slices, sorted by name.
    pub slices: Vec<EndpointSlice>,
    /// Indexes of the Service's ports whose node port belongs to somebody else.
    pub refused_node_ports: Vec<usize>,
    /// External and load-balancer IPs that are somebody else's, where those are refused.
    pub refused_external_ips: Box<[IpAddr]>,
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

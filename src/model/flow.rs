//! The types that pass between rooms.

use super::{
    Cidr, EndpointSlice, FrontendKind, IpFamily, NodeFacts, Service, ServiceName, SliceName, Wanted,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
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
    /// networking.k8s.io/v1 ServiceCIDR; watched where the dataplane has a use for it.
    ServiceCidr,
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
    /// A ServiceCIDR appeared or changed: its name and its networks.
    ServiceCidr(Arc<str>, Box<[Cidr]>),
    /// A ServiceCIDR is gone.
    ServiceCidrGone(Arc<str>),
    /// All that the source cannot tell at the moment, in place of what it could not before.
    Problems(Box<[SourceProblem]>),
    /// The API server is about to be reached at one of these.
    ApiServer(Box<[ApiServerAddress]>),
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

/// An address and port at which this node reaches the API server, or the proxy in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiServerAddress {
    /// It.
    pub at: SocketAddr,
    /// An interface of this node has the address.
    pub is_own: bool,
}

/// All that is known about one Service name: the Service, its slices, or only one of the two.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceRecord {
    /// The Service, once it is known.
    pub service: Option<Box<Service>>,
    /// Its slices, sorted by name.
    pub slices: Vec<EndpointSlice>,
    /// The frontends that the Service asks for and goes without, sorted: they are another's.
    pub refused: Box<[Wanted]>,
}

impl ServiceRecord {
    /// Whether the Service has a frontend that it asks for.
    #[must_use]
    pub fn has(&self, wanted: Wanted) -> bool {
        self.refused.binary_search(&wanted).is_err()
    }

    /// Its cluster IP of a family, if it has one.
    #[must_use]
    pub fn cluster_ip(&self, family: IpFamily) -> Option<IpAddr> {
        let address = (*self.service.as_deref()?.cluster_ips.get(family))?;
        self.has(Wanted::at(FrontendKind::ClusterIp, address, 0)).then_some(address)
    }

    /// The node port of the Service's port with this index, if the Service has it.
    #[must_use]
    pub fn node_port(&self, index: usize) -> Option<u16> {
        let port = self.service.as_deref()?.ports.get(index)?.node_port;
        (port != 0 && self.has(Wanted::on_node(FrontendKind::NodePort, index))).then_some(port)
    }

    /// The port on which load balancers ask for the Service, if the Service has it.
    #[must_use]
    pub fn health_check_node_port(&self) -> Option<u16> {
        let port = self.service.as_deref()?.external.as_deref()?.health_check_node_port;
        (port != 0 && self.has(Wanted::on_node(FrontendKind::HealthCheckNodePort, 0))).then_some(port)
    }
}

/// A snapshot: every Service with its slices, and our node.
///
/// There is one, owned by the sync loop together with the tracker that changes it; the rest
/// get it by reference for the length of a pass, so it is never copied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Every Service name seen, in the order in which rules are written.
    pub services: BTreeMap<ServiceName, ServiceRecord>,
    /// Our node.
    pub node: Arc<NodeFacts>,
    /// The networks that cluster IPs are given out from, as far as the source tells; both families'.
    pub service_cidrs: BTreeSet<Cidr>,
}

//! Addresses and ports that no Service should ask for: a user who may write one would draw traffic to himself that
//! clients mean for the node, for a pod, for the API server or for another Service.

use crate::model::{Cidr, FrontendKind, Protocol, ServiceName};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// What is known of the cluster's addresses beside what is watched, and what follows from a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Addresses of this node, in addition to its Node object's.
    pub node_addresses: Vec<IpAddr>,
    /// The networks that the cluster's nodes have their addresses in.
    pub node_cidrs: Vec<Cidr>,
    /// The cluster's pod networks, in addition to this node's own.
    pub pod_cidrs: Vec<Cidr>,
    /// The networks that cluster IPs are given out from.
    pub service_cidrs: Vec<Cidr>,
    /// A claim is refused, not only reported.
    pub strict: bool,
    /// `spec.externalIPs` lead to their Services.
    pub external_ips: bool,
    /// An address that leads to a Service becomes this node's own, with all ports (IPVS).
    pub takes_whole_addresses: bool,
}

impl Default for Reserved {
    fn default() -> Self {
        Reserved {
            node_addresses: Vec::new(),
            node_cidrs: Vec::new(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            strict: false,
            external_ips: true,
            takes_whole_addresses: false,
        }
    }
}

/// Whose an address, or an address and port, is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressOwner {
    /// The API server is reached there.
    ApiServer,
    /// The API server is reached at another port of the address, all of which the Service would take.
    ApiServerAddress,
    /// It is in a range that no Service can be reached in; which one.
    Special(&'static str),
    /// This node's.
    Node,
    /// The cluster IP of a Service.
    ClusterIp,
    /// An endpoint's of this Service, which is of another namespace.
    Endpoint(ServiceName),
    /// In a network that cluster IPs are given out from.
    ServiceNetwork,
    /// In a pod network.
    PodNetwork,
    /// In a network that nodes have their addresses in.
    NodeNetwork,
}

impl AddressOwner {
    /// By the address alone.
    pub(super) fn of_range(address: IpAddr) -> Option<AddressOwner> {
        let of_v4 = |v4: Ipv4Addr| match v4.octets() {
            [0, ..] => Some("in 0.0.0.0/8, which stands for no host"),
            [255, 255, 255, 255] => Some("the broadcast address"),
            [first, ..] if first >= 240 => Some("in 240.0.0.0/4, which is reserved"),
            _ => v4.is_link_local().then_some("a link-local address"),
        };
        let range = match address {
            address if address.is_loopback() => Some("a loopback address"),
            address if address.is_multicast() => Some("a multicast address"),
            IpAddr::V4(v4) => of_v4(v4),
            IpAddr::V6(v6) if v6.is_unspecified() => Some("the unspecified address"),
            IpAddr::V6(v6) => v6.is_unicast_link_local().then_some("a link-local address"),
        };
        range.map(AddressOwner::Special)
    }

    /// It is the API server's way: no Service gets it, whatever the configuration.
    #[must_use]
    pub fn is_api_server(&self) -> bool {
        matches!(self, AddressOwner::ApiServer | AddressOwner::ApiServerAddress)
    }
}

impl fmt::Display for AddressOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            AddressOwner::ApiServer => "where this node reaches the API server",
            AddressOwner::ApiServerAddress => {
                "at the address where this node reaches the API server, and in this mode a Service takes all ports of an address"
            }
            AddressOwner::Special(range) => range,
            AddressOwner::Node => "this node's own address",
            AddressOwner::ClusterIp => "a Service's cluster IP",
            AddressOwner::Endpoint(of) => return write!(f, "the address of an endpoint of Service {of}"),
            AddressOwner::ServiceNetwork => "within the Service network",
            AddressOwner::PodNetwork => "within the pod network",
            AddressOwner::NodeNetwork => "within the nodes' network",
        };
        f.write_str(words)
    }
}

/// What a Service asks for, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// Where the Service asks.
    pub kind: FrontendKind,
    /// The address; none for a port of the node.
    pub address: Option<IpAddr>,
    /// The port and its protocol; none for the whole address.
    pub port: Option<(u16, Protocol)>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind.field())?;
        if let Some(address) = self.address {
            write!(f, " {address}")?;
        }
        match self.port {
            Some((port, protocol)) if self.address.is_some() => write!(f, " port {port}/{protocol}"),
            Some((port, protocol)) => write!(f, " {port}/{protocol}"),
            None => Ok(()),
        }
    }
}

/// A Service that asks for what is not for Services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReservedClaim {
    /// The Service.
    pub service: ServiceName,
    /// What it asks for.
    pub asked: Asked,
    /// Whose that is.
    pub owner: AddressOwner,
    /// The Service goes without it.
    pub refused: bool,
}

impl ReservedClaim {
    /// What is wrong, without the Service's name.
    #[must_use]
    pub fn complaint(&self) -> String {
        let outcome = if self.refused { "; this Service is programmed without it" } else { "" };
        format!("{} is {}{outcome}", self.asked, self.owner)
    }
}

impl fmt::Display for ReservedClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.complaint())
    }
}

/// A Service that cannot have a frontend because another Service has it, or another use in the same Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendConflict {
    /// The Service that goes without.
    pub service: ServiceName,
    /// What it asks for.
    pub asked: Asked,
    /// The Service that has it.
    pub owner: ServiceName,
    /// The field in which the owner asks for it.
    pub owner_field: &'static str,
}

impl FrontendConflict {
    /// What is wrong, without the Service's name.
    #[must_use]
    pub fn complaint(&self) -> String {
        let FrontendConflict { asked, owner, owner_field, .. } = self;
        format!("{asked} belongs to Service {owner} ({owner_field}); this Service is programmed without it")
    }
}

impl fmt::Display for FrontendConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.complaint())
    }
}

//! What a Service asks to be reached at.

use std::net::IpAddr;

/// The kinds of frontend. Where one Service asks for the same one for several uses, the first in this order
/// has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// A cluster IP.
    ClusterIp,
    /// An external IP.
    ExternalIp,
    /// A load-balancer IP.
    LoadBalancerIp,
    /// A node port.
    NodePort,
    /// The node port on which load balancers ask.
    HealthCheckNodePort,
}

impl FrontendKind {
    /// The field of the Service that asks for it.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            FrontendKind::ClusterIp => "spec.clusterIPs",
            FrontendKind::ExternalIp => "spec.externalIPs",
            FrontendKind::LoadBalancerIp => "status.loadBalancer.ingress",
            FrontendKind::NodePort => "spec.ports[].nodePort",
            FrontendKind::HealthCheckNodePort => "spec.healthCheckNodePort",
        }
    }

    /// Any user who may write a Service or its status can ask for it; the API server gives out the other kinds,
    /// each value once.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp)
    }
}

/// One frontend that a Service asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wanted {
    /// Its kind.
    pub kind: FrontendKind,
    /// Its address; none for a port of the node.
    pub address: Option<IpAddr>,
    /// The index of the Service's port; 0 for a cluster IP, which is had with all ports or not at all, and for
    /// a health check.
    pub port: usize,
}

impl Wanted {
    /// An address with the Service's port of this index.
    #[must_use]
    pub fn at(kind: FrontendKind, address: IpAddr, port: usize) -> Self {
        Wanted { kind, address: Some(address), port }
    }

    /// A port of the node.
    #[must_use]
    pub fn on_node(kind: FrontendKind, port: usize) -> Self {
        Wanted { kind, address: None, port }
    }
}

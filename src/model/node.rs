//! What we know of the node we run on.

use super::{Cidr, IpFamily};
use std::net::IpAddr;
use std::sync::Arc;

/// The facts of our own Node object that the proxy acts on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The Node's name; set from the configuration even where the object is not known.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, if present and not empty.
    pub zone: Option<Arc<str>>,
    /// InternalIPs in order, then ExternalIPs in order (kube-proxy).
    pub addresses: Box<[IpAddr]>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Box<[Cidr]>,
    /// The Node has a `deletionTimestamp`.
    pub deleting: bool,
    /// The Node carries the taint `ToBeDeletedByClusterAutoscaler`.
    pub to_be_deleted: bool,
}

impl NodeFacts {
    /// The first address of a family.
    #[must_use]
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| IpFamily::of(*address) == family)
    }
}

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

    /// These facts, with what was known before of a family of which they name no address, or no pod
    /// network. A Node that is registered again has neither for a while; meanwhile node ports must not
    /// open on all addresses, nor may the traffic of local pods be taken for another's.
    #[must_use]
    pub fn filled_up_from(&self, known: &NodeFacts) -> NodeFacts {
        fn filled_up<T: Copy>(now: &[T], known: &[T], family: fn(&T) -> IpFamily) -> Box<[T]> {
            let is_lacking = |it: &&T| !now.iter().any(|other| family(other) == family(it));
            now.iter().chain(known.iter().filter(is_lacking)).copied().collect()
        }
        NodeFacts {
            addresses: filled_up(&self.addresses, &known.addresses, |address| IpFamily::of(*address)),
            pod_cidrs: filled_up(&self.pod_cidrs, &known.pod_cidrs, IpFamily::of_cidr),
            ..self.clone()
        }
    }
}

/// Where node ports answer, in words.
#[must_use]
pub fn node_port_words(ips: Option<&[IpAddr]>) -> String {
    match ips {
        None => "every address of the node".to_owned(),
        Some([]) => "NO address: the node has none that --nodeport-addresses allows".to_owned(),
        Some(ips) => listed_ips(ips),
    }
}

/// Addresses, set apart by commas.
#[must_use]
pub fn listed_ips<'i>(ips: impl IntoIterator<Item = &'i IpAddr>) -> String {
    let texts: Vec<String> = ips.into_iter().map(ToString::to_string).collect();
    if texts.is_empty() { "unknown".to_owned() } else { texts.join(", ") }
}

//! EndpointSlices, reduced to what a proxy acts on.

use super::{IpFamily, Protocol, ServiceName};
use std::net::IpAddr;
use std::sync::Arc;

/// An EndpointSlice's `namespace/name`. Cheap to clone.
pub type SliceName = Arc<str>;

/// The facts about one endpoint, packed into one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointFacts(u8);

impl EndpointFacts {
    const READY: u8 = 1;
    const SERVING: u8 = 2;
    const TERMINATING: u8 = 4;
    const LOCAL: u8 = 8;

    /// Packs the API's three conditions and whether the endpoint is on this node.
    #[must_use]
    pub fn new(ready: bool, serving: bool, terminating: bool, local: bool) -> Self {
        let bit = |set: bool, mask: u8| if set { mask } else { 0 };
        EndpointFacts(
            bit(ready, Self::READY)
                | bit(serving, Self::SERVING)
                | bit(terminating, Self::TERMINATING)
                | bit(local, Self::LOCAL),
        )
    }

    /// Condition `ready` (absent means true).
    #[must_use]
    pub fn ready(self) -> bool {
        self.0 & Self::READY != 0
    }

    /// Condition `serving` (absent means true).
    #[must_use]
    pub fn serving(self) -> bool {
        self.0 & Self::SERVING != 0
    }

    /// Condition `terminating` (absent means false).
    #[must_use]
    pub fn terminating(self) -> bool {
        self.0 & Self::TERMINATING != 0
    }

    /// The endpoint's `nodeName` is ours.
    #[must_use]
    pub fn local(self) -> bool {
        self.0 & Self::LOCAL != 0
    }
}

/// Topology hints; endpoints of a slice that have the same ones share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `hints.forNodes`.
    pub nodes: Box<[Arc<str>]>,
}

/// One endpoint of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of the API's addresses: the only one that counts (API).
    pub address: IpAddr,
    /// Conditions and locality.
    pub facts: EndpointFacts,
    /// Index into the slice's `hints`; 0 stands for "no hints".
    pub hints: u16,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Joins the slice to the Service port of the same name; may be empty.
    pub name: Box<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The number the endpoints listen on.
    pub port: u16,
}

/// An EndpointSlice of one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: SliceName,
    /// The Service it belongs to (label `kubernetes.io/service-name`).
    pub service: ServiceName,
    /// `addressType`.
    pub family: IpFamily,
    /// Ports with a name and a number.
    pub ports: Box<[SlicePort]>,
    /// Endpoints that have an address.
    pub endpoints: Box<[SliceEndpoint]>,
    /// The distinct hints of its endpoints; `hints[0]` is always the empty one.
    /// An empty table means that no endpoint has hints.
    pub hints: Box<[Hints]>,
    /// Endpoints left out because of their address: a loopback, link-local, unspecified or multicast
    /// one.
    pub refused: u16,
    /// `endpoints.kubernetes.io/last-change-trigger-time` in milliseconds since 1970.
    pub triggered: Option<i64>,
}

impl EndpointSlice {
    /// The hints of one of its endpoints.
    #[must_use]
    pub fn hints_of(&self, endpoint: &SliceEndpoint) -> Option<&Hints> {
        match endpoint.hints {
            0 => None,
            index => self.hints.get(usize::from(index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_takes_twenty_bytes() {
        assert_eq!(size_of::<SliceEndpoint>(), 20);
    }
}

//! The packet cases: which packet ends up where, written once and put to every backend.
//!
//! A case is one Service of a certain shape and a few packets with what must become of them. The
//! netns tier sends each packet for real; a backend's tracer walks its rendered rules with the
//! [`Flow`] of the same packet. Everything here is plain data: no sockets, no rules.

mod objects;
mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use crate::model::Verdict;
use crate::model::{IpFamily, Protocol};

pub use objects::{MARKER_ENDPOINT_PORT, marker_objects, node_object, to_manifest};
pub use table::{cases, cases_by_flags};

/// The port every endpoint of the packet cases listens on.
pub const TARGET_PORT: u16 = 8080;
/// The port the Services of the packet cases answer on.
pub const SERVICE_PORT: u16 = 80;
/// The node the cases are set on.
pub const NODE_NAME: &str = "node-0";
/// The pod network of the cases, as `--cluster-cidr` takes it.
pub const CLUSTER_CIDR: &str = "10.128.0.0/16,fd00:128::/32";

/// Who sends a packet, or serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod on our node that may be an endpoint.
    Local1,
    /// Another one.
    Local2,
    /// A pod on our node that is never an endpoint.
    LocalClient,
    /// A pod on another node that may be an endpoint.
    Remote1,
    /// A pod on a third node.
    Remote2,
    /// Our node itself.
    Node,
    /// A client on the node network, outside the cluster.
    Outside,
    /// A second such client: the one source ranges let in.
    OutsideFriend,
}

impl Place {
    /// The places that run servers.
    pub const SERVERS: [Place; 4] = [Place::Local1, Place::Local2, Place::Remote1, Place::Remote2];
    /// The pods on our node, each in a namespace of its own.
    pub const LOCAL_PODS: [Place; 3] = [Place::Local1, Place::Local2, Place::LocalClient];

    /// The pod's name, which is also what its server answers with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Place::Local1 => "local-1",
            Place::Local2 => "local-2",
            Place::LocalClient => "client",
            Place::Remote1 => "remote-1",
            Place::Remote2 => "remote-2",
            Place::Node => NODE_NAME,
            Place::Outside => "outside",
            Place::OutsideFriend => "friend",
        }
    }

    /// Its address in one family.
    #[must_use]
    pub fn address(self, family: IpFamily) -> IpAddr {
        let (v4, v6) = match self {
            Place::Local1 => ([10, 128, 0, 5], "fd00:128::5"),
            Place::Local2 => ([10, 128, 0, 6], "fd00:128::6"),
            Place::LocalClient => ([10, 128, 0, 9], "fd00:128::9"),
            Place::Remote1 => ([10, 128, 1, 5], "fd00:128:0:1::5"),
            Place::Remote2 => ([10, 128, 2, 5], "fd00:128:0:2::5"),
            Place::Node => ([10, 200, 0, 11], "fd00:200::11"),
            Place::Outside => ([10, 200, 0, 99], "fd00:200::99"),
            Place::OutsideFriend => ([10, 200, 0, 98], "fd00:200::98"),
        };
        match family {
            IpFamily::V4 => IpAddr::from(v4),
            IpFamily::V6 => IpAddr::V6(v6.parse().unwrap_or(Ipv6Addr::UNSPECIFIED)),
        }
    }

    /// The interface of our node its packets come in on; none for the node's own.
    #[must_use]
    pub fn interface(self) -> Option<&'static str> {
        match self {
            Place::Local1 => Some("veth-local-1"),
            Place::Local2 => Some("veth-local-2"),
            Place::LocalClient => Some("veth-client"),
            Place::Remote1 | Place::Remote2 | Place::Outside | Place::OutsideFriend => Some("eth0"),
            Place::Node => None,
        }
    }

    /// The node a pod runs on.
    #[must_use]
    pub fn node_name(self) -> &'static str {
        match self {
            Place::Remote1 => "node-1",
            Place::Remote2 => "node-2",
            _ => NODE_NAME,
        }
    }
}

/// The address of our node on its pod network, beside the one on the node network.
#[must_use]
pub fn pod_side_address(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::from([10, 128, 0, 1]),
        IpFamily::V6 => IpAddr::from([0xfd00, 0x128, 0, 0, 0, 0, 0, 1]),
    }
}

/// Which of a Service's destinations a packet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The cluster IP.
    ClusterIp,
    /// The external IP.
    ExternalIp,
    /// The load-balancer IP.
    LoadBalancerIp,
    /// The node port on the node's address.
    NodePort,
    /// The node port on the node's address of its pod network.
    NodePortOnPodSide,
    /// The node port on the loopback address.
    NodePortOnLocalhost,
}

/// What an endpoint's conditions say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Ready.
    Ready,
    /// Neither ready nor serving nor terminating.
    NotReady,
    /// Terminating, still serving.
    Terminating,
    /// Terminating, no longer serving.
    Stopped,
}

/// The Service of a case: one port, both families.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The protocol of its port.
    pub protocol: Protocol,
    /// Its endpoints.
    pub endpoints: Vec<(Place, EndpointState)>,
    /// Node port, external IP and load-balancer IP, besides the cluster IP.
    pub exposed: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `sessionAffinity: ClientIP` and its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// `loadBalancerSourceRanges`: the addresses of these places.
    pub source_ranges: Vec<Place>,
}

/// The source address an endpoint gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own.
    Kept,
    /// One of the node's.
    Masqueraded,
}

/// How repeated requests of one client fall on the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Every endpoint gets some.
    Some,
    /// Every endpoint gets about as many as any other.
    Even,
    /// All go to the same one.
    Sticky,
    /// All go to the same one until the affinity timeout has passed without a request.
    StickyUntilTimeout,
}

/// The endpoints that get a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedBy {
    /// Exactly these get to see requests.
    pub by: Vec<Place>,
    /// The source address they see.
    pub source: Source,
    /// How requests fall on them.
    pub share: Share,
}

/// One packet, the first of a connection, and what must become of it.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Who sends it.
    pub from: Place,
    /// Where to.
    pub to: Target,
    /// The families this is expected in.
    pub families: &'static [IpFamily],
    /// What becomes of it.
    pub verdict: Verdict<ServedBy>,
}

/// A Service and its packets.
#[derive(Clone, Debug)]
pub struct PacketCase {
    /// A sentence that says what is expected.
    pub name: &'static str,
    /// Flags besides the usual ones.
    pub flags: &'static [&'static str],
    /// Its Service.
    pub shape: Shape,
    /// Its packets.
    pub packets: Vec<Packet>,
    /// The case's place in the table, from which its addresses follow.
    pub index: u8,
}

/// A packet in addresses, for sockets and for tracers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The interface it comes in on; none when the node itself sends it.
    pub interface: Option<&'static str>,
    /// The client's address.
    pub source: IpAddr,
    /// Where it is sent.
    pub destination: SocketAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

impl PacketCase {
    /// The Service's name; its namespace is `packets`.
    #[must_use]
    pub fn service_name(&self) -> String {
        format!("case-{}", self.index)
    }

    /// The Service's cluster IP.
    #[must_use]
    pub fn cluster_ip(&self, family: IpFamily) -> IpAddr {
        numbered(family, [10, 96, 1], [0xfd00, 0x96], self.index)
    }

    /// The Service's external IP.
    #[must_use]
    pub fn external_ip(&self, family: IpFamily) -> IpAddr {
        numbered(family, [192, 0, 2], [0x2001, 0xdb8], self.index)
    }

    /// The Service's load-balancer IP.
    #[must_use]
    pub fn load_balancer_ip(&self, family: IpFamily) -> IpAddr {
        numbered(family, [203, 0, 113], [0x2001, 0xdb9], self.index)
    }

    /// The Service's node port.
    #[must_use]
    pub fn node_port(&self) -> u16 {
        30100 + u16::from(self.index)
    }

    /// What becomes of a packet as far as IPVS can do what the table says.
    #[must_use]
    pub fn verdict_in_ipvs(&self, packet: &Packet) -> Verdict<ServedBy> {
        if packet.to == Target::NodePortOnLocalhost {
            // The kernel has no virtual servers there.
            return Verdict::Untouched;
        }
        let mut verdict = packet.verdict.clone();
        let is_here = |place: &Place| place.node_name() == NODE_NAME;
        if let Verdict::Served(ServedBy { by, .. }) = &mut verdict
            && self.shape.external_local
            && packet.to != Target::ClusterIp
            && by.iter().any(is_here)
        {
            // A virtual server has one list: who is on the node gets the local endpoints, too.
            by.retain(is_here);
        }
        verdict
    }

    /// One of the case's packets in addresses of `family`.
    #[must_use]
    pub fn flow(&self, packet: &Packet, family: IpFamily) -> Flow {
        let localhost = match family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let (address, port) = match packet.to {
            Target::ClusterIp => (self.cluster_ip(family), SERVICE_PORT),
            Target::ExternalIp => (self.external_ip(family), SERVICE_PORT),
            Target::LoadBalancerIp => (self.load_balancer_ip(family), SERVICE_PORT),
            Target::NodePort => (Place::Node.address(family), self.node_port()),
            Target::NodePortOnPodSide => (pod_side_address(family), self.node_port()),
            Target::NodePortOnLocalhost => (localhost, self.node_port()),
        };
        Flow {
            interface: packet.from.interface(),
            // A node that speaks to its own address does so from that same address.
            source: match (packet.from, packet.to) {
                (Place::Node, Target::NodePortOnLocalhost) => localhost,
                (Place::Node, Target::NodePortOnPodSide) => pod_side_address(family),
                (from, _) => from.address(family),
            },
            destination: SocketAddr::new(address, port),
            protocol: self.shape.protocol,
        }
    }
}

/// The address `v4.index`, or `v6::1:index`.
fn numbered(family: IpFamily, v4: [u8; 3], v6: [u16; 2], index: u8) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::from([v4[0], v4[1], v4[2], index]),
        IpFamily::V6 => IpAddr::from([v6[0], v6[1], 0, 0, 0, 0, 1, u16::from(index)]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_and_addresses_of_its_own() {
        let cases = cases();
        let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
        let addresses: BTreeSet<_> = cases.iter().map(|case| case.cluster_ip(IpFamily::V6)).collect();
        assert_eq!(names.len(), cases.len());
        assert_eq!(addresses.len(), cases.len());
        assert!(cases.iter().all(|case| !case.packets.is_empty()));
    }

    #[test]
    fn only_endpoints_of_the_service_are_expected_to_serve() {
        for case in cases() {
            for packet in &case.packets {
                let Verdict::Served(ServedBy { by, .. }) = &packet.verdict else { continue };
                assert!(!by.is_empty(), "{}", case.name);
                assert!(by.iter().all(|place| case.shape.endpoints.iter().any(|(known, _)| known == place)));
            }
        }
    }

    #[test]
    fn the_pod_network_has_every_pod_in_it() {
        let networks: Vec<ipnet::IpNet> = CLUSTER_CIDR.split(',').map(|text| text.parse().unwrap()).collect();
        for place in Place::SERVERS.into_iter().chain([Place::LocalClient]) {
            for family in IpFamily::ALL {
                let address = place.address(family);
                assert!(networks.iter().any(|network| network.contains(&address)), "{address}");
            }
        }
    }
}

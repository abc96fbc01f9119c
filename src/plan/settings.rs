//! What holds for every Service of a family: made of the configuration and what is known of our Node.

use crate::model::{Cidr, IpFamily, ServiceLimits};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// How to tell traffic of this node's (or the cluster's) pods from other traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    /// Its source is within this network (`ClusterCIDR`, `NodeCIDR`).
    Cidr(Cidr),
    /// It comes in through this bridge.
    BridgeInterface(String),
    /// It comes in through an interface whose name begins so.
    InterfacePrefix(String),
}

/// On which of the node's addresses node ports answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On all.
    #[default]
    All,
    /// On those within these networks, all of the plan's family.
    Within(Vec<Cidr>),
}

impl NodePortAddresses {
    /// The part of `--nodeport-addresses` that concerns a family. An empty list, a list without
    /// an entry of the family and one with its zero network all mean "all" (kube-proxy).
    #[must_use]
    pub fn of_family(cidrs: &[Cidr], family: IpFamily) -> Self {
        let ours: Vec<Cidr> =
            cidrs.iter().copied().filter(|cidr| IpFamily::of_cidr(cidr) == family).collect();
        if ours.is_empty() || ours.iter().any(|cidr| cidr.prefix_len() == 0) {
            return NodePortAddresses::All;
        }
        NodePortAddresses::Within(ours)
    }

    /// Whether an IPv4 loopback address is meant, too. The rule is kube-proxy's: a network that
    /// begins in 127/8 or holds 127.0.0.0.
    #[must_use]
    pub fn includes_v4_loopback(&self) -> bool {
        let loopback = IpAddr::from([127, 0, 0, 0]);
        match self {
            NodePortAddresses::All => true,
            NodePortAddresses::Within(cidrs) => {
                cidrs.iter().any(|cidr| cidr.network().is_loopback() || cidr.contains(&loopback))
            }
        }
    }
}

/// What holds for every Service of a family.
#[derive(Clone, Debug)]
pub struct FamilySettings {
    /// The family.
    pub family: IpFamily,
    /// How local traffic is detected; `None` when the mode has nothing for this family.
    pub detector: Option<LocalDetector>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// The node's own IP of this family, or loopback when it is not known.
    pub node_ip: IpAddr,
    /// On which addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Node ports answer on 127.0.0.0/8, too; never for IPv6.
    pub localhost_node_ports: bool,
    /// External IPs lead to their Services; an operator can switch that off.
    pub external_ips: bool,
    /// The networks of this family that cluster IPs are given out from, as far as they are known, each once.
    pub service_cidrs: Vec<Cidr>,
    /// How much of one Service is programmed at most; what its object asks for is within them already.
    pub limits: ServiceLimits,
}

impl FamilySettings {
    /// Which of these addresses of the node answer on node ports; `None` means every address of the node.
    ///
    /// Loopback addresses count only where node ports on localhost are wanted (kube-proxy).
    #[must_use]
    pub fn node_port_ips(&self, local_addresses: &[IpAddr]) -> Option<Vec<IpAddr>> {
        let NodePortAddresses::Within(cidrs) = &self.node_port_addresses else { return None };
        let within = |ip: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(ip));
        let usable = |ip: &IpAddr| within(ip) && (self.localhost_node_ports || !ip.is_loopback());
        let found: BTreeSet<IpAddr> = local_addresses.iter().copied().filter(usable).collect();
        Some(found.into_iter().collect())
    }

    /// Settings that detect nothing and restrict nothing.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        let node_ip = match family {
            IpFamily::V4 => IpAddr::from([127, 0, 0, 1]),
            IpFamily::V6 => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]),
        };
        FamilySettings {
            family,
            detector: None,
            masquerade_all: false,
            node_ip,
            node_port_addresses: NodePortAddresses::All,
            localhost_node_ports: family == IpFamily::V4,
            external_ips: true,
            service_cidrs: Vec::new(),
            limits: ServiceLimits::NONE,
        }
    }
}

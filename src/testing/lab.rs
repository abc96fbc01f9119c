//! A node and its surroundings in network namespaces, with real servers on every pod.
//!
//! ```text
//!   outside 10.200.0.99, .98 ──bridge──┬── node  eth0 10.200.0.11   cni0 10.128.0.1/24
//!                                      │        ├── veth-local-1 ── pod 10.128.0.5
//!                                      │        ├── veth-local-2 ── pod 10.128.0.6
//!                                      │        └── veth-client ─── pod 10.128.0.9
//!                                      └── remote eth0 10.200.0.12, .13
//!                                               lo: pods 10.128.1.5, 10.128.2.5
//! ```
//!
//! Pods hang on point-to-point links, not on a bridge, so that every packet between two of them
//! passes the node's rules. Everything outside sends what it has no route for to the node, which
//! is what a cluster's network does with Service addresses of all kinds.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::netns::Namespace;
use super::packets::{Place, TARGET_PORT};
use super::traffic::{Client, PodServers};
use crate::model::IpFamily;

/// The namespaces of a node, its pods, the other nodes and the clients outside.
#[derive(Debug)]
pub struct Lab {
    // Fields are dropped in this order: servers first, then what they run in.
    _servers: PodServers,
    pods: BTreeMap<Place, Namespace>,
    remote: Namespace,
    outside: Namespace,
    node: Namespace,
}

impl Lab {
    /// Builds the lab and starts a TCP and a UDP server on every pod that may be an endpoint.
    ///
    /// # Errors
    ///
    /// When namespaces cannot be made or wired, which mostly means: not root.
    pub fn create() -> Result<Lab> {
        super::netns::sweep_leftovers()?;
        let node = lone_node()?;
        let outside = Namespace::create("outside")?;
        let remote = Namespace::create("remote")?;
        outside.ip(&format!(
            "link add lan type bridge
             link add to-node type veth peer name eth0 netns {node}
             link add to-remote type veth peer name eth0 netns {remote}
             link set to-node master lan up
             link set to-remote master lan up
             addr add 10.200.0.99/24 dev lan
             addr add 10.200.0.98/24 dev lan
             addr add fd00:200::99/64 dev lan nodad
             addr add fd00:200::98/64 dev lan nodad
             link set lan up
             route add default via 10.200.0.11
             route add default via fd00:200::11",
            node = node.name(),
            remote = remote.name(),
        ))?;
        wire_node(&node)?;
        wire_remote(&remote)?;
        let mut pods = BTreeMap::new();
        for place in Place::LOCAL_PODS {
            pods.insert(place, local_pod(&node, place)?);
        }
        let servers = start_servers(&pods, &remote)?;
        Ok(Lab { _servers: servers, pods, remote, outside, node })
    }

    /// The node's namespace, where the program under test runs.
    #[must_use]
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// The namespace a place's packets come from.
    #[must_use]
    pub fn namespace(&self, place: Place) -> &Namespace {
        match place {
            Place::Node => &self.node,
            Place::Outside | Place::OutsideFriend => &self.outside,
            Place::Remote1 | Place::Remote2 => &self.remote,
            Place::Local1 | Place::Local2 | Place::LocalClient => self.pods.get(&place).unwrap_or(&self.node),
        }
    }

    /// A client at a place. Places that share a namespace are told apart by their source address;
    /// the node picks its own, as the kernel would.
    #[must_use]
    pub fn client(&self, place: Place, family: IpFamily) -> Client<'_> {
        let source = (place != Place::Node).then(|| place.address(family));
        Client::new(self.namespace(place), source)
    }
}

/// A node without neighbours or pods, but with their addresses and forwarding on: enough to
/// program rules on.
///
/// # Errors
///
/// When the namespace cannot be made.
pub fn lone_node() -> Result<Namespace> {
    let node = Namespace::create("node")?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // A test refuses many connections in a second; the kernel's limits on ICMP messages, for
        // one client and for all together, would turn some refusals into waits.
        ("net/ipv4/icmp_ratemask", "0"),
        ("net/ipv6/icmp/ratemask", "255"),
    ] {
        node.set_sysctl(key, value)?;
    }
    node.ip("link add cni0 type bridge
             addr add 10.128.0.1/24 dev cni0
             addr add fd00:128::1/64 dev cni0 nodad
             link set cni0 up")?;
    Ok(node)
}

/// Gives a lone node an uplink of its own and routes that lead there, with nothing on the other side.
///
/// # Errors
///
/// When the namespace refuses.
pub fn give_idle_uplink(node: &Namespace) -> Result<()> {
    node.ip("link add eth0 type bridge
             addr add 10.200.0.11/24 dev eth0
             addr add fd00:200::11/64 dev eth0 nodad
             link set eth0 up
             route add default via 10.200.0.12
             route add default via fd00:200::12")
}

fn wire_node(node: &Namespace) -> Result<()> {
    node.ip("addr add 10.200.0.11/24 dev eth0
             addr add fd00:200::11/64 dev eth0 nodad
             link set eth0 up
             route add 10.128.1.0/24 via 10.200.0.12
             route add 10.128.2.0/24 via 10.200.0.13
             route add default via 10.200.0.12
             route add fd00:128:0:1::/64 via fd00:200::12
             route add fd00:128:0:2::/64 via fd00:200::13
             route add default via fd00:200::12")
}

fn wire_remote(remote: &Namespace) -> Result<()> {
    remote.ip("addr add 10.200.0.12/24 dev eth0
               addr add 10.200.0.13/24 dev eth0
               addr add fd00:200::12/64 dev eth0 nodad
               addr add fd00:200::13/64 dev eth0 nodad
               link set eth0 up
               addr add 10.128.1.5/32 dev lo
               addr add 10.128.2.5/32 dev lo
               addr add fd00:128:0:1::5/128 dev lo nodad
               addr add fd00:128:0:2::5/128 dev lo nodad
               route add default via 10.200.0.11
               route add default via fd00:200::11")
}

fn local_pod(node: &Namespace, place: Place) -> Result<Namespace> {
    let pod = Namespace::create(place.name())?;
    let interface = place.interface().context("a pod on the node has an interface there")?;
    let (v4, v6) = (place.address(IpFamily::V4), place.address(IpFamily::V6));
    node.ip(&format!(
        "link add {interface} type veth peer name eth0 netns {pod}
         addr add fe80::1/64 dev {interface} nodad
         link set {interface} up",
        pod = pod.name()
    ))?;
    pod.ip(&format!(
        "addr add {v4}/32 dev eth0
         addr add {v6}/128 dev eth0 nodad
         link set eth0 up
         route add 10.128.0.1 dev eth0 scope link
         route add default via 10.128.0.1
         route add default via fe80::1 dev eth0"
    ))?;
    node.ip(&format!("route add {v4}/32 dev {interface}\nroute add {v6}/128 dev {interface}"))?;
    Ok(pod)
}

fn start_servers(pods: &BTreeMap<Place, Namespace>, remote: &Namespace) -> Result<PodServers> {
    let mut servers = PodServers::builder();
    for place in Place::SERVERS {
        let namespace = pods.get(&place).unwrap_or(remote);
        for family in IpFamily::ALL {
            servers.listen(place.name(), namespace, SocketAddr::new(place.address(family), TARGET_PORT))?;
        }
    }
    servers.start()
}

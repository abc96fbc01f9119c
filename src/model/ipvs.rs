//! What IPVS mode programs, in words that both the deciding backend and the kernel handles use.

use super::{Cidr, IpFamily, Protocol};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The interface that holds the addresses of Services in mode ipvs (kube-proxy).
pub const SERVICES_INTERFACE: &str = "kube-ipvs0";

/// An address, port and protocol that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// The family of its address.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.address)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// How a virtual server chooses real servers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpvsScheduler {
    /// The kernel's name: `rr`, `lc`, `sh`, …
    pub name: Arc<str>,
    /// A real server of weight 0 is passed over (`sh`, `mh`).
    pub fallback: bool,
    /// The client's port counts as well as its address (`sh`, `mh`).
    pub by_port: bool,
}

impl IpvsScheduler {
    /// Schedulers of the kernel, as of Linux 6.12.
    pub const KNOWN: [&str; 14] =
        ["rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos"];

    /// A scheduler by the name people give it: the kernel's, or `sh-port` and `mh-port`, which hash
    /// the client's port, too. Names that no kernel has are refused.
    #[must_use]
    pub fn parse(text: &str) -> Option<IpvsScheduler> {
        let (name, by_port) = match text {
            "sh-port" => ("sh", true),
            "mh-port" => ("mh", true),
            name => (name, false),
        };
        let hashes = matches!(name, "sh" | "mh");
        Self::KNOWN.contains(&name).then(|| IpvsScheduler { name: name.into(), fallback: hashes, by_port })
    }

    /// A scheduler with the switches that kube-proxy gives it.
    #[must_use]
    pub fn as_upstream(name: &str) -> IpvsScheduler {
        IpvsScheduler { name: name.into(), fallback: false, by_port: name == "mh" }
    }
}

/// How a virtual server treats connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualServer {
    /// How it chooses real servers.
    pub scheduler: IpvsScheduler,
    /// For how many seconds a client comes back to the same real server.
    pub affinity_seconds: Option<u32>,
}

/// A real server of a virtual server; connections to it are masqueraded (NAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServer {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its share; 0 lets existing connections finish and gives it no new ones.
    pub weight: u32,
}

/// One change to virtual servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerOperation {
    /// Add a virtual server.
    Add(Frontend, VirtualServer),
    /// Give a virtual server other switches; its connections stay.
    Update(Frontend, VirtualServer),
    /// Remove a virtual server and its real servers.
    Remove(Frontend),
    /// Add a real server.
    AddReal(Frontend, RealServer),
    /// Give a real server another weight.
    UpdateReal(Frontend, RealServer),
    /// Remove a real server.
    RemoveReal(Frontend, SocketAddr),
}

impl ServerOperation {
    /// What is done to what, as metrics name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            ServerOperation::Add(..) => "add_virtual",
            ServerOperation::Update(..) => "update_virtual",
            ServerOperation::Remove(_) => "remove_virtual",
            ServerOperation::AddReal(..) => "add_real",
            ServerOperation::UpdateReal(..) => "update_real",
            ServerOperation::RemoveReal(..) => "remove_real",
        }
    }

    /// The virtual server concerned.
    #[must_use]
    pub fn frontend(&self) -> &Frontend {
        match self {
            ServerOperation::Add(at, _)
            | ServerOperation::Update(at, _)
            | ServerOperation::Remove(at)
            | ServerOperation::AddReal(at, _)
            | ServerOperation::UpdateReal(at, _)
            | ServerOperation::RemoveReal(at, _) => at,
        }
    }
}

/// An entry of an ipset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetEntry {
    /// `bitmap:port`
    Port(u16),
    /// `hash:ip`
    Ip(IpAddr),
    /// `hash:ip,port`
    IpPort(Frontend),
    /// `hash:ip,port,ip`
    IpPortIp(Frontend, IpAddr),
    /// `hash:ip,port,net`
    IpPortNet(Frontend, Cidr),
}

/// The types of ipsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetType {
    /// `bitmap:port`
    Port,
    /// `hash:ip`
    Ip,
    /// `hash:ip,port`
    IpPort,
    /// `hash:ip,port,ip`
    IpPortIp,
    /// `hash:ip,port,net`
    IpPortNet,
}

impl SetType {
    /// The kernel's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            SetType::Port => "bitmap:port",
            SetType::Ip => "hash:ip",
            SetType::IpPort => "hash:ip,port",
            SetType::IpPortIp => "hash:ip,port,ip",
            SetType::IpPortNet => "hash:ip,port,net",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_schedulers_pass_over_drained_servers_and_take_the_port_on_request() {
        let scheduler = IpvsScheduler::parse("sh-port").unwrap();
        assert_eq!((&*scheduler.name, scheduler.fallback, scheduler.by_port), ("sh", true, true));
        assert!(!IpvsScheduler::parse("mh").unwrap().by_port);
        assert_eq!(IpvsScheduler::parse("fastest"), None);
        assert!(IpvsScheduler::as_upstream("mh").by_port);
    }
}

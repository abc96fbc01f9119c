//! What is asked, and what was found out about the node: plain data.

use crate::backend::{Requirement, StandingObjects};
use crate::config::Mode;
use crate::kernel::iptables::{Flavor, RuleKind, Version};
use crate::kernel::process::Neighbour;
use crate::kernel::sockets::Listener;
use crate::model::{PerFamily, Protocol};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What the node is to be fit for.
#[derive(Clone, Debug)]
pub struct CheckRequest {
    /// The dataplane.
    pub mode: Mode,
    /// Why it is this one.
    pub mode_source: ModeSource,
    /// The flavour of iptables to use; `None` is the one in use.
    pub flavor: Option<Flavor>,
    /// Node ports are to answer on 127.0.0.1, too.
    pub localhost_node_ports: bool,
    /// First and last port that the cluster gives out as node ports.
    pub node_port_range: (u16, u16),
    /// Where our own servers are to listen.
    pub servers: Vec<(&'static str, SocketAddr)>,
    /// Services have IPv6 endpoints; `None` where it is not known which Services there are.
    pub has_ipv6_endpoints: Option<bool>,
    /// What the proxy that runs here says of itself; `None` where none can be asked.
    pub proxy: Option<ProxyState>,
    /// What the configuration asks of the kernel that the mode can do without.
    pub extras: Vec<Requirement>,
    /// The ports that Services claim on this node; `None` if no Services were named.
    pub service_ports: Option<Vec<ServicePortUse>>,
}

/// Why a node is judged for a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeSource {
    /// Flags or the configuration file name it; the proxy that runs here may have another one.
    Asked {
        /// That one.
        beside: Option<Mode>,
    },
    /// `auto` chose it, for this reason.
    Auto(String),
    /// The proxy that runs here has it.
    Running,
    /// It is the default.
    Default,
}

/// How the proxy that runs here is doing, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyState {
    /// The judgement of `status`.
    pub healthy: bool,
    /// Why it is not healthy, in sentences.
    pub reasons: Vec<String>,
}

/// A port that a Service claims on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortUse {
    /// The Service.
    pub service: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// What for.
    pub purpose: Purpose,
}

/// What a Service's port on the node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Rules redirect it; no process needs to listen.
    NodePort,
    /// We listen on it.
    HealthCheck,
}

/// What was found out. An error is a sentence that says why not.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The check runs as root, so what it may not do the proxy may not do either.
    pub is_root: bool,
    /// Effective capabilities, one bit each.
    pub capabilities: u64,
    /// The iptables tools of each family.
    pub tools: PerFamily<Result<ToolFacts, String>>,
    /// Whether the tables of the flavour that is not used hold rules for Services.
    pub other_flavor: PerFamily<Result<bool, String>>,
    /// What the kernel has of each mode besides iptables rules.
    pub standing: Vec<(Mode, StandingObjects)>,
    /// What the mode needs besides iptables rules.
    pub requirements: Vec<Requirement>,
    /// An interface is a bridge.
    pub has_bridge: bool,
    /// An interface has an IPv6 address that is neither loopback nor link-local.
    pub has_ipv6_address: bool,
    /// Kernel settings by name; those that do not exist are absent.
    pub settings: BTreeMap<&'static str, SysctlValue>,
    /// Sockets that wait for others.
    pub listeners: Result<Vec<Listener>, String>,
    /// Service proxies at work in this network namespace, but for this process.
    pub proxies: Vec<Neighbour>,
}

/// A kernel setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysctlValue {
    /// Its value.
    pub value: String,
    /// This process could change it.
    pub writable: bool,
}

/// The iptables tools of a family.
#[derive(Clone, Debug)]
pub struct ToolFacts {
    /// Which tables they write.
    pub flavor: Flavor,
    /// Their version.
    pub version: Version,
    /// Why the nat table cannot be used.
    pub nat_table: Result<(), String>,
    /// Kinds of rules that tools or kernel refuse, with their words.
    pub refused: Vec<(RuleKind, String)>,
}

impl Facts {
    /// The bit of `CAP_NET_ADMIN`.
    pub const NET_ADMIN: u64 = 1 << 12;
    /// The bit of `CAP_NET_RAW`.
    pub const NET_RAW: u64 = 1 << 13;
    /// The bit of `CAP_SYS_MODULE`.
    pub const SYS_MODULE: u64 = 1 << 16;

    pub(super) fn may(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    /// The value of a setting, if it exists.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(|setting| setting.value.as_str())
    }

    pub(super) fn writable(&self, name: &str) -> bool {
        self.settings.get(name).is_some_and(|setting| setting.writable)
    }
}

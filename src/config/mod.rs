//! The configuration: parsed, completed, checked and handed out in sections.
//!
//! Flags or file fill one unchecked record (`record`), defaults complete it, it is validated as a whole,
//! and only then becomes a [`Config`] whose types leave nothing to check. Nothing in here reads a
//! file, the environment or the host: the caller passes in the file's content and the host's name.

mod build;
mod command_line;
mod decode;
mod duration;
mod explain;
mod file;
mod flags;
mod from_flags;
mod number;
mod record;
mod resolve;
mod validate;
mod values;
mod verbs;
mod write;
mod yaml;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_spellings;

pub use build::{BUILD, raw as build_text};
pub use command_line::{Action, CommandLine, FlagRow, FlagStop, command, flag_rows, parse};
pub use duration::GoDuration;
pub use explain::explain;
pub use file::ConfigFile;
pub use flags::{DriftDetection, Flags, FlavorChoice, ServiceMetricsDetail};
pub use resolve::{ConfigError, Host, ModeChoice, Resolved, resolve};
pub use verbs::{Explain, Form, ListServices, Render, Target};
pub use write::Effective;

use crate::model::{Cidr, PerFamily, ServiceLimits};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The Kubernetes release whose kube-proxy we stand in for.
pub const COMPATIBLE_WITH: &str = "1.36.2";
/// The release before it, whose hidden metrics may be asked for.
const PREVIOUS_MINOR: &str = "1.35";
/// With fewer rules, a walk over all of them costs a new connection a few microseconds, and the
/// form that people and their tools know is worth that.
const DISPATCH_TREE_THRESHOLD: u32 = 500;
/// By default, frontends and endpoints measured in each IP family at most: as many as are read in less
/// than a minute.
const SERVICE_METRICS_LIMIT: u32 = 1000;

/// Everything there is to decide before the first packet, decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The dataplane.
    pub mode: Mode,
    /// The name of our Node object.
    pub node_name: String,
    /// Where objects come from.
    pub sources: Sources,
    /// For the iptables dataplane, and the masquerading of the IPVS one.
    pub iptables: IptablesConfig,
    /// For the IPVS dataplane.
    pub ipvs: IpvsConfig,
    /// For the nftables dataplane.
    pub nftables: NftablesConfig,
    /// When to sync.
    pub sync: SyncConfig,
    /// How to tell the traffic of local pods.
    pub detect_local: DetectLocal,
    /// Which addresses and ports are node ports.
    pub node_ports: NodePortConfig,
    /// Which external addresses lead to Services.
    pub external_ips: ExternalIpConfig,
    /// How changes of our rules and servers by other programs are found.
    pub drift_detection: DriftDetection,
    /// How finely what Services carry is measured.
    pub service_metrics: ServiceMetricsDetail,
    /// How much of one Service is programmed.
    pub service_limits: ServiceLimits,
    /// Frontends and endpoints measured in each IP family, at most.
    pub service_metrics_limit: u32,
    /// The key of a taint to take from our Node once Services work there.
    pub node_readiness_taint: Option<String>,
    /// A specific address decides our node IP and primary family; nothing listens on it.
    pub bind_address: IpAddr,
    /// Where the health server listens; `None` is off.
    pub healthz: Option<SocketAddr>,
    /// Where the metrics server listens; `None` is off.
    pub metrics: Option<SocketAddr>,
    /// Where `explain`, `services` and `status` ask us; `None` for nowhere.
    pub control_socket: Option<PathBuf>,
    /// Exit instead of retrying when one of them cannot listen.
    pub bind_address_hard_fail: bool,
    /// What to log.
    pub logging: LoggingConfig,
    /// Connection tracking limits to set at start.
    pub conntrack: ConntrackConfig,
    /// Our `oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
}

/// The dataplanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Chains and rules.
    Iptables,
    /// Virtual servers, with ipsets and a few rules.
    Ipvs,
    /// Elements of nf_tables' sets and maps.
    Nftables,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 3] = [Mode::Iptables, Mode::Ipvs, Mode::Nftables];

    /// The mode of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Mode> {
        Mode::ALL.into_iter().find(|mode| mode.as_str() == name)
    }

    /// As flags, files and `/proxyMode` spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
            Mode::Nftables => "nftables",
        }
    }
}

/// Where Services, EndpointSlices and our Node come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Files and folders to serve instead of an API server's objects; empty means API server.
    pub manifests: Vec<PathBuf>,
    /// Kubeconfig file. Without it and without `master`, the pod's service account is used.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's.
    pub master: Option<String>,
    /// The media type to request from the API server.
    pub content_type: String,
    /// The media types to ask for instead; empty means none.
    pub accept_content_types: String,
}

/// The iptables dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IptablesConfig {
    /// Bit of the packet mark that asks for masquerading, 0 to 31.
    pub masquerade_bit: u8,
    /// Masquerade everything sent to a cluster IP.
    pub masquerade_all: bool,
    /// Answer on node ports at 127.0.0.1 too.
    pub localhost_node_ports: bool,
    /// Which tools to run.
    pub flavor: FlavorChoice,
    /// Rules in the tables of the other flavor are removed, not only reported.
    pub cleanup_other_flavor: bool,
    /// Above this many rules in `KUBE-SERVICES`, a tree of chains leads to the Services.
    pub dispatch_tree_threshold: u32,
}

/// The nftables dataplane, besides what it has in common with the iptables one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NftablesConfig {
    /// The tables are owned by the process: no other one can change or flush them.
    pub own_table: bool,
}

/// The IPVS dataplane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsConfig {
    /// Scheduler of virtual servers.
    pub scheduler: String,
    /// Virtual servers in these networks are left alone.
    pub exclude_cidrs: Vec<Cidr>,
    /// Answer ARP only for the interface's own addresses.
    pub strict_arp: bool,
    /// Timeout of idle TCP connections; zero leaves the kernel's.
    pub tcp_timeout: Duration,
    /// Timeout of TCP connections after a FIN; zero leaves the kernel's.
    pub tcp_fin_timeout: Duration,
    /// Timeout of UDP flows; zero leaves the kernel's.
    pub udp_timeout: Duration,
    /// Do as kube-proxy did where its IPVS mode differs from its other modes.
    pub upstream_compat: bool,
    /// Connections are counted for at most this many Services.
    pub connection_metrics: u32,
}

/// When to sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncConfig {
    /// Time to a retry, between canary checks, and half the health timeout.
    pub period: Duration,
    /// Least time between two syncs.
    pub min_period: Duration,
}

/// How to tell the traffic of local pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address in the cluster's pod network.
    ClusterCidr(PerFamily<Option<Cidr>>),
    /// By source address in our Node's pod network.
    NodeCidr,
    /// By the bridge it comes in through.
    BridgeInterface(String),
    /// By the start of the name of the interface it comes in through.
    InterfaceNamePrefix(String),
}

/// Which addresses and ports are node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortConfig {
    /// The addresses.
    pub addresses: NodePortAddressesSetting,
    /// First and last port the cluster gives out.
    pub range: (u16, u16),
}

/// Which external addresses lead to Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalIpConfig {
    /// `spec.externalIPs` lead to their Services (feature gate `AllowServiceExternalIPs`).
    pub enabled: bool,
    /// Addresses that are a node's, a pod's or another Service's, or in a special range, are refused, not only
    /// reported.
    pub strict: bool,
    /// The cluster's pod network.
    pub cluster_cidrs: Vec<Cidr>,
    /// The networks of the cluster IPs, as far as they are configured.
    pub service_cidrs: Vec<Cidr>,
    /// The networks of the nodes' addresses, as far as they are configured.
    pub node_cidrs: Vec<Cidr>,
}

/// The node's addresses that answer on node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddressesSetting {
    /// All of them.
    All,
    /// The node's primary IP of each family.
    Primary,
    /// Those in one of these networks.
    Cidrs(Vec<Cidr>),
}

/// What to log, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingConfig {
    /// klog's `-v`.
    pub verbosity: u8,
    /// Form of the lines.
    pub format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Connection tracking settings; zero leaves the kernel's value alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Tracked connections per core.
    pub max_per_core: u32,
    /// Tracked connections at least; without meaning when `max_per_core` is 0.
    pub min: u32,
    /// Timeout of idle established TCP connections.
    pub tcp_established_timeout: Duration,
    /// Timeout of TCP connections in `CLOSE_WAIT`.
    pub tcp_close_wait_timeout: Duration,
    /// Do not take out-of-window packets for invalid; false leaves the kernel's value.
    pub tcp_be_liberal: bool,
    /// Timeout of unanswered UDP flows.
    pub udp_timeout: Duration,
    /// Timeout of answered UDP flows.
    pub udp_stream_timeout: Duration,
    /// A setting that cannot be made ends the program.
    pub strict: bool,
}

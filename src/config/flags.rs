//! The flags, spelled as kube-proxy spells them.
//!
//! Every flag of kube-proxy is here under its own name, with its type and default, next to the
//! few of our own. What the values mean together is decided in `record` and `validate`.

use super::duration::GoDuration;
use super::values::{self, Gate, Verbosity, VmoduleRule};
use crate::model::Cidr;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Which iptables tools to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FlavorChoice {
    /// The one that already holds the node's rules, as the usual wrapper scripts decide it.
    #[default]
    Auto,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// How finely what Services carry is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ServiceMetricsDetail {
    /// Not at all.
    #[default]
    Off,
    /// By Service port and kind of frontend.
    Frontends,
    /// By endpoint, too.
    Endpoints,
}

/// How changes of our rules and servers by other programs are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DriftDetection {
    /// The kernel tells of them, where it can.
    #[default]
    Events,
    /// What is there is listed once in a sync period.
    Poll,
    /// They are not looked for.
    Off,
}

/// Every flag, by section.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub(super) general: GeneralFlags,
    #[command(flatten)]
    pub(super) client: ClientFlags,
    #[command(flatten)]
    pub(super) serving: ServingFlags,
    #[command(flatten)]
    pub(super) logging: LoggingFlags,
    #[command(flatten)]
    pub(super) mode: ModeFlags,
    #[command(flatten)]
    pub(super) ipvs: IpvsFlags,
    #[command(flatten)]
    pub(super) traffic: TrafficFlags,
    #[command(flatten)]
    pub(super) conntrack: ConntrackFlags,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "General")]
pub(super) struct GeneralFlags {
    /// Configuration file (KubeProxyConfiguration); most other flags are ignored when it is given
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub(super) config: String,
    /// Write the effective configuration to this file and exit
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub(super) write_config_to: String,
    /// Remove what any proxy mode left in the kernel and exit
    #[arg(long)]
    pub(super) cleanup: bool,
    /// Do only what needs full root privileges, then exit
    #[arg(long)]
    pub(super) init_only: bool,
    /// Print the version and exit; `raw` prints details, vX.Y.Z claims to be that version
    #[arg(long, value_name = "true|false|raw|vX.Y.Z", default_value = "false", value_parser = values::version,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) version: String,
    /// Name of this node's Node object, if it is not the host's name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(super) hostname_override: String,
    /// Feature gates as NAME=true|false; accepted without effect
    #[arg(long, value_name = "GATES", value_delimiter = ',', value_parser = values::gate)]
    pub(super) feature_gates: Vec<Option<Gate>>,
    /// Lowest comes first when the kernel runs out of memory; for this process, -1000 to 1000
    #[arg(long, value_name = "N", default_value_t = -999)]
    pub(super) oom_score_adj: i32,
    /// How often the configuration from the API server is refreshed; accepted without effect
    #[arg(long, value_name = "DURATION", default_value = "15m")]
    pub(super) config_sync_period: GoDuration,
    /// Files to read a machine id from; accepted without effect
    #[arg(long, value_name = "FILES", default_value = "/etc/machine-id,/var/lib/dbus/machine-id")]
    pub(super) machine_id_file: String,
    /// Files to read a boot id from; accepted without effect
    #[arg(long, value_name = "FILES", default_value = "/proc/sys/kernel/random/boot_id")]
    pub(super) boot_id_file: String,
    /// Taint to take from our Node, by its key, once Services work there
    #[arg(long, value_name = "KEY", value_parser = values::taint_key)]
    pub(super) node_readiness_taint: Option<String>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Where Services come from")]
pub(super) struct ClientFlags {
    /// Kubeconfig file for the API server; without one the pod's service account is used
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub(super) kubeconfig: String,
    /// Address of the API server, instead of the kubeconfig's
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    pub(super) master: String,
    /// File or folder with Services, EndpointSlices and Nodes to serve instead of an API server's
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    pub(super) manifests: Vec<PathBuf>,
    /// Media type to request from the API server; JSON where it has no other
    #[arg(long, value_name = "TYPE", default_value = "application/vnd.kubernetes.protobuf")]
    pub(super) kube_api_content_type: String,
    /// Burst of requests to the API server; accepted without effect
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) kube_api_burst: i32,
    /// Requests per second to the API server; accepted without effect
    #[arg(long, value_name = "QPS", default_value_t = 5.0)]
    pub(super) kube_api_qps: f32,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Health and metrics")]
pub(super) struct ServingFlags {
    /// Hint at this node's IP and primary IP family; nothing listens on it
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = values::ip)]
    pub(super) bind_address: String,
    /// Where /healthz and /livez are served
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0:10256", value_parser = values::ip_port)]
    pub(super) healthz_bind_address: String,
    /// Socket on which `explain`, `services` and `status` ask the running proxy; only root may
    #[arg(long, value_name = "PATH", default_value = "/run/kube-proxy-rs/control.sock")]
    pub(super) control_socket: String,
    /// Where /metrics is served
    #[arg(long, value_name = "IP[:PORT]", default_value = "127.0.0.1:10249", value_parser = values::ip_port)]
    pub(super) metrics_bind_address: String,
    /// Measure what Services carry: connections and, in IPVS mode, packets and bytes
    #[arg(long, value_name = "DETAIL", default_value = "off", value_enum)]
    pub(super) service_metrics: ServiceMetricsDetail,
    /// Measure at most this many frontends and endpoints in each IP family
    #[arg(long, value_name = "NUMBER", default_value_t = super::SERVICE_METRICS_LIMIT)]
    pub(super) service_metrics_limit: u32,
    /// How changes of our rules by other programs are found: told by the kernel, by listing them, or not at all
    #[arg(long, value_name = "HOW", default_value = "events", value_enum)]
    pub(super) drift_detection: DriftDetection,
    /// Exit when one of these addresses cannot be listened on, instead of trying again
    #[arg(long)]
    pub(super) bind_address_hard_fail: bool,
    /// Port of the health server (deprecated: use --healthz-bind-address); 0 turns it off
    #[arg(long, value_name = "PORT", default_value_t = 10256, hide = true)]
    pub(super) healthz_port: i32,
    /// Port of the metrics server (deprecated: use --metrics-bind-address); 0 turns it off
    #[arg(long, value_name = "PORT", default_value_t = 10249, hide = true)]
    pub(super) metrics_port: i32,
    /// Serve profiles beside the metrics; accepted without effect
    #[arg(long)]
    pub(super) profiling: bool,
    /// Previous minor release whose hidden metrics to show; there are none
    #[arg(long, value_name = "VERSION", default_value = "", hide_default_value = true)]
    pub(super) show_hidden_metrics_for_version: String,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub(super) struct LoggingFlags {
    /// How much to log
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value = "0")]
    pub(super) v: Verbosity,
    /// Levels per source file, as PATTERN=N; accepted without effect
    #[arg(long, value_name = "RULES", value_delimiter = ',', value_parser = values::vmodule)]
    pub(super) vmodule: Vec<Option<VmoduleRule>>,
    /// `text` or `json`
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) logging_format: String,
    /// Longest time a line may stay in a buffer; nothing is buffered
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(super) log_flush_frequency: GoDuration,
    /// Text lines of errors to stderr, the rest to stdout; accepted without effect
    #[arg(long)]
    pub(super) log_text_split_stream: bool,
    /// JSON lines of errors to stderr, the rest to stdout; accepted without effect
    #[arg(long)]
    pub(super) log_json_split_stream: bool,
    /// Buffer for text lines; accepted without effect
    #[arg(long, value_name = "QUANTITY", default_value = "0", value_parser = values::quantity)]
    pub(super) log_text_info_buffer_size: String,
    /// Buffer for JSON lines; accepted without effect
    #[arg(long, value_name = "QUANTITY", default_value = "0", value_parser = values::quantity)]
    pub(super) log_json_info_buffer_size: String,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Dataplane")]
pub(super) struct ModeFlags {
    /// `iptables`, `ipvs`, `nftables`, or `auto` for nftables where the kernel is fit and iptables elsewhere; iptables when empty
    #[arg(long, visible_alias = "mode", value_name = "MODE", default_value = "", hide_default_value = true)]
    pub(super) proxy_mode: String,
    /// Which iptables tools to run
    #[arg(long, value_name = "FLAVOR", default_value = "auto", value_enum)]
    pub(super) iptables_flavor: FlavorChoice,
    /// Once our rules stand, remove KUBE- rules from the tables of the other flavor of iptables
    #[arg(long)]
    pub(super) cleanup_other_flavor: bool,
    /// Above this many rules in `KUBE-SERVICES`, a tree of chains leads to the Services
    #[arg(long, value_name = "RULES", default_value_t = super::DISPATCH_TREE_THRESHOLD)]
    pub(super) iptables_dispatch_tree_threshold: u32,
    /// Own the nftables tables (nftables, Linux 6.9 or later): no other process can change or flush them
    #[arg(long)]
    pub(super) nftables_own_table: bool,
    /// Bit of the packet mark that asks for masquerading (iptables and ipvs), 0 to 31
    #[arg(long, value_name = "BIT", default_value_t = 14)]
    pub(super) iptables_masquerade_bit: i32,
    /// Masquerade everything sent to a cluster IP
    #[arg(long)]
    pub(super) masquerade_all: bool,
    /// Answer on node ports at 127.0.0.1 too (iptables, IPv4)
    #[arg(long, default_value = "true")]
    pub(super) iptables_localhost_nodeports: bool,
    /// Time between retries and periodic checks (all modes but ipvs)
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(super) iptables_sync_period: GoDuration,
    /// Least time between two syncs (all modes but ipvs)
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub(super) iptables_min_sync_period: GoDuration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "IPVS")]
pub(super) struct IpvsFlags {
    /// Time between two full syncs (ipvs)
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(super) ipvs_sync_period: GoDuration,
    /// Least time between two syncs (ipvs)
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub(super) ipvs_min_sync_period: GoDuration,
    /// Scheduler of virtual servers; rr when empty
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(super) ipvs_scheduler: String,
    /// Networks whose virtual servers are left alone
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = values::list_entry)]
    pub(super) ipvs_exclude_cidrs: Vec<String>,
    /// Answer ARP only for the interface's own addresses
    #[arg(long)]
    pub(super) ipvs_strict_arp: bool,
    /// Timeout of idle TCP connections; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub(super) ipvs_tcp_timeout: GoDuration,
    /// Timeout of TCP connections after a FIN; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub(super) ipvs_tcpfin_timeout: GoDuration,
    /// Timeout of UDP flows; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub(super) ipvs_udp_timeout: GoDuration,
    /// Do as kube-proxy did where its IPVS mode differs from its other modes
    #[arg(long)]
    pub(super) ipvs_upstream_compat: bool,
    /// Count connections of at most this many Services, the first ones by name; 0 counts none
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(super) ipvs_connection_metrics: u32,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Addresses and local traffic")]
pub(super) struct TrafficFlags {
    /// How to tell traffic from local pods: `ClusterCIDR`, `NodeCIDR`, `BridgeInterface` or
    /// `InterfaceNamePrefix`; ClusterCIDR when empty
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub(super) detect_local_mode: String,
    /// Bridge that local pods are behind (`BridgeInterface`)
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(super) pod_bridge_interface: String,
    /// Start of the names of local pods' interfaces (`InterfaceNamePrefix`)
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(super) pod_interface_name_prefix: String,
    /// The cluster's pod network, one per IP family
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "", hide_default_value = true)]
    pub(super) cluster_cidr: String,
    /// Networks whose local addresses answer on node ports, or `primary`; all when not given
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = values::list_entry)]
    pub(super) nodeport_addresses: Vec<String>,
    /// Ports that the cluster gives out as node ports
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = values::port_range)]
    pub(super) service_node_port_range: (u16, u16),
    /// Networks that the cluster gives out cluster IPs from: no place for external IPs
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = values::cidr)]
    pub(super) service_cluster_ip_range: Vec<Cidr>,
    /// Networks that the cluster's nodes have their addresses in: no place for external IPs
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = values::cidr)]
    pub(super) node_ip_range: Vec<Cidr>,
    /// Refuse external and load-balancer IPs that are a node's, a pod's or another Service's, or in a special range
    #[arg(long)]
    pub(super) strict_external_ips: bool,
    /// Endpoints of one Service and family that are used at most, counted once per port; 0 for no bound
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(super) max_service_endpoints: u32,
    /// Ports of one Service that are used at most; 0 for no bound
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) max_service_ports: u32,
    /// Load-balancer and external IPs of one Service that are used at most; 0 for no bound
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) max_service_external_ips: u32,
    /// Source ranges of one Service and family that are let in at most; 0 for no bound
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) max_service_source_ranges: u32,
    /// Rules of one Service at most, besides those of its endpoints: ports over it are not used; 0 for no bound
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(super) max_service_rules: u32,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection tracking")]
pub(super) struct ConntrackFlags {
    /// Tracked connections per CPU core; 0 leaves the kernel's limit and ignores --conntrack-min
    #[arg(long, value_name = "N", default_value_t = 32768)]
    pub(super) conntrack_max_per_core: i32,
    /// Tracked connections at least
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    pub(super) conntrack_min: i32,
    /// Timeout of idle established TCP connections; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub(super) conntrack_tcp_timeout_established: GoDuration,
    /// Timeout of TCP connections in CLOSE_WAIT; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub(super) conntrack_tcp_timeout_close_wait: GoDuration,
    /// Do not take out-of-window TCP packets for invalid
    #[arg(long)]
    pub(super) conntrack_tcp_be_liberal: bool,
    /// Timeout of unanswered UDP flows; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub(super) conntrack_udp_timeout: GoDuration,
    /// Timeout of answered UDP flows; 0 leaves the kernel's
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub(super) conntrack_udp_timeout_stream: GoDuration,
    /// End when one of these cannot be set, as kube-proxy does, instead of going on with a warning
    #[arg(long)]
    pub(super) conntrack_strict: bool,
}

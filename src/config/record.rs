//! The one record of a configuration: what a KubeProxyConfiguration file of
//! `kubeproxy.config.k8s.io/v1alpha1` can say.
//!
//! File and flags fill it, its defaults are kube-proxy's, validation reads it, `--write-config-to` and
//! `/configz` print it, and the `Config` is made of it. It keeps values as they were written, so that
//! complaints can quote them.

use super::Mode;
use super::duration::{GoDuration, or_nanoseconds};
use super::values::{self, VmoduleRule};
use crate::model::parse_ip;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The only version there is.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The only kind in it that is ours.
pub(super) const KIND: &str = "KubeProxyConfiguration";
/// Default content type of API requests.
pub(super) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Everything that kube-proxy's configuration holds, unchecked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct KubeProxyConfiguration {
    pub(super) api_version: String,
    pub(super) bind_address: String,
    pub(super) bind_address_hard_fail: bool,
    pub(super) client_connection: ClientConnection,
    #[serde(rename = "clusterCIDR")]
    pub(super) cluster_cidr: String,
    pub(super) config_sync_period: GoDuration,
    pub(super) conntrack: Conntrack,
    pub(super) detect_local: DetectLocal,
    pub(super) detect_local_mode: String,
    pub(super) enable_profiling: bool,
    pub(super) feature_gates: BTreeMap<String, bool>,
    pub(super) healthz_bind_address: String,
    pub(super) hostname_override: String,
    pub(super) iptables: Iptables,
    pub(super) ipvs: Ipvs,
    pub(super) kind: String,
    pub(super) logging: Logging,
    pub(super) metrics_bind_address: String,
    pub(super) mode: String,
    pub(super) nftables: Nftables,
    pub(super) node_port_addresses: Vec<String>,
    pub(super) oom_score_adj: i32,
    pub(super) port_range: String,
    pub(super) show_hidden_metrics_for_version: String,
    pub(super) winkernel: Winkernel,
    pub(super) windows_run_as_service: bool,
}

impl Default for KubeProxyConfiguration {
    fn default() -> Self {
        KubeProxyConfiguration {
            api_version: API_VERSION.to_owned(),
            bind_address: "0.0.0.0".to_owned(),
            bind_address_hard_fail: false,
            client_connection: ClientConnection::default(),
            cluster_cidr: String::new(),
            config_sync_period: GoDuration::from_secs(15 * 60),
            conntrack: Conntrack::default(),
            detect_local: DetectLocal::default(),
            detect_local_mode: String::new(),
            enable_profiling: false,
            feature_gates: BTreeMap::new(),
            healthz_bind_address: String::new(),
            hostname_override: String::new(),
            iptables: Iptables::default(),
            ipvs: Ipvs::default(),
            kind: KIND.to_owned(),
            logging: Logging::default(),
            metrics_bind_address: String::new(),
            mode: String::new(),
            nftables: Nftables::default(),
            node_port_addresses: Vec::new(),
            oom_score_adj: -999,
            port_range: String::new(),
            show_hidden_metrics_for_version: String::new(),
            winkernel: Winkernel::default(),
            windows_run_as_service: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClientConnection {
    pub(super) accept_content_types: String,
    pub(super) burst: i32,
    pub(super) content_type: String,
    pub(super) kubeconfig: String,
    pub(super) qps: f32,
}

impl Default for ClientConnection {
    fn default() -> Self {
        ClientConnection {
            accept_content_types: String::new(),
            burst: 10,
            content_type: CONTENT_TYPE.to_owned(),
            kubeconfig: String::new(),
            qps: 5.0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conntrack {
    pub(super) max_per_core: i32,
    pub(super) min: i32,
    pub(super) tcp_be_liberal: bool,
    pub(super) tcp_close_wait_timeout: GoDuration,
    pub(super) tcp_established_timeout: GoDuration,
    pub(super) udp_stream_timeout: GoDuration,
    pub(super) udp_timeout: GoDuration,
}

impl Default for Conntrack {
    fn default() -> Self {
        Conntrack {
            max_per_core: 32768,
            min: 131_072,
            tcp_be_liberal: false,
            tcp_close_wait_timeout: GoDuration::from_secs(3600),
            tcp_established_timeout: GoDuration::from_secs(86400),
            udp_stream_timeout: GoDuration::ZERO,
            udp_timeout: GoDuration::ZERO,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DetectLocal {
    pub(super) bridge_interface: String,
    pub(super) interface_name_prefix: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Iptables {
    pub(super) localhost_node_ports: bool,
    pub(super) masquerade_all: bool,
    pub(super) masquerade_bit: i32,
    pub(super) min_sync_period: GoDuration,
    pub(super) sync_period: GoDuration,
}

impl Default for Iptables {
    fn default() -> Self {
        Iptables {
            localhost_node_ports: true,
            masquerade_all: false,
            masquerade_bit: 14,
            min_sync_period: GoDuration::from_secs(1),
            sync_period: GoDuration::from_secs(30),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Ipvs {
    #[serde(rename = "excludeCIDRs")]
    pub(super) exclude_cidrs: Vec<String>,
    pub(super) min_sync_period: GoDuration,
    pub(super) scheduler: String,
    #[serde(rename = "strictARP")]
    pub(super) strict_arp: bool,
    pub(super) sync_period: GoDuration,
    pub(super) tcp_fin_timeout: GoDuration,
    pub(super) tcp_timeout: GoDuration,
    pub(super) udp_timeout: GoDuration,
}

impl Default for Ipvs {
    fn default() -> Self {
        Ipvs {
            exclude_cidrs: Vec::new(),
            min_sync_period: GoDuration::ZERO,
            scheduler: String::new(),
            strict_arp: false,
            sync_period: GoDuration::from_secs(30),
            tcp_fin_timeout: GoDuration::ZERO,
            tcp_timeout: GoDuration::ZERO,
            udp_timeout: GoDuration::ZERO,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Nftables {
    pub(super) masquerade_all: bool,
    pub(super) masquerade_bit: i32,
    pub(super) min_sync_period: GoDuration,
    pub(super) sync_period: GoDuration,
}

impl Default for Nftables {
    fn default() -> Self {
        Nftables {
            masquerade_all: false,
            masquerade_bit: 14,
            min_sync_period: GoDuration::from_secs(1),
            sync_period: GoDuration::from_secs(30),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Logging {
    #[serde(deserialize_with = "or_nanoseconds")]
    pub(super) flush_frequency: GoDuration,
    pub(super) format: String,
    pub(super) options: LoggingOptions,
    pub(super) verbosity: i32,
    pub(super) vmodule: Vec<VmoduleRule>,
}

impl Default for Logging {
    fn default() -> Self {
        Logging {
            flush_frequency: GoDuration::from_secs(5),
            format: "text".to_owned(),
            options: LoggingOptions::default(),
            verbosity: 0,
            vmodule: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct LoggingOptions {
    pub(super) json: StreamOptions,
    pub(super) text: StreamOptions,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct StreamOptions {
    #[serde(deserialize_with = "values::quantity_field")]
    pub(super) info_buffer_size: String,
    pub(super) split_stream: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions { info_buffer_size: "0".to_owned(), split_stream: false }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Winkernel {
    #[serde(rename = "enableDSR")]
    pub(super) enable_dsr: bool,
    pub(super) forward_health_check_vip: bool,
    pub(super) network_name: String,
    pub(super) root_hns_endpoint_name: String,
    pub(super) source_vip: String,
}

impl KubeProxyConfiguration {
    /// The mode; that of the default where none is named.
    pub(super) fn mode(&self) -> Mode {
        Mode::named(&self.mode).unwrap_or(Mode::Iptables)
    }

    /// Sync period and least time between two syncs, of the mode's section.
    pub(super) fn sync_periods(&self) -> (GoDuration, GoDuration) {
        match self.mode() {
            Mode::Iptables => (self.iptables.sync_period, self.iptables.min_sync_period),
            Mode::Ipvs => (self.ipvs.sync_period, self.ipvs.min_sync_period),
            Mode::Nftables => (self.nftables.sync_period, self.nftables.min_sync_period),
        }
    }

    /// Whether to masquerade everything sent to a cluster IP, and the bit of the packet mark that asks for
    /// masquerading. The IPVS mode has no fields of its own for them.
    pub(super) fn masquerade(&self) -> (bool, i32) {
        match self.mode() {
            Mode::Iptables | Mode::Ipvs => (self.iptables.masquerade_all, self.iptables.masquerade_bit),
            Mode::Nftables => (self.nftables.masquerade_all, self.nftables.masquerade_bit),
        }
    }

    /// The networks of `clusterCIDR`, which stand there with commas between them.
    pub(super) fn cluster_cidrs(&self) -> impl Iterator<Item = &str> {
        values::non_empty(&self.cluster_cidr).into_iter().flat_map(|cidrs| cidrs.split(','))
    }

    /// Puts the defaults in the place of zero and empty values of a file, for which these stand (API). In flags,
    /// zero is zero.
    pub(super) fn fill_zeros_of_file(&mut self) {
        let default = KubeProxyConfiguration::default();
        or_default(&mut self.bind_address, default.bind_address);
        or_default(&mut self.config_sync_period, default.config_sync_period);
        or_default(&mut self.client_connection.content_type, default.client_connection.content_type);
        or_default(&mut self.client_connection.qps, default.client_connection.qps);
        or_default(&mut self.client_connection.burst, default.client_connection.burst);
        or_default(&mut self.logging.format, default.logging.format);
        or_default(&mut self.logging.flush_frequency, default.logging.flush_frequency);
        or_default(&mut self.iptables.sync_period, default.iptables.sync_period);
        or_default(&mut self.iptables.min_sync_period, default.iptables.min_sync_period);
        or_default(&mut self.ipvs.sync_period, default.ipvs.sync_period);
        or_default(&mut self.nftables.sync_period, default.nftables.sync_period);
        or_default(&mut self.nftables.min_sync_period, default.nftables.min_sync_period);
        let ipv6 = parse_ip(&self.bind_address).is_some_and(|address| address.is_ipv6());
        let (healthz, metrics) = if ipv6 { ("::", "::1") } else { ("0.0.0.0", "127.0.0.1") };
        or_default(&mut self.healthz_bind_address, healthz.to_owned());
        or_default(&mut self.metrics_bind_address, metrics.to_owned());
        self.healthz_bind_address = values::with_port(&self.healthz_bind_address, 10256);
        self.metrics_bind_address = values::with_port(&self.metrics_bind_address, 10249);
    }

    /// Completes what flags and file gave: names the modes that were left blank, and takes away what has no
    /// effect, that is other modes' periods and masquerading, and what is for Windows. A file that is written of
    /// this record means the same. Where nodes choose their mode, node ports answer on the same addresses on all.
    pub(super) fn complete(&mut self, is_chosen: bool) {
        let mode = self.mode();
        or_default(&mut self.mode, mode.as_str().to_owned());
        or_default(&mut self.detect_local_mode, "ClusterCIDR".to_owned());
        if (is_chosen || mode == Mode::Nftables) && self.node_port_addresses.is_empty() {
            self.node_port_addresses.push("primary".to_owned());
        }
        let no_period = GoDuration::ZERO;
        if mode != Mode::Iptables {
            (self.iptables.sync_period, self.iptables.min_sync_period) = (no_period, no_period);
        }
        if mode != Mode::Ipvs {
            (self.ipvs.sync_period, self.ipvs.min_sync_period) = (no_period, no_period);
        }
        if mode != Mode::Nftables {
            (self.nftables.sync_period, self.nftables.min_sync_period) = (no_period, no_period);
        }
        self.iptables.masquerade_all &= mode != Mode::Nftables;
        self.nftables.masquerade_all &= mode == Mode::Nftables;
        self.port_range.clear();
        self.winkernel = Winkernel::default();
        self.windows_run_as_service = false;
    }

    /// Sections that say nothing on Linux but were filled in.
    pub(super) fn unused_sections(&self) -> impl Iterator<Item = &'static str> {
        [
            ("winkernel", self.winkernel != Winkernel::default()),
            ("windowsRunAsService", self.windows_run_as_service),
            ("portRange", !self.port_range.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, set)| set.then_some(name))
    }
}

/// Zero, or the empty text, means the default.
fn or_default<T: Default + PartialEq>(field: &mut T, default: T) {
    if *field == T::default() {
        *field = default;
    }
}

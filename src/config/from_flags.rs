//! What flags put into the record of a configuration.

use super::command_line::CommandLine;
use super::flags::{Flags, LoggingFlags, ServingFlags};
use super::record::{
    ClientConnection, Conntrack, DetectLocal, Iptables, Ipvs, KubeProxyConfiguration, Logging,
    LoggingOptions, Nftables, StreamOptions,
};
use super::values;

impl KubeProxyConfiguration {
    /// What the flags say when no file is given.
    pub(super) fn from_flags(flags: &Flags) -> Self {
        let (mode, general, traffic) = (&flags.mode, &flags.general, &flags.traffic);
        let record = KubeProxyConfiguration {
            client_connection: client_connection(flags),
            cluster_cidr: traffic.cluster_cidr.clone(),
            config_sync_period: general.config_sync_period,
            conntrack: conntrack(flags),
            detect_local: DetectLocal {
                bridge_interface: traffic.pod_bridge_interface.clone(),
                interface_name_prefix: traffic.pod_interface_name_prefix.clone(),
            },
            detect_local_mode: traffic.detect_local_mode.clone(),
            feature_gates: general.feature_gates.iter().flatten().cloned().collect(),
            iptables: Iptables {
                localhost_node_ports: mode.iptables_localhost_nodeports,
                masquerade_all: mode.masquerade_all,
                masquerade_bit: mode.iptables_masquerade_bit,
                min_sync_period: mode.iptables_min_sync_period,
                sync_period: mode.iptables_sync_period,
            },
            ipvs: ipvs(flags),
            logging: logging(&flags.logging),
            mode: mode.proxy_mode.clone(),
            // The flag for the bit is of the other modes only (kube-proxy).
            nftables: Nftables {
                masquerade_all: mode.masquerade_all,
                min_sync_period: mode.iptables_min_sync_period,
                sync_period: mode.iptables_sync_period,
                ..Nftables::default()
            },
            node_port_addresses: not_empty(&traffic.nodeport_addresses),
            oom_score_adj: general.oom_score_adj,
            ..KubeProxyConfiguration::default()
        };
        record.with_serving(&flags.serving)
    }

    fn with_serving(mut self, flags: &ServingFlags) -> Self {
        // An empty flag value leaves the default alone, so only the deprecated port can turn a
        // server off (kube-proxy).
        let address = |flag: &str, default: &str, port: i32| match port {
            0 => String::new(),
            port => values::with_port(values::non_empty(flag).unwrap_or(default), port),
        };
        if let Some(address) = values::non_empty(&flags.bind_address) {
            address.clone_into(&mut self.bind_address);
        }
        self.bind_address_hard_fail = flags.bind_address_hard_fail;
        self.enable_profiling = flags.profiling;
        self.healthz_bind_address = address(&flags.healthz_bind_address, "0.0.0.0", flags.healthz_port);
        self.metrics_bind_address = address(&flags.metrics_bind_address, "127.0.0.1", flags.metrics_port);
        self.show_hidden_metrics_for_version.clone_from(&flags.show_hidden_metrics_for_version);
        self
    }

    /// Puts the flags that beat the file over it.
    pub(super) fn overlay(&mut self, line: &CommandLine) {
        if let Some(name) = values::non_empty(&line.flags.general.hostname_override) {
            self.hostname_override = name.trim().to_lowercase();
        }
        let flags = logging(&line.flags.logging);
        let (text, json) = (&mut self.logging.options.text, &mut self.logging.options.json);
        if line.gave("v") {
            self.logging.verbosity = flags.verbosity;
        }
        if line.gave("logging-format") {
            self.logging.format = flags.format;
        }
        if line.gave("log-flush-frequency") {
            self.logging.flush_frequency = flags.flush_frequency;
        }
        if line.gave("log-text-split-stream") {
            text.split_stream = flags.options.text.split_stream;
        }
        if line.gave("log-json-split-stream") {
            json.split_stream = flags.options.json.split_stream;
        }
        if line.gave("log-text-info-buffer-size") {
            text.info_buffer_size = flags.options.text.info_buffer_size;
        }
        if line.gave("log-json-info-buffer-size") {
            json.info_buffer_size = flags.options.json.info_buffer_size;
        }
        let rules = line.flags.logging.vmodule.iter().flatten().cloned();
        self.logging.vmodule.splice(..0, rules);
    }
}

fn client_connection(flags: &Flags) -> ClientConnection {
    let client = &flags.client;
    ClientConnection {
        accept_content_types: String::new(),
        burst: client.kube_api_burst,
        content_type: client.kube_api_content_type.clone(),
        kubeconfig: client.kubeconfig.clone(),
        qps: client.kube_api_qps,
    }
}

/// Without the rules of `--vmodule`, which `overlay` puts in front of the file's.
fn logging(flags: &LoggingFlags) -> Logging {
    Logging {
        flush_frequency: flags.log_flush_frequency,
        format: flags.logging_format.clone(),
        options: LoggingOptions {
            json: StreamOptions {
                info_buffer_size: flags.log_json_info_buffer_size.clone(),
                split_stream: flags.log_json_split_stream,
            },
            text: StreamOptions {
                info_buffer_size: flags.log_text_info_buffer_size.clone(),
                split_stream: flags.log_text_split_stream,
            },
        },
        verbosity: flags.v.0.cast_signed(),
        vmodule: Vec::new(),
    }
}

fn ipvs(flags: &Flags) -> Ipvs {
    let ipvs = &flags.ipvs;
    Ipvs {
        exclude_cidrs: not_empty(&ipvs.ipvs_exclude_cidrs),
        min_sync_period: ipvs.ipvs_min_sync_period,
        scheduler: ipvs.ipvs_scheduler.clone(),
        strict_arp: ipvs.ipvs_strict_arp,
        sync_period: ipvs.ipvs_sync_period,
        tcp_fin_timeout: ipvs.ipvs_tcpfin_timeout,
        tcp_timeout: ipvs.ipvs_tcp_timeout,
        udp_timeout: ipvs.ipvs_udp_timeout,
    }
}

fn conntrack(flags: &Flags) -> Conntrack {
    let conntrack = &flags.conntrack;
    Conntrack {
        max_per_core: conntrack.conntrack_max_per_core,
        min: conntrack.conntrack_min,
        tcp_be_liberal: conntrack.conntrack_tcp_be_liberal,
        tcp_close_wait_timeout: conntrack.conntrack_tcp_timeout_close_wait,
        tcp_established_timeout: conntrack.conntrack_tcp_timeout_established,
        udp_stream_timeout: conntrack.conntrack_udp_timeout_stream,
        udp_timeout: conntrack.conntrack_udp_timeout,
    }
}

/// `--list=` is how Go's flags spell the empty list.
fn not_empty(list: &[String]) -> Vec<String> {
    list.iter().filter(|entry| !entry.is_empty()).cloned().collect()
}

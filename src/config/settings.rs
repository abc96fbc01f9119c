//! The record that flags and the configuration file both fill in, before anything is checked.
//!
//! Like upstream's internal record it has one sync period and one `masquerade_all`, whatever
//! section of the file they come from, and keeps values as they were written so that validation
//! can quote them.

use super::command_line::CommandLine;
use super::duration::GoDuration;
use super::flags::Flags;
use super::values::{self, VmoduleRule};
use std::collections::BTreeMap;

/// Everything that upstream's configuration holds, unchecked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) feature_gates: BTreeMap<String, bool>,
    pub(super) client: ClientSettings,
    pub(super) logging: LoggingSettings,
    pub(super) hostname_override: String,
    pub(super) serving: ServingSettings,
    pub(super) mode: String,
    pub(super) sync_period: GoDuration,
    pub(super) min_sync_period: GoDuration,
    pub(super) masquerade_all: bool,
    pub(super) masquerade_bit: i32,
    pub(super) nftables_masquerade_bit: i32,
    pub(super) localhost_node_ports: bool,
    pub(super) ipvs: IpvsSettings,
    pub(super) detect_local: DetectLocalSettings,
    pub(super) node_port_addresses: Vec<String>,
    pub(super) oom_score_adj: i32,
    pub(super) conntrack: ConntrackSettings,
    pub(super) config_sync_period: GoDuration,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClientSettings {
    pub(super) kubeconfig: String,
    pub(super) accept_content_types: String,
    pub(super) content_type: String,
    pub(super) qps: f32,
    pub(super) burst: i32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoggingSettings {
    pub(super) format: String,
    pub(super) flush_frequency: GoDuration,
    pub(super) verbosity: i32,
    pub(super) vmodule: Vec<VmoduleRule>,
    pub(super) text: StreamSettings,
    pub(super) json: StreamSettings,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct StreamSettings {
    pub(super) split_stream: bool,
    pub(super) info_buffer_size: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ServingSettings {
    pub(super) bind_address: String,
    pub(super) healthz_bind_address: String,
    pub(super) metrics_bind_address: String,
    pub(super) bind_address_hard_fail: bool,
    pub(super) enable_profiling: bool,
    pub(super) show_hidden_metrics_for_version: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct IpvsSettings {
    pub(super) scheduler: String,
    pub(super) exclude_cidrs: Vec<String>,
    pub(super) strict_arp: bool,
    pub(super) tcp_timeout: GoDuration,
    pub(super) tcp_fin_timeout: GoDuration,
    pub(super) udp_timeout: GoDuration,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct DetectLocalSettings {
    pub(super) mode: String,
    pub(super) bridge_interface: String,
    pub(super) interface_name_prefix: String,
    pub(super) cluster_cidrs: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ConntrackSettings {
    pub(super) max_per_core: i32,
    pub(super) min: i32,
    pub(super) tcp_established_timeout: GoDuration,
    pub(super) tcp_close_wait_timeout: GoDuration,
    pub(super) tcp_be_liberal: bool,
    pub(super) udp_timeout: GoDuration,
    pub(super) udp_stream_timeout: GoDuration,
}

impl Settings {
    /// What the flags say when no file is given.
    pub(super) fn from_flags(flags: &Flags) -> Self {
        let (mode, general) = (&flags.mode, &flags.general);
        let ipvs = mode.proxy_mode == "ipvs";
        let periods = match ipvs {
            true => (flags.ipvs.ipvs_sync_period, flags.ipvs.ipvs_min_sync_period),
            false => (mode.iptables_sync_period, mode.iptables_min_sync_period),
        };
        Settings {
            feature_gates: general.feature_gates.iter().flatten().cloned().collect(),
            client: client_settings(flags),
            logging: logging_settings(flags),
            hostname_override: String::new(),
            serving: serving_settings(flags),
            mode: mode.proxy_mode.clone(),
            sync_period: periods.0,
            min_sync_period: periods.1,
            masquerade_all: mode.masquerade_all,
            masquerade_bit: mode.iptables_masquerade_bit,
            nftables_masquerade_bit: super::file::MASQUERADE_BIT,
            localhost_node_ports: mode.iptables_localhost_nodeports,
            ipvs: ipvs_settings(flags),
            detect_local: detect_local_settings(flags),
            node_port_addresses: not_empty(&flags.traffic.nodeport_addresses),
            oom_score_adj: general.oom_score_adj,
            conntrack: conntrack_settings(flags),
            config_sync_period: general.config_sync_period,
        }
    }

    /// Lets the flags that beat the file have their say.
    pub(super) fn overlay(&mut self, line: &CommandLine) {
        let (logging, flags) = (&mut self.logging, &line.flags.logging);
        if line.gave("v") {
            logging.verbosity = flags.v.0.cast_signed();
        }
        if line.gave("logging-format") {
            logging.format.clone_from(&flags.logging_format);
        }
        if line.gave("log-flush-frequency") {
            logging.flush_frequency = flags.log_flush_frequency;
        }
        let rules = flags.vmodule.iter().flatten().cloned().chain(std::mem::take(&mut logging.vmodule));
        logging.vmodule = rules.collect();
        if line.gave("log-text-split-stream") {
            logging.text.split_stream = flags.log_text_split_stream;
        }
        if line.gave("log-json-split-stream") {
            logging.json.split_stream = flags.log_json_split_stream;
        }
        if line.gave("log-text-info-buffer-size") {
            logging.text.info_buffer_size.clone_from(&flags.log_text_info_buffer_size);
        }
        if line.gave("log-json-info-buffer-size") {
            logging.json.info_buffer_size.clone_from(&flags.log_json_info_buffer_size);
        }
    }

    /// Defaults that do not depend on where the settings came from. Where nodes choose their mode, node ports are to answer on the
    /// same addresses on all of them.
    pub(super) fn complete(&mut self, is_chosen: bool) {
        if self.mode.is_empty() {
            "iptables".clone_into(&mut self.mode);
        }
        if self.detect_local.mode.is_empty() {
            "ClusterCIDR".clone_into(&mut self.detect_local.mode);
        }
        if (is_chosen || self.mode == "nftables") && self.node_port_addresses.is_empty() {
            self.node_port_addresses.push("primary".to_owned());
        }
    }
}

fn client_settings(flags: &Flags) -> ClientSettings {
    let client = &flags.client;
    ClientSettings {
        kubeconfig: client.kubeconfig.clone(),
        accept_content_types: String::new(),
        content_type: client.kube_api_content_type.clone(),
        qps: client.kube_api_qps,
        burst: client.kube_api_burst,
    }
}

fn logging_settings(flags: &Flags) -> LoggingSettings {
    let logging = &flags.logging;
    LoggingSettings {
        format: logging.logging_format.clone(),
        flush_frequency: logging.log_flush_frequency,
        verbosity: logging.v.0.cast_signed(),
        // `overlay` puts the flag's rules in front of the file's; here there are none yet.
        vmodule: Vec::new(),
        text: StreamSettings {
            split_stream: logging.log_text_split_stream,
            info_buffer_size: logging.log_text_info_buffer_size.clone(),
        },
        json: StreamSettings {
            split_stream: logging.log_json_split_stream,
            info_buffer_size: logging.log_json_info_buffer_size.clone(),
        },
    }
}

fn serving_settings(flags: &Flags) -> ServingSettings {
    let serving = &flags.serving;
    // An empty flag value leaves the default alone, so only the deprecated port can turn a
    // server off (kube-proxy).
    let address = |flag: &str, default: &str, port: i32| match (port, flag) {
        (0, _) => String::new(),
        (port, "") => values::with_port(default, port),
        (port, flag) => values::with_port(flag, port),
    };
    let bind_address = values::non_empty(&serving.bind_address).unwrap_or(super::file::BIND_ADDRESS);
    ServingSettings {
        bind_address: bind_address.to_owned(),
        healthz_bind_address: address(&serving.healthz_bind_address, "0.0.0.0", serving.healthz_port),
        metrics_bind_address: address(&serving.metrics_bind_address, "127.0.0.1", serving.metrics_port),
        bind_address_hard_fail: serving.bind_address_hard_fail,
        enable_profiling: serving.profiling,
        show_hidden_metrics_for_version: serving.show_hidden_metrics_for_version.clone(),
    }
}

fn ipvs_settings(flags: &Flags) -> IpvsSettings {
    let ipvs = &flags.ipvs;
    IpvsSettings {
        scheduler: ipvs.ipvs_scheduler.clone(),
        exclude_cidrs: not_empty(&ipvs.ipvs_exclude_cidrs),
        strict_arp: ipvs.ipvs_strict_arp,
        tcp_timeout: ipvs.ipvs_tcp_timeout,
        tcp_fin_timeout: ipvs.ipvs_tcpfin_timeout,
        udp_timeout: ipvs.ipvs_udp_timeout,
    }
}

fn detect_local_settings(flags: &Flags) -> DetectLocalSettings {
    let traffic = &flags.traffic;
    DetectLocalSettings {
        mode: traffic.detect_local_mode.clone(),
        bridge_interface: traffic.pod_bridge_interface.clone(),
        interface_name_prefix: traffic.pod_interface_name_prefix.clone(),
        cluster_cidrs: split_cidrs(&traffic.cluster_cidr),
    }
}

fn conntrack_settings(flags: &Flags) -> ConntrackSettings {
    let conntrack = &flags.conntrack;
    ConntrackSettings {
        max_per_core: conntrack.conntrack_max_per_core,
        min: conntrack.conntrack_min,
        tcp_established_timeout: conntrack.conntrack_tcp_timeout_established,
        tcp_close_wait_timeout: conntrack.conntrack_tcp_timeout_close_wait,
        tcp_be_liberal: conntrack.conntrack_tcp_be_liberal,
        udp_timeout: conntrack.conntrack_udp_timeout,
        udp_stream_timeout: conntrack.conntrack_udp_timeout_stream,
    }
}

/// Splits `clusterCIDR` at its comma; empty means none.
pub(super) fn split_cidrs(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { text.split(',').map(str::to_owned).collect() }
}

/// `--list=` is how Go's flags spell the empty list.
fn not_empty(list: &[String]) -> Vec<String> {
    list.iter().filter(|entry| !entry.is_empty()).cloned().collect()
}

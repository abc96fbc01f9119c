//! From a command line and a file's text to a [`Config`].

use super::record::KubeProxyConfiguration;
use super::{
    CommandLine, Config, ConfigFile, ConntrackConfig, DetectLocal, Effective, ExternalIpConfig,
    IptablesConfig, IpvsConfig, LogFormat, LoggingConfig, Mode, NftablesConfig, NodePortAddressesSetting,
    NodePortConfig, Sources, SyncConfig, file, validate, values,
};
use crate::model::{Cidr, IpFamily, PerFamily, ServiceLimits, parse_cidr, parse_ip};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// The mode that each node chooses by itself.
pub(super) const AUTO: &str = "auto";

/// The mode that `auto` stands for on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeChoice {
    /// The mode.
    pub mode: Mode,
    /// Why, for the log.
    pub reason: String,
}

/// What a configuration is resolved for.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// The kernel's name for this host.
    pub name: &'a str,
    /// Chooses what mode `auto` stands for; `None` where the outcome may not depend on this host.
    pub choose_mode: Option<fn() -> ModeChoice>,
}

impl<'a> From<&'a str> for Host<'a> {
    fn from(name: &'a str) -> Self {
        Host { name, choose_mode: None }
    }
}

/// A configuration to run with.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    /// The same as a configuration file, for `--write-config-to` and `/configz`.
    pub effective: Effective,
    /// What was accepted but has no effect, one sentence each, to be logged as warnings.
    pub notices: Vec<String>,
    /// What mode `auto` stands for, if it was asked for.
    pub choice: Option<ModeChoice>,
    /// A flag or the file names a mode; otherwise it is the default one.
    pub names_mode: bool,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// One complaint each.
    pub complaints: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.complaints.as_slice() {
            [one] => f.write_str(one),
            several => {
                write!(f, "{} settings are not valid:", several.len())?;
                several.iter().try_for_each(|complaint| write!(f, "\n  {complaint}"))
            }
        }
    }
}

/// Puts flags and file together, fills in defaults and checks the result.
///
/// `file` is the file that `--config` names; the host's name is used where no override is given.
///
/// # Errors
/// Every complaint about the file or the settings.
pub fn resolve<'a>(
    line: &CommandLine,
    file: Option<&ConfigFile>,
    host: impl Into<Host<'a>>,
) -> Result<Resolved, ConfigError> {
    let (host, mut notices) = (host.into(), Vec::new());
    let (record, choice) =
        record(line, file, (&host, &mut notices)).map_err(|complaints| ConfigError { complaints })?;
    let mut complaints = validate::complaints(&record);
    let node_name = node_name(line, &record, host.name).map_err(|error| complaints.push(error));
    let (Ok(node_name), true) = (node_name, complaints.is_empty()) else {
        return Err(ConfigError { complaints });
    };
    notices.extend(flag_notices(line));
    if record.enable_profiling {
        notices.push(
            "setting enableProfiling (or its flag) has no effect: there are no profiles of a Go runtime, \
             and /debug/pprof answers with status 501"
                .to_owned(),
        );
    }
    notices.extend(gate_notices(&record.feature_gates));
    notices.extend(setting_notices(&record));
    let names_mode = line.gave("proxy-mode") || file.is_some_and(|file| file::given(file).contains("mode"));
    let config = config(line, &record, node_name);
    Ok(Resolved { config, effective: Effective(record), notices, choice, names_mode })
}

/// The completed record, what had to be said about the file, and what mode `auto` was found to stand for.
pub(super) fn record(
    line: &CommandLine,
    file: Option<&ConfigFile>,
    (host, notices): (&Host<'_>, &mut Vec<String>),
) -> Result<(KubeProxyConfiguration, Option<ModeChoice>), Vec<String>> {
    let mut record = match file {
        Some(file) => {
            let (mut record, unused) = file::parse(file)?;
            notices.extend(unused);
            let unused = |section| format!("{section} in the configuration file has no effect on Linux");
            notices.extend(record.unused_sections().map(unused));
            notices.extend(
                line.overruled_by_file()
                    .map(|flag| format!("flag --{flag} is ignored because --config is given")),
            );
            record.fill_zeros_of_file();
            record
        }
        None => KubeProxyConfiguration::from_flags(&line.flags),
    };
    record.overlay(line);
    let choice = host.choose_mode.filter(|_| record.mode == AUTO).map(|choose| choose());
    if let Some(choice) = &choice {
        choice.mode.as_str().clone_into(&mut record.mode);
    }
    record.complete(choice.is_some());
    Ok((record, choice))
}

/// The flag beats the file, the file beats the host; trimmed and in lower case.
fn node_name(line: &CommandLine, record: &KubeProxyConfiguration, hostname: &str) -> Result<String, String> {
    let clean = |name: &str| name.trim().to_lowercase();
    if let Some(flag) = values::non_empty(&line.flags.general.hostname_override) {
        return values::non_empty(&clean(flag))
            .map(str::to_owned)
            .ok_or_else(|| "empty hostname-override is invalid".to_owned());
    }
    let name = values::non_empty(&record.hostname_override).unwrap_or(hostname);
    values::non_empty(&clean(name)).map(str::to_owned).ok_or_else(|| "empty hostname is invalid".to_owned())
}

fn flag_notices(line: &CommandLine) -> Vec<String> {
    let mut notices = Vec::new();
    for (flag, instead) in
        [("healthz-port", "healthz-bind-address"), ("metrics-port", "metrics-bind-address")]
    {
        if line.gave(flag) {
            notices.push(format!("flag --{flag} is deprecated, use --{instead} instead"));
        }
    }
    for flag in ["machine-id-file", "boot-id-file"] {
        if line.gave(flag) {
            notices.push(format!("flag --{flag} has no effect"));
        }
    }
    if line.gave("node-readiness-taint") && !line.flags.client.manifests.is_empty() {
        notices.push(
            "flag --node-readiness-taint has no effect with --manifests: there is no Node to change"
                .to_owned(),
        );
    }
    notices
}

/// The one feature gate that anything here depends on; on unless it is switched off (API).
const EXTERNAL_IPS_GATE: &str = "AllowServiceExternalIPs";

/// Gates are not refused, as kube-proxy refuses those that it does not know: which they are changes with
/// each release, and clusters set the same ones for all their components.
fn gate_notices(gates: &BTreeMap<String, bool>) -> impl Iterator<Item = String> {
    gates.iter().filter(|(name, _)| *name != EXTERNAL_IPS_GATE).map(|(name, value)| {
        format!(
            "feature gate {name}={value} has no effect: nothing here depends on any but {EXTERNAL_IPS_GATE}"
        )
    })
}

/// What is accepted for compatibility and does nothing.
fn setting_notices(record: &KubeProxyConfiguration) -> Vec<String> {
    let (client, logging) = (&record.client_connection, &record.logging);
    let buffered = |size: &str| !matches!(size, "" | "0");
    let minutes = super::GoDuration::from_secs(15 * 60);
    [
        ("clientConnection.qps", (client.qps - 5.0).abs() > f32::EPSILON),
        ("clientConnection.burst", client.burst != 10),
        ("logging.vmodule", !logging.vmodule.is_empty()),
        ("logging.flushFrequency", logging.flush_frequency != super::GoDuration::from_secs(5)),
        ("logging.options.text.splitStream", logging.options.text.split_stream),
        ("logging.options.json.splitStream", logging.options.json.split_stream),
        ("logging.options.text.infoBufferSize", buffered(&logging.options.text.info_buffer_size)),
        ("logging.options.json.infoBufferSize", buffered(&logging.options.json.info_buffer_size)),
        ("configSyncPeriod", record.config_sync_period != minutes),
    ]
    .into_iter()
    .filter(|(_, set)| *set)
    .map(|(field, _)| format!("setting {field} (or its flag) is accepted but has no effect"))
    .collect()
}

/// Builds the sections out of a record that passed validation.
fn config(line: &CommandLine, record: &KubeProxyConfiguration, node_name: String) -> Config {
    let (masquerade_all, masquerade_bit) = record.masquerade();
    let (period, min_period) = record.sync_periods();
    let address = |text: &str| values::non_empty(text).and_then(|text| values::socket_address(text).ok());
    Config {
        mode: record.mode(),
        node_name,
        sources: sources(line, record),
        iptables: IptablesConfig {
            masquerade_bit: u8::try_from(masquerade_bit).unwrap_or_default(),
            masquerade_all,
            localhost_node_ports: record.iptables.localhost_node_ports,
            flavor: line.flags.mode.iptables_flavor,
            cleanup_other_flavor: line.flags.mode.cleanup_other_flavor,
            dispatch_tree_threshold: line.flags.mode.iptables_dispatch_tree_threshold,
        },
        ipvs: ipvs(record, line),
        nftables: NftablesConfig { own_table: line.flags.mode.nftables_own_table },
        sync: SyncConfig { period: period.to_duration(), min_period: min_period.to_duration() },
        detect_local: detect_local(record),
        node_ports: NodePortConfig {
            addresses: node_port_addresses(&record.node_port_addresses),
            range: line.flags.traffic.service_node_port_range,
        },
        external_ips: external_ips(line, record),
        drift_detection: line.flags.serving.drift_detection,
        service_limits: service_limits(line),
        service_metrics: line.flags.serving.service_metrics,
        service_metrics_limit: line.flags.serving.service_metrics_limit,
        node_readiness_taint: line.flags.general.node_readiness_taint.clone(),
        bind_address: parse_ip(&record.bind_address).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        healthz: address(&record.healthz_bind_address),
        metrics: address(&record.metrics_bind_address),
        control_socket: values::non_empty(&line.flags.serving.control_socket).map(PathBuf::from),
        bind_address_hard_fail: record.bind_address_hard_fail,
        logging: LoggingConfig {
            verbosity: u8::try_from(record.logging.verbosity).unwrap_or(u8::MAX),
            format: if record.logging.format == "json" { LogFormat::Json } else { LogFormat::Text },
        },
        conntrack: conntrack(line, record),
        oom_score_adj: record.oom_score_adj,
    }
}

fn sources(line: &CommandLine, record: &KubeProxyConfiguration) -> Sources {
    let client = &line.flags.client;
    Sources {
        manifests: client.manifests.clone(),
        kubeconfig: values::non_empty(&record.client_connection.kubeconfig).map(PathBuf::from),
        master: values::non_empty(&client.master).map(str::to_owned),
        content_type: record.client_connection.content_type.clone(),
        accept_content_types: record.client_connection.accept_content_types.clone(),
    }
}

fn ipvs(record: &KubeProxyConfiguration, line: &CommandLine) -> IpvsConfig {
    let ipvs = &record.ipvs;
    IpvsConfig {
        scheduler: values::non_empty(&ipvs.scheduler).unwrap_or("rr").to_owned(),
        exclude_cidrs: ipvs.exclude_cidrs.iter().filter_map(|cidr| parse_cidr(cidr)).collect(),
        strict_arp: ipvs.strict_arp,
        tcp_timeout: ipvs.tcp_timeout.to_duration(),
        tcp_fin_timeout: ipvs.tcp_fin_timeout.to_duration(),
        udp_timeout: ipvs.udp_timeout.to_duration(),
        upstream_compat: line.flags.ipvs.ipvs_upstream_compat,
        connection_metrics: line.flags.ipvs.ipvs_connection_metrics,
    }
}

fn detect_local(record: &KubeProxyConfiguration) -> DetectLocal {
    let detect = &record.detect_local;
    match record.detect_local_mode.as_str() {
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => DetectLocal::BridgeInterface(detect.bridge_interface.clone()),
        "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(detect.interface_name_prefix.clone()),
        _ => {
            let cidrs: Vec<Cidr> = record.cluster_cidrs().filter_map(parse_cidr).collect();
            DetectLocal::ClusterCidr(PerFamily::build(|family| {
                cidrs.iter().copied().find(|cidr| IpFamily::of_cidr(cidr) == family)
            }))
        }
    }
}

fn node_port_addresses(addresses: &[String]) -> NodePortAddressesSetting {
    match addresses {
        [] => NodePortAddressesSetting::All,
        [one] if one == "primary" => NodePortAddressesSetting::Primary,
        several => {
            NodePortAddressesSetting::Cidrs(several.iter().filter_map(|cidr| parse_cidr(cidr)).collect())
        }
    }
}

fn service_limits(line: &CommandLine) -> ServiceLimits {
    let flags = &line.flags.traffic;
    let bound = |number: u32| match usize::try_from(number) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(number) => number,
    };
    ServiceLimits {
        endpoints: bound(flags.max_service_endpoints),
        ports: bound(flags.max_service_ports),
        external_ips: bound(flags.max_service_external_ips),
        source_ranges: bound(flags.max_service_source_ranges),
        rules: bound(flags.max_service_rules),
        ..ServiceLimits::NONE
    }
}

fn external_ips(line: &CommandLine, record: &KubeProxyConfiguration) -> ExternalIpConfig {
    let flags = &line.flags.traffic;
    ExternalIpConfig {
        enabled: record.feature_gates.get(EXTERNAL_IPS_GATE).copied().unwrap_or(true),
        strict: flags.strict_external_ips,
        cluster_cidrs: record.cluster_cidrs().filter_map(parse_cidr).collect(),
        service_cidrs: flags.service_cluster_ip_range.clone(),
        node_cidrs: flags.node_ip_range.clone(),
    }
}

fn conntrack(line: &CommandLine, record: &KubeProxyConfiguration) -> ConntrackConfig {
    let conntrack = &record.conntrack;
    ConntrackConfig {
        max_per_core: u32::try_from(conntrack.max_per_core).unwrap_or_default(),
        min: u32::try_from(conntrack.min).unwrap_or_default(),
        tcp_established_timeout: conntrack.tcp_established_timeout.to_duration(),
        tcp_close_wait_timeout: conntrack.tcp_close_wait_timeout.to_duration(),
        tcp_be_liberal: conntrack.tcp_be_liberal,
        udp_timeout: conntrack.udp_timeout.to_duration(),
        udp_stream_timeout: conntrack.udp_stream_timeout.to_duration(),
        strict: line.flags.conntrack.conntrack_strict,
    }
}

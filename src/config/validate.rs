//! All complaints about a configuration at once, under the paths that upstream uses.

use super::duration::GoDuration;
use super::resolve::AUTO;
use super::settings::{ConntrackSettings, DetectLocalSettings, IpvsSettings, ServingSettings, Settings};
use super::values;
use crate::model::{IpFamily, parse_cidr, parse_ip};
use std::fmt::Debug;

/// Modes that a configuration may name. One of the first three takes the place of the last before the rest is checked.
const MODES: [&str; 4] = ["iptables", "ipvs", "nftables", AUTO];
const DETECT_LOCAL_MODES: [&str; 4] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];

/// Checks everything and returns every complaint; empty means that the settings can be used.
pub(super) fn complaints(settings: &Settings) -> Vec<String> {
    let mut list = Complaints::default();
    bits(settings, &mut list);
    if settings.mode == "ipvs" {
        ipvs(&settings.ipvs, &mut list);
    }
    conntrack(&settings.conntrack, &mut list);
    list.range("KubeProxyLinuxConfiguration.OOMScoreAdj", settings.oom_score_adj, -1000, 1000);
    mode(&settings.mode, &mut list);
    list.at_least_zero("ClientConnection.Burst", &settings.client.burst, settings.client.burst < 0);
    periods(settings, &mut list);
    serving(&settings.serving, &mut list);
    node_port_addresses(&settings.node_port_addresses, &mut list);
    detect_local(&settings.detect_local, &mut list);
    logging(settings, &mut list);
    list.0
}

#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn invalid(&mut self, path: &str, value: &impl Debug, reason: &str) {
        self.0.push(format!("KubeProxyConfiguration.{path}: Invalid value: {value:?}: {reason}"));
    }

    fn duration(&mut self, path: &str, value: GoDuration, reason: &str) {
        self.invalid(path, &value.to_string(), reason);
    }

    fn range(&mut self, path: &str, value: i32, low: i32, high: i32) {
        if !(low..=high).contains(&value) {
            self.invalid(path, &value, &format!("must be within the range [{low}, {high}]"));
        }
    }

    fn at_least_zero(&mut self, path: &str, value: &impl Debug, broken: bool) {
        if broken {
            self.invalid(path, value, "must be greater than or equal to 0");
        }
    }

    fn not_negative(&mut self, path: &str, value: GoDuration) {
        if value.is_negative() {
            self.duration(path, value, "must be greater than or equal to 0");
        }
    }
}

fn bits(settings: &Settings, list: &mut Complaints) {
    list.range("KubeProxyIPTablesConfiguration.MasqueradeBit", settings.masquerade_bit, 0, 31);
    if settings.mode == "nftables" {
        list.range("KubeProxyNFTablesConfiguration.MasqueradeBit", settings.nftables_masquerade_bit, 0, 31);
    }
}

fn ipvs(ipvs: &IpvsSettings, list: &mut Complaints) {
    for (field, value) in [
        ("TCPTimeout", ipvs.tcp_timeout),
        ("TCPFinTimeout", ipvs.tcp_fin_timeout),
        ("UDPTimeout", ipvs.udp_timeout),
    ] {
        list.not_negative(&format!("KubeProxyIPVSConfiguration.{field}"), value);
    }
    for (index, cidr) in ipvs.exclude_cidrs.iter().enumerate() {
        check_cidr(&format!("KubeProxyIPVSConfiguration.ExcludeCidrs[{index}]"), cidr, list);
    }
}

fn check_cidr(path: &str, cidr: &str, list: &mut Complaints) {
    if parse_cidr(cidr).is_none() {
        list.invalid(path, &cidr, "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)");
    }
}

fn conntrack(conntrack: &ConntrackSettings, list: &mut Complaints) {
    let path = |field: &str| format!("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.{field}");
    for (field, value) in [("MaxPerCore", conntrack.max_per_core), ("Min", conntrack.min)] {
        list.at_least_zero(&path(field), &value, value < 0);
    }
    for (field, value) in [
        ("TCPEstablishedTimeout", conntrack.tcp_established_timeout),
        ("TCPCloseWaitTimeout", conntrack.tcp_close_wait_timeout),
        ("UDPTimeout", conntrack.udp_timeout),
        ("UDPStreamTimeout", conntrack.udp_stream_timeout),
    ] {
        list.not_negative(&path(field), value);
    }
}

fn mode(mode: &str, list: &mut Complaints) {
    if !MODES.contains(&mode) {
        let allowed = "must be iptables, ipvs, nftables, auto or blank (blank means iptables)";
        list.invalid("Mode.ProxyMode", &mode, allowed);
    }
    if mode == AUTO {
        list.invalid("Mode.ProxyMode", &mode, "depends on the node's kernel: name the mode here");
    }
}

fn periods(settings: &Settings, list: &mut Complaints) {
    let positive = "must be greater than 0";
    for (path, value) in
        [("ConfigSyncPeriod", settings.config_sync_period), ("SyncPeriod", settings.sync_period)]
    {
        if value <= GoDuration::ZERO {
            list.duration(path, value, positive);
        }
    }
    list.not_negative("MinSyncPeriod", settings.min_sync_period);
    if settings.min_sync_period > settings.sync_period {
        let least = settings.min_sync_period;
        list.duration(
            "SyncPeriod",
            settings.sync_period,
            &format!("must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod ({least})"),
        );
    }
}

fn serving(serving: &ServingSettings, list: &mut Complaints) {
    if parse_ip(&serving.bind_address).is_none() {
        list.invalid(
            "BindAddress",
            &serving.bind_address,
            "not a valid textual representation of an IP address",
        );
    }
    // Upstream refuses an empty metrics address although nothing else speaks against it; here it
    // turns the server off, as for healthz.
    for (path, address) in [
        ("HealthzBindAddress", &serving.healthz_bind_address),
        ("MetricsBindAddress", &serving.metrics_bind_address),
    ] {
        if let Some(Err(reason)) = values::non_empty(address).map(values::socket_address) {
            list.invalid(path, address, &reason);
        }
    }
    let shown = &serving.show_hidden_metrics_for_version;
    if !shown.is_empty() && shown != super::PREVIOUS_MINOR {
        let reason = format!(
            "must be omitted or have the value {:?}; only the previous minor version is allowed",
            super::PREVIOUS_MINOR
        );
        list.invalid("ShowHiddenMetricsForVersion", shown, &reason);
    }
}

fn node_port_addresses(addresses: &[String], list: &mut Complaints) {
    let primary = |address: &String| address == "primary";
    if addresses.len() == 1 && primary(&addresses[0]) {
        return;
    }
    for (index, address) in addresses.iter().enumerate() {
        let path = format!("NodePortAddressesSetting[{index}]");
        if primary(address) {
            list.invalid(&path, address, "can't use both 'primary' and CIDRs");
        } else if parse_cidr(address).is_none() {
            list.invalid(&path, address, "must be a valid CIDR block, or the single word 'primary'");
        }
    }
}

fn detect_local(detect: &DetectLocalSettings, list: &mut Complaints) {
    let mode = detect.mode.as_str();
    if !DETECT_LOCAL_MODES.contains(&mode) {
        let reason = format!("must be {} or blank", DETECT_LOCAL_MODES.join(", "));
        list.invalid("DetectLocalMode", &mode, &reason);
    }
    if mode == "BridgeInterface" && detect.bridge_interface.is_empty() {
        list.invalid(
            "DetectLocalConfiguration.InterfaceName",
            &"",
            "cannot be empty in mode BridgeInterface",
        );
    }
    if mode == "InterfaceNamePrefix" && detect.interface_name_prefix.is_empty() {
        let reason = "cannot be empty in mode InterfaceNamePrefix";
        list.invalid("DetectLocalConfiguration.InterfacePrefix", &"", reason);
    }
    if mode == "ClusterCIDR" {
        cluster_cidrs(&detect.cluster_cidrs, list);
    }
}

fn cluster_cidrs(cidrs: &[String], list: &mut Complaints) {
    let path = "DetectLocalConfiguration.ClusterCIDRs";
    for cidr in cidrs {
        check_cidr(path, cidr, list);
    }
    let families: Vec<IpFamily> =
        cidrs.iter().filter_map(|cidr| parse_cidr(cidr)).map(|cidr| IpFamily::of_cidr(&cidr)).collect();
    if cidrs.len() > 2 {
        list.invalid(path, &cidrs.join(","), "only one CIDR of each IP family is allowed");
    } else if families.len() == 2 && families[0] == families[1] {
        list.invalid(path, &cidrs.join(","), "two CIDRs must be of different IP families");
    }
}

fn logging(settings: &Settings, list: &mut Complaints) {
    let logging = &settings.logging;
    if !["text", "json"].contains(&logging.format.as_str()) {
        list.invalid("logging.format", &logging.format, "Unsupported log format, must be text or json");
    }
    if logging.verbosity < 0 {
        list.invalid("logging.verbosity", &logging.verbosity, "must be greater than or equal to 0");
    }
    if logging.flush_frequency <= GoDuration::ZERO {
        list.duration("logging.flushFrequency", logging.flush_frequency, "must be greater than 0");
    }
    for (index, rule) in logging.vmodule.iter().enumerate() {
        let pattern = &rule.file_pattern;
        if pattern.is_empty() || pattern.contains(['=', ',']) {
            let path = format!("logging.vmodule[{index}].filePattern");
            list.invalid(&path, pattern, "must be a pattern without equal signs and commas");
        }
    }
    if logging.format == "json" && !logging.vmodule.is_empty() {
        let rules: Vec<String> =
            logging.vmodule.iter().map(|rule| format!("{}={}", rule.file_pattern, rule.verbosity)).collect();
        list.invalid("logging.vmodule", &rules.join(","), "Only supported for text log format");
    }
}

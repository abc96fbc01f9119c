//! All complaints about a configuration at once, under the paths that upstream uses.

use super::duration::GoDuration;
use super::record::{Conntrack, Ipvs, KubeProxyConfiguration, Logging};
use super::resolve::AUTO;
use super::{Mode, values};
use crate::model::{IpFamily, parse_cidr, parse_ip};
use std::fmt::Debug;

const DETECT_LOCAL_MODES: [&str; 4] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];

/// Checks everything and returns every complaint; empty means that the record can be used.
pub(super) fn complaints(record: &KubeProxyConfiguration) -> Vec<String> {
    let mut list = Complaints::default();
    bits(record, &mut list);
    if record.mode() == Mode::Ipvs {
        ipvs(&record.ipvs, &mut list);
    }
    conntrack(&record.conntrack, &mut list);
    list.range("KubeProxyLinuxConfiguration.OOMScoreAdj", record.oom_score_adj, -1000, 1000);
    mode(&record.mode, &mut list);
    let burst = record.client_connection.burst;
    list.at_least_zero("ClientConnection.Burst", &burst, burst < 0);
    periods(record, &mut list);
    serving(record, &mut list);
    node_port_addresses(&record.node_port_addresses, &mut list);
    detect_local(record, &mut list);
    logging(&record.logging, &mut list);
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

fn bits(record: &KubeProxyConfiguration, list: &mut Complaints) {
    list.range("KubeProxyIPTablesConfiguration.MasqueradeBit", record.iptables.masquerade_bit, 0, 31);
    if record.mode() == Mode::Nftables {
        list.range("KubeProxyNFTablesConfiguration.MasqueradeBit", record.nftables.masquerade_bit, 0, 31);
    }
}

fn ipvs(ipvs: &Ipvs, list: &mut Complaints) {
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

fn conntrack(conntrack: &Conntrack, list: &mut Complaints) {
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
    if Mode::named(mode).is_none() && mode != AUTO {
        let modes = Mode::ALL.map(Mode::as_str).join(", ");
        let allowed = format!("must be {modes}, {AUTO} or blank (blank means iptables)");
        list.invalid("Mode.ProxyMode", &mode, &allowed);
    }
    if mode == AUTO {
        list.invalid("Mode.ProxyMode", &mode, "depends on the node's kernel: name the mode here");
    }
}

fn periods(record: &KubeProxyConfiguration, list: &mut Complaints) {
    let (period, least) = record.sync_periods();
    for (path, value) in [("ConfigSyncPeriod", record.config_sync_period), ("SyncPeriod", period)] {
        if value <= GoDuration::ZERO {
            list.duration(path, value, "must be greater than 0");
        }
    }
    list.not_negative("MinSyncPeriod", least);
    if least > period {
        list.duration(
            "SyncPeriod",
            period,
            &format!("must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod ({least})"),
        );
    }
}

fn serving(record: &KubeProxyConfiguration, list: &mut Complaints) {
    if parse_ip(&record.bind_address).is_none() {
        list.invalid(
            "BindAddress",
            &record.bind_address,
            "not a valid textual representation of an IP address",
        );
    }
    // Upstream refuses an empty metrics address although nothing else speaks against it; here it
    // turns the server off, as for healthz.
    for (path, address) in [
        ("HealthzBindAddress", &record.healthz_bind_address),
        ("MetricsBindAddress", &record.metrics_bind_address),
    ] {
        if let Some(Err(reason)) = values::non_empty(address).map(values::socket_address) {
            list.invalid(path, address, &reason);
        }
    }
    let shown = &record.show_hidden_metrics_for_version;
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

fn detect_local(record: &KubeProxyConfiguration, list: &mut Complaints) {
    let mode = record.detect_local_mode.as_str();
    if !DETECT_LOCAL_MODES.contains(&mode) {
        let reason = format!("must be {} or blank", DETECT_LOCAL_MODES.join(", "));
        list.invalid("DetectLocalMode", &mode, &reason);
    }
    if mode == "BridgeInterface" && record.detect_local.bridge_interface.is_empty() {
        list.invalid(
            "DetectLocalConfiguration.InterfaceName",
            &"",
            "cannot be empty in mode BridgeInterface",
        );
    }
    if mode == "InterfaceNamePrefix" && record.detect_local.interface_name_prefix.is_empty() {
        let reason = "cannot be empty in mode InterfaceNamePrefix";
        list.invalid("DetectLocalConfiguration.InterfacePrefix", &"", reason);
    }
    if mode == "ClusterCIDR" {
        cluster_cidrs(record, list);
    }
}

fn cluster_cidrs(record: &KubeProxyConfiguration, list: &mut Complaints) {
    let path = "DetectLocalConfiguration.ClusterCIDRs";
    record.cluster_cidrs().for_each(|cidr| check_cidr(path, cidr, list));
    let all = &record.cluster_cidr;
    let families: Vec<IpFamily> =
        record.cluster_cidrs().filter_map(parse_cidr).map(|cidr| IpFamily::of_cidr(&cidr)).collect();
    if record.cluster_cidrs().count() > 2 {
        list.invalid(path, all, "only one CIDR of each IP family is allowed");
    } else if families.len() == 2 && families[0] == families[1] {
        list.invalid(path, all, "two CIDRs must be of different IP families");
    }
}

fn logging(logging: &Logging, list: &mut Complaints) {
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

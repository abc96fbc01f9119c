//! The KubeProxyConfiguration file: `kubeproxy.config.k8s.io/v1alpha1`, YAML or JSON.
//!
//! As upstream does for this version, fields that are unknown or stand there twice are said and
//! accepted; whatever else is wrong is an error. Absent and null are the same everywhere: kubeadm
//! writes most fields out as null.

use super::decode::decode;
use super::duration::{GoDuration, or_nanoseconds};
use super::settings::{
    ClientSettings, ConntrackSettings, DetectLocalSettings, IpvsSettings, LoggingSettings, ServingSettings,
    Settings, StreamSettings, split_cidrs,
};
use super::values::{self, VmoduleRule};
use super::yaml::{self, Fault, Node, Path, Value};
use crate::model::parse_ip;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The only version there is.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The only kind in it that is ours.
pub(super) const KIND: &str = "KubeProxyConfiguration";
/// Default of `bindAddress`.
pub(super) const BIND_ADDRESS: &str = "0.0.0.0";
/// Default of both `masqueradeBit`s.
pub(super) const MASQUERADE_BIT: i32 = 14;
/// Default content type of API requests.
pub(super) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The file as written. All fields are optional, since null and absent are the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct FileConfig {
    pub(super) api_version: Option<String>,
    pub(super) bind_address: Option<String>,
    pub(super) bind_address_hard_fail: Option<bool>,
    pub(super) client_connection: Option<ClientConnection>,
    #[serde(rename = "clusterCIDR")]
    pub(super) cluster_cidr: Option<String>,
    pub(super) config_sync_period: Option<GoDuration>,
    pub(super) conntrack: Option<Conntrack>,
    pub(super) detect_local: Option<DetectLocal>,
    pub(super) detect_local_mode: Option<String>,
    pub(super) enable_profiling: Option<bool>,
    pub(super) feature_gates: Option<BTreeMap<String, bool>>,
    pub(super) healthz_bind_address: Option<String>,
    pub(super) hostname_override: Option<String>,
    pub(super) iptables: Option<Iptables>,
    pub(super) ipvs: Option<Ipvs>,
    pub(super) kind: Option<String>,
    pub(super) logging: Option<Logging>,
    pub(super) metrics_bind_address: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) nftables: Option<Nftables>,
    pub(super) node_port_addresses: Option<Vec<String>>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) port_range: Option<String>,
    pub(super) show_hidden_metrics_for_version: Option<String>,
    pub(super) winkernel: Option<Winkernel>,
    pub(super) windows_run_as_service: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClientConnection {
    pub(super) accept_content_types: Option<String>,
    pub(super) burst: Option<i32>,
    pub(super) content_type: Option<String>,
    pub(super) kubeconfig: Option<String>,
    pub(super) qps: Option<f32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conntrack {
    pub(super) max_per_core: Option<i32>,
    pub(super) min: Option<i32>,
    pub(super) tcp_be_liberal: Option<bool>,
    pub(super) tcp_close_wait_timeout: Option<GoDuration>,
    pub(super) tcp_established_timeout: Option<GoDuration>,
    pub(super) udp_stream_timeout: Option<GoDuration>,
    pub(super) udp_timeout: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DetectLocal {
    pub(super) bridge_interface: Option<String>,
    pub(super) interface_name_prefix: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Iptables {
    pub(super) localhost_node_ports: Option<bool>,
    pub(super) masquerade_all: Option<bool>,
    pub(super) masquerade_bit: Option<i32>,
    pub(super) min_sync_period: Option<GoDuration>,
    pub(super) sync_period: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Ipvs {
    #[serde(rename = "excludeCIDRs")]
    pub(super) exclude_cidrs: Option<Vec<String>>,
    pub(super) min_sync_period: Option<GoDuration>,
    pub(super) scheduler: Option<String>,
    #[serde(rename = "strictARP")]
    pub(super) strict_arp: Option<bool>,
    pub(super) sync_period: Option<GoDuration>,
    pub(super) tcp_fin_timeout: Option<GoDuration>,
    pub(super) tcp_timeout: Option<GoDuration>,
    pub(super) udp_timeout: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Nftables {
    pub(super) masquerade_all: Option<bool>,
    pub(super) masquerade_bit: Option<i32>,
    pub(super) min_sync_period: Option<GoDuration>,
    pub(super) sync_period: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Logging {
    #[serde(deserialize_with = "or_nanoseconds")]
    pub(super) flush_frequency: Option<GoDuration>,
    pub(super) format: Option<String>,
    pub(super) options: Option<LoggingOptions>,
    pub(super) verbosity: Option<i32>,
    pub(super) vmodule: Option<Vec<VmoduleRule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct LoggingOptions {
    pub(super) json: Option<StreamOptions>,
    pub(super) text: Option<StreamOptions>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct StreamOptions {
    #[serde(deserialize_with = "values::quantity_field")]
    pub(super) info_buffer_size: Option<String>,
    pub(super) split_stream: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Winkernel {
    #[serde(rename = "enableDSR")]
    pub(super) enable_dsr: Option<bool>,
    pub(super) forward_health_check_vip: Option<bool>,
    pub(super) network_name: Option<String>,
    pub(super) root_hns_endpoint_name: Option<String>,
    pub(super) source_vip: Option<String>,
}

/// A configuration file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its name, for complaints.
    pub path: PathBuf,
    /// What is in it.
    pub content: Vec<u8>,
}

/// Decodes a file. The second part says what is in it without being used.
pub(super) fn parse(file: &ConfigFile) -> Result<(FileConfig, Vec<String>), Vec<String>> {
    let name = file.path.display();
    let said = |fault: &Fault| format!("{name}:{fault}");
    let mut document = text(&file.content).and_then(yaml::read).map_err(|fault| vec![said(&fault)])?;
    check_kind(&mut document.root).map_err(|fault| vec![said(&fault)])?;
    let decoded = decode::<FileConfig>(document.root);
    let (config, unknown) = decoded.map_err(|faults| faults.iter().map(said).collect::<Vec<_>>())?;
    let mut notices: Vec<String> = unknown.iter().chain(&document.duplicates).map(said).collect();
    notices.extend(document.rest.map(|line| {
        format!("{name}:{line}: only the first YAML document of a file counts; what follows here is ignored")
    }));
    Ok((config, notices))
}

fn text(content: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(content).map_err(|error| {
        let before = &content[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Fault { line, message: "is not text in UTF-8".to_owned(), ..Fault::default() }
    })
}

/// Whether it is the kind of file that is ours; fields of another kind are not worth a complaint.
fn check_kind(root: &mut Node) -> Result<(), Fault> {
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        // Upstream looks at these two without regard to case.
        root.rename(field);
        let found = root.get(field);
        let message = match found.map(|node| &node.value) {
            Some(Value::Text(text)) if text == expected => continue,
            Some(Value::Text(text)) if !text.is_empty() => format!("must be {expected}, but is {text:?}"),
            None | Some(Value::Null | Value::Text(_)) => format!("is missing; it must be {expected}"),
            Some(_) => format!("must be {expected}"),
        };
        let line = found.unwrap_or(root).line;
        return Err(Fault { line, path: Path::default().child(field), message });
    }
    Ok(())
}

impl Winkernel {
    /// As kube-proxy writes it where there is nothing to say.
    pub(super) fn unset() -> Self {
        Winkernel {
            enable_dsr: Some(false),
            forward_health_check_vip: Some(false),
            network_name: Some(String::new()),
            root_hns_endpoint_name: Some(String::new()),
            source_vip: Some(String::new()),
        }
    }
}

impl FileConfig {
    /// Applies the defaults of this version and picks the sections of the mode.
    pub(super) fn into_settings(self) -> Settings {
        let mode = self.mode.clone().unwrap_or_default();
        let (sync_period, min_sync_period) = self.periods(&mode);
        let iptables = self.iptables.clone().unwrap_or_default();
        let nftables = self.nftables.clone().unwrap_or_default();
        let masquerade_all =
            if mode == "nftables" { nftables.masquerade_all } else { iptables.masquerade_all }
                .unwrap_or(false);
        Settings {
            serving: self.serving(),
            client: client(self.client_connection.unwrap_or_default()),
            logging: logging(self.logging.unwrap_or_default()),
            detect_local: detect_local(
                self.detect_local.unwrap_or_default(),
                self.detect_local_mode.unwrap_or_default(),
                &self.cluster_cidr.unwrap_or_default(),
            ),
            feature_gates: self.feature_gates.unwrap_or_default(),
            hostname_override: self.hostname_override.unwrap_or_default(),
            mode,
            sync_period,
            min_sync_period,
            masquerade_all,
            masquerade_bit: iptables.masquerade_bit.unwrap_or(MASQUERADE_BIT),
            nftables_masquerade_bit: nftables.masquerade_bit.unwrap_or(MASQUERADE_BIT),
            localhost_node_ports: iptables.localhost_node_ports.unwrap_or(true),
            ipvs: ipvs(self.ipvs.unwrap_or_default()),
            node_port_addresses: self.node_port_addresses.unwrap_or_default(),
            oom_score_adj: self.oom_score_adj.unwrap_or(-999),
            conntrack: conntrack(&self.conntrack.unwrap_or_default()),
            config_sync_period: or_default(self.config_sync_period, GoDuration::from_secs(15 * 60)),
        }
    }

    /// Sync period and least distance of syncs, from the section of the mode. Zero means default,
    /// hence only ipvs can have a least distance of zero.
    fn periods(&self, mode: &str) -> (GoDuration, GoDuration) {
        let (period, least, default) = match mode {
            "ipvs" => {
                let ipvs = self.ipvs.as_ref();
                (ipvs.and_then(|s| s.sync_period), ipvs.and_then(|s| s.min_sync_period), GoDuration::ZERO)
            }
            "nftables" => {
                let nftables = self.nftables.as_ref();
                (
                    nftables.and_then(|s| s.sync_period),
                    nftables.and_then(|s| s.min_sync_period),
                    GoDuration::from_secs(1),
                )
            }
            _ => {
                let iptables = self.iptables.as_ref();
                (
                    iptables.and_then(|s| s.sync_period),
                    iptables.and_then(|s| s.min_sync_period),
                    GoDuration::from_secs(1),
                )
            }
        };
        (or_default(period, GoDuration::from_secs(30)), or_default(least, default))
    }

    fn serving(&self) -> ServingSettings {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let bind_address = self.bind_address.as_deref().and_then(values::non_empty).unwrap_or(BIND_ADDRESS);
        let six = parse_ip(bind_address).is_some_and(|address| address.is_ipv6());
        let address = |field: &Option<String>, default: (&str, &str), port: i32| {
            let default = if six { default.1 } else { default.0 };
            values::with_port(field.as_deref().and_then(values::non_empty).unwrap_or(default), port)
        };
        ServingSettings {
            bind_address: bind_address.to_owned(),
            healthz_bind_address: address(&self.healthz_bind_address, ("0.0.0.0", "::"), 10256),
            metrics_bind_address: address(&self.metrics_bind_address, ("127.0.0.1", "::1"), 10249),
            bind_address_hard_fail: self.bind_address_hard_fail.unwrap_or(false),
            enable_profiling: self.enable_profiling.unwrap_or(false),
            show_hidden_metrics_for_version: text(&self.show_hidden_metrics_for_version),
        }
    }

    /// Sections that say nothing on Linux but were filled in.
    pub(super) fn unused_sections(&self) -> Vec<&'static str> {
        let winkernel = self.winkernel.clone().unwrap_or_default();
        let set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        let windows = winkernel.enable_dsr == Some(true)
            || winkernel.forward_health_check_vip == Some(true)
            || set(&winkernel.network_name)
            || set(&winkernel.root_hns_endpoint_name)
            || set(&winkernel.source_vip);
        [
            ("winkernel", windows),
            ("windowsRunAsService", self.windows_run_as_service == Some(true)),
            ("portRange", set(&self.port_range)),
        ]
        .into_iter()
        .filter_map(|(name, set)| set.then_some(name))
        .collect()
    }
}

fn or_default(value: Option<GoDuration>, default: GoDuration) -> GoDuration {
    value.filter(|value| *value != GoDuration::ZERO).unwrap_or(default)
}

fn client(section: ClientConnection) -> ClientSettings {
    let content_type = section.content_type.filter(|text| !text.is_empty());
    ClientSettings {
        kubeconfig: section.kubeconfig.unwrap_or_default(),
        accept_content_types: section.accept_content_types.unwrap_or_default(),
        content_type: content_type.unwrap_or_else(|| CONTENT_TYPE.to_owned()),
        qps: section.qps.filter(|qps| *qps != 0.0).unwrap_or(5.0),
        burst: section.burst.filter(|burst| *burst != 0).unwrap_or(10),
    }
}

fn logging(section: Logging) -> LoggingSettings {
    let options = section.options.unwrap_or_default();
    let stream = |options: Option<StreamOptions>| {
        let options = options.unwrap_or_default();
        StreamSettings {
            split_stream: options.split_stream.unwrap_or(false),
            info_buffer_size: options.info_buffer_size.unwrap_or_else(|| "0".to_owned()),
        }
    };
    LoggingSettings {
        format: section.format.filter(|text| !text.is_empty()).unwrap_or_else(|| "text".to_owned()),
        flush_frequency: or_default(section.flush_frequency, GoDuration::from_secs(5)),
        verbosity: section.verbosity.unwrap_or(0),
        vmodule: section.vmodule.unwrap_or_default(),
        text: stream(options.text),
        json: stream(options.json),
    }
}

fn detect_local(section: DetectLocal, mode: String, cluster_cidr: &str) -> DetectLocalSettings {
    DetectLocalSettings {
        mode,
        bridge_interface: section.bridge_interface.unwrap_or_default(),
        interface_name_prefix: section.interface_name_prefix.unwrap_or_default(),
        cluster_cidrs: split_cidrs(cluster_cidr),
    }
}

fn ipvs(section: Ipvs) -> IpvsSettings {
    IpvsSettings {
        scheduler: section.scheduler.unwrap_or_default(),
        exclude_cidrs: section.exclude_cidrs.unwrap_or_default(),
        strict_arp: section.strict_arp.unwrap_or(false),
        tcp_timeout: section.tcp_timeout.unwrap_or_default(),
        tcp_fin_timeout: section.tcp_fin_timeout.unwrap_or_default(),
        udp_timeout: section.udp_timeout.unwrap_or_default(),
    }
}

fn conntrack(section: &Conntrack) -> ConntrackSettings {
    ConntrackSettings {
        max_per_core: section.max_per_core.unwrap_or(32768),
        min: section.min.unwrap_or(131_072),
        tcp_established_timeout: section.tcp_established_timeout.unwrap_or(GoDuration::from_secs(86400)),
        tcp_close_wait_timeout: section.tcp_close_wait_timeout.unwrap_or(GoDuration::from_secs(3600)),
        tcp_be_liberal: section.tcp_be_liberal.unwrap_or(false),
        udp_timeout: section.udp_timeout.unwrap_or_default(),
        udp_stream_timeout: section.udp_stream_timeout.unwrap_or_default(),
    }
}

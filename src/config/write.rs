//! The effective configuration, written back as a file: for `--write-config-to` and `/configz`.

use super::GoDuration;
use super::file::{
    API_VERSION, ClientConnection, Conntrack, DetectLocal, FileConfig, Iptables, Ipvs, KIND, Logging,
    LoggingOptions, Nftables, StreamOptions, Winkernel,
};
use super::settings::{Settings, StreamSettings};

/// What is in effect after flags, file and defaults, in the form of a configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective(FileConfig);

impl Effective {
    pub(super) fn of(settings: &Settings) -> Self {
        Effective(file(settings))
    }

    /// As a YAML file.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(&self.0).map_err(|error| error.to_string())
    }

    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.0).ok()
    }

    /// As the answer of `/configz`.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn to_configz(&self) -> Result<String, String> {
        let body = serde_json::to_string(&self.0).map_err(|error| error.to_string())?;
        Ok(format!("{{\"kubeproxy.config.k8s.io\":{body}}}"))
    }
}

fn file(settings: &Settings) -> FileConfig {
    let (serving, detect) = (&settings.serving, &settings.detect_local);
    FileConfig {
        api_version: Some(API_VERSION.to_owned()),
        kind: Some(KIND.to_owned()),
        bind_address: Some(serving.bind_address.clone()),
        bind_address_hard_fail: Some(serving.bind_address_hard_fail),
        client_connection: Some(client(settings)),
        cluster_cidr: Some(detect.cluster_cidrs.join(",")),
        config_sync_period: Some(settings.config_sync_period),
        conntrack: Some(conntrack(settings)),
        detect_local: Some(DetectLocal {
            bridge_interface: Some(detect.bridge_interface.clone()),
            interface_name_prefix: Some(detect.interface_name_prefix.clone()),
        }),
        detect_local_mode: Some(detect.mode.clone()),
        enable_profiling: Some(serving.enable_profiling),
        feature_gates: Some(settings.feature_gates.clone()),
        healthz_bind_address: Some(serving.healthz_bind_address.clone()),
        hostname_override: Some(settings.hostname_override.clone()),
        iptables: Some(iptables(settings)),
        ipvs: Some(ipvs(settings)),
        logging: Some(logging(settings)),
        metrics_bind_address: Some(serving.metrics_bind_address.clone()),
        mode: Some(settings.mode.clone()),
        nftables: Some(nftables(settings)),
        node_port_addresses: Some(settings.node_port_addresses.clone()),
        oom_score_adj: Some(settings.oom_score_adj),
        port_range: Some(String::new()),
        show_hidden_metrics_for_version: Some(serving.show_hidden_metrics_for_version.clone()),
        winkernel: Some(Winkernel::unset()),
        windows_run_as_service: Some(false),
    }
}

fn client(settings: &Settings) -> ClientConnection {
    let client = &settings.client;
    ClientConnection {
        accept_content_types: Some(client.accept_content_types.clone()),
        burst: Some(client.burst),
        content_type: Some(client.content_type.clone()),
        kubeconfig: Some(client.kubeconfig.clone()),
        qps: Some(client.qps),
    }
}

fn conntrack(settings: &Settings) -> Conntrack {
    let conntrack = &settings.conntrack;
    Conntrack {
        max_per_core: Some(conntrack.max_per_core),
        min: Some(conntrack.min),
        tcp_be_liberal: Some(conntrack.tcp_be_liberal),
        tcp_close_wait_timeout: Some(conntrack.tcp_close_wait_timeout),
        tcp_established_timeout: Some(conntrack.tcp_established_timeout),
        udp_stream_timeout: Some(conntrack.udp_stream_timeout),
        udp_timeout: Some(conntrack.udp_timeout),
    }
}

/// The periods go to the section of the mode in effect; in the other sections they are zero, which a
/// reader takes for the default.
fn periods(settings: &Settings, mode: &str) -> (Option<GoDuration>, Option<GoDuration>) {
    match settings.mode == mode {
        true => (Some(settings.sync_period), Some(settings.min_sync_period)),
        false => (Some(GoDuration::ZERO), Some(GoDuration::ZERO)),
    }
}

fn iptables(settings: &Settings) -> Iptables {
    let (sync_period, min_sync_period) = periods(settings, "iptables");
    Iptables {
        localhost_node_ports: Some(settings.localhost_node_ports),
        masquerade_all: Some(settings.masquerade_all && settings.mode != "nftables"),
        masquerade_bit: Some(settings.masquerade_bit),
        min_sync_period,
        sync_period,
    }
}

fn ipvs(settings: &Settings) -> Ipvs {
    let ((sync_period, min_sync_period), ipvs) = (periods(settings, "ipvs"), &settings.ipvs);
    Ipvs {
        exclude_cidrs: Some(ipvs.exclude_cidrs.clone()),
        min_sync_period,
        scheduler: Some(ipvs.scheduler.clone()),
        strict_arp: Some(ipvs.strict_arp),
        sync_period,
        tcp_fin_timeout: Some(ipvs.tcp_fin_timeout),
        tcp_timeout: Some(ipvs.tcp_timeout),
        udp_timeout: Some(ipvs.udp_timeout),
    }
}

fn nftables(settings: &Settings) -> Nftables {
    let (sync_period, min_sync_period) = periods(settings, "nftables");
    Nftables {
        masquerade_all: Some(settings.masquerade_all && settings.mode == "nftables"),
        masquerade_bit: Some(settings.nftables_masquerade_bit),
        min_sync_period,
        sync_period,
    }
}

fn logging(settings: &Settings) -> Logging {
    let logging = &settings.logging;
    let stream = |stream: &StreamSettings| {
        Some(StreamOptions {
            info_buffer_size: Some(stream.info_buffer_size.clone()),
            split_stream: Some(stream.split_stream),
        })
    };
    Logging {
        flush_frequency: Some(logging.flush_frequency),
        format: Some(logging.format.clone()),
        options: Some(LoggingOptions { json: stream(&logging.json), text: stream(&logging.text) }),
        verbosity: Some(logging.verbosity),
        vmodule: Some(logging.vmodule.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::{ConfigFile, parse};
    use super::super::{command_line, resolve};
    use super::*;

    fn settings(args: &[&str]) -> Settings {
        let line = command_line::parse(args.iter().copied()).unwrap();
        resolve::settings(&line, None, (&"host".into(), &mut Vec::new())).unwrap().0
    }

    #[test]
    fn what_is_written_means_the_same_when_it_is_read() {
        for args in [
            &[][..],
            &["--mode=ipvs", "--ipvs-min-sync-period=2s", "--ipvs-scheduler=mh", "--masquerade-all"],
            &[
                "--hostname-override=Yes",
                "--cluster-cidr=10.0.0.0/8,fd00::/8",
                "--nodeport-addresses=primary",
            ],
            &[
                "--v=3",
                "--vmodule=a=1",
                "--feature-gates=A=false",
                "--conntrack-min=0",
                "--kubeconfig=~/k: #x",
            ],
            &[
                "--bind-address=::",
                "--healthz-bind-address=[::]:1",
                "--oom-score-adj=0",
                "--log-text-split-stream",
            ],
        ] {
            let before = settings(args);
            let written = Effective::of(&before);
            for text in [written.to_yaml().unwrap(), serde_json::to_string(&written.0).unwrap()] {
                let file = ConfigFile { path: "written".into(), content: text.clone().into() };
                let (file, notices) = parse(&file).unwrap();
                assert_eq!(notices, Vec::<String>::new(), "{text}");
                let mut after = file.into_settings();
                after.complete(false);
                assert_eq!(after, before, "{text}");
            }
        }
    }

    #[test]
    fn text_that_looks_like_something_else_stays_text() {
        for text in [
            "yes", "1_000", "017", "08", "0o17", "1e3", ".5", "~", "null", "a: b", "a #b", "- a", " a", "é\n",
        ] {
            let before = settings(&[&format!("--kubeconfig={text}")]);
            let content = Effective::of(&before).to_yaml().unwrap().into_bytes();
            let (file, _) = parse(&ConfigFile { path: "written".into(), content }).unwrap();
            assert_eq!(file.into_settings().client.kubeconfig, text);
        }
    }

    #[test]
    fn periods_stand_in_the_section_of_the_mode() {
        let text = Effective::of(&settings(&["--mode=ipvs"])).to_yaml().unwrap();
        let section = |name: &str| {
            text.split(&format!("\n{name}:\n")).nth(1).unwrap().split("\n  sync").nth(1).unwrap()
        };
        assert!(section("ipvs").starts_with("Period: 30s\n"), "{text}");
        assert!(section("iptables").starts_with("Period: 0s\n"), "{text}");
    }

    #[test]
    fn configz_has_the_file_under_its_group() {
        let text = Effective::of(&settings(&[])).to_configz().unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let config = &value["kubeproxy.config.k8s.io"];
        assert_eq!(config["kind"], "KubeProxyConfiguration");
        assert_eq!(config["mode"], "iptables");
        assert_eq!(config["iptables"]["masqueradeBit"], 14);
        assert_eq!(config["conntrack"]["tcpEstablishedTimeout"], "24h0m0s");
    }
}

//! Tables over every flag and every field of the file.

use super::record::KubeProxyConfiguration;
use super::*;
use crate::model::IpFamily;
use rstest::rstest;

fn line(args: &[&str]) -> CommandLine {
    parse(args.iter().copied()).unwrap()
}

fn stopped(args: &[&str]) -> FlagStop {
    parse(args.iter().copied()).unwrap_err()
}

fn from_flags(args: &[&str]) -> Resolved {
    resolve(&line(args), None, "host-1").unwrap()
}

fn complaints(args: &[&str]) -> Vec<String> {
    resolve(&line(args), None, "host-1").unwrap_err().complaints
}

pub(super) fn config_file(text: impl Into<Vec<u8>>) -> ConfigFile {
    ConfigFile { path: "config.yaml".into(), content: text.into() }
}

/// A file of our kind; the body starts in line 3.
pub(super) fn file(body: &str) -> ConfigFile {
    config_file(format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{body}"))
}

fn from_file(body: &str) -> Resolved {
    resolve(&line(&["--config", "c"]), Some(&file(body)), "host-1").unwrap()
}

fn record_of(args: &[&str], body: Option<&str>) -> KubeProxyConfiguration {
    let file = body.map(file);
    resolve::record(&line(args), file.as_ref(), (&"host-1".into(), &mut Vec::new())).unwrap().0
}

#[test]
fn mode_auto_is_the_mode_that_the_node_chooses_with_its_section_of_the_file() {
    const BODY: &str = "mode: auto\nnftables: {masqueradeBit: 3}\niptables: {masqueradeBit: 4}\n";
    fn chosen(mode: Mode) -> ModeChoice {
        ModeChoice { mode, reason: "it is so".to_owned() }
    }
    let choices: [(fn() -> ModeChoice, u8); 2] =
        [(|| chosen(Mode::Nftables), 3), (|| chosen(Mode::Iptables), 4)];
    for (choose, bit) in choices {
        let host = Host { name: "host-1", choose_mode: Some(choose) };
        let from_file = resolve(&line(&["--config=c"]), Some(&file(BODY)), host).unwrap();
        let from_flags = resolve(&line(&["--mode=auto"]), None, host).unwrap();
        for resolved in [&from_file, &from_flags] {
            assert_eq!(resolved.choice, Some(choose()));
            assert_eq!(resolved.config.mode, choose().mode);
            assert_eq!(resolved.effective.settings()["mode"], format!("{:?}", choose().mode.as_str()));
            // On all nodes alike, whichever mode each of them chooses.
            assert_eq!(resolved.config.node_ports.addresses, NodePortAddressesSetting::Primary);
        }
        assert_eq!(from_file.config.iptables.masquerade_bit, bit);
        let named = resolve(&line(&["--mode=ipvs"]), None, host).unwrap();
        assert_eq!((named.config.mode, named.choice), (Mode::Ipvs, None));
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const SERVICE_LIMITS: ServiceLimits = ServiceLimits {
    endpoints: 100_000,
    ports: 1000,
    external_ips: 256,
    source_ranges: 1000,
    rules: 100_000,
    by_address: false,
};

fn default_config() -> Config {
    Config {
        mode: Mode::Iptables,
        node_name: "host-1".to_owned(),
        sources: Sources { content_type: record::CONTENT_TYPE.to_owned(), ..Sources::default() },
        iptables: IptablesConfig {
            masquerade_bit: 14,
            masquerade_all: false,
            localhost_node_ports: true,
            flavor: FlavorChoice::Auto,
            cleanup_other_flavor: false,
            dispatch_tree_threshold: 500,
        },
        ipvs: IpvsConfig {
            scheduler: "rr".to_owned(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: Duration::ZERO,
            tcp_fin_timeout: Duration::ZERO,
            udp_timeout: Duration::ZERO,
            upstream_compat: false,
            connection_metrics: 0,
        },
        nftables: NftablesConfig { own_table: false },
        sync: SyncConfig { period: secs(30), min_period: secs(1) },
        detect_local: DetectLocal::ClusterCidr(PerFamily::default()),
        node_ports: NodePortConfig { addresses: NodePortAddressesSetting::All, range: (30000, 32767) },
        external_ips: ExternalIpConfig {
            enabled: true,
            strict: false,
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_cidrs: Vec::new(),
        },
        drift_detection: DriftDetection::Events,
        service_limits: SERVICE_LIMITS,
        service_metrics: ServiceMetricsDetail::Off,
        service_metrics_limit: 1000,
        node_readiness_taint: None,
        bind_address: "0.0.0.0".parse().unwrap(),
        healthz: Some("0.0.0.0:10256".parse().unwrap()),
        control_socket: Some("/run/kube-proxy-rs/control.sock".into()),
        metrics: Some("127.0.0.1:10249".parse().unwrap()),
        bind_address_hard_fail: false,
        logging: LoggingConfig { verbosity: 0, format: LogFormat::Text },
        conntrack: ConntrackConfig {
            max_per_core: 32768,
            min: 131_072,
            tcp_established_timeout: secs(86400),
            tcp_close_wait_timeout: secs(3600),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
            strict: false,
        },
        oom_score_adj: -999,
    }
}

#[test]
fn without_flags_the_defaults_are_kube_proxys() {
    let resolved = from_flags(&[]);
    assert_eq!((resolved.config, resolved.notices), (default_config(), Vec::new()));
}

#[test]
fn an_empty_file_means_the_same_as_no_flags() {
    assert_eq!(record_of(&["--config", "c"], Some("")), record_of(&[], None));
    assert_eq!(from_file("").config, default_config());
}

/// Name, default, still effective with `--config`: section 10.1 of the compatibility notes.
const UPSTREAM_FLAGS: &[(&str, &str, bool)] = &[
    ("config", "", true),
    ("write-config-to", "", true),
    ("cleanup", "false", true),
    ("init-only", "false", true),
    ("master", "", true),
    ("hostname-override", "", true),
    ("version", "false", true),
    ("v", "0", true),
    ("vmodule", "", true),
    ("logging-format", "text", true),
    ("log-flush-frequency", "5s", true),
    ("log-text-split-stream", "false", true),
    ("log-json-split-stream", "false", true),
    ("log-text-info-buffer-size", "0", true),
    ("log-json-info-buffer-size", "0", true),
    ("machine-id-file", "/etc/machine-id,/var/lib/dbus/machine-id", true),
    ("boot-id-file", "/proc/sys/kernel/random/boot_id", true),
    ("feature-gates", "", false),
    ("kubeconfig", "", false),
    ("kube-api-content-type", "application/vnd.kubernetes.protobuf", false),
    ("kube-api-burst", "10", false),
    ("kube-api-qps", "5", false),
    ("bind-address", "0.0.0.0", false),
    ("healthz-bind-address", "0.0.0.0:10256", false),
    ("metrics-bind-address", "127.0.0.1:10249", false),
    ("bind-address-hard-fail", "false", false),
    ("profiling", "false", false),
    ("show-hidden-metrics-for-version", "", false),
    ("proxy-mode", "", false),
    ("iptables-masquerade-bit", "14", false),
    ("masquerade-all", "false", false),
    ("iptables-localhost-nodeports", "true", false),
    ("iptables-sync-period", "30s", false),
    ("iptables-min-sync-period", "1s", false),
    ("ipvs-sync-period", "30s", false),
    ("ipvs-min-sync-period", "1s", false),
    ("ipvs-scheduler", "", false),
    ("ipvs-exclude-cidrs", "", false),
    ("ipvs-strict-arp", "false", false),
    ("ipvs-tcp-timeout", "0s", false),
    ("ipvs-tcpfin-timeout", "0s", false),
    ("ipvs-udp-timeout", "0s", false),
    ("detect-local-mode", "", false),
    ("pod-bridge-interface", "", false),
    ("pod-interface-name-prefix", "", false),
    ("cluster-cidr", "", false),
    ("nodeport-addresses", "", false),
    ("oom-score-adj", "-999", false),
    ("conntrack-max-per-core", "32768", false),
    ("conntrack-min", "131072", false),
    ("conntrack-tcp-timeout-established", "24h", false),
    ("conntrack-tcp-timeout-close-wait", "1h", false),
    ("conntrack-tcp-be-liberal", "false", false),
    ("conntrack-udp-timeout", "0s", false),
    ("conntrack-udp-timeout-stream", "0s", false),
    ("config-sync-period", "15m", false),
    ("healthz-port", "10256", false),
    ("metrics-port", "10249", false),
];

/// Flags of our own. They have no field in the file, so they count beside it.
const OUR_FLAGS: &[(&str, &str, bool)] = &[
    ("manifests", "", true),
    ("iptables-flavor", "auto", true),
    ("ipvs-upstream-compat", "false", true),
    ("ipvs-connection-metrics", "0", true),
    ("service-metrics", "off", true),
    ("service-metrics-limit", "1000", true),
    ("conntrack-strict", "false", true),
    ("cleanup-other-flavor", "false", true),
    ("drift-detection", "events", true),
    ("iptables-dispatch-tree-threshold", "500", true),
    ("nftables-own-table", "false", true),
    ("service-node-port-range", "30000-32767", true),
    ("service-cluster-ip-range", "", true),
    ("node-ip-range", "", true),
    ("strict-external-ips", "false", true),
    ("max-service-endpoints", "100000", true),
    ("max-service-ports", "1000", true),
    ("max-service-external-ips", "256", true),
    ("max-service-source-ranges", "1000", true),
    ("max-service-rules", "100000", true),
    ("node-readiness-taint", "", true),
    ("family", "ipv4", true),
    ("control-socket", "/run/kube-proxy-rs/control.sock", true),
    ("client", "", true),
    ("to", "", true),
    ("interface", "", true),
    ("namespace", "default", true),
    ("protocol", "", true),
    ("all", "false", true),
    ("all-namespaces", "false", true),
    ("selector", "", true),
    ("watch", "false", true),
    ("problems", "false", true),
    ("no-headers", "false", true),
    ("node-addresses", "", true),
    ("output", "text", true),
];

#[test]
fn every_flag_of_kube_proxy_is_there_with_its_default() {
    let mut rows: Vec<_> = flag_rows();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let mut want: Vec<_> = UPSTREAM_FLAGS
        .iter()
        .chain(OUR_FLAGS)
        .map(|(name, default, effective)| FlagRow {
            name: (*name).to_owned(),
            default: (*default).to_owned(),
            effective_with_config: *effective,
        })
        .collect();
    want.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(rows, want);
}

#[test]
fn every_flag_has_a_row_in_the_documentation() {
    let document = include_str!("../../docs/configuration.md");
    for row in flag_rows() {
        assert!(
            document.contains(&format!("`--{}`", row.name)),
            "docs/configuration.md lacks --{}",
            row.name
        );
    }
}

/// One change to the default configuration per flag.
#[rstest]
#[case(&["--proxy-mode", "ipvs"], |c: &mut Config| c.mode = Mode::Ipvs)]
#[case(&["--control-socket="], |c: &mut Config| c.control_socket = None)]
#[case(&["--mode=ipvs"], |c: &mut Config| c.mode = Mode::Ipvs)]
#[case(&["--mode", "iptables"], |_: &mut Config| {})]
#[case(&["--mode=nftables"], |c: &mut Config| {
    c.mode = Mode::Nftables;
    c.node_ports.addresses = NodePortAddressesSetting::Primary;
})]
#[case(&["--hostname-override= Node-A "], |c: &mut Config| c.node_name = "node-a".to_owned())]
#[case(&["--kubeconfig", "/k"], |c: &mut Config| c.sources.kubeconfig = Some("/k".into()))]
#[case(&["--kube-api-content-type=application/json"], |c: &mut Config| c.sources.content_type = "application/json".into())]
#[case(&["--master", "https://a"], |c: &mut Config| c.sources.master = Some("https://a".to_owned()))]
#[case(&["--manifests", "a,b", "--manifests=c"], |c: &mut Config| c.sources.manifests = vec!["a".into(), "b".into(), "c".into()])]
#[case(&["--nftables-own-table"], |c: &mut Config| c.nftables.own_table = true)]
#[case(&["--iptables-dispatch-tree-threshold=0"], |c: &mut Config| c.iptables.dispatch_tree_threshold = 0)]
#[case(&["--iptables-masquerade-bit=31"], |c: &mut Config| c.iptables.masquerade_bit = 31)]
#[case(&["--masquerade-all"], |c: &mut Config| c.iptables.masquerade_all = true)]
#[case(&["--masquerade_all=T"], |c: &mut Config| c.iptables.masquerade_all = true)]
#[case(&["--masquerade-all", "--masquerade-all=false"], |_: &mut Config| {})]
#[case(&["--iptables-localhost-nodeports=false"], |c: &mut Config| c.iptables.localhost_node_ports = false)]
#[case(&["--iptables-localhost-nodeports"], |_: &mut Config| {})]
#[case(&["--service-metrics=endpoints", "--service-metrics-limit", "7"], |c: &mut Config| {
    (c.service_metrics, c.service_metrics_limit) = (ServiceMetricsDetail::Endpoints, 7);
})]
#[case(&["--drift-detection=poll"], |c: &mut Config| c.drift_detection = DriftDetection::Poll)]
#[case(&["--iptables-flavor", "legacy"], |c: &mut Config| c.iptables.flavor = FlavorChoice::Legacy)]
#[case(&["--iptables-sync-period", "1m30s"], |c: &mut Config| c.sync.period = secs(90))]
#[case(&["--iptables_min_sync_period=0"], |c: &mut Config| c.sync.min_period = Duration::ZERO)]
#[case(&["--ipvs-sync-period=1h", "--ipvs-min-sync-period=5s"], |_: &mut Config| {})]
#[case(&["--mode=ipvs", "--ipvs-sync-period=1h", "--ipvs-min-sync-period=5s", "--iptables-sync-period=1s"], |c: &mut Config| {
    c.mode = Mode::Ipvs;
    c.sync = SyncConfig { period: secs(3600), min_period: secs(5) };
})]
#[case(&["--ipvs-scheduler=mh"], |c: &mut Config| c.ipvs.scheduler = "mh".to_owned())]
#[case(&["--ipvs-exclude-cidrs=10.1.2.3/16,fd00::/8"], |c: &mut Config| {
    c.ipvs.exclude_cidrs = vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
})]
#[case(&["--ipvs-upstream-compat"], |c: &mut Config| c.ipvs.upstream_compat = true)]
#[case(&["--ipvs-strict-arp"], |c: &mut Config| c.ipvs.strict_arp = true)]
#[case(&["--ipvs-tcp-timeout=1s"], |c: &mut Config| c.ipvs.tcp_timeout = secs(1))]
#[case(&["--ipvs-tcpfin-timeout=2s"], |c: &mut Config| c.ipvs.tcp_fin_timeout = secs(2))]
#[case(&["--ipvs-udp-timeout=3s"], |c: &mut Config| c.ipvs.udp_timeout = secs(3))]
#[case(&["--detect-local-mode=NodeCIDR"], |c: &mut Config| c.detect_local = DetectLocal::NodeCidr)]
#[case(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"], |c: &mut Config| {
    c.detect_local = DetectLocal::BridgeInterface("cni0".to_owned());
})]
#[case(&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"], |c: &mut Config| {
    c.detect_local = DetectLocal::InterfaceNamePrefix("veth".to_owned());
})]
#[case(&["--cluster-cidr=fd00:128::/32,10.128.3.0/16"], |c: &mut Config| {
    c.detect_local = DetectLocal::ClusterCidr(PerFamily {
        v4: Some("10.128.0.0/16".parse().unwrap()),
        v6: Some("fd00:128::/32".parse().unwrap()),
    });
    c.external_ips.cluster_cidrs = vec!["fd00:128::/32".parse().unwrap(), "10.128.0.0/16".parse().unwrap()];
})]
#[case(&["--nodeport-addresses=10.0.0.0/8", "--nodeport-addresses=192.168.1.1/24"], |c: &mut Config| {
    c.node_ports.addresses =
        NodePortAddressesSetting::Cidrs(vec!["10.0.0.0/8".parse().unwrap(), "192.168.1.0/24".parse().unwrap()]);
})]
#[case(&["--nodeport-addresses=primary"], |c: &mut Config| c.node_ports.addresses = NodePortAddressesSetting::Primary)]
#[case(&["--nodeport-addresses="], |_: &mut Config| {})]
#[case(&["--service-node-port-range=100-200"], |c: &mut Config| c.node_ports.range = (100, 200))]
#[case(&["--node-readiness-taint=example.com/wait"], |c: &mut Config| {
    c.node_readiness_taint = Some("example.com/wait".to_owned());
})]
#[case(&["--strict-external-ips"], |c: &mut Config| c.external_ips.strict = true)]
#[case(&["--service-cluster-ip-range=10.96.0.1/12,fd00:96::/108"], |c: &mut Config| {
    c.external_ips.service_cidrs = vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/108".parse().unwrap()];
})]
#[case(&["--max-service-endpoints=7", "--max-service-ports=6", "--max-service-external-ips=5"], |c: &mut Config| {
    c.service_limits = ServiceLimits { endpoints: 7, ports: 6, external_ips: 5, ..SERVICE_LIMITS };
})]
#[case(&["--max-service-source-ranges=4", "--max-service-rules=0"], |c: &mut Config| {
    c.service_limits = ServiceLimits { source_ranges: 4, rules: usize::MAX, ..SERVICE_LIMITS };
})]
#[case(&["--node-ip-range=10.200.0.1/24"], |c: &mut Config| {
    c.external_ips.node_cidrs = vec!["10.200.0.0/24".parse().unwrap()];
})]
#[case(&["--bind-address=::1"], |c: &mut Config| c.bind_address = "::1".parse().unwrap())]
#[case(&["--bind-address="], |_: &mut Config| {})]
#[case(&["--healthz-bind-address=1.2.3.4"], |c: &mut Config| c.healthz = Some("1.2.3.4:10256".parse().unwrap()))]
#[case(&["--healthz-bind-address=[::]:99"], |c: &mut Config| c.healthz = Some("[::]:99".parse().unwrap()))]
#[case(&["--healthz-bind-address="], |_: &mut Config| {})]
#[case(&["--metrics-bind-address=::"], |c: &mut Config| c.metrics = Some("[::]:10249".parse().unwrap()))]
#[case(&["--bind-address-hard-fail"], |c: &mut Config| c.bind_address_hard_fail = true)]
#[case(&["--logging-format=json"], |c: &mut Config| c.logging.format = LogFormat::Json)]
#[case(&["-v", "4"], |c: &mut Config| c.logging.verbosity = 4)]
#[case(&["-v=4"], |c: &mut Config| c.logging.verbosity = 4)]
#[case(&["-v4"], |c: &mut Config| c.logging.verbosity = 4)]
#[case(&["--v=2"], |c: &mut Config| c.logging.verbosity = 2)]
#[case(&["--v=2", "--v=3"], |c: &mut Config| c.logging.verbosity = 3)]
#[case(&["--oom-score-adj", "-5"], |c: &mut Config| c.oom_score_adj = -5)]
#[case(&["--conntrack-max-per-core=0"], |c: &mut Config| c.conntrack.max_per_core = 0)]
#[case(&["--conntrack-min=7"], |c: &mut Config| c.conntrack.min = 7)]
#[case(&["--conntrack-tcp-timeout-established=0s"], |c: &mut Config| c.conntrack.tcp_established_timeout = Duration::ZERO)]
#[case(&["--conntrack-tcp-timeout-close-wait=1m"], |c: &mut Config| c.conntrack.tcp_close_wait_timeout = secs(60))]
#[case(&["--conntrack-tcp-be-liberal"], |c: &mut Config| c.conntrack.tcp_be_liberal = true)]
#[case(&["--conntrack-udp-timeout=1s"], |c: &mut Config| c.conntrack.udp_timeout = secs(1))]
#[case(&["--cleanup-other-flavor"], |c: &mut Config| c.iptables.cleanup_other_flavor = true)]
#[case(&["--conntrack-strict"], |c: &mut Config| c.conntrack.strict = true)]
#[case(&["--conntrack-udp-timeout-stream=2s"], |c: &mut Config| c.conntrack.udp_stream_timeout = secs(2))]
#[case(&["--feature-gates=AllowServiceExternalIPs=false"], |c: &mut Config| c.external_ips.enabled = false)]
fn a_flag_changes_its_setting_and_nothing_else(#[case] args: &[&str], #[case] change: fn(&mut Config)) {
    let mut want = default_config();
    change(&mut want);
    let resolved = from_flags(args);
    assert_eq!(resolved.config, want);
    assert_eq!(resolved.notices, Vec::<String>::new());
}

fn assert_it_only_says(notice: &str, resolved: &Resolved) {
    assert_eq!(resolved.config, default_config());
    let notices = resolved.notices.as_slice();
    assert!(matches!(notices, [one] if one.starts_with(notice)), "{notices:?}");
}

#[rstest]
#[case(&["--feature-gates=AllowServiceExternalIPs=true,B=false"], "feature gate B=false has no effect: nothing here depends on any but AllowServiceExternalIPs")]
#[case(&["--kube-api-qps=50"], "setting clientConnection.qps")]
#[case(&["--kube-api-burst=100"], "setting clientConnection.burst")]
#[case(&["--profiling"], "setting enableProfiling")]
#[case(&["--vmodule=a*=2,b=3"], "setting logging.vmodule")]
#[case(&["--log-flush-frequency=1s"], "setting logging.flushFrequency")]
#[case(&["--log-text-split-stream"], "setting logging.options.text.splitStream")]
#[case(&["--log-json-split-stream"], "setting logging.options.json.splitStream")]
#[case(&["--log-text-info-buffer-size=1Mi"], "setting logging.options.text.infoBufferSize")]
#[case(&["--log-json-info-buffer-size=64k"], "setting logging.options.json.infoBufferSize")]
#[case(&["--config-sync-period=1m"], "setting configSyncPeriod")]
#[case(&["--machine-id-file=/a"], "flag --machine-id-file has no effect")]
#[case(&["--boot-id-file=/a"], "flag --boot-id-file has no effect")]
fn a_flag_without_effect_is_accepted_and_said(#[case] args: &[&str], #[case] notice: &str) {
    assert_it_only_says(notice, &from_flags(args));
}

#[test]
fn deprecated_ports_move_or_turn_off_their_servers() {
    let resolved = from_flags(&["--healthz-port=99", "--healthz-bind-address=1.2.3.4", "--metrics-port=0"]);
    assert_eq!(resolved.config.healthz, Some("1.2.3.4:99".parse().unwrap()));
    assert_eq!(resolved.config.metrics, None);
    let notices = [
        "flag --healthz-port is deprecated, use --healthz-bind-address instead",
        "flag --metrics-port is deprecated, use --metrics-bind-address instead",
    ];
    assert_eq!(resolved.notices, notices);
    let default_address = from_flags(&["--healthz-port=99"]).config.healthz;
    assert_eq!(default_address, Some("0.0.0.0:10256".parse().unwrap()), "the default already has a port");
}

#[rstest]
#[case(&["--nope"], "Error: unexpected argument '--nope' found")]
#[case(&["stray"], "Error: unrecognized subcommand 'stray'")]
#[case(&["--iptables-sync-period=1d"], "\"1d\" has the unit \"d\"; there are h, m, s, ms, us and ns")]
#[case(&["--conntrack-min=08"], "must be a whole number")]
#[case(&["--conntrack-min=2147483648"], "must be a whole number from -2147483648 to 2147483647")]
#[case(&["--v=-1"], "must be a decimal number from 0 to 2147483647")]
#[case(&["--v=0x1"], "must be a decimal number from 0 to 2147483647")]
#[case(&["--kube-api-qps=many"], "must be a number")]
#[case(&["--vmodule==1"], "expected PATTERN=N")]
#[case(&["--vmodule=a=b=1"], "must be a decimal number")]
#[case(&["--bind-address=host"], "must be a valid IP address")]
#[case(&["--healthz-bind-address=1.2.3.4:0"], "must be a valid port number, from 1 to 65535")]
#[case(&["--healthz-bind-address=1.2.3.4:70000"], "must be a valid port number, from 1 to 65535")]
#[case(&["--metrics-bind-address=host:1"], "must be a valid IP with a port")]
#[case(&["--cleanup=maybe"], "must be true or false")]
#[case(&["--v=x"], "invalid value 'x' for '--v <LEVEL>'")]
#[case(&["--feature-gates=A"], "missing bool value")]
#[case(&["--vmodule=A"], "expected PATTERN=N")]
#[case(&["--iptables-flavor=old"], "[possible values: auto, nft, legacy]")]
#[case(&["--service-node-port-range=9-1"], "must be FIRST-LAST")]
#[case(&["--node-readiness-taint=a b"], "must be the key of a taint")]
#[case(&["--node-readiness-taint=a/b/c"], "must be the key of a taint")]
#[case(&["--service-cluster-ip-range=10.96.0.1"], "must be a network in CIDR form")]
#[case(&["--log-text-info-buffer-size=lots"], "must be a quantity")]
#[case(&["--version=soon"], "must be true, false, raw or vX.Y.Z")]
#[case(&["--kubeconfig"], "a value is required")]
fn a_bad_flag_is_an_error_with_a_hint_and_exit_code_1(#[case] args: &[&str], #[case] text: &str) {
    let stop = stopped(args);
    assert_eq!(stop.exit_code, 1);
    assert!(stop.text.starts_with("Error: "), "{}", stop.text);
    assert!(stop.text.contains(text), "{}", stop.text);
    assert!(stop.text.contains("--help"), "{}", stop.text);
}

#[test]
fn help_goes_to_stdout_and_hides_deprecated_flags() {
    let stop = stopped(&["--help"]);
    assert_eq!(stop.exit_code, 0);
    assert!(stop.text.contains("--proxy-mode"));
    assert!(stop.text.contains("[default: 30s]"));
    assert!(!stop.text.contains("--healthz-port"));
}

#[rstest]
#[case(&[], Action::Run)]
#[case(&["--version=false"], Action::Run)]
#[case(&["--version=v1.2.3", "--cleanup"], Action::PrintVersion("Kubernetes v1.2.3".to_owned()))]
#[case(&["--write-config-to=/w", "--cleanup"], Action::WriteConfig("/w".into()))]
#[case(&["--cleanup", "--init-only"], Action::Cleanup)]
#[case(&["--init_only"], Action::InitOnly)]
#[case(&["render"], Action::Render(Render { family: IpFamily::V4, node_addresses: vec![] }))]
#[case(
    &["render", "--family=ipv6", "--node-addresses=10.0.0.1,fd00::1"],
    Action::Render(Render { family: IpFamily::V6, node_addresses: vec![[10, 0, 0, 1].into(), "fd00::1".parse().unwrap()] })
)]
fn the_flags_say_what_to_do(#[case] args: &[&str], #[case] want: Action) {
    assert_eq!(line(args).action, want);
}

#[test]
fn the_version_names_us_and_what_we_are_compatible_with() {
    let Action::PrintVersion(text) = line(&["--version"]).action else { panic!("not a version") };
    assert!(text.starts_with("kube-proxy-rs v") && text.contains("v1.36.2"), "{text}");
    let Action::PrintVersion(text) = line(&["--version=raw"]).action else { panic!("not a version") };
    for key in ["platform=linux/", " commit=", " date=", " compiler=", " flags=debug,dynamic"] {
        assert!(text.contains(key), "{key} is missing in {text}");
    }
}

#[test]
fn render_takes_the_flags_on_either_side_of_it() {
    let line = line(&[
        "--masquerade-all",
        "render",
        "--mode",
        "iptables",
        "--manifests",
        "a",
        "--hostname_override=n",
    ]);
    assert!(line.gave("proxy-mode") && line.gave("manifests") && line.gave("masquerade-all"));
    let config = resolve(&line, None, "host-1").unwrap().config;
    assert_eq!(config.node_name, "n");
    assert_eq!(config.sources.manifests, [PathBuf::from("a")]);
    assert!(config.iptables.masquerade_all);
}

/// One change to the default configuration per field of the file.
#[rstest]
#[case("mode: ipvs", |c: &mut Config| { c.mode = Mode::Ipvs; c.sync.min_period = Duration::ZERO; })]
#[case("hostnameOverride: File-Node", |c: &mut Config| c.node_name = "file-node".to_owned())]
#[case("bindAddress: '::'", |c: &mut Config| {
    c.bind_address = "::".parse().unwrap();
    c.healthz = Some("[::]:10256".parse().unwrap());
    c.metrics = Some("[::1]:10249".parse().unwrap());
})]
#[case("healthzBindAddress: 1.2.3.4", |c: &mut Config| c.healthz = Some("1.2.3.4:10256".parse().unwrap()))]
#[case("metricsBindAddress: 0.0.0.0:99", |c: &mut Config| c.metrics = Some("0.0.0.0:99".parse().unwrap()))]
#[case("metricsBindAddress: ''", |_: &mut Config| {})]
#[case("bindAddressHardFail: true", |c: &mut Config| c.bind_address_hard_fail = true)]
#[case("bindAddressHardFail: yes", |c: &mut Config| c.bind_address_hard_fail = true)]
#[case("clientConnection: {acceptContentTypes: a}", |c: &mut Config| c.sources.accept_content_types = "a".into())]
#[case("clientConnection: {kubeconfig: /k, qps: 0, burst: 0, contentType: ''}", |c: &mut Config| c.sources.kubeconfig = Some("/k".into()))]
#[case("clusterCIDR: 10.1.0.0/16,fd00::/64", |c: &mut Config| {
    c.detect_local = DetectLocal::ClusterCidr(PerFamily {
        v4: Some("10.1.0.0/16".parse().unwrap()),
        v6: Some("fd00::/64".parse().unwrap()),
    });
    c.external_ips.cluster_cidrs = vec!["10.1.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()];
})]
#[case("detectLocalMode: NodeCIDR", |c: &mut Config| c.detect_local = DetectLocal::NodeCidr)]
#[case("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: b}", |c: &mut Config| {
    c.detect_local = DetectLocal::BridgeInterface("b".to_owned());
})]
#[case("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: p}", |c: &mut Config| {
    c.detect_local = DetectLocal::InterfaceNamePrefix("p".to_owned());
})]
#[case("nodePortAddresses: [primary]", |c: &mut Config| c.node_ports.addresses = NodePortAddressesSetting::Primary)]
#[case("oomScoreAdj: 0", |c: &mut Config| c.oom_score_adj = 0)]
#[case("iptables: {masqueradeBit: 0}", |c: &mut Config| c.iptables.masquerade_bit = 0)]
#[case("iptables: {masqueradeAll: true}", |c: &mut Config| c.iptables.masquerade_all = true)]
#[case("nftables: {masqueradeAll: true, masqueradeBit: 3, syncPeriod: 1m, minSyncPeriod: 2s}", |_: &mut Config| {})]
#[case("mode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 3, syncPeriod: 1m, minSyncPeriod: 2s}", |c: &mut Config| {
    c.mode = Mode::Nftables;
    c.node_ports.addresses = NodePortAddressesSetting::Primary;
    (c.iptables.masquerade_all, c.iptables.masquerade_bit) = (true, 3);
    c.sync = SyncConfig { period: secs(60), min_period: secs(2) };
})]
#[case("iptables: {localhostNodePorts: false}", |c: &mut Config| c.iptables.localhost_node_ports = false)]
#[case("iptables: {syncPeriod: 1m, minSyncPeriod: 0s}", |c: &mut Config| c.sync.period = secs(60))]
#[case("iptables: {minSyncPeriod: 10s}", |c: &mut Config| c.sync.min_period = secs(10))]
#[case("ipvs: {syncPeriod: 1m, minSyncPeriod: 5s}", |_: &mut Config| {})]
#[case("mode: ipvs\nipvs: {syncPeriod: 1m, minSyncPeriod: 5s}\niptables: {syncPeriod: 7s}", |c: &mut Config| {
    c.mode = Mode::Ipvs;
    c.sync = SyncConfig { period: secs(60), min_period: secs(5) };
})]
#[case("ipvs: {scheduler: lc}", |c: &mut Config| c.ipvs.scheduler = "lc".to_owned())]
#[case("ipvs: {excludeCIDRs: [10.0.0.0/8]}", |c: &mut Config| c.ipvs.exclude_cidrs = vec!["10.0.0.0/8".parse().unwrap()])]
#[case("ipvs: {strictARP: true}", |c: &mut Config| c.ipvs.strict_arp = true)]
#[case("ipvs: {tcpTimeout: 1s, tcpFinTimeout: 2s, udpTimeout: 3s}", |c: &mut Config| {
    c.ipvs.tcp_timeout = secs(1);
    c.ipvs.tcp_fin_timeout = secs(2);
    c.ipvs.udp_timeout = secs(3);
})]
#[case("conntrack: {maxPerCore: 0, min: 0}", |c: &mut Config| { c.conntrack.max_per_core = 0; c.conntrack.min = 0; })]
#[case("conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}", |c: &mut Config| {
    c.conntrack.tcp_established_timeout = Duration::ZERO;
    c.conntrack.tcp_close_wait_timeout = Duration::ZERO;
})]
#[case("conntrack: {tcpBeLiberal: true, udpTimeout: 1s, udpStreamTimeout: 2s}", |c: &mut Config| {
    c.conntrack.tcp_be_liberal = true;
    c.conntrack.udp_timeout = secs(1);
    c.conntrack.udp_stream_timeout = secs(2);
})]
#[case("logging: {format: json, verbosity: 3, flushFrequency: 5000000000}", |c: &mut Config| {
    c.logging = LoggingConfig { verbosity: 3, format: LogFormat::Json };
})]
#[case("showHiddenMetricsForVersion: '1.35'", |_: &mut Config| {})]
fn a_field_changes_its_setting_and_nothing_else(#[case] body: &str, #[case] change: fn(&mut Config)) {
    let mut want = default_config();
    change(&mut want);
    let resolved = from_file(body);
    assert_eq!(resolved.config, want);
    assert_eq!(resolved.notices, Vec::<String>::new());
}

#[rstest]
#[case("winkernel: {networkName: x}", "winkernel in the configuration file has no effect on Linux")]
#[case("windowsRunAsService: true", "windowsRunAsService in")]
#[case("portRange: 1-2", "portRange in")]
#[case("featureGates: {A: true}", "feature gate A=true has no effect")]
#[case("enableProfiling: true", "setting enableProfiling")]
#[case("configSyncPeriod: 1m", "setting configSyncPeriod")]
#[case("logging: {vmodule: [{filePattern: a, verbosity: 2}]}", "setting logging.vmodule")]
#[case("logging: {options: {json: {infoBufferSize: 1Mi}}}", "setting logging.options.json.infoBufferSize")]
#[case("nope: 1", "config.yaml:3: nope: there is no such field, it is ignored")]
#[case("iptables:\n  nope: 1", "config.yaml:4: iptables.nope: there is no such field, it is ignored")]
#[case(
    "iptables: {MasqueradeBit: 3}",
    "config.yaml:3: iptables.MasqueradeBit: there is no such field, it is ignored; masqueradeBit is one"
)]
#[case(
    "oomScoreAdj: -999\noomScoreAdj: -999",
    "config.yaml:4: oomScoreAdj: stands here a second time; the last value counts"
)]
#[case(
    "mode: iptables\n---\nmode: ipvs",
    "config.yaml:4: only the first YAML document of a file counts; what follows here is ignored"
)]
#[case("mode: iptables\n---\n\t{ [", "config.yaml:")]
fn a_field_without_effect_is_accepted_and_said(#[case] body: &str, #[case] notice: &str) {
    assert_it_only_says(notice, &from_file(body));
}

#[test]
fn of_duplicate_fields_the_last_one_counts() {
    assert_eq!(from_file("oomScoreAdj: 1\noomScoreAdj: 2").config.oom_score_adj, 2);
}

#[test]
fn nulls_and_zeroes_as_kubeadm_writes_them_mean_the_defaults() {
    let body = r#"
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: "", qps: 0}
clusterCIDR: ""
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null,
  tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s,
  tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
windowsRunAsService: false
"#;
    let resolved = from_file(body);
    assert_eq!((resolved.config, resolved.notices), (default_config(), Vec::new()));
}

#[test]
fn the_file_may_be_json() {
    let text =
        format!(r#"{{"apiVersion":"{}","kind":"{}","mode":"ipvs"}}"#, record::API_VERSION, record::KIND);
    let resolved = resolve(&line(&["--config=c"]), Some(&config_file(text)), "host-1").unwrap();
    assert_eq!(resolved.config.mode, Mode::Ipvs);
}

#[rstest]
#[case(
    "kind: KubeProxyConfiguration",
    "config.yaml:1: apiVersion: is missing; it must be kubeproxy.config.k8s.io/v1alpha1"
)]
#[case(
    "\napiVersion: kubeproxy.config.k8s.io/v1alpha1",
    "config.yaml:2: kind: is missing; it must be KubeProxyConfiguration"
)]
#[case("", "config.yaml:1: apiVersion: is missing; it must be kubeproxy.config.k8s.io/v1alpha1")]
#[case(
    "apiVersion: v1\nkind: Pod\nmode: {}",
    "config.yaml:1: apiVersion: must be kubeproxy.config.k8s.io/v1alpha1, but is \"v1\""
)]
#[case("a: [", "config.yaml:1: a[0]: cannot be read as YAML: a bracket is not closed, or a comma is missing")]
#[case(
    "a:\n\tb: c",
    "config.yaml:2: a: cannot be read as YAML: a tab stands where only spaces may; indent with spaces"
)]
fn a_file_that_cannot_be_read_is_fatal(#[case] text: &str, #[case] want: &str) {
    let error = resolve(&line(&["--config=c"]), Some(&config_file(text)), "host-1").unwrap_err();
    assert_eq!(error.to_string(), want);
}

#[test]
fn a_file_that_is_not_text_names_the_line() {
    let error = resolve(&line(&["--config=c"]), Some(&config_file(b"a: b\nc: \xff".to_vec())), "host-1");
    assert_eq!(error.unwrap_err().to_string(), "config.yaml:2: is not text in UTF-8");
}

#[test]
fn with_a_file_the_other_flags_are_ignored_and_named() {
    let args =
        ["--config=c", "--mode=ipvs", "--masquerade-all", "--master=https://m", "--hostname-override=Flag"];
    let resolved =
        resolve(&line(&args), Some(&file("hostnameOverride: file\nlogging: {verbosity: 2}")), "host")
            .unwrap();
    assert_eq!(resolved.config.mode, Mode::Iptables);
    assert_eq!(resolved.config.node_name, "flag");
    assert_eq!(resolved.config.sources.master.as_deref(), Some("https://m"));
    assert_eq!(resolved.config.logging.verbosity, 2);
    let notices = [
        "flag --masquerade-all is ignored because --config is given",
        "flag --proxy-mode is ignored because --config is given",
    ];
    assert_eq!(resolved.notices, notices);
}

#[test]
fn logging_flags_beat_the_file_and_their_vmodule_rules_come_first() {
    let args = [
        "--config=c",
        "-v=5",
        "--vmodule=a=1",
        "--log-flush-frequency=1s",
        "--log-text-split-stream",
        "--logging-format=text",
    ];
    let body = "logging: {verbosity: 2, format: json, vmodule: [{filePattern: b, verbosity: 2}]}";
    let logging = record_of(&args, Some(body)).logging;
    assert_eq!((logging.verbosity, logging.format.as_str()), (5, "text"));
    let patterns: Vec<_> = logging.vmodule.iter().map(|rule| rule.file_pattern.as_str()).collect();
    assert_eq!(patterns, ["a", "b"]);
    assert!(logging.options.text.split_stream);
    assert_eq!(logging.flush_frequency, GoDuration::from_secs(1));
}

#[test]
fn a_blank_node_name_is_an_error() {
    assert_eq!(complaints(&["--hostname-override=  "]), ["empty hostname-override is invalid"]);
    let error = resolve(&line(&[]), None, " ").unwrap_err();
    assert_eq!(error.complaints, ["empty hostname is invalid"]);
}

#[rstest]
#[case(&["--iptables-masquerade-bit=32"], "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]")]
#[case(&["--mode=ipvs", "--ipvs-tcp-timeout=-1s"], "KubeProxyIPVSConfiguration.TCPTimeout: Invalid value: \"-1s\": must be greater")]
#[case(&["--mode=ipvs", "--ipvs-tcpfin-timeout=-1s"], "KubeProxyIPVSConfiguration.TCPFinTimeout:")]
#[case(&["--mode=ipvs", "--ipvs-udp-timeout=-1s"], "KubeProxyIPVSConfiguration.UDPTimeout:")]
#[case(&["--mode=ipvs", "--ipvs-exclude-cidrs=10.0.0.0/8,x"], "KubeProxyIPVSConfiguration.ExcludeCidrs[1]: Invalid value: \"x\"")]
#[case(&["--conntrack-max-per-core=-1"], "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.MaxPerCore: Invalid value: -1")]
#[case(&["--conntrack-min=-1"], "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.Min:")]
#[case(&["--conntrack-tcp-timeout-established=-1s"], "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPEstablishedTimeout:")]
#[case(&["--conntrack-tcp-timeout-close-wait=-1s"], "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.TCPCloseWaitTimeout:")]
#[case(&["--conntrack-udp-timeout=-1s"], "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPTimeout:")]
#[case(&["--conntrack-udp-timeout-stream=-1s"], "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.UDPStreamTimeout:")]
#[case(&["--oom-score-adj=1001"], "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 1001: must be within the range [-1000, 1000]")]
#[case(&["--mode=auto"], "Mode.ProxyMode: Invalid value: \"auto\": depends on the node's kernel")]
#[case(&["--mode=userspace"], "Mode.ProxyMode: Invalid value: \"userspace\": must be iptables, ipvs, nftables, auto or blank")]
#[case(&["--kube-api-burst=-1"], "ClientConnection.Burst: Invalid value: -1")]
#[case(&["--config-sync-period=0s"], "ConfigSyncPeriod: Invalid value: \"0s\": must be greater than 0")]
#[case(&["--iptables-sync-period=1s", "--iptables-min-sync-period=2s"], "SyncPeriod: Invalid value: \"1s\": must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod")]
#[case(&["--iptables-min-sync-period=-1s"], "MinSyncPeriod: Invalid value: \"-1s\"")]
#[case(&["--nodeport-addresses=primary,10.0.0.0/8"], "NodePortAddressesSetting[0]: Invalid value: \"primary\"")]
#[case(&["--nodeport-addresses=10.0.0.1"], "NodePortAddressesSetting[0]: Invalid value: \"10.0.0.1\": must be a valid CIDR block")]
#[case(&["--show-hidden-metrics-for-version=1.2"], "ShowHiddenMetricsForVersion: Invalid value: \"1.2\"")]
#[case(&["--detect-local-mode=Guess"], "DetectLocalMode: Invalid value: \"Guess\"")]
#[case(&["--detect-local-mode=BridgeInterface"], "DetectLocalConfiguration.InterfaceName:")]
#[case(&["--detect-local-mode=InterfaceNamePrefix"], "DetectLocalConfiguration.InterfacePrefix:")]
#[case(&["--cluster-cidr=x"], "DetectLocalConfiguration.ClusterCIDRs: Invalid value: \"x\"")]
#[case(&["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"], "DetectLocalConfiguration.ClusterCIDRs: Invalid value: \"10.0.0.0/8,11.0.0.0/8\"")]
#[case(&["--logging-format=xml"], "logging.format: Invalid value: \"xml\"")]
#[case(&["--log-flush-frequency=0"], "logging.flushFrequency: Invalid value: \"0s\": must be greater than 0")]
#[case(&["--logging-format=json", "--vmodule=a=1"], "logging.vmodule: Invalid value: \"a=1\"")]
fn a_setting_that_cannot_be_is_named_by_its_path(#[case] args: &[&str], #[case] want: &str) {
    let complaints = complaints(args);
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    let want = format!("KubeProxyConfiguration.{want}");
    assert!(complaints[0].starts_with(&want), "{complaints:?}");
}

#[rstest]
#[case("bindAddress: host", "BindAddress: Invalid value: \"host\"")]
#[case("healthzBindAddress: host", "HealthzBindAddress: Invalid value: \"host\": must be IP:port")]
#[case(
    "metricsBindAddress: '1.2.3.4:0'",
    "MetricsBindAddress: Invalid value: \"1.2.3.4:0\": must be a valid port"
)]
#[case(
    "iptables: {syncPeriod: -1s, minSyncPeriod: -2s}",
    "SyncPeriod: Invalid value: \"-1s\": must be greater than 0"
)]
fn a_field_that_cannot_be_is_named_by_its_path(#[case] body: &str, #[case] want: &str) {
    let error = resolve(&line(&["--config=c"]), Some(&file(body)), "host-1").unwrap_err();
    let want = format!("KubeProxyConfiguration.{want}");
    assert!(error.complaints[0].starts_with(&want), "{error}");
}

#[test]
fn all_complaints_come_at_once() {
    let found =
        complaints(&["--oom-score-adj=2000", "--mode=x", "--conntrack-min=-1", "--hostname-override= "]);
    assert_eq!(found.len(), 4, "{found:?}");
}

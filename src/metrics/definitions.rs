//! What there is to measure: names, help texts, labels and buckets.

use crate::model::Build;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Result,
    exponential_buckets,
};

const FAMILY: &[&str] = &["ip_family"];
const TABLE: &[&str] = &["table", "ip_family"];
pub(super) struct SyncMetrics {
    pub(super) duration: HistogramVec,
    pub(super) full_duration: HistogramVec,
    pub(super) partial_duration: HistogramVec,
    pub(super) last: GaugeVec,
    pub(super) last_queued: GaugeVec,
    pub(super) network_programming: HistogramVec,
    pub(super) no_local_endpoints: IntGaugeVec,
    pub(super) refused_services: IntGaugeVec,
    pub(super) refused_endpoints: IntGauge,
    pub(super) over_bounds: IntGauge,
    pub(super) contested_addresses: IntGauge,
    pub(super) contested_node_ports: IntGauge,
    pub(super) contested_external_ips: IntGaugeVec,
    pub(super) drift: IntCounterVec,
}

pub(super) struct ChangeMetrics {
    pub(super) endpoints_pending: IntGauge,
    pub(super) endpoints_total: IntCounter,
    pub(super) services_pending: IntGauge,
    pub(super) services_total: IntCounter,
}

pub(super) struct IptablesMetrics {
    pub(super) restore_failures: IntCounterVec,
    pub(super) partial_restore_failures: IntCounterVec,
    pub(super) rules_total: IntGaugeVec,
    pub(super) rules_last: IntGaugeVec,
}

pub(super) struct IpvsMetrics {
    pub(super) servers: IntGaugeVec,
    pub(super) failures: IntCounterVec,
    pub(super) operations: IntCounterVec,
    pub(super) operation_failures: IntCounterVec,
    pub(super) connections: IntGaugeVec,
}

pub(super) struct NftablesMetrics {
    pub(super) failures: IntCounterVec,
    pub(super) cleanup_failures: IntCounterVec,
    pub(super) elements: IntGaugeVec,
}

pub(super) struct ConntrackMetrics {
    pub(super) duration: HistogramVec,
    pub(super) deleted: IntCounterVec,
}

/// What clients ask of us, and we of the API server.
pub(super) struct RequestMetrics {
    pub(super) healthz: IntCounterVec,
    pub(super) livez: IntCounterVec,
    pub(super) client_requests: IntCounterVec,
    pub(super) client_duration: HistogramVec,
}

impl SyncMetrics {
    pub(super) fn new() -> Result<Self> {
        let gauge = |name, help| IntGauge::with_opts(opts(name, help));
        Ok(SyncMetrics {
            duration: histogram("sync_proxy_rules_duration_seconds", "Duration of a sync", sync_buckets()?)?,
            full_duration: histogram(
                "sync_full_proxy_rules_duration_seconds",
                "Duration of a full sync",
                sync_buckets()?,
            )?,
            partial_duration: histogram(
                "sync_partial_proxy_rules_duration_seconds",
                "Duration of a partial sync",
                sync_buckets()?,
            )?,
            last: GaugeVec::new(
                opts("sync_proxy_rules_last_timestamp_seconds", "Time of the last successful sync"),
                FAMILY,
            )?,
            last_queued: GaugeVec::new(
                opts("sync_proxy_rules_last_queued_timestamp_seconds", "Time a sync was last asked for"),
                FAMILY,
            )?,
            network_programming: histogram(
                "network_programming_duration_seconds",
                "Time from the change of an endpoint to the rules that follow from it",
                network_programming_buckets(),
            )?,
            no_local_endpoints: IntGaugeVec::new(
                opts(
                    "sync_proxy_rules_no_local_endpoints_total",
                    "Service ports with a Local traffic policy, endpoints elsewhere and none on this node",
                ),
                &["traffic_policy", "ip_family"],
            )?,
            refused_services: IntGaugeVec::new(
                opts("rs_refused_services", "Services left out because the kernel refuses them"),
                FAMILY,
            )?,
            refused_endpoints: gauge("rs_refused_endpoints", "Endpoints left out because of their address")?,
            over_bounds: gauge("rs_service_bounds_exceeded", "Bounds that Services ask for more than")?,
            contested_addresses: IntGauge::with_opts(opts(
                "rs_contested_addresses",
                "Addresses with a port that Services ask for and that another Service has",
            ))?,
            contested_node_ports: IntGauge::with_opts(opts(
                "rs_contested_node_ports",
                "Node ports and health-check node ports that Services ask for and that another Service has",
            ))?,
            contested_external_ips: IntGaugeVec::new(
                opts(
                    "rs_contested_external_ips",
                    "External addresses that Services ask for and that belong to nodes, pods or other Services",
                ),
                &["outcome"],
            )?,
            drift: IntCounterVec::new(
                opts("rs_drift_total", "Kernel objects that another program removed or changed"),
                &["object", "ip_family"],
            )?,
        })
    }
}

impl ChangeMetrics {
    pub(super) fn new() -> Result<Self> {
        Ok(ChangeMetrics {
            endpoints_pending: IntGauge::with_opts(opts(
                "sync_proxy_rules_endpoint_changes_pending",
                "EndpointSlice changes that wait for a sync",
            ))?,
            endpoints_total: IntCounter::with_opts(opts(
                "sync_proxy_rules_endpoint_changes_total",
                "EndpointSlice changes seen",
            ))?,
            services_pending: IntGauge::with_opts(opts(
                "sync_proxy_rules_service_changes_pending",
                "Service changes that wait for a sync",
            ))?,
            services_total: IntCounter::with_opts(opts(
                "sync_proxy_rules_service_changes_total",
                "Service changes seen",
            ))?,
        })
    }
}

impl IptablesMetrics {
    pub(super) fn new() -> Result<Self> {
        Ok(IptablesMetrics {
            restore_failures: IntCounterVec::new(
                opts("sync_proxy_rules_iptables_restore_failures_total", "Failed runs of iptables-restore"),
                FAMILY,
            )?,
            partial_restore_failures: IntCounterVec::new(
                opts("sync_proxy_rules_iptables_partial_restore_failures_total", "Failed partial syncs"),
                FAMILY,
            )?,
            rules_total: IntGaugeVec::new(
                opts("sync_proxy_rules_iptables_total", "Rules in the kernel that are ours"),
                TABLE,
            )?,
            rules_last: IntGaugeVec::new(
                opts("sync_proxy_rules_iptables_last", "Rules that the last sync wrote"),
                TABLE,
            )?,
        })
    }
}

impl IpvsMetrics {
    pub(super) fn new() -> Result<Self> {
        Ok(IpvsMetrics {
            servers: IntGaugeVec::new(
                opts("ipvs_servers", "Virtual and real servers of ours in the kernel"),
                &["kind", "ip_family"],
            )?,
            failures: IntCounterVec::new(
                opts("ipvs_sync_failures_total", "Syncs that failed and were tried again"),
                FAMILY,
            )?,
            operations: IntCounterVec::new(
                opts("ipvs_operations_total", "Changes of virtual and real servers asked of the kernel"),
                &["operation", "ip_family"],
            )?,
            operation_failures: IntCounterVec::new(
                opts("ipvs_operation_failures_total", "Those that the kernel refused"),
                &["operation", "ip_family", "reason"],
            )?,
            connections: IntGaugeVec::new(
                opts("ipvs_connections", "Connections that IPVS remembers, by Service"),
                &["namespace", "service", "ip_family"],
            )?,
        })
    }
}

impl NftablesMetrics {
    pub(super) fn new() -> Result<Self> {
        Ok(NftablesMetrics {
            failures: IntCounterVec::new(
                opts(
                    "sync_proxy_rules_nftables_sync_failures_total",
                    "Syncs that failed and were tried again",
                ),
                FAMILY,
            )?,
            cleanup_failures: IntCounterVec::new(
                opts(
                    "sync_proxy_rules_nftables_cleanup_failures_total",
                    "Deletions of an earlier proxy's chains that failed and were tried again",
                ),
                FAMILY,
            )?,
            elements: IntGaugeVec::new(
                opts("rs_nftables_elements", "Elements of ours in sets and maps"),
                FAMILY,
            )?,
        })
    }
}

impl ConntrackMetrics {
    pub(super) fn new() -> Result<Self> {
        Ok(ConntrackMetrics {
            duration: histogram(
                "conntrack_reconciler_sync_duration_seconds",
                "Duration of a clean-up of stale flows",
                sync_buckets()?,
            )?,
            deleted: IntCounterVec::new(
                opts("conntrack_reconciler_deleted_entries_total", "Stale flows deleted"),
                FAMILY,
            )?,
        })
    }
}

impl RequestMetrics {
    pub(super) fn new() -> Result<Self> {
        let client_buckets = vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
        Ok(RequestMetrics {
            healthz: IntCounterVec::new(opts("proxy_healthz_total", "Answers of /healthz"), &["code"])?,
            livez: IntCounterVec::new(opts("proxy_livez_total", "Answers of /livez"), &["code"])?,
            client_requests: IntCounterVec::new(
                Opts::new("rest_client_requests_total", "[ALPHA] Requests to the API server"),
                &["code", "host", "method"],
            )?,
            client_duration: HistogramVec::new(
                HistogramOpts::new(
                    "rest_client_request_duration_seconds",
                    "[ALPHA] Time to the API server's answer",
                )
                .buckets(client_buckets),
                &["host", "verb"],
            )?,
        })
    }
}

pub(super) fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("kubeproxy_{name}"), format!("[ALPHA] {help}"))
}

fn histogram(name: &str, help: &str, buckets: Vec<f64>) -> Result<HistogramVec> {
    let opts = HistogramOpts::new(format!("kubeproxy_{name}"), format!("[ALPHA] {help}")).buckets(buckets);
    HistogramVec::new(opts, FAMILY)
}

pub(super) fn sync_buckets() -> Result<Vec<f64>> {
    exponential_buckets(0.001, 2.0, 15)
}

/// Quarter seconds, seconds to a minute, 5 s to two minutes, 30 s to five. The bound 0 is of no
/// use, but kube-proxy has it and identical bounds can be added up across nodes.
pub(super) fn network_programming_buckets() -> Vec<f64> {
    let steps = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(f64::from);
    [0.0, 0.25, 0.5]
        .into_iter()
        .chain(steps(1, 59, 1))
        .chain(steps(60, 115, 5))
        .chain(steps(120, 300, 30))
        .collect()
}

/// A constant 1 whose labels say what runs here, in our own terms.
pub(super) fn build_info(build: Build<'_>) -> Result<IntGaugeVec> {
    let labels = [
        ("commit", build.commit),
        ("compiler", build.compiler),
        ("date", build.date),
        ("flags", build.flags),
        ("version", build.version),
    ];
    constant(
        "kubeproxy_build_info",
        "[ALPHA] A constant 1 whose labels say how this program was built",
        &labels,
    )
}

fn constant(name: &str, help: &str, labels: &[(&str, &str)]) -> Result<IntGaugeVec> {
    let (names, values): (Vec<_>, Vec<_>) = labels.iter().copied().unzip();
    let info = IntGaugeVec::new(Opts::new(name, help), &names)?;
    info.with_label_values(&values).set(1);
    Ok(info)
}

/// The same in the terms of Kubernetes. Labels without an equivalent stay empty.
pub(super) fn kubernetes_build_info(build: Build<'_>) -> Result<IntGaugeVec> {
    let mut release = build.compatible_with.split('.');
    let (major, minor) = (release.next().unwrap_or(""), release.next().unwrap_or(""));
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let git_version = format!("v{}+kube-proxy-rs.{}", build.compatible_with, build.version);
    let (commit, tree_state) = match build.commit {
        "" => ("", ""),
        commit => commit.strip_suffix("-dirty").map_or((commit, "clean"), |commit| (commit, "dirty")),
    };
    let labels = [
        ("build_date", build.date),
        ("compiler", "rustc"),
        ("git_commit", commit),
        ("git_tree_state", tree_state),
        ("git_version", git_version.as_str()),
        ("go_version", ""),
        ("major", major),
        ("minor", minor),
        ("platform", platform.as_str()),
    ];
    let help =
        "[ALPHA] A constant 1 whose labels name the Kubernetes release we stand in for and our own version";
    constant("kubernetes_build_info", help, &labels)
}

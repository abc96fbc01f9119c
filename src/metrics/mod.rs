//! Everything we measure: names, help texts, buckets, registration and encoding.
//!
//! Names, labels and buckets are kube-proxy's, so that dashboards and alerts carry over; help
//! texts are our own. Nothing here decides when something is measured: `sync`, `health` and the
//! API client call the accessors. Metrics of another mode can be recorded but are not shown.

mod definitions;
mod process;
mod services;
mod slis;

pub use process::{ReadProcess, ReadWatches};
pub use services::{ServiceMetrics, Subject};
pub use slis::Slis;

use crate::model::{Build, IpFamily};
use definitions::{
    ChangeMetrics, ConntrackMetrics, IptablesMetrics, IpvsMetrics, NftablesMetrics, RequestMetrics,
    SyncMetrics, build_info, kubernetes_build_info,
};
use process::{Pulled, PulledByResource, WatchNumber, process_metrics};
use prometheus::core::Collector;
use prometheus::{Encoder, Gauge, Histogram, IntCounter, IntGauge, Registry, Result, TextEncoder};
use std::sync::Arc;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The selection of metrics that a mode shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricSet {
    /// Mode iptables.
    Iptables,
    /// Mode ipvs.
    Ipvs,
    /// Mode nftables.
    Nftables,
}

/// The tables of iptables that we write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `filter`.
    Filter,
    /// `nat`.
    Nat,
}

/// The two traffic policies that can find no endpoint on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// `internalTrafficPolicy`.
    Internal,
    /// `externalTrafficPolicy`.
    External,
}

/// Reads a netfilter accounting counter's packets; `None` when there is no such counter.
pub type ReadAccounting = Arc<dyn Fn(&str) -> Option<u64> + Send + Sync>;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    sync: SyncMetrics,
    changes: ChangeMetrics,
    iptables: IptablesMetrics,
    ipvs: IpvsMetrics,
    nftables: NftablesMetrics,
    conntrack: ConntrackMetrics,
    requests: RequestMetrics,
    services: ServiceMetrics,
    slis: Slis,
}

/// Names of the netfilter accounting counters behind the two packet counters.
const INVALID_DROPPED: &str = "ct_state_invalid_dropped_pkts";
const LOCALHOST_ACCEPTED: &str = "localhost_nps_accepted_pkts";

impl Metrics {
    /// Creates all metrics and registers those of the mode.
    ///
    /// # Errors
    /// When two metrics have the same name, which a test rules out.
    pub fn new(set: MetricSet, build: Build<'_>, process: ReadProcess) -> Result<Metrics> {
        let metrics = Metrics {
            registry: Registry::new(),
            sync: SyncMetrics::new()?,
            changes: ChangeMetrics::new()?,
            iptables: IptablesMetrics::new()?,
            ipvs: IpvsMetrics::new()?,
            nftables: NftablesMetrics::new()?,
            conntrack: ConntrackMetrics::new()?,
            requests: RequestMetrics::new()?,
            services: ServiceMetrics::new()?,
            slis: Slis::new()?,
        };
        metrics.register_all(set)?;
        metrics.registry.register(Box::new(process_metrics(process)?))?;
        metrics.registry.register(Box::new(kubernetes_build_info(build)?))?;
        metrics.registry.register(Box::new(build_info(build)?))?;
        Ok(metrics)
    }

    fn register_all(&self, set: MetricSet) -> Result<()> {
        let Metrics { sync, changes, iptables, ipvs, nftables, conntrack, requests, services, .. } = self;
        self.register([&sync.duration, &sync.network_programming, &conntrack.duration])?;
        self.register([&sync.last, &sync.last_queued])?;
        self.register([&sync.no_local_endpoints, &sync.refused_services])?;
        self.register([&sync.refused_endpoints])?;
        self.register([&sync.over_bounds, &sync.contested_addresses, &sync.contested_node_ports])?;
        self.register([&sync.contested_external_ips])?;
        self.register([&sync.drift])?;
        self.register([&changes.endpoints_pending, &changes.services_pending])?;
        self.register([&changes.endpoints_total, &changes.services_total])?;
        self.register([&conntrack.deleted, &iptables.restore_failures])?;
        self.register([&requests.healthz, &requests.livez, &requests.client_requests])?;
        self.register([&requests.client_duration])?;
        self.register([&services.frontends.connections, &services.endpoints.connections])?;
        self.register([&services.dropped])?;
        if set != MetricSet::Ipvs {
            self.register([&sync.full_duration, &sync.partial_duration])?;
        }
        if set == MetricSet::Nftables {
            self.register([&nftables.failures, &nftables.cleanup_failures])?;
            self.register([&nftables.elements])?;
        }
        if set == MetricSet::Iptables {
            self.register([&iptables.partial_restore_failures])?;
            self.register([&iptables.rules_total, &iptables.rules_last])?;
        }
        if set == MetricSet::Ipvs {
            self.register([&ipvs.servers, &ipvs.connections])?;
            self.register([&ipvs.failures, &ipvs.operations, &ipvs.operation_failures])?;
            self.register([&services.frontends.packets, &services.frontends.bytes])?;
            self.register([&services.endpoints.packets, &services.endpoints.bytes])?;
        }
        Ok(())
    }

    fn register<C: Collector + Clone + 'static, const N: usize>(&self, collectors: [&C; N]) -> Result<()> {
        collectors.into_iter().try_for_each(|collector| self.registry.register(Box::new(collector.clone())))
    }

    /// Shows the packet counters of the rules that count with netfilter accounting, read at every
    /// scrape. Only for mode iptables, and only where the kernel has accounting.
    ///
    /// # Errors
    /// When called twice.
    pub fn register_accounting(&self, read: &ReadAccounting) -> Result<()> {
        for (name, help, counter) in [
            (
                "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
                "[ALPHA] Packets dropped because connection tracking took them for invalid",
                INVALID_DROPPED,
            ),
            (
                "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
                "[ALPHA] Packets accepted at node ports of the loopback address",
                LOCALHOST_ACCEPTED,
            ),
        ] {
            self.registry.register(Box::new(Pulled::counter(name, help, {
                let read = Arc::clone(read);
                Box::new(move || read(counter))
            })?))?;
        }
        Ok(())
    }

    /// Shows how the watches of the API server are doing, read at every scrape.
    ///
    /// # Errors
    /// When called twice.
    pub fn register_watches(&self, read: &ReadWatches) -> Result<()> {
        let gauges: [(&str, &str, WatchNumber); 2] = [
            (
                "rs_api_watch_connected",
                "1 while the watch of the resource at the API server is open, else 0",
                |watch| f64::from(u8::from(watch.connected)),
            ),
            (
                "rs_api_watch_age_seconds",
                "How long the watch of the resource has not been open, so how old what is known of it is; 0 while it is open",
                |watch| watch.age_seconds,
            ),
        ];
        for (name, help, number) in gauges {
            let (name, help) = (format!("kubeproxy_{name}"), format!("[ALPHA] {help}"));
            let gauge = PulledByResource::new(&name, &help, Arc::clone(read), number)?;
            self.registry.register(Box::new(gauge))?;
        }
        Ok(())
    }

    /// Everything registered, in the text format.
    ///
    /// # Errors
    /// When a collector returns something that cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// What `/metrics/slis` shows.
    #[must_use]
    pub fn slis(&self) -> &Slis {
        &self.slis
    }

    /// Duration of every sync, whether it succeeded or not.
    #[must_use]
    pub fn sync_duration(&self, family: IpFamily) -> Histogram {
        self.sync.duration.with_label_values(&[family.as_str()])
    }

    /// The same for full syncs only.
    #[must_use]
    pub fn full_sync_duration(&self, family: IpFamily) -> Histogram {
        self.sync.full_duration.with_label_values(&[family.as_str()])
    }

    /// The same for partial syncs only.
    #[must_use]
    pub fn partial_sync_duration(&self, family: IpFamily) -> Histogram {
        self.sync.partial_duration.with_label_values(&[family.as_str()])
    }

    /// When the last sync succeeded, in seconds since 1970.
    #[must_use]
    pub fn last_sync(&self, family: IpFamily) -> Gauge {
        self.sync.last.with_label_values(&[family.as_str()])
    }

    /// When a sync was last asked for, in seconds since 1970.
    #[must_use]
    pub fn last_queued(&self, family: IpFamily) -> Gauge {
        self.sync.last_queued.with_label_values(&[family.as_str()])
    }

    /// From an endpoint's change to the rules that follow from it.
    #[must_use]
    pub fn network_programming_duration(&self, family: IpFamily) -> Histogram {
        self.sync.network_programming.with_label_values(&[family.as_str()])
    }

    /// Service ports whose Local policy finds no endpoint on this node although there are some.
    #[must_use]
    pub fn no_local_endpoints(&self, policy: PolicyKind, family: IpFamily) -> IntGauge {
        let policy = match policy {
            PolicyKind::Internal => "internal",
            PolicyKind::External => "external",
        };
        self.sync.no_local_endpoints.with_label_values(&[policy, family.as_str()])
    }

    /// Services that are left out because the kernel refuses them.
    #[must_use]
    pub fn refused_services(&self, family: IpFamily) -> IntGauge {
        self.sync.refused_services.with_label_values(&[family.as_str()])
    }

    /// Endpoints that are left out because of the range that their address is in.
    #[must_use]
    pub fn refused_endpoints(&self) -> &IntGauge {
        &self.sync.refused_endpoints
    }

    /// Bounds of one Service that Services ask for more than.
    #[must_use]
    pub fn over_bounds(&self) -> &IntGauge {
        &self.sync.over_bounds
    }

    /// Addresses with a port that Services ask for and that another Service has.
    #[must_use]
    pub fn contested_addresses(&self) -> &IntGauge {
        &self.sync.contested_addresses
    }

    /// Ports of the node that Services ask for, for traffic or health checks, and that another Service has.
    #[must_use]
    pub fn contested_node_ports(&self) -> &IntGauge {
        &self.sync.contested_node_ports
    }

    /// Reserved external and load-balancer IPs that Services ask for: those that
    /// are refused, or those that are only reported.
    #[must_use]
    pub fn contested_external_ips(&self, refused: bool) -> IntGauge {
        let outcome = if refused { "refused" } else { "reported" };
        self.sync.contested_external_ips.with_label_values(&[outcome])
    }

    /// Kernel objects of ours of a kind that another program removed or changed.
    #[must_use]
    pub fn drift(&self, object: &str, family: IpFamily) -> IntCounter {
        self.sync.drift.with_label_values(&[object, family.as_str()])
    }

    /// EndpointSlice changes that wait for a sync.
    #[must_use]
    pub fn endpoint_changes_pending(&self) -> &IntGauge {
        &self.changes.endpoints_pending
    }

    /// EndpointSlice changes seen.
    #[must_use]
    pub fn endpoint_changes(&self) -> &IntCounter {
        &self.changes.endpoints_total
    }

    /// Service changes that wait for a sync.
    #[must_use]
    pub fn service_changes_pending(&self) -> &IntGauge {
        &self.changes.services_pending
    }

    /// Service changes seen.
    #[must_use]
    pub fn service_changes(&self) -> &IntCounter {
        &self.changes.services_total
    }

    /// Failed runs of the restore command.
    #[must_use]
    pub fn restore_failures(&self, family: IpFamily) -> IntCounter {
        self.iptables.restore_failures.with_label_values(&[family.as_str()])
    }

    /// Failed partial syncs.
    #[must_use]
    pub fn partial_restore_failures(&self, family: IpFamily) -> IntCounter {
        self.iptables.partial_restore_failures.with_label_values(&[family.as_str()])
    }

    /// Rules of ours in a table.
    #[must_use]
    pub fn iptables_rules(&self, table: Table, family: IpFamily) -> IntGauge {
        self.iptables.rules_total.with_label_values(&[table.as_str(), family.as_str()])
    }

    /// Rules that the last sync wrote to a table.
    #[must_use]
    pub fn iptables_rules_last(&self, table: Table, family: IpFamily) -> IntGauge {
        self.iptables.rules_last.with_label_values(&[table.as_str(), family.as_str()])
    }

    /// Changes of virtual and real servers that the kernel was asked for.
    #[must_use]
    pub fn ipvs_operations(&self, operation: &str, family: IpFamily) -> IntCounter {
        self.ipvs.operations.with_label_values(&[operation, family.as_str()])
    }

    /// Those of them that the kernel refused.
    #[must_use]
    pub fn ipvs_operation_failures(&self, operation: &str, family: IpFamily, reason: &str) -> IntCounter {
        self.ipvs.operation_failures.with_label_values(&[operation, family.as_str(), reason])
    }

    /// Sets how many connections IPVS remembers for a Service; `None` takes the series away.
    pub fn set_ipvs_connections(&self, namespace: &str, service: &str, family: IpFamily, count: Option<u64>) {
        let labels = [namespace, service, family.as_str()];
        match count {
            Some(count) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.ipvs.connections.with_label_values(&labels).set(count);
            }
            // It fails only when there is no such series.
            None => drop(self.ipvs.connections.remove_label_values(&labels)),
        }
    }

    /// Our servers in the kernel; the kind is `virtual`, `real` or `draining`.
    #[must_use]
    pub fn ipvs_servers(&self, kind: &str, family: IpFamily) -> IntGauge {
        self.ipvs.servers.with_label_values(&[kind, family.as_str()])
    }

    /// Elements of ours in nf_tables.
    #[must_use]
    pub fn nftables_elements(&self, family: IpFamily) -> IntGauge {
        self.nftables.elements.with_label_values(&[family.as_str()])
    }

    /// Syncs of nftables mode that failed.
    #[must_use]
    pub fn nftables_failures(&self, family: IpFamily) -> IntCounter {
        self.nftables.failures.with_label_values(&[family.as_str()])
    }

    /// Deletions of an earlier proxy's chains that failed, in nftables mode.
    #[must_use]
    pub fn nftables_cleanup_failures(&self, family: IpFamily) -> IntCounter {
        self.nftables.cleanup_failures.with_label_values(&[family.as_str()])
    }

    /// Syncs of IPVS mode that failed.
    #[must_use]
    pub fn ipvs_failures(&self, family: IpFamily) -> IntCounter {
        self.ipvs.failures.with_label_values(&[family.as_str()])
    }

    /// What Services carried.
    #[must_use]
    pub fn services(&self) -> &ServiceMetrics {
        &self.services
    }

    /// Duration of one clean-up of stale flows.
    #[must_use]
    pub fn conntrack_duration(&self, family: IpFamily) -> Histogram {
        self.conntrack.duration.with_label_values(&[family.as_str()])
    }

    /// Stale flows deleted.
    #[must_use]
    pub fn conntrack_deleted(&self, family: IpFamily) -> IntCounter {
        self.conntrack.deleted.with_label_values(&[family.as_str()])
    }

    /// Answers of `/healthz`, by status code.
    #[must_use]
    pub fn healthz(&self, code: u16) -> IntCounter {
        self.requests.healthz.with_label_values(&[&code.to_string()])
    }

    /// Answers of `/livez`, by status code.
    #[must_use]
    pub fn livez(&self, code: u16) -> IntCounter {
        self.requests.livez.with_label_values(&[&code.to_string()])
    }

    /// Requests to the API server; `code` is `<error>` when there was no answer.
    #[must_use]
    pub fn client_requests(&self, code: &str, method: &str, host: &str) -> IntCounter {
        self.requests.client_requests.with_label_values(&[code, host, method])
    }

    /// Time to the API server's answer.
    #[must_use]
    pub fn client_request_duration(&self, verb: &str, host: &str) -> Histogram {
        self.requests.client_duration.with_label_values(&[host, verb])
    }
}

impl Table {
    fn as_str(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::definitions::{network_programming_buckets, sync_buckets};
    use super::*;
    use crate::model::{Counts, Protocol, ServiceName, ServicePortName, Traffic, WatchState};
    use std::collections::BTreeMap;

    const BUILD: Build<'static> = Build {
        version: "0.1.0",
        compatible_with: "1.36.2",
        commit: "abc-dirty",
        date: "2026-01-02T03:04:05Z",
        compiler: "rustc 1.95.0",
        flags: "release,static",
    };

    fn facts() -> crate::model::ProcessUse {
        crate::model::ProcessUse {
            cpu_seconds: 1.25,
            resident_bytes: 4096,
            virtual_bytes: 8192,
            virtual_max_bytes: u64::MAX,
            open_fds: 7,
            max_fds: 1024,
            start_time_seconds: 1_700_000_000.5,
        }
    }

    fn metrics(set: MetricSet) -> Metrics {
        let metrics = Metrics::new(set, BUILD, Box::new(|| Some(facts()))).unwrap();
        metrics.register_accounting(&(Arc::new(|_: &str| Some(3_u64)) as ReadAccounting)).unwrap();
        metrics
    }

    /// Uses every metric once, so that the labelled ones appear.
    fn touch(metrics: &Metrics) {
        let family = IpFamily::V4;
        for histogram in [
            metrics.sync_duration(family),
            metrics.full_sync_duration(family),
            metrics.partial_sync_duration(family),
            metrics.network_programming_duration(family),
            metrics.conntrack_duration(family),
            metrics.client_request_duration("GET", "h"),
        ] {
            histogram.observe(0.002);
        }
        metrics.last_sync(family).set(1.5);
        metrics.last_queued(family).set(2.5);
        metrics.refused_services(family).set(1);
        metrics.refused_endpoints().set(1);
        metrics.over_bounds().set(1);
        metrics.contested_addresses().set(1);
        metrics.contested_node_ports().set(1);
        metrics.contested_external_ips(true).set(1);
        metrics.no_local_endpoints(PolicyKind::Internal, family).set(1);
        metrics.no_local_endpoints(PolicyKind::External, family).set(2);
        metrics.iptables_rules(Table::Filter, family).set(4);
        metrics.iptables_rules_last(Table::Nat, family).set(5);
        for counter in [
            metrics.restore_failures(family),
            metrics.partial_restore_failures(family),
            metrics.conntrack_deleted(family),
            metrics.ipvs_failures(family),
            metrics.nftables_failures(family),
            metrics.nftables_cleanup_failures(family),
            metrics.drift("chain", family),
            metrics.healthz(200),
            metrics.livez(503),
            metrics.client_requests("200", "GET", "h"),
        ] {
            counter.inc();
        }
        metrics.ipvs_servers("virtual", family).set(1);
        metrics.nftables_elements(family).set(1);
        metrics.ipvs_operations("add_real", family).inc();
        metrics.ipvs_operation_failures("add_real", family, "missing").inc();
        metrics.set_ipvs_connections("shop", "web", family, Some(7));
        let port = ServicePortName {
            service: ServiceName::new("shop", "web"),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        let counts = Counts { connections: 3, traffic: Some(Traffic { bytes_in: 70, ..Traffic::default() }) };
        metrics.services().add(&port, Subject::Frontend("cluster_ip"), family, &counts);
        metrics.services().add(&port, Subject::Endpoint("10.0.0.1:80"), family, &counts);
        metrics.services().set_dropped(family, 9);
        metrics.endpoint_changes_pending().set(1);
        metrics.service_changes_pending().set(1);
        metrics.endpoint_changes().inc();
        metrics.service_changes().inc();
    }

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.encode().unwrap()).unwrap()
    }

    /// Name and type of everything in the output.
    fn types(text: &str) -> BTreeMap<&str, &str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }

    const ALL_MODES: &[(&str, &str)] = &[
        ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge"),
        ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge"),
        ("kubeproxy_network_programming_duration_seconds", "histogram"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter"),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge"),
        ("kubeproxy_sync_proxy_rules_service_changes_total", "counter"),
        ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "counter"),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge"),
        ("kubeproxy_rs_refused_services", "gauge"),
        ("kubeproxy_rs_refused_endpoints", "gauge"),
        ("kubeproxy_rs_service_bounds_exceeded", "gauge"),
        ("kubeproxy_rs_contested_addresses", "gauge"),
        ("kubeproxy_rs_contested_node_ports", "gauge"),
        ("kubeproxy_rs_contested_external_ips", "gauge"),
        ("kubeproxy_rs_drift_total", "counter"),
        ("kubeproxy_rs_service_connections_total", "counter"),
        ("kubeproxy_rs_endpoint_connections_total", "counter"),
        ("kubeproxy_rs_service_metrics_dropped_series", "gauge"),
        ("kubeproxy_proxy_healthz_total", "counter"),
        ("kubeproxy_proxy_livez_total", "counter"),
        ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram"),
        ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter"),
        ("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", "counter"),
        ("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", "counter"),
        ("kubernetes_build_info", "gauge"),
        ("kubeproxy_build_info", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_max_fds", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_start_time_seconds", "gauge"),
        ("process_virtual_memory_bytes", "gauge"),
        ("process_virtual_memory_max_bytes", "gauge"),
        ("rest_client_request_duration_seconds", "histogram"),
        ("rest_client_requests_total", "counter"),
    ];

    const IPTABLES_ONLY: &[(&str, &str)] = &[
        ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", "counter"),
        ("kubeproxy_sync_proxy_rules_iptables_total", "gauge"),
        ("kubeproxy_sync_proxy_rules_iptables_last", "gauge"),
    ];

    const NFTABLES_ONLY: &[(&str, &str)] = &[
        ("kubeproxy_rs_nftables_elements", "gauge"),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "counter"),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter"),
    ];

    const IPVS_ONLY: &[(&str, &str)] = &[
        ("kubeproxy_ipvs_connections", "gauge"),
        ("kubeproxy_ipvs_operation_failures_total", "counter"),
        ("kubeproxy_ipvs_operations_total", "counter"),
        ("kubeproxy_ipvs_servers", "gauge"),
        ("kubeproxy_ipvs_sync_failures_total", "counter"),
        ("kubeproxy_rs_service_packets_total", "counter"),
        ("kubeproxy_rs_service_bytes_total", "counter"),
        ("kubeproxy_rs_endpoint_packets_total", "counter"),
        ("kubeproxy_rs_endpoint_bytes_total", "counter"),
    ];

    #[test]
    fn each_mode_shows_its_metrics_and_no_others() {
        let iptables = metrics(MetricSet::Iptables);
        touch(&iptables);
        let want: BTreeMap<_, _> = ALL_MODES.iter().chain(IPTABLES_ONLY).copied().collect();
        assert_eq!(types(&text(&iptables)), want);
        let nftables = metrics(MetricSet::Nftables);
        touch(&nftables);
        let want: BTreeMap<_, _> = ALL_MODES.iter().chain(NFTABLES_ONLY).copied().collect();
        assert_eq!(types(&text(&nftables)), want);
        let ipvs = metrics(MetricSet::Ipvs);
        touch(&ipvs);
        let want: BTreeMap<_, _> = ALL_MODES.iter().chain(IPVS_ONLY).copied().collect();
        assert_eq!(types(&text(&ipvs)), want);
    }

    #[test]
    fn every_metric_has_a_row_in_the_documentation() {
        let document = include_str!("../../docs/metrics.md");
        for (name, _) in ALL_MODES.iter().chain(IPTABLES_ONLY).chain(IPVS_ONLY) {
            assert!(document.contains(&format!("`{name}`")), "docs/metrics.md lacks {name}");
        }
    }

    #[test]
    fn series_carry_upstreams_labels() {
        let metrics = metrics(MetricSet::Iptables);
        touch(&metrics);
        let text = text(&metrics);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"16.384\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0\"} 0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.5",
            "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"filter\"} 4",
            "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"} 5",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 2",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "kubeproxy_iptables_ct_state_invalid_dropped_packets_total 3",
            "rest_client_requests_total{code=\"200\",host=\"h\",method=\"GET\"} 1",
            "process_cpu_seconds_total 1.25",
            "process_start_time_seconds 1700000000.5",
            "process_open_fds 7",
            "kubeproxy_build_info{commit=\"abc-dirty\",compiler=\"rustc 1.95.0\",date=\"2026-01-02T03:04:05Z\",flags=\"release,static\",version=\"0.1.0\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("git_version=\"v1.36.2+kube-proxy-rs.0.1.0\""), "{text}");
        assert!(text.contains("major=\"1\",minor=\"36\""), "{text}");
        assert!(text.contains("git_commit=\"abc\",git_tree_state=\"dirty\""), "{text}");
    }

    #[test]
    fn labelled_metrics_appear_with_their_first_use() {
        let text = text(&metrics(MetricSet::Iptables));
        assert!(!text.contains("kubeproxy_sync_proxy_rules_duration_seconds"));
        assert!(text.contains("\nkubeproxy_sync_proxy_rules_endpoint_changes_total 0\n"));
    }

    #[test]
    fn sync_buckets_double_from_a_millisecond() {
        let buckets = sync_buckets().unwrap();
        assert_eq!(buckets.len(), 15);
        assert!(buckets.windows(2).all(|pair| (pair[1] / pair[0] - 2.0).abs() < 1e-9));
    }

    #[test]
    fn network_programming_buckets_are_upstreams() {
        let buckets = network_programming_buckets();
        assert_eq!(buckets.len(), 3 + 59 + 12 + 7);
        assert_eq!(buckets[..5], [0.0, 0.25, 0.5, 1.0, 2.0]);
        assert_eq!(buckets[60..64], [58.0, 59.0, 60.0, 65.0]);
        assert_eq!(buckets[72..], [110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0]);
    }

    #[test]
    fn each_watch_shows_whether_it_is_open_and_how_old_what_is_known_is() {
        let metrics = metrics(MetricSet::Iptables);
        let watch = |resource: &str, connected, age_seconds| WatchState {
            resource: resource.to_owned(),
            connected,
            age_seconds,
            ..WatchState::default()
        };
        let watches = [watch("services", true, 0.0), watch("nodes", false, 45.5)];
        metrics.register_watches(&(Arc::new(move || watches.to_vec()) as ReadWatches)).unwrap();
        let text = text(&metrics);
        for line in [
            "kubeproxy_rs_api_watch_connected{resource=\"services\"} 1",
            "kubeproxy_rs_api_watch_connected{resource=\"nodes\"} 0",
            "kubeproxy_rs_api_watch_age_seconds{resource=\"services\"} 0",
            "kubeproxy_rs_api_watch_age_seconds{resource=\"nodes\"} 45.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let metrics = Metrics::new(MetricSet::Iptables, BUILD, Box::new(|| None)).unwrap();
        metrics.register_accounting(&(Arc::new(|_: &str| None) as ReadAccounting)).unwrap();
        let text = text(&metrics);
        assert!(!text.contains("process_"), "{text}");
        assert!(!text.contains("packets_total"), "{text}");
    }
}

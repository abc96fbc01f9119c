//! Tells metrics, health and the log what the loop does.

use super::contention::{Contention, Turn};
use super::post_sync::PostSyncResult;
use super::report::{Notice, NoticeSeverity, PassKind, PassOutcome, Recorder, SyncReport};
use crate::backend::{Applied, Deviation, Drift, KernelObjectKind, ObjectCount, Refusal, is_tool_failure};
use crate::health::{Clock, Doubtful, PortTaken, ProxyHealth, RefusedObject};
use crate::metrics::{Metrics, PolicyKind, Table};
use crate::model::{
    Bound, FrontendKind, IpFamily, NodeFacts, PerFamily, ServiceName, SourceProblem, findings,
    node_port_words,
};
use crate::state::{FrontendConflict, OverBound, ReservedClaim, Tracker};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Objects changed by other programs that the log names at once.
const MOST_SHOWN: usize = 20;

/// The recorder of the running program.
pub struct MetricsRecorder {
    metrics: Arc<Metrics>,
    health: Arc<ProxyHealth>,
    clock: Clock,
    tell: Box<dyn Fn(Notice)>,
    /// Events counted so far, to turn totals into increments.
    counted: (u64, u64),
    /// Families of which it has been said that their rules cannot be checked.
    unverified: PerFamily<bool>,
    /// What has been told of our Node, and of where node ports answer.
    node: NodeFacts,
    node_port_ips: PerFamily<Option<Vec<IpAddr>>>,
    /// Whether another program keeps changing what we write.
    contention: PerFamily<Contention>,
}

impl MetricsRecorder {
    /// A recorder.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, health: Arc<ProxyHealth>, clock: Clock) -> Self {
        MetricsRecorder {
            metrics,
            health,
            clock,
            tell: Box::new(|_| {}),
            counted: (0, 0),
            unverified: PerFamily::default(),
            node: NodeFacts::default(),
            node_port_ips: PerFamily::default(),
            contention: PerFamily::default(),
        }
    }

    /// The same recorder, which also tells the owners of Services and nodes.
    #[must_use]
    pub fn telling(mut self, tell: Box<dyn Fn(Notice)>) -> Self {
        self.tell = tell;
        self
    }

    fn warn(&self, service: Option<&ServiceName>, reason: &'static str, action: &'static str, note: String) {
        (self.tell)(Notice {
            service: service.cloned(),
            severity: NoticeSeverity::Warning,
            reason,
            action,
            note,
        });
    }

    fn seconds_now(&self) -> f64 {
        since_1970((self.clock)().wall).as_secs_f64()
    }

    fn record_success(&mut self, report: &SyncReport, applied: &Applied) {
        let family = report.family;
        let now = self.seconds_now();
        for triggered in &report.triggered {
            let triggered = Duration::from_millis(u64::try_from(*triggered).unwrap_or_default());
            let latency = (now - triggered.as_secs_f64()).max(0.0);
            self.metrics.network_programming_duration(family).observe(latency);
        }
        applied.objects.iter().for_each(|count| self.record_count(family, *count));
        self.health.updated(family, (self.clock)());
        self.metrics.last_sync(family).set(now);
        self.record_refusals(family, applied);
        let written: usize = applied.objects.iter().map(|count| count.written).sum();
        tracing::debug!(
            %family, kind = ?report.kind, services = report.services, written, calls = applied.calls,
            elapsed = ?report.elapsed, "synced"
        );
    }

    fn record_count(&self, family: IpFamily, count: ObjectCount) {
        let rules = |table| {
            self.metrics.iptables_rules(table, family).set(gauge(count.total));
            self.metrics.iptables_rules_last(table, family).set(gauge(count.written));
        };
        match count.kind {
            KernelObjectKind::NatRules => rules(Table::Nat),
            KernelObjectKind::FilterRules => rules(Table::Filter),
            KernelObjectKind::VirtualServers => {
                self.metrics.ipvs_servers("virtual", family).set(gauge(count.total))
            }
            KernelObjectKind::RealServers => {
                self.metrics.ipvs_servers("real", family).set(gauge(count.total))
            }
            KernelObjectKind::Elements => self.metrics.nftables_elements(family).set(gauge(count.total)),
        }
    }

    fn record_refusals(&self, family: IpFamily, applied: &Applied) {
        for refusal in applied.newly_refused() {
            tracing::error!(service = %refusal.service, %family, reason = refusal.reason, "Service refused and left out");
            let note = format!("the kernel refuses the {family} part of this Service: {}", refusal.reason);
            self.warn(Some(&refusal.service), "FailedToProgramService", "Sync", note);
            let note = format!(
                "the kernel refuses the {family} part of Service {}: {}",
                refusal.service, refusal.reason
            );
            self.warn(None, "FailedToProgramService", "Sync", note);
        }
        self.metrics.refused_services(family).set(gauge(applied.refused.len()));
        let refused = applied.refused.iter();
        let object =
            |it: &Refusal| RefusedObject { service: it.service.to_string(), reason: it.reason.clone() };
        self.health.refused(family, refused.map(object).collect());
    }

    fn record_drift(&mut self, family: IpFamily, drift: &[&Drift]) {
        let Some(first) = drift.first() else { return };
        drift.iter().for_each(|it| self.metrics.drift(it.kind.as_str(), family).inc());
        let note = match drift.len() {
            1 => first.to_string(),
            count => format!("{first}, and {} more", count - 1),
        };
        let (count, now) = (u64::try_from(drift.len()).unwrap_or(u64::MAX), (self.clock)());
        let by = drift.iter().find_map(|it| it.by.as_deref());
        self.health.drifted(family, (count, by), note.clone(), now);
        let contention = self.contention.get_mut(family);
        contention.drifted(by, now.steady);
        if contention.is_told() {
            let named: Vec<String> = drift.iter().take(MOST_SHOWN).map(ToString::to_string).collect();
            tracing::debug!(%family, what = named.join(", "), count, "changed again; written again");
        } else {
            self.tell_drift(family, drift, &note);
        }
    }

    fn tell_drift(&self, family: IpFamily, drift: &[&Drift], note: &str) {
        for it in drift.iter().take(MOST_SHOWN) {
            tracing::warn!(%family, what = %it, "changed by another program; written again");
        }
        if drift.len() > MOST_SHOWN {
            tracing::warn!(%family, what = note, "changed by another program; written again, and not all of it is named");
        }
        let note = format!("{family}: {note}; written again");
        self.warn(None, "RulesChangedByOthers", "Sync", note);
    }

    /// Tells when another program begins to change what we write each time, and when it has stopped.
    fn record_contention(&mut self, family: IpFamily) {
        let contention = self.contention.get_mut(family);
        match contention.turn((self.clock)().steady) {
            Some(Turn::Begins) => {
                let why = contention.sentence();
                tracing::error!(%family, "{why}; the debug log has what it changes from now on");
                self.health.contended(family, Some(why.clone()));
                self.warn(None, "RulesContended", "Sync", format!("{family}: {why}"));
            }
            Some(Turn::Ends) => {
                tracing::info!(%family, "no other program changes our rules any more");
                self.health.contended(family, None);
            }
            None => {}
        }
    }

    fn record_failure(&mut self, report: &SyncReport, error: &anyhow::Error) {
        let family = report.family;
        if is_tool_failure(error) {
            self.metrics.restore_failures(family).inc();
        }
        if report.kind == PassKind::Partial {
            self.metrics.partial_restore_failures(family).inc();
        }
        self.metrics.ipvs_failures(family).inc();
        self.metrics.nftables_failures(family).inc();
        self.health.failed(family, format!("{error:#}"), (self.clock)());
        tracing::error!(%family, elapsed = ?report.elapsed, error = format!("{error:#}"), "sync failed, will try again");
        self.warn(None, "FailedToSync", "Sync", format!("{family}: {error:#}"));
    }
}

/// The reasons of Events about frontends of one kind.
struct Reasons {
    conflict: &'static str,
    refused: &'static str,
}

fn reasons(kind: FrontendKind) -> Reasons {
    let (conflict, refused) = match kind {
        FrontendKind::ClusterIp => ("ClusterIPConflict", "ClusterIPRefused"),
        FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp => {
            ("ExternalIPConflict", "ExternalIPRefused")
        }
        FrontendKind::NodePort | FrontendKind::HealthCheckNodePort => ("NodePortConflict", "NodePortRefused"),
    };
    Reasons { conflict, refused }
}

impl Recorder for MetricsRecorder {
    fn queued(&mut self, family: IpFamily) {
        self.health.queued(family, (self.clock)());
        self.metrics.last_queued(family).set(self.seconds_now());
    }

    fn passed(&mut self, report: &SyncReport) {
        let elapsed = report.elapsed.as_secs_f64();
        self.metrics.sync_duration(report.family).observe(elapsed);
        match report.kind {
            PassKind::Full => self.metrics.full_sync_duration(report.family).observe(elapsed),
            PassKind::Partial => self.metrics.partial_sync_duration(report.family).observe(elapsed),
        }
        match &report.outcome {
            PassOutcome::Done(applied) => {
                *self.unverified.get_mut(report.family) = false;
                self.record_success(report, applied);
            }
            PassOutcome::Failed(error) => self.record_failure(report, error),
        }
    }

    fn post_synced(&mut self, family: IpFamily, result: &PostSyncResult) {
        let gauge = |policy, count| self.metrics.no_local_endpoints(policy, family).set(self::gauge(count));
        gauge(PolicyKind::Internal, result.no_local.internal);
        gauge(PolicyKind::External, result.no_local.external);
        self.taken(&result.taken);
        let told = self.node_port_ips.get_mut(family);
        if *told != result.node_port_ips {
            told.clone_from(&result.node_port_ips);
            match result.node_port_ips.as_deref() {
                Some([]) => tracing::warn!(%family, "node ports answer on {}", node_port_words(Some(&[]))),
                ips => {
                    tracing::info!(%family, "node ports and health checks answer on {}", node_port_words(ips))
                }
            }
        }
    }

    fn taken(&mut self, taken: &[PortTaken]) {
        for taken in taken {
            tracing::error!(
                service = %taken.service, port = taken.port, reason = taken.reason,
                "health-check node port is taken, will try again"
            );
            let note = format!(
                "failed to start the health check of {} on port {}: {}",
                taken.service, taken.port, taken.reason
            );
            self.warn(Some(&taken.service), "FailedToStartServiceHealthcheck", "Listen", note);
        }
    }

    fn verified(&mut self, family: IpFamily, found: &[Deviation]) {
        let mut drift = Vec::new();
        for finding in found {
            match finding {
                Deviation::Drift(it) => drift.push(it),
                Deviation::Outdated(what) => {
                    tracing::info!(%family, what, "the kernel is compared with what is wanted")
                }
            }
        }
        self.record_drift(family, &drift);
        self.record_contention(family);
    }

    fn unverified(&mut self, family: IpFamily, error: &anyhow::Error) {
        if std::mem::replace(self.unverified.get_mut(family), true) {
            return;
        }
        tracing::warn!(%family, error = format!("{error:#}"), "cannot verify what is in the kernel; trying again in 2 s");
    }

    fn conflicts(&mut self, conflicts: &[FrontendConflict]) {
        let reason = |conflict: &FrontendConflict| reasons(conflict.asked.kind).conflict;
        for alike in conflicts.chunk_by(|a, b| a.service == b.service && reason(a) == reason(b)) {
            let service = &alike[0].service;
            let complaint = findings(alike.iter().map(FrontendConflict::complaint));
            let complaint = format!("Service {service}: {complaint}");
            tracing::error!(%service, "{complaint}");
            self.warn(Some(service), reason(&alike[0]), "Sync", complaint);
        }
    }

    fn claims(&mut self, claims: &[ReservedClaim]) {
        let (refused, reported): (Vec<_>, Vec<_>) = claims.iter().partition(|claim| claim.refused);
        let complaint = |alike: &[&ReservedClaim]| {
            let found = findings(alike.iter().map(|claim| claim.complaint()));
            format!("Service {}: {found}", alike[0].service)
        };
        let reason = |claim: &ReservedClaim| reasons(claim.asked.kind).refused;
        for alike in refused.chunk_by(|a, b| a.service == b.service && reason(a) == reason(b)) {
            let (service, complaint) = (&alike[0].service, complaint(alike));
            tracing::error!(%service, "{complaint}");
            self.warn(Some(service), reason(alike[0]), "Sync", complaint);
        }
        for alike in reported.chunk_by(|a, b| a.service == b.service) {
            let (service, complaint) = (&alike[0].service, complaint(alike));
            tracing::warn!(%service, "{complaint}; --strict-external-ips would refuse it");
        }
    }

    fn over_bounds(&mut self, over: &[OverBound]) {
        let reason = |it: &OverBound| match it.excess.bound {
            Bound::Endpoints { .. } => "TooManyEndpoints",
            _ => "ServiceTooLarge",
        };
        for alike in over.chunk_by(|a, b| a.service == b.service && reason(a) == reason(b)) {
            let service = &alike[0].service;
            let complaint = format!("Service {service}: {}", findings(alike.iter().map(|it| it.excess)));
            tracing::error!(%service, "{complaint}");
            self.warn(Some(service), reason(&alike[0]), "Sync", complaint);
        }
    }

    fn doubted(&mut self, tracker: &Tracker) {
        let mut doubtful = Doubtful::default();
        for (slice, service, count) in tracker.refused_endpoints() {
            doubtful.refused_endpoints += usize::from(count);
            doubtful.name(|| RefusedObject {
                service: service.to_string(),
                reason: format!(
                    "EndpointSlice {slice}: not used: {count} loopback, link-local, unspecified or multicast addresses"
                ),
            });
        }
        for claim in tracker.claims() {
            match claim.refused {
                true => doubtful.refused_external_ips += 1,
                false => doubtful.reported_external_ips += 1,
            }
            doubtful.name(|| RefusedObject { service: claim.service.to_string(), reason: claim.complaint() });
        }
        for conflict in tracker.conflicts() {
            match conflict.asked.address {
                Some(_) => doubtful.contested_addresses += 1,
                None => doubtful.contested_node_ports += 1,
            }
            let service = conflict.service.to_string();
            doubtful.name(|| RefusedObject { service, reason: conflict.complaint() });
        }
        for over in tracker.over_bounds() {
            doubtful.too_large += 1;
            let service = over.service.to_string();
            doubtful.name(|| RefusedObject { service, reason: over.excess.to_string() });
        }
        self.metrics.over_bounds().set(gauge(doubtful.too_large));
        self.metrics.contested_addresses().set(gauge(doubtful.contested_addresses));
        self.metrics.contested_node_ports().set(gauge(doubtful.contested_node_ports));
        self.metrics.refused_endpoints().set(gauge(doubtful.refused_endpoints));
        self.metrics.contested_external_ips(true).set(gauge(doubtful.refused_external_ips));
        self.metrics.contested_external_ips(false).set(gauge(doubtful.reported_external_ips));
        self.health.doubted(doubtful);
    }

    fn problems(&mut self, problems: &[SourceProblem]) {
        self.health.source(problems);
    }

    fn node(&mut self, node: &NodeFacts) {
        let followed = |node: &NodeFacts| (node.addresses.clone(), node.pod_cidrs.clone());
        let (from, to) = (followed(&self.node), followed(node));
        if from != to {
            tracing::info!(
                addresses = ?to.0, pod_cidrs = ?to.1, former_addresses = ?from.0, former_pod_cidrs = ?from.1,
                "our Node's addresses and pod networks are now these; rules follow them"
            );
            self.node = node.clone();
        }
        self.health.set_node(node.is_known.then_some(node));
    }

    fn seen(&mut self, services: u64, slices: u64, pending: usize) {
        let (counted_services, counted_slices) = self.counted;
        self.metrics.service_changes().inc_by(services.saturating_sub(counted_services));
        self.metrics.endpoint_changes().inc_by(slices.saturating_sub(counted_slices));
        // A list that is cut short takes its counts back.
        self.counted = (services.max(counted_services), slices.max(counted_slices));
        self.metrics.service_changes_pending().set(gauge(pending));
        self.metrics.endpoint_changes_pending().set(gauge(pending));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Time since 1970, as trigger times have it.
#[must_use]
pub fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;

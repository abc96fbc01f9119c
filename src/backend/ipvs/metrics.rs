//! Turns what IPVS mode does, and what it counts, into metrics.

use super::ConnectionCounts;
use crate::kernel::ipvs::{Connections, Listed, Reason, Refused, Timeouts, VirtualServers};
use crate::metrics::Metrics;
use crate::model::{Counts, Frontend, RealServer, ServerOperation, ServiceName};
use anyhow::Result;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

/// A handle on IPVS that counts its operations.
pub(super) struct Counted {
    servers: Box<dyn VirtualServers>,
    metrics: Arc<Metrics>,
}

impl Counted {
    pub(super) fn new(servers: Box<dyn VirtualServers>, metrics: Arc<Metrics>) -> Self {
        Counted { servers, metrics }
    }
}

/// Why the kernel refused, in one word.
fn reason(refused: &Refused) -> &'static str {
    match refused.reason {
        Reason::NoSuchVirtualServer | Reason::NoSuchRealServer => "missing",
        Reason::Exists => "exists",
        Reason::NoSuchScheduler => "scheduler",
        _ => "other",
    }
}

impl VirtualServers for Counted {
    fn list(&mut self) -> Result<Vec<Listed>> {
        self.servers.list()
    }

    fn find(&mut self, frontend: &Frontend) -> Result<Option<Listed>> {
        self.servers.find(frontend)
    }

    fn real_servers(&mut self, frontend: &Frontend) -> Result<Connections> {
        self.servers.real_servers(frontend)
    }

    fn survey(&mut self, visit: &mut dyn FnMut(Frontend, &[RealServer])) {
        self.servers.survey(visit);
    }

    fn counts(&mut self, frontend: &Frontend) -> Result<Option<Counts>> {
        self.servers.counts(frontend)
    }

    fn real_counts(&mut self, frontend: &Frontend) -> Result<Vec<(SocketAddr, Counts)>> {
        self.servers.real_counts(frontend)
    }

    fn run(&mut self, operations: &[ServerOperation]) -> Result<Vec<Refused>> {
        for operation in operations {
            self.metrics.ipvs_operations(operation.kind(), operation.frontend().family()).inc();
        }
        let ran = self.servers.run(operations);
        let failed = |operation, at: &Frontend, reason| {
            self.metrics.ipvs_operation_failures(operation, at.family(), reason).inc();
        };
        match &ran {
            Ok(refused) => refused.iter().for_each(|no| failed(no.operation, &no.frontend, reason(no))),
            // How far the kernel came is unknown, so all count as failed.
            Err(_) => operations.iter().for_each(|it| failed(it.kind(), it.frontend(), "exchange")),
        }
        ran
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        self.servers.set_timeouts(timeouts)
    }
}

/// Shows what was counted; series of Services that are gone disappear.
pub(super) fn show(metrics: Arc<Metrics>) -> Box<dyn Fn(ConnectionCounts)> {
    let shown: RefCell<BTreeSet<ServiceName>> = RefCell::default();
    Box::new(move |census| {
        metrics
            .ipvs_servers("draining", census.family)
            .set(i64::try_from(census.draining).unwrap_or(i64::MAX));
        let Some(counts) = census.connections else { return };
        let set = |service: &ServiceName, count| {
            metrics.set_ipvs_connections(service.namespace(), service.name(), census.family, count);
        };
        counts.iter().for_each(|(service, count)| set(service, Some(*count)));
        let now: BTreeSet<ServiceName> = counts.into_iter().map(|(service, _)| service).collect();
        let before = shown.replace(now.clone());
        before.difference(&now).for_each(|service| set(service, None));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::ipvs::FakeNode;
    use crate::metrics::MetricSet;
    use crate::model::{Build, IpFamily, IpvsScheduler, Protocol, VirtualServer};

    fn metrics() -> Arc<Metrics> {
        let build = Build { version: "1", ..Build::default() };
        Arc::new(Metrics::new(MetricSet::Ipvs, build, Box::new(|| None)).unwrap())
    }

    fn series(metrics: &Metrics, name: &str) -> Vec<String> {
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        text.lines().filter_map(|line| Some(line.strip_prefix(name)?.to_owned())).collect()
    }

    #[test]
    fn operations_and_refusals_are_counted_by_kind() {
        let (node, metrics) = (FakeNode::default(), metrics());
        let mut servers = Counted::new(Box::new(node.clone()), metrics.clone());
        let at = Frontend { address: [10, 96, 0, 1].into(), port: 80, protocol: Protocol::Tcp };
        let with =
            |name| VirtualServer { scheduler: IpvsScheduler::parse(name).unwrap(), affinity_seconds: None };
        servers.run(&[ServerOperation::Add(at, with("nq")), ServerOperation::Add(at, with("rr"))]).unwrap();
        servers.run(&[ServerOperation::Add(at, with("rr"))]).unwrap();
        servers.run(&[ServerOperation::RemoveReal(at, "10.0.0.1:1".parse().unwrap())]).unwrap();
        node.state().fails_after = Some(0);
        servers.run(&[ServerOperation::Remove(at)]).unwrap_err();
        assert_eq!(
            series(&metrics, "kubeproxy_ipvs_operations_total"),
            [
                "{ip_family=\"IPv4\",operation=\"add_virtual\"} 3",
                "{ip_family=\"IPv4\",operation=\"remove_real\"} 1",
                "{ip_family=\"IPv4\",operation=\"remove_virtual\"} 1",
            ]
        );
        assert_eq!(
            series(&metrics, "kubeproxy_ipvs_operation_failures_total"),
            [
                "{ip_family=\"IPv4\",operation=\"add_virtual\",reason=\"exists\"} 1",
                "{ip_family=\"IPv4\",operation=\"add_virtual\",reason=\"scheduler\"} 1",
                "{ip_family=\"IPv4\",operation=\"remove_real\",reason=\"missing\"} 1",
                "{ip_family=\"IPv4\",operation=\"remove_virtual\",reason=\"exchange\"} 1",
            ]
        );
    }

    #[test]
    fn series_of_services_that_are_gone_disappear() {
        let metrics = metrics();
        let show = show(metrics.clone());
        let counts = |names: &[&str]| {
            Some(names.iter().map(|name| (ServiceName::new("shop", name), 3)).collect::<Vec<_>>())
        };
        let census = |connections| ConnectionCounts { family: IpFamily::V4, draining: 2, connections };
        show(census(counts(&["a", "b"])));
        show(census(None));
        assert_eq!(series(&metrics, "kubeproxy_ipvs_connections").len(), 2);
        show(census(counts(&["b"])));
        let left = ["{ip_family=\"IPv4\",namespace=\"shop\",service=\"b\"} 3"];
        assert_eq!(series(&metrics, "kubeproxy_ipvs_connections"), left);
        let draining = ["{ip_family=\"IPv4\",kind=\"draining\"} 2"];
        assert_eq!(series(&metrics, "kubeproxy_ipvs_servers"), draining);
    }
}

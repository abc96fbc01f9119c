//! What Services carried, for those who ask for it.

use super::definitions::opts;
use crate::model::{Counts, IpFamily, ServicePortName};
use prometheus::{IntCounterVec, IntGaugeVec, Result};

/// What of a Service port a series is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Traffic to a kind of frontend.
    Frontend(&'a str),
    /// Traffic to an endpoint, `ip:port` or `[ip]:port`.
    Endpoint(&'a str),
}

/// Three counters of the same subject.
pub(super) struct Carried {
    pub(super) connections: IntCounterVec,
    pub(super) packets: IntCounterVec,
    pub(super) bytes: IntCounterVec,
}

/// Counters by Service port.
pub struct ServiceMetrics {
    pub(super) frontends: Carried,
    pub(super) endpoints: Carried,
    pub(super) dropped: IntGaugeVec,
}

/// Directions as labels have them: from clients, and to clients.
const DIRECTIONS: [&str; 2] = ["in", "out"];

impl Carried {
    /// `of` is part of the names, `by` the label that tells series of one Service port apart.
    fn new(of: &str, by: &str) -> Result<Self> {
        let labels = ["namespace", "service", "port", "protocol", by, "ip_family"];
        let directed = [&labels[..], &["direction"]].concat();
        let name = |what: &str| format!("rs_{of}_{what}_total");
        Ok(Carried {
            connections: IntCounterVec::new(
                opts(&name("connections"), &format!("Connections opened, by Service port and {by}")),
                &labels,
            )?,
            packets: IntCounterVec::new(
                opts(&name("packets"), &format!("Packets, by Service port and {by}")),
                &directed,
            )?,
            bytes: IntCounterVec::new(
                opts(&name("bytes"), &format!("Bytes, by Service port and {by}")),
                &directed,
            )?,
        })
    }

    fn add(&self, labels: [&str; 6], counts: &Counts) {
        self.connections.with_label_values(&labels).inc_by(counts.connections);
        let Some(traffic) = counts.traffic else { return };
        let packets = [traffic.packets_in, traffic.packets_out];
        let bytes = [traffic.bytes_in, traffic.bytes_out];
        for (index, direction) in DIRECTIONS.into_iter().enumerate() {
            let labels = directed(labels, direction);
            self.packets.with_label_values(&labels).inc_by(packets[index]);
            self.bytes.with_label_values(&labels).inc_by(bytes[index]);
        }
    }

    /// It fails only for series that are not there.
    fn remove(&self, labels: [&str; 6]) {
        let _ = self.connections.remove_label_values(&labels);
        for direction in DIRECTIONS {
            let labels = directed(labels, direction);
            let _ = self.packets.remove_label_values(&labels);
            let _ = self.bytes.remove_label_values(&labels);
        }
    }
}

fn directed<'a>([a, b, c, d, e, f]: [&'a str; 6], direction: &'a str) -> [&'a str; 7] {
    [a, b, c, d, e, f, direction]
}

impl ServiceMetrics {
    pub(super) fn new() -> Result<Self> {
        Ok(ServiceMetrics {
            frontends: Carried::new("service", "frontend")?,
            endpoints: Carried::new("endpoint", "endpoint")?,
            dropped: IntGaugeVec::new(
                opts(
                    "rs_service_metrics_dropped_series",
                    "Frontends and endpoints not measured: beyond the limit, or not to be read",
                ),
                &["ip_family"],
            )?,
        })
    }

    fn place<'a>(
        &self,
        port: &'a ServicePortName,
        subject: Subject<'a>,
        family: IpFamily,
    ) -> (&Carried, [&'a str; 6]) {
        let (carried, by) = match subject {
            Subject::Frontend(kind) => (&self.frontends, kind),
            Subject::Endpoint(address) => (&self.endpoints, address),
        };
        let (namespace, service) = (port.service.namespace(), port.service.name());
        (carried, [namespace, service, &port.port, port.protocol.as_str(), by, family.as_str()])
    }

    /// Adds what was counted since; the series is there from then on.
    pub fn add(&self, port: &ServicePortName, subject: Subject<'_>, family: IpFamily, counts: &Counts) {
        let (carried, labels) = self.place(port, subject, family);
        carried.add(labels, counts);
    }

    /// Takes a series away.
    pub fn remove(&self, port: &ServicePortName, subject: Subject<'_>, family: IpFamily) {
        let (carried, labels) = self.place(port, subject, family);
        carried.remove(labels);
    }

    /// Says how many series are not measured.
    pub fn set_dropped(&self, family: IpFamily, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.dropped.with_label_values(&[family.as_str()]).set(count);
    }
}

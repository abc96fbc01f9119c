//! Metrics that are read at every scrape: our process, and counters kept by the kernel.

use crate::model::ProcessUse;
use prometheus::core::{Collector, Desc};
use prometheus::{Result, proto};
use std::collections::HashMap;

/// Reads what our process uses; `None` when that cannot be read.
pub type ReadProcess = Box<dyn Fn() -> Option<ProcessUse> + Send + Sync>;

type ReadValues = Box<dyn Fn() -> Option<Vec<f64>> + Send + Sync>;

/// Metrics without labels whose values are read together at every scrape.
pub(super) struct Pulled {
    metrics: Vec<(Desc, proto::MetricType)>,
    read: ReadValues,
}

impl Pulled {
    fn new(metrics: &[(&str, &str, proto::MetricType)], read: ReadValues) -> Result<Self> {
        let describe = |(name, help, kind): &(&str, &str, proto::MetricType)| {
            Desc::new((*name).to_owned(), (*help).to_owned(), Vec::new(), HashMap::new())
                .map(|desc| (desc, *kind))
        };
        Ok(Pulled { metrics: metrics.iter().map(describe).collect::<Result<_>>()?, read })
    }

    /// One counter; it is left out of the output while `read` returns nothing.
    pub(super) fn counter(
        name: &str,
        help: &str,
        read: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    ) -> Result<Self> {
        let metrics = [(name, help, proto::MetricType::COUNTER)];
        Pulled::new(&metrics, Box::new(move || read().map(|value| vec![as_float(value)])))
    }
}

impl Collector for Pulled {
    fn desc(&self) -> Vec<&Desc> {
        self.metrics.iter().map(|(desc, _)| desc).collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let values = (self.read)().unwrap_or_default();
        self.metrics.iter().zip(values).map(|((desc, kind), value)| family(desc, *kind, value)).collect()
    }
}

fn family(desc: &Desc, kind: proto::MetricType, value: f64) -> proto::MetricFamily {
    let mut metric = proto::Metric::default();
    if kind == proto::MetricType::COUNTER {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    let mut family = proto::MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

/// The standard metrics of a process.
pub(super) fn process_metrics(read: ReadProcess) -> Result<Pulled> {
    use proto::MetricType::{COUNTER, GAUGE};
    let metrics = [
        ("process_cpu_seconds_total", "User and system time of this process in seconds", COUNTER),
        ("process_max_fds", "Limit of open file descriptors", GAUGE),
        ("process_open_fds", "Open file descriptors", GAUGE),
        ("process_resident_memory_bytes", "Memory of this process in RAM", GAUGE),
        ("process_start_time_seconds", "Start of this process in seconds since 1970", GAUGE),
        ("process_virtual_memory_bytes", "Address space of this process in use", GAUGE),
        ("process_virtual_memory_max_bytes", "Limit of the address space of this process", GAUGE),
    ];
    let values = |facts: ProcessUse| {
        vec![
            facts.cpu_seconds,
            as_float(facts.max_fds),
            as_float(facts.open_fds),
            as_float(facts.resident_bytes),
            facts.start_time_seconds,
            as_float(facts.virtual_bytes),
            as_float(facts.virtual_max_bytes),
        ]
    };
    Pulled::new(&metrics, Box::new(move || read().map(values)))
}

/// The text format has floats only; beyond 2^53 the last digits are lost, as everywhere.
fn as_float(value: u64) -> f64 {
    value as f64
}

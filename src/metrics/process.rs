//! Metrics that are read at every scrape: our process, and counters kept by the kernel.

use crate::model::{ProcessUse, WatchState};
use prometheus::core::{Collector, Desc};
use prometheus::{Result, proto};
use std::collections::HashMap;
use std::sync::Arc;

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

/// Reads the watches of the API server.
pub type ReadWatches = Arc<dyn Fn() -> Vec<WatchState> + Send + Sync>;

/// A number of a watch.
pub(super) type WatchNumber = fn(&WatchState) -> f64;

/// A gauge with the label `resource`, read at every scrape.
pub(super) struct PulledByResource {
    desc: Desc,
    read: ReadWatches,
    number: WatchNumber,
}

impl PulledByResource {
    pub(super) fn new(name: &str, help: &str, read: ReadWatches, number: WatchNumber) -> Result<Self> {
        let desc = Desc::new(name.to_owned(), help.to_owned(), vec!["resource".to_owned()], HashMap::new())?;
        Ok(PulledByResource { desc, read, number })
    }
}

impl Collector for PulledByResource {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let gauge = |watch: &WatchState| {
            let mut label = proto::LabelPair::default();
            label.set_name("resource".to_owned());
            label.set_value(watch.resource.clone());
            let mut metric = metric(proto::MetricType::GAUGE, (self.number)(watch));
            metric.set_label(vec![label]);
            metric
        };
        let metrics: Vec<_> = (self.read)().iter().map(gauge).collect();
        if metrics.is_empty() {
            Vec::new()
        } else {
            vec![named(&self.desc, proto::MetricType::GAUGE, metrics)]
        }
    }
}

fn family(desc: &Desc, kind: proto::MetricType, value: f64) -> proto::MetricFamily {
    named(desc, kind, vec![metric(kind, value)])
}

fn metric(kind: proto::MetricType, value: f64) -> proto::Metric {
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
    metric
}

fn named(desc: &Desc, kind: proto::MetricType, metrics: Vec<proto::Metric>) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(metrics);
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

//! Turns what Services carried into metrics.

use super::counters::{Detail, Measured, Measurement, Measuring, Series};
use super::mode::Opening;
use crate::config::ServiceMetricsDetail;
use crate::metrics::{Metrics, Subject};
use crate::model::IpFamily;

/// What is to be measured of a family; `None` if nothing is.
pub(super) fn measuring(opening: &Opening<'_>, family: IpFamily) -> Option<Measuring> {
    let (config, metrics) = (opening.config, opening.metrics?.clone());
    let detail = match config.service_metrics {
        ServiceMetricsDetail::Off => return None,
        ServiceMetricsDetail::Frontends => Detail::Frontends,
        ServiceMetricsDetail::Endpoints => Detail::Endpoints,
    };
    let limit = usize::try_from(config.service_metrics_limit).unwrap_or(usize::MAX);
    Some(Measuring { detail, limit, tell: Box::new(move |told| show(&metrics, family, &told)) })
}

fn show(metrics: &Metrics, family: IpFamily, told: &Measurement<'_>) {
    let services = metrics.services();
    match told {
        Measurement::Grown(series, counts) => {
            with_subject(series, |subject| services.add(&series.port, subject, family, counts));
        }
        Measurement::Gone(series) => {
            with_subject(series, |subject| services.remove(&series.port, subject, family));
        }
        Measurement::LeftOut(count) => services.set_dropped(family, *count),
    }
}

fn with_subject(series: &Series, then: impl FnOnce(Subject<'_>)) {
    match series.of {
        Measured::ClusterIp => then(Subject::Frontend("cluster_ip")),
        Measured::External => then(Subject::Frontend("external")),
        Measured::Endpoint(address) => then(Subject::Endpoint(&address.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::MetricSet;
    use crate::model::{Build, Counts, Protocol, ServiceName, ServicePortName, Traffic};
    use std::sync::Arc;

    fn config(flags: &[&str]) -> Config {
        let line = crate::config::parse(flags.iter().copied()).unwrap();
        crate::config::resolve(&line, None, "node-0").unwrap().config
    }

    fn series(of: Measured) -> Series {
        let service = ServiceName::new("shop", "web");
        Series { port: ServicePortName { service, port: "http".into(), protocol: Protocol::Tcp }, of }
    }

    fn shown(metrics: &Metrics) -> Vec<String> {
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        let ours =
            text.lines().filter(|line| line.contains("service=\"web\"") || line.contains("_dropped_series{"));
        ours.map(str::to_owned).collect()
    }

    #[test]
    fn nothing_is_measured_unless_asked_for() {
        let build = Build { version: "1", ..Build::default() };
        let metrics = Arc::new(Metrics::new(MetricSet::Ipvs, build, Box::new(|| None)).unwrap());
        let measuring = |config: &Config| measuring(&Opening::to_run(config, &metrics), IpFamily::V4);
        assert!(measuring(&config(&[])).is_none());
        let asked = config(&["--service-metrics=frontends", "--service-metrics-limit=7"]);
        let asked = measuring(&asked).unwrap();
        assert_eq!((asked.detail, asked.limit), (Detail::Frontends, 7));
    }

    #[test]
    fn series_grow_and_go() {
        let build = Build { version: "1", ..Build::default() };
        let metrics = Arc::new(Metrics::new(MetricSet::Ipvs, build, Box::new(|| None)).unwrap());
        let config = config(&["--service-metrics=endpoints"]);
        let asked = measuring(&Opening::to_run(&config, &metrics), IpFamily::V6).unwrap();
        let (external, endpoint) =
            (series(Measured::External), series(Measured::Endpoint("[fd00::1]:80".parse().unwrap())));
        (asked.tell)(Measurement::Grown(&external, Counts::default()));
        for _ in 0..2 {
            let traffic = Some(Traffic { packets_in: 1, packets_out: 2, bytes_in: 3, bytes_out: 4 });
            (asked.tell)(Measurement::Grown(&endpoint, Counts { connections: 5, traffic }));
        }
        (asked.tell)(Measurement::LeftOut(6));
        let labels = |by: &str, direction: &str| {
            format!(
                "{{{direction}{by}ip_family=\"IPv6\",namespace=\"shop\",port=\"http\",protocol=\"tcp\",service=\"web\"}}"
            )
        };
        let to = |direction| labels("endpoint=\"[fd00::1]:80\",", direction);
        let (into, out) = (to("direction=\"in\","), to("direction=\"out\","));
        let want = [
            format!("kubeproxy_rs_endpoint_bytes_total{into} 6"),
            format!("kubeproxy_rs_endpoint_bytes_total{out} 8"),
            format!("kubeproxy_rs_endpoint_connections_total{} 10", to("")),
            format!("kubeproxy_rs_endpoint_packets_total{into} 2"),
            format!("kubeproxy_rs_endpoint_packets_total{out} 4"),
            format!("kubeproxy_rs_service_connections_total{} 0", labels("frontend=\"external\",", "")),
            "kubeproxy_rs_service_metrics_dropped_series{ip_family=\"IPv6\"} 6".to_owned(),
        ];
        assert_eq!(shown(&metrics), want);
        (asked.tell)(Measurement::Gone(&endpoint));
        (asked.tell)(Measurement::Gone(&external));
        assert_eq!(shown(&metrics), want[6..]);
    }
}

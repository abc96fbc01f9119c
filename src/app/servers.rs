//! The health server and the metrics server, and what their pages show.

use super::events::Events;
use crate::config::Config;
use crate::health::{self, Clock, Probe, ProxyHealth};
use crate::http::{self, Site, Slots};
use crate::metrics::Metrics;
use crate::model::UtcTime;
use crate::sync::{Notice, NoticeSeverity};
use anyhow::{Error, Result};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// What is known at start and shown as it is.
pub(super) struct Facts {
    /// The effective configuration as JSON.
    pub(super) configz: String,
    /// Every flag with its value.
    pub(super) flags: Vec<(String, String)>,
    /// When we started.
    pub(super) started: SystemTime,
    /// The pages of the metrics server that ask the loop.
    pub(super) pages: Vec<http::SlowPage>,
    /// What the servers may use.
    pub(super) slots: Arc<Slots>,
}

/// Pages for people begin so: they are not meant to be parsed.
const FOR_PEOPLE: &str = "Warning: This page is for people. Its form may change with any release.\n\n";

/// What the pages show of how we are doing.
#[derive(Clone)]
pub(super) struct Observed {
    pub(super) health: Arc<ProxyHealth>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
}

/// A server that is to be kept up.
struct Server {
    what: &'static str,
    /// The reason of the event that tells of its failure (kube-proxy).
    reason: &'static str,
    /// Without one there is no such server.
    address: Option<SocketAddr>,
    site: Site,
}

/// Serves health and metrics. Ends only with an error, and that only with
/// `--bind-address-hard-fail`, after an event about it.
pub(super) fn serve(
    config: &Config,
    facts: Facts,
    observed: Observed,
    events: Events,
) -> impl Future<Output = Result<()>> + use<> {
    let Observed { health, metrics, clock } = observed.clone();
    let count = move |probe: Probe, code: u16| match probe {
        Probe::Healthz => metrics.healthz(code).inc(),
        Probe::Livez => metrics.livez(code).inc(),
    };
    let health_server = Server {
        what: "health",
        reason: "FailedToStartProxierHealthcheck",
        address: config.healthz,
        site: Site::of(health::routes(health, clock, Box::new(count)), &facts.slots),
    };
    let (slow, slots) = (facts.pages.clone(), facts.slots.clone());
    let pages = http::diagnostics(pages(config, facts, observed));
    let metrics_server = Server {
        what: "metrics",
        reason: "FailedToStartMetricServer",
        address: config.metrics,
        site: Site { slow, ..Site::of(pages, &slots) },
    };
    let hard_fail = config.bind_address_hard_fail;
    async move {
        tokio::select! {
            failed = keep_serving(health_server, hard_fail, &events) => failed,
            failed = keep_serving(metrics_server, hard_fail, &events) => failed,
        }
    }
}

fn pages(config: &Config, facts: Facts, observed: Observed) -> http::Pages {
    let Observed { health, metrics, clock } = observed;
    let (ready, now) = (health.clone(), clock.clone());
    let (encoded, slis, pinged, reset) = (metrics.clone(), metrics.clone(), metrics.clone(), metrics);
    http::Pages {
        mode: config.mode.as_str(),
        flagz: flagz(&facts.flags),
        statusz: statusz(config, facts.started, health, clock),
        readyz: Box::new(move || ready.readiness(now()).reply()),
        configz: facts.configz,
        metrics: Box::new(move || shown(encoded.encode())),
        slis: Box::new(move || shown(slis.slis().encode())),
        reset_slis: Box::new(move || reset.slis().reset()),
        pinged: Box::new(move || pinged.slis().observe_ping()),
    }
}

fn shown(encoded: Result<Vec<u8>, impl std::fmt::Display>) -> Result<(&'static str, Vec<u8>), String> {
    encoded.map(|text| (crate::metrics::CONTENT_TYPE, text)).map_err(|error| error.to_string())
}

async fn keep_serving(server: Server, hard_fail: bool, events: &Events) -> Result<()> {
    let Server { what, reason, address, site } = server;
    let Some(address) = address else { return std::future::pending().await };
    match http::keep_serving(what, address, hard_fail, site).await {
        Ok(never) => match never {},
        Err(error) => {
            let error = Error::new(error).context(format!("the {what} server cannot listen on {address}"));
            let note = format!("{error:#}");
            let (service, severity, action) = (None, NoticeSeverity::Warning, "StartKubeProxy");
            events.tell_last(Notice { service, severity, reason, action, note }).await;
            Err(error)
        }
    }
}

fn flagz(flags: &[(String, String)]) -> String {
    let mut text = format!("kube-proxy flagz\n{FOR_PEOPLE}");
    for (name, value) in flags {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

fn statusz(
    config: &Config,
    started: SystemTime,
    health: Arc<ProxyHealth>,
    clock: Clock,
) -> Box<dyn Fn() -> String + Send + Sync> {
    let head = format!(
        "kube-proxy statusz\n{FOR_PEOPLE}\
         Version: kube-proxy-rs {}, in place of kube-proxy v{}\nMode: {}\nNode: {}\nStarted: {}\n",
        env!("CARGO_PKG_VERSION"),
        crate::config::COMPATIBLE_WITH,
        config.mode.as_str(),
        config.node_name,
        UtcTime::of(started),
    );
    let paths =
        "/configz /flagz /healthz /metrics /metrics/slis /proxyMode /readyz /status /status/service /statusz";
    Box::new(move || {
        let now = clock();
        let up = now.wall.duration_since(started).unwrap_or_default().as_secs();
        let reply = health.answer(Probe::Healthz, now);
        let state = String::from_utf8_lossy(&reply.body).into_owned();
        let ready = String::from_utf8_lossy(&health.readiness(now).reply().body).into_owned();
        format!("{head}Up: {up}s\nPaths: {paths}\n\nHealth ({}): {state}\n\n{ready}\n", reply.status)
    })
}

#[cfg(test)]
mod tests {
    use super::super::events::Reporter;
    use super::*;
    use crate::http::{Reply, bind};
    use crate::watch::client::{ClientOptions, client};
    use std::sync::Mutex;

    fn slots() -> Arc<Slots> {
        Slots::new(http::SlotLimits::within(1024))
    }

    /// An API server that notes what it is asked.
    async fn api_server() -> (Events, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let master = listener.local_addr().unwrap().to_string();
        let routes: http::Routes = Arc::new(move |request| {
            seen.lock().unwrap().push(format!("{} {}", request.method, request.path));
            Reply::json(201, "{}")
        });
        tokio::spawn(http::serve(listener, Site::of(routes, &slots())));
        let client = client(&ClientOptions { master: Some(master), kubeconfig: None }).await.unwrap();
        let reporter = Reporter { node: "node-0".to_owned(), host: "host-0".to_owned() };
        let now =
            health::Now { steady: tokio::time::Instant::now().into_std(), wall: SystemTime::UNIX_EPOCH };
        (Events::start(client, reporter, Arc::new(move || now)), asked)
    }

    fn on(address: SocketAddr) -> Server {
        let routes: http::Routes = Arc::new(|_| Reply::text(200, ""));
        Server {
            what: "health",
            reason: "FailedToStartProxierHealthcheck",
            address: Some(address),
            site: Site::of(routes, &slots()),
        }
    }

    #[tokio::test]
    async fn a_server_that_may_not_fail_ends_the_program_after_an_event_on_our_node() {
        let (events, asked) = api_server().await;
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = keep_serving(on(address), true, &events).await.unwrap_err();
        assert!(error.to_string().contains(&format!("health server cannot listen on {address}")), "{error}");
        assert_eq!(
            *asked.lock().unwrap(),
            ["POST /apis/events.k8s.io/v1/namespaces/default/events"],
            "it was sent before the end"
        );
    }
}

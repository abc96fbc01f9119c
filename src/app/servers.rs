//! The health server and the metrics server, and what their pages show.

use crate::config::Config;
use crate::health::{self, Clock, Probe, ProxyHealth};
use crate::http;
use crate::metrics::Metrics;
use crate::model::UtcTime;
use anyhow::{Context, Result};
use std::fmt::Write as _;
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
}

/// Pages for people begin so: nobody shall build a parser on them.
const FOR_PEOPLE: &str = "Warning: This page is for people. Its form may change with any release.\n\n";

/// Serves health and metrics. Ends only with an error, and that only with
/// `--bind-address-hard-fail`.
pub(super) fn serve(
    config: &Config,
    facts: Facts,
    (health, metrics): (&Arc<ProxyHealth>, &Arc<Metrics>),
    clock: &Clock,
) -> impl Future<Output = Result<()>> + use<> {
    let counted = metrics.clone();
    let count = move |probe: Probe, code: u16| match probe {
        Probe::Healthz => counted.healthz(code).inc(),
        Probe::Livez => counted.livez(code).inc(),
    };
    let health_routes = health::routes(health.clone(), clock.clone(), Box::new(count));
    let encoded = metrics.clone();
    let encode = move || match encoded.encode() {
        Ok(text) => Ok((crate::metrics::CONTENT_TYPE, text)),
        Err(error) => Err(error.to_string()),
    };
    let pages = http::Pages {
        mode: config.mode.as_str(),
        flagz: flagz(&facts.flags),
        statusz: statusz(config, facts.started, health.clone(), clock.clone()),
        configz: facts.configz,
        metrics: Box::new(encode),
    };
    let metrics_routes = http::diagnostics(pages);
    let hard = config.bind_address_hard_fail;
    let (healthz, diagnostics) = (config.healthz, config.metrics);
    async move {
        tokio::select! {
            failed = keep_serving("health", healthz, hard, health_routes) => failed,
            failed = keep_serving("metrics", diagnostics, hard, metrics_routes) => failed,
        }
    }
}

async fn keep_serving(
    what: &str,
    address: Option<std::net::SocketAddr>,
    hard_fail: bool,
    routes: http::Routes,
) -> Result<()> {
    let Some(address) = address else { return std::future::pending().await };
    match http::keep_serving(what, address, hard_fail, routes).await {
        Ok(never) => match never {},
        Err(error) => Err(error).with_context(|| format!("the {what} server cannot listen on {address}")),
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
    let paths = "/configz /flagz /healthz /metrics /proxyMode /statusz";
    Box::new(move || {
        let now = clock();
        let up = now.wall.duration_since(started).unwrap_or_default().as_secs();
        let reply = health.answer(Probe::Healthz, now);
        let state = String::from_utf8_lossy(&reply.body).into_owned();
        format!("{head}Up: {up}s\nPaths: {paths}\n\nHealth ({}): {state}\n", reply.status)
    })
}

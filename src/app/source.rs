//! Where Services, EndpointSlices and our Node come from.

use super::events::{Events, Reporter};
use crate::config::Config;
use crate::health::Clock;
use crate::metrics::Metrics;
use crate::model::WatchEvent;
use crate::sync::{Notice, Severity};
use crate::watch::api::WatchOptions;
use crate::watch::client::{ClientOptions, Connection, Exchange};
use crate::watch::{api, manifests};
use anyhow::Result;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A source that runs.
pub(super) type Source = JoinHandle<Result<()>>;

/// A source that was started, and the ways back to it.
pub(super) struct Feed {
    pub(super) source: Source,
    /// Where events for others to read go.
    pub(super) events: Events,
    /// For other requests; none where there is no API server.
    pub(super) client: Option<kube::Client>,
}

/// Starts the source of objects.
pub(super) async fn start(
    config: &Config,
    sender: mpsc::Sender<WatchEvent>,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Result<Feed> {
    let node_port_range = config.node_ports.range.0..=config.node_ports.range.1;
    if !config.sources.manifests.is_empty() {
        let options = manifests::ManifestOptions { node_name: config.node_name.clone(), node_port_range };
        let paths = config.sources.manifests.clone();
        let source = tokio::spawn(manifests::run(paths, options, sender));
        return Ok(Feed { source, events: Events::nowhere(), client: None });
    }
    let options = ClientOptions {
        kubeconfig: config.sources.kubeconfig.clone(),
        master: config.sources.master.clone(),
    };
    let counted = Arc::clone(metrics);
    let connection =
        Connection::observed(&options, Arc::new(move |exchange| count(&counted, exchange))).await?;
    tracing::info!(server = connection.url(), "watching the API server");
    let reporter = Reporter { node: config.node_name.clone(), host: super::hostname()? };
    let client = Some(connection.client());
    let events = Events::start(connection.client(), reporter, clock.clone());
    let node_name = config.node_name.clone();
    let source = tokio::spawn(async move {
        let options = WatchOptions { node_port_range, ..WatchOptions::default() };
        api::run(connection, &node_name, sender, options).await;
        Ok(())
    });
    events.tell(Notice {
        service: None,
        severity: Severity::Normal,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
    });
    Ok(Feed { source, events, client })
}

fn count(metrics: &Metrics, exchange: &Exchange) {
    let method = exchange.method.as_str();
    let code = exchange.status.map_or_else(|| "<error>".to_owned(), |status| status.to_string());
    metrics.client_requests(&code, method, &exchange.host).inc();
    metrics.client_request_duration(method, &exchange.host).observe(exchange.elapsed.as_secs_f64());
}

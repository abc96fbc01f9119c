//! Where Services, EndpointSlices and our Node come from.

use super::events::{Events, Reporter};
use crate::config::Config;
use crate::health::Clock;
use crate::metrics::Metrics;
use crate::model::WatchEvent;
use crate::sync::{Notice, Severity};
use crate::watch::api::WatchOptions;
use crate::watch::client::{ClientOptions, Connection, Exchange};
use crate::watch::manifests::ManifestOptions;
use crate::watch::{api, manifests};
use anyhow::Result;
use std::path::{Path, PathBuf};
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

/// A source whose configuration is good. Nothing has been sent to anybody.
pub(super) enum Opened {
    Manifests(Vec<PathBuf>),
    Api(Connection),
}

/// Reads how to get at the source of objects.
///
/// # Errors
/// If that makes no sense, naming the file.
pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Opened> {
    let paths = &config.sources.manifests;
    if !paths.is_empty() {
        manifests::check_paths(paths)?;
        return Ok(Opened::Manifests(paths.clone()));
    }
    let options = ClientOptions {
        kubeconfig: config.sources.kubeconfig.clone(),
        master: config.sources.master.clone(),
    };
    let counted = Arc::clone(metrics);
    let observer = Arc::new(move |exchange: &Exchange| count(&counted, exchange));
    Ok(Opened::Api(Connection::observed(&options, observer).await?))
}

/// Starts the source of objects.
pub(super) fn start(
    opened: Opened,
    config: &Config,
    sender: mpsc::Sender<WatchEvent>,
    clock: &Clock,
) -> Result<Feed> {
    let node_port_range = config.node_ports.range.0..=config.node_ports.range.1;
    let node_name = config.node_name.clone();
    let connection = match opened {
        Opened::Manifests(paths) => {
            let run_folder = config.control_socket.as_deref().and_then(Path::parent);
            let last_good = run_folder.map(|folder| folder.join("manifests"));
            let options = ManifestOptions { last_good, ..manifest_options(config) };
            let source = tokio::spawn(manifests::run(paths, options, sender));
            return Ok(Feed { source, events: Events::nowhere(), client: None });
        }
        Opened::Api(connection) => connection,
    };
    tracing::info!(server = &*connection.url(), "watching the API server");
    let reporter = Reporter { node: node_name.clone(), host: super::hostname()? };
    let client = Some(connection.client());
    let events = Events::start(connection.client(), reporter, clock.clone());
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

/// What reading manifests once depends on.
pub(super) fn manifest_options(config: &Config) -> ManifestOptions {
    ManifestOptions {
        node_name: config.node_name.clone(),
        node_port_range: config.node_ports.range.0..=config.node_ports.range.1,
        last_good: None,
    }
}

fn count(metrics: &Metrics, exchange: &Exchange) {
    let method = exchange.method.as_str();
    let code = exchange.status.map_or_else(|| "<error>".to_owned(), |status| status.to_string());
    metrics.client_requests(&code, method, &exchange.host).inc();
    metrics.client_request_duration(method, &exchange.host).observe(exchange.elapsed.as_secs_f64());
}

//! Where Services, EndpointSlices and our Node come from.

use super::events::{Events, Reporter};
use super::servers::Observed;
use crate::backend;
use crate::config::Config;
use crate::kernel::addresses::node_addresses;
use crate::metrics::Metrics;
use crate::model::{ApiServerAddress, IpFamily, WatchEvent};
use crate::sync::{Notice, NoticeSeverity};
use crate::watch::api::{Accept, WatchObserver, WatchOptions};
use crate::watch::client::{ClientOptions, Connection, Dialling, Exchange, Observers};
use crate::watch::manifests::ManifestOptions;
use crate::watch::{api, manifests};
use anyhow::Result;
use std::net::IpAddr;
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

/// Reads how to get at the source of objects. What its connections tell goes to the sender.
///
/// # Errors
/// If that makes no sense, naming the file.
pub(super) async fn open(
    config: &Config,
    metrics: &Arc<Metrics>,
    sender: &mpsc::Sender<WatchEvent>,
) -> Result<Opened> {
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
    let exchange = Arc::new(move |exchange: &Exchange| count(&counted, exchange));
    let observers = Observers { exchange, dialling: dialling(sender) };
    Ok(Opened::Api(Connection::observed(&options, observers).await?))
}

/// Starts the source of objects.
pub(super) fn start(
    opened: Opened,
    config: &Config,
    sender: mpsc::Sender<WatchEvent>,
    observed: &Observed,
) -> Result<Feed> {
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
    let events = Events::start(connection.client(), reporter, observed.clock.clone());
    let watch_options = WatchOptions { observer: observer(&connection, observed)?, ..watch_options(config) };
    let source = tokio::spawn(async move {
        api::run(connection, &node_name, sender, watch_options).await;
        Ok(())
    });
    events.tell(Notice {
        service: None,
        severity: NoticeSeverity::Normal,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
    });
    Ok(Feed { source, events, client })
}

/// Has health and metrics know how the watches are doing.
fn observer(connection: &Connection, observed: &Observed) -> Result<WatchObserver> {
    let Observed { health, metrics, clock } = observed.clone();
    health.watching(&connection.url(), clock());
    let (shown, now) = (health.clone(), clock.clone());
    let read = move || shown.api(now()).map(|api| api.watches).unwrap_or_default();
    metrics.register_watches(&(Arc::new(read) as _))?;
    let connection = connection.clone();
    Ok(WatchObserver(Arc::new(move |kind, news| {
        let now = clock();
        // A changed kubeconfig can name another server.
        health.watching(&connection.url(), now);
        health.watch(kind, news, now);
    })))
}

/// What watching the API server depends on.
pub(super) fn watch_options(config: &Config) -> WatchOptions {
    let sources = &config.sources;
    WatchOptions {
        node_port_range: config.node_ports.range.0..=config.node_ports.range.1,
        accept: Accept::of(&sources.content_type, &sources.accept_content_types),
        service_cidrs: backend::open(config.mode).facts().uses_service_cidrs,
        ..WatchOptions::default()
    }
}

/// What reading manifests once depends on.
pub(super) fn manifest_options(config: &Config) -> ManifestOptions {
    ManifestOptions {
        node_name: config.node_name.clone(),
        node_port_range: config.node_ports.range.0..=config.node_ports.range.1,
        last_good: None,
    }
}

/// Has the addresses at which the API server is about to be reached told before they are, so that no Service gets
/// one of them. A source that has ended is not kept open by this.
pub(super) fn dialling(sender: &mpsc::Sender<WatchEvent>) -> Dialling {
    let sender = sender.downgrade();
    Arc::new(move |addresses| {
        let sender = sender.upgrade();
        Box::pin(async move {
            let Some(sender) = sender else { return };
            let all = addresses.into_iter().map(|at| ApiServerAddress { at, is_own: is_own(at.ip()) });
            // The loop is gone when the program is about to end.
            let _ = sender.send(WatchEvent::ApiServer(all.collect())).await;
        })
    })
}

/// Whether an interface of this node has an address. Those on the interface of IPVS mode are Services'.
fn is_own(address: IpAddr) -> bool {
    node_addresses(IpFamily::of(address)).is_ok_and(|own| own.contains(&address))
}

fn count(metrics: &Metrics, exchange: &Exchange) {
    let method = exchange.method.as_str();
    let code = exchange.status.map_or_else(|| "<error>".to_owned(), |status| status.to_string());
    metrics.client_requests(&code, method, &exchange.host).inc();
    metrics.client_request_duration(method, &exchange.host).observe(exchange.elapsed.as_secs_f64());
}

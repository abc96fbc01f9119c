//! The API server as a source: three watches side by side, and a fourth where ServiceCIDRs are asked for.
//!
//! Of kube's own log lines, the target `kube_client::client`, which logs whole bodies, should be filtered below
//! ERROR: `stream` logs all that matters, once.

use super::client::Connection;
use super::endpoint_slices::EndpointSlices;
use super::node::OwnNode;
use super::requests::Negotiation;
pub use super::requests::{Accept, Bounds};
use super::service_cidrs::ServiceCidrs;
use super::services::Services;
use super::stream::{Closed, Shared, Stream};
use crate::model::{ObjectKind, WatchEvent, WatchNews};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// How the watches are run. The default is for production, tests are in more of a hurry.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// The pause after a first failure; it doubles with each further one ...
    pub backoff_min: Duration,
    /// ... up to this.
    pub backoff_max: Duration,
    /// Ask for the first objects as part of the watch; when that fails, they come in pages.
    pub streaming_lists: bool,
    /// How long a streaming list may take.
    pub streaming_limit: Duration,
    /// How long a list in pages may make no progress at all.
    pub stall_limit: Duration,
    /// A watch that was begun again works when it has not failed for so long. Longer than a server may take for
    /// its answer.
    pub quiet_limit: Duration,
    /// Objects in a page.
    pub page_size: u32,
    /// The server ends a watch after this time at least and twice of it at most, and we ask for the next one
    /// (client-go).
    pub watch_time: Duration,
    /// A watch that the server has not ended after this time more is left.
    pub watch_grace: Duration,
    /// What answers are asked for in.
    pub accept: Accept,
    /// What the server may send.
    pub bounds: Bounds,
    /// The node ports that the cluster is said to give out; other ports are used with a warning.
    pub node_port_range: RangeInclusive<u16>,
    /// Watch ServiceCIDRs, too.
    pub service_cidrs: bool,
    /// Told how each watch is doing, but for the one of ServiceCIDRs, without which all else works.
    pub observer: WatchObserver,
}

/// A function that is told how each watch is doing. Called between two events, so it must not block.
#[derive(Clone)]
pub struct WatchObserver(pub Arc<dyn Fn(ObjectKind, WatchNews<'_>) + Send + Sync>);

impl Default for WatchObserver {
    /// Does nothing.
    fn default() -> Self {
        WatchObserver(Arc::new(|_, _| {}))
    }
}

impl fmt::Debug for WatchObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchObserver")
    }
}

impl Default for WatchOptions {
    fn default() -> Self {
        WatchOptions {
            backoff_min: Duration::from_millis(800),
            backoff_max: Duration::from_secs(30),
            streaming_lists: true,
            streaming_limit: Duration::from_secs(30),
            stall_limit: Duration::from_secs(60),
            quiet_limit: Duration::from_secs(40),
            page_size: 250,
            watch_time: Duration::from_secs(300),
            watch_grace: Duration::from_secs(15),
            accept: Accept::default(),
            bounds: Bounds::default(),
            node_port_range: 30_000..=32_767,
            service_cidrs: false,
            observer: WatchObserver::default(),
        }
    }
}

/// Watches Services, EndpointSlices, the Node `node_name` and, if asked to, ServiceCIDRs until the receiver is dropped.
///
/// Failures are logged and retried. A full channel makes the watches wait, and the server with them.
pub async fn run(
    connection: Connection,
    node_name: &str,
    sender: mpsc::Sender<WatchEvent>,
    options: WatchOptions,
) {
    let node_name: Arc<str> = node_name.into();
    let has_service_cidrs = options.service_cidrs;
    let services = Services { node_port_range: options.node_port_range.clone() };
    let negotiation = Arc::new(Negotiation::new(options.accept.clone()));
    let shared = Arc::new(Shared { options, negotiation, answered: Notify::new() });
    let mut services = Stream::new(services, connection.clone(), sender.clone(), shared.clone());
    let slices = EndpointSlices { node_name: node_name.clone() };
    let mut slices = Stream::new(slices, connection.clone(), sender.clone(), shared.clone());
    let mut cidrs = Stream::new(ServiceCidrs, connection.clone(), sender.clone(), shared.clone());
    let cidrs = async {
        match has_service_cidrs {
            true => cidrs.follow().await,
            false => Closed,
        }
    };
    let mut node = Stream::new(OwnNode { name: node_name }, connection, sender.clone(), shared);
    tokio::select! {
        () = sender.closed() => {}
        _ = async { tokio::join!(services.follow(), slices.follow(), node.follow(), cidrs) } => {}
    }
}

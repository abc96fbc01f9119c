//! An API server that this program did not start: filled for a load test, and emptied after it.
//!
//! What is made carries our label, and all but Nodes is in a namespace of our own; nothing else is
//! touched. Requests are sent from the network namespace in which `open` was called, on a thread of
//! their own; a program in another one gets there through a relay.

mod objects;
mod relay;

use crate::watch::client::{ClientOptions, client};
use anyhow::{Context as _, Result};
use kube::config::Kubeconfig;
use objects::Objects;
use serde_json::Value;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};

pub use objects::{NAMESPACE, is_ours};

/// Writes that are under way at a time. What concerns one object always goes the same lane, because
/// a write that overtakes another would leave the older state.
const LANES: usize = 16;
/// Writes that wait in a lane; a caller with more to write waits until there is room.
const WAITING: usize = 16;

/// An API server; what was made there is removed when this is dropped.
///
/// For callers without a runtime: each of its methods blocks.
pub struct RemoteApi {
    objects: Objects,
    kubeconfig: Kubeconfig,
    lanes: Vec<mpsc::Sender<Order>>,
    runtime: Handle,
    received: Arc<AtomicU64>,
    /// The runtime's thread ends when this is dropped.
    _end: oneshot::Sender<()>,
}

/// What a lane is told.
enum Order {
    Create(Value),
    Replace(Value),
    /// Says how all went since the last report.
    Report(oneshot::Sender<Result<()>>),
}

impl RemoteApi {
    /// Connects, and makes the namespace. What a run that was killed has left there goes first.
    ///
    /// A deleted namespace is waited for as long as `patience`, then it is taken that no controller
    /// is there to empty it.
    ///
    /// # Errors
    /// When the server is not reachable, and when the namespace is there without our label.
    pub fn open(kubeconfig: &Path, patience: Duration) -> Result<RemoteApi> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let options = ClientOptions { kubeconfig: Some(kubeconfig.to_owned()), master: None };
        let objects = Objects::new(runtime.block_on(client(&options))?, patience);
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        runtime.block_on(objects.claim())?;
        let lane = || {
            let (sender, orders) = mpsc::channel(WAITING);
            runtime.spawn(work(objects.clone(), orders));
            sender
        };
        let lanes = (0..LANES).map(|_| lane()).collect();
        let (end, ended) = oneshot::channel();
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(ended));
        Ok(RemoteApi { objects, kubeconfig, lanes, runtime: handle, received: Arc::default(), _end: end })
    }

    /// Makes an object, in our namespace whatever it says itself. Failures are told by `finish`.
    ///
    /// # Errors
    /// When the writer is gone.
    pub fn create(&self, object: Value) -> Result<()> {
        self.order(objects::owned(object), Order::Create)
    }

    /// Replaces an object that was made by `create`. Failures are told by `finish`.
    ///
    /// # Errors
    /// When the writer is gone.
    pub fn replace(&self, object: Value) -> Result<()> {
        self.order(objects::owned(object), Order::Replace)
    }

    fn order(&self, object: Value, order: fn(Value) -> Order) -> Result<()> {
        let mut hasher = DefaultHasher::new();
        objects::title(&object).hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % LANES as u64)?;
        self.lanes[lane].blocking_send(order(object)).context("the writer is gone")
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The first failure since the last call.
    pub fn finish(&self) -> Result<()> {
        let ask = |lane: &mpsc::Sender<Order>| {
            let (sender, report) = oneshot::channel();
            lane.blocking_send(Order::Report(sender)).context("the writer is gone")?;
            anyhow::Ok(report)
        };
        let reports = self.lanes.iter().map(ask).collect::<Result<Vec<_>>>()?;
        // All of them are waited for, also when the first one is bad.
        let outcomes: Vec<_> = reports.into_iter().map(oneshot::Receiver::blocking_recv).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.context("the writer is gone")?)
    }

    /// How many bytes programs have received through `kubeconfig`, those of TLS included.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Writes a kubeconfig into a folder with which a program in the calling thread's network
    /// namespace gets here, and returns its path.
    ///
    /// # Errors
    /// When the kubeconfig makes no sense, or no port or file can be had.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for the program")?;
        let (kubeconfig, target) = relay::rewrite(self.kubeconfig.clone(), listener.local_addr()?)?;
        listener.set_nonblocking(true)?;
        self.runtime.spawn(relay::run(listener, target, self.received.clone()));
        let path = folder.join("kubeconfig");
        relay::write_secret(&path, &serde_json::to_string(&kubeconfig)?)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for RemoteApi {
    fn drop(&mut self) {
        // What is on its way would come after the removal. How it went was not asked for.
        let _ = self.finish();
        let objects = self.objects.clone();
        // A task, so that its connections are those of the runtime's thread.
        let removal = self.runtime.spawn(async move { objects.remove().await });
        if let Ok(Err(error)) = self.runtime.block_on(removal) {
            eprintln!("namespace {NAMESPACE} stays behind: {error:#}");
        }
    }
}

/// One lane: writes in order.
async fn work(objects: Objects, mut orders: mpsc::Receiver<Order>) {
    let mut outcome = Ok(());
    while let Some(order) = orders.recv().await {
        match order {
            Order::Report(to) => {
                let _ = to.send(std::mem::replace(&mut outcome, Ok(())));
            }
            // What went wrong once would do so ten thousand times.
            _ if outcome.is_err() => {}
            Order::Create(object) => outcome = objects.create(&object).await,
            Order::Replace(object) => outcome = objects.replace(&object).await,
        }
    }
}

#[cfg(test)]
mod tests;

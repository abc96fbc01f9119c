//! One proxy per network namespace: two would undo each other's rules without end.

use crate::config::Config;
use crate::kernel::netns_lock::{self, Holder, NetnsLock};
use crate::model::UtcTime;
use anyhow::{Error, Result, anyhow};
use std::convert::Infallible;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep};

/// The name of the lock.
const LOCK: &str = "kube-proxy-rs";
/// How long another proxy, told to end, may take to do so.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(250);

/// That no other proxy of ours runs in this network namespace, as far as that can be known.
pub(super) struct Sole(Option<NetnsLock>);

impl Sole {
    /// Waits for another one that is about to end.
    ///
    /// # Errors
    /// If it does not end; says who it is.
    pub(super) async fn claim() -> Result<Sole> {
        let deadline = Instant::now() + PATIENCE;
        let mut other = None;
        loop {
            match NetnsLock::take(LOCK) {
                Ok(Some(lock)) => return Ok(Sole(Some(lock))),
                Ok(None) if Instant::now() > deadline => return Err(still_there().await),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the lock of this network namespace cannot be taken; another kube-proxy-rs may run here");
                    return Ok(Sole(None));
                }
            }
            if other.is_none() {
                // Without an answer it has just ended, or is busy.
                other = netns_lock::holder(LOCK).await.ok();
                if other.as_ref().is_some_and(|other| !is_proxy(other)) {
                    return Ok(Sole(None));
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Tells others who has the lock. Never ends.
    pub(super) async fn describe(&self, config: &Config, started: SystemTime) -> Infallible {
        let Sole(Some(lock)) = self else { return std::future::pending().await };
        let says = format!(
            "mode {}, version {}, since {}",
            config.mode.as_str(),
            env!("CARGO_PKG_VERSION"),
            UtcTime { nanosecond: 0, ..UtcTime::of(started) }
        );
        lock.describe(&says).await
    }
}

/// Tells who has our lock, and whether that can be a proxy, for whose end we have to wait.
fn is_proxy(other: &Holder) -> bool {
    let (user, who) = (other.user, words(other));
    if other.is_root_or_us() {
        tracing::warn!(who, "another kube-proxy-rs programs this network namespace; waiting for it to end");
    } else {
        tracing::warn!(
            user,
            who,
            "a process that is no proxy holds the lock of this network namespace; starting without the lock"
        );
    }
    other.is_root_or_us()
}

async fn still_there() -> Error {
    let who = match netns_lock::holder(LOCK).await {
        Ok(holder) => words(&holder),
        Err(error) => format!("which does not answer: {error}"),
    };
    anyhow!(
        "another kube-proxy-rs programs this network namespace ({who}) and has not ended within {PATIENCE:?}; \
         only one can: stop that one first, or do not start this one"
    )
}

fn words(holder: &Holder) -> String {
    let pid = match holder.pid {
        Some(pid) => format!("pid {pid}"),
        None => "a process of another container".to_owned(),
    };
    if holder.says.is_empty() { pid } else { format!("{pid}, {}", holder.says) }
}

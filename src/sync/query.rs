//! Queries about the state that the loop owns. It answers them between passes, so that the cluster is not copied. What
//! a query reads should be little, one Service or one page: a pass waits for it.

use super::pass::FamilySync;
use crate::state::Tracker;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Who we are: constant for the life of the loop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `iptables` or `ipvs`.
    pub mode: String,
    /// The iptables tools: `nft` or `legacy`.
    pub flavor: String,
}

/// What the loop knows, lent to a query.
#[derive(Clone, Copy)]
pub struct LoopState<'a> {
    /// Mode and tools.
    pub identity: &'a Identity,
    /// The cluster.
    pub tracker: &'a Tracker,
    /// The families that are programmed.
    pub families: &'a [FamilySync],
}

/// Reads the loop's state and sends its answer where it belongs.
pub type Query = Box<dyn FnOnce(&LoopState<'_>) + Send>;

/// Asks the loop, and waits until it has answered. `None` when the loop has ended.
pub async fn ask<T: Send + 'static>(
    queries: &mpsc::Sender<Query>,
    read: impl FnOnce(&LoopState<'_>) -> T + Send + 'static,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    // A caller that waits no longer needs no answer.
    queries.send(Box::new(move |state| drop(reply.send(read(state))))).await.ok()?;
    answer.await.ok()
}

/// The next query; never, for a loop without callers.
pub(super) async fn next(queries: &mut Option<mpsc::Receiver<Query>>) -> Query {
    if let Some(receiver) = queries {
        if let Some(query) = receiver.recv().await {
            return query;
        }
        *queries = None;
    }
    std::future::pending().await
}

//! Connection tracking: what the kernel remembers of flows must not outlive the rules it was made by.
//!
//! `stale` decides which flows are to go, `reconciler` deletes them, on a thread of its own so that
//! no sync ever waits for a large table; `settings` are the limits and timeouts of kube-proxy.

mod reconciler;
pub mod settings;
mod stale;

pub use reconciler::{Reconciled, Reconciler};
pub use stale::Update;

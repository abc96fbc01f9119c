//! The loop that keeps the kernel equal to the picture: `pass` takes one family there once,
//! `runner` says when, `settle` does what follows once the rules are in force.
//!
//! Nothing here knows a mode. What a pass did leaves as a `SyncReport`,
//! and `report` turns that into metrics, health and one log line.

mod contention;
mod pass;
mod post_sync;
mod query;
mod recorder;
mod report;
mod runner;
mod schedule;

pub use pass::{FamilySync, MakeSettings, ReadAddresses};
pub use post_sync::{PostSync, PostSyncResult};
pub use query::{Identity, LoopState, Query, ask};
pub use recorder::{MetricsRecorder, since_1970};
pub use report::{Notice, NoticeSeverity, PassKind, PassOutcome, Recorder, SyncReport};
pub use runner::{Periods, Runner};

#[cfg(test)]
mod tests;

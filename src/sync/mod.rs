//! The loop that keeps the kernel equal to the picture: `pass` takes one family there once,
//! `runner` says when, `settle` does what follows once the rules are in force.
//!
//! Nothing here knows a mode. What a pass did leaves as a `SyncReport`,
//! and `report` turns that into metrics, health and one log line.

mod contention;
mod pass;
mod query;
mod record;
mod report;
mod runner;
mod schedule;
mod settle;

pub use pass::{FamilySync, MakeSettings, ReadAddresses};
pub use query::{Identity, LoopState, Query, ask};
pub use record::{Records, since_1970};
pub use report::{Notice, Outcome, PassKind, Recorder, Severity, SyncReport};
pub use runner::{Periods, Runner};
pub use settle::{Settled, Settlement};

#[cfg(test)]
mod tests;

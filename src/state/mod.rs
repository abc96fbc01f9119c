//! Events in, one picture out: folds what the sources tell into a `Snapshot` and remembers which
//! Services changed since the last pass.
//!
//! Pure: no I/O, no clock. It decides nothing about traffic, with one exception that needs memory
//! across Services: which of two claimants owns a node port (`node_ports`).

mod node_ports;
mod tracker;

pub use node_ports::NodePortConflict;
pub use tracker::{Changes, Tracker};

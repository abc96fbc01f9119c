//! Events in, one picture out: folds what the sources tell into a `Snapshot` and remembers which
//! Services changed since the last pass.
//!
//! Pure: no I/O, no clock. It decides nothing about traffic, with two exceptions that need memory
//! across Services: which of two claimants owns a node port (`node_ports`), and whether an external
//! address is somebody else's (`external_ips`).

mod external_ips;
mod node_ports;
mod tracker;

pub use external_ips::{AddressOwner, ExternalIpClaim, Reserved};
pub use node_ports::NodePortConflict;
pub use tracker::{Changes, Disputes, Seen, Tracker};

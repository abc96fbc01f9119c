//! Events in, one snapshot out: folds what the sources tell into a `Snapshot` and remembers which
//! Services changed since the last pass.
//!
//! Pure: no I/O, no clock. It decides nothing about traffic, with one exception that needs memory across
//! Services: which of them has a frontend that several claim, or that is not for Services (`allotment`).

mod allotment;
mod bounds;
mod claims;
mod endpoints;
mod owners;
mod service_cidrs;
mod tracker;

pub use bounds::OverBound;
pub use owners::{AddressOwner, Asked, FrontendConflict, Reserved, ReservedClaim};
pub use tracker::{ChangedObjects, Disputes, Seen, Tracker};

//! What load balancers and people may know about how we are doing.
//!
//! Pure bookkeeping: the loop tells when a sync was asked for and when one succeeded, and time
//! is given with every call. Listening is the business of `http`.

mod proxy;

pub use proxy::{Clock, CountReply, Now, Probe, ProxyHealth, routes};

//! What load balancers and people may know about how we are doing.
//!
//! The loop tells when a sync was asked for, when one succeeded or failed, what the kernel refuses
//! or has lost, and which Services have endpoints here; time is given with every call. Listening is the business of `http`.

mod api;
mod proxy;
mod readiness;
mod service_ports;

pub use proxy::{Clock, CountReply, Now, Probe, ProxyHealth, routes};
pub use readiness::{Doubtful, FamilyReadiness, Readiness, RefusedObject};
pub use service_ports::{PortTaken, ServicePorts};

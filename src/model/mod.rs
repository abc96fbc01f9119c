//! Our vocabulary: what the API says, in the compact form every other room works with.
//!
//! Data and small total functions only. Nothing here does I/O, knows the API's own types,
//! or decides what a packet does.

mod address;
mod allowance;
mod api_watch;
mod build;
mod counts;
mod culprit;
mod endpoint;
mod flow;
mod forwarding;
mod frontend;
mod ipvs;
mod limits;
mod node;
mod process;
mod quote;
mod service;
mod time;
mod verdict;

pub use address::{Cidr, IpFamily, PerFamily, Protocol, parse_cidr, parse_ip};
pub use allowance::{Allowance, Rate, Suppressed};
pub use api_watch::{ApiConnection, WatchNews, WatchState};
pub use build::Build;
pub use counts::{Counts, Traffic};
pub use culprit::culprit;
pub use endpoint::{EndpointFacts, EndpointSlice, Hints, SliceEndpoint, SliceName, SlicePort};
pub use flow::{ApiServerAddress, ObjectKind, ServiceRecord, Snapshot, SourceProblem, WatchEvent};
pub use forwarding::NotForwarding;
pub use frontend::{FrontendKind, Wanted};
pub use ipvs::{
    Frontend, IpvsScheduler, RealServer, SERVICES_INTERFACE, ServerOperation, SetEntry, SetType,
    VirtualServer,
};
pub use limits::{Bound, Excess, ServiceLimits};
pub use node::{NodeFacts, listed_ips, node_port_words};
pub use process::ProcessUse;
pub use quote::{cut, excerpt, findings, printable, quoted, word};
pub use service::{External, Service, ServiceName, ServicePort, ServicePortName, TrafficPolicy};
pub use time::UtcTime;
pub use verdict::Verdict;

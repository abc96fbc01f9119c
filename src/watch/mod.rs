//! Where objects come in: the API server's watches, or manifests on disk.
//!
//! Each source reads Services, EndpointSlices, our own Node and, where they are asked for, ServiceCIDRs, converts every object at once into
//! the model (`convert`) and sends it on as a [`WatchEvent`](crate::model::WatchEvent); it keeps no
//! copy of what it has read. The room knows the API's types and its defects, and nothing of what is
//! done with the objects afterwards: it folds nothing, compares nothing and decides no traffic.

pub mod api;
pub mod client;
pub mod convert;
mod endpoint_slices;
mod failure;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
#[cfg(test)]
mod hostile_tests;
pub mod lookup;
pub mod manifests;
mod node;
pub mod objects;
mod outage;
mod requests;
mod service_cidrs;
mod services;
mod stream;
mod watcher;
mod wire;

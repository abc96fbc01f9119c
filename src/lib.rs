//! A service proxy for Kubernetes nodes.
//!
//! Services and EndpointSlices go in at one end, kernel state comes out at the other, and data
//! runs one way only:
//!
//! ```text
//!  watch ──events──► state ──Snapshot──► plan ──Plan──► backend: render ► diff ► apply ──► kernel
//! ```
//!
//! `sync` drives the pipeline, `app` puts it together; `docs/architecture.md` has the map.
#![warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic; app::output does not")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods))]

pub mod app;
pub mod backend;
pub mod check;
pub mod config;
pub mod conntrack;
pub mod explain;
pub mod health;
pub mod http;
pub mod kernel;
#[cfg(test)]
mod layers;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod state;
pub mod sync;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::print_stderr, reason = "what tests leave behind is said to people")]
pub mod testing;
pub mod watch;

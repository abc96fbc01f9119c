//! What tests, benches and the end-to-end tiers share; never part of a release build.
//!
//! The room may use everything and nothing may use it, outside tests.

#![expect(clippy::disallowed_methods, reason = "tests start programs and measure time")]

pub mod cluster;
pub mod flows;
pub mod generate;
pub mod lab;
pub mod netns;
pub mod packets;
pub mod parsers;
pub mod pass;
pub mod proxy;
pub mod remote_api;
pub mod sink;
pub mod stub_api;
pub mod thorough;
pub mod traffic;

//! What tests, benches and e2e share. Never part of the shipped program.

pub mod stub_api;

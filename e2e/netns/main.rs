//! Real packets through real rules: the program runs on a node made of network namespaces.
//!
//! Needs root, iproute2 and both flavors of iptables; without them every test here fails and says
//! so. Each test has namespaces of its own, so they run side by side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "these are tests")]

mod bounds;
mod causes;
mod claims;
mod cleanup;
mod conntrack;
mod dispatch;
mod explain;
mod foreign;
mod health;
mod hostile;
mod ipvs;
mod kubeadm;
mod lifecycle;
mod localhost;
mod manifests;
mod memory;
mod nftables;
mod node_address;
mod options;
mod packets;
mod peer;
mod prometheus;
mod refusal;
mod render;
mod requests;
mod resilience;
mod running;
mod sabotage;
mod saved;
mod sequences;
mod service_metrics;
mod shapes;
mod takeover;
mod wiring;

/// The program under test.
const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy-rs");

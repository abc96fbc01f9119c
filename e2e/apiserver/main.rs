//! Watch traffic end to end: what reaches the program of what an API server has.
//!
//! `well_behaved` and `load` run against a real API server when `KUBEBUILDER_ASSETS` names a folder with
//! `etcd` and `kube-apiserver`, and else against the stub; the rest need the stub.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod certificates;
mod counts;
mod credentials;
mod encodings;
mod first_list;
mod front;
mod load;
mod log;
mod misbehaving;
mod objects;
mod picture;
mod proxies;
mod real;
mod server;
mod tls;
mod well_behaved;

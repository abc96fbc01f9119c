//! What is timed and counted: the program's own work, step by step, for the whole cluster and for one
//! change in it.

use kube_proxy_rs::backend::{Dataplane as _, VerifyDepth};
use kube_proxy_rs::testing::cluster::{Cluster, ENDPOINTS, slice};
use kube_proxy_rs::testing::stub_api::{load_service, load_slice};
use kube_proxy_rs::watch::convert;
use kube_proxy_rs::watch::objects::{EndpointSliceObject, ServiceObject};
use std::hint::black_box;
use tokio::runtime::{Builder, Runtime};

/// Runs a piece of work as often as suits the measurement.
pub(crate) type Repeat<'a> = &'a mut dyn FnMut(&mut dyn FnMut());

/// A name, and what is done with a cluster that is in sync.
pub(crate) type Case = (&'static str, fn(&mut Cluster, Repeat<'_>));

pub(crate) const CASES: [Case; 10] = [
    ("decode a Service and its slice", decode),
    ("plan, all", plan_all),
    ("plan, one Service", plan_one),
    ("render, all", render_all),
    ("render, one Service", render_one),
    ("diff, all", diff_all),
    ("diff, one Service", diff_one),
    ("pass, first sync", pass_all),
    ("pass, one change", pass_one),
    ("check", check),
];

/// The Service that changes.
const NUMBER: u32 = 42;

/// # Panics
/// If the cluster cannot be made.
pub(crate) fn cluster(services: u32) -> Cluster {
    runtime().block_on(Cluster::of(services)).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

fn decode(_: &mut Cluster, repeat: Repeat<'_>) {
    let (service, slice) =
        (load_service(NUMBER).to_string(), load_slice(NUMBER, ENDPOINTS, "node").to_string());
    repeat(&mut || {
        let service: ServiceObject = serde_json::from_str(&service).unwrap();
        let slice: EndpointSliceObject = serde_json::from_str(&slice).unwrap();
        black_box((convert::service(&service), convert::endpoint_slice(&slice, "node")));
    });
}

fn plan_all(cluster: &mut Cluster, repeat: Repeat<'_>) {
    repeat(&mut || {
        black_box(cluster.plan(None).services().map(|service| service.ports.len()).sum::<usize>());
    });
}

fn plan_one(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let changes = cluster.fold(slice(NUMBER, ENDPOINTS - 1));
    repeat(&mut || {
        let plan = cluster.plan(Some(&changes));
        black_box(changes.services.iter().filter_map(|name| plan.service(name)).count());
    });
}

fn render_all(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let plan = cluster.plan(None);
    repeat(&mut || drop(black_box(cluster.backend.render(&plan))));
}

fn render_one(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let changes = cluster.fold(slice(NUMBER, ENDPOINTS - 1));
    let plan = cluster.plan(Some(&changes));
    repeat(&mut || drop(black_box(cluster.backend.render(&plan))));
}

fn diff_all(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let desired = cluster.backend.render(&cluster.plan(None));
    repeat(&mut || drop(black_box(cluster.backend.diff(&desired))));
}

fn diff_one(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let changes = cluster.fold(slice(NUMBER, ENDPOINTS - 1));
    let desired = cluster.backend.render(&cluster.plan(Some(&changes)));
    repeat(&mut || drop(black_box(cluster.backend.diff(&desired))));
}

fn pass_all(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let runtime = runtime();
    repeat(&mut || {
        cluster.backend.forget();
        runtime.block_on(cluster.sync(None)).unwrap();
    });
}

fn pass_one(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let runtime = runtime();
    let mut endpoints = ENDPOINTS;
    repeat(&mut || {
        endpoints = 2 * ENDPOINTS - 1 - endpoints;
        let changes = cluster.fold(slice(NUMBER, endpoints));
        runtime.block_on(cluster.sync(Some(&changes))).unwrap();
    });
}

fn check(cluster: &mut Cluster, repeat: Repeat<'_>) {
    let runtime = runtime();
    repeat(&mut || {
        black_box(runtime.block_on(cluster.backend.verify(VerifyDepth::Quick)).unwrap());
    });
}

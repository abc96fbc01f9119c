//! What a load test writes, and that nothing of it stays.

use crate::server::Server;
use kube_proxy_rs::testing::remote_api::RemoteApi;
use kube_proxy_rs::testing::stub_api::{load_service, load_slice};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// There is no namespace controller to wait for.
const PATIENCE: Duration = Duration::from_millis(500);
const SERVICES: u32 = 20;

fn fill_and_change(kubeconfig: &Path) -> anyhow::Result<()> {
    let remote = RemoteApi::open(kubeconfig, PATIENCE)?;
    remote.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bench-node"}}))?;
    for number in 0..SERVICES {
        remote.create(load_service(number))?;
        remote.create(load_slice(number, 5, "elsewhere"))?;
    }
    remote.finish()?;
    for number in 0..SERVICES {
        remote.replace(load_slice(number, 4, "elsewhere"))?;
        remote.replace(load_slice(number, 5, "elsewhere"))?;
    }
    remote.finish()
}

#[tokio::test]
async fn a_second_load_test_finds_the_server_as_the_first_one_did() {
    let server = Server::start().await;
    for round in ["first", "second"] {
        let kubeconfig = server.kubeconfig();
        let run = tokio::task::spawn_blocking(move || fill_and_change(&kubeconfig));
        run.await.unwrap().unwrap_or_else(|error| panic!("{round}: {error:#}"));
    }
}

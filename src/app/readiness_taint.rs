//! `--node-readiness-taint`: nodes registered with that taint get no pods until
//! Services work there; then we take it away. Once: what is tainted later has its reasons.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::oneshot;

/// The first pause after a failure; it doubles with each further one ...
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The taint of our own Node.
#[derive(Clone)]
pub(super) struct ReadinessTaint {
    pub(super) client: kube::Client,
    /// The name of the Node.
    pub(super) node: String,
    /// The taint's key; its value and effect do not matter.
    pub(super) key: String,
}

impl ReadinessTaint {
    /// Removes it once Services work. Never ends, so that it can run beside the loop.
    pub(super) async fn remove_when(self, working: oneshot::Receiver<()>) -> Infallible {
        if working.await.is_ok() {
            self.remove().await;
        }
        std::future::pending().await
    }

    /// Tries until the Node is without it.
    async fn remove(&self) {
        let (node, taint) = (&self.node, &self.key);
        let mut pause = FIRST_PAUSE;
        let removed = loop {
            match self.try_remove().await {
                Ok(removed) => break removed,
                Err(error) => self.complain(&error, pause),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        tracing::info!(node, taint, removed, "Services work; the Node no longer has its readiness taint");
    }

    fn complain(&self, error: &anyhow::Error, retry_in: Duration) {
        let (node, taint, error) = (&self.node, &self.key, format!("{error:#}"));
        tracing::warn!(node, taint, error, ?retry_in, "cannot remove the readiness taint");
    }

    /// Whether there was one.
    async fn try_remove(&self) -> Result<bool> {
        let patch = patch(&self.taints().await.context("reading the Node")?, &self.key);
        if patch.is_empty() {
            return Ok(false);
        }
        let request = http::Request::patch(format!("/api/v1/nodes/{}", self.node))
            .header(http::header::CONTENT_TYPE, "application/json-patch+json")
            .body(serde_json::to_vec(&patch)?)
            .context("building the request")?;
        self.client.request_text(request).await.context("changing the Node")?;
        Ok(true)
    }

    /// A list of one: the right to list is there already, that to get one by name need not be.
    async fn taints(&self) -> Result<Vec<Value>> {
        let uri = format!("/api/v1/nodes?fieldSelector=metadata.name%3D{}", self.node);
        let request = http::Request::get(uri).body(Vec::new()).context("building the request")?;
        let mut list: Value = self.client.request(request).await?;
        match list.pointer_mut("/items/0") {
            None => bail!("there is no Node {}", self.node),
            Some(node) => Ok(node["spec"]["taints"].as_array_mut().map(std::mem::take).unwrap_or_default()),
        }
    }
}

/// The JSON patch that removes every taint of this key, from the last on so that the others keep
/// their places. Each place is tested first: if another client changed the list meanwhile, the server
/// refuses all of it.
fn patch(taints: &[Value], key: &str) -> Vec<Value> {
    let places = taints.iter().enumerate().rev().filter(|(_, taint)| taint["key"] == key);
    let removal = |(index, _)| {
        let path = format!("/spec/taints/{index}");
        [
            json!({"op": "test", "path": format!("{path}/key"), "value": key}),
            json!({"op": "remove", "path": path}),
        ]
    };
    places.flat_map(removal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stub_api::{Fault, Resource, Rule, StubApi, Verb};
    use crate::watch::client::{ClientOptions, Connection};

    fn node(taints: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"}, "spec": {"taints": taints}})
    }

    async fn taint(api: &StubApi, folder: &tempfile::TempDir) -> ReadinessTaint {
        let kubeconfig = Some(api.kubeconfig(folder.path()).unwrap());
        let connection = Connection::open(&ClientOptions { kubeconfig, master: None }).await.unwrap();
        ReadinessTaint {
            client: connection.client(),
            node: "node-0".into(),
            key: "example.com/not-ready".into(),
        }
    }

    #[test]
    fn every_taint_of_the_key_is_removed_and_no_other() {
        let taints = [
            json!({"key": "a", "effect": "NoSchedule"}),
            json!({"key": "b"}),
            json!({"key": "a", "effect": "NoExecute"}),
        ];
        let paths: Vec<Value> = patch(&taints, "a").iter().map(|it| it["path"].clone()).collect();
        assert_eq!(paths, ["/spec/taints/2/key", "/spec/taints/2", "/spec/taints/0/key", "/spec/taints/0"]);
        assert!(patch(&taints, "c").is_empty());
    }

    #[tokio::test]
    async fn the_taint_goes_once_services_work_and_not_before() {
        let (api, folder) = (StubApi::start().unwrap(), tempfile::tempdir().unwrap());
        let other = json!({"key": "other", "effect": "NoSchedule"});
        api.put(node(json!([other, {"key": "example.com/not-ready", "effect": "NoSchedule"}])));
        let (works, working) = oneshot::channel();
        let task = tokio::spawn(taint(&api, &folder).await.remove_when(working));
        assert!(api.seen().is_empty(), "nothing is asked before Services work");
        works.send(()).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while api.object(Resource::Nodes, "node-0")["spec"]["taints"] != json!([other]) {
            assert!(tokio::time::Instant::now() < deadline, "the taint stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        task.abort();
    }

    #[tokio::test]
    async fn a_refusal_is_tried_again_until_the_server_takes_it() {
        let (api, folder) = (StubApi::start().unwrap(), tempfile::tempdir().unwrap());
        api.put(node(json!([{"key": "example.com/not-ready"}])));
        let rule = |verb| Rule::always(Fault::Status(500)).on(Resource::Nodes).verb(verb).times(1);
        api.behave(|behaviour| behaviour.rules = vec![rule(Verb::List), rule(Verb::Patch)]);
        taint(&api, &folder).await.remove().await;
        assert_eq!(api.object(Resource::Nodes, "node-0")["spec"]["taints"], json!([]));
    }

    #[tokio::test]
    async fn a_node_without_the_taint_is_left_alone_and_a_missing_one_is_an_error() {
        let (api, folder) = (StubApi::start().unwrap(), tempfile::tempdir().unwrap());
        let taint = taint(&api, &folder).await;
        assert!(taint.try_remove().await.unwrap_err().root_cause().to_string().contains("no Node node-0"));
        api.put(node(json!([{"key": "other"}])));
        assert!(!taint.try_remove().await.unwrap());
    }
}

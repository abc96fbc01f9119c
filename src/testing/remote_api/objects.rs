//! Our objects on the server, one request at a time.

use crate::testing::stub_api::Resource;
use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, stream};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The namespace of all that is in one.
pub const NAMESPACE: &str = "kube-proxy-rs-bench";
/// What makes an object ours.
const LABEL: &str = "app.kubernetes.io/managed-by";
/// Its value.
const OWNER: &str = "kube-proxy-rs-bench";
/// How often a namespace that is being deleted is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Whether an object has our label.
#[must_use]
pub fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"][LABEL] == OWNER
}

/// The object with our label, in our namespace if it is to be in one.
pub(super) fn owned(mut object: Value) -> Value {
    object["metadata"]["labels"][LABEL] = OWNER.into();
    if !object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = NAMESPACE.into();
    }
    object
}

/// Kind and name, for messages.
pub(super) fn title(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let slash = if text("/metadata/namespace").is_empty() { "" } else { "/" };
    format!("{} {}{slash}{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

#[derive(Clone)]
pub(super) struct Objects {
    client: kube::Client,
    patience: Duration,
}

impl Objects {
    pub(super) fn new(client: kube::Client, patience: Duration) -> Objects {
        Objects { client, patience }
    }

    fn api(&self, resource: Resource) -> Api<DynamicObject> {
        let api_version = resource.api_version();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: resource.kind().to_owned(),
            plural: resource.plural().to_owned(),
        };
        match resource {
            Resource::Services | Resource::EndpointSlices => {
                Api::namespaced_with(self.client.clone(), NAMESPACE, &kind)
            }
            Resource::Nodes | Resource::Namespaces | Resource::ServiceCidrs => {
                Api::all_with(self.client.clone(), &kind)
            }
        }
    }

    fn api_of(&self, object: &Value) -> Result<Api<DynamicObject>> {
        Ok(self.api(Resource::of(object).with_context(|| format!("no resource for {object}"))?))
    }

    pub(super) async fn create(&self, object: &Value) -> Result<()> {
        let made = self.api_of(object)?.create(&PostParams::default(), &typed(object)?).await;
        made.map_err(|error| explained(error, object))
            .with_context(|| format!("creating {}", title(object)))?;
        Ok(())
    }

    /// Whatever its version is: no other program writes our objects.
    pub(super) async fn replace(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let replaced = self.api_of(object)?.replace(name, &PostParams::default(), &typed(object)?).await;
        replaced.with_context(|| format!("replacing {}", title(object)))?;
        Ok(())
    }

    /// Recreates our namespace, empty.
    pub(super) async fn claim(&self) -> Result<()> {
        if let Some(namespace) = self.namespace().await? {
            if !is_ours(&serde_json::to_value(&namespace)?) {
                bail!(
                    "namespace {NAMESPACE} belongs to another program, as it has no label {LABEL}={OWNER}: \
                     nothing was written; delete it, or name another API server"
                );
            }
            self.remove().await.context("removing what an earlier run has left")?;
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.create(&owned(namespace)).await
    }

    async fn namespace(&self) -> Result<Option<DynamicObject>> {
        let found = self.api(Resource::Namespaces).get_opt(NAMESPACE).await;
        found.with_context(|| format!("looking for namespace {NAMESPACE}"))
    }

    /// Removes all that is ours, the namespace last: by it the next run knows that there is more.
    pub(super) async fn remove(&self) -> Result<()> {
        let mut outcome = Ok(());
        for resource in [Resource::EndpointSlices, Resource::Services, Resource::Nodes] {
            outcome = outcome.and(self.remove_all(resource).await);
        }
        outcome?;
        let namespaces = self.api(Resource::Namespaces);
        let deleted = namespaces.delete(NAMESPACE, &DeleteParams::default()).await;
        gone(deleted).with_context(|| format!("deleting namespace {NAMESPACE}"))?;
        let begun = Instant::now();
        while let Some(mut namespace) = self.namespace().await? {
            if begun.elapsed() < self.patience {
                sleep(POLL).await;
                continue;
            }
            // No namespace controller runs, as in envtest. The namespace is empty.
            namespace.data["spec"]["finalizers"] = json!([]);
            let parameters = PostParams::default();
            let finalized =
                namespaces.replace_subresource("finalize", NAMESPACE, &parameters, &namespace).await;
            return gone(finalized).with_context(|| format!("finalizing namespace {NAMESPACE}"));
        }
        Ok(())
    }

    /// Removes our objects of a kind; goes on past failures and tells the first.
    async fn remove_all(&self, resource: Resource) -> Result<()> {
        let api = self.api(resource);
        let ours = ListParams::default().labels(&format!("{LABEL}={OWNER}"));
        let list = api.list_metadata(&ours).await;
        let list = list.with_context(|| format!("listing our {}", resource.plural()))?;
        let names = list.items.into_iter().filter_map(|object| object.metadata.name);
        let delete = async |name: String| {
            let deleted = api.delete(&name, &DeleteParams::default()).await;
            gone(deleted).with_context(|| format!("deleting {} {name}", resource.kind()))
        };
        let outcomes: Vec<Result<()>> =
            stream::iter(names).map(delete).buffer_unordered(super::LANES).collect().await;
        outcomes.into_iter().collect()
    }
}

fn typed(object: &Value) -> Result<DynamicObject> {
    serde_json::from_value(object.clone()).with_context(|| title(object))
}

/// What is not there need not be deleted.
fn gone<T>(outcome: kube::Result<T>) -> kube::Result<()> {
    match outcome {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Says what to do about a cluster IP that is refused: the addresses of a load test are fixed.
fn explained(error: kube::Error, object: &Value) -> anyhow::Error {
    let Some(message) = refusal(&error).filter(|message| message.contains("clusterIP")) else {
        return error.into();
    };
    let address = object["spec"]["clusterIP"].as_str().unwrap_or_default();
    let advice = if message.contains("already allocated") {
        format!("another Service of this cluster has {address}: the API server must be all the bench's")
    } else {
        format!("{address} is refused: the API server needs --service-cluster-ip-range=10.96.0.0/12")
    };
    anyhow::Error::from(error).context(advice)
}

fn refusal(error: &kube::Error) -> Option<&str> {
    match error {
        kube::Error::Api(status) if status.is_invalid() => Some(&status.message),
        _ => None,
    }
}

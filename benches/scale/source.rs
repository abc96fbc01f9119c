//! Where the program under test gets its objects from.

use crate::settings::Settings;
use crate::{ELSEWHERE, NODE};
use anyhow::{Context as _, Result};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::remote_api::RemoteApi;
use kube_proxy_rs::testing::stub_api::{StubApi, load_service, load_slice};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A namespace controller needs a few seconds for an empty namespace.
const PATIENCE: Duration = Duration::from_secs(15);

/// An API server with the objects of a run.
pub(crate) enum Source {
    /// In this process, in the namespace of the program.
    Stub(Arc<StubApi>),
    /// The one of a given kubeconfig; our objects in it go when this is dropped.
    Remote(Box<RemoteApi>),
}

impl Source {
    /// Fills the API server that the settings name, or a stub.
    pub(crate) fn fill(settings: &Settings, namespace: &Namespace) -> Result<Source> {
        let source = match &settings.apiserver {
            Some(kubeconfig) => Source::Remote(Box::new(RemoteApi::open(kubeconfig, PATIENCE)?)),
            None => Source::Stub(namespace.run(StubApi::start_on_a_thread)??),
        };
        source.create(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
            // No pods: there is no kubelet to run them.
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"], "unschedulable": true},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }))?;
        for number in 0..settings.services {
            source.create(load_service(number))?;
            source.create(load_slice(number, settings.endpoints, ELSEWHERE))?;
        }
        source.finish().context("filling the API server")?;
        Ok(source)
    }

    fn create(&self, object: Value) -> Result<()> {
        match self {
            Source::Stub(stub) => stub.put(object),
            Source::Remote(remote) => return remote.create(object),
        };
        Ok(())
    }

    /// Changes an object that is there; `finish` waits until the server has it.
    pub(crate) fn replace(&self, object: Value) -> Result<()> {
        match self {
            Source::Stub(stub) => stub.put(object),
            Source::Remote(remote) => return remote.replace(object),
        };
        Ok(())
    }

    /// Waits until all is written.
    pub(crate) fn finish(&self) -> Result<()> {
        match self {
            Source::Stub(_) => Ok(()),
            Source::Remote(remote) => remote.finish(),
        }
    }

    /// How many bytes the program has received; not known of the stub.
    pub(crate) fn received(&self) -> f64 {
        match self {
            Source::Stub(_) => f64::NAN,
            Source::Remote(remote) => remote.received() as f64,
        }
    }

    /// A kubeconfig for a program in the calling thread's network namespace.
    pub(crate) fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        match self {
            Source::Stub(stub) => Ok(stub.kubeconfig(folder)?),
            Source::Remote(remote) => remote.kubeconfig(folder),
        }
    }
}

//! Where the tests get their API server from.

use crate::picture::{Picture, hurried};
use crate::real::RealServer;
use kube_proxy_rs::testing::stub_api::{Resource, StubApi};
use kube_proxy_rs::watch::api::WatchOptions;
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

/// A server that behaves: a real one where its programs are at hand, else the stub.
pub(crate) enum Server {
    Stub(Stub),
    Real(RealServer),
}

impl Server {
    pub(crate) async fn start() -> Self {
        match std::env::var_os("KUBEBUILDER_ASSETS") {
            Some(folder) => Server::Real(RealServer::start(&PathBuf::from(folder)).await),
            None => Server::Stub(Stub::start()),
        }
    }

    /// One that fills in nothing, whatever is at hand.
    pub(crate) fn stub() -> Self {
        Server::Stub(Stub::start())
    }

    /// Creates or replaces an object.
    pub(crate) async fn put(&self, object: Value) {
        match self {
            Server::Stub(stub) => {
                stub.put(object);
            }
            Server::Real(real) => real.put(object).await,
        }
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, resource: Resource, key: &str) {
        match self {
            Server::Stub(stub) => {
                assert!(stub.delete(resource, key));
            }
            Server::Real(real) => real.delete(resource, key).await,
        }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match self {
            Server::Stub(stub) => stub.api.kubeconfig(stub.folder.path()).unwrap(),
            Server::Real(real) => real.kubeconfig(),
        }
    }

    pub(crate) async fn watch(&self) -> Picture {
        match self {
            Server::Stub(stub) => stub.watch().await,
            Server::Real(real) => Picture::watch(&real.kubeconfig(), WatchOptions::default()).await,
        }
    }
}

/// The stub server with a folder for its kubeconfig.
pub(crate) struct Stub {
    api: StubApi,
    folder: TempDir,
}

impl std::ops::Deref for Stub {
    type Target = StubApi;

    fn deref(&self) -> &StubApi {
        &self.api
    }
}

impl Stub {
    pub(crate) fn start() -> Self {
        Stub { api: StubApi::start().unwrap(), folder: TempDir::new().unwrap() }
    }

    pub(crate) async fn watch(&self) -> Picture {
        self.watch_with(hurried()).await
    }

    pub(crate) async fn watch_with(&self, options: WatchOptions) -> Picture {
        Picture::watch(&self.kubeconfig(self.folder.path()).unwrap(), options).await
    }
}

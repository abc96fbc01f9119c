//! The connection to the API server.
//!
//! kube's own stack retries silently for minutes, notices a dead server after five and reads most
//! files only once, so the stack is put together here from its parts. Every failure goes to the
//! caller at once, who decides when to try again.
//!
//! Files change under a running program: tokens and certificates expire and are replaced. Before each
//! request, which is rare, the files that the stack was made from are looked at, and a change of any
//! of them makes a new stack.

mod connect;
mod kubeconfig;
mod pace;
mod pem;
mod proxy;
mod stack;
mod stamp;
mod transport;
mod trust;

use anyhow::{Context, bail};
pub use connect::Dialling;
use http::{Request, StatusCode};
use kube::client::Body;
use stack::Stack;
use stamp::Stamp;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tower::{BoxError, ServiceExt};

/// Only an exec plugin can take that long.
const MAKING_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the API server is, and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientOptions {
    /// `clientConnection.kubeconfig`; without it the service account of the pod counts.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: replaces the server's address.
    pub master: Option<String>,
}

/// One request to the API server, from sending it to the head of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The method: `GET`, `POST`, …
    pub method: http::Method,
    /// Host and port of the server.
    pub host: String,
    /// The status; `None` when there was no answer.
    pub status: Option<u16>,
    /// How long the answer took.
    pub elapsed: Duration,
}

/// Told of every exchange.
pub type Observer = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// Observers of what happens on the way to the API server.
#[derive(Clone)]
pub struct Observers {
    /// Of exchanges.
    pub exchange: Observer,
    /// Of addresses.
    pub dialling: Dialling,
}

impl Default for Observers {
    /// No observers.
    fn default() -> Self {
        Observers { exchange: Arc::new(|_| {}), dialling: Arc::new(|_| Box::pin(std::future::ready(()))) }
    }
}

/// Connects to the API server; nothing is sent before the first request.
///
/// # Errors
/// Fails when the configuration cannot be read or makes no sense, naming the file.
pub async fn client(options: &ClientOptions) -> anyhow::Result<kube::Client> {
    Ok(Connection::open(options).await?.client())
}

/// The way to the API server, which follows the files that it was made from.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    options: ClientOptions,
    observers: Observers,
    current: Mutex<Made>,
    /// Held while the files are looked at, so that one change makes one stack.
    looking: tokio::sync::Mutex<()>,
}

/// A stack, and what it was made from.
#[derive(Clone)]
struct Made {
    stack: Stack,
    url: Arc<str>,
    proxy: Option<String>,
    stamps: Vec<Stamp>,
    /// Why there is no newer one, if the files have changed since.
    complaint: Option<String>,
}

impl Connection {
    /// Reads the configuration and builds a client from it.
    ///
    /// # Errors
    /// Fails when the configuration cannot be read or makes no sense, naming the file.
    pub async fn open(options: &ClientOptions) -> anyhow::Result<Self> {
        Connection::observed(options, Observers::default()).await
    }

    /// The same; `observers` are told of what happens.
    ///
    /// # Errors
    /// As [`open`](Connection::open).
    pub async fn observed(options: &ClientOptions, observers: Observers) -> anyhow::Result<Self> {
        // Refused when a provider is installed already, which is what we want to be the case.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = make(options, &observers).await?;
        if let Some(proxy) = &made.proxy {
            tracing::info!(url = &*made.url, proxy, "the API server is reached through a proxy");
        }
        let shared = Shared {
            options: options.clone(),
            observers,
            current: Mutex::new(made),
            looking: tokio::sync::Mutex::default(),
        };
        Ok(Connection { shared: Arc::new(shared) })
    }

    /// A client for requests that stand alone.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        let connection = self.clone();
        let send = tower::service_fn(move |request| {
            let connection = connection.clone();
            async move { connection.send(None, request).await }
        });
        // All objects are asked for with their namespaces, or in all of them.
        kube::Client::new(send, "default")
    }

    /// Sends a request; to no other server than the one at `server`, if it goes on from what that one said before.
    pub(super) async fn send(
        &self,
        server: Option<&Arc<str>>,
        request: Request<Body>,
    ) -> Result<http::Response<hyper::body::Incoming>, BoxError> {
        let made = self.shared.follow_files().await;
        if server.is_some_and(|server| *server != made.url) {
            return Err(format!("the kubeconfig names another server now: {}", made.url).into());
        }
        let response = made.stack.oneshot(request).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.shared.current().stamps.iter_mut().for_each(Stamp::refuse);
        }
        Ok(response)
    }

    /// Whether the server is not on this node, so that packing what it sends may pay.
    pub(super) fn is_remote(&self) -> bool {
        let url = self.url();
        let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        let host = host.unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        address.map_or(host != "localhost", |address| !address.is_loopback())
    }

    /// The server's address, for messages.
    #[must_use]
    pub fn url(&self) -> Arc<str> {
        self.shared.current().url.clone()
    }
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Made> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stack as the files would have it now. As long as they are unusable, the last one stays, and every
    /// request tries them again.
    async fn follow_files(&self) -> Made {
        let _looking = self.looking.lock().await;
        let made = self.current().clone();
        let changed: Vec<_> = made.stamps.iter().filter(|stamp| !stamp.holds()).collect();
        if changed.is_empty() {
            return made;
        }
        let next = make(&self.options, &self.observers).await;
        let mut current = self.current();
        match next {
            Ok(next) => {
                let files = changed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                tracing::info!(
                    url = &*next.url,
                    files,
                    "the kubeconfig or its credential files changed; connecting with the new ones"
                );
                *current = next;
            }
            Err(error) => current.complain(format!("{error:#}")),
        }
        current.clone()
    }
}

impl Made {
    fn complain(&mut self, error: String) {
        if self.complaint.as_ref() != Some(&error) {
            tracing::warn!(
                url = &*self.url,
                error,
                "cannot use the changed credential files; connecting with the previous ones"
            );
        }
        self.complaint = Some(error);
    }
}

/// Makes a stack from the files as they are. Not on our thread: an exec plugin may take long, and kube panics on
/// some of what it may print.
async fn make(options: &ClientOptions, observers: &Observers) -> anyhow::Result<Made> {
    let (options, observers) = (options.clone(), observers.clone());
    let making = tokio::task::spawn_blocking(move || {
        let settings = kubeconfig::load(&options)?;
        let url: Arc<str> = settings.config.cluster_url.to_string().into();
        let proxy = settings.proxy.as_ref().map(|proxy| proxy.uri().to_string());
        let stamps = settings.stamps.clone();
        let stack = stack::build(settings, observers)
            .with_context(|| format!("setting up the connection to {url}"))?;
        Ok(Made { stack, url, proxy, stamps, complaint: None })
    });
    match tokio::time::timeout(MAKING_TIMEOUT, making).await {
        // Of all that is made here, only what a plugin prints can make kube panic.
        Ok(made) => {
            made.context("the exec plugin printed unusable credentials, such as a token with a line break")?
        }
        Err(_) => {
            bail!("no credentials within {MAKING_TIMEOUT:?}; see whether the kubeconfig's exec plugin hangs")
        }
    }
}

#[cfg(test)]
mod tests;

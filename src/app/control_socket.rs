//! Questions of people on the node, handed on to the loop: the control socket and the status page.

use super::status::Status;
use crate::config::Config;
use crate::explain;
use crate::health::{Clock, ProxyHealth};
use crate::http::{self, Answering, LocalRoutes, Reply, SlowPage};
use crate::model::ServiceName;
use crate::sync::{self, LoopState, Query};
use serde::Serialize;
use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

/// Queries that wait for the loop.
pub(super) const QUERIES: usize = 16;
/// A pass over a large cluster can take this long; then the asker should try again.
const PATIENCE: Duration = Duration::from_secs(50);

/// A status page does not wait for the end of a sync.
const PAGE_PATIENCE: Duration = Duration::from_secs(2);
/// Where the metrics server listens for others, too, they can ask for the page, so it is made once for all who ask within this time.
const PAGE_LIFE: Duration = Duration::from_secs(2);

/// Those who can be asked how things are.
#[derive(Clone)]
pub(super) struct Asked {
    /// The loop.
    pub(super) queries: mpsc::Sender<Query>,
    /// What is known without it.
    pub(super) health: Arc<ProxyHealth>,
    pub(super) clock: Clock,
    /// When we started.
    pub(super) started: SystemTime,
}

impl Asked {
    async fn status(&self) -> Status {
        let asked = sync::ask(&self.queries, explain::overview);
        let overview = tokio::time::timeout(PAGE_PATIENCE, asked).await.ok().flatten();
        Status::new(self.started, overview, self.health.readiness((self.clock)()))
    }

    /// What is waited for before the loop can answer, if the API server has not listed everything yet.
    fn waits(&self) -> Option<String> {
        let api = self.health.api((self.clock)())?;
        if api.listed { None } else { api.complaint() }
    }

    fn refuse(&self) -> Answering {
        let why = self.waits().unwrap_or_default();
        Box::pin(async move { Reply::text(503, format!("the proxy knows no Services yet: {why}\n")) })
    }

    /// `/status` of the metrics server.
    pub(super) fn page(self) -> SlowPage {
        let last: Arc<Mutex<Option<(Instant, Reply)>>> = Arc::default();
        let answer = move || -> Answering {
            let (asked, last) = (self.clone(), last.clone());
            Box::pin(async move {
                // Held while the page is made: requests that come meanwhile get the same one.
                let mut last = last.lock().await;
                if let Some((made, reply)) = &*last
                    && made.elapsed() < PAGE_LIFE
                {
                    return reply.clone();
                }
                let reply = Reply::page(asked.status().await.html());
                *last = Some((Instant::now(), reply.clone()));
                reply
            })
        };
        SlowPage { path: "/status", answer: Arc::new(answer) }
    }
}

/// Serves the control socket. Services are served without it, too.
pub(super) async fn serve(config: &Config, asked: Asked) -> Infallible {
    let Some(path) = &config.control_socket else { return std::future::pending().await };
    match http::bind_local(path).await {
        Ok(listener) => http::serve_local(listener, routes(asked)).await,
        Err(error) => {
            tracing::warn!(socket = %path.display(), %error, "no control socket: explain, services and status cannot ask this proxy");
            std::future::pending().await
        }
    }
}

fn routes(asked: Asked) -> LocalRoutes {
    Arc::new(move |path, query| {
        let queries = asked.queries.clone();
        match path {
            "/v1/service" | "/v1/services" | "/v1/node" if asked.waits().is_some() => asked.refuse(),
            "/v1/service" => service(queries, query),
            "/v1/services" => services(queries, query),
            "/v1/node" => node(queries, query),
            "/v1/status" => {
                let asked = asked.clone();
                Box::pin(async move { json(&asked.status().await) })
            }
            "/v1/status.txt" => {
                let asked = asked.clone();
                Box::pin(async move { Reply::text(200, asked.status().await.to_string()) })
            }
            _ => Box::pin(async { Reply::not_found() }),
        }
    })
}

fn service(queries: mpsc::Sender<Query>, query: &str) -> Answering {
    let asked = http::parameter(query, "name").unwrap_or_default();
    let Some((namespace, name)) = asked.split_once('/') else {
        return Box::pin(async { Reply::text(400, "name must be NAMESPACE/NAME\n") });
    };
    let name = ServiceName::new(namespace, name);
    Box::pin(ask(queries, move |state| explain::service(state, &name)))
}

fn node(queries: mpsc::Sender<Query>, query: &str) -> Answering {
    let after = http::parameter(query, "after").filter(|value| !value.is_empty()).map(Cow::into_owned);
    Box::pin(ask(queries, move |state| explain::node_page(state, after.as_deref())))
}

fn services(queries: mpsc::Sender<Query>, query: &str) -> Answering {
    let given = |name| http::parameter(query, name).filter(|value| !value.is_empty()).map(Cow::into_owned);
    let (namespace, after) = (given("namespace"), given("after"));
    Box::pin(ask(queries, move |state| explain::services(state, namespace.as_deref(), after.as_deref())))
}

async fn ask<T: Serialize + Send + 'static>(
    queries: mpsc::Sender<Query>,
    read: impl FnOnce(&LoopState<'_>) -> T + Send + 'static,
) -> Reply {
    match tokio::time::timeout(PATIENCE, sync::ask(&queries, read)).await {
        Ok(Some(answer)) => json(&answer),
        Ok(None) => Reply::text(503, "the proxy is about to end\n"),
        Err(_) => Reply::text(503, "the proxy is busy with a long sync, or still starting; try again\n"),
    }
}

fn json(answer: &impl Serialize) -> Reply {
    match serde_json::to_vec(answer) {
        Ok(body) => Reply::json(200, body),
        Err(error) => Reply::text(500, format!("cannot encode the answer: {error}\n")),
    }
}

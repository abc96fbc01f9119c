//! Questions of people on the node, handed on to the loop: the control socket and the status page.

use super::pages::{self, Listed, MOST_ROWS};
use super::status::Status;
use crate::config::Config;
use crate::explain::{self, Report, Row};
use crate::health::{Clock, ProxyHealth};
use crate::http::{self, Answering, LocalRoutes, Reply, SlowPage};
use crate::metrics::Metrics;
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
    /// The configuration as JSON.
    pub(super) configz: Arc<str>,
    pub(super) metrics: Arc<Metrics>,
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

    /// The Services for the page, those with problems first, and how many there are in all; `None` while the loop is busy.
    async fn listed(&self) -> Option<Listed> {
        let (mut rows, mut after, mut total): (Vec<Row>, Option<String>, usize) = (Vec::new(), None, 0);
        loop {
            let from = after.take();
            let asked =
                sync::ask(&self.queries, move |state| explain::services(state, None, from.as_deref()));
            let page = tokio::time::timeout(PAGE_PATIENCE, asked).await.ok().flatten()?;
            total += page.items.len();
            rows.extend(page.items);
            rows.sort_by_key(|row| row.problems.is_empty());
            rows.truncate(MOST_ROWS);
            after = page.next;
            if after.is_none() {
                return Some(Listed { rows, total });
            }
        }
    }

    /// `/status` of the metrics server, and `/status/service?name=NAMESPACE/NAME`.
    pub(super) fn pages(self) -> Vec<SlowPage> {
        let of_service = self.clone();
        let status = remembered(move |_| {
            let asked = self.clone();
            Box::pin(async move {
                let (status, services) = tokio::join!(asked.status(), asked.listed());
                Reply::page(status.html(services.as_ref()))
            })
        });
        let service = remembered(move |query| {
            let (asked, query) = (of_service.clone(), query.to_owned());
            Box::pin(async move { asked.service_page(&query).await })
        });
        vec![
            SlowPage { path: "/status", answer: status },
            SlowPage { path: "/status/service", answer: service },
        ]
    }

    /// What `explain` says of a Service without a look at the kernel.
    async fn service_page(&self, query: &str) -> Reply {
        let asked = http::parameter(query, "name").unwrap_or_default();
        let Some((namespace, name)) = asked.split_once('/') else {
            return Reply::text(400, "name must be NAMESPACE/NAME\n");
        };
        let name = ServiceName::new(namespace, name);
        let found = sync::ask(&self.queries, {
            let name = name.clone();
            move |state| explain::service(state, &name)
        });
        match tokio::time::timeout(PAGE_PATIENCE, found).await {
            Ok(Some(Some(view))) => Reply::page(pages::service(&name.to_string(), &Report::of_plan(view))),
            Ok(Some(None)) => Reply::text(404, "the proxy does not know this Service\n"),
            Ok(None) | Err(_) => Reply::text(503, "the loop is in the middle of a sync; try again\n"),
        }
    }
}

/// A page that is made once for all who ask the same within [`PAGE_LIFE`].
fn remembered(make: impl Fn(&str) -> Answering + Send + Sync + 'static) -> MakePage {
    let (make, last): (MakePage, Remembered) = (Arc::new(make), Arc::default());
    Arc::new(move |query| -> Answering {
        let (query, make, last) = (query.to_owned(), make.clone(), last.clone());
        Box::pin(async move {
            // Held while the page is made: requests that come meanwhile get the same one.
            let mut last = last.lock().await;
            if let Some((made, of, reply)) = &*last
                && *of == query
                && made.elapsed() < PAGE_LIFE
            {
                return reply.clone();
            }
            let reply = make(&query).await;
            *last = Some((Instant::now(), query, reply.clone()));
            reply
        })
    })
}

/// Makes a page for a query.
type MakePage = Arc<dyn Fn(&str) -> Answering + Send + Sync>;

/// When a page was made, for which query, and the page.
type Remembered = Arc<Mutex<Option<(Instant, String, Reply)>>>;

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
            "/v1/config" => {
                let reply = Reply::json(200, asked.configz.as_bytes());
                Box::pin(async move { reply })
            }
            "/v1/metrics" => {
                let reply = match asked.metrics.encode() {
                    Ok(text) => Reply::text(200, text),
                    Err(error) => Reply::text(500, format!("cannot encode the metrics: {error}\n")),
                };
                Box::pin(async move { reply })
            }
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

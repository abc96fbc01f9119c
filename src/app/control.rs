//! The control socket: questions of people on the node, handed on to the loop.

use crate::config::Config;
use crate::http::{self, Answering, LocalRoutes, Reply};
use crate::model::ServiceName;
use crate::sync::Question;
use serde::Serialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Questions that wait for the loop.
pub(super) const QUESTIONS: usize = 16;
/// A pass over a large cluster can take this long; then the asker should try again.
const PATIENCE: Duration = Duration::from_secs(50);

/// Serves the control socket. That it cannot be made keeps nobody from serving Services.
pub(super) async fn serve(config: &Config, questions: mpsc::Sender<Question>) -> Infallible {
    let Some(path) = &config.control_socket else { return std::future::pending().await };
    match http::bind_local(path).await {
        Ok(listener) => http::serve_local(listener, routes(questions)).await,
        Err(error) => {
            tracing::warn!(socket = %path.display(), %error, "no control socket: explain, services and status cannot ask this proxy");
            std::future::pending().await
        }
    }
}

fn routes(questions: mpsc::Sender<Question>) -> LocalRoutes {
    Arc::new(move |path, query| {
        let questions = questions.clone();
        match path {
            "/v1/service" => service(questions, query),
            "/v1/services" => services(questions, query),
            "/v1/picture" => Box::pin(ask(questions, Question::Picture)),
            _ => Box::pin(async { Reply::not_found() }),
        }
    })
}

fn service(questions: mpsc::Sender<Question>, query: &str) -> Answering {
    let name = parameter(query, "name").and_then(|name| name.split_once('/'));
    let Some((namespace, name)) = name else {
        return Box::pin(async { Reply::text(400, "name must be NAMESPACE/NAME\n") });
    };
    let name = ServiceName::new(namespace, name);
    Box::pin(ask(questions, move |reply| Question::Service(name, reply)))
}

fn services(questions: mpsc::Sender<Question>, query: &str) -> Answering {
    let given = |name| parameter(query, name).map(str::to_owned);
    let (namespace, after) = (given("namespace"), given("after"));
    Box::pin(ask(questions, move |reply| Question::Services { namespace, after, reply }))
}

/// The value of a parameter. Names of the API need no escapes.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.filter(|value| !value.is_empty())
}

async fn ask<T: Serialize>(
    questions: mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Reply {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        questions.send(question(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(answer)) => match serde_json::to_vec(&answer) {
            Ok(body) => Reply::json(200, body),
            Err(error) => Reply::text(500, format!("cannot encode the answer: {error}\n")),
        },
        Ok(None) => Reply::text(503, "the proxy is about to end\n"),
        Err(_) => Reply::text(503, "the proxy is busy with a long sync, or still starting; try again\n"),
    }
}

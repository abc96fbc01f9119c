//! Connections to one server: one for all requests where it speaks HTTP/2, as client-go has it, else one for
//! each request. Each TLS handshake costs the server a signature and 1.3 kB, and each connection memory.

use super::proxy::Dialler;
use super::trust::explain;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::Connection as _;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tower::{BoxError, ServiceExt};

/// The protocols that are offered, the best first.
pub(super) const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// From dialling to the end of the handshakes. All requests wait for one attempt, so that it must come to an end.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is silent for this time is asked whether it is there, and has `PING_TIMEOUT` for the answer: as
/// client-go. The kernel's probes end at a load balancer, these do not.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of one answer, and of all, that may be under way or wait to be read.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// All waiters have the outcome of one attempt.
type Attempt = Shared<BoxFuture<'static, Result<Opened, Arc<dyn Error + Send + Sync>>>>;

/// A connection after its handshake.
#[derive(Clone)]
enum Opened {
    /// For all requests.
    Http2(http2::SendRequest<Body>),
    /// For the one that takes it.
    Http1(Arc<Mutex<Option<http1::SendRequest<Body>>>>),
}

/// Sends requests to one server.
pub(super) struct Transport {
    connector: HttpsConnector<Dialler>,
    latest: Mutex<Option<Attempt>>,
}

impl Transport {
    pub(super) fn new(connector: HttpsConnector<Dialler>) -> Self {
        Transport { connector, latest: Mutex::default() }
    }

    /// Sends a request that names the server in its URI; returns when the head of the answer is there.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        loop {
            let attempt = self.attempt(request.uri());
            match attempt.await.map_err(BoxError::from)? {
                Opened::Http2(mut connection) => return Ok(connection.send_request(request).await?),
                Opened::Http1(connection) => {
                    let taken = lock(&connection).take();
                    if let Some(mut connection) = taken {
                        return Ok(connection.send_request(in_origin_form(request)?).await?);
                    }
                }
            }
        }
    }

    /// The attempt that is under way or has led to a connection for all; else a new one.
    fn attempt(&self, server: &Uri) -> Attempt {
        let mut latest = lock(&self.latest);
        if let Some(attempt) = latest.as_ref().filter(|attempt| is_of_use(attempt)) {
            return attempt.clone();
        }
        let attempt = tokio::time::timeout(OPEN_TIMEOUT, open(self.connector.clone(), server.clone()));
        let attempt = attempt.map(|outcome| {
            let late = |_| Err(format!("no TLS and HTTP connection within {OPEN_TIMEOUT:?}").into());
            outcome.unwrap_or_else(late).map_err(|error| Arc::from(explain(error)))
        });
        latest.insert(attempt.boxed().shared()).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_of_use(attempt: &Attempt) -> bool {
    match attempt.peek() {
        None => true,
        Some(Ok(Opened::Http2(connection))) => !connection.is_closed(),
        Some(Ok(Opened::Http1(connection))) => lock(connection).is_some(),
        Some(Err(_)) => false,
    }
}

async fn open(connector: HttpsConnector<Dialler>, server: Uri) -> Result<Opened, BoxError> {
    let stream = connector.oneshot(server).await?;
    if stream.connected().is_negotiated_h2() {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING_AFTER).keep_alive_timeout(PING_TIMEOUT);
        builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder.handshake(stream).await?;
        drop(tokio::spawn(connection));
        return Ok(Opened::Http2(sender));
    }
    let (sender, connection) = http1::handshake(stream).await?;
    drop(tokio::spawn(connection));
    Ok(Opened::Http1(Arc::new(Mutex::new(Some(sender)))))
}

/// As HTTP/1.1 wants it: the server in a header, and the rest of the URI in the request's line.
fn in_origin_form(mut request: Request<Body>) -> Result<Request<Body>, http::Error> {
    let uri = std::mem::take(request.uri_mut()).into_parts();
    if let Some(authority) = uri.authority {
        request.headers_mut().insert(header::HOST, HeaderValue::try_from(authority.as_str())?);
    }
    *request.uri_mut() = uri.path_and_query.map_or_else(Uri::default, Uri::from);
    Ok(request)
}

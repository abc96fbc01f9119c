//! A small HTTP server: health, metrics and health-check node ports listen with it.
//!
//! It knows nothing of what it serves; the caller hands it a function from request to reply.
//! Everything a stranger could use up is bounded: connections, header size, time to send a
//! request, and the life of a connection.

mod diagnostics;
mod listen;
mod local;

pub use diagnostics::{Encode, Pages, diagnostics};
pub use listen::{bind, bind_exclusive};
pub use local::{LocalRoutes, ask_local, bind_local, serve_local};

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Connections of one server at a time; more have to wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Header lines of a request.
const MAX_HEADERS: usize = 64;
/// For the head of a request, the first as well as later ones of the same connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time a connection is asked to end, and then given this long to do so.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
const CONNECTION_GRACE: Duration = Duration::from_secs(10);
/// Between two attempts to listen.
const BIND_RETRY: Duration = Duration::from_secs(5);
/// After a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a route gets to see of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// `GET`, `DELETE`, …
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// Without the question mark; may be empty.
    pub query: &'a str,
}

/// What a route answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Plain text that browsers may not take for anything else.
    #[must_use]
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("X-Content-Type-Options", "nosniff".to_owned())];
        Reply { status, content_type: "text/plain; charset=utf-8", headers, body: body.into() }
    }

    /// JSON that browsers may not take for anything else.
    #[must_use]
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("X-Content-Type-Options", "nosniff".to_owned())];
        Reply { status, content_type: "application/json", headers, body: body.into() }
    }

    /// A page that may load nothing and run nothing.
    #[must_use]
    pub fn page(body: impl Into<Vec<u8>>) -> Self {
        let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
        let headers = vec![
            ("X-Content-Type-Options", "nosniff".to_owned()),
            ("Content-Security-Policy", policy.to_owned()),
            ("Cache-Control", "no-store".to_owned()),
        ];
        Reply { status: 200, content_type: "text/html; charset=utf-8", headers, body: body.into() }
    }

    /// There is nothing under this path.
    #[must_use]
    pub fn not_found() -> Self {
        Reply::text(404, "404 page not found\n")
    }
}

/// Answers requests. Called on the server's task, so it must not block.
pub type Routes = Arc<dyn Fn(Request<'_>) -> Reply + Send + Sync>;

/// An answer that takes a while, such as one that has to be asked for.
pub type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// One path whose answer takes a while.
#[derive(Clone)]
pub struct SlowPage {
    /// The path.
    pub path: &'static str,
    /// Makes the answer.
    pub answer: Arc<dyn Fn() -> Answering + Send + Sync>,
}

/// What a server serves: routes, and perhaps one page whose answer takes a while.
#[derive(Clone)]
pub struct Site {
    /// All paths but the slow one.
    pub routes: Routes,
    /// The slow one.
    pub slow: Option<SlowPage>,
}

impl From<Routes> for Site {
    fn from(routes: Routes) -> Self {
        Site { routes, slow: None }
    }
}

/// Listens on an address and serves there until dropped.
///
/// When the address cannot be listened on, it tries again every 5 s, or returns the error at
/// once if `hard_fail` is set. `what` names the server in logs.
///
/// # Errors
/// Only with `hard_fail`: why the address cannot be listened on.
pub async fn keep_serving(
    what: &str,
    address: SocketAddr,
    hard_fail: bool,
    site: Site,
) -> io::Result<Infallible> {
    loop {
        match bind(address) {
            Ok(listener) => {
                debug!(server = what, %address, "listening");
                match serve_site(listener, site).await {}
            }
            Err(error) if hard_fail => return Err(error),
            Err(error) => warn!(server = what, %address, %error, "cannot listen, will try again"),
        }
        sleep(BIND_RETRY).await;
    }
}

/// Serves a listener until dropped. Dropping ends its connections too.
pub async fn serve(listener: TcpListener, routes: Routes) -> Infallible {
    serve_site(listener, routes.into()).await
}

/// The same for a whole site.
async fn serve_site(listener: TcpListener, site: Site) -> Infallible {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // The semaphore is never closed, so an error cannot come up; waiting again is harmless.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { continue };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = site.clone();
                connections.spawn(async move {
                    converse(stream, site).await;
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// One connection, from its first request to its end.
async fn converse(stream: TcpStream, site: Site) {
    let answer = move |request: http::Request<Incoming>| -> Answering {
        match site.slow.as_ref().filter(|slow| slow.path == request.uri().path()) {
            Some(slow) => (slow.answer)(),
            None => {
                let reply = (site.routes)(Request {
                    method: request.method().as_str(),
                    path: request.uri().path(),
                    query: request.uri().query().unwrap_or(""),
                });
                Box::pin(async { reply })
            }
        }
    };
    converse_by(stream, answer).await;
}

/// One connection over whatever stream, with a function from request to reply.
async fn converse_by<A: Future<Output = Reply>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(http::Request<Incoming>) -> A,
) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let reply = answer(request);
        async move { Ok::<_, Infallible>(response(reply.await)) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(CONNECTION_LIFE) => {
            connection.as_mut().graceful_shutdown();
            timeout(CONNECTION_GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    for (name, value) in reply.headers {
        let name = header::HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Starts a server on a free port.
    fn start(routes: Routes) -> (SocketAddr, tokio::task::JoinHandle<Infallible>) {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        (address, tokio::spawn(serve(listener, routes)))
    }

    fn echo() -> Routes {
        Arc::new(|request| Reply::text(200, format!("{} {} {}", request.method, request.path, request.query)))
    }

    async fn answer(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_request_gets_its_reply_with_headers() {
        let (address, _server) = start(echo());
        let text = answer(address, "DELETE /a/b?c=d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("content-type: text/plain; charset=utf-8\r\n"), "{text}");
        assert!(text.contains("x-content-type-options: nosniff\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nDELETE /a/b c=d"), "{text}");
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let (address, _server) = start(echo());
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
        let mut stream = TcpStream::connect(address).await.unwrap();
        drop(stream.write_all(request.as_bytes()).await);
        let mut bytes = Vec::new();
        drop(stream.read_to_end(&mut bytes).await);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    }

    #[tokio::test]
    async fn too_many_headers_are_refused() {
        let (address, _server) = start(echo());
        let lines = "a: b\r\n".repeat(MAX_HEADERS + 1);
        let text = answer(address, &format!("GET / HTTP/1.1\r\n{lines}\r\n")).await;
        assert!(text.starts_with("HTTP/1.1 431"), "{text}");
    }

    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        let (address, _server) = start(echo());
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        tokio::task::yield_now().await;
        tokio::time::pause();
        let mut text = String::new();
        let closed = timeout(2 * HEAD_TIMEOUT, stream.read_to_string(&mut text)).await;
        assert!(closed.is_ok(), "still open");
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait_for_a_free_place() {
        let (address, _server) = start(echo());
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            held.push(stream);
        }
        let waiting = tokio::spawn(async move {
            answer(address, "GET /late HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held.pop());
        assert!(waiting.await.unwrap().ends_with("GET /late "));
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_with_hard_fail() {
        let taken = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = keep_serving("test", address, true, echo().into()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_taken_address_is_tried_again() {
        let taken = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        tokio::time::pause();
        let _server = tokio::spawn(keep_serving("test", address, false, echo().into()));
        sleep(BIND_RETRY / 2).await;
        drop(taken);
        sleep(BIND_RETRY).await;
        let text = answer(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
}

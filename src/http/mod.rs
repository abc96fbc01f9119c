//! A small HTTP server: health, metrics and health-check node ports listen with it.
//!
//! It knows nothing of what it serves; the caller hands it a function from request to reply.
//! Everything a stranger could use up is bounded: connections, by their number and peer, header size, time to send a
//! request and to take the reply. There is one reply to a connection.

mod diagnostics;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod listen;
mod local;
mod slots;

pub use diagnostics::{Encode, Pages, diagnostics};
pub use listen::{bind, bind_exclusive};
pub use local::{LocalRoutes, ask_local, bind_local, serve_local};
pub use slots::{SlotLimits, Slots};

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use slots::Slot;
use std::borrow::Cow;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, trace, warn};

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Header lines of a request.
const MAX_HEADERS: usize = 64;
/// For the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For a whole connection, from its start to the last byte of the reply.
const CONNECTION_LIFE: Duration = Duration::from_secs(15);
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

/// The value of a parameter in a query, decoded; empty if it has none.
#[must_use]
pub fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == name).then_some(value))
}

/// A path with a query; every character of the values that means something in one is escaped.
#[must_use]
pub fn path_with_query(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters);
    format!("{path}?{}", query.finish())
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
    /// Makes the answer to a query.
    pub answer: Arc<dyn Fn(&str) -> Answering + Send + Sync>,
}

/// What a server serves: routes, and pages whose answer takes a while.
#[derive(Clone)]
pub struct Site {
    /// All paths but the slow ones.
    pub routes: Routes,
    /// The slow ones.
    pub slow: Vec<SlowPage>,
    /// Shared with other sites.
    pub slots: Arc<Slots>,
}

impl Site {
    /// Without slow pages.
    #[must_use]
    pub fn of(routes: Routes, slots: &Arc<Slots>) -> Self {
        Site { routes, slow: Vec::new(), slots: Arc::clone(slots) }
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
                match serve(listener, site).await {}
            }
            Err(error) if hard_fail => return Err(error),
            Err(error) => warn!(server = what, %address, %error, "cannot listen, will try again"),
        }
        sleep(BIND_RETRY).await;
    }
}

/// Serves a listener until dropped. Dropping ends its connections too.
pub async fn serve(listener: TcpListener, site: Site) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A client that has gone again has no address.
                let slot = stream.local_addr().ok().and_then(|local| site.slots.take(local, peer));
                if let Some(slot) = slot {
                    connections.spawn(converse(stream, site.clone(), slot));
                    site.slots.let_end().await;
                }
            }
            // The peer's doing: one that hangs up early holds up no other.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                trace!(%error, "cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One connection, from start to end.
async fn converse(stream: TcpStream, site: Site, mut slot: Slot) {
    tokio::select! {
        () = converse_by(stream, CONNECTION_LIFE, |request| route(&site, &request)) => {}
        () = slot.closed() => trace!("a connection makes room for another one"),
    }
}

fn route(site: &Site, request: &http::Request<Incoming>) -> Answering {
    let (method, uri) = (request.method().as_str(), request.uri());
    if let Some(slow) = site.slow.iter().find(|slow| slow.path == uri.path()) {
        return (slow.answer)(uri.query().unwrap_or_default());
    }
    let reply = (site.routes)(Request { method, path: uri.path(), query: uri.query().unwrap_or_default() });
    Box::pin(async { reply })
}

/// One connection over whatever stream, with a function from request to reply: one request, one reply. What a stranger
/// does wrong is worth a line at level `trace` only, or he could fill the log.
async fn converse_by<A: Future<Output = Reply>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    life: Duration,
    answer: impl Fn(http::Request<Incoming>) -> A,
) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let reply = answer(request);
        async move { Ok::<_, Infallible>(response(reply.await)) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
    // Header names as kube-proxy spells them.
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS).title_case_headers(true);
    match timeout(life, builder.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => trace!(%error, "connection ended"),
        Err(_) => trace!(?life, "a connection took too long"),
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
    use rstest::rstest;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::yield_now;
    use tokio::time::Instant;

    const SLOTS: SlotLimits = SlotLimits { node: 4, others: 4, peer: 2, listeners: 0 };

    /// Starts a server on a free port.
    fn start(site: Site) -> (SocketAddr, tokio::task::JoinHandle<Infallible>) {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        (address, tokio::spawn(serve(listener, site)))
    }

    fn echo() -> Site {
        let echo = |request: Request<'_>| {
            Reply::text(200, format!("{} {} {}", request.method, request.path, request.query))
        };
        Site::of(Arc::new(echo), &Slots::new(SLOTS))
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
        assert!(text.contains("Content-Type: text/plain; charset=utf-8\r\n"), "{text}");
        assert!(text.contains("X-Content-Type-Options: nosniff\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nDELETE /a/b c=d"), "{text}");
    }

    #[rstest]
    #[case("name=a/b&x=1", Some("a/b"))]
    #[case("x&name", Some(""))]
    #[case("name=a=b&name=c", Some("a=b"))]
    #[case("names=a&=name", None)]
    #[case("", None)]
    fn the_first_parameter_of_a_name_counts(#[case] query: &str, #[case] wanted: Option<&str>) {
        assert_eq!(parameter(query, "name").as_deref(), wanted);
    }

    #[rstest]
    #[case("a/b&name=c")]
    #[case("a=b#c d+e%41/\u{e4}")]
    fn what_is_put_into_a_query_is_read_out_of_it(#[case] value: &str) {
        let path = path_with_query("/v1/service", &[("x", "1"), ("name", value)]);
        let (_, query) = path.split_once('?').unwrap();
        assert_eq!(parameter(query, "name").as_deref(), Some(value));
        assert!(path.parse::<http::Uri>().is_ok(), "{path}");
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

    /// Opens a connection, says this and reads what comes until the end, on paused time; how long that took.
    async fn until_closed(address: SocketAddr, said: &str) -> (Duration, Vec<u8>) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        yield_now().await;
        tokio::time::pause();
        let (start, mut bytes) = (Instant::now(), Vec::new());
        let ended = timeout(Duration::from_secs(600), stream.read_to_end(&mut bytes)).await;
        assert!(ended.is_ok(), "still open after {:?}", start.elapsed());
        (start.elapsed(), bytes)
    }

    #[rstest]
    #[case::silence("")]
    #[case::half_a_head("GET / HT")]
    #[case::a_head_without_end("GET / HTTP/1.1\r\nhost: x\r\n")]
    #[tokio::test]
    async fn a_connection_without_a_request_is_closed(#[case] said: &str) {
        let (address, _server) = start(echo());
        let (took, bytes) = until_closed(address, said).await;
        assert!(took <= HEAD_TIMEOUT + Duration::from_millis(100) && bytes.is_empty(), "{took:?} {bytes:?}");
    }

    #[tokio::test]
    async fn there_is_one_reply_to_a_connection() {
        let (address, _server) = start(echo());
        let request = "GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
        let text = answer(address, &request.repeat(3)).await;
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 1, "{text}");
        assert!(text.contains("Connection: close\r\n"), "{text}");
    }

    /// A connection that asks and does not take the reply.
    async fn reader_that_does_not_read(address: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream
    }

    #[tokio::test]
    async fn a_reply_that_nobody_takes_is_given_up() {
        const LARGE: usize = 64 << 20;
        let (routes, slots): (Routes, _) =
            (Arc::new(|_| Reply::text(200, vec![b'x'; LARGE])), Slots::new(SLOTS));
        let (address, _server) = start(Site::of(routes, &slots));
        let mut stream = reader_that_does_not_read(address).await;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(slots.open(), 1);
        tokio::time::pause();
        sleep(CONNECTION_LIFE + Duration::from_millis(10)).await;
        assert_eq!(slots.open(), 0);
    }

    #[tokio::test]
    async fn the_oldest_connection_makes_room_and_the_newest_is_answered() {
        let (address, _server) = start(echo());
        let mut idle = Vec::new();
        for _ in 0..3 * SLOTS.node {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let text = answer(address, "GET /late HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(text.ends_with("GET /late "), "{text}");
        let mut byte = [0];
        for stream in &mut idle[..2 * SLOTS.node] {
            assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)), "still open");
        }
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_with_hard_fail() {
        let taken = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = keep_serving("test", address, true, echo()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_taken_address_is_tried_again() {
        let taken = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        tokio::time::pause();
        let _server = tokio::spawn(keep_serving("test", address, false, echo()));
        sleep(BIND_RETRY / 2).await;
        drop(taken);
        sleep(BIND_RETRY).await;
        let text = answer(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
}

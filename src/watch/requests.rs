//! Requests to an API server: pages of lists, and watches.

use super::client::Connection;
use super::failure::{Bound, Cause};
use super::objects::ApiObject;
use super::wire::{self, Encoding, Frames, Page, Status};
use form_urlencoded::Serializer;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use kube::client::Body;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// This much is read of what a server says instead of an answer ...
const MOST_OF_A_REFUSAL: usize = 64 << 10;
/// ... and for this long.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What an API server may send; more is an error.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of one event of a watch.
    pub event: usize,
    /// Bytes of one page of a list, unpacked.
    pub page: usize,
    /// Pages of a list.
    pub pages: usize,
    /// Objects of a list.
    pub objects: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        // An event as client-go; etcd has 1.5 MiB for an object.
        Bounds { event: 16 << 20, page: 32 << 20, pages: 10_000, objects: 500_000 }
    }
}

impl Bounds {
    pub(super) fn check_objects(&self, found: usize) -> Result<(), Cause> {
        match found > self.objects {
            true => Err(Cause::TooLarge { what: Bound::Objects, limit: self.objects }),
            false => Ok(()),
        }
    }
}

/// The encodings that we request, as far as the server has them.
#[derive(Debug)]
pub(super) struct Negotiation {
    accept: Accept,
    /// The server has refused all but JSON.
    only_json: AtomicBool,
    said: AtomicBool,
}

/// The encodings that we request, the best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept(Vec<Encoding>);

impl Default for Accept {
    fn default() -> Self {
        Accept(vec![Encoding::Protobuf, Encoding::Json])
    }
}

impl Accept {
    /// As client-go: `acceptContentTypes` if it is set, else `contentType` and then anything. Types that we cannot
    /// read are not asked for; JSON is what remains.
    #[must_use]
    pub fn of(content_type: &str, accept_content_types: &str) -> Self {
        let is_open = accept_content_types.trim().is_empty();
        let named = if is_open { content_type } else { accept_content_types };
        let mut accepted = Vec::new();
        for encoding in named.split(',').filter_map(Encoding::named).chain(is_open.then_some(Encoding::Json))
        {
            if !accepted.contains(&encoding) {
                accepted.push(encoding);
            }
        }
        if accepted.is_empty() {
            accepted.push(Encoding::Json);
        }
        Accept(accepted)
    }

    fn header(&self) -> String {
        self.0.iter().map(|encoding| encoding.media_type()).collect::<Vec<_>>().join(",")
    }
}

impl Negotiation {
    pub(super) fn new(accept: Accept) -> Self {
        Negotiation { accept, only_json: AtomicBool::new(false), said: AtomicBool::new(false) }
    }

    fn accepted(&self) -> String {
        match self.only_json.load(Ordering::Relaxed) {
            true => Encoding::Json.media_type().to_owned(),
            false => self.accept.header(),
        }
    }

    /// Whether the answer to what accepted these types means that the same is to be asked for in JSON.
    fn is_refused(&self, accepted: &str, status: StatusCode) -> bool {
        let is_about_types =
            [StatusCode::NOT_ACCEPTABLE, StatusCode::UNSUPPORTED_MEDIA_TYPE].contains(&status);
        let is_refused = is_about_types && accepted != Encoding::Json.media_type();
        if is_refused {
            self.only_json.store(true, Ordering::Relaxed);
            self.say();
        }
        is_refused
    }

    fn note(&self, answered: Encoding) {
        if answered == Encoding::Json && self.accept.0.first() == Some(&Encoding::Protobuf) {
            self.say();
        }
    }

    fn say(&self) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::info!("the API server answers in JSON, not in protobuf: about twice the traffic");
        }
    }
}

/// Where a watch begins.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// With all objects that there are, and a mark at their end.
    WithObjects,
    /// After a version.
    After(&'a str),
}

/// Objects of one kind at an API server: all that the selectors name.
#[derive(Clone)]
pub(super) struct Collection {
    connection: Connection,
    negotiation: Arc<Negotiation>,
    /// No other server may answer, if there is one here.
    server: Option<Arc<str>>,
    pub(super) bounds: Bounds,
    path: String,
    labels: String,
    fields: String,
}

impl Collection {
    /// All objects of a kind.
    pub(super) fn all<K: ApiObject>(connection: Connection, negotiation: Arc<Negotiation>) -> Self {
        Collection {
            connection,
            negotiation,
            server: None,
            bounds: Bounds::default(),
            path: format!("{}/{}", K::API, K::PLURAL),
            labels: String::new(),
            fields: String::new(),
        }
    }

    /// Those of one namespace.
    pub(super) fn namespaced<K: ApiObject>(
        connection: Connection,
        negotiation: Arc<Negotiation>,
        namespace: &str,
    ) -> Self {
        let path = format!("{}/namespaces/{namespace}/{}", K::API, K::PLURAL);
        Collection { path, ..Collection::all::<K>(connection, negotiation) }
    }

    /// Only as long as it is this server that answers.
    pub(super) fn at(self, server: Arc<str>) -> Self {
        Collection { server: Some(server), ..self }
    }

    pub(super) fn bounded(self, bounds: Bounds) -> Self {
        Collection { bounds, ..self }
    }

    pub(super) fn selecting(self, labels: &str, fields: &str) -> Self {
        Collection { labels: labels.to_owned(), fields: fields.to_owned(), ..self }
    }

    /// One page of a list, and what its objects are in.
    pub(super) async fn page(&self, limit: u32, token: Option<&str>) -> Result<(Encoding, Page), Cause> {
        let packed = self.connection.is_remote();
        let answer = self.get(self.page_query(limit, token), packed).await?;
        let encoding = Encoding::of(answer.headers());
        let (head, body) = answer.into_parts();
        let page = wire::read_page(&head.headers, body, self.bounds.page).await?;
        Ok((encoding, encoding.page(page).await.map_err(Cause::Unreadable)?))
    }

    /// A watch that the server is to end after some time. Servers pack none.
    pub(super) async fn watch(&self, start: Start<'_>, time: Duration) -> Result<Frames, Cause> {
        let answer = self.get(self.watch_query(start, time), false).await?;
        let encoding = Encoding::of(answer.headers());
        Ok(Frames::new(answer.into_body(), encoding, self.bounds.event))
    }

    /// Never with a version: the server would then ignore the limit.
    fn page_query(&self, limit: u32, token: Option<&str>) -> String {
        let mut query = self.query();
        query.append_pair("limit", &limit.to_string());
        if let Some(token) = token {
            query.append_pair("continue", token);
        }
        query.finish()
    }

    fn watch_query(&self, start: Start<'_>, time: Duration) -> String {
        let mut query = self.query();
        query.append_pair("watch", "true").append_pair("allowWatchBookmarks", "true");
        query.append_pair("timeoutSeconds", &time.as_secs().to_string());
        match start {
            Start::After(version) => query.append_pair("resourceVersion", version),
            Start::WithObjects => query
                .append_pair("sendInitialEvents", "true")
                .append_pair("resourceVersionMatch", "NotOlderThan")
                .append_pair("resourceVersion", "0"),
        };
        query.finish()
    }

    fn query(&self) -> Serializer<'static, String> {
        let mut query = Serializer::new(String::new());
        for (name, selector) in [("labelSelector", &self.labels), ("fieldSelector", &self.fields)] {
            if !selector.is_empty() {
                query.append_pair(name, selector);
            }
        }
        query
    }

    /// An answer that is no refusal.
    async fn get(&self, query: String, packed: bool) -> Result<Response<Incoming>, Cause> {
        loop {
            let accepted = self.negotiation.accepted();
            let request = self.request(&query, &accepted, packed);
            let request = request.map_err(|error| Cause::NoAnswer(error.into()))?;
            let answer = self.connection.send(self.server.as_ref(), request).await;
            let answer = answer.map_err(Cause::NoAnswer)?;
            if answer.status().is_success() {
                self.negotiation.note(Encoding::of(answer.headers()));
                return Ok(answer);
            }
            if !self.negotiation.is_refused(&accepted, answer.status()) {
                return Err(Cause::Status(refusal(answer).await));
            }
        }
    }

    fn request(&self, query: &str, accepted: &str, packed: bool) -> Result<Request<Body>, http::Error> {
        Request::get(format!("{}?{query}", self.path))
            .header(header::ACCEPT, accepted)
            .header(header::ACCEPT_ENCODING, if packed { "gzip" } else { "identity" })
            .body(Body::empty())
    }
}

/// What a server says instead of an answer, as far as it can be read.
async fn refusal(answer: Response<Incoming>) -> Status {
    let (encoding, status) = (Encoding::of(answer.headers()), answer.status());
    let body = Limited::new(answer.into_body(), MOST_OF_A_REFUSAL).collect();
    let body = match tokio::time::timeout(REFUSAL_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => bytes::Bytes::new(),
    };
    Status::decode_answer(encoding, &body).unwrap_or_else(|| Status {
        code: status.as_u16().into(),
        message: String::from_utf8_lossy(&body).trim().to_owned(),
        reason: status.canonical_reason().unwrap_or_default().to_owned(),
    })
}

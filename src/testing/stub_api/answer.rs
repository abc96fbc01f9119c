//! Requests and what becomes of them.

use super::place::Place;
use super::selector::Selector;
use super::store::{Encoding, Page, Stored, Wanted, Written};
use super::{
    Behaviour, Expired, Fault, InitialEvents, Protobuf, Resource, Seen, Shared, Verb, lock, protobuf, write,
};
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Answer = Response<Body>;

/// An order to all open watches.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Disconnect,
    End,
    Expire,
    Bookmark,
    Say(Resource, Arc<str>),
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// About this many bytes are put into one piece of an answer.
const PIECE: usize = 64 * 1024;
const EVER: Duration = Duration::from_secs(86_400);

pub(super) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Answer> {
    if request.method() == Method::POST && names_events(request.uri().path()) {
        return post_event(&shared, request).await;
    }
    let query = parse_query(request.uri().query().unwrap_or_default());
    let watching = matches!(parameter(&query, "watch"), Some("true" | "1"));
    let Some(place) = Place::parse(request.uri().path()) else {
        return Ok(status(404, "NotFound", "the server could not find the requested resource"));
    };
    let accept = request.headers().get(hyper::header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let accept = accept.unwrap_or_default().to_owned();
    let Some(verb) = place.verb(request.method(), watching) else {
        return Ok(status(405, "MethodNotAllowed", "the stub server does not do this"));
    };
    let asked = Seen { resource: place.resource, verb, query, accept };
    lock(&shared.seen).push(asked.clone());
    let (fault, behaviour) = behaviour_towards(&shared, &asked);
    if let Some(fault) = fault {
        return fail(fault, &asked).await;
    }
    // The first type that is accepted counts, as in a real server.
    let accepts_json = asked.accept.contains("json") || !asked.accept.contains(PROTOBUF);
    let encoding = match behaviour.protobuf {
        Protobuf::Spoken if asked.accept.starts_with(PROTOBUF) => Encoding::Protobuf,
        _ if !accepts_json => return Ok(status(406, "NotAcceptable", "there is no such media type")),
        Protobuf::Refused(code) if asked.accept.contains(PROTOBUF) => {
            return Ok(status(code, "NotAcceptable", "only the following media types are accepted"));
        }
        _ => Encoding::Json,
    };
    if behaviour.token.as_ref().is_some_and(|token| !carries(&request, token)) {
        return Ok(status(401, "Unauthorized", "Unauthorized"));
    }
    if !matches!(verb, Verb::List | Verb::Watch) {
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        return Ok(write::answer(&shared, &place, verb, serde_json::from_slice(&body).unwrap_or_default()));
    }
    let selector = Selector::parse(asked.parameter("labelSelector"), asked.parameter("fieldSelector"));
    let Some(mut selector) = selector else {
        return Ok(status(400, "BadRequest", "the stub server does not know such selectors"));
    };
    if let Some(namespace) = &place.namespace {
        selector.within(namespace);
    }
    Ok(match verb {
        Verb::Watch => watch(shared, &asked, selector, behaviour, encoding),
        _ => list(&shared, &asked, &selector, encoding),
    })
}

/// Whether a request has this token and no other.
fn carries<B>(request: &Request<B>, token: &str) -> bool {
    let sent: Vec<_> = request.headers().get_all(hyper::header::AUTHORIZATION).iter().collect();
    sent == [format!("Bearer {token}").as_str()]
}

/// Whether a path is that of a namespace's Events.
fn names_events(path: &str) -> bool {
    let namespace = path.strip_prefix("/apis/events.k8s.io/v1/namespaces/");
    namespace.and_then(|rest| rest.strip_suffix("/events")).is_some_and(|name| !name.contains('/'))
}

/// POST of an Event, which is kept for the test and sent to no watch.
async fn post_event(shared: &Shared, request: Request<Incoming>) -> io::Result<Answer> {
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let Ok(event) = serde_json::from_slice::<Value>(&body) else {
        return Ok(status(400, "BadRequest", "this is no Event"));
    };
    let mut answer = Response::new(full(event.to_string()));
    *answer.status_mut() = StatusCode::CREATED;
    lock(&shared.events).push(event);
    Ok(answer)
}

/// What a request that goes wrong gets.
async fn fail(fault: Fault, asked: &Seen) -> io::Result<Answer> {
    match fault {
        Fault::Status(403) => Ok(forbidden(asked)),
        Fault::Status(code) => Ok(status(code, "InternalError", "the stub server was told to fail")),
        Fault::Hang => std::future::pending().await,
        Fault::Drop => Err(io::Error::other("the stub server was told to hang up")),
        Fault::Garbage(text) => Ok(Response::new(full(text))),
        Fault::Endless(text) => Ok(Response::new(endless(&text))),
        Fault::Silence => Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(stream::pending())))),
        Fault::EndlessRefusal => {
            let mut answer = Response::new(endless("no "));
            *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            Ok(answer)
        }
        Fault::Invalid(message) => Ok(status(422, "Invalid", &message)),
    }
}

fn behaviour_towards(shared: &Shared, asked: &Seen) -> (Option<Fault>, Behaviour) {
    let mut behaviour = lock(&shared.behaviour);
    let fits = |rule: &&mut super::Rule| {
        rule.resource.is_none_or(|resource| resource == asked.resource)
            && rule.verb.is_none_or(|verb| verb == asked.verb)
            && rule.times != Some(0)
    };
    let rule = behaviour.rules.iter_mut().find(fits);
    let fault = rule.map(|rule| {
        rule.times = rule.times.map(|times| times - 1);
        rule.fault.clone()
    });
    (fault, behaviour.clone())
}

fn forbidden(asked: &Seen) -> Answer {
    let verb = match asked.verb {
        Verb::List => "list",
        Verb::Watch => "watch",
        Verb::Patch => "patch",
        Verb::Get => "get",
        Verb::Create => "create",
        Verb::Update => "update",
        Verb::Delete => "delete",
    };
    let plural = asked.resource.plural();
    status(
        403,
        "Forbidden",
        &format!("{plural} is forbidden: User \"stub\" cannot {verb} resource \"{plural}\""),
    )
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Answer {
    let mut answer = Response::new(full(status_object(code, reason, message).to_string()));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}

fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

/// An answer that says what it is in.
fn typed(encoding: Encoding, body: Body) -> Answer {
    let mut answer = Response::new(body);
    let media_type = if encoding == Encoding::Protobuf { PROTOBUF } else { "application/json" };
    answer.headers_mut().insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

pub(super) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

fn endless(text: &str) -> Body {
    let piece = Bytes::from(text.repeat(PIECE.div_ceil(text.len().max(1))));
    BodyExt::boxed_unsync(StreamBody::new(stream::repeat_with(move || Ok(Frame::data(piece.clone())))))
}

/// A `continue` token is the version of the first page and the last key of the page before.
fn list(shared: &Shared, asked: &Seen, selector: &Selector, encoding: Encoding) -> Answer {
    let limit = asked.parameter("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let store = lock(&shared.store);
    let (version, after) = match asked.parameter("continue").map(|token| token.split_once(' ')) {
        None => (store.version, None),
        Some(Some((version, key))) => (version.parse().unwrap_or_default(), Some(key)),
        Some(None) => return status(400, "BadRequest", "this is no continue token"),
    };
    if version < store.oldest {
        return status(410, "Expired", "the provided continue parameter is too old");
    }
    let page = store.page(asked.resource, selector, after, limit.unwrap_or(usize::MAX));
    drop(store);
    typed(encoding, full(list_object(encoding, asked.resource, version, &page)))
}

/// What kube-apiserver v1.36.2 sends, with code 500, where etcd is older than 3.5.13.
fn failed_event(encoding: Encoding, code: u16) -> Vec<u8> {
    let message = "a watch stream was requested by the client but the required storage feature \
                   RequestWatchProgress is disabled";
    encoding.event("ERROR", &Written::new(&status_object(code, "InternalError", message)))
}

fn list_object(encoding: Encoding, resource: Resource, version: u64, page: &Page) -> Vec<u8> {
    let next = page.next.as_ref().map(|key| format!("{version} {key}")).unwrap_or_default();
    let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
    let (kind, api_version) = (format!("{}List", resource.kind()), resource.api_version());
    if encoding == Encoding::Protobuf {
        let items = page.items.iter().map(|item| item.written.protobuf());
        return protobuf::wrapped(api_version, &kind, &protobuf::list(&metadata, items));
    }
    let items: Vec<_> = page.items.iter().map(|item| item.written.text.as_str()).collect();
    let items = items.join(",");
    format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":[{items}]}}"#)
        .into_bytes()
}

fn watch(
    shared: Arc<Shared>,
    asked: &Seen,
    selector: Selector,
    behaviour: Behaviour,
    encoding: Encoding,
) -> Answer {
    let from: u64 =
        asked.parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
    let initial = asked.parameter("sendInitialEvents") == Some("true");
    if let (true, InitialEvents::Rejected(code)) = (initial, behaviour.initial_events) {
        return status(
            code,
            "Invalid",
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch",
        );
    }
    let store = lock(&shared.store);
    let expired = from != 0 && from < store.oldest;
    if expired && behaviour.expired == Expired::Http {
        return status(410, "Expired", "too old resource version");
    }
    let ending = match behaviour.initial_events {
        InitialEvents::Failed(code) if initial => Some(failed_event(encoding, code)),
        _ => expired.then(|| gone_event(encoding)),
    };
    let everything = from == 0 || initial;
    let page = everything.then(|| store.page(asked.resource, &selector, None, usize::MAX));
    let cursor = if everything { store.version } else { from };
    drop(store);
    let seconds = asked.parameter("timeoutSeconds").and_then(|seconds| seconds.parse().ok());
    let watch = Watch {
        encoding,
        resource: asked.resource,
        selector,
        cursor,
        initial: page.map(|page| page.items.into()).unwrap_or_default(),
        after_initial: initial.then_some(behaviour.initial_events),
        bookmarks: asked.parameter("allowWatchBookmarks") == Some("true"),
        bookmark_every: behaviour.bookmark_every.unwrap_or(EVER),
        dribble: behaviour.dribble,
        unsent: Bytes::new(),
        ends: Instant::now() + seconds.map_or(EVER, Duration::from_secs),
        ending: ending.map(Bytes::from),
        changed: shared.version.subscribe(),
        commands: shared.commands.subscribe(),
        open: Open::count(shared, asked.resource),
    };
    let frames = stream::unfold(watch, |mut watch| async move {
        let piece = watch.piece().await?;
        Some((piece.map(Frame::data), watch))
    });
    typed(encoding, BodyExt::boxed_unsync(StreamBody::new(frames)))
}

fn gone_event(encoding: Encoding) -> Vec<u8> {
    encoding.event("ERROR", &Written::new(&status_object(410, "Expired", "too old resource version")))
}

/// Counts an open watch for as long as it lives.
struct Open {
    shared: Arc<Shared>,
    resource: Resource,
}

impl Open {
    fn count(shared: Arc<Shared>, resource: Resource) -> Self {
        lock(&shared.open)[resource as usize] += 1;
        Open { shared, resource }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.shared.open)[self.resource as usize] -= 1;
    }
}

/// An open watch.
struct Watch {
    encoding: Encoding,
    resource: Resource,
    selector: Selector,
    /// Everything up to this version has been sent.
    cursor: u64,
    /// Objects of the first picture that are still to be sent ...
    initial: VecDeque<Arc<Stored>>,
    /// ... and what comes after them.
    after_initial: Option<InitialEvents>,
    bookmarks: bool,
    bookmark_every: Duration,
    dribble: Option<Duration>,
    /// Text that is dribbling out.
    unsent: Bytes,
    ends: Instant,
    /// The last words, once it is clear that this watch ends; empty for none.
    ending: Option<Bytes>,
    changed: watch::Receiver<u64>,
    commands: broadcast::Receiver<Command>,
    open: Open,
}

impl Watch {
    /// The next piece of the answer; `None` is its end, an error cuts the connection.
    async fn piece(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if !self.unsent.is_empty() {
                return Some(Ok(self.dribbled().await));
            }
            if let Some(last) = self.ending.take() {
                self.ending = Some(Bytes::new());
                return (!last.is_empty()).then_some(Ok(last));
            }
            let pending = self.pending();
            if !pending.is_empty() {
                self.unsent = pending.into();
                continue;
            }
            match self.after_initial.take() {
                Some(InitialEvents::Ended) => return None,
                Some(InitialEvents::Cut) => return Some(Err(io::Error::other("the stub server hangs up"))),
                _ => {}
            }
            if let Err(cut) = self.idle().await {
                return Some(Err(cut));
            }
        }
    }

    async fn dribbled(&mut self) -> Bytes {
        let Some(pause) = self.dribble else { return std::mem::take(&mut self.unsent) };
        tokio::time::sleep(pause).await;
        self.unsent.split_to(self.unsent.len().min(8))
    }

    /// What can be sent without waiting.
    fn pending(&mut self) -> Vec<u8> {
        let mut pending = Vec::new();
        while pending.len() < PIECE
            && let Some(object) = self.initial.pop_front()
        {
            pending.extend(self.encoding.event("ADDED", &object.written));
        }
        if !self.initial.is_empty() {
            return pending;
        }
        if self.after_initial.take_if(|after| *after == InitialEvents::Supported).is_some() {
            pending.extend(self.bookmark(&json!({"k8s.io/initial-events-end": "true"})));
            return pending;
        }
        if pending.is_empty() {
            // Marked as seen first, so that a change from here on wakes the watch again.
            self.changed.mark_unchanged();
            let store = lock(&self.open.shared.store);
            let wanted =
                Wanted { encoding: self.encoding, resource: self.resource, selector: &self.selector };
            (pending, self.cursor) = store.events(&wanted, self.cursor, PIECE);
        }
        pending
    }

    fn bookmark(&self, annotations: &Value) -> Vec<u8> {
        let metadata = json!({"resourceVersion": self.cursor.to_string(), "annotations": annotations});
        let (kind, api_version) = (self.resource.kind(), self.resource.api_version());
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        self.encoding.event("BOOKMARK", &Written::new(&object))
    }

    /// Waits for something to happen; an error is an order to cut the connection.
    async fn idle(&mut self) -> io::Result<()> {
        let command = tokio::select! {
            biased; // So that an order comes after the changes that were made before it.
            _ = self.changed.changed() => return Ok(()),
            command = self.commands.recv() => command.unwrap_or(Command::Disconnect),
            () = tokio::time::sleep_until(self.ends) => Command::End,
            () = tokio::time::sleep(self.bookmark_every) => Command::Bookmark,
        };
        match command {
            Command::Disconnect => return Err(io::Error::other("the stub server was told to disconnect")),
            Command::End => self.ending = Some(Bytes::new()),
            Command::Expire => self.ending = Some(gone_event(self.encoding).into()),
            Command::Bookmark if self.bookmarks => {
                self.unsent = self.bookmark(&json!({})).into();
            }
            Command::Say(resource, text) if resource == self.resource => {
                self.unsent = Bytes::copy_from_slice(text.as_bytes());
            }
            Command::Bookmark | Command::Say(..) => {}
        }
        Ok(())
    }
}

pub(super) fn parameter<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let pair = query.iter().find(|(key, value)| key == name && !value.is_empty());
    pair.map(|(_, value)| value.as_str())
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decoded(k), decoded(v)))
        .collect()
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query =
            parse_query("&watch=true&labelSelector=%21service.kubernetes.io%2Fheadless&continue=7+a%2Fb");
        assert_eq!(parameter(&query, "labelSelector"), Some("!service.kubernetes.io/headless"));
        assert_eq!(parameter(&query, "continue"), Some("7 a/b"));
        assert_eq!(parameter(&query, "limit"), None);
    }
}

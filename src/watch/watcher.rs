//! The walk of one kind of object: a list, and then watches, each from where the one before has ended.
//!
//! A failure is returned, and the next call goes on from there: from the last version where one is known, else with a
//! new list. The caller decides when to call again, and whether it needs another watcher.

use super::failure::{Bound, Cause, Failure, Verb};
use super::objects::{ApiObject, LIST_END_ANNOTATION};
use super::outage::random;
use super::requests::{Collection, Start};
use super::wire::{Decoded, Encoding, EventKind, Frames, Page, Status};
use bytes::Bytes;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::time::Duration;
use tokio::time::Instant;

/// What comes out of a walk.
pub(super) enum Event<K> {
    /// The server has taken a watch that goes on from a version.
    Opened,
    /// The server says how far a watch has got.
    Bookmark,
    /// A list begins.
    Listing,
    /// It names this object.
    Named(Decoded<K>),
    /// It is complete: what it has not named is gone.
    Listed,
    /// An object is there, new or changed.
    Applied(Decoded<K>),
    /// An object is gone.
    Deleted(Decoded<K>),
}

/// How a list is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListMode {
    /// As the beginning of a watch.
    Streaming,
    /// In pages of this many objects.
    Pages(u32),
}

enum State {
    Begin,
    /// A list in pages, between two objects.
    Paging(Paging),
    /// A list at the beginning of a watch, with the number of its objects so far.
    Streaming(Open, usize),
    /// Between two watches.
    Known(String),
    Watching(String, Open),
}

struct Paging {
    encoding: Encoding,
    objects: VecDeque<Bytes>,
    next: Option<String>,
    version: String,
    /// How many pages and objects there have been.
    pages: usize,
    total: usize,
}

/// A watch that runs.
struct Open {
    frames: Frames,
    /// When the server should have ended it.
    overdue: Instant,
}

/// How long a watch takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Between this and twice as long, so that a fleet of nodes does not ask in step: then the server ends it ...
    pub(super) watch: Duration,
    /// ... and if it has not done so after this time more, it is left.
    pub(super) grace: Duration,
}

/// One walk.
pub(super) struct Watcher<K> {
    collection: Collection,
    mode: ListMode,
    times: Times,
    state: State,
    kind: PhantomData<fn() -> K>,
}

impl<K: ApiObject> Watcher<K> {
    pub(super) fn new(collection: Collection, mode: ListMode, times: Times) -> Self {
        Watcher { collection, mode, times, state: State::Begin, kind: PhantomData }
    }

    /// The next event. Not to be dropped before it comes, unless the watcher is dropped, too.
    ///
    /// # Errors
    /// What has failed.
    pub(super) async fn next(&mut self) -> Result<Event<K>, Failure> {
        loop {
            // What fails leaves the state behind that comes after a failure.
            let event = match std::mem::replace(&mut self.state, State::Begin) {
                State::Begin => self.begin().await,
                State::Paging(paging) => self.page_on(paging).await,
                State::Streaming(open, total) => self.stream_on(open, total).await,
                State::Known(version) => self.resume(version).await,
                State::Watching(version, open) => self.watch_on(version, open).await,
            };
            if let Some(event) = event? {
                return Ok(event);
            }
        }
    }

    async fn begin(&mut self) -> Result<Option<Event<K>>, Failure> {
        self.state = match self.mode {
            ListMode::Streaming => State::Streaming(self.open(Start::WithObjects).await?, 0),
            ListMode::Pages(_) => State::Paging(Paging::begin()),
        };
        Ok(Some(Event::Listing))
    }

    /// The next object of a list in pages, or the next page.
    async fn page_on(&mut self, mut paging: Paging) -> Result<Option<Event<K>>, Failure> {
        if let Some(object) = paging.objects.pop_front() {
            let object = decoded(paging.encoding, object).await.map_err(list)?;
            self.state = State::Paging(paging);
            return Ok(Some(Event::Named(object)));
        }
        if paging.pages > 0 && paging.next.is_none() {
            self.state = State::Known(paging.version);
            return Ok(Some(Event::Listed));
        }
        let ListMode::Pages(limit) = self.mode else { return Ok(None) };
        let page = self.collection.page(limit, paging.next.as_deref()).await;
        page.and_then(|page| paging.take(page, &self.collection)).map_err(list)?;
        self.state = State::Paging(paging);
        Ok(None)
    }

    /// The next object of a list at the beginning of a watch.
    async fn stream_on(&mut self, mut open: Open, mut total: usize) -> Result<Option<Event<K>>, Failure> {
        let Some(frame) = open.next().await.map_err(watch)? else {
            return Err(watch(Cause::Unexpected("the stream ended before the end of the list was marked")));
        };
        let event = match change(open.frames.encoding(), frame).await.map_err(watch)? {
            Change::Version { version, ends_list: true } => {
                self.state = State::Watching(version, open);
                return Ok(Some(Event::Listed));
            }
            Change::Version { .. } => None,
            Change::Applied(_, object) => Some(Event::Named(object)),
            Change::Deleted(_, object) => Some(Event::Deleted(object)),
        };
        total += usize::from(event.is_some());
        self.collection.bounds.check_objects(total).map_err(watch)?;
        self.state = State::Streaming(open, total);
        Ok(event)
    }

    async fn resume(&mut self, version: String) -> Result<Option<Event<K>>, Failure> {
        match self.open(Start::After(&version)).await {
            Ok(open) => self.state = State::Watching(version, open),
            Err(failure) => return Err(self.failed(failure, version)),
        }
        Ok(Some(Event::Opened))
    }

    async fn watch_on(&mut self, version: String, mut open: Open) -> Result<Option<Event<K>>, Failure> {
        let change = match open.next().await {
            Ok(Some(frame)) => change(open.frames.encoding(), frame).await,
            Ok(None) => {
                self.state = State::Known(version);
                return Ok(None);
            }
            Err(cause) => Err(cause),
        };
        let (version, event) = match change {
            Ok(Change::Version { version, .. }) => (version, Some(Event::Bookmark)),
            Ok(Change::Applied(version, object)) => (version, Some(Event::Applied(object))),
            Ok(Change::Deleted(version, object)) => (version, Some(Event::Deleted(object))),
            Err(cause) => return Err(self.failed(watch(cause), version)),
        };
        self.state = State::Watching(version, open);
        Ok(event)
    }

    /// Goes on from the last version after a failure, unless that is no use.
    fn failed(&mut self, failure: Failure, version: String) -> Failure {
        if failure.leaves_version() {
            self.state = State::Known(version);
        }
        failure
    }

    async fn open(&self, start: Start<'_>) -> Result<Open, Failure> {
        let time = self.times.watch.mul_f64(1.0 + random());
        let frames = self.collection.watch(start, time).await.map_err(watch)?;
        Ok(Open { frames, overdue: Instant::now() + time + self.times.grace })
    }
}

impl Paging {
    fn begin() -> Self {
        let (objects, next, version) = (VecDeque::new(), None, String::new());
        Paging { encoding: Encoding::Json, objects, next, version, pages: 0, total: 0 }
    }

    fn take(&mut self, (encoding, page): (Encoding, Page), collection: &Collection) -> Result<(), Cause> {
        let bounds = &collection.bounds;
        self.pages += 1;
        self.total += page.objects.len();
        bounds.check_objects(self.total)?;
        if page.next.is_some() && page.next == self.next {
            return Err(Cause::Unexpected("the list goes in circles: a page names itself as the next one"));
        }
        if page.next.is_some() && self.pages == bounds.pages {
            return Err(Cause::TooLarge { what: Bound::Pages, limit: bounds.pages });
        }
        if page.next.is_none() && page.version.is_empty() {
            return Err(Cause::NoVersion);
        }
        self.encoding = encoding;
        (self.objects, self.next, self.version) = (page.objects.into(), page.next, page.version);
        Ok(())
    }
}

impl Open {
    /// The next frame; `None` is the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Cause> {
        // A server that has fallen silent has ended the watch, too.
        tokio::time::timeout_at(self.overdue, self.frames.next()).await.unwrap_or(Ok(None))
    }
}

/// What an event of a watch says.
enum Change<K> {
    /// It goes on from this version.
    Version {
        version: String,
        ends_list: bool,
    },
    Applied(String, Decoded<K>),
    Deleted(String, Decoded<K>),
}

async fn change<K: ApiObject>(encoding: Encoding, frame: Bytes) -> Result<Change<K>, Cause> {
    let event = encoding.event(frame).await.map_err(Cause::Unreadable)?;
    if event.kind == EventKind::Error {
        return Err(match Status::decode(encoding, &event.object) {
            Some(status) => Cause::Status(status),
            None => Cause::Unreadable("is an error of an unknown form".to_owned()),
        });
    }
    let object: Decoded<K> = decoded(encoding, event.object).await?;
    let metadata = object.metadata();
    let version = metadata.resource_version.clone().filter(|version| !version.is_empty());
    let version = version.ok_or(Cause::NoVersion)?;
    Ok(match event.kind {
        EventKind::Applied => Change::Applied(version, object),
        EventKind::Deleted => Change::Deleted(version, object),
        EventKind::Bookmark | EventKind::Error => {
            let ends_list = metadata.annotations.get(LIST_END_ANNOTATION) == Some("true");
            Change::Version { version, ends_list }
        }
    })
}

async fn decoded<K: ApiObject>(encoding: Encoding, bytes: Bytes) -> Result<Decoded<K>, Cause> {
    encoding.object(bytes).await.map_err(Cause::Unreadable)
}

fn list(cause: Cause) -> Failure {
    Failure { verb: Verb::List, cause }
}

fn watch(cause: Cause) -> Failure {
    Failure { verb: Verb::Watch, cause }
}

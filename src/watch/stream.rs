//! One watch: lists, follows, converts, and starts over as gently as possible.
//!
//! The walking is done by `watcher`. What it does not do is done here: pausing after failures, falling back to
//! lists in pages, noticing that a list has stalled, and saying all this once.
//!
//! Each attempt at the first list begins with a streaming list, which spares the API server. Whatever ends it
//! before its end is marked, the attempt goes on with a list in pages: servers, and what stands in front of
//! them, refuse, break and swallow streams in too many ways to tell them apart. Later lists come in pages.

use super::api::WatchOptions;
use super::client::Connection;
use super::convert::{Converted, named};
use super::failure::{Bound, Cause, Failure};
use super::objects::ApiObject;
use super::outage::{Backoff, Outage, random};
use super::requests::{Collection, Negotiation};
use super::watcher::{Event, ListMode, Times, Watcher};
use super::wire::Decoded;
use crate::model::{ObjectKind, WatchEvent, WatchNews, findings};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// For this time at least and twice of it at most, a server is not asked again for what it does not offer: an upgrade of the
/// cluster, or a changed role, can make a difference.
const UNOFFERED_PAUSE: Duration = Duration::from_secs(600);

/// What is watched, and what becomes of it.
pub(super) trait Source {
    /// The API object.
    type Object: ApiObject;
    /// The same for the rest of the program.
    const KIND: ObjectKind;
    /// All else works without it: a server need not have it, and the observer is not told of the watch.
    const IS_OPTIONAL: bool = false;

    /// The label selector.
    fn labels(&self) -> &'static str;
    /// The field selector.
    fn fields(&self) -> String;
    /// Whether an object is any of our business, should the server not heed the selectors.
    fn is_ours(&self, _name: &str) -> bool {
        true
    }
    /// The object in our own terms.
    fn convert(&self, object: &Self::Object) -> Converted<WatchEvent>;
    /// What to say when the object is gone.
    fn gone(&self, namespace: &str, name: &str) -> WatchEvent;
}

/// What the watches of one process have in common.
pub(super) struct Shared {
    pub(super) options: WatchOptions,
    pub(super) negotiation: Arc<Negotiation>,
    /// The server answers one of them again, so the other watches need not wait for their next attempt.
    pub(super) answered: Notify,
}

/// The receiver is gone.
pub(super) struct Closed;

/// A list under way.
struct Listing {
    started: Instant,
    progress: Instant,
    objects: usize,
}

impl Listing {
    fn begin() -> Self {
        let now = Instant::now();
        Listing { started: now, progress: now, objects: 0 }
    }
}

/// How to go on after a failure.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// The watcher knows where it was.
    Continue,
    /// It does not, or it was at another server: it takes a new one.
    StartOver,
}

/// What comes out of the watcher.
enum Step<K> {
    Event(Event<K>),
    Failure(Failure),
    /// The list takes too long.
    Overdue,
}

/// One watch.
pub(super) struct Stream<S> {
    source: S,
    connection: Connection,
    /// The server that the watcher which runs is at.
    url: Arc<str>,
    sender: mpsc::Sender<WatchEvent>,
    shared: Arc<Shared>,
    retries: Backoff,
    lists: Backoff,
    outage: Outage,
    told: Told,
    listing: Option<Listing>,
    /// When the watch was begun again after a failure.
    retried: Option<Instant>,
    /// It failed in a way that made a list due: whether it works, only itself can tell.
    doubted: bool,
    /// The last attempt at the first list was a streaming list, and has failed.
    stream_failed: bool,
    /// Whether the watcher that runs lists in pages.
    paged: bool,
    /// Objects in a page: fewer after a page that was too large.
    page_size: u32,
    /// There has been a whole list. Later ones come in pages: a streaming list begins at whatever age the server's
    /// cache has, and one that lags must not take us back in time.
    listed: bool,
}

impl<S: Source> Stream<S> {
    pub(super) fn new(
        source: S,
        connection: Connection,
        sender: mpsc::Sender<WatchEvent>,
        shared: Arc<Shared>,
    ) -> Self {
        let options = &shared.options;
        let retries = Backoff::for_retries(options.backoff_min, options.backoff_max);
        let lists = Backoff::for_lists(options.backoff_min, options.backoff_max);
        let page_size = options.page_size;
        Stream {
            source,
            url: connection.url(),
            connection,
            sender,
            shared,
            retries,
            lists,
            outage: Outage::default(),
            told: Told::default(),
            listing: None,
            retried: None,
            doubted: false,
            stream_failed: false,
            paged: false,
            page_size,
            listed: false,
        }
    }

    /// Runs until the receiver is gone.
    pub(super) async fn follow(&mut self) -> Closed {
        loop {
            if let Err(closed) = self.follow_once().await {
                return closed;
            }
        }
    }

    /// Runs one watcher until another one is needed.
    async fn follow_once(&mut self) -> Result<(), Closed> {
        self.paged = self.listed || self.stream_failed || !self.shared.options.streaming_lists;
        self.listing = Some(Listing::begin());
        self.url = self.connection.url();
        let mut watcher = self.watcher();
        loop {
            match self.step(&mut watcher).await {
                Step::Event(event) => self.pass_on(event).await?,
                Step::Failure(failure) => {
                    if self.recover(&failure).await == Remedy::StartOver {
                        return Ok(());
                    }
                }
                Step::Overdue => {
                    self.give_up_list().await;
                    return Ok(());
                }
            }
        }
    }

    fn watcher(&self) -> Watcher<S::Object> {
        let collection =
            Collection::all::<S::Object>(self.connection.clone(), self.shared.negotiation.clone())
                .at(self.url.clone())
                .bounded(self.shared.options.bounds)
                .selecting(self.source.labels(), &self.source.fields());
        let mode = if self.paged { ListMode::Pages(self.page_size) } else { ListMode::Streaming };
        let WatchOptions { watch_time, watch_grace, .. } = self.shared.options;
        Watcher::new(collection, mode, Times { watch: watch_time, grace: watch_grace })
    }

    async fn step(&mut self, watcher: &mut Watcher<S::Object>) -> Step<S::Object> {
        let mut next = pin!(watcher.next());
        let item = loop {
            let Some(deadline) = self.deadline() else { break next.await };
            match tokio::time::timeout_at(deadline, next.as_mut()).await {
                Ok(item) => break item,
                Err(_) if self.listing.is_some() => return Step::Overdue,
                // The watch was begun again after a failure, and would have failed by now.
                Err(_) => self.all_well(),
            }
        };
        match item {
            Ok(event) => Step::Event(event),
            Err(failure) => Step::Failure(failure),
        }
    }

    /// When the list under way has taken too long, or the watch long enough. While a watch runs, the watcher keeps
    /// the time.
    fn deadline(&self) -> Option<Instant> {
        match &self.listing {
            None => self.retried.map(|retried| retried + self.shared.options.quiet_limit),
            Some(listing) if self.paged => Some(listing.progress + self.shared.options.stall_limit),
            Some(listing) => Some(listing.started + self.shared.options.streaming_limit),
        }
    }

    async fn give_up_list(&mut self) {
        if self.paged {
            self.report("list", "the list makes no progress");
            self.stream_failed = false;
            self.wait_to_retry().await;
        } else {
            self.fall_back("the end of the list was not marked in time");
        }
    }

    async fn wait_to_retry(&mut self) {
        tokio::select! {
            () = tokio::time::sleep(self.retries.next()) => {}
            () = self.shared.answered.notified() => self.retries.start_over(),
        }
    }

    /// What the streaming list did not give comes in pages, at once.
    fn fall_back(&mut self, reason: &str) {
        self.stream_failed = true;
        if self.outage.failures() == 0 {
            tracing::info!(resource = Self::plural(), reason, "the streaming list failed; listing in pages");
        } else {
            tracing::debug!(resource = Self::plural(), reason, "the streaming list failed again");
        }
    }

    async fn pass_on(&mut self, event: Event<S::Object>) -> Result<(), Closed> {
        if let Some(listing) = &mut self.listing {
            listing.progress = Instant::now();
        }
        // Of a list, only the end says that it works.
        match event {
            Event::Listed => {
                match self.doubted {
                    true => self.retried = Some(Instant::now()),
                    false => self.all_well(),
                }
                self.shared.answered.notify_waiters();
            }
            Event::Applied(_) => self.all_well(),
            Event::Deleted(_) if self.listing.is_none() => self.all_well(),
            Event::Opened | Event::Bookmark | Event::Deleted(_) | Event::Listing | Event::Named(_) => {}
        }
        self.tell(&event);
        match self.news(event) {
            None => Ok(()),
            Some(news) => self.send(news).await,
        }
    }

    /// Hands on. The time for which the receiver does not take it does not count against a list's limits.
    async fn send(&mut self, news: WatchEvent) -> Result<(), Closed> {
        let before = Instant::now();
        self.sender.send(news).await.map_err(|_| Closed)?;
        if let Some(listing) = &mut self.listing {
            listing.started += before.elapsed();
            listing.progress = Instant::now();
        }
        Ok(())
    }

    /// Tells the observer that the server answers.
    fn tell(&self, event: &Event<S::Object>) {
        let is_first = self.listing.as_ref().is_some_and(|listing| listing.objects == 0);
        match event {
            // A list is told of when it begins and when it is complete, not once per object.
            Event::Listing => {}
            Event::Named(_) if !is_first => {}
            Event::Opened | Event::Named(_) => self.observe(WatchNews::Open),
            Event::Deleted(_) if self.listing.is_some() => {}
            Event::Bookmark | Event::Listed | Event::Applied(_) | Event::Deleted(_) => {
                self.observe(WatchNews::Event);
            }
        }
    }

    fn observe(&self, news: WatchNews<'_>) {
        if S::IS_OPTIONAL {
            return;
        }
        (self.shared.options.observer.0)(S::KIND, news);
    }

    fn all_well(&mut self) {
        self.retries.start_over();
        (self.retried, self.doubted) = (None, false);
        if let Some(failures) = self.outage.over() {
            tracing::info!(resource = Self::plural(), failures, "the watch works again");
            self.shared.answered.notify_waiters();
        }
    }

    /// What an event means to the rest of the program.
    fn news(&mut self, event: Event<S::Object>) -> Option<WatchEvent> {
        match event {
            Event::Opened | Event::Bookmark => None,
            Event::Listing => {
                self.listing.get_or_insert_with(Listing::begin).objects = 0;
                Some(WatchEvent::Listing(S::KIND))
            }
            Event::Listed => {
                self.log_list();
                self.listed = true;
                Some(WatchEvent::Listed(S::KIND))
            }
            Event::Named(object) | Event::Applied(object) => {
                if let Some(listing) = &mut self.listing {
                    listing.objects += 1;
                }
                // In a list, too: a count of events includes those of no use.
                self.convert(&object).or_else(|| self.gone(&object))
            }
            Event::Deleted(object) => {
                let (namespace, name) = names(&object);
                self.told.forget(namespace, name);
                self.gone(&object)
            }
        }
    }

    fn log_list(&mut self) {
        if let Some(Listing { started, objects, .. }) = self.listing.take() {
            tracing::info!(resource = Self::plural(), objects, elapsed = ?started.elapsed(), "listed");
        }
    }

    /// The object in our own terms, if it is ours and can be used. What is wrong with it is logged once.
    fn convert(&mut self, object: &Decoded<S::Object>) -> Option<WatchEvent> {
        let (namespace, name) = names(object);
        if !self.source.is_ours(name) {
            return None;
        }
        let (news, issues) = match object {
            Decoded::Object(object) => {
                let Converted { value, issues } = self.source.convert(object);
                (value, issues.iter().map(ToString::to_string).collect())
            }
            Decoded::Broken(broken) => (None, vec![broken.error.clone()]),
        };
        if self.told.is_news(namespace, name, &issues) {
            let (kind, object) = (S::Object::KIND, named(namespace, name));
            tracing::warn!(object, used = news.is_some(), "{kind} {object}: {}", findings(issues));
        }
        news
    }

    fn gone(&self, object: &Decoded<S::Object>) -> Option<WatchEvent> {
        let (namespace, name) = names(object);
        self.source.is_ours(name).then(|| self.source.gone(namespace, name))
    }

    async fn recover(&mut self, failure: &Failure) -> Remedy {
        // The list that this ends, if there is one, gets its full time again.
        self.listing = None;
        if S::IS_OPTIONAL && failure.is_not_offered() {
            self.go_without(failure).await;
            return Remedy::StartOver;
        }
        if !self.paged && !self.listed {
            self.fall_back(&failure.to_string());
            return Remedy::StartOver;
        }
        self.stream_failed = false;
        if matches!(failure.cause, Cause::TooLarge { what: Bound::PageBytes, .. }) {
            self.page_size = (self.page_size / 8).max(1);
        }
        if failure.needs_list() {
            self.doubted = true;
            self.wait_to_list(failure).await;
        } else {
            self.report(failure.verb.as_str(), &failure.to_string());
            self.wait_to_retry().await;
        }
        self.retried = Some(Instant::now());
        let moved = self.url != self.connection.url();
        if moved || !failure.leaves_version() { Remedy::StartOver } else { Remedy::Continue }
    }

    /// The server does not have these objects, or not for us. That is said once.
    async fn go_without(&mut self, failure: &Failure) {
        let (error, resource) = (failure.to_string(), Self::plural());
        self.outage.failed(&error);
        if self.outage.failures() == 1 {
            tracing::info!(resource, error, "the API server does not offer these; going on without them");
        }
        tokio::time::sleep(UNOFFERED_PAUSE.mul_f64(1.0 + random())).await;
    }

    /// Waits for nothing, unless such lists follow each other.
    async fn wait_to_list(&mut self, failure: &Failure) {
        let pause = self.lists.next();
        if failure.is_expired() && pause.is_zero() {
            self.retries.start_over();
            tracing::info!(resource = Self::plural(), "the resource version has expired; listing again");
        } else {
            self.report(failure.verb.as_str(), &failure.to_string());
        }
        tokio::time::sleep(pause).await;
    }

    fn report(&mut self, verb: &str, error: &str) {
        self.observe(WatchNews::Failed(error));
        let url = &*self.url;
        let news = self.outage.failed(error);
        let failures = self.outage.failures();
        if news {
            tracing::warn!(
                resource = Self::plural(),
                verb,
                url,
                error,
                failures,
                "the watch fails and is retried"
            );
        } else {
            tracing::debug!(resource = Self::plural(), verb, url, error, failures, "the watch still fails");
        }
    }

    fn plural() -> &'static str {
        S::Object::PLURAL
    }
}

fn names<K: ApiObject>(object: &Decoded<K>) -> (&str, &str) {
    let metadata = object.metadata();
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// Which objects have been complained about, so that each complaint is made once.
#[derive(Default)]
struct Told {
    /// Object to a hash of what was said.
    objects: HashMap<String, u64>,
}

impl Told {
    /// More than this many bad objects are no longer kept apart.
    const LIMIT: usize = 10_000;

    fn is_news(&mut self, namespace: &str, name: &str, issues: &[String]) -> bool {
        if issues.is_empty() {
            self.forget(namespace, name);
            return false;
        }
        if self.objects.len() >= Self::LIMIT {
            self.objects.clear();
        }
        let mut hasher = DefaultHasher::new();
        issues.hash(&mut hasher);
        let hash = hasher.finish();
        self.objects.insert(key(namespace, name), hash) != Some(hash)
    }

    fn forget(&mut self, namespace: &str, name: &str) {
        // Nearly always empty, and then not worth making a key for.
        if !self.objects.is_empty() {
            self.objects.remove(&key(namespace, name));
        }
    }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_complaint_is_made_once_until_it_changes_or_was_settled() {
        let mut told = Told::default();
        let (one, other) = (["one".to_owned()], ["other".to_owned()]);
        assert!(told.is_news("shop", "web", &one));
        assert!(!told.is_news("shop", "web", &one));
        assert!(told.is_news("shop", "db", &one));
        assert!(told.is_news("shop", "web", &other));
        assert!(!told.is_news("shop", "web", &[]));
        assert!(told.is_news("shop", "web", &other));
        told.forget("shop", "web");
        assert!(told.is_news("shop", "web", &other));
    }
}

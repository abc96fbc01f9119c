//! One watch: lists, follows, converts, and starts over as gently as possible.
//!
//! kube's `watcher` does the walking. What it does not do by itself is done here: pausing after
//! failures, falling back to lists in pages, noticing that a version has expired or that a list has
//! stalled, and saying all this once.

use super::api::WatchOptions;
use super::client::Connection;
use super::convert::Converted;
use super::decoded::Decoded;
use super::failure;
use super::outage::{Backoff, Outage};
use crate::model::{ObjectKind, WatchEvent};
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What is watched, and what becomes of it.
pub(super) trait Source {
    /// The API object.
    type Object: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static;
    /// The same for the rest of the program.
    const KIND: ObjectKind;

    /// The label selector.
    fn labels(&self) -> &'static str;
    /// The field selector.
    fn fields(&self) -> Option<String>;
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
    /// The server cannot stream lists. Never taken back: lists in pages work everywhere.
    pub(super) paged: AtomicBool,
}

/// Nobody listens any more.
pub(super) struct Closed;

/// A list under way.
struct Listing {
    started: Instant,
    progress: Instant,
    objects: usize,
}

/// How to go on after a failure.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// The watcher knows where it was.
    Continue,
    /// It does not, or its client is out of date: it takes a new one.
    StartOver,
}

/// What comes out of the watcher.
enum Step<K> {
    Event(Event<Decoded<K>>),
    Failure(watcher::Error),
    Overdue,
}

/// One watch.
pub(super) struct Stream<S> {
    source: S,
    connection: Connection,
    sender: mpsc::Sender<WatchEvent>,
    shared: Arc<Shared>,
    backoff: Backoff,
    outage: Outage,
    told: Told,
    listing: Option<Listing>,
    /// Whether the watcher that runs lists in pages. Another watch may have found out meanwhile
    /// that it has to.
    paged: bool,
    /// There has been a whole list. Later ones come in pages: kube begins a streaming list at
    /// whatever age the server's cache has, and one that lags must not take us back in time.
    listed: bool,
}

impl<S: Source> Stream<S> {
    pub(super) fn new(
        source: S,
        connection: Connection,
        sender: mpsc::Sender<WatchEvent>,
        shared: Arc<Shared>,
    ) -> Self {
        let backoff = Backoff::new(shared.options.backoff_min, shared.options.backoff_max);
        Stream {
            source,
            connection,
            sender,
            shared,
            backoff,
            outage: Outage::default(),
            told: Told::default(),
            listing: None,
            paged: false,
            listed: false,
        }
    }

    /// Runs until nobody listens any more.
    pub(super) async fn follow(&mut self) -> Closed {
        loop {
            if let Err(closed) = self.follow_once().await {
                return closed;
            }
        }
    }

    /// Runs one watcher until another one is needed.
    async fn follow_once(&mut self) -> Result<(), Closed> {
        self.paged = self.listed || self.shared.paged.load(Ordering::Relaxed);
        let api = Api::<Decoded<S::Object>>::all(self.connection.client());
        let mut events = pin!(watcher(api, self.config()));
        self.listing = None;
        loop {
            match self.step(events.as_mut()).await {
                Step::Event(Event::Init) if self.listed && !self.paged => return Ok(()),
                Step::Event(event) => self.pass_on(event).await?,
                Step::Failure(error) => {
                    if self.recover(&error).await == Remedy::StartOver {
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

    fn config(&self) -> watcher::Config {
        let options = &self.shared.options;
        let config = watcher::Config::default().timeout(options.watch_seconds);
        let config = match self.source.labels() {
            "" => config,
            labels => config.labels(labels),
        };
        let config = match self.source.fields() {
            None => config,
            Some(fields) => config.fields(&fields),
        };
        // Never `any_semantic`: the server then ignores the page size, and all objects come at once.
        if self.paged { config.page_size(options.page_size) } else { config.streaming_lists() }
    }

    async fn step(
        &self,
        mut events: Pin<&mut impl futures::Stream<Item = watcher::Result<Event<Decoded<S::Object>>>>>,
    ) -> Step<S::Object> {
        let next = events.next();
        let item = match self.deadline() {
            None => next.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, next).await {
                Ok(item) => item,
                Err(_) => return Step::Overdue,
            },
        };
        match item {
            Some(Ok(event)) => Step::Event(event),
            Some(Err(error)) => Step::Failure(error),
            // kube promises that this stream never ends; if it does, a new one is as good.
            None => Step::Overdue,
        }
    }

    /// When the list under way has taken too long. While a watch runs, kube itself keeps the time.
    fn deadline(&self) -> Option<Instant> {
        let listing = self.listing.as_ref()?;
        let options = &self.shared.options;
        Some(if self.paged {
            listing.progress + options.stall_limit
        } else {
            listing.started + options.streaming_limit
        })
    }

    async fn give_up_list(&mut self) {
        if self.paged {
            self.report("list", "the list makes no progress");
            tokio::time::sleep(self.backoff.next()).await;
        } else {
            self.fall_back("the server does not mark the end of the list");
        }
    }

    fn fall_back(&self, reason: &str) {
        // Another watch may have been faster; one line is enough.
        if !self.shared.paged.swap(true, Ordering::Relaxed) {
            tracing::info!(
                resource = Self::plural(),
                reason,
                "no streaming lists, listing in pages from now on"
            );
        }
    }

    async fn pass_on(&mut self, event: Event<Decoded<S::Object>>) -> Result<(), Closed> {
        if let Some(listing) = &mut self.listing {
            listing.progress = Instant::now();
        }
        // In pages, `Init` comes before anything is asked of the server.
        if !(matches!(event, Event::Init) && self.paged) {
            self.all_well();
        }
        match self.news(event) {
            None => Ok(()),
            Some(news) => self.send(news).await,
        }
    }

    /// Hands on. The time for which nobody takes it does not count against a list's limits.
    async fn send(&mut self, news: WatchEvent) -> Result<(), Closed> {
        let before = Instant::now();
        self.sender.send(news).await.map_err(|_| Closed)?;
        if let Some(listing) = &mut self.listing {
            listing.started += before.elapsed();
            listing.progress = Instant::now();
        }
        Ok(())
    }

    fn all_well(&mut self) {
        if let Some(failures) = self.outage.over() {
            tracing::info!(resource = Self::plural(), failures, "the watch works again");
        }
    }

    /// What an event means to the rest of the program.
    fn news(&mut self, event: Event<Decoded<S::Object>>) -> Option<WatchEvent> {
        match event {
            Event::Init => {
                let now = Instant::now();
                // Kept when a streaming list was cut short: the limit is for all attempts together.
                let listing = self.listing.get_or_insert(Listing { started: now, progress: now, objects: 0 });
                listing.objects = 0;
                Some(WatchEvent::Listing(S::KIND))
            }
            Event::InitDone => {
                self.log_list();
                self.listed = true;
                Some(WatchEvent::Listed(S::KIND))
            }
            Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    listing.objects += 1;
                }
                // What a list does not name is gone, so the unusable need not be named.
                self.convert(&object)
            }
            Event::Apply(object) => self.convert(&object).or_else(|| self.gone(&object)),
            Event::Delete(object) => {
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

    /// The object in our own terms, if it is ours and can be used. What is wrong with it is said once.
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
            for issue in issues {
                tracing::warn!(resource = Self::plural(), namespace, name, used = news.is_some(), issue);
            }
        }
        news
    }

    fn gone(&self, object: &Decoded<S::Object>) -> Option<WatchEvent> {
        let (namespace, name) = names(object);
        self.source.is_ours(name).then(|| self.source.gone(namespace, name))
    }

    async fn recover(&mut self, error: &watcher::Error) -> Remedy {
        // The list that this ends, if there is one, gets its full time again.
        self.listing = None;
        if !self.paged && failure::refuses_streaming(error) {
            self.fall_back(&failure::describe(error));
            return Remedy::StartOver;
        }
        self.report(failure::verb(error), &failure::describe(error));
        tokio::time::sleep(self.backoff.next()).await;
        let reopened = self.connection.reopen_if_changed().await;
        let reopened = reopened.unwrap_or_else(|error| {
            self.report("connect", &format!("{error:#}"));
            false
        });
        if reopened {
            tracing::info!(
                resource = Self::plural(),
                url = self.connection.url(),
                "connecting with the new files"
            );
        }
        if reopened || failure::needs_list(error) { Remedy::StartOver } else { Remedy::Continue }
    }

    fn report(&mut self, verb: &str, error: &str) {
        let url = self.connection.url();
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
        match S::KIND {
            ObjectKind::Service => "services",
            ObjectKind::EndpointSlice => "endpointslices",
            ObjectKind::Node => "nodes",
        }
    }
}

fn names<K: Resource<DynamicType = ()>>(object: &Decoded<K>) -> (&str, &str) {
    let metadata = object.meta();
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

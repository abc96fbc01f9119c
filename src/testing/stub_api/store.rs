//! The objects, their versions, and the history that watches are served from.

use super::selector::{Facts, Selector};
use super::{Resource, protobuf};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

/// An object as it is sent, written once in each encoding.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) text: String,
    protobuf: OnceLock<Vec<u8>>,
}

impl Written {
    pub(super) fn new(object: &Value) -> Self {
        Written { text: object.to_string(), protobuf: OnceLock::new() }
    }

    /// Without what is around it.
    pub(super) fn protobuf(&self) -> &[u8] {
        self.protobuf.get_or_init(|| protobuf::in_protobuf(&self.object()))
    }

    fn object(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    fn wrapped(&self) -> Vec<u8> {
        let object = self.object();
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        protobuf::wrapped(text("apiVersion"), text("kind"), self.protobuf())
    }
}

/// How answers are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    /// One event of a watch.
    pub(super) fn event(self, kind: &str, object: &Written) -> Vec<u8> {
        match self {
            Encoding::Json => format!("{{\"type\":\"{kind}\",\"object\":{}}}\n", object.text).into_bytes(),
            Encoding::Protobuf => protobuf::event(kind, &object.wrapped()),
        }
    }
}

/// One version of one object, shared by all who read it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) written: Written,
    facts: Facts,
}

impl Stored {
    fn new(mut object: Value, version: u64) -> Self {
        object["metadata"]["resourceVersion"] = Value::String(version.to_string());
        Stored { written: Written::new(&object), facts: Facts::of(&object) }
    }

    /// The same object with another version, as a deletion reports it.
    fn at(&self, version: u64) -> Self {
        Stored::new(self.written.object(), version)
    }
}

/// One step of history: what was there before, what is there now.
struct Step {
    version: u64,
    resource: Resource,
    before: Option<Arc<Stored>>,
    after: Option<Arc<Stored>>,
    /// The object with the version of this step, where it is gone.
    last: Option<Arc<Stored>>,
}

impl Step {
    /// The event a watch with this selector sees: leaving the selection is a deletion.
    fn event(&self, selector: &Selector) -> Option<(&'static str, &Stored)> {
        let before = self.before.as_ref().filter(|stored| selector.accepts(&stored.facts));
        let after = self.after.as_ref().filter(|stored| selector.accepts(&stored.facts));
        match (before, after) {
            (None, None) => None,
            (None, Some(stored)) => Some(("ADDED", stored)),
            (Some(_), Some(stored)) => Some(("MODIFIED", stored)),
            (Some(_), None) => {
                self.last.as_deref().or(self.after.as_deref()).map(|stored| ("DELETED", stored))
            }
        }
    }
}

/// Which objects a watch is about, and how they are encoded.
pub(super) struct Wanted<'a> {
    pub(super) encoding: Encoding,
    pub(super) resource: Resource,
    pub(super) selector: &'a Selector,
}

/// Everything the server knows.
#[derive(Default)]
pub(super) struct Store {
    pub(super) version: u64,
    /// Versions before this one are forgotten.
    pub(super) oldest: u64,
    objects: BTreeMap<Resource, BTreeMap<String, Arc<Stored>>>,
    history: VecDeque<Step>,
}

/// History is cut to this many steps, so that long runs do not grow without bound.
const HISTORY: usize = 100_000;

/// One page of a list.
pub(super) struct Page {
    pub(super) items: Vec<Arc<Stored>>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<String>,
}

impl Store {
    pub(super) fn put(&mut self, resource: Resource, key: String, object: Value) -> u64 {
        self.version += 1;
        let after = Arc::new(Stored::new(object, self.version));
        let before = self.objects.entry(resource).or_default().insert(key, after.clone());
        self.remember(Step { version: self.version, resource, before, after: Some(after), last: None });
        self.version
    }

    pub(super) fn object(&self, resource: Resource, key: &str) -> Value {
        let stored = self.objects.get(&resource).and_then(|objects| objects.get(key));
        stored.map(|stored| stored.written.object()).unwrap_or_default()
    }

    pub(super) fn delete(&mut self, resource: Resource, key: &str) -> bool {
        let Some(before) = self.objects.entry(resource).or_default().remove(key) else { return false };
        self.version += 1;
        let last = Some(Arc::new(before.at(self.version)));
        self.remember(Step { version: self.version, resource, before: Some(before), after: None, last });
        true
    }

    fn remember(&mut self, step: Step) {
        self.history.push_back(step);
        if self.history.len() > HISTORY {
            self.oldest = self.history.pop_front().map_or(self.oldest, |step| step.version);
        }
    }

    /// Forgets all history: only the present can be read or watched from now on.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.version += 1;
        self.oldest = self.version;
    }

    pub(super) fn page(
        &self,
        resource: Resource,
        selector: &Selector,
        after: Option<&str>,
        limit: usize,
    ) -> Page {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.objects.get(&resource);
        let range = objects.map(|objects| objects.range::<str, _>((start, Bound::Unbounded)));
        let mut items = Vec::new();
        let mut last = None;
        for (key, stored) in range.into_iter().flatten().filter(|(_, stored)| selector.accepts(&stored.facts))
        {
            if items.len() == limit {
                return Page { items, next: last };
            }
            items.push(stored.clone());
            last = Some(key.clone());
        }
        Page { items, next: None }
    }

    /// Events of a watch after a version, about `room` bytes of them, and the version they reach.
    pub(super) fn events(&self, wanted: &Wanted<'_>, from: u64, room: usize) -> (Vec<u8>, u64) {
        let mut events = Vec::new();
        let start = self.history.partition_point(|step| step.version <= from);
        for step in self.history.range(start..) {
            if events.len() >= room {
                return (events, step.version - 1);
            }
            if step.resource == wanted.resource
                && let Some((kind, stored)) = step.event(wanted.selector)
            {
                events.extend(wanted.encoding.event(kind, &stored.written));
            }
        }
        (events, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn named(name: &str, labels: Value) -> Value {
        json!({"metadata": {"name": name, "labels": labels}})
    }

    fn put(store: &mut Store, name: &str, labels: Value) {
        store.put(Resource::Services, name.to_owned(), named(name, labels));
    }

    fn wanted(selector: &Selector) -> Wanted<'_> {
        Wanted { encoding: Encoding::Json, resource: Resource::Services, selector }
    }

    fn kinds(store: &Store, selector: &Selector, from: u64) -> Vec<String> {
        let (lines, _) = store.events(&wanted(selector), from, usize::MAX);
        let lines = String::from_utf8(lines).unwrap();
        let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events
            .map(|event| format!("{} {}", event["type"], event["object"]["metadata"]["resourceVersion"]))
            .collect()
    }

    #[test]
    fn leaving_the_selection_reads_as_a_deletion_and_coming_back_as_an_addition() {
        let mut store = Store::default();
        put(&mut store, "a", json!({}));
        put(&mut store, "a", json!({"other": "yes"}));
        put(&mut store, "a", json!({}));
        put(&mut store, "a", json!({}));
        store.delete(Resource::Services, "a");
        let selector = Selector::parse(Some("!other"), None).unwrap();
        let expected =
            [r#""ADDED" "1""#, r#""DELETED" "2""#, r#""ADDED" "3""#, r#""MODIFIED" "4""#, r#""DELETED" "5""#];
        assert_eq!(kinds(&store, &selector, 0), expected);
        assert_eq!(kinds(&store, &selector, 3), expected[3..]);
    }

    #[test]
    fn pages_end_exactly_with_the_last_object() {
        let mut store = Store::default();
        for name in ["a", "b", "c", "d"] {
            put(&mut store, name, json!({}));
        }
        let first = store.page(Resource::Services, &Selector::default(), None, 2);
        assert_eq!((first.items.len(), first.next.as_deref()), (2, Some("b")));
        let second = store.page(Resource::Services, &Selector::default(), Some("b"), 2);
        assert_eq!((second.items.len(), second.next), (2, None));
    }

    #[test]
    fn long_histories_are_handed_out_in_pieces() {
        let mut store = Store::default();
        for _ in 0..3 {
            put(&mut store, "a", json!({}));
        }
        let (lines, reached) = store.events(&wanted(&Selector::default()), 0, 1);
        assert_eq!((lines.split_inclusive(|byte| *byte == b'\n').count(), reached), (1, 1));
    }
}

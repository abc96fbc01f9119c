//! What objects come in: pages of a list, and events of a watch.

use super::MOST_FIELDS;
use crate::watch::objects::nullable;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// A page of a list, its objects still undecoded: one that is bad must not take the others along.
#[derive(Debug)]
pub(in crate::watch) struct Page {
    /// What to watch from.
    pub(in crate::watch) version: String,
    /// By which the next page is asked for, if there is one.
    pub(in crate::watch) next: Option<String>,
    pub(in crate::watch) objects: Vec<Bytes>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default, deserialize_with = "nullable")]
    resource_version: String,
    #[serde(default, rename = "continue", deserialize_with = "nullable")]
    continue_token: String,
}

#[derive(Deserialize)]
struct JsonList<'a> {
    #[serde(default, deserialize_with = "nullable")]
    metadata: ListMeta,
    #[serde(default, borrow, deserialize_with = "bounded")]
    items: Vec<&'a RawValue>,
}

impl Page {
    pub(super) fn decode(bytes: &Bytes) -> Result<Page, String> {
        let list: JsonList<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let objects = list.items.into_iter().map(|item| bytes.slice_ref(item.get().as_bytes()));
        Ok(Page {
            version: list.metadata.resource_version,
            next: Some(list.metadata.continue_token).filter(|token| !token.is_empty()),
            objects: objects.collect(),
        })
    }
}

/// The objects of a list, borrowed from its text. More than `MOST_FIELDS` are an error.
fn bounded<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<&'de RawValue>, D::Error> {
    struct ObjectsVisitor;
    impl<'de> Visitor<'de> for ObjectsVisitor {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of objects")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(object) = objects.next_element()? {
                if found.len() == MOST_FIELDS {
                    return Err(A::Error::custom(format!("has more than {MOST_FIELDS} objects")));
                }
                found.push(object);
            }
            Ok(found)
        }
    }
    input.deserialize_any(ObjectsVisitor)
}

/// What an event says of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::watch) enum EventKind {
    /// It is there, new or changed.
    Applied,
    /// It is gone.
    Deleted,
    /// It is none: it only has a version.
    Bookmark,
    /// It is a `Status`.
    Error,
}

/// One event of a watch.
#[derive(Debug)]
pub(in crate::watch) struct Event {
    pub(in crate::watch) kind: EventKind,
    pub(in crate::watch) object: Bytes,
}

#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Event {
    pub(in crate::watch) fn decode(frame: &Bytes) -> Result<Event, String> {
        let event: JsonEvent<'_> = match serde_json::from_slice(frame) {
            Ok(event) => event,
            // Some servers say what is wrong without an event around it.
            Err(_) if Status::decode(frame).is_some() => {
                return Ok(Event { kind: EventKind::Error, object: frame.clone() });
            }
            Err(error) => return Err(error.to_string()),
        };
        let kind = match event.kind.as_str() {
            "ADDED" | "MODIFIED" => EventKind::Applied,
            "DELETED" => EventKind::Deleted,
            "BOOKMARK" => EventKind::Bookmark,
            "ERROR" => EventKind::Error,
            _ => return Err("is an event of an unknown type".to_owned()),
        };
        Ok(Event { kind, object: frame.slice_ref(event.object.get().as_bytes()) })
    }
}

/// `meta/v1.Status`: what a server says instead of what it was asked for.
#[derive(Clone, Debug, Default, Deserialize)]
pub(in crate::watch) struct Status {
    /// What is wrong, for people.
    #[serde(default, deserialize_with = "nullable")]
    pub(in crate::watch) message: String,
    /// The same in one word.
    #[serde(default, deserialize_with = "nullable")]
    pub(in crate::watch) reason: String,
    /// The status code of HTTP.
    #[serde(default, deserialize_with = "nullable")]
    pub(in crate::watch) code: i64,
}

impl Status {
    /// Reads one, if that is what the bytes are.
    pub(in crate::watch) fn decode(bytes: &[u8]) -> Option<Status> {
        super::message(bytes).ok().filter(|status: &Status| status.code != 0)
    }
}

//! What objects come in: pages of a list, events of a watch, and what protobuf has around each.
//!
//! The numbers of fields are those of Kubernetes' published definitions:
//! `k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto` and `k8s.io/apimachinery/pkg/runtime/generated.proto`.

use super::Encoding;
use super::metered::{self, MOST_FIELDS, too_many};
use crate::watch::objects::nullable;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// What protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";

/// `runtime.Unknown`: what is around an object or a list.
#[derive(Clone, PartialEq, prost::Message)]
struct Unknown {
    #[prost(bytes = "bytes", required, tag = "2")]
    raw: Bytes,
}

/// What is in a `runtime.Unknown`.
fn open(bytes: &Bytes) -> Result<Bytes, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("is no protobuf of Kubernetes: it does not begin with \"k8s\\0\"".to_owned());
    }
    let unknown: Unknown = metered::decode(&bytes.slice(MAGIC.len()..))?;
    Ok(unknown.raw)
}

/// A page of a list, its objects still undecoded: a bad one must not take the rest along.
#[derive(Debug)]
pub(in crate::watch) struct Page {
    /// What to watch from.
    pub(in crate::watch) version: String,
    /// The token that requests the next page, if there is one.
    pub(in crate::watch) next: Option<String>,
    pub(in crate::watch) objects: Vec<Bytes>,
}

/// `meta/v1.ListMeta`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[prost(string, required, tag = "2")]
    #[serde(default, deserialize_with = "nullable")]
    resource_version: String,
    #[prost(string, required, tag = "3")]
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

#[derive(Clone, PartialEq, prost::Message)]
struct ProtobufList {
    #[prost(message, required, tag = "1")]
    metadata: ListMeta,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    items: Vec<Bytes>,
}

impl Page {
    pub(in crate::watch) fn decode(encoding: Encoding, bytes: &Bytes) -> Result<Page, String> {
        let ProtobufList { metadata, items } = match encoding {
            Encoding::Protobuf => metered::decode(&open(bytes)?)?,
            Encoding::Json => {
                let list: JsonList<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
                let items = list.items.into_iter().map(|item| bytes.slice_ref(item.get().as_bytes()));
                ProtobufList { metadata: list.metadata, items: items.collect() }
            }
        };
        let next = Some(metadata.continue_token).filter(|token| !token.is_empty());
        Ok(Page { version: metadata.resource_version, next, objects: items })
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
                    return Err(A::Error::custom(too_many("objects")));
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
    /// Without what is around it.
    pub(in crate::watch) object: Bytes,
}

#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// `meta/v1.WatchEvent`.
#[derive(Clone, PartialEq, prost::Message)]
struct ProtobufEvent {
    #[prost(string, required, tag = "1")]
    kind: String,
    #[prost(message, required, tag = "2")]
    object: RawExtension,
}

/// `runtime.RawExtension`.
#[derive(Clone, PartialEq, prost::Message)]
struct RawExtension {
    #[prost(bytes = "bytes", required, tag = "1")]
    raw: Bytes,
}

impl Event {
    pub(in crate::watch) fn decode(encoding: Encoding, frame: &Bytes) -> Result<Event, String> {
        let (kind, object) = match encoding {
            Encoding::Protobuf => {
                let event: ProtobufEvent = metered::decode(frame)?;
                (event.kind, open(&event.object.raw)?)
            }
            Encoding::Json => match serde_json::from_slice::<JsonEvent<'_>>(frame) {
                Ok(event) => (event.kind, frame.slice_ref(event.object.get().as_bytes())),
                // Some servers say what is wrong without an event around it.
                Err(_) if Status::decode(encoding, frame).is_some() => ("ERROR".to_owned(), frame.clone()),
                Err(error) => return Err(error.to_string()),
            },
        };
        let kind = match kind.as_str() {
            "ADDED" | "MODIFIED" => EventKind::Applied,
            "DELETED" => EventKind::Deleted,
            "BOOKMARK" => EventKind::Bookmark,
            "ERROR" => EventKind::Error,
            _ => return Err("is an event of an unknown type".to_owned()),
        };
        Ok(Event { kind, object })
    }
}

/// `meta/v1.Status`: what a server says instead of what it was asked for.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
pub(in crate::watch) struct Status {
    /// What is wrong, for people.
    #[prost(string, required, tag = "3")]
    #[serde(default, deserialize_with = "nullable")]
    pub(in crate::watch) message: String,
    /// The same in one word.
    #[prost(string, required, tag = "4")]
    #[serde(default, deserialize_with = "nullable")]
    pub(in crate::watch) reason: String,
    /// The status code of HTTP.
    #[prost(int64, required, tag = "6")]
    #[serde(default, deserialize_with = "nullable")]
    pub(in crate::watch) code: i64,
}

impl Status {
    /// Reads one, as it is in an event.
    pub(in crate::watch) fn decode(encoding: Encoding, bytes: &Bytes) -> Option<Status> {
        encoding.message(bytes).ok().filter(|status: &Status| status.code != 0)
    }

    /// Reads one that is a whole answer.
    pub(in crate::watch) fn decode_answer(encoding: Encoding, body: &Bytes) -> Option<Status> {
        match encoding {
            Encoding::Json => Status::decode(encoding, body),
            Encoding::Protobuf => Status::decode(encoding, &open(body).ok()?),
        }
    }
}

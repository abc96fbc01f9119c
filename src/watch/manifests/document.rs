//! Text to API objects: documents, lists and kinds.
//!
//! A file is decoded one object at a time, so that no more than one of them is held in the API's
//! form. YAML is split at its document marks first, as Kubernetes' own tools do it: a document
//! with a syntax error then does not hide what is wrong with those after it.

use super::{Key, Location, description, fields};
use crate::model::{ServiceName, word};
use crate::watch::objects::{EndpointSliceObject, NodeObject, ServiceObject};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter};
use std::fmt;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Files called `*.json`.
    Json,
    /// All other files.
    Yaml,
}

/// What a document or an item turned out to be.
#[derive(Debug)]
pub(super) enum Decoded {
    /// An object of a kind that we read.
    Object(Box<Object>),
    /// An object of a kind that we do not read: its API version and kind.
    Other(String),
    /// Not an object of the API, or one that does not say which: it may have been any.
    Broken(Broken),
}

/// An object of a kind that we read.
#[derive(Debug)]
pub(super) struct Object {
    /// Which one it is.
    pub(super) key: Key,
    /// All of it as JSON, in one line.
    pub(super) text: String,
    /// Fields that the API does not have, each with the nearest one that it has.
    pub(super) unknown: Vec<(String, Option<&'static str>)>,
    /// In the API's form, unless a field does not have the type that it must have.
    pub(super) typed: Result<Typed, Broken>,
}

/// The kinds that we read.
#[derive(Debug)]
pub(super) enum Typed {
    /// core/v1 Service.
    Service(Box<ServiceObject>),
    /// discovery.k8s.io/v1 EndpointSlice.
    Slice(EndpointSliceObject),
    /// core/v1 Node.
    Node(NodeObject),
}

/// Why an object or a document could not be decoded.
#[derive(Debug, Default)]
pub(super) struct Broken {
    /// Kind and name, as far as they are known.
    pub(super) object: Option<String>,
    /// The field, if it is about one.
    pub(super) field: Option<String>,
    /// What is wrong.
    pub(super) message: String,
}

impl Broken {
    fn because(message: impl fmt::Display) -> Self {
        Broken { message: brief(&message.to_string()), ..Broken::default() }
    }
}

/// A library's words about a text, which may repeat the text at any length.
fn brief(message: &str) -> String {
    const SHOWN: usize = 200;
    let line = message.lines().next().unwrap_or_default();
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Decodes all objects of a text and hands them over, in order.
pub(super) fn decode(text: &str, format: Format, found: &mut dyn FnMut(Location, Decoded)) {
    match format {
        Format::Json => decode_json(text, found),
        Format::Yaml => decode_yaml(text, found),
    }
}

fn decode_json(text: &str, found: &mut dyn FnMut(Location, Decoded)) {
    let mut input = serde_json::Deserializer::from_str(text);
    let mut place = Location::default();
    while input.end().is_err() {
        place.document += 1;
        match Document::deserialize(&mut input) {
            Ok(document) => document.hand_over(place, found),
            Err(error) => {
                place.line = u64::try_from(error.line()).ok();
                found(place, Decoded::Broken(Broken::because(without_line(&error))));
                return;
            }
        }
    }
}

/// The error without the position that the library appends; it is reported like all errors.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned()
}

fn decode_yaml(text: &str, found: &mut dyn FnMut(Location, Decoded)) {
    let mut place = Location::default();
    for (first_line, part) in yaml_documents(text) {
        if place.document == 0 && is_blank(part) {
            continue;
        }
        place.document += 1;
        match serde_saphyr::from_str_with_options::<Option<Document>>(part, yaml_options(text.len())) {
            Ok(None) => {}
            Ok(Some(document)) => document.hand_over(place, found),
            Err(error) => {
                let error = error.without_snippet();
                let line = error.location().map_or(1, |location| location.line());
                let place = Location { line: Some(first_line + line - 1), ..place };
                let message = limit_words(DefaultMessageFormatter.format_message(error).into_owned());
                found(place, Decoded::Broken(Broken::because(message)));
            }
        }
    }
}

/// Before the first document mark: nothing but comments, which is no document.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

/// Splits at the lines that start with `---`, each of which belongs to what follows it. YAML allows
/// such a line nowhere else. With each part comes the number of its first line.
fn yaml_documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut rest = text;
    let mut line = 1;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut end, mut lines) = (0, 0);
        for part in rest.split_inclusive('\n') {
            if lines > 0 && is_document_mark(part) {
                break;
            }
            end += part.len();
            lines += 1;
        }
        let (document, after) = rest.split_at(end);
        let first = line;
        line += lines;
        rest = after;
        Some((first, document))
    })
}

fn is_document_mark(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// What a document has too much of, in our words.
fn limit_words(message: String) -> String {
    match message.split_once("budget breached: ") {
        Some((_, what)) => {
            format!("the document is too large or its aliases expand too far: too many {what}")
        }
        None => message,
    }
}

/// The library's limits are made for configuration files, and a `List` of a large cluster is one
/// document of many objects. What bounds the work is the size of the file, which has a limit of its
/// own. Aliases keep their small limits: they are how a short text becomes a long one.
fn yaml_options(bytes: usize) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: bytes.saturating_mul(2).max(1_000),
            max_nodes: bytes.max(1_000),
            max_total_scalar_bytes: bytes.max(1_000),
        },
        with_snippet: false,
        emit_comments: false,
    }
}

/// A document: one object, or a list of them.
struct Document {
    /// The document without its `items`.
    object: Map<String, Value>,
    /// The `items`, decoded as they came.
    items: Option<Vec<Item>>,
}

impl Document {
    fn hand_over(self, place: Location, found: &mut dyn FnMut(Location, Decoded)) {
        let Some(items) = self.items else {
            found(place, decode_object(Value::Object(self.object)));
            return;
        };
        let list = ListKind::of(&self.object);
        for (index, item) in items.into_iter().enumerate() {
            let place = Location { item: Some(index), ..place };
            match item {
                Item::Decoded(decoded) => found(place, decoded),
                Item::Kindless(mut object) => {
                    list.complete(&mut object);
                    found(place, decode_object(Value::Object(object)));
                }
            }
        }
    }
}

/// The kind of a typed list, such as `ServiceList`, whose items need not repeat it.
struct ListKind {
    api_version: Option<Value>,
    kind: Option<Value>,
}

impl ListKind {
    fn of(list: &Map<String, Value>) -> Self {
        let kind = list.get("kind").and_then(Value::as_str);
        let item_kind = kind.and_then(|kind| kind.strip_suffix("List")).filter(|kind| !kind.is_empty());
        ListKind { api_version: list.get("apiVersion").cloned(), kind: item_kind.map(Value::from) }
    }

    fn complete(&self, object: &mut Map<String, Value>) {
        let Some(kind) = &self.kind else { return };
        object.insert("kind".into(), kind.clone());
        if let Some(api_version) = &self.api_version {
            object.entry("apiVersion").or_insert_with(|| api_version.clone());
        }
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct DocumentVisitor;
        impl<'de> Visitor<'de> for DocumentVisitor {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with apiVersion, kind and metadata")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Document, A::Error> {
                let mut document = Document { object: Map::new(), items: None };
                while let Some(key) = entries.next_key::<String>()? {
                    if key == "items" {
                        let items = entries.next_value::<Option<Vec<Item>>>()?;
                        document.items = Some(items.unwrap_or_default());
                    } else {
                        let value = entries.next_value()?;
                        document.object.insert(key, value);
                    }
                }
                Ok(document)
            }
        }
        input.deserialize_any(DocumentVisitor)
    }
}

/// One of a list's `items`. It is decoded here and now, for a list in plain form takes many times
/// the room of its text; only an item that does not name its kind must wait for the list's.
enum Item {
    Decoded(Decoded),
    Kindless(Map<String, Value>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match Value::deserialize(input)? {
            Value::Object(object) if !object.contains_key("kind") => Ok(Item::Kindless(object)),
            object @ Value::Object(_) => Ok(Item::Decoded(decode_object(object))),
            _ => Err(D::Error::custom("an item of a list is not an object")),
        }
    }
}

fn decode_object(object: Value) -> Decoded {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let missing = |field: &str| {
        Decoded::Broken(Broken {
            object: Some(described(&object)),
            field: Some(field.to_owned()),
            message: "is missing".to_owned(),
        })
    };
    match (text("apiVersion"), text("kind")) {
        (_, "") => missing("kind"),
        ("", _) => missing("apiVersion"),
        ("v1", "Service") => {
            identified(&object, typed(&object).map(|object| Typed::Service(Box::new(object))))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => identified(&object, typed(&object).map(Typed::Slice)),
        ("v1", "Node") => identified(&object, typed(&object).map(Typed::Node)),
        (api_version, kind) => Decoded::Other(format!("{} {}", word(api_version), word(kind))),
    }
}

fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, Broken> {
    // Keeping track of the path costs time, so it is done for objects that turn out to need it.
    if let Ok(decoded) = T::deserialize(object) {
        return Ok(decoded);
    }
    serde_path_to_error::deserialize(object).map_err(|error| Broken {
        object: Some(described(object)),
        field: Some(error.path().to_string()),
        message: brief(&error.inner().to_string()),
    })
}

/// An object with the name that it is known by.
fn identified(object: &Value, typed: Result<Typed, Broken>) -> Decoded {
    let text = |field: &str| object["metadata"][field].as_str().filter(|text| !text.is_empty());
    let namespace = text("namespace").unwrap_or("default");
    let Some(name) = text("name") else {
        let missing = Broken {
            object: Some(described(object)),
            field: Some("metadata.name".to_owned()),
            message: "is missing".to_owned(),
        };
        return Decoded::Broken(typed.err().unwrap_or(missing));
    };
    let key = match object["kind"].as_str() {
        Some("Service") => Key::Service(ServiceName::new(namespace, name)),
        Some("EndpointSlice") => Key::Slice(format!("{namespace}/{name}").into()),
        _ => Key::Node(name.into()),
    };
    let unknown = fields::unknown(object);
    Decoded::Object(Box::new(Object { key, text: object.to_string(), unknown, typed }))
}

/// Kind, namespace and name of an object of which not even these need to be right.
fn described(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or_default();
    let namespace = match (kind, text("/metadata/namespace")) {
        ("Node", _) => None,
        (_, namespace) => Some(namespace.filter(|text| !text.is_empty()).unwrap_or("default")),
    };
    description(kind, namespace, text("/metadata/name"))
}

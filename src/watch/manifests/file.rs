//! One file's text to model objects, with everything that is wrong with it.

use super::document::{self, Broken, Decoded, Format};
use super::{ManifestError, ManifestOptions, Place, defaults, description, validate};
use crate::model::{ServiceName, SliceName, WatchEvent};
use crate::watch::convert::{self, Converted, Issue, Issues, Severity};
use crate::watch::objects::{EndpointSliceObject, NodeObject, ServiceObject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// More problems than this of one file help nobody.
pub(super) const MAX_ERRORS: usize = 100;

/// What identifies an object among all files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    Slice(SliceName),
    /// Our Node.
    Node,
}

impl Key {
    /// The event that takes the object back.
    pub(super) fn gone(self) -> WatchEvent {
        match self {
            Key::Service(name) => WatchEvent::ServiceGone(name),
            Key::Slice(name) => WatchEvent::SliceGone(name),
            Key::Node => WatchEvent::NodeGone,
        }
    }

    /// Kind and name, as in messages.
    pub(super) fn description(&self, node_name: &str) -> String {
        match self {
            Key::Service(name) => format!("Service {name}"),
            Key::Slice(name) => format!("EndpointSlice {name}"),
            Key::Node => format!("Node {node_name}"),
        }
    }
}

/// An object that can be used.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) key: Key,
    pub(super) place: Place,
    pub(super) event: WatchEvent,
}

/// What a file holds.
#[derive(Debug)]
pub(super) struct Content {
    /// The objects that can be used, in the file's order.
    pub(super) objects: Vec<Object>,
    /// All that is wrong, in the file's order.
    pub(super) errors: Vec<ManifestError>,
    /// The kinds that we do not read.
    pub(super) skipped: BTreeSet<String>,
    /// Whether the API server would have taken every object.
    pub(super) good: bool,
}

/// Reads a file's text.
pub(super) fn parse(file: &Arc<Path>, text: &str, options: &ManifestOptions) -> Content {
    let content = Content { objects: Vec::new(), errors: Vec::new(), skipped: BTreeSet::new(), good: true };
    let mut reader = Reader { file, options, seen: BTreeSet::new(), unreported: 0, content };
    let is_json = file.extension().is_some_and(|extension| extension == "json");
    let format = if is_json { Format::Json } else { Format::Yaml };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    document::decode(text, format, &mut |place, decoded| reader.take(place, decoded));
    if reader.unreported > 0 {
        let message = format!("{} more problems are not shown", reader.unreported);
        reader.content.errors.push(ManifestError::of_file(file, message));
    }
    reader.content
}

struct Reader<'a> {
    file: &'a Arc<Path>,
    options: &'a ManifestOptions,
    seen: BTreeSet<(&'static str, Arc<str>)>,
    unreported: usize,
    content: Content,
}

/// The identity of an object while it is being read.
struct Subject {
    place: Place,
    kind: &'static str,
    /// `namespace/name`, or the name of a Node.
    name: Arc<str>,
    description: String,
}

impl Subject {
    fn new(place: Place, kind: &'static str, metadata: &ObjectMeta, is_namespaced: bool) -> Self {
        let name = metadata.name.as_deref();
        let namespace = is_namespaced.then(|| metadata.namespace.as_deref().unwrap_or_default());
        Subject {
            place,
            kind,
            name: format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()).into(),
            description: description(kind, namespace, name),
        }
    }
}

impl Reader<'_> {
    fn take(&mut self, place: Place, decoded: Decoded) {
        match decoded {
            Decoded::Service(object) => self.service(place, *object),
            Decoded::Slice(object) => self.slice(place, *object),
            Decoded::Node(object) => self.node(place, &object),
            Decoded::Other(kind) => _ = self.content.skipped.insert(kind),
            Decoded::Broken(broken) => self.broken(place, broken),
        }
    }

    fn service(&mut self, place: Place, mut object: ServiceObject) {
        defaults::service(&mut object);
        let subject = Subject::new(place, "Service", &object.metadata, true);
        let mut issues = Issues::default();
        validate::service(&object, &mut issues);
        let mut converted = convert::service(&object);
        let outside = |service| convert::node_ports_outside(service, &self.options.node_port_range);
        converted.issues.extend(converted.value.iter().flat_map(outside));
        if let Some(service) = self.settle(&subject, issues, converted) {
            let key = Key::Service(service.name.clone());
            self.content.objects.push(Object { key, place, event: WatchEvent::Service(Box::new(service)) });
        }
    }

    fn slice(&mut self, place: Place, mut object: EndpointSliceObject) {
        defaults::endpoint_slice(&mut object);
        let subject = Subject::new(place, "EndpointSlice", &object.metadata, true);
        let mut issues = Issues::default();
        validate::endpoint_slice(&object, &mut issues);
        let converted = convert::endpoint_slice(&object, &self.options.node_name);
        if let Some(slice) = self.settle(&subject, issues, converted) {
            let key = Key::Slice(slice.name.clone());
            self.content.objects.push(Object { key, place, event: WatchEvent::Slice(Box::new(slice)) });
        }
    }

    fn node(&mut self, place: Place, object: &NodeObject) {
        let subject = Subject::new(place, "Node", &object.metadata, false);
        let node = self.settle(&subject, Issues::default(), convert::node(object));
        let ours = node.filter(|node| *node.name == *self.options.node_name);
        if let Some(node) = ours {
            self.content.objects.push(Object {
                key: Key::Node,
                place,
                event: WatchEvent::Node(Arc::new(node)),
            });
        }
    }

    /// Reports what is wrong with an object. Its value stays if there is no error among that.
    fn settle<T>(&mut self, subject: &Subject, issues: Issues, converted: Converted<T>) -> Option<T> {
        let mut issues = issues.into_vec();
        // Two checks of one field are told once; the stricter check came first.
        let told: BTreeSet<String> = issues.iter().map(|issue| issue.field.clone()).collect();
        issues.extend(converted.issues.into_iter().filter(|issue| !told.contains(&issue.field)));
        if !self.seen.insert((subject.kind, subject.name.clone())) {
            let (field, message) = ("metadata.name".to_owned(), "is there twice in this file".to_owned());
            issues.push(Issue { field, message, severity: Severity::Error });
        }
        let is_valid = issues.iter().all(|issue| issue.severity < Severity::Error);
        self.content.good &= is_valid;
        for issue in issues {
            self.report(subject, issue);
        }
        converted.value.filter(|_| is_valid)
    }

    fn broken(&mut self, place: Place, broken: Broken) {
        self.content.good = false;
        self.push(ManifestError {
            file: self.file.clone(),
            place,
            object: broken.object,
            field: broken.field,
            message: broken.message,
            severity: Severity::Error,
        });
    }

    fn report(&mut self, subject: &Subject, issue: Issue) {
        self.push(ManifestError {
            file: self.file.clone(),
            place: subject.place,
            object: Some(subject.description.clone()),
            field: Some(issue.field),
            message: issue.message,
            severity: issue.severity,
        });
    }

    fn push(&mut self, error: ManifestError) {
        if self.content.errors.len() < MAX_ERRORS {
            self.content.errors.push(error);
        } else {
            self.unreported += 1;
        }
    }
}

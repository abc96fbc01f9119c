//! One file's text to model objects, with everything that is wrong with it.

use super::document::{self, Broken, Decoded, Format, Object, Typed};
use super::{Key, Location, ManifestError, ManifestOptions, defaults, validate};
use crate::model::{WatchEvent, word};
use crate::watch::convert::{self, Converted, Issue, IssueSeverity, Issues};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Problems of one file that are reported at most.
pub(super) const MAX_ERRORS: usize = 100;

/// An object that can be used.
#[derive(Debug)]
pub(super) struct Usable {
    pub(super) key: Key,
    pub(super) place: Location,
    /// As JSON, in one line.
    pub(super) text: String,
    pub(super) event: WatchEvent,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// The objects that can be used, in the file's order.
    pub(super) objects: Vec<Usable>,
    /// Objects that cannot, and the first reason of each.
    pub(super) broken: BTreeMap<Key, String>,
    /// Why it is not known which objects the file holds, if it is not.
    pub(super) unreadable: Option<String>,
    /// All that is wrong, in the file's order.
    pub(super) errors: Vec<ManifestError>,
    /// The kinds that we do not read.
    pub(super) skipped: BTreeSet<String>,
}

impl Content {
    /// A file that cannot be read at all.
    pub(super) fn of_unreadable(error: ManifestError) -> Self {
        Content { unreadable: Some(error.message.clone()), errors: vec![error], ..Content::default() }
    }
}

/// Reads a file's text.
pub(super) fn parse(file: &Arc<Path>, text: &str, options: &ManifestOptions) -> Content {
    let content = Content::default();
    let mut reader = Reader { file, options, seen: BTreeSet::new(), unreported: 0, content };
    let is_json = file.extension().is_some_and(|extension| extension == "json");
    let format = if is_json { Format::Json } else { Format::Yaml };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    document::decode(text, format, &mut |place, decoded| reader.take(place, decoded));
    if reader.unreported > 0 {
        let message = match reader.unreported {
            1 => "1 more problem is not shown".to_owned(),
            more => format!("{more} more problems are not shown"),
        };
        reader.content.errors.push(ManifestError::of_file(file, message));
    }
    reader.content
}

/// A field that the API server would have dropped.
fn unknown_field((field, nearest): (String, Option<&'static str>)) -> Issue {
    let message = match nearest {
        Some(nearest) => format!("is no field of the API and without effect; did you mean {nearest}?"),
        None => "is no field of the API and without effect".to_owned(),
    };
    Issue { field: word(&field).into_owned(), message, severity: IssueSeverity::Warning }
}

struct Reader<'a> {
    file: &'a Arc<Path>,
    options: &'a ManifestOptions,
    seen: BTreeSet<Key>,
    unreported: usize,
    content: Content,
}

impl Reader<'_> {
    fn take(&mut self, place: Location, decoded: Decoded) {
        match decoded {
            Decoded::Object(object) => self.object(place, *object),
            Decoded::Other(kind) => _ = self.content.skipped.insert(kind),
            Decoded::Broken(broken) => {
                let error = self.error(place, broken);
                self.content.unreadable.get_or_insert_with(|| error.without_file());
                self.push(error);
            }
        }
    }

    fn object(&mut self, place: Location, object: Object) {
        let Object { key, text, unknown, typed } = object;
        let mut converted = match typed {
            Ok(typed) => self.convert(typed),
            Err(broken) => {
                let error = self.error(place, broken);
                self.content.broken.entry(key).or_insert_with(|| error.without_file());
                self.push(error);
                return;
            }
        };
        converted.issues.extend(unknown.into_iter().map(unknown_field));
        if let Some(event) = self.report(&key, place, converted) {
            self.content.objects.push(Usable { key, place, text, event });
        }
    }

    /// The object in our own terms, and all that is wrong with it. Other Nodes than ours are nothing.
    fn convert(&self, typed: Typed) -> Converted<WatchEvent> {
        let mut issues = Issues::default();
        let mut converted = match typed {
            Typed::Service(mut object) => {
                defaults::service(&mut object);
                validate::service(&object, &mut issues);
                let mut converted = convert::service(&object);
                let outside = |service| convert::node_ports_outside(service, &self.options.node_port_range);
                converted.issues.extend(converted.value.iter().flat_map(outside));
                converted.and_then(|service| Some(WatchEvent::Service(Box::new(service))))
            }
            Typed::Slice(mut object) => {
                defaults::endpoint_slice(&mut object);
                validate::endpoint_slice(&object, &mut issues);
                let converted = convert::endpoint_slice(&object, &self.options.node_name);
                converted.and_then(|slice| Some(WatchEvent::Slice(Box::new(slice))))
            }
            Typed::Node(object) => convert::node(&object).and_then(|node| {
                (*node.name == *self.options.node_name).then(|| WatchEvent::Node(Arc::new(node)))
            }),
        };
        // Two findings about one field count once; the stricter check came first.
        let mut all = issues.into_vec();
        let told: BTreeSet<String> = all.iter().map(|issue| issue.field.clone()).collect();
        all.extend(converted.issues.into_iter().filter(|issue| !told.contains(&issue.field)));
        converted.issues = all;
        converted
    }

    /// Reports what is wrong with an object. Its value stays if there is no error among that.
    fn report(&mut self, key: &Key, place: Location, converted: Converted<WatchEvent>) -> Option<WatchEvent> {
        let mut issues = converted.issues;
        let is_first = self.seen.insert(key.clone());
        if !is_first {
            let (field, message) = ("metadata.name".to_owned(), "is there twice in this file".to_owned());
            issues.push(Issue { field, message, severity: IssueSeverity::Error });
        }
        let mut is_valid = true;
        for issue in issues {
            let is_error = issue.severity == IssueSeverity::Error;
            let error = ManifestError {
                file: self.file.clone(),
                place,
                object: Some(key.description()),
                field: Some(issue.field),
                message: issue.message,
                severity: issue.severity,
            };
            is_valid &= !is_error;
            if is_error && is_first {
                self.note_broken(key, &error);
            }
            self.push(error);
        }
        converted.value.filter(|_| is_valid)
    }

    /// With a bad name, it may have been any object.
    fn note_broken(&mut self, key: &Key, error: &ManifestError) {
        let is_name = matches!(error.field.as_deref(), Some("metadata.name" | "metadata.namespace"));
        match is_name {
            true => drop(self.content.unreadable.get_or_insert_with(|| error.without_file())),
            false => drop(self.content.broken.entry(key.clone()).or_insert_with(|| error.without_file())),
        }
    }

    fn error(&self, place: Location, broken: Broken) -> ManifestError {
        ManifestError {
            file: self.file.clone(),
            place,
            object: broken.object,
            field: broken.field,
            message: broken.message,
            severity: IssueSeverity::Error,
        }
    }

    fn push(&mut self, error: ManifestError) {
        if self.content.errors.len() < MAX_ERRORS {
            self.content.errors.push(error);
        } else {
            self.unreported += 1;
        }
    }
}

//! Label and field selectors, as far as a proxy sends them.

use serde_json::Value;
use std::collections::BTreeMap;

/// What a selector can see of an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    labels: BTreeMap<String, String>,
    fields: BTreeMap<&'static str, String>,
}

impl Facts {
    pub(super) fn of(object: &Value) -> Self {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        Facts {
            labels: labels
                .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect(),
            fields: BTreeMap::from([
                ("metadata.name", text("/metadata/name")),
                ("metadata.namespace", text("/metadata/namespace")),
                ("spec.clusterIP", text("/spec/clusterIP")),
            ]),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    Is(String, String),
    IsNot(String, String),
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        if text.contains(['(', ' ']) {
            return None; // Set notation; the proxy never sends it.
        }
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        if let Some(key) = text.strip_prefix('!') {
            return Some(Requirement::Absent(key.to_owned()));
        }
        if let Some((key, value)) = text.split_once("!=").map(pair) {
            return Some(Requirement::IsNot(key, value));
        }
        if let Some((key, value)) = text.split_once("==").or(text.split_once('=')).map(pair) {
            return Some(Requirement::Is(key, value));
        }
        Some(Requirement::Exists(text.to_owned()))
    }

    fn accepts<'a>(&self, lookup: impl Fn(&str) -> Option<&'a String>) -> bool {
        match self {
            Requirement::Exists(key) => lookup(key).is_some(),
            Requirement::Absent(key) => lookup(key).is_none(),
            Requirement::Is(key, value) => lookup(key) == Some(value),
            Requirement::IsNot(key, value) => lookup(key) != Some(value),
        }
    }
}

/// A label selector and a field selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Selector {
    /// `None` stands for a selector that makes no sense, or more than is known here.
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Option<Self> {
        let all = |text: Option<&str>| {
            let parts = text.unwrap_or_default().split(',').filter(|part| !part.is_empty());
            parts.map(Requirement::parse).collect::<Option<Vec<_>>>()
        };
        Some(Selector { labels: all(labels)?, fields: all(fields)? })
    }

    /// Only what is in one namespace.
    pub(super) fn within(&mut self, namespace: &str) {
        self.fields.push(Requirement::Is("metadata.namespace".to_owned(), namespace.to_owned()));
    }

    pub(super) fn accepts(&self, facts: &Facts) -> bool {
        self.labels.iter().all(|requirement| requirement.accepts(|key| facts.labels.get(key)))
            && self.fields.iter().all(|requirement| requirement.accepts(|key| facts.fields.get(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn accepts(labels: &str, fields: &str) -> bool {
        let object =
            json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"clusterIP": "None"}});
        Selector::parse(Some(labels), Some(fields)).unwrap().accepts(&Facts::of(&object))
    }

    #[test]
    fn selectors_see_labels_and_the_known_fields() {
        assert!(accepts("", ""));
        assert!(accepts("app,app=web,app==web,app!=db,!other,other!=x", "metadata.name=web"));
        assert!(!accepts("!app", ""));
        assert!(!accepts("app=db", ""));
        assert!(!accepts("other", ""));
        assert!(!accepts("", "spec.clusterIP!=None"));
        assert!(accepts("", "spec.clusterIP=None"));
    }

    #[test]
    fn set_notation_is_refused_rather_than_misread() {
        assert_eq!(Selector::parse(Some("app in (a,b)"), None), None);
    }
}

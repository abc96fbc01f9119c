//! The JSON of commands has the fields that `docs/json.md` has, and no others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const PAGE: &str = include_str!("../../docs/json.md");

/// The fields of a kind on the page, each with its types.
fn documented(kind: &str) -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let section = PAGE.split("\n## ").find(|section| section.lines().next() == Some(kind));
    let section = section.unwrap_or_else(|| panic!("docs/json.md has no {kind}"));
    let block = section.split("```\n").nth(1).unwrap();
    let fields = block.lines().map(|line| line.split_once(' ').unwrap());
    fields.map(|(path, types)| (path, types.split(" or ").collect())).collect()
}

/// Fails if an object has a field that the page does not have, or one of another type, or lacks a field that the page
/// has at the top.
pub(crate) fn assert_documented(object: &Value) {
    let kind = object["kind"].as_str().unwrap_or_else(|| panic!("an object without a kind: {object}"));
    let known = documented(kind);
    let mut undocumented = BTreeSet::new();
    walk(object, "", &known, &mut undocumented);
    assert!(undocumented.is_empty(), "{kind}: docs/json.md lacks {undocumented:?}");
    assert_eq!(object["apiVersion"], "kube-proxy-rs.io/v1");
}

fn walk(
    value: &Value,
    path: &str,
    known: &BTreeMap<&str, BTreeSet<&str>>,
    undocumented: &mut BTreeSet<String>,
) {
    let of = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    if !path.is_empty() && !known.get(path).is_some_and(|types| types.contains(of)) {
        undocumented.insert(format!("{path} {of}"));
    }
    for item in value.as_array().into_iter().flatten() {
        walk(item, &format!("{path}[]"), known, undocumented);
    }
    let any = format!("{path}.*");
    for (key, inner) in value.as_object().into_iter().flatten() {
        let at = match path {
            "" => key.clone(),
            _ if known.contains_key(any.as_str()) => any.clone(),
            _ => format!("{path}.{key}"),
        };
        walk(inner, &at, known, undocumented);
    }
}

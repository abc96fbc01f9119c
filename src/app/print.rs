//! The forms in which commands print data: one style of JSON for all of them, and what derives from it.

use crate::config::Form;
use anyhow::{Context, Result, bail};
use jsonpath_rust::JsonPath;
use serde::Serialize;
use serde_json::{Value, json};

/// The version of all that is printed as JSON. It changes when a field changes its meaning or goes.
pub(super) const API_VERSION: &str = "kube-proxy-rs.io/v1";

/// An answer as data: JSON, YAML, or what a template makes of it. `None` for the forms that are for people.
///
/// # Errors
/// If the template makes no sense.
pub(super) fn structured(kind: &str, value: &impl Serialize, form: &Form) -> Result<Option<String>> {
    let template = match form {
        Form::Text | Form::Wide | Form::Name => return Ok(None),
        Form::JsonPath(template) => Some(template),
        Form::Json | Form::Yaml => None,
    };
    let value = versioned(kind, serde_json::to_value(value).context("writing JSON")?);
    Ok(Some(match template {
        Some(template) => filled(template, &value)? + "\n",
        None if form == &Form::Yaml => serde_saphyr::to_string(&value).context("writing YAML")?,
        None => serde_json::to_string_pretty(&value).context("writing JSON")? + "\n",
    }))
}

/// An object that says what it is. A list becomes the items of one.
fn versioned(kind: &str, value: Value) -> Value {
    let mut object = json!({"apiVersion": API_VERSION, "kind": kind});
    match (object.as_object_mut(), value) {
        (Some(object), Value::Object(fields)) => object.extend(fields),
        (Some(object), value) => _ = object.insert("items".to_owned(), value),
        (None, _) => {}
    }
    object
}

/// A part of a template of kubectl.
#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Path(String),
    Range(String, Vec<Part>),
}

/// Fills a template as kubectl does: text stays, `{.path}` is replaced, `{range .items[*]}…{end}` repeats. Paths are
/// RFC 9535 without the `$`.
fn filled(template: &str, value: &Value) -> Result<String> {
    let whole = if template.contains('{') { template.to_owned() } else { format!("{{{template}}}") };
    let mut rest = whole.as_str();
    let parts = parts(&mut rest, false)?;
    let mut text = String::new();
    fill(&parts, value, &mut text)?;
    Ok(text)
}

fn parts(rest: &mut &str, in_range: bool) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    loop {
        let (text, after) = rest.split_once('{').unwrap_or((rest, ""));
        let is_last = text.len() == rest.len();
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        if is_last {
            *rest = "";
            return if in_range { bail!("the template has a range without {{end}}") } else { Ok(parts) };
        }
        let (inside, after) = inside(after)?;
        *rest = after;
        match inside.trim() {
            "end" if in_range => return Ok(parts),
            "end" => bail!("the template has an {{end}} without a range"),
            words => match (words.strip_prefix("range "), literal(words)) {
                (Some(path), _) => parts.push(Part::Range(path.trim().to_owned(), self::parts(rest, true)?)),
                (None, Some(text)) => parts.push(Part::Text(text?)),
                (None, None) => parts.push(Part::Path(words.to_owned())),
            },
        }
    }
}

/// What stands before the closing brace, and what comes after it. A quoted brace closes nothing.
fn inside(text: &str) -> Result<(&str, &str)> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '}') => return Ok((&text[..at], &text[at + 1..])),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    bail!("the template has a {{ without a }}")
}

/// A text in quotation marks, such as `"\n"`.
fn literal(words: &str) -> Option<Result<String>> {
    words.starts_with('"').then(|| {
        serde_json::from_str(words).with_context(|| format!("{words} in the template is not a text"))
    })
}

fn fill(parts: &[Part], value: &Value, text: &mut String) -> Result<()> {
    for part in parts {
        match part {
            Part::Text(literal) => text.push_str(literal),
            Part::Path(path) => {
                let found: Vec<String> = found(path, value)?.into_iter().map(plain).collect();
                text.push_str(&found.join(" "));
            }
            Part::Range(path, inner) => {
                for item in found(path, value)? {
                    fill(inner, item, text)?;
                }
            }
        }
    }
    Ok(())
}

/// The values at a path. One that leads nowhere is empty, as with kubectl.
fn found<'v>(path: &str, value: &'v Value) -> Result<Vec<&'v Value>> {
    let path = path.trim_start_matches('$');
    let path = match path {
        "" | "." | "@" => "$".to_owned(),
        path if path.starts_with(['.', '[']) => format!("${path}"),
        path => format!("$.{}", path.trim_start_matches("@.")),
    };
    value.query(&path).with_context(|| format!("{path} is no JSONPath (RFC 9535)"))
}

/// A text without its quotation marks; anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn list() -> Value {
        json!([{"name": "web", "used": 2, "frontends": ["a", "b"]}, {"name": "db", "used": 0, "frontends": []}])
    }

    #[rstest]
    #[case("{.items[*].name}", "web db")]
    #[case(".items[0].name", "web")]
    #[case("{.kind}: {.items[1].used}", "ServiceList: 0")]
    #[case("{range .items[*]}{.name}={.used}{\"\\n\"}{end}", "web=2\ndb=0\n")]
    #[case("{range .items[*]}{range .frontends[*]}{@}{end}{end}", "ab")]
    #[case("{.items[?(@.used==0)].name}", "db")]
    #[case("{.nowhere}", "")]
    #[case("{.items[0].frontends}", "[\"a\",\"b\"]")]
    fn templates_are_filled_as_kubectl_does(#[case] template: &str, #[case] wanted: &str) {
        let text = structured("ServiceList", &list(), &Form::JsonPath(template.to_owned())).unwrap();
        assert_eq!(text, Some(format!("{wanted}\n")));
    }

    #[rstest]
    #[case("{.items[*}", "JSONPath")]
    #[case("{.items", "without a }")]
    #[case("{range .items[*]}x", "range without {end}")]
    #[case("{end}", "{end} without a range")]
    fn a_template_that_makes_no_sense_is_an_error(#[case] template: &str, #[case] words: &str) {
        let error = structured("x", &list(), &Form::JsonPath(template.to_owned())).unwrap_err();
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }

    #[test]
    fn every_form_of_data_says_what_it_is() {
        let json = structured("Status", &json!({"healthy": true}), &Form::Json).unwrap().unwrap();
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value, json!({"apiVersion": API_VERSION, "kind": "Status", "healthy": true}));
        let yaml = structured("ServiceList", &list(), &Form::Yaml).unwrap().unwrap();
        assert!(yaml.starts_with("apiVersion: kube-proxy-rs.io/v1\nitems:\n"), "{yaml}");
        assert!(yaml.contains("\nkind: ServiceList"), "{yaml}");
        assert_eq!(structured("x", &list(), &Form::Wide).unwrap(), None);
    }
}

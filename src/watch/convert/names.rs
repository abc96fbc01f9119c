//! The bounds of names. Names end up in rule comments, logs and metrics, so anything that the API
//! would not have accepted is refused here.

use super::Issues;
use crate::model::quoted;
use std::fmt;

/// Whether the text is a DNS label: at most 63 of `a-z`, `0-9` and `-`, no `-` at either end.
pub(super) fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether the text is a DNS name of at most 253 characters, whose labels may be of any length.
fn is_dns_name(text: &str) -> bool {
    let label = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// `metadata.name` of most kinds.
pub(super) fn check_name<'a>(name: Option<&'a str>, issues: &mut Issues) -> Option<&'a str> {
    let name = required(name, "metadata.name", issues)?;
    checked(name, is_dns_name(name), "metadata.name", "a DNS name of at most 253 characters", issues)
}

/// `metadata.namespace`.
pub(super) fn check_namespace<'a>(name: Option<&'a str>, issues: &mut Issues) -> Option<&'a str> {
    let name = required(name, "metadata.namespace", issues)?;
    check_label(name, "metadata.namespace", issues)
}

/// `metadata.name` of a Service.
pub(super) fn check_service_name<'a>(name: Option<&'a str>, issues: &mut Issues) -> Option<&'a str> {
    let name = required(name, "metadata.name", issues)?;
    check_label(name, "metadata.name", issues)
}

/// Any name that must be a DNS label.
pub(super) fn check_label<'a>(
    name: &'a str,
    field: impl fmt::Display,
    issues: &mut Issues,
) -> Option<&'a str> {
    checked(name, is_dns_label(name), field, "a DNS label of at most 63 characters", issues)
}

fn required<'a>(name: Option<&'a str>, field: &str, issues: &mut Issues) -> Option<&'a str> {
    let name = name.filter(|name| !name.is_empty());
    if name.is_none() {
        issues.error(field, "is missing");
    }
    name
}

fn checked<'a>(
    name: &'a str,
    good: bool,
    field: impl fmt::Display,
    rule: &str,
    issues: &mut Issues,
) -> Option<&'a str> {
    if !good {
        issues.error(field, format_args!("{} is not {rule}", quoted(name)));
    }
    good.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_plain() {
        for good in ["a", "0", "web-1", &"a".repeat(63)] {
            assert!(is_dns_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "Web", "a.b", "a_b", "a\"b", "a b", "ä", &"a".repeat(64)] {
            assert!(!is_dns_label(bad), "{bad}");
        }
    }

    #[test]
    fn names_are_labels_with_dots() {
        for good in ["a", "web-abc12", "a.b.c", &"a".repeat(253)] {
            assert!(is_dns_name(good), "{good}");
        }
        for bad in ["", ".", "a..b", "a.-b", "a.", "A", "a/b", &"a".repeat(254)] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_long_name_is_cut_in_messages() {
        let mut issues = Issues::default();
        assert_eq!(check_name(Some(&"ä".repeat(300)), &mut issues), None);
        let issues = issues.0;
        assert_eq!(issues[0].field, "metadata.name");
        assert!(issues[0].message.len() < 260, "{}", issues[0].message);
    }

    #[test]
    fn a_name_is_needed() {
        let mut issues = Issues::default();
        assert_eq!(check_namespace(None, &mut issues), None);
        assert_eq!(check_service_name(Some(""), &mut issues), None);
        let texts: Vec<String> = issues.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["metadata.namespace: is missing", "metadata.name: is missing"]);
    }
}

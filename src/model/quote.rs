//! Foreign text in our messages: never longer than a message can bear, and never with characters that would do
//! something to a terminal or a log instead of being read.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Findings about one object that a message has.
const FINDINGS: usize = 3;
/// Characters that are shown of a value.
const VALUE: usize = 80;
/// Characters that are shown of what a tool, the kernel or a server said.
const WORDS: usize = 500;

/// A foreign value, in quotes.
#[must_use]
pub fn quoted(value: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| match value.char_indices().nth(VALUE) {
        Some((end, _)) => write!(f, "{:?}... ({} bytes)", &value[..end], value.len()),
        None => write!(f, "{value:?}"),
    })
}

/// A word as it is, such as the name of an object, and anything else in quotes.
#[must_use]
pub fn word(text: &str) -> Cow<'_, str> {
    let is_word = text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    if is_word { Cow::Borrowed(text) } else { Cow::Owned(quoted(text).to_string()) }
}

/// What a tool, the kernel or a server said, on one line.
#[must_use]
pub fn excerpt(words: &str) -> String {
    cut(words, WORDS)
}

/// The same, of another length in characters.
#[must_use]
pub fn cut(words: &str, longest: usize) -> String {
    let words = words.trim();
    let shown = words.char_indices().nth(longest).map_or(words, |(end, _)| &words[..end]);
    let mut text = String::with_capacity(shown.len());
    for (number, line) in shown.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
        text.push_str(if number > 0 { "; " } else { "" });
        push_printable(&mut text, line);
    }
    if shown.len() < words.len() {
        // Writing into a string cannot fail.
        let _ = write!(text, "... ({} bytes)", words.len());
    }
    text
}

/// What is wrong with an object, on one line: the first of it, and how much more there is.
#[must_use]
pub fn findings(all: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let (mut text, mut all) = (String::new(), all.into_iter());
    for (number, finding) in all.by_ref().take(FINDINGS).enumerate() {
        // Writing into a string cannot fail.
        let _ = write!(text, "{}{finding}", if number > 0 { " | " } else { "" });
    }
    match all.count() {
        0 => text,
        more => format!("{text} | and {more} more"),
    }
}

/// The text with everything escaped that is neither printable nor the end of a line nor a tab. In JSON it means the same
/// as before.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| is_printable(c) || c == '\n' || c == '\t') {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for part in text.split_inclusive(['\n', '\t']) {
        let end = part.trim_end_matches(['\n', '\t']);
        push_printable(&mut escaped, end);
        escaped.push_str(&part[end.len()..]);
    }
    Cow::Owned(escaped)
}

fn push_printable(text: &mut String, part: &str) {
    for c in part.chars() {
        if is_printable(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing into a string cannot fail.
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
}

/// Whether a character is shown as itself, whatever shows it: no control character, nothing that turns the direction of
/// writing, nothing that is invisible.
fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~') || (!c.is_control() && c.escape_debug().len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("web", "\"web\"")]
    #[case("a\"b\u{1b}[2J", "\"a\\\"b\\u{1b}[2J\"")]
    fn a_value_is_in_quotes(#[case] value: &str, #[case] wanted: &str) {
        assert_eq!(quoted(value).to_string(), wanted);
    }

    #[test]
    fn the_name_of_an_object_is_a_word() {
        assert_eq!(["web-1.x", "a b", "a\"b"].map(word), ["web-1.x", "\"a b\"", "\"a\\\"b\""]);
    }

    #[test]
    fn the_first_findings_are_said_and_the_others_counted() {
        assert_eq!(findings(["a"]), "a");
        assert_eq!(findings(["a", "b", "c"]), "a | b | c");
        assert_eq!(findings((0..1000).map(|number| number.to_string())), "0 | 1 | 2 | and 997 more");
    }

    #[rstest]
    #[case(" No chain\n by that name.\n", "No chain; by that name.")]
    #[case("it's \"a\\b\"", "it's \"a\\b\"")]
    #[case(
        "\u{1b}]0;owned\u{7}\u{202e}\u{9b}\u{e0041}",
        "\\u001b]0;owned\\u0007\\u202e\\u009b\\udb40\\udc41"
    )]
    fn words_are_on_one_line_and_printable(#[case] words: &str, #[case] wanted: &str) {
        assert_eq!(excerpt(words), wanted);
    }

    #[test]
    fn json_means_the_same_when_it_is_printable() {
        let text = serde_json::json!({"a\u{9b}": ["\u{202e}\u{e0041}b\t\n", 1]});
        let pretty = serde_json::to_string_pretty(&text).unwrap();
        let escaped = printable(&pretty);
        assert!(escaped.chars().all(|c| c == '\n' || !c.is_control()), "{escaped:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), text);
        assert!(matches!(printable("plain\n\ttext"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn nothing_is_long_and_nothing_gets_out(text in any::<String>(), times in 1..40_usize) {
            let text = text.repeat(times);
            for shown in [quoted(&text).to_string(), word(&text).into_owned(), excerpt(&text), printable(&text).replace(['\n', '\t'], "")] {
                prop_assert!(shown.chars().all(|c| !c.is_control()), "{shown:?}");
            }
            // Every character may be escaped.
            prop_assert!(quoted(&text).to_string().len() <= 12 * VALUE + 40);
            prop_assert!(word(&text).len() <= 12 * VALUE + 253);
            prop_assert!(excerpt(&text).len() <= 12 * WORDS + 40);
        }
    }
}

//! nft's user data: comments, and how to list the keys and data of sets. The kernel keeps it and hands it out.

use crate::wire::user_data::COMMENT;
use netlink::MsgBuf;

/// nft takes no longer comments.
const LONGEST_COMMENT: usize = 128;

/// Room for the longest user data that the kernel takes (`NFT_USERDATA_MAXLEN`).
const MOST: usize = 256;

/// Entries of type, length and value, one byte each for the former two.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    len: usize,
    bytes: [u8; MOST],
}

impl Entries {
    pub(crate) fn new() -> Entries {
        Entries { len: 0, bytes: [0; MOST] }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Adds an entry. One that does not fit is left out: listings show less, packets take no other way.
    pub(crate) fn bytes(&mut self, kind: u8, value: &[u8]) {
        let end = self.len + 2 + value.len();
        let Ok(len) = u8::try_from(value.len()) else { return };
        if end <= MOST {
            self.bytes[self.len..self.len + 2].copy_from_slice(&[kind, len]);
            self.bytes[self.len + 2..end].copy_from_slice(value);
            self.len = end;
        }
    }

    pub(crate) fn number(&mut self, kind: u8, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Adds an entry that holds what `fill` writes.
    pub(crate) fn nest(&mut self, kind: u8, fill: impl FnOnce(&mut Entries)) {
        let mut inner = Entries::new();
        fill(&mut inner);
        self.bytes(kind, inner.as_bytes());
    }

    /// Adds a comment, cut to what nft takes, with the zero that ends it.
    pub(crate) fn comment(&mut self, kind: u8, text: &str) {
        let text = cut_comment(text).as_bytes();
        let mut ended = [0; LONGEST_COMMENT + 1];
        ended[..text.len()].copy_from_slice(text);
        self.bytes(kind, &ended[..=text.len()]);
    }
}

/// As much of a comment as is written: 128 bytes.
#[must_use]
pub fn cut_comment(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_COMMENT)]
}

/// Adds user data that holds only a comment, if there is one.
pub(crate) fn write_comment(buf: &mut MsgBuf, attribute: u16, comment: Option<&str>) {
    if let Some(comment) = comment {
        let mut entries = Entries::new();
        entries.comment(COMMENT, comment);
        buf.bytes(attribute, entries.as_bytes());
    }
}

/// The value of the first entry of a kind. Other programs' user data may be anything.
pub(crate) fn find(mut bytes: &[u8], kind: u8) -> Option<&[u8]> {
    while let [found, len, rest @ ..] = bytes {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if *found == kind {
            return Some(value);
        }
        bytes = rest;
    }
    None
}

/// The comment among user data; `None` if it is no text.
pub(crate) fn find_comment(bytes: &[u8], kind: u8) -> Option<&str> {
    let value = find(bytes, kind)?;
    std::str::from_utf8(value.strip_suffix(&[0])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_read_back_and_long_ones_are_cut_between_characters() {
        let comment = |text: &str| {
            let mut entries = Entries::new();
            entries.comment(7, text);
            find_comment(entries.as_bytes(), 7).unwrap().to_owned()
        };
        assert_eq!(comment("shop/web:http"), "shop/web:http");
        assert_eq!(comment(""), "");
        assert_eq!(comment(&"x".repeat(200)), "x".repeat(128));
        assert_eq!(comment(&"\u{e4}".repeat(100)), "\u{e4}".repeat(64));
        assert_eq!(comment(&format!("x{}", "\u{e4}".repeat(100))).len(), 127);
    }

    #[test]
    fn entries_that_do_not_fit_are_left_out() {
        let mut entries = Entries::new();
        entries.bytes(1, &[1; 200]);
        entries.bytes(2, &[2; 200]);
        entries.bytes(3, &[3; 52]);
        assert_eq!(entries.as_bytes().len(), 256);
        assert_eq!(find(entries.as_bytes(), 2), None);
        assert_eq!(find(entries.as_bytes(), 3), Some(&[3; 52][..]));
    }

    #[test]
    fn user_data_that_is_cut_short_has_no_comment() {
        assert_eq!(find_comment(&[0, 9, b'x', 0], 0), None);
        assert_eq!(find_comment(&[0, 1, b'x'], 0), None, "a comment ends with a zero");
        assert_eq!(find_comment(&[0], 0), None);
    }
}

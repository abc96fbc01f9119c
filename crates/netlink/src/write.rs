//! Writes requests. Lengths are kept right while writing, so there is no "finish" to forget.

use crate::{ATTRIBUTE_HEADER_LEN, HEADER_LEN, align};

/// Flag of an attribute type: its value is a list of attributes.
const NESTED: u16 = 0x8000;

/// One or more requests, back to back in one reusable buffer.
///
/// Start each request with [`begin`](MsgBuf::begin), then add the fixed header its protocol wants
/// and attributes. Integers are in host order unless the method's name says `be`. An attribute that
/// outgrows its 16-bit length makes the whole buffer unsendable ([`crate::Error::TooLong`]): split
/// long lists by watching [`len`](MsgBuf::len).
#[derive(Debug, Default)]
pub struct MsgBuf {
    bytes: Vec<u8>,
    /// Where the message being written starts.
    start: usize,
    messages: usize,
    too_long: bool,
}

/// A list of attributes that is still being written; see [`MsgBuf::begin_list`].
#[derive(Clone, Copy, Debug)]
pub struct List {
    start: usize,
}

impl MsgBuf {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> MsgBuf {
        MsgBuf::default()
    }

    /// Forgets all messages, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
        self.messages = 0;
        self.too_long = false;
    }

    /// Starts a message of this type. [`crate::Socket`] adds sequence numbers, `NLM_F_REQUEST` and,
    /// where it needs them, the acknowledge and dump flags.
    pub fn begin(&mut self, kind: u16, flags: u16) {
        self.start = self.bytes.len();
        self.messages += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.settle();
    }

    /// Adds the protocol's own fixed header (`nfgenmsg`, `genlmsghdr`, …) or other raw bytes.
    pub fn header(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.settle();
    }

    /// Adds an attribute of raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.attribute(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }

    /// Adds a string with the terminating zero that kernel string attributes have.
    pub fn string(&mut self, kind: u16, value: &str) {
        let start = self.attribute(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// Adds one byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// Adds 16 bits in host order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Adds 32 bits in host order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Adds 64 bits in host order.
    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Adds 16 bits in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Adds 32 bits in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Adds 64 bits in network order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Adds an attribute whose value is what `fill` writes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut MsgBuf)) {
        let start = self.attribute(kind | NESTED);
        fill(self);
        self.close(start);
    }

    /// Adds a list of attributes that [`extend`](MsgBuf::extend) adds to, so that a long list needs no closure
    /// around all of it.
    pub fn begin_list(&mut self, kind: u16) -> List {
        let start = self.attribute(kind | NESTED);
        self.close(start);
        List { start }
    }

    /// Adds to a list what `fill` writes. The list must be the last attribute of its message, and in no other
    /// one.
    pub fn extend(&mut self, list: List, fill: impl FnOnce(&mut MsgBuf)) {
        fill(self);
        self.close(list.start);
    }

    /// Bytes written so far, all messages together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no message was begun.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many messages were begun.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Everything written, as it would be sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes to patch and send, or `None` if a length did not fit.
    pub(crate) fn sendable(&mut self) -> Option<&mut [u8]> {
        if self.too_long { None } else { Some(&mut self.bytes) }
    }

    /// Writes an attribute header and returns where it starts.
    fn attribute(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// Writes the length of the attribute that starts at `start` and pads it.
    fn close(&mut self, start: usize) {
        debug_assert!(self.bytes.len() >= start + ATTRIBUTE_HEADER_LEN);
        match u16::try_from(self.bytes.len() - start) {
            Ok(len) => self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.settle();
    }

    /// Pads to four bytes and writes the length of the message being written.
    fn settle(&mut self) {
        debug_assert!(self.messages > 0, "begin() comes first");
        self.bytes.resize(align(self.bytes.len()), 0);
        match u32::try_from(self.bytes.len() - self.start) {
            Ok(len) if self.bytes.len() >= self.start + HEADER_LEN => {
                self.bytes[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
            }
            _ => self.too_long = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_family_lookup_is_written_byte_for_byte() {
        let mut buf = MsgBuf::new();
        buf.begin(16, 5);
        buf.header(&[3, 1, 0, 0]);
        buf.string(2, "IPVS");
        #[rustfmt::skip]
        let expected = [
            32, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            3, 1, 0, 0,
            9, 0, 2, 0, b'I', b'P', b'V', b'S', 0, 0, 0, 0,
        ];
        assert_eq!(buf.as_bytes(), expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn nests_count_their_padding_except_the_last_attributes_own() {
        let mut buf = MsgBuf::new();
        buf.begin(1, 0);
        buf.nest(7, |buf| {
            buf.u8(1, 0xaa);
            buf.be16(4, 80);
        });
        #[rustfmt::skip]
        assert_eq!(buf.as_bytes()[16..], [
            20, 0, 7, 0x80,
            5, 0, 1, 0, 0xaa, 0, 0, 0,
            6, 0, 4, 0, 0, 80, 0, 0,
        ]);
        assert_eq!(buf.as_bytes()[..4], 36_u32.to_ne_bytes());
    }

    #[test]
    fn a_list_that_is_extended_is_the_same_as_one_written_at_once() {
        let item = |value| move |buf: &mut MsgBuf| buf.nest(1, |buf| buf.u8(1, value));
        let mut at_once = MsgBuf::new();
        at_once.begin(1, 0);
        at_once.nest(3, |buf| (0..3).for_each(|value| item(value)(buf)));
        let mut extended = MsgBuf::new();
        extended.begin(1, 0);
        let list = extended.begin_list(3);
        (0..3).for_each(|value| extended.extend(list, item(value)));
        assert_eq!(extended.as_bytes(), at_once.as_bytes());
    }

    #[test]
    fn messages_follow_each_other_with_their_own_lengths() {
        let mut buf = MsgBuf::new();
        buf.begin(1, 0);
        buf.u64(1, 7);
        buf.begin(2, 0);
        assert_eq!(buf.messages(), 2);
        assert_eq!(buf.as_bytes()[..4], 28_u32.to_ne_bytes());
        assert_eq!(buf.as_bytes()[28..32], 16_u32.to_ne_bytes());
        buf.clear();
        assert!(buf.is_empty() && buf.messages() == 0);
    }

    #[test]
    fn an_attribute_over_64_kib_makes_the_buffer_unsendable() {
        let mut buf = MsgBuf::new();
        buf.begin(1, 0);
        buf.bytes(1, &[0; 65_531]);
        assert!(buf.sendable().is_some());
        buf.nest(2, |buf| buf.bytes(1, &[0; 65_531]));
        assert!(buf.sendable().is_none());
        buf.clear();
        assert!(buf.sendable().is_some());
    }
}

//! A bound on what becomes of a message. Two bytes can be an empty entry of a list, which takes a hundred in memory,
//! so a bound on the length of a message is none on what is decoded from it.

use bytes::{Buf, Bytes};
use prost::Message;

/// A message may have this many fields, those of messages in it included. The largest EndpointSlice that an API
/// server takes has a third of it.
pub(super) const MOST_FIELDS: usize = 1 << 19;

/// Decodes protobuf.
pub(super) fn decode<T: Message + Default>(bytes: &Bytes) -> Result<T, String> {
    // A field is read in two pieces or more.
    let mut metered = Metered { bytes: bytes.clone(), left: 2 * MOST_FIELDS };
    let decoded = T::decode(&mut metered);
    if metered.left == 0 {
        return Err(too_many("fields"));
    }
    decoded.map_err(|error| error.to_string())
}

/// The same for JSON, which has a comma between two fields.
pub(super) fn check_json(text: &[u8]) -> Result<(), String> {
    // Most texts are too short to have that many.
    let can_have = text.len() > MOST_FIELDS;
    if can_have && text.iter().filter(|byte| **byte == b',').count() > MOST_FIELDS {
        return Err(too_many("fields"));
    }
    Ok(())
}

pub(super) fn too_many(what: &str) -> String {
    format!("has more than {MOST_FIELDS} {what}")
}

/// Bytes that are at their end when they have been read in too many pieces.
struct Metered {
    bytes: Bytes,
    left: usize,
}

impl Metered {
    fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.bytes.clear();
        }
    }
}

impl Buf for Metered {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.spend();
        self.bytes.advance(count.min(self.bytes.len()));
    }

    /// Without copying.
    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        self.spend();
        self.bytes.split_to(count.min(self.bytes.len()))
    }
}

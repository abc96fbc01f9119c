//! What an API server sends: from the bytes of an answer to objects.
//!
//! Every read has a bound here: what exceeds it is one error, never memory. What is large is decoded on another
//! thread, so that probes are answered meanwhile.

mod body;
mod decoded;
mod envelope;
mod frames;

pub(super) use body::read_page;
pub(super) use decoded::Decoded;
pub(super) use envelope::{Event, EventKind, Page, Status};
pub(super) use frames::Frames;

use super::objects::ApiObject;
use bytes::Bytes;
use serde::de::DeserializeOwned;

/// What is longer is decoded on another thread.
const LARGE: usize = 256 << 10;
/// A message may have this many fields, those of messages in it included. Two bytes can be an empty entry of a
/// list, which takes a hundred in memory, so a bound on the length of a message is no bound on what becomes of it.
/// The largest EndpointSlice that an API server takes has half of it.
const MOST_FIELDS: usize = 1 << 19;

/// A page of a list, its objects still undecoded.
pub(super) async fn page(bytes: Bytes) -> Result<Page, String> {
    aside(bytes.len(), move || Page::decode(&bytes)).await
}

/// One event of a watch, its object still undecoded.
pub(super) async fn event(frame: Bytes) -> Result<Event, String> {
    aside(frame.len(), move || Event::decode(&frame)).await
}

/// One object, as it is in a page or an event.
///
/// # Errors
/// What is wrong with it, if not even its name can be told.
pub(super) async fn object<K: ApiObject>(bytes: Bytes) -> Result<Decoded<K>, String> {
    aside(bytes.len(), move || Decoded::decode(&bytes)).await
}

/// One message with nothing around it.
fn message<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    // Two fields have a comma between them; most messages are too short to have that many.
    let can_have = bytes.len() > MOST_FIELDS;
    if can_have && bytes.iter().filter(|byte| **byte == b',').count() > MOST_FIELDS {
        return Err(format!("has more than {MOST_FIELDS} fields"));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Decodes, on another thread what is large.
async fn aside<T: Send + 'static>(
    size: usize,
    decode: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    if size <= LARGE {
        return decode();
    }
    let decoded = tokio::task::spawn_blocking(decode).await;
    decoded.unwrap_or_else(|error| Err(format!("decoding was interrupted: {error}")))
}

#[cfg(test)]
mod tests;

//! What an API server sends, in JSON or in protobuf: from the bytes of an answer to objects.
//!
//! Both encodings of an object fill the same type (`objects`), so what is behind this room knows one kind of object.
//! Every read has a bound here: what exceeds it is one error, never memory. What is large is decoded on another
//! thread, so that probes are answered meanwhile.

mod body;
mod decoded;
mod envelope;
mod frames;
mod metered;

pub(super) use body::read_page;
pub(super) use decoded::Decoded;
pub(super) use envelope::{Event, EventKind, Page, Status};
#[cfg(any(test, feature = "testing"))]
pub(super) use frames::Cutter;
pub(super) use frames::Frames;

use super::objects::ApiObject;
use bytes::Bytes;
use http::{HeaderMap, header};
use prost::Message;
use serde::de::DeserializeOwned;

/// What is longer is decoded on another thread.
const LARGE: usize = 256 << 10;

/// What both encodings fill.
pub(super) trait Wire: Message + Default + DeserializeOwned + 'static {}
impl<T: Message + Default + DeserializeOwned + 'static> Wire for T {}

/// How objects are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// In a watch, each event is a line.
    Json,
    /// In a watch, the length of each event is before it.
    Protobuf,
}

impl Encoding {
    /// What an answer is in. What does not say that it is protobuf is read as JSON: what stands in front of an API
    /// server is not always careful with types.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        content_type.and_then(Encoding::named).unwrap_or(Encoding::Json)
    }

    /// The encoding of a media type, whatever its parameters; `None` if it is another.
    pub(super) fn named(media_type: &str) -> Option<Self> {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        [Encoding::Json, Encoding::Protobuf]
            .into_iter()
            .find(|it| essence.eq_ignore_ascii_case(it.media_type()))
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// A page of a list, its objects still undecoded.
    pub(super) async fn page(self, bytes: Bytes) -> Result<Page, String> {
        aside(bytes.len(), move || Page::decode(self, &bytes)).await
    }

    /// One event of a watch, its object still undecoded.
    pub(super) async fn event(self, frame: Bytes) -> Result<Event, String> {
        aside(frame.len(), move || Event::decode(self, &frame)).await
    }

    /// One object, as it is in a page or an event.
    ///
    /// # Errors
    /// What is wrong with it, if not even its name can be told.
    pub(super) async fn object<K: ApiObject>(self, bytes: Bytes) -> Result<Decoded<K>, String> {
        aside(bytes.len(), move || Decoded::decode(self, &bytes)).await
    }

    /// One message with nothing around it.
    fn message<T: Wire>(self, bytes: &Bytes) -> Result<T, String> {
        match self {
            Encoding::Json => {
                metered::check_json(bytes)?;
                serde_json::from_slice(bytes).map_err(|error| error.to_string())
            }
            Encoding::Protobuf => metered::decode(bytes),
        }
    }
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
mod equal_tests;
#[cfg(test)]
mod recorded_tests;
#[cfg(test)]
mod tests;

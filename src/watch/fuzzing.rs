//! Entry points for fuzzers: whatever an API server sends, reading it comes to an end.

use super::convert;
use super::decoded::Decoded;
use super::objects::{EndpointSliceObject, NodeObject, ServiceObject};
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;

/// Takes bytes for a line of a watch, of each kind.
pub fn watch_line(bytes: &[u8]) {
    object_of::<ServiceObject>(bytes, |object| drop(convert::service(&object)));
    object_of::<EndpointSliceObject>(bytes, |object| drop(convert::endpoint_slice(&object, "node")));
    object_of::<NodeObject>(bytes, |object| drop(convert::node(&object)));
}

fn object_of<K: DeserializeOwned>(bytes: &[u8], convert: impl FnOnce(K)) {
    let Ok(event) = serde_json::from_slice::<WatchEvent<Decoded<K>>>(bytes) else { return };
    if let WatchEvent::Added(Decoded::Object(object)) | WatchEvent::Modified(Decoded::Object(object)) = event
    {
        convert(object);
    }
}

//! Entry points for fuzzers: whatever an API server sends, reading it comes to an end.

use super::convert;
use super::objects::{ApiObject, EndpointSliceObject, NodeObject, ServiceObject};
use super::wire::{Decoded, Event};
use bytes::Bytes;

/// Takes bytes for a line of a watch, of each kind.
pub fn watch_line(bytes: &[u8]) {
    object_of::<ServiceObject>(bytes, |object| drop(convert::service(&object)));
    object_of::<EndpointSliceObject>(bytes, |object| drop(convert::endpoint_slice(&object, "node")));
    object_of::<NodeObject>(bytes, |object| drop(convert::node(&object)));
}

fn object_of<K: ApiObject>(bytes: &[u8], convert: impl FnOnce(K)) {
    let Ok(event) = Event::decode(&Bytes::copy_from_slice(bytes)) else { return };
    if let Ok(Decoded::Object(object)) = Decoded::decode(&event.object) {
        convert(object);
    }
}

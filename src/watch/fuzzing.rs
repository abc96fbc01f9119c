//! Entry points for fuzzers: whatever an API server sends, reading it comes to an end.

use super::convert;
use super::objects::{ApiObject, EndpointSliceObject, NodeObject, ServiceCidrObject, ServiceObject};
use super::wire::{Cutter, Decoded, Encoding, Event, Page};
use bytes::Bytes;

/// Longer than what fuzzers come up with.
const LIMIT: usize = 1 << 20;

/// Takes bytes for a line of a watch, of each kind.
pub fn watch_line(bytes: &[u8]) {
    event(Encoding::Json, &Bytes::copy_from_slice(bytes));
}

/// Takes bytes for the frames of a watch in protobuf, and for a page of a list.
pub fn protobuf(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut cutter = Cutter::new(Encoding::Protobuf, LIMIT);
    cutter.push(&bytes);
    while let Ok(Some(frame)) = cutter.cut() {
        event(Encoding::Protobuf, &frame);
    }
    if let Ok(page) = Page::decode(Encoding::Protobuf, &bytes) {
        page.objects.iter().for_each(|item| object(Encoding::Protobuf, item));
    }
    event(Encoding::Protobuf, &bytes);
    object(Encoding::Protobuf, &bytes);
}

fn event(encoding: Encoding, frame: &Bytes) {
    if let Ok(event) = Event::decode(encoding, frame) {
        object(encoding, &event.object);
    }
}

fn object(encoding: Encoding, bytes: &Bytes) {
    object_of::<ServiceObject>(encoding, bytes, |object| drop(convert::service(&object)));
    object_of::<EndpointSliceObject>(encoding, bytes, |object| {
        drop(convert::endpoint_slice(&object, "node"));
    });
    object_of::<NodeObject>(encoding, bytes, |object| drop(convert::node(&object)));
    object_of::<ServiceCidrObject>(encoding, bytes, |object| drop(convert::service_cidr(&object)));
}

fn object_of<K: ApiObject>(encoding: Encoding, bytes: &Bytes, convert: impl FnOnce(K)) {
    if let Ok(Decoded::Object(object)) = Decoded::decode(encoding, bytes) {
        convert(object);
    }
}

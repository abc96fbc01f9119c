//! What a real API server has answered (`scripts/record-api.py`), in both encodings.

use super::frames::Cutter;
use super::*;
use crate::watch::convert;
use crate::watch::objects::{EndpointSliceObject, LIST_END_ANNOTATION, NodeObject, ServiceObject};

macro_rules! recorded {
    ($name:literal) => {
        [
            (Encoding::Json, Bytes::from_static(include_bytes!(concat!("recorded/", $name, ".json")))),
            (Encoding::Protobuf, Bytes::from_static(include_bytes!(concat!("recorded/", $name, ".pb")))),
        ]
    };
}

/// An object in our own terms, as text; with what is wrong with it.
trait Told: ApiObject {
    fn told(&self) -> String;
}

impl Told for ServiceObject {
    fn told(&self) -> String {
        format!("{:?}", convert::service(self))
    }
}

impl Told for EndpointSliceObject {
    fn told(&self) -> String {
        format!("{:?}", convert::endpoint_slice(self, "recorded"))
    }
}

impl Told for NodeObject {
    fn told(&self) -> String {
        format!("{:?}", convert::node(self))
    }
}

fn told<K: Told>(encoding: Encoding, bytes: &Bytes) -> String {
    let Decoded::Object(object) = Decoded::<K>::decode(encoding, bytes).unwrap() else { panic!("broken") };
    assert!(object.metadata().resource_version.is_some());
    object.told()
}

fn list<K: Told>((encoding, bytes): (Encoding, Bytes)) -> (String, Vec<String>) {
    let page = Page::decode(encoding, &bytes).unwrap();
    assert_eq!(page.next, None);
    (page.version, page.objects.iter().map(|object| told::<K>(encoding, object)).collect())
}

fn stream<K: Told>((encoding, bytes): (Encoding, Bytes)) -> Vec<(EventKind, String)> {
    let mut cutter = Cutter::new(encoding, 1 << 20);
    let mut events = Vec::new();
    for piece in bytes.chunks(100) {
        cutter.push(piece);
        while let Some(frame) = cutter.cut().unwrap() {
            let event = Event::decode(encoding, &frame).unwrap();
            let told = match event.kind {
                EventKind::Bookmark => {
                    let object = Decoded::<K>::decode(encoding, &event.object).unwrap();
                    let metadata = object.metadata();
                    let version = metadata.resource_version.as_deref();
                    format!("{version:?} {:?}", metadata.annotations.get(LIST_END_ANNOTATION))
                }
                EventKind::Error => format!("{:?}", Status::decode(encoding, &event.object).unwrap()),
                _ => told::<K>(encoding, &event.object),
            };
            events.push((event.kind, told));
        }
    }
    assert!(cutter.is_empty());
    events
}

fn both<T: PartialEq + std::fmt::Debug>(
    [json, protobuf]: [(Encoding, Bytes); 2],
    read: impl Fn((Encoding, Bytes)) -> T,
) -> T {
    let (json, protobuf) = (read(json), read(protobuf));
    assert_eq!(json, protobuf);
    protobuf
}

#[test]
fn a_list_says_the_same_in_both_encodings() {
    let (version, services) = both(recorded!("services-list"), list::<ServiceObject>);
    assert!(version.parse::<u64>().unwrap() > 0);
    assert_eq!(services.len(), 5);
    let balanced = &services[0];
    for word in ["192.0.2.7", "203.0.113.9", "198.51.100.0/24", "affinity_seconds: Some(77)", "port: 80"] {
        assert!(balanced.contains(word), "{word}: {balanced}");
    }
    let (_, slices) = both(recorded!("endpointslices-list"), list::<EndpointSliceObject>);
    assert_eq!(slices.len(), 4);
    assert!(slices.iter().any(|slice| slice.contains("10.128.0.5") && slice.contains("triggered: Some(")));
    let (_, nodes) = both(recorded!("nodes-list"), list::<NodeObject>);
    assert!(nodes.iter().any(|node| node.contains("fd00:1::/64") && node.contains("192.0.2.1")), "{nodes:?}");
}

#[test]
fn a_watch_says_the_same_in_both_encodings() {
    let services = both(recorded!("services-stream"), stream::<ServiceObject>);
    assert_eq!(services.len(), 6);
    let mark = services.last().unwrap();
    assert_eq!(mark.0, EventKind::Bookmark);
    assert!(mark.1.ends_with(r#"Some("true")"#), "{mark:?}");
    assert_eq!(both(recorded!("endpointslices-stream"), stream::<EndpointSliceObject>).len(), 5);
    assert_eq!(both(recorded!("nodes-stream"), stream::<NodeObject>).len(), 2);
    assert!(both(recorded!("changes"), stream::<ServiceObject>).len() > 5);
}

#[test]
fn a_list_that_cannot_be_streamed_is_said_in_the_stream() {
    let events = both(recorded!("no-stream"), stream::<ServiceObject>);
    let [(EventKind::Error, status)] = &events[..] else { panic!("{events:?}") };
    assert!(status.contains("code: 500") && status.contains("RequestWatchProgress"), "{status}");
}

#[test]
fn a_page_names_the_next_one_in_both_encodings() {
    let [json, protobuf] = recorded!("page").map(|(encoding, page)| Page::decode(encoding, &page).unwrap());
    assert_eq!((json.objects.len(), protobuf.objects.len()), (1, 1));
    assert_eq!(json.next, protobuf.next);
    assert!(protobuf.next.is_some());
}

#[test]
fn a_refusal_is_read_in_both_encodings() {
    let status =
        both(recorded!("refused"), |(encoding, body)| Status::decode_answer(encoding, &body).unwrap());
    assert_eq!((status.code, &*status.reason), (400, "BadRequest"));
    assert!(status.message.starts_with("invalid continue token"), "{}", status.message);
}

#[test]
fn no_byte_that_is_lost_or_changed_makes_a_reader_panic() {
    for (_, bytes) in
        [recorded!("services-stream"), recorded!("page"), recorded!("refused")].into_iter().flatten()
    {
        for end in 0..bytes.len() {
            crate::watch::fuzzing::protobuf(&bytes[..end]);
            let mut changed = bytes.to_vec();
            changed[end] ^= 0xff;
            crate::watch::fuzzing::protobuf(&changed);
        }
    }
}

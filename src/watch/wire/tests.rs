use super::frames::Cutter;
use super::metered::MOST_FIELDS;
use super::*;
use crate::watch::failure::Cause;
use crate::watch::objects::ServiceObject;

const BROKEN: &str = r#"{"metadata": {"name": "b", "namespace": "shop", "resourceVersion": "7"}, "spec": 5}"#;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[tokio::test]
async fn a_broken_object_does_not_take_its_page_along() {
    let text = format!(
        r#"{{"kind": "ServiceList", "apiVersion": "v1", "metadata": {{"resourceVersion": "9", "continue": "c"}},
             "items": [{{"metadata": {{"name": "a"}}}}, {BROKEN}, {{"metadata": {{"name": "c"}}}}]}}"#
    );
    let page = Encoding::Json.page(bytes(&text)).await.unwrap();
    assert_eq!((&*page.version, page.next.as_deref()), ("9", Some("c")));
    let mut names = Vec::new();
    for item in page.objects {
        let object: Decoded<ServiceObject> = Encoding::Json.object(item).await.unwrap();
        names.push((object.metadata().name.clone().unwrap(), matches!(object, Decoded::Broken(_))));
    }
    assert_eq!(names, [("a".to_owned(), false), ("b".to_owned(), true), ("c".to_owned(), false)]);
}

#[tokio::test]
async fn a_broken_object_in_a_watch_keeps_its_name_and_version() {
    let event =
        Encoding::Json.event(bytes(&format!(r#"{{"type": "MODIFIED", "object": {BROKEN}}}"#))).await.unwrap();
    assert_eq!(event.kind, EventKind::Applied);
    let object: Decoded<ServiceObject> = Encoding::Json.object(event.object).await.unwrap();
    assert_eq!(object.metadata().namespace.as_deref(), Some("shop"));
    assert_eq!(object.metadata().resource_version.as_deref(), Some("7"));
    let Decoded::Broken(broken) = object else { panic!("not broken: {object:?}") };
    assert!(broken.error.contains("invalid type: integer `5`"), "{}", broken.error);
}

#[tokio::test]
async fn a_status_without_an_event_around_it_is_an_error() {
    let status = r#"{"kind": "Status", "code": 410, "message": "too old"}"#;
    let event = Encoding::Json.event(bytes(status)).await.unwrap();
    assert_eq!(event.kind, EventKind::Error);
    assert_eq!(Status::decode(Encoding::Json, &event.object).unwrap().code, 410);
}

#[test]
fn frames_are_cut_wherever_the_pieces_end() {
    let text = b"{\"a\":1}\n\r\n\n{\"b\":2}\n";
    for size in 1..text.len() {
        let mut cutter = Cutter::new(Encoding::Json, 8);
        let mut found = Vec::new();
        for piece in text.chunks(size) {
            cutter.push(piece);
            while let Some(frame) = cutter.cut().unwrap() {
                found.push(frame.trim_ascii().to_vec());
            }
        }
        assert_eq!(found, [b"{\"a\":1}", b"{\"b\":2}"], "{size}");
        assert!(cutter.is_empty());
    }
}

#[test]
fn a_frame_is_too_long_before_its_end_is_there() {
    let mut cutter = Cutter::new(Encoding::Json, 100);
    cutter.push(&[b'a'; 100]);
    assert!(cutter.cut().unwrap().is_none());
    cutter.push(b"a");
    let Err(Cause::TooLarge { limit, .. }) = cutter.cut() else { panic!("nothing is said") };
    assert_eq!(limit, 100);
}

#[tokio::test]
async fn no_message_grows_without_bound_when_it_is_decoded() {
    let many = |entry: &str| vec![entry; MOST_FIELDS + 2].join(",");
    let text = format!(r#"{{"metadata": {{"name": "a"}}, "spec": {{"ports": [{}]}}}}"#, many("{}"));
    assert!(Encoding::Json.object::<ServiceObject>(bytes(&text)).await.is_err());
    let error = Encoding::Json.page(bytes(&format!(r#"{{"items": [{}]}}"#, many("1")))).await.unwrap_err();
    assert!(error.starts_with("has more than 524288 objects"), "{error}");
}

#[test]
fn protobuf_frames_are_cut_by_their_lengths() {
    let text = b"\0\0\0\x03abc\0\0\0\0\0\0\0\x01d";
    for size in 1..text.len() {
        let mut cutter = Cutter::new(Encoding::Protobuf, 3);
        let mut found = Vec::new();
        for piece in text.chunks(size) {
            cutter.push(piece);
            while let Some(frame) = cutter.cut().unwrap() {
                found.push(frame.to_vec());
            }
        }
        assert_eq!(found, [&b"abc"[..], b"", b"d"], "{size}");
        assert!(cutter.is_empty());
    }
    let mut cutter = Cutter::new(Encoding::Protobuf, 100);
    cutter.push(b"\0\0\0\x65");
    assert!(matches!(cutter.cut(), Err(Cause::TooLarge { limit: 100, .. })));
}

#[tokio::test]
async fn no_message_in_protobuf_grows_without_bound_when_it_is_decoded() {
    // Two bytes each: an empty port, an empty page entry.
    let ports = b"\x0a\0".repeat(MOST_FIELDS + 2);
    let mut service = b"\x0a\x03\x0a\x01a\x12".to_vec();
    prost::encoding::encode_varint(ports.len() as u64, &mut service);
    service.extend(ports);
    let error = Encoding::Protobuf.object::<ServiceObject>(service.into()).await.map(|object| match object {
        Decoded::Broken(broken) => broken.error,
        Decoded::Object(_) => "decoded".to_owned(),
    });
    assert!(error.as_ref().map_or(true, |error| error.starts_with("has more than")), "{error:?}");
    let items = b"\x12\0".repeat(MOST_FIELDS + 2);
    let mut list = b"k8s\0\x12".to_vec();
    prost::encoding::encode_varint(items.len() as u64, &mut list);
    list.extend(items);
    assert!(Encoding::Protobuf.page(list.into()).await.unwrap_err().starts_with("has more than"));
}

#[test]
fn what_an_answer_is_in_is_said_by_its_type() {
    let of = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, text.parse().unwrap());
        Encoding::of(&headers)
    };
    assert_eq!(of("application/vnd.kubernetes.protobuf;stream=watch"), Encoding::Protobuf);
    assert_eq!(of("Application/vnd.kubernetes.Protobuf ; a=b"), Encoding::Protobuf);
    for other in ["application/json", "text/html", "application/vnd.kubernetes.protobuf2"] {
        assert_eq!(of(other), Encoding::Json);
    }
    assert_eq!(Encoding::of(&HeaderMap::new()), Encoding::Json);
}

/// Reads a page that comes in small pieces.
fn read(coding: Option<&'static str>, body: &[u8], limit: usize) -> Result<Bytes, Cause> {
    let mut headers = HeaderMap::new();
    headers.extend(coding.map(|coding| (header::CONTENT_ENCODING, coding.parse().unwrap())));
    let mut page = body::Unpacking::begin(&headers, limit)?;
    body.chunks(7).try_for_each(|piece| page.push(piece))?;
    page.end()
}

fn packed(content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packing = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packing.write_all(content).unwrap();
    packing.finish().unwrap()
}

#[test]
fn a_page_is_bounded_as_it_is_and_unpacked() {
    let content = b"0123456789".repeat(100);
    for (coding, body) in
        [(None, content.clone()), (Some("identity"), content.clone()), (Some("gzip"), packed(&content))]
    {
        assert_eq!(read(coding, &body, 1000).unwrap(), content);
        assert!(matches!(read(coding, &body, 999), Err(Cause::TooLarge { limit: 999, .. })));
    }
    let bomb = packed(&vec![0; 64 << 20]);
    assert!(bomb.len() < 1 << 20);
    assert!(matches!(read(Some("gzip"), &bomb, 1 << 20), Err(Cause::TooLarge { .. })));
}

#[test]
fn a_page_that_is_not_packed_as_it_says_is_unreadable() {
    let content = packed(b"content");
    for (coding, body) in
        [("gzip", &b"content"[..]), ("gzip", &content[..content.len() - 5]), ("br", &content)]
    {
        assert!(matches!(read(Some(coding), body, 1000), Err(Cause::Unreadable(_))), "{coding} {body:?}");
    }
}

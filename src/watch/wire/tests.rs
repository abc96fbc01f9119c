use super::frames::Cutter;
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
    let page = page(bytes(&text)).await.unwrap();
    assert_eq!((&*page.version, page.next.as_deref()), ("9", Some("c")));
    let mut names = Vec::new();
    for item in page.objects {
        let object: Decoded<ServiceObject> = object(item).await.unwrap();
        names.push((object.metadata().name.clone().unwrap(), matches!(object, Decoded::Broken(_))));
    }
    assert_eq!(names, [("a".to_owned(), false), ("b".to_owned(), true), ("c".to_owned(), false)]);
}

#[tokio::test]
async fn a_broken_object_in_a_watch_keeps_its_name_and_version() {
    let event = event(bytes(&format!(r#"{{"type": "MODIFIED", "object": {BROKEN}}}"#))).await.unwrap();
    assert_eq!(event.kind, EventKind::Applied);
    let object: Decoded<ServiceObject> = object(event.object).await.unwrap();
    assert_eq!(object.metadata().namespace.as_deref(), Some("shop"));
    assert_eq!(object.metadata().resource_version.as_deref(), Some("7"));
    let Decoded::Broken(broken) = object else { panic!("not broken: {object:?}") };
    assert!(broken.error.contains("invalid type: integer `5`"), "{}", broken.error);
}

#[tokio::test]
async fn a_status_without_an_event_around_it_is_an_error() {
    let status = r#"{"kind": "Status", "code": 410, "message": "too old"}"#;
    let event = event(bytes(status)).await.unwrap();
    assert_eq!(event.kind, EventKind::Error);
    assert_eq!(Status::decode(&event.object).unwrap().code, 410);
}

#[test]
fn frames_are_cut_wherever_the_pieces_end() {
    let text = b"{\"a\":1}\n\r\n\n{\"b\":2}\n";
    for size in 1..text.len() {
        let mut cutter = Cutter::new(8);
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
    let mut cutter = Cutter::new(100);
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
    assert!(object::<ServiceObject>(bytes(&text)).await.is_err());
    let error = page(bytes(&format!(r#"{{"items": [{}]}}"#, many("1")))).await.unwrap_err();
    assert!(error.starts_with("has more than 524288 objects"), "{error}");
}

//! The first list: streamed where the server can, in pages where that fails, whatever the reason.

use crate::objects::service;
use crate::picture::hurried;
use crate::server::Stub;
use kube_proxy_rs::testing::stub_api::{Fault, InitialEvents, Resource, Rule, Verb};
use kube_proxy_rs::watch::api::WatchOptions;
use serde_json::json;
use std::time::Duration;

const WEB: &str = "service shop/web 10.96.0.10";

/// Pauses that no test outlives: what arrives has not waited for one.
fn patient() -> WatchOptions {
    WatchOptions {
        backoff_min: Duration::from_secs(600),
        backoff_max: Duration::from_secs(600),
        streaming_limit: Duration::from_millis(300),
        ..WatchOptions::default()
    }
}

/// How the Services were asked for, in order: `stream`, `page` or `watch`.
fn requests(server: &Stub) -> Vec<&'static str> {
    let seen = server.seen();
    let services = seen.iter().filter(|seen| seen.resource == Resource::Services);
    services
        .map(|seen| match seen.verb {
            Verb::Watch if seen.parameter("sendInitialEvents").is_some() => "stream",
            Verb::Watch => "watch",
            _ => "page",
        })
        .collect()
}

#[tokio::test]
async fn a_streaming_list_needs_no_list_request() {
    let server = Stub::start();
    server.put(service("web", 10));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    assert!(server.seen().iter().all(|seen| seen.verb == Verb::Watch));
    assert_eq!(requests(&server), ["stream"]);
}

#[rstest::rstest]
#[case::unknown_parameter(InitialEvents::Rejected(400))]
#[case::unauthorized(InitialEvents::Rejected(401))]
#[case::forbidden(InitialEvents::Rejected(403))]
#[case::not_found(InitialEvents::Rejected(404))]
#[case::not_acceptable(InitialEvents::Rejected(406))]
#[case::expired(InitialEvents::Rejected(410))]
#[case::turned_off(InitialEvents::Rejected(422))]
#[case::too_many_requests(InitialEvents::Rejected(429))]
#[case::internal_error(InitialEvents::Rejected(500))]
#[case::unavailable(InitialEvents::Rejected(503))]
#[case::time_out_of_the_server(InitialEvents::Rejected(504))]
#[case::internal_error_inside(InitialEvents::Failed(500))]
#[case::expired_inside(InitialEvents::Failed(410))]
#[case::too_many_requests_inside(InitialEvents::Failed(429))]
#[case::forbidden_inside(InitialEvents::Failed(403))]
#[case::time_out_inside(InitialEvents::Failed(504))]
#[case::end_without_a_mark(InitialEvents::Ended)]
#[case::cut(InitialEvents::Cut)]
#[case::no_mark_in_time(InitialEvents::Ignored)]
#[tokio::test]
async fn whatever_ends_a_streaming_list_the_next_one_comes_in_pages_at_once(#[case] ends: InitialEvents) {
    let server = Stub::start();
    server.behave(|behaviour| behaviour.initial_events = ends);
    for number in 0..25 {
        server.put(service(&format!("web-{number}"), number));
    }
    let mut picture = server.watch_with(WatchOptions { page_size: 10, ..patient() }).await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe().lines().count(), 25);
    server.put(service("web", 10));
    picture.until("a change to arrive", |picture| picture.describe().contains(WEB)).await;
    let mut requests = requests(&server);
    // What is not acceptable in protobuf may be so in JSON.
    requests.dedup_by(|second, first| {
        ends == InitialEvents::Rejected(406) && second == first && *first == "stream"
    });
    assert_eq!(requests, ["stream", "page", "page", "page", "watch"]);
    // A page from the server's cache would be the whole list.
    assert!(server.seen().iter().all(|seen| seen.verb == Verb::Watch || seen.parameter("limit").is_some()));
}

#[rstest::rstest]
#[case::no_answer(Fault::Hang)]
#[case::hung_up(Fault::Drop)]
#[case::not_json(Fault::Garbage("<html>login</html>\n".into()))]
#[tokio::test]
async fn a_streaming_list_without_a_stream_is_followed_by_pages_at_once(#[case] fault: Fault) {
    let server = Stub::start();
    server.put(service("web", 10));
    // hyper itself repeats a request on a connection that is closed without an answer.
    let rule = Rule::always(fault).verb(Verb::Watch).on(Resource::Services).times(1);
    server.behave(|behaviour| behaviour.rules.push(rule));
    let mut picture = server.watch_with(patient()).await;
    picture.until_it_shows(&[WEB]).await;
    picture.until_listed(1).await;
    assert_eq!(requests(&server)[..2], ["stream", "page"]);
}

#[tokio::test]
async fn what_is_deleted_before_the_end_of_a_streaming_list_is_gone() {
    let server = Stub::start();
    let (gone, stays) = (server.put(service("db", 11)), server.put(service("web", 10)));
    let line =
        |kind: &str, object: serde_json::Value| format!("{}\n", json!({"type": kind, "object": object}));
    let object = |name: &str, last: u8, version: u64| {
        let mut object = service(name, last);
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object
    };
    let mark = json!({"metadata": {
        "resourceVersion": (stays + 1).to_string(), "annotations": {"k8s.io/initial-events-end": "true"},
    }});
    let stream = [
        line("ADDED", object("db", 11, gone)),
        line("ADDED", object("web", 10, stays)),
        line("DELETED", object("db", 11, stays + 1)),
        line("BOOKMARK", mark),
    ];
    server.delete(Resource::Services, "shop/db");
    let rule = Rule::always(Fault::Garbage(stream.concat())).on(Resource::Services).times(1);
    server.behave(|behaviour| behaviour.rules.push(rule));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe(), format!("{WEB}\n"));
    assert_eq!(requests(&server)[0], "stream");
}

#[tokio::test]
async fn as_long_as_nothing_is_listed_each_attempt_begins_with_a_stream() {
    let server = Stub::start();
    server.put(service("web", 10));
    let rule = Rule::always(Fault::Status(503)).on(Resource::Services).times(4);
    server.behave(|behaviour| behaviour.rules.push(rule));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    assert_eq!(requests(&server), ["stream", "page", "stream", "page", "stream"]);
}

#[tokio::test]
async fn later_lists_come_in_pages() {
    let server = Stub::start();
    server.put(service("web", 10));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    server.expire_watches();
    picture.until_listed(2).await;
    server.put(service("web", 11));
    picture.until_it_shows(&["service shop/web 10.96.0.11"]).await;
    assert_eq!(requests(&server), ["stream", "page", "watch"]);
}

#[tokio::test]
async fn a_server_that_is_not_to_be_asked_for_streams_is_not() {
    let server = Stub::start();
    let mut picture = server.watch_with(WatchOptions { streaming_lists: false, ..hurried() }).await;
    picture.until_listed(1).await;
    assert_eq!(requests(&server)[0], "page");
}

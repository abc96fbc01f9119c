//! What a server that is hostile or broken costs: over each bound there is one error that names it, what was known
//! stays known, and the watch is tried again.

use crate::log::Log;
use crate::objects::service;
use crate::picture::{Picture, hurried};
use crate::server::Stub;
use kube_proxy_rs::model::ObjectKind;
use kube_proxy_rs::testing::stub_api::{Fault, Resource, Rule, StubApi, Verb};
use kube_proxy_rs::watch::api::{Bounds, WatchOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const WEB: &str = "service shop/web 10.96.0.10";
const DB: &str = "service shop/db 10.96.0.11";

fn bounded(bounds: Bounds) -> WatchOptions {
    WatchOptions { bounds, ..hurried() }
}

/// A server with one Service, watched, with its first lists behind it.
async fn settled(options: WatchOptions) -> (Stub, Picture) {
    let server = Stub::start();
    server.put(service("web", 10));
    let mut picture = server.watch_with(options).await;
    picture.until_listed(1).await;
    (server, picture)
}

/// Listing Services goes wrong in this way, again and again; then it does not.
async fn survives(options: WatchOptions, fault: Fault, words: &str) {
    let (log, _guard) = Log::record();
    let (server, mut picture) = settled(options).await;
    let rule = Rule::always(fault).on(Resource::Services).verb(Verb::List);
    server.behave(|behaviour| behaviour.rules.push(rule));
    server.put(service("db", 11));
    server.compact();
    server.expire_watches();
    let is_tried = |server: &Stub| {
        server.seen().iter().filter(|s| (s.resource, s.verb) == (Resource::Services, Verb::List)).count() >= 4
    };
    while !is_tried(&server) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(picture.describe().contains(WEB), "{}", picture.describe());
    server.behave(|behaviour| behaviour.rules.clear());
    picture.until_it_shows(&[DB, WEB]).await;
    picture.until("the list to end", |picture| picture.lists[&ObjectKind::Service] == 2).await;
    let lines = log.lines("WARN");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains(words) && lines[0].contains("verb=\"list\""), "{lines:#?}");
}

#[tokio::test]
async fn an_event_without_an_end_leads_to_a_list() {
    let (log, _guard) = Log::record();
    let (server, mut picture) = settled(bounded(Bounds { event: 100_000, ..Bounds::default() })).await;
    let endless = Rule::always(Fault::Endless("a".into())).on(Resource::Services).verb(Verb::Watch);
    server.behave(|behaviour| behaviour.rules.push(endless.times(3)));
    server.end_watches();
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    picture.until("three more lists", |picture| picture.lists[&ObjectKind::Service] == 4).await;
    let lines = log.lines("WARN");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("more than 100000 bytes in an event of a watch"), "{lines:#?}");
}

#[tokio::test]
async fn a_page_without_an_end_is_given_up() {
    let options = bounded(Bounds { page: 100_000, ..Bounds::default() });
    let words = "more than 100000 bytes in a page of a list";
    survives(options, Fault::Endless("  ".into()), words).await;
}

#[tokio::test]
async fn a_list_without_an_end_is_given_up_when_a_page_names_itself_as_the_next() {
    let page = r#"{"metadata": {"resourceVersion": "1", "continue": "again"}, "items": []}"#;
    survives(hurried(), Fault::Garbage(page.into()), "a page names itself as the next one").await;
}

#[tokio::test]
async fn a_list_of_too_many_pages_is_given_up() {
    let (log, _guard) = Log::record();
    let options = bounded(Bounds { pages: 3, ..Bounds::default() });
    let (server, mut picture) = settled(WatchOptions { page_size: 1, ..options }).await;
    for number in 0..4 {
        server.put(service(&format!("web-{number}"), number));
    }
    server.expire_watches();
    picture.until("all to be there", |picture| picture.describe().lines().count() == 5).await;
    while log.lines("more than 3 pages in a list").is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (0..2).for_each(|number| assert!(server.delete(Resource::Services, &format!("shop/web-{number}"))));
    picture.until("the list to end", |picture| picture.lists[&ObjectKind::Service] == 2).await;
    assert_eq!(picture.describe().lines().count(), 3);
}

#[rstest::rstest]
#[case::streaming(true)]
#[case::in_pages(false)]
#[tokio::test]
async fn a_list_of_too_many_objects_is_given_up(#[case] streaming_lists: bool) {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    for number in 0..5 {
        server.put(service(&format!("web-{number}"), number));
    }
    let options = bounded(Bounds { objects: 4, ..Bounds::default() });
    let options = WatchOptions { page_size: 2, streaming_lists, ..options };
    let mut picture = server.watch_with(options).await;
    let others = |picture: &Picture| picture.lists.contains_key(&ObjectKind::Node);
    picture.until("nodes to be listed", others).await;
    while log.lines("WARN").is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!picture.lists.contains_key(&ObjectKind::Service));
    server.delete(Resource::Services, "shop/web-0");
    picture.until_listed(1).await;
    let lines = log.lines("WARN");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("more than 4 objects in a list"), "{lines:#?}");
}

#[tokio::test]
async fn pages_that_are_too_large_come_in_smaller_ones() {
    let server = Stub::start();
    for number in 0..64 {
        server.put(service(&format!("web-{number}"), number));
    }
    // Three Services fit.
    let options = bounded(Bounds { page: 1500, ..Bounds::default() });
    let mut picture = server.watch_with(WatchOptions { streaming_lists: false, ..options }).await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe().lines().count(), 64);
    let seen = server.seen();
    let pages = seen.iter().filter(|seen| (seen.resource, seen.verb) == (Resource::Services, Verb::List));
    let limits: Vec<_> = pages.map(|seen| seen.parameter("limit").unwrap()).collect();
    assert_eq!((&limits[..3], limits.len()), (&["250", "31", "3"][..], 24));
}

#[tokio::test]
async fn a_refusal_without_an_end_is_given_up() {
    let (server, mut picture) = settled(hurried()).await;
    let endless = Rule::always(Fault::EndlessRefusal).on(Resource::Services).verb(Verb::Watch);
    server.behave(|behaviour| behaviour.rules.push(endless.times(2)));
    server.end_watches();
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
}

/// The thread that reads is the one that answers probes.
#[rstest::rstest]
#[case::in_an_event(Verb::Watch)]
#[case::in_a_page(Verb::List)]
#[tokio::test]
async fn what_is_large_is_decoded_while_probes_are_answered(#[case] verb: Verb) {
    let server: Arc<StubApi> =
        tokio::task::spawn_blocking(StubApi::start_on_a_thread).await.unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // A little less than the bounds.
    let ports = r#"{"port":80,"name":"a"}"#;
    let object = |bytes: usize| {
        let ports = vec![ports; bytes / (ports.len() + 1)].join(",");
        format!(r#"{{"metadata":{{"name":"a","resourceVersion":"1"}},"spec":{{"ports":[{ports}]}}}}"#)
    };
    let text = match verb {
        Verb::Watch => format!(r#"{{"type":"ADDED","object":{}}}"#, object(11 << 20)) + "\n",
        _ => format!(
            r#"{{"metadata":{{"resourceVersion":"1"}},"items":[{},{}]}}"#,
            object(11 << 20),
            object(11 << 20)
        ),
    };
    let rule = Rule::always(Fault::Garbage(text)).on(Resource::Services).verb(verb).times(2);
    server.behave(|behaviour| behaviour.rules.push(rule));
    server.put(service("web", 10));
    let options = WatchOptions { streaming_lists: verb == Verb::Watch, ..hurried() };
    let mut picture = Picture::watch(&server.kubeconfig(folder.path()).unwrap(), options).await;
    let ticking = tokio::spawn(async {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            LONGEST.with(|cell| cell.set(longest));
        }
    });
    picture.until_listed(1).await;
    ticking.abort();
    let longest = LONGEST.with(std::cell::Cell::get);
    assert!(longest < Duration::from_secs(1), "nothing else ran for {longest:?}");
}

thread_local! {
    static LONGEST: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

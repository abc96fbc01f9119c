//! What API servers, and whatever stands in front of them, do on bad days.

use crate::objects::{node, service, slice};
use crate::picture::{Picture, hurried};
use crate::server::Stub;
use kube_proxy_rs::model::{ObjectKind, WatchEvent};
use kube_proxy_rs::testing::stub_api::{
    Absent, Expired, Fault, InitialEvents, Resource, Rule, StubApi, Verb,
};
use kube_proxy_rs::watch::api::WatchOptions;
use std::time::Duration;

/// A server with one Service, watched, with its first lists behind it.
async fn settled() -> (Stub, Picture) {
    let server = Stub::start();
    server.put(service("web", 10));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    (server, picture)
}

const WEB: &str = "service shop/web 10.96.0.10";
const DB: &str = "service shop/db 10.96.0.11";

#[tokio::test]
async fn a_kind_without_permission_is_never_called_listed_until_it_is_granted() {
    let server = Stub::start();
    let rule = Rule::always(Fault::Status(403)).on(Resource::EndpointSlices);
    server.behave(|behaviour| behaviour.rules.push(rule));
    server.put(slice("web", "10.244.0.1"));
    let mut picture = server.watch().await;
    let others = |picture: &Picture| {
        picture.lists.contains_key(&ObjectKind::Service) && picture.lists.contains_key(&ObjectKind::Node)
    };
    picture.until("services and nodes to be listed", others).await;
    assert!(!picture.lists.contains_key(&ObjectKind::EndpointSlice));
    server.behave(|behaviour| behaviour.rules.clear());
    picture.until_listed(1).await;
    assert_eq!(picture.describe(), "slice shop/web-x 10.244.0.1\n");
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let absent = Absent::reserve().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = absent.kubeconfig(folder.path()).unwrap();
    let mut picture = Picture::watch(&kubeconfig, WatchOptions { streaming_lists: false, ..hurried() }).await;
    // In pages the first event comes before the first request, so the third one is after a failure.
    for _ in 0..8 {
        assert!(matches!(picture.next().await, WatchEvent::Listing(_)));
    }
    let server: StubApi = absent.appear().unwrap();
    server.put(node("here"));
    picture.until_it_shows(&["node here in zone a"]).await;
    picture.until_listed(1).await;
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_listed_again_when_connections_are_cut() {
    let (server, mut picture) = settled().await;
    for round in 0..5 {
        server.disconnect();
        server.put(service("db", 11 + round));
        picture.until_it_shows(&[&format!("service shop/db 10.96.0.{}", 11 + round), WEB]).await;
    }
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[tokio::test]
async fn a_deletion_while_disconnected_arrives() {
    let (server, mut picture) = settled().await;
    server.behave(|behaviour| behaviour.rules.push(Rule::always(Fault::Drop).times(6)));
    server.disconnect();
    server.delete(Resource::Services, "shop/web");
    picture.until_it_shows(&[]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[tokio::test]
async fn a_watch_whose_time_is_up_goes_on_where_it_was() {
    let (server, mut picture) = settled().await;
    server.end_watches();
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
    assert_eq!(picture.sent["shop/web"], 1);
}

#[tokio::test]
async fn bookmarks_carry_a_quiet_watch_past_a_compaction() {
    let (server, mut picture) = settled().await;
    // An object that we do not watch moves the version on.
    server.put(node("elsewhere"));
    server.compact();
    server.bookmark();
    server.end_watches();
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[rstest::rstest]
#[case::in_the_stream(Expired::InStream)]
#[case::as_a_status(Expired::Http)]
#[tokio::test]
async fn an_expired_version_leads_to_a_new_list_that_tells_what_is_gone(#[case] expired: Expired) {
    let (server, mut picture) = settled().await;
    server.behave(|behaviour| {
        behaviour.expired = expired;
        // Keeps the watches away until all is done.
        behaviour.rules.push(Rule::always(Fault::Status(503)));
    });
    server.disconnect();
    server.delete(Resource::Services, "shop/web");
    server.put(service("db", 11));
    server.compact();
    server.behave(|behaviour| behaviour.rules.clear());
    picture.until_it_shows(&[DB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 2);
}

/// Pauses that no test outlives.
fn patient() -> WatchOptions {
    let pause = Duration::from_secs(600);
    WatchOptions { backoff_min: pause, backoff_max: pause, ..WatchOptions::default() }
}

#[rstest::rstest]
#[case::in_the_stream(Expired::InStream)]
#[case::as_a_status(Expired::Http)]
#[tokio::test]
async fn the_list_after_an_expired_version_waits_for_nothing(#[case] expired: Expired) {
    let server = Stub::start();
    server.put(service("web", 10));
    let mut picture = server.watch_with(patient()).await;
    picture.until_listed(1).await;
    server.behave(|behaviour| behaviour.expired = expired);
    server.delete(Resource::Services, "shop/web");
    server.put(service("db", 11));
    server.compact();
    server.end_watches();
    picture.until_it_shows(&[DB]).await;
}

#[tokio::test]
async fn the_first_answer_ends_the_pauses_of_the_other_kinds() {
    let server = Stub::start();
    server.put(service("web", 10));
    server.put(slice("web", "10.244.0.1"));
    for resource in [Resource::EndpointSlices, Resource::Nodes] {
        // The stream and the page of one attempt.
        let rule = Rule::always(Fault::Status(503)).on(resource).times(2);
        server.behave(|behaviour| behaviour.rules.push(rule));
    }
    // The list of Services comes to its end after those of the other kinds have failed.
    server.behave(|behaviour| behaviour.dribble = Some(Duration::from_millis(3)));
    let mut picture = server.watch_with(patient()).await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe(), format!("{WEB}\nslice shop/web-x 10.244.0.1\n"));
}

#[tokio::test]
async fn a_server_whose_watches_always_expire_is_not_listed_without_pause() {
    let server = Stub::start();
    server.behave(|behaviour| behaviour.initial_events = InitialEvents::Rejected(422));
    let expired = Rule::always(Fault::Status(410)).on(Resource::Services).verb(Verb::Watch);
    server.behave(|behaviour| behaviour.rules.push(expired));
    let mut picture = server.watch_with(patient()).await;
    picture
        .until("the services to be listed twice", |picture| {
            picture.lists.get(&ObjectKind::Service) == Some(&2)
        })
        .await;
    for number in 0..20 {
        server.put(slice("web", &format!("10.244.0.{number}")));
        picture.until_it_shows(&[&format!("slice shop/web-x 10.244.0.{number}")]).await;
    }
    assert_eq!(picture.lists[&ObjectKind::Service], 2);
}

#[tokio::test]
async fn a_list_that_expires_between_two_pages_starts_over() {
    let server = Stub::start();
    for number in 0..4 {
        server.put(service(&format!("web-{number}"), number));
    }
    let options = WatchOptions { streaming_lists: false, page_size: 2, ..hurried() };
    let mut picture = server.watch_with(options).await;
    // The channel is small, so the first page waits until the test reads on.
    while !matches!(picture.next().await, WatchEvent::Service(_)) {}
    server.compact();
    picture.until_listed(1).await;
    assert_eq!(picture.describe().lines().count(), 4);
}

#[tokio::test]
async fn a_slow_stream_is_read_to_its_end() {
    let server = Stub::start();
    server.behave(|behaviour| behaviour.dribble = Some(Duration::from_micros(100)));
    server.put(service("web", 10));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
}

#[tokio::test]
async fn a_change_that_cannot_be_read_leads_to_a_new_list() {
    let (server, mut picture) = settled().await;
    server.say(Resource::Services, "<html>your session has expired</html>\n");
    picture.until("services to be listed again", |picture| picture.lists[&ObjectKind::Service] == 2).await;
    assert_eq!(picture.describe(), format!("{WEB}\n"));
}

#[tokio::test]
async fn a_line_that_breaks_off_is_read_again_in_full() {
    let (server, mut picture) = settled().await;
    server.say(Resource::Services, r#"{"type":"ADDED","object":{"metadata":{"na"#);
    server.disconnect();
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_left_when_its_time_is_up() {
    let server = Stub::start();
    server.put(service("web", 10));
    let options = WatchOptions {
        watch_time: Duration::from_millis(50),
        watch_grace: Duration::from_millis(100),
        streaming_lists: false,
        ..hurried()
    };
    let silence = Rule::always(Fault::Silence).on(Resource::Services).verb(Verb::Watch).times(2);
    server.behave(|behaviour| behaviour.rules.push(silence));
    let mut picture = server.watch_with(options).await;
    picture.until_listed(1).await;
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[tokio::test]
async fn a_watch_is_asked_for_five_to_ten_minutes() {
    let (server, _picture) = settled().await;
    let seen = server.seen();
    let times = seen.iter().filter_map(|seen| seen.parameter("timeoutSeconds")?.parse::<u64>().ok());
    let times: Vec<_> = times.collect();
    assert!(times.len() == 3 && times.iter().all(|time| (300..=600).contains(time)), "{times:?}");
    assert!(times[0] != times[1] || times[1] != times[2], "{times:?}");
}

#[tokio::test]
async fn a_watch_that_ends_within_an_event_is_tried_again() {
    let (server, mut picture) = settled().await;
    let login = Rule::always(Fault::Garbage("<html>login</html>".into())).on(Resource::Services).times(3);
    server.behave(|behaviour| behaviour.rules.push(login));
    server.end_watches();
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[tokio::test]
async fn garbage_instead_of_a_list_is_survived() {
    let server = Stub::start();
    let rule = Rule::always(Fault::Garbage("<html>login</html>".into())).times(6);
    server.behave(|behaviour| behaviour.rules.push(rule));
    server.put(service("web", 10));
    let mut picture = server.watch_with(WatchOptions { streaming_lists: false, ..hurried() }).await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe(), format!("{WEB}\n"));
}

#[tokio::test]
async fn a_list_that_hangs_is_tried_again() {
    let server = Stub::start();
    server.behave(|behaviour| behaviour.rules.push(Rule::always(Fault::Hang).verb(Verb::List).times(3)));
    server.put(service("web", 10));
    let stall_limit = Duration::from_millis(200);
    let options = WatchOptions { streaming_lists: false, stall_limit, ..hurried() };
    let mut picture = server.watch_with(options).await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe(), format!("{WEB}\n"));
}

#[rstest::rstest]
#[case::streaming(true)]
#[case::in_pages(false)]
#[tokio::test]
async fn an_object_that_does_not_decode_does_not_stop_the_rest(#[case] streaming_lists: bool) {
    let server = Stub::start();
    let mut broken = service("db", 11);
    broken["spec"]["ports"] = "eighty".into();
    server.put(broken.clone());
    server.put(service("web", 10));
    let mut picture = server.watch_with(WatchOptions { streaming_lists, ..hurried() }).await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe(), format!("{WEB}\n"));

    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    server.put(broken);
    picture.until_it_shows(&[WEB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[tokio::test]
async fn an_object_that_turns_unusable_is_gone() {
    let server = Stub::start();
    server.put(slice("web", "10.244.0.1"));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    let mut names = slice("web", "web.example");
    names["addressType"] = "FQDN".into();
    server.put(names);
    picture.until_it_shows(&[]).await;
}

#[tokio::test]
async fn a_thousand_objects_pass_through_a_channel_of_sixteen() {
    let server = Stub::start();
    server.fill(1000, 5, "here");
    let mut picture = server.watch().await;
    let mut slices = 0;
    while !picture.lists.contains_key(&ObjectKind::EndpointSlice) {
        if let WatchEvent::Slice(slice) = picture.next().await {
            assert_eq!(slice.endpoints.len(), 5);
            slices += 1;
        }
    }
    assert_eq!(slices, 1000);
}

#[tokio::test]
async fn the_server_is_asked_for_no_more_than_we_need() {
    let (server, _picture) = settled().await;
    let seen = server.seen();
    let asked = |resource, parameter: &str| {
        let request = seen.iter().find(|seen| seen.resource == resource).unwrap();
        request.parameter(parameter).map(str::to_owned)
    };
    let proxy_name = "!service.kubernetes.io/service-proxy-name";
    assert_eq!(asked(Resource::Services, "labelSelector").as_deref(), Some(proxy_name));
    assert_eq!(asked(Resource::Services, "fieldSelector").as_deref(), Some("spec.clusterIP!=None"));
    let headless = "!service.kubernetes.io/headless";
    assert_eq!(asked(Resource::EndpointSlices, "labelSelector").as_deref(), Some(headless));
    assert_eq!(asked(Resource::EndpointSlices, "fieldSelector"), None);
    assert_eq!(asked(Resource::Nodes, "labelSelector"), None);
    assert_eq!(asked(Resource::Nodes, "fieldSelector").as_deref(), Some("metadata.name=here"));
}

#[tokio::test]
async fn a_kubeconfig_that_changes_during_an_outage_is_used() {
    let (absent, server) = (Absent::reserve().unwrap(), Stub::start());
    server.put(service("web", 10));
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = absent.kubeconfig(folder.path()).unwrap();
    let mut picture = Picture::watch(&kubeconfig, WatchOptions { streaming_lists: false, ..hurried() }).await;
    for _ in 0..8 {
        assert!(matches!(picture.next().await, WatchEvent::Listing(_)));
    }
    // What is half written is no reason to give up.
    std::fs::write(&kubeconfig, "current-").unwrap();
    for _ in 0..8 {
        assert!(matches!(picture.next().await, WatchEvent::Listing(_)));
    }
    server.kubeconfig(folder.path()).unwrap();
    picture.until_it_shows(&[WEB]).await;
}

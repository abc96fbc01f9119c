//! The encodings that the proxy requests, and what servers answer with.

use crate::log::Log;
use crate::objects::{service, slice};
use crate::picture::hurried;
use crate::server::Stub;
use kube_proxy_rs::model::ObjectKind;
use kube_proxy_rs::testing::stub_api::{Protobuf, Resource, Verb};
use kube_proxy_rs::watch::api::{Accept, WatchOptions};
use std::time::Duration;

const WEB: &str = "service shop/web 10.96.0.10";
const DB: &str = "service shop/db 10.96.0.11";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const IN_JSON: &str = "the API server answers in JSON";

/// Lists, changes, another list, deletions: all arrives, in any encoding.
async fn tells_all(server: &Stub, options: WatchOptions) {
    server.put(service("web", 10));
    server.put(slice("web", "10.244.0.1"));
    let mut picture = server.watch_with(options).await;
    picture.until_listed(1).await;
    server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB, "slice shop/web-x 10.244.0.1"]).await;
    let all = [Resource::Services, Resource::EndpointSlices, Resource::Nodes];
    while all.iter().any(|resource| server.open_watches(*resource) == 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.expire_watches();
    picture.until_listed(2).await;
    server.delete(Resource::Services, "shop/db");
    server.delete(Resource::EndpointSlices, "shop/web-x");
    picture.until_it_shows(&[WEB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 2);
}

fn accepted(server: &Stub) -> Vec<String> {
    server.seen().into_iter().map(|seen| seen.accept).collect()
}

#[rstest::rstest]
#[case::streaming(true)]
#[case::in_pages(false)]
#[tokio::test]
async fn protobuf_is_asked_for_and_json_will_do(#[case] streaming_lists: bool) {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    tells_all(&server, WatchOptions { streaming_lists, page_size: 1, ..hurried() }).await;
    let wanted = format!("{PROTOBUF},application/json");
    assert!(accepted(&server).iter().all(|accepted| *accepted == wanted));
    assert_eq!(log.lines(IN_JSON), Vec::<String>::new());
    assert_eq!(log.lines("WARN"), Vec::<String>::new());
}

#[rstest::rstest]
#[case::answers_in_json(Protobuf::Unknown)]
#[case::not_acceptable(Protobuf::Refused(406))]
#[case::unsupported(Protobuf::Refused(415))]
#[tokio::test]
async fn a_server_without_protobuf_is_read_in_json_which_is_said_once(
    #[case] protobuf: Protobuf,
    #[values(true, false)] streaming_lists: bool,
) {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    server.behave(|behaviour| behaviour.protobuf = protobuf);
    tells_all(&server, WatchOptions { streaming_lists, ..hurried() }).await;
    assert_eq!(log.lines(IN_JSON).len(), 1, "{:#?}", log.lines(""));
    assert_eq!(log.lines("WARN"), Vec::<String>::new());
    assert_eq!(log.lines("the streaming list failed"), Vec::<String>::new());
    let is_refused = matches!(protobuf, Protobuf::Refused(_));
    let in_vain = accepted(&server).iter().filter(|accepted| accepted.contains(PROTOBUF)).count();
    assert!(!is_refused || in_vain <= 3, "each kind asks in vain once: {in_vain}");
}

#[rstest::rstest]
#[case::json("application/json", "", "application/json")]
#[case::protobuf(PROTOBUF, "", "application/vnd.kubernetes.protobuf,application/json")]
#[case::only_protobuf("application/json", PROTOBUF, PROTOBUF)]
#[case::in_order(
    "",
    "application/json, application/vnd.kubernetes.protobuf;q=0.5",
    "application/json,application/vnd.kubernetes.protobuf"
)]
#[case::unreadable("application/yaml", "application/cbor", "application/json")]
#[tokio::test]
async fn the_configured_types_are_asked_for(
    #[case] content_type: &str,
    #[case] accept_content_types: &str,
    #[case] wanted: &str,
) {
    let server = Stub::start();
    let accept = Accept::of(content_type, accept_content_types);
    tells_all(&server, WatchOptions { accept, ..hurried() }).await;
    let accepted = accepted(&server);
    assert!(accepted.iter().all(|accepted| accepted == wanted), "{accepted:?}");
    assert!(server.seen().iter().any(|seen| seen.verb == Verb::List));
}

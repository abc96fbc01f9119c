//! What the person on call gets to read.

use crate::objects::{service, slice};
use crate::picture::{Picture, hurried};
use crate::server::Stub;
use kube_proxy_rs::model::{ObjectKind, WatchEvent};
use kube_proxy_rs::testing::stub_api::{Absent, Fault, InitialEvents, Protobuf, Resource, Rule, Verb};
use kube_proxy_rs::watch::api::WatchOptions;
use rstest::rstest;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::Level;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

/// Everything logged at INFO and above by this thread, which the whole test runs on.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(crate) fn record() -> (Self, DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let targets = Targets::new().with_target("kube_proxy_rs", Level::INFO);
        let guard =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(targets).with(layer));
        (log, guard)
    }

    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_missing_permission_is_said_once_in_the_servers_words() {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    let rule = Rule::always(Fault::Status(403)).on(Resource::EndpointSlices).times(5);
    server.behave(|behaviour| behaviour.rules.push(rule));
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    let lines = log.lines("WARN");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].contains("endpointslices is forbidden") && lines[0].contains("cannot list"),
        "{lines:?}"
    );
    assert!(lines[0].contains(&server.url()), "{lines:?}");
    let lines = log.lines("works again");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    // Each attempt is one failure, though it asks for a stream and for a page.
    assert!(lines[0].contains("failures=2"), "{lines:?}");
}

/// Of an API server before 1.33, or one whose role for us is older.
#[rstest]
#[tokio::test]
async fn service_cidrs_that_are_not_offered_are_said_once_and_not_missed(#[values(403, 404)] code: u16) {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    let rule = Rule::always(Fault::Status(code)).on(Resource::ServiceCidrs);
    server.behave(|behaviour| behaviour.rules.push(rule));
    server.put(service("web", 10));
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = server.kubeconfig(folder.path()).unwrap();
    let options = WatchOptions { service_cidrs: true, ..hurried() };
    let mut picture = Picture::watch(&kubeconfig, options).await;
    picture.until_listed(1).await;
    server.put(service("db", 11));
    picture.until_it_shows(&["service shop/db 10.96.0.11", "service shop/web 10.96.0.10"]).await;
    assert_eq!(log.lines("WARN"), [""; 0]);
    let said = || log.lines("going on without them");
    let is_said = async {
        while said().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_said).await.expect("it is said");
    assert_eq!(said().len(), 1, "{:?}", said());
    assert!(said()[0].contains("servicecidrs") && said()[0].contains(&code.to_string()), "{:?}", said());
    let asked = server.seen().iter().filter(|seen| seen.resource == Resource::ServiceCidrs).count();
    assert_eq!(asked, 1, "it is not asked again soon");
}

#[tokio::test]
async fn an_unreachable_server_is_named_once_for_each_kind() {
    let (log, _guard) = Log::record();
    let absent = Absent::reserve().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = absent.kubeconfig(folder.path()).unwrap();
    let mut picture = Picture::watch(&kubeconfig, WatchOptions { streaming_lists: false, ..hurried() }).await;
    for _ in 0..12 {
        assert!(matches!(picture.next().await, WatchEvent::Listing(_)));
    }
    let lines = log.lines("WARN");
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for line in lines {
        assert!(line.contains(&absent.url()) && line.contains("Connection refused"), "{line}");
    }
}

#[rstest::rstest]
#[case::in_json(Protobuf::Unknown, "invalid type")]
#[case::in_protobuf(Protobuf::Spoken, "failed to decode Protobuf message")]
#[tokio::test]
async fn a_defect_of_an_object_is_said_once_with_its_field_however_often_it_comes(
    #[case] protobuf: Protobuf,
    #[case] defect: &str,
) {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    server.behave(|behaviour| behaviour.protobuf = protobuf);
    let mut bad = slice("web", "10.244.0.1");
    bad["endpoints"][0]["addresses"][0] = "10.244.0.300".into();
    server.put(bad.clone());
    let mut broken = service("db", 11);
    broken["spec"]["ports"] = "eighty".into();
    server.put(broken);
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    server.put(bad.clone());
    server.expire_watches();
    picture.until_listed(2).await;
    let lines = log.lines("10.244.0.300");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("web-x") && lines[0].contains("endpoints[0].addresses[0]"), "{lines:?}");
    let lines = log.lines(defect);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let said = format!("Service shop/db: {defect}");
    assert!(lines[0].contains(&said) && lines[0].contains(r#"object="shop/db""#), "{lines:?}");
}

#[rstest::rstest]
#[case::turned_off(InitialEvents::Rejected(422), "sendInitialEvents is forbidden for watch")]
#[case::old_etcd(
    InitialEvents::Failed(500),
    "500 a watch stream was requested by the client but the required"
)]
#[case::ended(InitialEvents::Ended, "the stream ended before the end of the list was marked")]
#[tokio::test]
async fn a_server_that_cannot_stream_lists_is_said_once_for_each_kind_and_is_no_failure(
    #[case] ends: InitialEvents,
    #[case] reason: &str,
) {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    server.behave(|behaviour| behaviour.initial_events = ends);
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    let lines = log.lines("the streaming list failed; listing in pages");
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains(reason)), "{lines:#?}");
    assert_eq!(log.lines("WARN"), Vec::<String>::new());
    assert_eq!(log.lines("works again"), Vec::<String>::new());
    assert_eq!(picture.lists[&ObjectKind::Node], 1);
}

/// A list that begins and breaks off, again and again, does not work.
#[rstest::rstest]
#[case::streaming(true)]
#[case::in_pages(false)]
#[tokio::test]
async fn works_again_is_said_when_a_list_is_complete(#[case] streaming_lists: bool) {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    for number in 0..3 {
        server.put(service(&format!("web-{number}"), number));
    }
    let broken = Rule::always(Fault::Garbage(r#"{"items":[{"metadata":{"name":"web"#.into()));
    server.behave(|behaviour| {
        behaviour.initial_events = InitialEvents::Cut;
        behaviour.rules.push(broken.on(Resource::Services).verb(Verb::List).times(4));
    });
    let mut picture = server.watch_with(WatchOptions { streaming_lists, ..hurried() }).await;
    picture.until_listed(1).await;
    let log = log.lines("resource=\"services\"");
    let places = |text: &str| -> Vec<usize> {
        log.iter().enumerate().filter(|(_, line)| line.contains(text)).map(|(place, _)| place).collect()
    };
    let (listed, again) = (places(" listed "), places("works again"));
    assert_eq!((listed.len(), again.len()), (1, 1), "{log:#?}");
    assert!(listed[0].abs_diff(again[0]) == 1 && log.len() - 2 <= again[0].min(listed[0]), "{log:#?}");
}

#[tokio::test]
async fn a_watch_that_is_quiet_after_a_failure_works_again_all_the_same() {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    let options = WatchOptions { quiet_limit: Duration::from_millis(300), ..hurried() };
    let mut picture = server.watch_with(options).await;
    picture.until_listed(1).await;
    server.behave(|behaviour| behaviour.rules.push(Rule::always(Fault::Status(503)).times(6)));
    server.disconnect();
    let said = async {
        while log.lines("works again").len() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), said).await.expect("it must be said");
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[tokio::test]
async fn an_expired_version_is_no_failure() {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    server.expire_watches();
    picture.until_listed(2).await;
    assert_eq!(log.lines("the resource version has expired; listing again").len(), 3);
    assert_eq!(log.lines("WARN"), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_port_outside_the_range_is_used_with_a_warning() {
    let (log, _guard) = Log::record();
    let server = Stub::start();
    let mut outside = service("web", 9);
    outside["spec"]["ports"][0]["nodePort"] = 40000.into();
    server.put(outside);
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    let lines = log.lines("40000 is outside --service-node-port-range");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("spec.ports[0].nodePort") && lines[0].contains("used=true"), "{lines:?}");
}

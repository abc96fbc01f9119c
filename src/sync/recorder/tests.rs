//! What outsiders get to know of the loop, on paused time and an in-memory iptables.

use super::*;
use crate::backend::iptables::{Features, Iptables};
use crate::health::{Now, routes};
use crate::http::Request;
use crate::kernel::fake::iptables::FakeXtables;
use crate::metrics::MetricSet;
use crate::model::{NodeFacts, ObjectKind, SourceProblem, WatchEvent};
use crate::plan::FamilySettings;
use crate::state::{Reserved, Tracker};
use crate::sync::{FamilySync, Periods, Runner};
use crate::testing::generate::Generator;
use std::cell::RefCell;
use std::rc::Rc;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// The loop with all that tells of it.
struct Told {
    runner: Runner<MetricsRecorder>,
    events: mpsc::Sender<WatchEvent>,
    inbox: mpsc::Receiver<WatchEvent>,
    metrics: Arc<Metrics>,
    health: Arc<ProxyHealth>,
    notices: Rc<RefCell<Vec<Notice>>>,
}

fn now() -> Now {
    Now { steady: Instant::now().into_std(), wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) }
}

impl Told {
    /// A loop on these tools, with this many random events before the first pass.
    async fn new(tools: FakeXtables, events: usize) -> Told {
        Told::on(Tracker::default(), tools, events).await
    }

    async fn on(tracker: Tracker, tools: FakeXtables, events: usize) -> Told {
        let build = crate::model::Build { version: "0.1.0", ..Default::default() };
        let metrics = Arc::new(Metrics::new(MetricSet::Iptables, build, Box::new(|| None)).unwrap());
        let health = Arc::new(ProxyHealth::new(Duration::from_secs(30)));
        let notices = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&notices);
        let records = MetricsRecorder::new(metrics.clone(), health.clone(), Arc::new(now))
            .telling(Box::new(move |notice| sink.borrow_mut().push(notice)));
        let periods = Periods {
            sync: Duration::from_secs(30),
            min: Duration::from_secs(1),
            full: Duration::from_secs(3600),
        };
        let backend = Iptables::new(tools, IpFamily::V4, Features::default());
        let settings = FamilySettings::new(IpFamily::V4);
        let family = FamilySync::new(Box::new(backend), settings, Box::new(|_| Ok(Vec::new())));
        let runner = Runner::new(tracker, vec![family], periods, records);
        let (sender, inbox) = mpsc::channel(1024);
        let mut generator = Generator::new(11);
        for _ in 0..events {
            sender.send(generator.event()).await.unwrap();
        }
        sender.send(WatchEvent::Node(Arc::new(NodeFacts::default()))).await.unwrap();
        for kind in [ObjectKind::Service, ObjectKind::EndpointSlice] {
            sender.send(WatchEvent::Listed(kind)).await.unwrap();
        }
        Told { runner, events: sender, inbox, metrics, health, notices }
    }

    async fn run_for(&mut self, seconds: u64) {
        let run = timeout(Duration::from_secs(seconds), self.runner.run(&mut self.inbox));
        assert!(run.await.is_err(), "the loop goes on");
    }

    /// The status of a path of the health port, which everybody can reach: nothing of what is wrong may be in the body.
    fn get(&self, path: &str) -> u16 {
        let routes = routes(self.health.clone(), Arc::new(now), Box::new(|_, _| {}));
        let reply = routes(Request { method: "GET", path, query: "" });
        let body = String::from_utf8(reply.body).unwrap();
        for word in ["ns/svc", "KUBE-", "127.0.0.9", "lock", "refused"] {
            assert!(!body.contains(word), "{path} tells of {word}: {body}");
        }
        reply.status
    }

    /// All detail, as the metrics server and the control socket have it.
    fn detail(&self) -> (u16, serde_json::Value) {
        let reply = self.health.readiness(now()).reply();
        (reply.status, serde_json::from_slice(&reply.body).unwrap())
    }

    fn metrics(&self) -> String {
        String::from_utf8(self.metrics.encode().unwrap()).unwrap()
    }

    fn notices(&self, reason: &str) -> Vec<Notice> {
        self.notices.borrow().iter().filter(|notice| notice.reason == reason).cloned().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_service_is_named_on_the_service_on_the_node_in_the_metrics_and_in_the_status() {
    let mut tools = FakeXtables::default();
    tools.refused = vec!["ns/svc-0:".to_owned()];
    let mut told = Told::new(tools, 80).await;
    told.run_for(1).await;
    let name = ServiceName::new("ns", "svc-0");
    let notices = told.notices("FailedToProgramService");
    let about: Vec<_> = notices.iter().map(|notice| notice.service.clone()).collect();
    assert_eq!(about, [Some(name.clone()), None], "an Event on the Service, one on the Node");
    assert!(notices.iter().all(|notice| notice.note.contains("refused on request")));
    assert!(notices[1].note.contains("ns/svc-0"));
    assert!(told.metrics().contains("kubeproxy_rs_refused_services{ip_family=\"IPv4\"} 1\n"));
    let (status, body) = told.detail();
    assert_eq!(status, 200, "the others work: {body}");
    assert_eq!(body["families"]["IPv4"]["refused"][0]["service"], "ns/svc-0");
    assert_eq!(["/healthz", "/readyz", "/status"].map(|path| told.get(path)), [200; 3]);

    // It goes, and with it all talk of it.
    told.events.send(WatchEvent::ServiceGone(name)).await.unwrap();
    told.run_for(2).await;
    assert!(told.metrics().contains("kubeproxy_rs_refused_services{ip_family=\"IPv4\"} 0\n"));
    assert_eq!(told.detail().1["families"]["IPv4"]["refusedTotal"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_fails_makes_us_unhealthy_with_its_words_until_it_works_again() {
    let mut tools = FakeXtables::default();
    tools.failures = usize::MAX;
    let mut told = Told::new(tools, 20).await;
    told.run_for(50).await;
    assert_eq!(told.get("/healthz"), 200, "two periods have not passed");
    let (status, body) = told.detail();
    assert_eq!((status, &body["ready"]), (503, &false.into()));
    assert!(body["families"]["IPv4"]["oldestPendingSeconds"].as_f64().unwrap() >= 49.0, "{body}");
    told.run_for(15).await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(told.get(path), 503, "{path}");
    }
    let (status, body) = told.detail();
    let reason = body["reasons"][0].as_str().unwrap();
    assert!(
        status == 503 && reason.starts_with("IPv4: ") && reason.contains("the lock is taken"),
        "{reason}"
    );
    told.runner.tools().failures = 0;
    told.run_for(35).await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(told.get(path), 200, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_changed_is_named_on_the_node_in_the_metrics_and_in_the_status() {
    let mut told = Told::new(FakeXtables::default(), 40).await;
    told.run_for(40).await;
    assert!(!told.metrics().contains("kubeproxy_rs_drift_total"));
    told.runner.tools().meddle("nat", |nat| {
        let rule = &mut nat.get_mut("KUBE-POSTROUTING").unwrap()[0];
        *rule = format!("-s 192.0.2.1 {rule}");
    });
    told.run_for(32).await;
    let what = "chain KUBE-POSTROUTING of table nat was changed by meddler";
    assert!(told.metrics().contains("kubeproxy_rs_drift_total{ip_family=\"IPv4\",object=\"chain\"} 1\n"));
    assert_eq!(told.detail().1["families"]["IPv4"]["lastDrift"], what);
    assert_eq!(["/healthz", "/readyz", "/status"].map(|path| told.get(path)), [200; 3]);
    let notices = told.notices("RulesChangedByOthers");
    assert!(
        matches!(&notices[..], [Notice { service: None, note, .. }] if note.contains(what)),
        "{notices:?}"
    );
    let healed = told.runner.tools().rules("nat", "KUBE-POSTROUTING")[0].clone();
    assert!(!healed.contains("192.0.2.1"), "{healed}");
}

#[tokio::test(start_paused = true)]
async fn another_program_that_changes_rules_back_is_told_once_and_makes_us_not_ready_until_it_is_gone() {
    let mut told = Told::new(FakeXtables::default(), 40).await;
    told.run_for(10).await;
    let meddle = |told: &mut Told| {
        told.runner.tools().meddle("nat", |nat| {
            let rule = &mut nat.get_mut("KUBE-POSTROUTING").unwrap()[0];
            *rule = format!("-s 192.0.2.1 {rule}");
        });
    };
    for time in 1..=10 {
        meddle(&mut told);
        told.run_for(4).await;
        let (status, body) = told.detail();
        assert_eq!(
            (status, body["ready"] == true),
            if time < 3 { (200, true) } else { (503, false) },
            "{body}"
        );
        assert_eq!((told.get("/healthz"), told.get("/livez")), (200, 200), "traffic goes on");
        assert_eq!(body["families"]["IPv4"]["driftTotal"], time, "each is mended and counted");
    }
    let reason = told.detail().1["reasons"][0].as_str().unwrap().to_owned();
    assert!(reason.starts_with("IPv4: another program (meddler) changes our rules again"), "{reason}");
    assert_eq!((told.notices("RulesContended").len(), told.notices("RulesChangedByOthers").len()), (1, 3));
    told.run_for(62).await;
    assert_eq!(told.get("/readyz"), 200, "it is gone: {}", told.detail().1);
    meddle(&mut told);
    told.run_for(4).await;
    assert_eq!(told.notices("RulesChangedByOthers").len(), 4, "the next act is an act of its own");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_before_the_kernel_is_asked_is_named_in_the_metrics_and_in_the_status() {
    let mut told = Told::new(FakeXtables::default(), 0).await;
    let WatchEvent::Slice(mut slice) = crate::testing::cluster::slice(0, 2) else { unreachable!() };
    slice.refused = 3;
    let WatchEvent::Service(mut service) = crate::testing::cluster::service(0) else { unreachable!() };
    let external_ips = [[127, 0, 0, 9].into()].into();
    service.external = Some(Box::new(crate::model::External { external_ips, ..Default::default() }));
    let name = service.name.clone();
    told.events.send(WatchEvent::Service(service)).await.unwrap();
    told.events.send(WatchEvent::Slice(slice)).await.unwrap();
    told.run_for(2).await;
    assert!(told.metrics().contains("kubeproxy_rs_refused_endpoints 3\n"));
    assert!(told.metrics().contains("kubeproxy_rs_contested_external_ips{outcome=\"reported\"} 1\n"));
    assert_eq!(["/healthz", "/readyz", "/status"].map(|path| told.get(path)), [200; 3]);
    let (status, body) = told.detail();
    assert_eq!(
        (status, &body["refusedEndpoints"], &body["reportedExternalIps"]),
        (200, &3.into(), &1.into())
    );
    let reasons: Vec<_> = (0..2).map(|index| body["doubtful"][index]["reason"].as_str().unwrap()).collect();
    assert!(reasons[0].contains("3 loopback") && reasons[1].contains("127.0.0.9"), "{reasons:?}");

    told.events.send(WatchEvent::ServiceGone(name)).await.unwrap();
    told.run_for(2).await;
    assert!(told.metrics().contains("kubeproxy_rs_contested_external_ips{outcome=\"reported\"} 0\n"));
}

/// A Service that load balancers ask for on port 31000 of the node.
fn health_checked(number: u16) -> WatchEvent {
    let WatchEvent::Service(mut service) = crate::testing::cluster::service(number.into()) else {
        unreachable!()
    };
    service.external =
        Some(Box::new(crate::model::External { health_check_node_port: 31000, ..Default::default() }));
    WatchEvent::Service(service)
}

#[tokio::test(start_paused = true)]
async fn a_contested_health_check_node_port_is_told_like_any_other_contested_port() {
    let mut told = Told::new(FakeXtables::default(), 0).await;
    let [WatchEvent::Service(first), WatchEvent::Service(second)] = [0, 1].map(health_checked) else {
        unreachable!()
    };
    let [owner, loser] = [first.name.clone(), second.name.clone()];
    for service in [first, second] {
        told.events.send(WatchEvent::Service(service)).await.unwrap();
    }
    told.run_for(2).await;
    let complaint =
        format!("spec.healthCheckNodePort: 31000/tcp belongs to Service {owner} (spec.healthCheckNodePort)");
    let notices = told.notices("NodePortConflict");
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(notices[0].service, Some(loser.clone()));
    assert!(notices[0].note.contains(&complaint), "{}", notices[0].note);
    assert!(told.metrics().contains("kubeproxy_rs_contested_node_ports 1\n"));
    let (status, body) = told.detail();
    assert_eq!((status, &body["contestedNodePorts"]), (200, &1.into()), "{body}");
    assert_eq!(body["doubtful"][0]["service"], loser.to_string());
    assert!(body["doubtful"][0]["reason"].as_str().unwrap().contains(&complaint), "{body}");

    told.events.send(WatchEvent::ServiceGone(owner)).await.unwrap();
    told.run_for(2).await;
    assert!(told.metrics().contains("kubeproxy_rs_contested_node_ports 0\n"));
}

#[tokio::test(start_paused = true)]
async fn what_the_source_cannot_tell_is_named_in_the_status() {
    let mut told = Told::new(FakeXtables::default(), 10).await;
    told.run_for(1).await;
    let problem = |hides_objects| {
        let (source, reason) = ("shop.yaml".to_owned(), "document 1: no".to_owned());
        SourceProblem { source, reason, hides_objects, stands: true }
    };
    for (problems, status, text) in [
        (
            vec![problem(true)],
            503,
            "shop.yaml: cannot be read: document 1: no; what it said last stays in force",
        ),
        (vec![problem(false)], 200, "shop.yaml: document 1: no; what it said last stays in force"),
    ] {
        told.events.send(WatchEvent::Problems(problems.into())).await.unwrap();
        told.run_for(1).await;
        let (code, body) = told.detail();
        assert_eq!((code, &body["sourceProblems"][0]), (status, &text.into()));
        assert_eq!(body["reasons"].as_array().unwrap().len(), usize::from(status == 503));
        assert_eq!(told.get("/healthz"), 200, "the node serves what stands");
    }
    told.events.send(WatchEvent::Problems([].into())).await.unwrap();
    told.run_for(1).await;
    assert_eq!(told.detail().1["sourceProblems"], serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_service_with_a_thousand_claims_is_one_event_that_names_the_first() {
    let strict = Tracker::default().reserving(Reserved { strict: true, ..Reserved::default() });
    let mut told = Told::on(strict, FakeXtables::default(), 0).await;
    let WatchEvent::Service(mut service) = crate::testing::cluster::service(0) else { unreachable!() };
    let external_ips =
        (1..=1000_u16).map(|last| [127, 1, last.to_be_bytes()[0], last.to_be_bytes()[1]].into());
    service.external =
        Some(Box::new(crate::model::External { external_ips: external_ips.collect(), ..Default::default() }));
    let name = service.name.clone();
    told.events.send(WatchEvent::Service(service)).await.unwrap();
    told.run_for(2).await;
    let notices = told.notices("ExternalIPRefused");
    let [notice] = &notices[..] else { panic!("{} notices", notices.len()) };
    assert_eq!(notice.service, Some(name));
    assert!(
        notice.note.contains("127.1.0.3 is a loopback address") && notice.note.ends_with("and 997 more"),
        "{}",
        notice.note
    );
}

//! The same events in, the same counts out: what kube-proxy v1.36.2 counted of a row of changes on a real
//! API server, and what we count of them.
//!
//! `counts.jsonl` has a step a line: the objects as the API server had them, and the values that changed in
//! a scrape of the real kube-proxy (mode iptables, both families) once it had settled. `T7` and `before`
//! stand for times of a trigger. Not compared are `…_iptables_last`, because kube-proxy rewrites shared
//! chains at each sync, the clean-ups of stale flows, of which we do more, and what a scrape cannot tell
//! beforehand: times, durations, answers of health checks, packets.

#![allow(clippy::disallowed_methods, reason = "a test may look at the clock")]

use crate::picture::hurried;
use crate::server::Server;
use kube_proxy_rs::backend::iptables::{Features, Iptables};
use kube_proxy_rs::health::{Now, ProxyHealth};
use kube_proxy_rs::kernel::fake::iptables::FakeXtables;
use kube_proxy_rs::metrics::{MetricSet, Metrics};
use kube_proxy_rs::model::{Cidr, IpFamily, NodeFacts};
use kube_proxy_rs::plan::{FamilySettings, LocalDetector};
use kube_proxy_rs::state::Tracker;
use kube_proxy_rs::sync::{FamilySync, MetricsRecorder, Periods, Runner, since_1970};
use kube_proxy_rs::testing::stub_api::Resource;
use kube_proxy_rs::watch::api;
use kube_proxy_rs::watch::client::{ClientOptions, Connection};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

const NODE: &str = "node-0";
const TRIGGER: &str = "/metadata/annotations/endpoints.kubernetes.io~1last-change-trigger-time";
/// Far more than a step takes.
const LIMIT: Duration = Duration::from_secs(20);
/// Nothing more comes after this time without news.
const QUIET: Duration = Duration::from_millis(300);

/// A step's objects, with real times of triggers.
fn objects(step: &Value, started: SystemTime) -> Vec<Value> {
    let mut objects = step["objects"].as_array().unwrap().clone();
    for object in &mut objects {
        let Some(time) = object.pointer_mut(&format!("/put{TRIGGER}")) else { continue };
        let number = time.as_str().unwrap().strip_prefix('T').map(|number| number.parse().unwrap());
        let at = number.map_or(started - Duration::from_secs(60), |ms| started + Duration::from_millis(ms));
        *time = kube_proxy_rs::model::UtcTime::of(at).to_string().into();
    }
    objects
}

async fn change(server: &Server, step: &Value, started: SystemTime) {
    for mut object in objects(step, started) {
        match object["delete"].as_array() {
            None => server.put(object["put"].take()).await,
            Some(named) => {
                let resource = match named[0].as_str().unwrap() {
                    "Service" => Resource::Services,
                    _ => Resource::EndpointSlices,
                };
                server.delete(resource, named[1].as_str().unwrap()).await;
            }
        }
    }
}

/// What a scrape has of these metrics.
fn scraped(metrics: &Metrics, wanted: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("kubeproxy_")?.rsplit_once(' '));
    let found: BTreeMap<&str, i64> =
        lines.filter_map(|(name, value)| Some((name, value.parse::<f64>().ok()? as i64))).collect();
    // A metric with labels is not there before its first use.
    wanted.keys().map(|name| (name.clone(), found.get(name.as_str()).copied().unwrap_or_default())).collect()
}

/// Waits for a step to be counted as kube-proxy counted it.
async fn until_counted(metrics: &Metrics, step: &str, wanted: &BTreeMap<String, i64>) {
    let end = Instant::now() + LIMIT;
    loop {
        let found = scraped(metrics, wanted);
        if found == *wanted {
            return;
        }
        let differs = |(name, count): (&String, &i64)| {
            (wanted[name] != *count).then(|| format!("{name}: {count}, kube-proxy has {}", wanted[name]))
        };
        let differences: Vec<String> = found.iter().filter_map(differs).collect();
        assert!(Instant::now() < end, "step \"{step}\":\n{}", differences.join("\n"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn clock() -> Now {
    Now { steady: Instant::now(), wall: SystemTime::now() }
}

/// The loop over both families, as the program sets it up, on tables in memory.
fn runner(metrics: &Arc<Metrics>, started: SystemTime) -> Runner<MetricsRecorder> {
    let family = |family, pods: &str| {
        let pods: Cidr = pods.parse().unwrap();
        let settings =
            FamilySettings { detector: Some(LocalDetector::Cidr(pods)), ..FamilySettings::new(family) };
        let backend = Iptables::new(FakeXtables::default(), family, Features::default());
        FamilySync::new(Box::new(backend), settings, Box::new(|_| Ok(Vec::new())))
    };
    let families = vec![family(IpFamily::V4, "10.128.0.0/16"), family(IpFamily::V6, "fd00:128::/32")];
    // The program asks for its Node before it starts the loop: an event that brings nothing new makes no pass.
    let node = NodeFacts {
        name: NODE.into(),
        is_known: true,
        zone: Some("z0".into()),
        addresses: ["10.201.0.11", "fd00:201::11"].map(|address| address.parse().unwrap()).into(),
        pod_cidrs: ["10.128.0.0/24", "fd00:128::/64"].map(|cidr| cidr.parse().unwrap()).into(),
        ..NodeFacts::default()
    };
    let tracker = Tracker::new(node, i64::try_from(since_1970(started).as_millis()).unwrap());
    let health = Arc::new(ProxyHealth::new(Duration::from_secs(30)));
    let records = MetricsRecorder::new(metrics.clone(), health, Arc::new(clock));
    let periods = Periods {
        sync: Duration::from_secs(30),
        min: Duration::from_millis(10),
        full: Duration::from_secs(3600),
    };
    Runner::new(tracker, families, periods, records)
}

#[tokio::test]
async fn every_counter_counts_what_kube_proxy_counts() {
    let steps: Vec<Value> =
        include_str!("counts.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let build = kube_proxy_rs::model::Build { version: "0.1.0", ..Default::default() };
    let metrics = Arc::new(Metrics::new(MetricSet::Iptables, build, Box::new(|| None)).unwrap());
    let (server, started) = (Server::stub(), SystemTime::now());
    change(&server, &steps[0], started).await;

    let options = ClientOptions { kubeconfig: Some(server.kubeconfig()), master: None };
    let connection = Connection::open(&options).await.unwrap();
    let (sender, mut events) = mpsc::channel(64);
    let watching = tokio::spawn(async move { api::run(connection, NODE, sender, hurried()).await });
    let mut runner = runner(&metrics, started);
    let script = async {
        let mut wanted = BTreeMap::new();
        for (index, step) in steps.iter().enumerate() {
            if index > 0 {
                change(&server, step, started).await;
            }
            let changed = step["then"].as_object().unwrap().iter();
            wanted.extend(changed.map(|(name, count)| (name.clone(), count.as_i64().unwrap())));
            until_counted(&metrics, step["step"].as_str().unwrap(), &wanted).await;
        }
        tokio::time::sleep(QUIET).await;
        until_counted(&metrics, "nothing more", &wanted).await;
    };
    tokio::select! {
        _ = runner.run(&mut events) => panic!("the loop has ended"),
        () = script => {}
    }
    watching.abort();
}

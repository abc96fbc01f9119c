//! Health of the proxy itself: `/healthz` and `/livez` as kube-proxy answers them, and `/readyz`.

use super::api::Api;
use super::readiness::{Doubtful, FamilyReadiness, MOST_NAMED, Readiness, RefusedObject};
use crate::http::{Reply, Request, Routes};
use crate::model::{
    ApiConnection, IpFamily, NodeFacts, ObjectKind, PerFamily, SourceProblem, UtcTime, WatchNews, culprit,
    excerpt,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// One moment on both clocks: the steady one for timeouts, the other one for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Never jumps.
    pub steady: Instant,
    /// What a watch shows.
    pub wall: SystemTime,
}

/// Tells the time to the server.
pub type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// The two questions that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: should load balancers send traffic here?
    Healthz,
    /// `/livez`: does the proxy work?
    Livez,
}

/// Told the status code of every answer.
pub type CountReply = Box<dyn Fn(Probe, u16) + Send + Sync>;

/// Knows per IP family what waits to be written and what was last written.
#[derive(Debug)]
pub struct ProxyHealth {
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    families: PerFamily<Family>,
    doubtful: Doubtful,
    problems: Vec<SourceProblem>,
    node: NodeState,
    /// The API server, where the objects come from one.
    api: Option<Api>,
}

/// What our Node object means to load balancers (kube-proxy's rules).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum NodeState {
    #[default]
    Missing,
    Deleting,
    /// The cluster autoscaler is about to delete it.
    ToBeDeleted,
    Eligible,
}

impl NodeState {
    fn of(node: Option<&NodeFacts>) -> Self {
        match node {
            None => NodeState::Missing,
            Some(node) if node.deleting => NodeState::Deleting,
            Some(node) if node.to_be_deleted => NodeState::ToBeDeleted,
            Some(_) => NodeState::Eligible,
        }
    }

    fn is_eligible(self) -> bool {
        self == NodeState::Eligible
    }

    /// Why `/healthz` answers 503.
    fn complaint(self) -> Option<String> {
        let why = match self {
            NodeState::Missing => {
                "there is no Node object of this node's name (--hostname-override gives it)"
            }
            NodeState::Deleting => "this node's Node object is being deleted",
            NodeState::ToBeDeleted => "this node's Node object has the taint ToBeDeletedByClusterAutoscaler",
            NodeState::Eligible => return None,
        };
        Some(format!("load balancers are sent to other nodes (/healthz answers 503): {why}"))
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Family {
    pub(super) oldest_queued: Option<Instant>,
    pub(super) last_updated: Option<SystemTime>,
    /// Why the last sync failed, if it did.
    pub(super) failure: Option<String>,
    pub(super) refused: Vec<RefusedObject>,
    pub(super) drift_total: u64,
    pub(super) last_drift: Option<(SystemTime, String)>,
    pub(super) drift: DriftHistory,
    /// The program that keeps changing our rules, in a sentence, if one does.
    contended: Option<String>,
}

/// How often other programs have changed our rules.
#[derive(Clone, Debug, Default)]
pub(super) struct DriftHistory {
    /// Times that drift was found and repaired.
    pub(super) times: u64,
    /// The first time.
    pub(super) since: Option<SystemTime>,
    /// The last time.
    last: Option<Instant>,
    /// The program that was the last one known.
    pub(super) by: Option<String>,
}

/// Drift that was found this many times is no accident.
const REPEATED: u64 = 3;
/// Repeated drift is of concern for so long after the last time.
const CONCERN: Duration = Duration::from_secs(3600);

impl DriftHistory {
    fn add(&mut self, by: Option<&str>, now: Now) {
        self.times = self.times.saturating_add(1);
        self.since.get_or_insert(now.wall);
        self.last = Some(now.steady);
        self.by = by.map(str::to_owned).or(self.by.take());
    }

    fn is_recent(&self, now: Now) -> bool {
        self.last.is_some_and(|last| now.steady.saturating_duration_since(last) < CONCERN)
    }
}

impl Family {
    /// That other programs have changed our rules again and again: how often, since when, what, and who.
    pub(super) fn repeated_drift(&self) -> Option<String> {
        let DriftHistory { times, since, by, .. } = &self.drift;
        let (since, (last, what)) = ((*since)?, self.last_drift.as_ref()?);
        let time = |time| UtcTime { nanosecond: 0, ..UtcTime::of(time) };
        (*times >= REPEATED).then(|| {
            format!(
                "other programs have changed our rules {times} times since {}, the last time at {}: {what}; each time they \
                 were written again, and until then traffic could go astray; {}",
                time(since),
                time(*last),
                culprit(by.as_deref())
            )
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl ProxyHealth {
    /// Starts healthy. A change that is not written within two sync periods makes it unhealthy.
    #[must_use]
    pub fn new(sync_period: Duration) -> Self {
        ProxyHealth { timeout: sync_period.saturating_mul(2), state: Mutex::default() }
    }

    /// A sync of this family was asked for.
    pub fn queued(&self, family: IpFamily, now: Now) {
        self.state().families.get_mut(family).oldest_queued.get_or_insert(now.steady);
    }

    /// A sync of this family succeeded.
    pub fn updated(&self, family: IpFamily, now: Now) {
        let mut state = self.state();
        let family = state.families.get_mut(family);
        (family.oldest_queued, family.last_updated, family.failure) = (None, Some(now.wall), None);
    }

    /// A sync of this family failed; what made it run waits since now, if not longer.
    pub fn failed(&self, family: IpFamily, reason: String, now: Now) {
        let mut state = self.state();
        let family = state.families.get_mut(family);
        family.oldest_queued.get_or_insert(now.steady);
        family.failure = Some(excerpt(&reason));
    }

    /// The Services of this family that the kernel refuses now.
    pub fn refused(&self, family: IpFamily, refused: Vec<RefusedObject>) {
        self.state().families.get_mut(family).refused = refused;
    }

    /// The parts of Services that are left out or doubtful now.
    pub fn doubted(&self, doubtful: Doubtful) {
        self.state().doubtful = doubtful;
    }

    /// What the source of objects cannot tell now.
    pub fn source(&self, problems: &[SourceProblem]) {
        self.state().problems = problems.to_vec();
    }

    /// `count` kernel objects of this family were not as we left them; `by` is the program that changed them, if it is known, and
    /// `last` names one of them.
    pub fn drifted(&self, family: IpFamily, (count, by): (u64, Option<&str>), last: String, now: Now) {
        let mut state = self.state();
        let family = state.families.get_mut(family);
        family.drift.add(by, now);
        family.drift_total = family.drift_total.saturating_add(count);
        family.last_drift = Some((now.wall, last));
    }

    /// Another program keeps changing the rules of this family, or has stopped to.
    pub fn contended(&self, family: IpFamily, why: Option<String>) {
        self.state().families.get_mut(family).contended = why;
    }

    /// The objects come from this API server.
    pub fn watching(&self, server: &str, now: Now) {
        self.state().api.get_or_insert_with(|| Api::new(now)).is_at(server);
    }

    /// What a watch of the API server says of itself.
    pub fn watch(&self, kind: ObjectKind, news: WatchNews<'_>, now: Now) {
        if let Some(api) = &mut self.state().api {
            api.tell(kind, news, now);
        }
    }

    /// The connection to the API server, where the objects come from one.
    #[must_use]
    pub fn api(&self, now: Now) -> Option<ApiConnection> {
        self.state().api.as_ref().map(|api| api.view(now))
    }

    /// All that is known.
    #[must_use]
    pub fn readiness(&self, now: Now) -> Readiness {
        let state = self.state();
        let api = state.api.as_ref().map(|api| api.view(now));
        let reasons = state.unready(api.as_ref(), self.timeout, now);
        let concerns = state.concerns(api.as_ref(), self.timeout, now);
        let families = state.known().map(|(family, it)| (family.as_str(), FamilyReadiness::of(it, now)));
        Readiness {
            healthy: reasons.is_empty() && concerns.is_empty(),
            ready: reasons.is_empty(),
            reasons,
            concerns,
            current_time: UtcTime::of(now.wall).to_string(),
            api,
            doubtful: state.doubtful.clone(),
            source_problems: state.problems.iter().take(MOST_NAMED).map(ToString::to_string).collect(),
            families: families.collect(),
        }
    }

    /// Our Node appeared or changed, or is not there.
    ///
    /// While it is not known, is being deleted or is about to be taken away by the cluster
    /// autoscaler, load balancers are told to go elsewhere.
    pub fn set_node(&self, node: Option<&NodeFacts>) {
        self.state().node = NodeState::of(node);
    }

    /// No family has had a change waiting for too long.
    #[must_use]
    pub fn is_healthy(&self, now: Now) -> bool {
        let state = self.state();
        IpFamily::ALL.into_iter().all(|family| state.families.get(family).is_healthy(self.timeout, now))
    }

    /// Answers one of the two questions.
    #[must_use]
    pub fn answer(&self, probe: Probe, now: Now) -> Reply {
        let state = self.state();
        let status: BTreeMap<_, _> = IpFamily::ALL
            .into_iter()
            .filter_map(|family| {
                let body = state.families.get(family).body(self.timeout, now)?;
                Some((family.as_str(), body))
            })
            .collect();
        let healthy = status.values().all(|family| family.healthy);
        let node_eligible = (probe == Probe::Healthz).then_some(state.node.is_eligible());
        let fine = healthy && node_eligible != Some(false);
        // "Last updated" is what outsiders judge staleness by, so a healthy idle proxy says now.
        let newest =
            IpFamily::ALL.into_iter().filter_map(|family| state.families.get(family).last_updated).max();
        let last_updated = if fine { Some(now.wall) } else { newest };
        let body = Body {
            last_updated: last_updated.map_or(UtcTime::NEVER, UtcTime::of).to_string(),
            current_time: UtcTime::of(now.wall).to_string(),
            node_eligible,
            healthy,
            status,
        };
        let code = if fine { 200 } else { 503 };
        match serde_json::to_vec(&body) {
            Ok(body) => Reply::json(code, body),
            Err(error) => Reply::text(500, error.to_string()),
        }
    }

    /// The state is plain data that no panic can leave half written.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The families that this node serves.
    fn known(&self) -> impl Iterator<Item = (IpFamily, &Family)> {
        let families = IpFamily::ALL.into_iter().map(|family| (family, self.families.get(family)));
        families.filter(|(_, it)| it.is_known())
    }

    /// Why the proxy is not ready, in sentences: what is known is not complete, or not in the kernel.
    fn unready(&self, api: Option<&ApiConnection>, timeout: Duration, now: Now) -> Vec<String> {
        let unhealthy = self.known().filter(|(_, it)| !it.is_healthy(timeout, now));
        let mut reasons: Vec<String> =
            unhealthy.map(|(family, it)| format!("{family}: {}", it.complaint(now))).collect();
        let unsynced = self.known().filter(|(_, it)| it.last_updated.is_none());
        reasons.extend(unsynced.map(|(family, _)| format!("{family}: the first sync is not done")));
        let contended = self.known().filter_map(|(family, it)| Some((family, it.contended.as_ref()?)));
        reasons.extend(contended.map(|(family, why)| format!("{family}: {why}")));
        if self.known().next().is_none() {
            let waits = api.filter(|api| !api.listed).and_then(ApiConnection::complaint);
            let listing = || "the first list of Services and EndpointSlices is not complete".to_owned();
            reasons.push(waits.unwrap_or_else(listing));
        }
        let hiding = self.problems.iter().filter(|problem| problem.hides_objects);
        reasons.extend(hiding.take(MOST_NAMED).map(ToString::to_string));
        reasons
    }

    /// What else is not as it should be, in sentences. None of it takes a node out of service.
    fn concerns(&self, api: Option<&ApiConnection>, timeout: Duration, now: Now) -> Vec<String> {
        let is_known = self.known().next().is_some();
        let lost = api.filter(|api| is_known || api.listed).and_then(ApiConnection::complaint);
        let mut concerns: Vec<String> = lost.into_iter().collect();
        // Before the first list, nothing is known of the Node.
        concerns.extend(self.node.complaint().filter(|_| api.is_none_or(|api| api.listed)));
        for (family, it) in self.known() {
            let failure = it.failure.as_ref().filter(|_| it.is_healthy(timeout, now));
            concerns.extend(failure.map(|why| format!("{family}: the last sync failed: {why}")));
            concerns.extend(it.refusals().map(|what| format!("{family}: {what}")));
            let repeated = it.repeated_drift().filter(|_| it.contended.is_none() && it.drift.is_recent(now));
            concerns.extend(repeated.map(|what| format!("{family}: {what}")));
        }
        let partial = self.problems.iter().filter(|problem| !problem.hides_objects);
        concerns.extend(partial.take(MOST_NAMED).map(ToString::to_string));
        concerns
    }
}

impl Family {
    /// A family that never tried to sync is not judged: it may not exist on this node
    /// (kube-proxy). Nor is one whose first sync still runs, which takes long in large clusters.
    fn is_healthy(&self, timeout: Duration, now: Now) -> bool {
        let is_judged = self.last_updated.is_some() || self.failure.is_some();
        let waited = |since| now.steady.saturating_duration_since(since);
        !is_judged || self.oldest_queued.is_none_or(|since| waited(since) < timeout)
    }

    /// This node serves it.
    fn is_known(&self) -> bool {
        self.oldest_queued.is_some() || self.last_updated.is_some()
    }

    /// How many Services the kernel refuses, if there are any.
    fn refusals(&self) -> Option<String> {
        let first = self.refused.first()?;
        Some(match self.refused.len() {
            1 => format!("the kernel refuses the rules of Service {}", first.service),
            count => format!("the kernel refuses the rules of {count} Services, {} first", first.service),
        })
    }

    fn complaint(&self, now: Now) -> String {
        let since = self.oldest_queued.unwrap_or(now.steady);
        let waits = now.steady.saturating_duration_since(since).as_secs();
        match &self.failure {
            Some(failure) => {
                format!("changes have waited for {waits} s, and the last sync failed: {failure}")
            }
            None => format!("changes have waited for {waits} s, and no sync has ended since"),
        }
    }

    /// One that never synced is only shown when it is known to fail.
    fn body(&self, timeout: Duration, now: Now) -> Option<FamilyBody> {
        let healthy = self.is_healthy(timeout, now);
        if self.last_updated.is_none() && healthy {
            return None;
        }
        Some(FamilyBody {
            last_updated: self.last_updated.map_or(UtcTime::NEVER, UtcTime::of).to_string(),
            healthy,
        })
    }
}

/// The routes of the health server, which every neighbour of the node can reach: beyond what kube-proxy answers, health
/// in a word. Why it is so has names and addresses in it, and stands on the metrics server.
#[must_use]
pub fn routes(health: Arc<ProxyHealth>, clock: Clock, count: CountReply) -> Routes {
    Arc::new(move |request: Request<'_>| {
        let probe = match request.path {
            "/healthz" => Probe::Healthz,
            "/livez" => Probe::Livez,
            "/readyz" => return health.readiness(clock()).ready_in_a_word(),
            "/status" => return health.readiness(clock()).state_in_a_word(),
            _ => return Reply::not_found(),
        };
        let reply = health.answer(probe, clock());
        count(probe, reply.status);
        reply
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const PERIOD: Duration = Duration::from_secs(30);

    /// Hands out moments by seconds since the start.
    struct Times(Instant);

    impl Times {
        fn at(&self, seconds: u64) -> Now {
            let passed = Duration::from_secs(seconds);
            Now { steady: self.0 + passed, wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) + passed }
        }
    }

    fn start() -> (ProxyHealth, Times) {
        let health = ProxyHealth::new(PERIOD);
        health.set_node(Some(&NodeFacts::default()));
        (health, Times(Instant::now()))
    }

    fn body(reply: &Reply) -> &str {
        std::str::from_utf8(&reply.body).unwrap()
    }

    #[test]
    fn healthy_while_starting_and_when_idle_for_hours() {
        let (health, times) = start();
        health.queued(IpFamily::V4, times.at(0));
        assert!(health.is_healthy(times.at(3600)), "no sync yet: not judged");
        health.updated(IpFamily::V4, times.at(3600));
        assert!(health.is_healthy(times.at(36_000)));
    }

    #[test]
    fn unhealthy_when_a_change_waits_for_two_periods_and_healthy_with_the_next_success() {
        let (health, times) = start();
        health.updated(IpFamily::V4, times.at(0));
        health.queued(IpFamily::V4, times.at(10));
        health.queued(IpFamily::V4, times.at(50));
        assert!(health.is_healthy(times.at(69)));
        assert!(!health.is_healthy(times.at(70)), "the oldest request counts");
        health.updated(IpFamily::V4, times.at(71));
        assert!(health.is_healthy(times.at(500)));
    }

    #[test]
    fn one_stuck_family_is_enough() {
        let (health, times) = start();
        health.updated(IpFamily::V4, times.at(0));
        health.updated(IpFamily::V6, times.at(0));
        health.queued(IpFamily::V6, times.at(0));
        health.queued(IpFamily::V4, times.at(0));
        health.updated(IpFamily::V4, times.at(100));
        let reply = health.answer(Probe::Livez, times.at(100));
        assert_eq!(reply.status, 503);
        assert_eq!(
            body(&reply),
            "{\"lastUpdated\":\"2023-11-14T22:15:00Z\",\"currentTime\":\"2023-11-14T22:15:00Z\",\"healthy\":false,\
             \"status\":{\"IPv4\":{\"lastUpdated\":\"2023-11-14T22:15:00Z\",\"healthy\":true},\
             \"IPv6\":{\"lastUpdated\":\"2023-11-14T22:13:20Z\",\"healthy\":false}}}"
        );
        let reasons = health.readiness(times.at(100)).reasons;
        assert_eq!(reasons, ["IPv6: changes have waited for 100 s, and no sync has ended since"]);
    }

    #[test]
    fn a_family_that_fails_from_the_start_is_unhealthy_and_says_why() {
        let (health, times) = start();
        health.updated(IpFamily::V4, times.at(0));
        health.queued(IpFamily::V6, times.at(0));
        health.failed(IpFamily::V6, "no memory".to_owned(), times.at(1));
        assert!(health.is_healthy(times.at(59)));
        let reply = health.answer(Probe::Healthz, times.at(60));
        assert_eq!(reply.status, 503);
        assert!(!body(&reply).contains("no memory"), "every neighbour can read it");
        let reasons = health.readiness(times.at(60)).reasons;
        let reason = "IPv6: changes have waited for 60 s, and the last sync failed: no memory";
        assert!(reasons.contains(&reason.to_owned()), "{reasons:?}");
        assert!(
            body(&reply).contains("\"IPv6\":{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"healthy\":false}")
        );
        health.updated(IpFamily::V6, times.at(61));
        assert_eq!(health.answer(Probe::Healthz, times.at(61)).status, 200);
    }

    #[test]
    fn a_sync_that_nobody_asked_for_and_that_fails_is_not_overlooked() {
        let (health, times) = start();
        health.updated(IpFamily::V4, times.at(0));
        health.failed(IpFamily::V4, "the lock is taken".to_owned(), times.at(3600));
        assert!(health.is_healthy(times.at(3659)));
        assert!(!health.is_healthy(times.at(3660)));
    }

    #[test]
    fn readiness_begins_with_the_first_sync_and_tells_all_there_is() {
        let (health, times) = start();
        let nothing = health.readiness(times.at(0));
        assert_eq!(nothing.reasons, ["the first list of Services and EndpointSlices is not complete"]);
        health.queued(IpFamily::V4, times.at(0));
        let first = health.readiness(times.at(4));
        assert_eq!(first.reasons, ["IPv4: the first sync is not done"]);
        assert_eq!(first.families["IPv4"].oldest_pending_seconds, Some(4.0));
        assert_eq!(first.reply().status, 503);

        health.updated(IpFamily::V4, times.at(5));
        let refused = RefusedObject { service: "shop/web".to_owned(), reason: "no memory".to_owned() };
        health.refused(IpFamily::V4, vec![refused.clone()]);
        health.drifted(
            IpFamily::V4,
            (3, None),
            "chain KUBE-SERVICES of table nat is gone".to_owned(),
            times.at(6),
        );
        let then = health.readiness(times.at(7));
        assert!(then.ready && !then.healthy, "{:?}", then.reasons);
        assert_eq!(then.concerns, ["IPv4: the kernel refuses the rules of Service shop/web"]);
        assert_eq!(then.reply().status, 200);
        let family = &then.families["IPv4"];
        assert!(family.synced && family.oldest_pending_seconds.is_none());
        assert_eq!((family.refused_total, &family.refused[..]), (1, &[refused][..]));
        assert_eq!(family.drift_total, 3);
        assert_eq!(family.last_drift.as_deref(), Some("chain KUBE-SERVICES of table nat is gone"));
        assert_eq!(family.last_drift_time.as_deref(), Some("2023-11-14T22:13:26Z"));
        assert_eq!((family.drift_times, family.repeated_drift.as_ref()), (1, None));
    }

    #[test]
    fn drift_that_comes_back_is_of_concern_for_an_hour_and_never_forgotten() {
        let (health, times) = start();
        health.updated(IpFamily::V4, times.at(0));
        for second in [10, 1000, 2000] {
            let what = "chain KUBE-SERVICES of table nat is gone".to_owned();
            let by = (second == 1000).then_some("iptables-restor");
            health.drifted(IpFamily::V4, (2, by), what, times.at(second));
        }
        let then = health.readiness(times.at(2001));
        assert!(then.ready && !then.healthy);
        let [concern] = then.concerns.as_slice() else { panic!("{:?}", then.concerns) };
        let wanted = "IPv4: other programs have changed our rules 3 times since 2023-11-14T22:13:30Z, the last time at \
                      2023-11-14T22:46:40Z: chain KUBE-SERVICES of table nat is gone";
        assert!(
            concern.starts_with(wanted) && concern.contains("the process is iptables-restor"),
            "{concern}"
        );
        let later = health.readiness(times.at(2000 + 3600));
        assert!(later.healthy, "{:?}", later.concerns);
        assert_eq!(later.families["IPv4"].repeated_drift.as_deref(), concern.strip_prefix("IPv4: "));
        assert_eq!(later.families["IPv4"].drift_times, 3);
    }

    #[test]
    fn what_one_place_complains_of_is_no_health_in_another() {
        let judged = |change: &dyn Fn(&ProxyHealth, &Times)| {
            let (health, times) = start();
            health.updated(IpFamily::V4, times.at(0));
            change(&health, &times);
            let readiness = health.readiness(times.at(50));
            assert!(readiness.ready, "none of these takes the node out of service");
            (
                readiness.healthy,
                readiness.concerns.join("; "),
                health.answer(Probe::Livez, times.at(50)).status,
            )
        };
        assert_eq!(judged(&|_, _| {}), (true, String::new(), 200));
        let (healthy, why, live) = judged(&|health, _| health.set_node(None));
        assert!(!healthy && why.contains("there is no Node object") && live == 200, "{why}");
        let (healthy, why, _) = judged(&|health, times| {
            health.failed(IpFamily::V4, "the lock is taken".to_owned(), times.at(49));
        });
        assert_eq!((healthy, why.as_str()), (false, "IPv4: the last sync failed: the lock is taken"));
        let (healthy, why, live) = judged(&|health, times| {
            health.watching("https://192.0.2.1/", times.at(0));
            ObjectKind::NEEDED.iter().for_each(|kind| health.watch(*kind, WatchNews::Event, times.at(1)));
            health.watch(ObjectKind::Service, WatchNews::Failed("connection refused"), times.at(5));
        });
        assert!(!healthy && live == 200, "a lost API server is no reason to restart the proxy");
        assert!(
            why.starts_with("no watch of services at the API server https://192.0.2.1/ for 45 s"),
            "{why}"
        );
        assert!(why.ends_with(": connection refused"), "{why}");
    }

    #[test]
    fn a_start_without_an_api_server_says_what_it_waits_for() {
        let (health, times) = start();
        health.watching("https://192.0.2.1/", times.at(0));
        health.watch(ObjectKind::Node, WatchNews::Failed("connection refused"), times.at(1));
        let reasons = health.readiness(times.at(2)).reasons;
        let wanted = "waiting for the API server https://192.0.2.1/: connection refused (services, endpointslices, nodes)";
        assert_eq!(reasons, [wanted]);
    }

    #[test]
    fn a_healthy_answer_is_never_stale() {
        let (health, times) = start();
        health.updated(IpFamily::V4, times.at(0));
        let reply = health.answer(Probe::Healthz, times.at(40));
        assert_eq!((reply.status, reply.content_type), (200, "application/json"));
        assert_eq!(reply.headers, [("X-Content-Type-Options", "nosniff".to_owned())]);
        assert_eq!(
            body(&reply),
            "{\"lastUpdated\":\"2023-11-14T22:14:00Z\",\"currentTime\":\"2023-11-14T22:14:00Z\",\
             \"nodeEligible\":true,\"healthy\":true,\
             \"status\":{\"IPv4\":{\"lastUpdated\":\"2023-11-14T22:13:20Z\",\"healthy\":true}}}"
        );
    }

    #[test]
    fn a_node_that_goes_away_fails_healthz_but_not_livez() {
        let (health, times) = start();
        let leaving = [
            None,
            Some(NodeFacts { deleting: true, ..NodeFacts::default() }),
            Some(NodeFacts { to_be_deleted: true, ..NodeFacts::default() }),
        ];
        for node in leaving {
            health.set_node(node.as_ref());
            let reply = health.answer(Probe::Healthz, times.at(0));
            assert_eq!(reply.status, 503, "{node:?}");
            assert!(
                body(&reply).starts_with("{\"lastUpdated\":\"0001-01-01T00:00:00Z\""),
                "{}",
                body(&reply)
            );
            assert!(body(&reply).contains("\"nodeEligible\":false,\"healthy\":true"));
            assert_eq!(health.answer(Probe::Livez, times.at(0)).status, 200);
            assert!(health.is_healthy(times.at(0)));
        }
        health.set_node(Some(&NodeFacts::default()));
        assert_eq!(health.answer(Probe::Healthz, times.at(0)).status, 200);
    }

    #[test]
    fn answers_are_counted_and_other_paths_do_not_exist() {
        let (health, times) = start();
        let now = times.at(0);
        let counted = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&counted);
        let count = Box::new(move |probe, code| sink.lock().unwrap().push((probe, code)));
        let routes = routes(Arc::new(health), Arc::new(move || now), count);
        let status = |path| routes(Request { method: "GET", path, query: "" }).status;
        assert_eq!((status("/healthz"), status("/livez"), status("/")), (200, 200, 404));
        assert_eq!((status("/readyz"), status("/status")), (503, 200), "nothing has been synced yet");
        assert_eq!(*counted.lock().unwrap(), [(Probe::Healthz, 200), (Probe::Livez, 200)]);
    }
}

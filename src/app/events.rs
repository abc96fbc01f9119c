//! Events on our Node and on Services, for users who ask kubectl what is wrong. Best effort: nothing
//! waits for them, and a server that does not take them is only mentioned in the debug log.

use crate::health::Clock;
use crate::model::{Allowance, Rate, UtcTime, cut};
use crate::sync::{Notice, NoticeSeverity};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Notices that wait; what does not fit is lost.
const WAITING: usize = 64;
/// The same reason about the same object, which may repeat itself for ever.
const SAME: Rate = Rate { burst: 1, pace: Duration::from_secs(600) };
/// All of them: a fault that many objects have must not flood the cluster.
const ALL: Rate = Rate { burst: 25, pace: Duration::from_secs(10) };
/// How long the program waits with its end until its last words are out.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// A note may not have more bytes (API).
const NOTE_MAX: usize = 1024;

/// Who speaks, and about which node.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    pub(super) node: String,
    /// The kernel's name for this host.
    pub(super) host: String,
}

/// The end that notices are put into.
#[derive(Clone, Debug)]
pub(super) struct Events(Option<mpsc::Sender<Told>>);

/// A notice, and who waits until it has been dealt with: they see this end go.
#[derive(Debug)]
struct Told {
    notice: Notice,
    _waiting: Option<oneshot::Sender<()>>,
}

impl Events {
    /// Without an API server no event is written.
    pub(super) fn nowhere() -> Self {
        Events(None)
    }

    /// Starts the task that sends them.
    pub(super) fn start(client: kube::Client, reporter: Reporter, clock: Clock) -> Self {
        let (sender, mut notices) = mpsc::channel::<Told>(WAITING);
        tokio::spawn(async move {
            let mut allowance = Allowance::new(SAME, ALL);
            let mut number = 0_u32;
            while let Some(Told { mut notice, _waiting }) = notices.recv().await {
                let about = (notice.service.clone(), notice.reason);
                let Some(suppressed) = allowance.ask(Some(about), Instant::now().into_std()) else {
                    continue;
                };
                notice.note = fitting(&notice.note, suppressed.same);
                number = number.wrapping_add(1);
                let event = body(&notice, &reporter, (UtcTime::of(clock().wall), number));
                if let Err(error) = send(&client, &event).await {
                    tracing::debug!(
                        reason = notice.reason,
                        error = format!("{error:#}"),
                        "cannot send an Event"
                    );
                }
            }
        });
        Events(Some(sender))
    }

    /// Puts a notice in; never waits.
    pub(super) fn tell(&self, notice: Notice) {
        if let Some(sender) = &self.0 {
            // Full: the log has it anyway.
            let _ = sender.try_send(Told { notice, _waiting: None });
        }
    }

    /// Puts in the last notice before the program ends, and gives it a moment to get out.
    pub(super) async fn tell_last(&self, notice: Notice) {
        let Some(sender) = &self.0 else { return };
        let (waiting, dealt_with) = oneshot::channel();
        let told = async {
            if sender.send(Told { notice, _waiting: Some(waiting) }).await.is_ok() {
                let _ = dealt_with.await;
            }
        };
        // No server takes it: the log has it anyway.
        let _ = tokio::time::timeout(LAST_WORDS, told).await;
    }
}

/// A note of a length that the API takes, with how often the same was not told before.
fn fitting(note: &str, suppressed: u64) -> String {
    let count = match suppressed {
        0 => String::new(),
        suppressed => format!(" ({suppressed} times more since the last Event)"),
    };
    let mut longest = NOTE_MAX;
    loop {
        let text = cut(note, longest) + &count;
        if text.len() <= NOTE_MAX || longest == 0 {
            return text;
        }
        longest = longest / 4 * 3;
    }
}

/// An `events.k8s.io/v1` Event. About a Node it lies in the namespace `default` (kube-proxy).
fn body(notice: &Notice, reporter: &Reporter, (now, number): (UtcTime, u32)) -> Value {
    let (namespace, name, regarding) = match &notice.service {
        Some(service) => (
            service.namespace(),
            service.name(),
            json!({"apiVersion": "v1", "kind": "Service", "namespace": service.namespace(), "name": service.name()}),
        ),
        None => (
            "default",
            reporter.node.as_str(),
            json!({"apiVersion": "v1", "kind": "Node", "name": reporter.node, "uid": reporter.node}),
        ),
    };
    let time = micro_time(now);
    let unique: String = time.chars().filter(char::is_ascii_digit).collect();
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"namespace": namespace, "name": format!("{name}.{unique}.{number}")},
        "eventTime": time,
        "reportingController": "kube-proxy",
        "reportingInstance": format!("kube-proxy-{}", reporter.host),
        "type": match notice.severity { NoticeSeverity::Normal => "Normal", NoticeSeverity::Warning => "Warning" },
        "reason": notice.reason, "action": notice.action, "regarding": regarding,
        "note": notice.note,
    })
}

/// RFC 3339 with exactly six digits of a second, as the API wants it.
fn micro_time(at: UtcTime) -> String {
    let UtcTime { year, month, day, hour, minute, second, nanosecond } = at;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", nanosecond / 1000)
}

async fn send(client: &kube::Client, event: &Value) -> Result<()> {
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or("default");
    let request = http::Request::post(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(event)?)
        .context("building the request")?;
    client.request_text(request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Now;
    use crate::http::{Reply, Routes, Site, SlotLimits, Slots, bind, serve};
    use crate::model::ServiceName;
    use std::sync::{Arc, Mutex};
    use std::time::SystemTime;

    fn notice(service: Option<&str>, reason: &'static str) -> Notice {
        Notice {
            service: service.map(|name| ServiceName::new("shop", name)),
            severity: NoticeSeverity::Warning,
            reason,
            action: "Sync",
            note: "it failed".to_owned(),
        }
    }

    fn reporter() -> Reporter {
        Reporter { node: "node-0".to_owned(), host: "host-0".to_owned() }
    }

    #[test]
    fn an_event_has_what_the_api_asks_for() {
        let at = UtcTime { nanosecond: 5_000_999, ..UtcTime::of(SystemTime::UNIX_EPOCH) };
        let event = body(&notice(Some("web"), "Refused"), &reporter(), (at, 7));
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["metadata"]["name"], "web.19700101000000005000.7");
        assert_eq!(event["eventTime"], "1970-01-01T00:00:00.005000Z");
        assert_eq!(event["regarding"]["kind"], "Service");
        assert_eq!(event["reportingController"], "kube-proxy");
        assert_eq!(event["reportingInstance"], "kube-proxy-host-0");
        let event = body(&notice(None, "Starting"), &reporter(), (at, 8));
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["regarding"]["name"], "node-0");
    }

    #[test]
    fn a_note_fits_whatever_is_in_it() {
        for text in ["x", "\u{e4}", "\u{1f600}", "\u{1b}", "\u{e0041}", "a\n"] {
            let note = fitting(&text.repeat(3000), 7);
            assert!(
                note.len() <= NOTE_MAX && note.ends_with(" (7 times more since the last Event)"),
                "{note}"
            );
        }
        assert_eq!(fitting("it failed", 0), "it failed");
    }

    #[test]
    fn a_fault_is_told_every_ten_minutes_and_many_faults_at_a_pace() {
        let (mut allowance, start) = (Allowance::new(SAME, ALL), std::time::Instant::now());
        let mut at =
            |about: u32, seconds| allowance.ask(Some(about), start + Duration::from_secs(seconds)).is_some();
        assert_eq!([at(0, 0), at(0, 599), at(1, 599), at(0, 600)], [true, false, true, true]);
        let at_once = (2..100).filter(|about| at(*about, 600)).count();
        let later = (100..200).filter(|about| at(*about, 630)).count();
        assert_eq!((at_once, later), (23, 3));
    }

    #[tokio::test]
    async fn events_reach_the_api_server() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let routes: Routes = Arc::new(move |request| {
            seen.lock().unwrap().push(format!("{} {}", request.method, request.path));
            Reply::json(201, "{}")
        });
        tokio::spawn(serve(listener, Site::of(routes, &Slots::new(SlotLimits::within(1024)))));
        let options =
            crate::watch::client::ClientOptions { master: Some(address.to_string()), kubeconfig: None };
        let client = crate::watch::client::client(&options).await.unwrap();
        let now = Now { steady: std::time::Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let events = Events::start(client, reporter(), Arc::new(move || now));
        events.tell(notice(None, "Starting"));
        events.tell(notice(Some("web"), "Refused"));
        let both = async {
            while asked.lock().unwrap().len() < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
        assert_eq!(
            *asked.lock().unwrap(),
            [
                "POST /apis/events.k8s.io/v1/namespaces/default/events",
                "POST /apis/events.k8s.io/v1/namespaces/shop/events"
            ]
        );
    }
}

//! All that is known about how well the kernel follows the snapshot: `/readyz` of the metrics server, what the status
//! pages show, and the one word that the health port answers.

use super::proxy::{Family, Now};
use crate::http::Reply;
use crate::model::{ApiConnection, UtcTime};
use serde::Serialize;
use std::collections::BTreeMap;

/// Where the detail is.
const WHY: &str = "Why: `kube-proxy-rs status` on the node, or /status on --metrics-bind-address.\n";

/// Refused Services that are named; the rest is counted.
pub(super) const MOST_NAMED: usize = 100;

/// The answer of `/readyz` on the metrics server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// The one judgement, which `status`, the page, `check` and `explain` share: ready, and nothing else to complain of.
    pub healthy: bool,
    /// Every family has been synced once, and none is stuck.
    pub ready: bool,
    /// Why it is not ready, in sentences.
    pub reasons: Vec<String>,
    /// Why it is not healthy though it is ready, in sentences.
    pub concerns: Vec<String>,
    /// When it was asked, in UTC.
    pub current_time: String,
    /// The connection to the API server; absent where objects come from manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiConnection>,
    /// Parts of Services that are left out or doubtful, whatever the kernel says of the rest: endpoints,
    /// external IPs and node ports.
    #[serde(flatten)]
    pub doubtful: Doubtful,
    /// Files that cannot be read, and objects in them that cannot be used; only of manifests.
    pub source_problems: Vec<String>,
    /// By `IPv4` and `IPv6`; a family that this node does not serve is not there.
    pub families: BTreeMap<&'static str, FamilyReadiness>,
}

/// How one IP family is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyReadiness {
    /// The first sync has been made.
    pub synced: bool,
    /// When the last sync that succeeded ended, in UTC.
    pub last_sync: Option<String>,
    /// How long ago that was, in seconds.
    pub last_sync_seconds: Option<f64>,
    /// Age of the oldest change that is not in the kernel yet, in seconds.
    pub oldest_pending_seconds: Option<f64>,
    /// Why the last sync failed, if it did.
    pub failure: Option<String>,
    /// How many Services are left out because the kernel refuses them.
    pub refused_total: usize,
    /// The first of them.
    pub refused: Vec<RefusedObject>,
    /// Kernel objects that another program removed or changed, and the proxy rewrote.
    pub drift_total: u64,
    /// The last of them, in a sentence.
    pub last_drift: Option<String>,
    /// When it was found, in UTC.
    pub last_drift_time: Option<String>,
    /// How often such changes were found and repaired.
    pub drift_times: u64,
    /// When that was for the first time, in UTC.
    pub drift_since: Option<String>,
    /// The process that was the last one known.
    pub drift_by: Option<String>,
    /// Where it was no accident: how often, since when, what, and what is known of the program, in a sentence.
    pub repeated_drift: Option<String>,
}

/// Endpoints and frontends that are not used, or should not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Doubtful {
    /// Endpoints left out because of the range that their address is in.
    pub refused_endpoints: usize,
    /// Reserved external and load-balancer IPs that are refused.
    pub refused_external_ips: usize,
    /// Those that are only reported.
    pub reported_external_ips: usize,
    /// Addresses with a port that another Service has.
    pub contested_addresses: usize,
    /// Ports of the node that another Service has.
    pub contested_node_ports: usize,
    /// What Services ask for beyond what is programmed of one.
    pub too_large: usize,
    /// The first Services that have such, and what is wrong.
    pub doubtful: Vec<RefusedObject>,
}

impl Doubtful {
    /// Names one more, unless there are very many.
    pub fn name(&mut self, object: impl FnOnce() -> RefusedObject) {
        if self.doubtful.len() < MOST_NAMED {
            self.doubtful.push(object());
        }
    }
}

/// A Service that is left out, as a whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedObject {
    /// `namespace/name`.
    pub service: String,
    /// The kernel's words, or what is wrong.
    pub reason: String,
}

impl Readiness {
    fn code(&self) -> u16 {
        if self.ready { 200 } else { 503 }
    }

    /// `/readyz` for every client.
    pub(super) fn ready_in_a_word(&self) -> Reply {
        Reply::text(self.code(), if self.ready { "ready\n" } else { "not ready\n" })
    }

    /// `/status` for every client.
    pub(super) fn state_in_a_word(&self) -> Reply {
        Reply::text(200, format!("{}\n{WHY}", if self.healthy { "healthy" } else { "degraded" }))
    }

    /// `/readyz` with all detail.
    #[must_use]
    pub fn reply(&self) -> Reply {
        let code = self.code();
        match serde_json::to_vec_pretty(self) {
            Ok(body) => Reply::json(code, body),
            Err(error) => Reply::text(500, error.to_string()),
        }
    }
}

impl FamilyReadiness {
    pub(super) fn of(family: &Family, now: Now) -> Self {
        let time = |time| UtcTime::of(time).to_string();
        let age = |since| now.steady.saturating_duration_since(since).as_secs_f64();
        FamilyReadiness {
            synced: family.last_updated.is_some(),
            last_sync: family.last_updated.map(time),
            last_sync_seconds: family
                .last_updated
                .map(|at| now.wall.duration_since(at).unwrap_or_default().as_secs_f64()),
            oldest_pending_seconds: family.oldest_queued.map(age),
            failure: family.failure.clone(),
            refused_total: family.refused.len(),
            refused: family.refused.iter().take(MOST_NAMED).cloned().collect(),
            drift_total: family.drift_total,
            last_drift: family.last_drift.as_ref().map(|(_, what)| what.clone()),
            last_drift_time: family.last_drift.as_ref().map(|(at, _)| time(*at)),
            drift_times: family.drift.times,
            drift_since: family.drift.since.map(time),
            drift_by: family.drift.by.clone(),
            repeated_drift: family.repeated_drift(),
        }
    }
}

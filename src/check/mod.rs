//! Is this node fit for this mode? Facts are gathered first (`gather`, through the kernel's
//! handles), then judged by pure functions (`kernel`, `settings`, `ports`, `others`); what comes out
//! is one finding per question, with what to do about it.
//!
//! No rule and no setting is changed. The kernel may load modules when it is asked about what they
//! do, and the legacy tools make an empty nat table, as they would at the proxy's start.

mod facts;
mod gather;
mod kernel;
mod others;
mod ports;
mod print;
mod settings;
#[cfg(test)]
mod tests;

pub use facts::{CheckRequest, Facts, ModeSource, ProxyState, Purpose, ServicePortUse};
pub use gather::gather;
pub use print::Report;

use serde::Serialize;

/// How a question was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Traffic flows, but an operator should look; or it could not be found out.
    Problem,
    /// The proxy, or traffic, will not work.
    Broken,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// The question, in a word or two.
    pub check: String,
    /// How it was answered.
    #[serde(rename = "severity")]
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it; `None` where nothing is to be done.
    pub advice: Option<String>,
}

impl CheckResult {
    fn ok(check: impl Into<String>, message: impl Into<String>) -> Self {
        CheckResult { check: check.into(), level: Level::Ok, message: message.into(), advice: None }
    }

    fn problem(check: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        CheckResult { check: check.into(), level: Level::Problem, message: message.into(), advice }
    }

    fn broken(check: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        CheckResult { level: Level::Broken, ..CheckResult::problem(check, message, advice) }
    }

    /// What could not be read, and why.
    fn unknown(check: impl Into<String>, reason: &str, facts: &Facts) -> Self {
        let advice = if facts.is_root { "see the reason" } else { "run this check as root" };
        CheckResult::problem(check, format!("could not be read: {reason}"), advice)
    }
}

/// Answers every question, in a fixed order.
#[must_use]
pub fn judge(facts: &Facts, request: &CheckRequest) -> Vec<CheckResult> {
    let mut findings = kernel::judge(facts, request);
    findings.extend(settings::judge(facts, request));
    findings.extend(ports::judge(facts, request));
    findings.extend(others::judge(facts, request));
    findings
}

/// Whether nothing is broken.
#[must_use]
pub fn is_fit(findings: &[CheckResult]) -> bool {
    findings.iter().all(|finding| finding.level < Level::Broken)
}

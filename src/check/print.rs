//! Findings for people and for programs.

use super::{CheckResult, Level, is_fit};
use crate::config::Mode;
use std::fmt::Write as _;

/// One line each, and a line that sums up.
#[must_use]
pub fn text(findings: &[CheckResult]) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or_default();
    for finding in findings {
        let level = word(finding.level);
        let remedy = finding.remedy.iter().map(|remedy| format!(" -> {remedy}")).collect::<String>();
        // Writing into a string cannot fail.
        let _ =
            writeln!(text, "{level:<7}  {:width$}  {}{remedy}", finding.check, one_line(&finding.message));
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (failed, warnings) = (count(Level::Failed), count(Level::Warning));
    let verdict = if is_fit(findings) { "this node is fit" } else { "this node is not fit" };
    let _ = writeln!(text, "{verdict}: {failed} failed, {warnings} warnings, {} ok", count(Level::Ok));
    text
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Failed => "failed",
    }
}

/// Tools answer in several lines.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The same as a JSON object.
#[must_use]
pub fn json(findings: &[CheckResult], mode: Mode) -> String {
    let value = serde_json::json!({"mode": mode.as_str(), "fit": is_fit(findings), "findings": findings});
    format!("{value:#}\n")
}

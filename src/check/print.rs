//! Findings for people and for programs.

use super::{CheckResult, Level, is_fit};
use crate::config::Mode;
use serde::Serialize;
use std::fmt;

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The mode that the node was checked for.
    pub mode: &'static str,
    /// Nothing is broken.
    pub fit: bool,
    /// The answer to each question.
    pub findings: Vec<CheckResult>,
}

impl Report {
    /// Sums up.
    #[must_use]
    pub fn new(findings: Vec<CheckResult>, mode: Mode) -> Report {
        Report { mode: mode.as_str(), fit: is_fit(&findings), findings }
    }
}

/// One line each, and a line that sums up.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.findings.iter().map(|finding| finding.check.chars().count());
        let width = widths.max().unwrap_or_default();
        for finding in &self.findings {
            let level = word(finding.level);
            let advice = finding.advice.iter().map(|advice| format!(" -> {advice}")).collect::<String>();
            writeln!(f, "{level:<7}  {:width$}  {}{advice}", finding.check, one_line(&finding.message))?;
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let (broken, problems) = (count(Level::Broken), count(Level::Problem));
        let verdict = if self.fit { "this node is fit" } else { "this node is not fit" };
        let s = if problems == 1 { "" } else { "s" };
        writeln!(f, "{verdict}: {broken} broken, {problems} problem{s}, {} ok", count(Level::Ok))
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Problem => "problem",
        Level::Broken => "broken",
    }
}

/// Tools answer in several lines.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

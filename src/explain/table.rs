//! All Services as a table, as people know it from kubectl.

use super::findings::{self, Finding};
use super::text::unused_words;
use super::view::{FamilyView, ServiceView};
use crate::model::Verdict;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A part of the list of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// In the order of names.
    pub items: Vec<Row>,
    /// Ask again for what comes after this name; `None` at the end.
    #[serde(rename = "continue")]
    pub next: Option<String>,
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `10.96.0.1:80/tcp`, cluster IPs first.
    pub frontends: Vec<String>,
    /// Endpoints in use, over all ports and families.
    pub used: usize,
    /// Endpoints not in use.
    pub unused: usize,
    /// How many endpoints are not in use for which reason.
    pub reasons: BTreeMap<String, usize>,
    /// Endpoints that terminate and still get traffic or still have some.
    pub draining: usize,
    /// `serving`, `refusing`, `dropping` or `refused by the kernel`.
    pub state: String,
    /// What is wrong with it, as far as that can be said without a look at the kernel.
    #[serde(default)]
    pub problems: Vec<Finding>,
}

impl Row {
    /// A Service's row.
    #[must_use]
    pub fn of(view: &ServiceView) -> Row {
        let (namespace, name) = view.service.split_once('/').unwrap_or(("", &view.service));
        let mut row = Row {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            frontends: Vec::new(),
            used: 0,
            unused: 0,
            reasons: BTreeMap::new(),
            draining: 0,
            state: state(&view.families),
            problems: findings::of_service(view),
        };
        // A node port is the same in both families.
        let mut seen = BTreeSet::new();
        for port in view.families.iter().flat_map(|family| &family.ports) {
            let frontends = port.frontends.iter().map(|it| format!("{}/{}", it.address, port.protocol));
            row.frontends.extend(frontends.filter(|frontend| seen.insert(frontend.clone())));
            for endpoint in &port.endpoints {
                row.draining += usize::from(endpoint.terminating && endpoint.serving);
                match endpoint.internal.filter(|_| !endpoint.is_used()) {
                    None => row.used += 1,
                    Some(why) => {
                        row.unused += 1;
                        *row.reasons.entry(unused_words(why).to_owned()).or_default() += 1;
                    }
                }
            }
        }
        row
    }

    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn cells(&self, is_wide: bool) -> Vec<String> {
        let frontends = match (is_wide, self.frontends.as_slice()) {
            (false, [first, rest @ ..]) if !rest.is_empty() => format!("{first} +{}", rest.len()),
            (_, all) => all.join(","),
        };
        let mut cells = vec![
            self.namespace.clone(),
            self.name.clone(),
            frontends,
            format!("{}/{}", self.used, self.used + self.unused),
            self.state.clone(),
        ];
        if is_wide {
            cells.push(self.draining.to_string());
            let reasons = self.reasons.iter().map(|(why, count)| format!("{count} {why}"));
            let reasons = reasons.collect::<Vec<_>>().join(", ");
            cells.push(if reasons.is_empty() { "-".to_owned() } else { reasons });
        }
        cells
    }
}

fn state(families: &[FamilyView]) -> String {
    let ports = || families.iter().flat_map(|family| &family.ports);
    let any = |answer| ports().any(|port| port.internal == answer || port.external == Some(answer));
    if families.iter().any(|family| family.refused.is_some()) {
        "refused by the kernel"
    } else if any(Verdict::Refused) {
        "refusing"
    } else if any(Verdict::Dropped) {
        "dropping"
    } else {
        "serving"
    }
    .to_owned()
}

/// What a table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// All frontends, and why endpoints are not used.
    pub wide: bool,
    /// The line with the names of the columns.
    pub headers: bool,
}

/// The table of Services.
#[must_use]
pub fn table(rows: &[Row], columns: Columns) -> String {
    let head = ["NAMESPACE", "NAME", "FRONTENDS", "USED", "STATE", "DRAINING", "NOT USED"];
    let head = if columns.wide { &head[..] } else { head.split_at(5).0 };
    let cells = rows.iter().map(|row| row.cells(columns.wide)).collect();
    aligned(head, cells, columns.headers)
}

/// A line for each problem of these Services.
#[must_use]
pub fn problem_table(rows: &[Row], headers: bool) -> String {
    let line = |row: &Row, problem: &Finding| {
        vec![row.namespace.clone(), row.name.clone(), problem.code.to_string(), problem.message.clone()]
    };
    let lines = rows.iter().flat_map(|row| row.problems.iter().map(move |problem| line(row, problem)));
    aligned(&["NAMESPACE", "NAME", "PROBLEM", "MESSAGE"], lines.collect(), headers)
}

/// Cells under the names of their columns, three spaces apart.
pub(super) fn aligned(head: &[&str], rows: Vec<Vec<String>>, headers: bool) -> String {
    let mut lines = vec![head.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let mut widths = vec![0; head.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    lines.iter().skip(usize::from(!headers)).map(line).collect()
}

//! Services on the page for people: a table of them, and a page of each.

use super::status::{STYLE, cell, escaped, list, table};
use crate::explain::{Finding, Report, Row};
use crate::http;

/// Services that a page shows.
pub(super) const MOST_ROWS: usize = 100;

/// Services for a page, those with problems first.
#[derive(Debug)]
pub(super) struct Listed {
    /// At most [`MOST_ROWS`].
    pub(super) rows: Vec<Row>,
    /// How many there are.
    pub(super) total: usize,
}

/// The table of Services, each with a link to its page.
pub(super) fn services(listed: &Listed) -> String {
    const HEAD: [&str; 5] = ["Service", "Frontends", "Used", "State", "Problems"];
    if listed.rows.is_empty() {
        return String::new();
    }
    let rows: String = listed.rows.iter().map(row).collect();
    let more = match listed.total.saturating_sub(listed.rows.len()) {
        0 => String::new(),
        more => format!("<p class=\"note\">{more} more: kube-proxy-rs services lists all.</p>"),
    };
    table("Services", &HEAD, &rows) + &more
}

fn row(row: &Row) -> String {
    let name = row.full_name();
    let link = http::path_with_query("/status/service", &[("name", &name)]);
    let (frontends, more) = match row.frontends.as_slice() {
        [] => ("none", String::new()),
        [first] => (first.as_str(), String::new()),
        [first, rest @ ..] => (first.as_str(), format!(" and {} more", rest.len())),
    };
    let problems: Vec<&str> = row.problems.iter().map(|problem| problem.message.as_str()).collect();
    let class = if row.problems.is_empty() { "" } else { " class=\"failure\"" };
    format!(
        "<tr{class}><td data-label=\"Service\"><a href=\"{}\">{}</a></td>{}{}{}{}</tr>",
        escaped(&link),
        escaped(&name),
        cell("Frontends", &format!("{frontends}{more}")),
        cell("Used", &format!("{} of {}", row.used, row.used + row.unused)),
        cell("State", &row.state),
        cell("Problems", problems.first().unwrap_or(&"none")),
    )
}

/// The page of a Service: what `explain` says of it without a look at the kernel.
pub(super) fn service(name: &str, report: &Report) -> String {
    let (class, word) = match report.findings.first() {
        None => ("good", "No findings"),
        Some(_) => ("bad", "Findings"),
    };
    let name = escaped(name);
    let said = |finding: &Finding| format!("{}: {} {}", finding.code, finding.message, finding.advice);
    let findings: Vec<String> = report.findings.iter().map(said).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>{name}</title><style>{STYLE}</style></head><body><main>\
         <header><h1>{name}</h1><p class=\"state {class}\">{word}</p></header>\
         <p class=\"where\"><a href=\"/status\">All Services</a></p>{findings}<pre>{text}</pre>\
         <p class=\"note\">The kernel is not looked at for this page: kube-proxy-rs explain {name} does that.</p>\
         </main></body></html>\n",
        findings = list(findings.iter()),
        text = escaped(&report.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::ServiceView;

    #[test]
    fn a_service_leads_to_its_page_and_no_name_is_markup() {
        let row: Row = serde_json::from_value(serde_json::json!({
            "namespace": "shop", "name": "<b>&", "frontends": ["10.96.0.1:80/tcp", "*:30080/tcp"], "used": 1, "unused": 1,
            "reasons": {}, "draining": 0, "state": "serving", "problems": [{
                "code": "none-ready", "severity": "problem", "message": "<i>none</i>", "advice": "",
            }],
        }))
        .unwrap();
        let html = services(&Listed { rows: vec![row], total: 3 });
        assert!(
            html.contains("href=\"/status/service?name=shop%2F%3Cb%3E%26\">shop/&lt;b&gt;&amp;</a>"),
            "{html}"
        );
        assert!(html.contains("&lt;i&gt;none&lt;/i&gt;") && !html.contains("<i>"), "{html}");
        assert!(
            html.contains("10.96.0.1:80/tcp and 1 more") && html.contains("2 more: kube-proxy-rs"),
            "{html}"
        );
    }

    #[test]
    fn the_page_of_a_service_says_what_it_did_not_look_at() {
        let view = ServiceView { service: "shop/<b>".to_owned(), ..ServiceView::default() };
        let html = service("shop/<b>", &Report::of_plan(view));
        assert!(
            html.contains("The kernel is not looked at for this page") && !html.contains("<b>"),
            "{html}"
        );
        assert!(html.contains("Kernel  not looked at") && html.contains("href=\"/status\""), "{html}");
    }
}

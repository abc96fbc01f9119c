//! How the proxy on this node is doing: for `kube-proxy-rs status`, and as a page for people.

use super::pages::{self, Listed};
use crate::explain::Overview;
use crate::health::{Doubtful, FamilyReadiness, Readiness, RefusedObject};
use crate::model::{UtcTime, WatchState, node_port_words};
use crate::sync::Identity;
use serde::Serialize;
use std::fmt;
use std::time::SystemTime;

/// The page's style; nothing is loaded from anywhere.
pub(super) const STYLE: &str = include_str!("status.css");

/// How the text of a healthy proxy begins.
pub(super) const HEALTHY: &str = "State      healthy";

/// All that is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    version: &'static str,
    stands_in_for: &'static str,
    started: String,
    /// What the loop has; missing while it is busy with a long sync.
    #[serde(flatten)]
    overview: Option<Overview>,
    #[serde(flatten)]
    readiness: Readiness,
}

impl Status {
    pub(super) fn new(started: SystemTime, overview: Option<Overview>, readiness: Readiness) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION"),
            stands_in_for: crate::config::COMPATIBLE_WITH,
            started: UtcTime { nanosecond: 0, ..UtcTime::of(started) }.to_string(),
            overview,
            readiness,
        }
    }

    /// Why it is not fine, in sentences.
    fn reasons(&self) -> impl Iterator<Item = &String> {
        self.readiness.reasons.iter().chain(&self.readiness.concerns)
    }

    /// The page, whole: no scripts, no links to elsewhere.
    pub(super) fn html(&self, services: Option<&Listed>) -> String {
        let (class, word) = match self.readiness.healthy {
            true => ("good", "Healthy"),
            false => ("bad", "Degraded"),
        };
        let reasons = list(self.reasons());
        let node = self.overview.as_ref().map_or("this node", |overview| overview.node.as_str());
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta http-equiv=\"refresh\" content=\"15\"><meta name=\"color-scheme\" content=\"light dark\">\
             <title>{word}: kube-proxy-rs on {node}</title><style>{STYLE}</style></head><body><main>\
             <header><h1>kube-proxy-rs</h1><p class=\"state {class}\">{word}</p></header>\
             <p class=\"where\">{node}</p>{reasons}{facts}{api}{families}{refused}{doubtful}{services}\
             <footer>kube-proxy-rs {version}, in place of kube-proxy v{upstream}. Running since {started}, \
             seen at {now}.</footer></main></body></html>\n",
            node = escaped(node),
            facts = self.facts(),
            api = self.api_table(),
            families = self.family_table(),
            refused = self.refused_table(),
            doubtful = self.doubtful_table(),
            services = services.map(pages::services).unwrap_or_default(),
            version = self.version,
            upstream = self.stands_in_for,
            started = self.started,
            now = escaped(&seconds(&self.readiness.current_time)),
        )
    }

    fn facts(&self) -> String {
        let Some(overview) = &self.overview else {
            return format!("<p class=\"note\">{}</p>", self.no_services());
        };
        let Identity { mode, flavor } = &overview.identity;
        let fact = |name: &str, value: &str| {
            format!("<div><dt>{}</dt><dd>{}</dd></div>", escaped(name), escaped(value))
        };
        let tools = if flavor.is_empty() { String::new() } else { fact("iptables tools", flavor) };
        let mut facts = fact("Mode", mode) + &tools;
        facts += &fact("Zone", overview.zone.as_deref().unwrap_or("none"));
        for (family, ip) in &overview.node_ips {
            facts += &fact(&format!("{family} node IP"), &ip.to_string());
        }
        for (family, ips) in &overview.node_port_ips {
            facts += &fact(&format!("{family} node ports on"), &node_port_words(ips.as_deref()));
        }
        facts += &fact("Services", &overview.services.to_string());
        for (family, count) in &overview.endpoints {
            facts += &fact(&format!("{family} endpoints"), &count.to_string());
        }
        facts += &fact("Draining endpoints", &overview.draining.to_string());
        facts += &fact("Services waiting", &overview.pending.to_string());
        let waiting = if overview.is_complete {
            ""
        } else {
            "<p class=\"note\">Waiting for the first list of Services and EndpointSlices: nothing is programmed yet.</p>"
        };
        format!("<dl>{facts}</dl>{waiting}")
    }

    /// Why there are no counts.
    fn no_services(&self) -> &'static str {
        match self.readiness.families.is_empty() {
            true => "Nothing is known of the cluster yet, and nothing is programmed.",
            false => "The loop is in the middle of a sync; counts follow when it is done.",
        }
    }

    fn api_table(&self) -> String {
        const HEAD: [&str; 5] = ["Watch", "State", "Since", "Last event", "Last error"];
        let Some(api) = &self.readiness.api else { return String::new() };
        let row = |it: &WatchState| {
            let error = match (&it.last_error, &it.last_error_time) {
                (Some(error), Some(time)) => format!("{error} ({})", seconds(time)),
                _ => "none".to_owned(),
            };
            let cells = [
                it.resource.clone(),
                if it.connected { "open" } else { "closed" }.to_owned(),
                format!("{} ({})", seconds(&it.since), UtcTime::ago(it.since_seconds)),
                with_age(it.last_event.as_deref(), it.last_event_seconds),
                error,
            ];
            let cells: String = HEAD.iter().zip(&cells).map(|(name, value)| cell(name, value)).collect();
            let class = if it.connected { "" } else { " class=\"failure\"" };
            format!("<tr{class}>{cells}</tr>")
        };
        let rows: String = api.watches.iter().map(row).collect();
        table(&format!("The API server {}", escaped(&api.server)), &HEAD, &rows)
    }

    fn family_table(&self) -> String {
        let row = |(family, it): (&&str, &FamilyReadiness)| {
            let cells = [
                ("Family", (*family).to_owned()),
                ("Last sync", with_age(it.last_sync.as_deref(), it.last_sync_seconds)),
                ("Lag", lag(it)),
                ("Refused", it.refused_total.to_string()),
                ("Drift healed", it.drift_total.to_string()),
                ("Last drift", drift(it)),
            ];
            let cells = cells.map(|(name, value)| cell(name, &value)).concat();
            let failure = it.failure.as_ref().map(|why| {
                format!(
                    "<tr class=\"failure\"><td colspan=\"6\">Last sync failed: {}</td></tr>",
                    escaped(why)
                )
            });
            let repeated = it
                .repeated_drift
                .as_ref()
                .map(|what| format!("<tr class=\"failure\"><td colspan=\"6\">{}</td></tr>", escaped(what)));
            format!("<tr>{cells}</tr>{}{}", failure.unwrap_or_default(), repeated.unwrap_or_default())
        };
        let rows: String = self.readiness.families.iter().map(row).collect();
        if rows.is_empty() {
            return String::new();
        }
        let head = ["Family", "Last sync", "Lag", "Refused", "Drift healed", "Last drift"];
        table("The kernel", &head, &rows)
    }

    fn refused_table(&self) -> String {
        let mut rows = String::new();
        for (family, it) in &self.readiness.families {
            for refused in &it.refused {
                let cells =
                    [("Service", refused.service.as_str()), ("Family", family), ("Reason", &refused.reason)];
                let cells: String = cells.iter().map(|(name, value)| cell(name, value)).collect();
                rows += &format!("<tr>{cells}</tr>");
            }
            let more = it.refused_total - it.refused.len().min(it.refused_total);
            if more > 0 {
                rows += &format!("<tr><td colspan=\"3\">and {more} more of {family}</td></tr>");
            }
        }
        if rows.is_empty() {
            rows
        } else {
            table("Left out: refused by the kernel", &["Service", "Family", "Reason"], &rows)
        }
    }

    fn doubtful_table(&self) -> String {
        let row = |it: &RefusedObject| {
            format!("<tr>{}{}</tr>", cell("Service", &it.service), cell("Reason", &it.reason))
        };
        let rows: String = self.readiness.doubtful.doubtful.iter().map(row).collect();
        if rows.is_empty() {
            return rows;
        }
        format!(
            "{}<p class=\"note\">{}</p>",
            table("Parts of Services left out or doubtful", &["Service", "Reason"], &rows),
            escaped(&doubts(&self.readiness.doubtful))
        )
    }
}

/// How many there are of each kind that there is, in words.
fn doubts(it: &Doubtful) -> String {
    let kinds = [
        (it.refused_endpoints, "endpoint refused", "endpoints refused"),
        (it.refused_external_ips, "external IP refused", "external IPs refused"),
        (it.reported_external_ips, "external IP reported", "external IPs reported"),
        (it.contested_addresses, "address contested", "addresses contested"),
        (it.contested_node_ports, "node port contested", "node ports contested"),
        (it.too_large, "bound of a Service exceeded", "bounds of Services exceeded"),
    ];
    let words = |(count, one, many): (usize, &str, &str)| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    kinds.into_iter().filter_map(words).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.readiness.healthy { HEALTHY } else { "State      DEGRADED" })?;
        for reason in self.reasons() {
            writeln!(f, "           {reason}")?;
        }
        match &self.overview {
            Some(overview) => write!(f, "{overview}")?,
            None => writeln!(f, "{}", self.no_services())?,
        }
        if let Some(api) = &self.readiness.api {
            write!(f, "{api}")?;
        }
        writeln!(
            f,
            "Version    {}, in place of kube-proxy v{}, since {}",
            self.version, self.stands_in_for, self.started
        )?;
        if !self.readiness.doubtful.doubtful.is_empty() {
            writeln!(f, "Doubtful   {}", doubts(&self.readiness.doubtful))?;
        }
        for it in &self.readiness.doubtful.doubtful {
            writeln!(f, "           {}: {}", it.service, it.reason)?;
        }
        for (family, it) in &self.readiness.families {
            let last = with_age(it.last_sync.as_deref(), it.last_sync_seconds);
            writeln!(f, "\n{family}       last sync {last}, lag {}", lag(it))?;
            writeln!(
                f,
                "           {} Services refused, {} kernel objects healed",
                it.refused_total, it.drift_total
            )?;
            if it.last_drift.is_some() {
                writeln!(f, "           last drift: {}", drift(it))?;
            }
            if let Some(repeated) = &it.repeated_drift {
                writeln!(f, "           {repeated}")?;
            }
            if let Some(failure) = &it.failure {
                writeln!(f, "           last sync FAILED: {failure}")?;
            }
            for refused in &it.refused {
                writeln!(f, "           refused: {}: {}", refused.service, refused.reason)?;
            }
        }
        Ok(())
    }
}

/// A time with how long ago it was.
fn with_age(time: Option<&str>, ago: Option<f64>) -> String {
    match (time, ago) {
        (Some(time), Some(ago)) => format!("{} ({})", seconds(time), UtcTime::ago(ago)),
        (Some(time), None) => seconds(time),
        (None, _) => "never".to_owned(),
    }
}

/// A time in whole seconds.
fn seconds(time: &str) -> String {
    UtcTime::without_fraction(time).into_owned()
}

/// Age of the oldest change that is not in the kernel yet.
fn lag(family: &FamilyReadiness) -> String {
    family.oldest_pending_seconds.map_or_else(|| "none".to_owned(), |seconds| format!("{seconds:.1} s"))
}

fn drift(family: &FamilyReadiness) -> String {
    match (&family.last_drift, &family.last_drift_time) {
        (Some(what), Some(time)) => format!("{what} ({})", seconds(time)),
        (Some(what), None) => what.clone(),
        (None, _) => "none".to_owned(),
    }
}

pub(super) fn list<'r>(reasons: impl Iterator<Item = &'r String>) -> String {
    let items: String = reasons.map(|reason| format!("<li>{}</li>", escaped(reason))).collect();
    if items.is_empty() { items } else { format!("<ul class=\"reasons\">{items}</ul>") }
}

pub(super) fn table(title: &str, head: &[&str], rows: &str) -> String {
    let head: String = head.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    format!("<h2>{title}</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
}

/// On narrow screens the column's name stands beside the value.
pub(super) fn cell(name: &str, value: &str) -> String {
    format!("<td data-label=\"{name}\">{}</td>", escaped(value))
}

/// Names and messages come from outside: none of them may be markup.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Now, ProxyHealth};
    use crate::model::{IpFamily, NodeFacts, ObjectKind, WatchNews};
    use std::time::{Duration, Instant, UNIX_EPOCH};

    fn status(change: impl FnOnce(&ProxyHealth, Now)) -> Status {
        let health = ProxyHealth::new(Duration::from_secs(30));
        let now = Now { steady: Instant::now(), wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) };
        health.set_node(Some(&NodeFacts::default()));
        health.queued(IpFamily::V4, now);
        health.updated(IpFamily::V4, now);
        change(&health, now);
        let identity = Identity { mode: "iptables".to_owned(), flavor: "nft".to_owned() };
        let overview = Overview {
            identity,
            node: "node-0".to_owned(),
            is_complete: true,
            services: 7,
            ..Overview::default()
        };
        Status::new(now.wall, Some(overview), health.readiness(now))
    }

    #[test]
    fn a_healthy_node_says_so_in_every_form() {
        let status = status(|_, _| {});
        assert!(status.html(None).contains("class=\"state good\">Healthy"), "{}", status.html(None));
        assert!(status.to_string().starts_with("State      healthy\n"), "{status}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(
            (&json["services"], &json["ready"], &json["mode"]),
            (&7.into(), &true.into(), &"iptables".into())
        );
    }

    #[test]
    fn what_is_wrong_is_shown_and_is_never_markup() {
        let status = status(|health, now| {
            let reason = "line 7: <script>alert(1)</script>".to_owned();
            health.refused(IpFamily::V4, vec![RefusedObject { service: "shop/web".to_owned(), reason }]);
            health.queued(IpFamily::V4, now);
            let reason = "spec.externalIPs: 192.0.2.1 is this node's own address".to_owned();
            let doubtful = vec![RefusedObject { service: "shop/<thief>".to_owned(), reason }];
            health.doubted(Doubtful { refused_external_ips: 1, doubtful, ..Doubtful::default() });
            health.failed(IpFamily::V4, "the lock is \"taken\"".to_owned(), now);
        });
        let html = status.html(None);
        assert!(html.contains("class=\"state bad\">Degraded"), "{html}");
        assert!(html.contains("shop/web") && html.contains("the lock is &quot;taken&quot;"), "{html}");
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("shop/&lt;thief&gt;") && html.contains("1 external IP refused"), "{html}");
        assert!(status.to_string().contains("shop/<thief>: spec.externalIPs: 192.0.2.1 is"), "{status}");
        assert!(status.to_string().contains("refused: shop/web: line 7"), "{status}");
    }

    #[test]
    fn what_the_source_cannot_tell_is_told_once() {
        for hides_objects in [true, false] {
            let problem = crate::model::SourceProblem {
                source: "<shop>.yaml".to_owned(),
                reason: "document 1: no".to_owned(),
                hides_objects,
                stands: true,
            };
            let status = status(|health, _| health.source(std::slice::from_ref(&problem)));
            let text = status.to_string();
            assert!(text.starts_with("State      DEGRADED\n"), "{text}");
            assert_eq!(text.matches(&problem.to_string()).count(), 1, "{text}");
            assert!(
                status.html(None).contains("class=\"state bad\">Degraded")
                    && status.html(None).contains("&lt;shop&gt;.yaml")
            );
        }
    }

    #[test]
    fn a_lost_api_server_is_no_health_and_is_shown_with_each_watch() {
        let status = status(|health, now| {
            health.watching("https://192.0.2.1/", now);
            ObjectKind::NEEDED.iter().for_each(|kind| health.watch(*kind, WatchNews::Event, now));
            health.watch(ObjectKind::Service, WatchNews::Failed("connection <refused>"), now);
        });
        let text = status.to_string();
        assert!(
            text.starts_with("State      DEGRADED\n           no watch of services at the API"),
            "{text}"
        );
        assert!(
            text.contains("API server https://192.0.2.1/ NOT CONNECTED, the objects are 0 s old"),
            "{text}"
        );
        let html = status.html(None);
        assert!(html.contains("class=\"state bad\">Degraded"), "{html}");
        assert!(html.contains("connection &lt;refused&gt; (2023-11-14T22:13:20Z)"), "{html}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["healthy"], &json["ready"]), (&false.into(), &true.into()));
        assert_eq!(json["api"]["watches"][0]["connected"], false);
    }

    #[test]
    fn a_start_that_waits_for_the_api_server_is_no_sync_under_way() {
        let health = ProxyHealth::new(Duration::from_secs(30));
        let now = Now { steady: Instant::now(), wall: UNIX_EPOCH };
        health.watching("https://192.0.2.1/", now);
        health.watch(ObjectKind::Node, WatchNews::Failed("connection refused"), now);
        let status = Status::new(now.wall, None, health.readiness(now));
        for text in [status.to_string(), status.html(None)] {
            assert!(
                text.contains("waiting for the API server https://192.0.2.1/: connection refused"),
                "{text}"
            );
            assert!(!text.contains("in the middle of a sync"), "{text}");
        }
    }

    #[test]
    fn the_page_loads_nothing_from_anywhere() {
        let html = status(|_, _| {}).html(None);
        for word in ["http://", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(word), "{word}");
        }
    }
}

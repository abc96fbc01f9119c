//! How the watches of the API server are doing.

use super::{ObjectKind, UtcTime};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What one watch tells of its connection to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchNews<'a> {
    /// The server took the watch, or sent a bookmark: what is known is current.
    Open,
    /// The server has listed everything, or sent a change.
    Event,
    /// A list or a watch has failed; the words of the failure. It is retried.
    Failed(&'a str),
}

/// The connection to the API server, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiConnection {
    /// The server's URL.
    pub server: String,
    /// All watches are open.
    pub connected: bool,
    /// How long ago what is known was last known to be current, in seconds; 0 while all watches are open.
    pub age_seconds: f64,
    /// Every kind of object has been listed once.
    pub listed: bool,
    /// The watches, by the plural names of their resources.
    pub watches: Vec<WatchState>,
}

/// One watch of the API server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchState {
    /// The plural name of the resource, such as `endpointslices`.
    pub resource: String,
    /// The watch is open.
    pub connected: bool,
    /// Since when it is open, or not, in UTC.
    pub since: String,
    /// How long ago that was, in seconds.
    pub since_seconds: f64,
    /// How long it has not been open, in seconds; 0 while it is.
    pub age_seconds: f64,
    /// Everything has been listed once.
    pub listed: bool,
    /// When the server last sent a list, a change or a bookmark, in UTC.
    pub last_event: Option<String>,
    /// How long ago that was, in seconds.
    pub last_event_seconds: Option<f64>,
    /// The words of the last failure.
    pub last_error: Option<String>,
    /// When it was, in UTC.
    pub last_error_time: Option<String>,
}

impl ApiConnection {
    /// Why what is known is not current, as one sentence; `None` while it is.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let lost: Vec<&WatchState> = self.watches.iter().filter(|watch| !watch.connected).collect();
        let first = lost.first()?;
        let resources = lost.iter().map(|watch| watch.resource.as_str()).collect::<Vec<_>>().join(", ");
        let server = &self.server;
        let cause = lost.iter().find_map(|watch| watch.last_error.as_deref());
        Some(match (cause, self.listed) {
            (None, _) => format!("waiting for the API server {server}: no answer yet ({resources})"),
            (Some(cause), false) => format!("waiting for the API server {server}: {cause} ({resources})"),
            (Some(cause), true) => format!(
                "no watch of {resources} at the API server {server} for {:.0} s, since {}: {cause}",
                self.age_seconds,
                UtcTime::without_fraction(&first.since)
            ),
        })
    }
}

/// For people: a line for the server and one for each watch.
impl fmt::Display for ApiConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.connected, self.listed) {
            (true, _) => "connected".to_owned(),
            (false, true) => format!("NOT CONNECTED, the objects are {:.0} s old", self.age_seconds),
            (false, false) => "NOT CONNECTED, nothing is known yet".to_owned(),
        };
        writeln!(f, "API server {} {state}", self.server)?;
        for watch in &self.watches {
            let open = if watch.connected { "open since" } else { "CLOSED since" };
            let since = UtcTime::without_fraction(&watch.since);
            let event = watch.last_event_seconds.map_or_else(|| "never".to_owned(), UtcTime::ago);
            write!(f, "           {:<15}{open} {since}, last event {event}", watch.resource)?;
            if let (Some(error), Some(time)) = (&watch.last_error, &watch.last_error_time) {
                write!(f, ", last error {}: {error}", UtcTime::without_fraction(time))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl ObjectKind {
    /// The kinds without which nothing is programmed in full.
    pub const NEEDED: [ObjectKind; 3] = [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node];

    /// The plural name of the resource, as in URLs.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            ObjectKind::Service => "services",
            ObjectKind::EndpointSlice => "endpointslices",
            ObjectKind::Node => "nodes",
            ObjectKind::ServiceCidr => "servicecidrs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(connected: bool, listed: bool, error: Option<&str>) -> ApiConnection {
        let watch = WatchState {
            resource: "services".to_owned(),
            connected,
            since: "2026-01-02T03:04:05.678Z".to_owned(),
            listed,
            last_error: error.map(str::to_owned),
            last_error_time: error.map(|_| "2026-01-02T03:04:06Z".to_owned()),
            ..WatchState::default()
        };
        ApiConnection {
            server: "https://192.0.2.1:6443/".to_owned(),
            connected,
            age_seconds: if connected { 0.0 } else { 45.2 },
            listed,
            watches: vec![watch],
        }
    }

    #[test]
    fn a_lost_server_is_named_with_its_cause_and_the_age_of_the_objects() {
        let complaint = |connected, listed, error| connection(connected, listed, error).complaint();
        assert_eq!(complaint(true, true, Some("an old error")), None);
        assert_eq!(
            complaint(false, true, Some("connection refused")).as_deref(),
            Some(
                "no watch of services at the API server https://192.0.2.1:6443/ for 45 s, since \
                 2026-01-02T03:04:05Z: connection refused"
            )
        );
        assert_eq!(
            complaint(false, false, Some("connection refused")).as_deref(),
            Some("waiting for the API server https://192.0.2.1:6443/: connection refused (services)")
        );
        let silent = complaint(false, false, None).unwrap();
        assert!(silent.ends_with("no answer yet (services)"), "{silent}");
    }

    #[test]
    fn each_watch_has_a_line() {
        let text = connection(false, true, Some("refused")).to_string();
        assert_eq!(
            text,
            "API server https://192.0.2.1:6443/ NOT CONNECTED, the objects are 45 s old\n           services       \
             CLOSED since 2026-01-02T03:04:05Z, last event never, last error 2026-01-02T03:04:06Z: refused\n"
        );
    }
}

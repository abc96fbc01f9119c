//! What is known of the connection to the API server.

use super::proxy::Now;
use crate::model::{ApiConnection, ObjectKind, UtcTime, WatchNews, WatchState, excerpt};
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

/// The watches of one API server.
#[derive(Debug)]
pub(super) struct Api {
    server: String,
    watches: BTreeMap<ObjectKind, Watch>,
}

#[derive(Debug)]
struct Watch {
    /// Since when it is open, or not.
    since: Now,
    connected: bool,
    listed: bool,
    last_event: Option<Now>,
    last_error: Option<(SystemTime, String)>,
}

impl Api {
    /// Nothing has been asked of the server yet.
    pub(super) fn new(now: Now) -> Self {
        let watch =
            || Watch { since: now, connected: false, listed: false, last_event: None, last_error: None };
        let watches = ObjectKind::NEEDED.into_iter().map(|kind| (kind, watch())).collect();
        Api { server: String::new(), watches }
    }

    /// The server's URL.
    pub(super) fn is_at(&mut self, server: &str) {
        if self.server != server {
            server.clone_into(&mut self.server);
        }
    }

    /// Takes in what a watch says.
    pub(super) fn tell(&mut self, kind: ObjectKind, news: WatchNews<'_>, now: Now) {
        let Some(watch) = self.watches.get_mut(&kind) else { return };
        let connected = !matches!(news, WatchNews::Failed(_));
        if watch.connected != connected {
            (watch.connected, watch.since) = (connected, now);
        }
        match news {
            WatchNews::Open => {}
            WatchNews::Event => (watch.last_event, watch.listed) = (Some(now), true),
            WatchNews::Failed(error) => watch.last_error = Some((now.wall, excerpt(error))),
        }
    }

    /// The same for others to read.
    pub(super) fn view(&self, now: Now) -> ApiConnection {
        let watches: Vec<WatchState> =
            self.watches.iter().map(|(kind, watch)| watch.view(*kind, now)).collect();
        ApiConnection {
            server: self.server.clone(),
            connected: watches.iter().all(|watch| watch.connected),
            age_seconds: watches.iter().map(|watch| watch.age_seconds).fold(0.0, f64::max),
            listed: watches.iter().all(|watch| watch.listed),
            watches,
        }
    }
}

impl Watch {
    fn view(&self, kind: ObjectKind, now: Now) -> WatchState {
        let time = |time| UtcTime::of(time).to_string();
        WatchState {
            resource: kind.plural().to_owned(),
            connected: self.connected,
            since: time(self.since.wall),
            since_seconds: age(self.since.steady, now),
            age_seconds: if self.connected { 0.0 } else { age(self.since.steady, now) },
            listed: self.listed,
            last_event: self.last_event.map(|at| time(at.wall)),
            last_event_seconds: self.last_event.map(|at| age(at.steady, now)),
            last_error: self.last_error.as_ref().map(|(_, error)| error.clone()),
            last_error_time: self.last_error.as_ref().map(|(at, _)| time(*at)),
        }
    }
}

fn age(since: Instant, now: Now) -> f64 {
    now.steady.saturating_duration_since(since).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn moments() -> impl Fn(u64) -> Now {
        let start = Instant::now();
        move |seconds| {
            let passed = Duration::from_secs(seconds);
            Now { steady: start + passed, wall: UNIX_EPOCH + passed }
        }
    }

    #[test]
    fn the_snapshot_ages_from_the_first_failure_until_every_watch_is_open_again() {
        let at = moments();
        let mut api = Api::new(at(0));
        assert_eq!((api.view(at(3)).connected, api.view(at(3)).age_seconds), (false, 3.0));
        for kind in ObjectKind::NEEDED {
            api.tell(kind, WatchNews::Event, at(4));
        }
        let view = api.view(at(100));
        assert!(view.connected && view.listed && view.age_seconds == 0.0, "{view:?}");
        api.tell(ObjectKind::Service, WatchNews::Failed("refused"), at(100));
        api.tell(ObjectKind::Service, WatchNews::Failed("no route"), at(120));
        let view = api.view(at(145));
        assert_eq!((view.connected, view.age_seconds), (false, 45.0));
        assert_eq!(view.watches[0].last_error.as_deref(), Some("no route"));
        assert_eq!(view.watches[0].since, "1970-01-01T00:01:40Z");
        assert_eq!(view.watches[0].last_event.as_deref(), Some("1970-01-01T00:00:04Z"));
        assert!(view.watches[1].connected);
        api.tell(ObjectKind::Service, WatchNews::Open, at(150));
        let view = api.view(at(160));
        assert_eq!((view.connected, view.age_seconds), (true, 0.0));
        assert_eq!(view.watches[0].last_error_time.as_deref(), Some("1970-01-01T00:02:00Z"));
    }
}

//! What the service manager of a node hears of us, where we are a unit of `Type=notify`. Without one, nothing runs.

use crate::health::{Clock, ProxyHealth};
use sd_notify::NotifyState;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How soon the service manager hears of the first sync.
const STARTING: Duration = Duration::from_secs(1);
/// How often it hears of us where it does not say how often it wants to.
const PERIOD: Duration = Duration::from_secs(30);

/// Says when Services are in force, from then on how we are, and feeds the watchdog while we are alive by the
/// rules of `/livez`. Never ends.
pub(super) async fn report(health: Arc<ProxyHealth>, clock: Clock) -> Infallible {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return pending().await;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let period = watchdog.map_or(PERIOD, |limit| limit / 2);
    let mut started = false;
    loop {
        let now = clock();
        let readiness = health.readiness(now);
        started |= readiness.ready;
        let status =
            if readiness.ready { "Services are in force".to_owned() } else { readiness.reasons.join("; ") };
        tell(&states(started, watchdog.filter(|_| health.is_healthy(now)), &status));
        sleep(if started { period } else { STARTING }).await;
    }
}

/// The service manager asks us to end, or we have a reason of our own.
pub(super) fn leaving() {
    tell(&[NotifyState::Stopping]);
}

/// While a start waits, for the API server or for a large first sync, it is given the time of one more watchdog.
fn states<'a>(started: bool, fed: Option<Duration>, status: &'a str) -> Vec<NotifyState<'a>> {
    let mut states = vec![NotifyState::Status(status)];
    if started {
        states.push(NotifyState::Ready);
    }
    if let Some(limit) = fed {
        states.push(NotifyState::Watchdog);
        let micros = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
        states.extend((!started).then_some(NotifyState::ExtendTimeoutUsec(micros)));
    }
    states
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(started: bool, fed: Option<Duration>) -> String {
        states(started, fed, "why").iter().map(|state| format!("{state};")).collect()
    }

    #[test]
    fn a_start_that_lives_gets_more_time_and_a_stuck_one_does_not() {
        let limit = Some(Duration::from_secs(60));
        assert_eq!(said(false, limit), "STATUS=why;WATCHDOG=1;EXTEND_TIMEOUT_USEC=60000000;");
        assert_eq!(said(false, None), "STATUS=why;");
    }

    #[test]
    fn the_watchdog_starves_while_the_loop_is_stuck() {
        assert_eq!(said(true, Some(Duration::from_secs(60))), "STATUS=why;READY=1;WATCHDOG=1;");
        assert_eq!(said(true, None), "STATUS=why;READY=1;");
    }
}

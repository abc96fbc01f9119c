//! What to do and say while something keeps failing.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;
use tokio::time::Instant;

/// How long the same failure is kept out of the log.
const REPEAT: Duration = Duration::from_secs(300);

/// A number from 0 to 1 that differs from process to process and from call to call.
pub(super) fn random() -> f64 {
    let bits = std::hash::RandomState::new().build_hasher().finish() >> 40;
    // 24 bits are exact in either type.
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(1_u32 << 24)
}

/// Pauses that double while they follow each other closely.
pub(super) struct Backoff {
    first: Duration,
    min: Duration,
    max: Duration,
    /// After this time without another pause, and after twice the last one, they start over.
    calm: Duration,
    last: Option<(Instant, Duration)>,
}

impl Backoff {
    /// For attempts after failures.
    pub(super) fn for_retries(min: Duration, max: Duration) -> Self {
        Backoff { first: min, min, max, calm: Duration::ZERO, last: None }
    }

    /// For lists that are due because a watch cannot go on: the first one waits for nothing. A list takes its
    /// time and succeeds, so only a long calm is a sign that watches last.
    pub(super) fn for_lists(min: Duration, max: Duration) -> Self {
        Backoff { first: Duration::ZERO, min, max, calm: 2 * max, last: None }
    }

    /// How long to wait before the next attempt, give or take a quarter, so that a fleet of nodes
    /// does not come back in step.
    pub(super) fn next(&mut self) -> Duration {
        let now = Instant::now();
        let pause = match self.last {
            Some((until, pause)) if now.saturating_duration_since(until) < self.calm.max(2 * pause) => {
                (2 * pause).clamp(self.min, self.max)
            }
            _ => self.first,
        };
        self.last = Some((now + pause, pause));
        pause.mul_f64(0.75 + random() / 2.0)
    }

    /// Starts over, since the server answers again.
    pub(super) fn start_over(&mut self) {
        self.last = None;
    }
}

/// Decides which failures are worth a line in the log.
#[derive(Default)]
pub(super) struct Outage {
    failures: u32,
    said: Option<(String, Instant)>,
}

impl Outage {
    /// Notes a failure. True if it is news: another one than last time, or the same one still
    /// after five minutes.
    pub(super) fn failed(&mut self, what: &str) -> bool {
        self.failures = self.failures.saturating_add(1);
        let known = self.said.as_ref().is_some_and(|(said, when)| said == what && when.elapsed() < REPEAT);
        if !known {
            self.said = Some((what.to_owned(), Instant::now()));
        }
        !known
    }

    /// How many failures there have been in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes that all is well; returns how many failures came before, if any did.
    pub(super) fn over(&mut self) -> Option<u32> {
        self.said = None;
        let failures = std::mem::take(&mut self.failures);
        (failures > 0).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn is_about(pause: Duration, expected: Duration) -> bool {
        pause >= expected.mul_f64(0.75) && pause <= expected.mul_f64(1.25)
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_limit() {
        let mut backoff = Backoff::for_retries(second(1), second(4));
        for expected in [1, 2, 4, 4] {
            let pause = backoff.next();
            assert!(is_about(pause, second(expected)), "{pause:?}");
            tokio::time::sleep(pause).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_start_over_after_a_good_while() {
        let mut backoff = Backoff::for_retries(second(1), second(30));
        for _ in 0..4 {
            tokio::time::sleep(backoff.next()).await;
        }
        tokio::time::sleep(second(60)).await;
        assert!(is_about(backoff.next(), second(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_start_over_with_the_first_answer() {
        let mut backoff = Backoff::for_retries(second(1), second(30));
        for _ in 0..6 {
            tokio::time::sleep(backoff.next()).await;
        }
        backoff.start_over();
        assert!(is_about(backoff.next(), second(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_list_waits_for_nothing_and_the_next_ones_longer_and_longer() {
        let mut lists = Backoff::for_lists(second(1), second(30));
        for expected in [0, 1, 2, 4] {
            let pause = lists.next();
            assert!(is_about(pause, second(expected)), "{pause:?}");
            // A list of a large cluster takes longer than the pause before it.
            tokio::time::sleep(pause + second(10)).await;
        }
        tokio::time::sleep(second(70)).await;
        assert_eq!(lists.next(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_news_once_and_again_after_five_minutes() {
        let mut outage = Outage::default();
        assert!(outage.failed("refused"));
        assert!(!outage.failed("refused"));
        assert!(outage.failed("forbidden"));
        tokio::time::sleep(second(301)).await;
        assert!(outage.failed("forbidden"));
        assert_eq!(outage.over(), Some(4));
        assert_eq!(outage.over(), None);
        assert!(outage.failed("forbidden"));
    }

    #[test]
    fn random_numbers_differ_and_stay_in_bounds() {
        let numbers: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number < 0.5) && numbers.iter().any(|number| *number >= 0.5));
    }
}

//! Watches in a hot loop are held back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Holds back watches that end as soon as they begin: kube starts the next one at once, and a
/// broken proxy in front of the API server would have us run in circles.
pub(super) struct Pace {
    origin: Instant,
    interval: u64,
    burst: u64,
    /// When the allowance will be whole again, in milliseconds after `origin`.
    whole: AtomicU64,
}

impl Pace {
    pub(super) fn new(interval: Duration, burst: u64) -> Self {
        let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Pace { origin: Instant::now(), interval, burst, whole: AtomicU64::new(0) }
    }

    pub(super) async fn wait(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = |whole: u64| whole.max(now).saturating_add(self.interval);
        let earlier =
            self.whole.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |whole| Some(next(whole)));
        let debt = next(earlier.unwrap_or_default()) - now;
        let allowed = self.interval.saturating_mul(self.burst);
        tokio::time::sleep(Duration::from_millis(debt.saturating_sub(allowed))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn watches_in_a_hot_loop_are_held_back_to_the_pace() {
        let pace = Pace::new(Duration::from_secs(1), 5);
        let start = Instant::now();
        for _ in 0..5 {
            pace.wait().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..5 {
            pace.wait().await;
        }
        assert_eq!(start.elapsed().as_secs(), 5);
    }
}

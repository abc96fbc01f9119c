//! Warns of a tool that takes long, as with very large inputs, while it runs.

use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;

/// From this time on, and again when it has doubled.
const FIRST: Duration = Duration::from_secs(30);

/// Waits for work, and says what it is at if it takes long.
pub(super) async fn tell_if_slow<T>(work: impl Future<Output = T>, at: impl Fn() -> String) -> T {
    let mut work = pin!(work);
    let (mut waited, mut next) = (Duration::ZERO, FIRST);
    loop {
        if let Ok(done) = timeout(next, &mut work).await {
            return done;
        }
        waited += next;
        next = waited;
        let at = at();
        tracing::warn!(at, "iptables-restore has been running for {} s", waited.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn slow_work_is_told_of_ever_more_seldom() {
        for (seconds, times) in [(1, 0), (29, 0), (31, 1), (61, 2), (119, 2), (121, 3)] {
            let told = Cell::new(0);
            let at = || {
                told.set(told.get() + 1);
                String::new()
            };
            tell_if_slow(sleep(Duration::from_secs(seconds)), at).await;
            assert_eq!(told.get(), times, "{seconds}");
        }
    }
}

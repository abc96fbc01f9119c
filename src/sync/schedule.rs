//! When a family is synced: the first change at once, then no more often than the minimum period;
//! again, ever more slowly, after a failure. Pure: it is told the time.

use super::runner::Periods;
use std::time::Duration;
use tokio::time::Instant;

/// The first wait after a failure; it doubles up to the sync period.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The kernel is as wanted.
    Well,
    /// It is, but for Services that it newly refuses.
    Refusing,
    /// It is not known to be.
    Failed,
}

/// The passes of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// There is something to do.
    requested: bool,
    /// No pass before this.
    earliest: Instant,
    /// A pass at the latest then; `None` before the first one.
    latest: Option<Instant>,
    /// Passes that failed in a row.
    failures: u32,
    last_full: Instant,
    /// When Services that the kernel refused are tried again, all else being well.
    retry_refused: Option<Instant>,
    /// Full passes in a row in which a Service was refused.
    refusals: u32,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Schedule {
            requested: false,
            earliest: now,
            latest: None,
            failures: 0,
            last_full: now,
            retry_refused: None,
            refusals: 0,
        }
    }

    /// There is something to do.
    pub(super) fn request(&mut self) {
        self.requested = true;
    }

    /// What is in the kernel is wrong: the minimum period does not count.
    pub(super) fn request_now(&mut self, now: Instant) {
        self.requested = true;
        self.earliest = now;
    }

    /// When the next pass is due.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.requested { Some(self.earliest) } else { self.latest.map(|latest| latest.max(self.earliest)) }
    }

    /// No pass has been made yet.
    pub(super) fn is_new(&self) -> bool {
        self.latest.is_none()
    }

    /// The last pass did what was asked for until then.
    pub(super) fn stands(&self) -> bool {
        self.latest.is_some() && self.failures == 0
    }

    /// The last pass did all that was requested.
    pub(super) fn is_synced(&self) -> bool {
        self.stands() && !self.requested
    }

    /// A pass begins; says whether it has to look at everything.
    pub(super) fn begin(&mut self, now: Instant, full: Duration) -> bool {
        self.requested = false;
        let retries = self.retry_refused.is_some_and(|due| due <= now);
        let is_full = retries || now.duration_since(self.last_full) >= full;
        if is_full {
            self.last_full = now;
            self.retry_refused = None;
        }
        is_full
    }

    /// A pass ended.
    pub(super) fn end(&mut self, now: Instant, ended: Ended, periods: &Periods) {
        self.earliest = now + periods.min;
        self.note_refused(now, ended == Ended::Refusing, periods);
        if ended == Ended::Failed {
            let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
            self.failures += 1;
            self.latest = Some(now + doubled.min(periods.sync));
            return;
        }
        self.failures = 0;
        let full = self.last_full + periods.full;
        self.latest = Some(self.retry_refused.map_or(full, |retry| retry.min(full)));
    }

    /// What made the kernel refuse a Service may go away without the Service changing: it is
    /// tried again, ever more seldom.
    fn note_refused(&mut self, now: Instant, refuses: bool, periods: &Periods) {
        if refuses {
            let doubled = periods.sync.saturating_mul(1 << self.refusals.min(16));
            self.refusals += 1;
            self.retry_refused = Some(now + doubled.min(periods.full));
        } else if self.retry_refused.is_none() {
            self.refusals = 0;
        }
    }
}

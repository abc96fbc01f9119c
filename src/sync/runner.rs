//! When to sync: the first change at once, then no more often than the minimum period; at once
//! after the kernel lost something; again, ever more slowly, after a failure.

use super::ask::{self, Identity, Question, Told};
use super::pass::FamilySync;
use super::report::{Outcome, Recorder, SyncReport};
use super::settle::Settlement;
use crate::backend::{Backend, Look};
use crate::model::WatchEvent;
use crate::state::{Changes, Tracker};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often a look is taken at whether the kernel still has our rules. The look costs one small
/// question to the kernel as long as nobody changed anything.
const CHECK_PERIOD: Duration = Duration::from_secs(2);
/// The first wait after a failure; it doubles up to the sync period.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The loop's periods.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// The longest wait between a failed pass and the next (`--iptables-sync-period`).
    pub sync: Duration,
    /// The shortest time between two passes (`--iptables-min-sync-period`).
    pub min: Duration,
    /// How long after a full pass another one is made for good measure (kube-proxy: 1 h).
    pub full: Duration,
}

/// The loop: sole owner of the tracker and of every family's baseline.
pub struct Runner<B: Backend, R> {
    tracker: Tracker,
    families: Vec<FamilySync<B>>,
    periods: Periods,
    recorder: R,
    settlement: Settlement,
    /// Somebody wants a pass.
    requested: bool,
    /// No pass before this.
    earliest: Instant,
    /// A pass at the latest then.
    latest: Option<Instant>,
    /// Passes that failed in a row.
    failures: u32,
    last_full: Instant,
    /// The first look from then on is a thorough one: one in a sync period, whatever it costs, for drift must
    /// not stand longer.
    thorough_from: Instant,
    /// When Services that the kernel refused are tried again, all else being well.
    retry_refused: Option<Instant>,
    /// Full passes in a row in which a Service was refused.
    refusals: u32,
    /// Mode and tools, for those who ask.
    identity: Identity,
    questions: Option<mpsc::Receiver<Question>>,
}

impl<B: Backend, R: Recorder> Runner<B, R> {
    /// A loop that has seen nothing yet.
    pub fn new(tracker: Tracker, families: Vec<FamilySync<B>>, periods: Periods, recorder: R) -> Self {
        let now = Instant::now();
        Runner {
            tracker,
            families,
            periods,
            recorder,
            settlement: Settlement::default(),
            requested: false,
            earliest: now,
            latest: None,
            failures: 0,
            last_full: now,
            thorough_from: now,
            retry_refused: None,
            refusals: 0,
            identity: Identity::default(),
            questions: None,
        }
    }

    /// Answers questions between passes.
    #[must_use]
    pub fn answering(mut self, identity: Identity, questions: mpsc::Receiver<Question>) -> Self {
        (self.identity, self.questions) = (identity, Some(questions));
        self
    }

    /// Says what follows from rules being in force.
    #[must_use]
    pub fn settling(mut self, settlement: Settlement) -> Self {
        self.settlement = settlement;
        self
    }

    /// Runs until the source of events is gone. Whatever is in the kernel stays there.
    pub async fn run(&mut self, events: &mut mpsc::Receiver<WatchEvent>) {
        if self.tracker.is_complete() {
            self.request();
        }
        let mut check = tokio::time::interval(CHECK_PERIOD);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut questions = self.questions.take();
        loop {
            let next = self.next_pass();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.fold(event, events),
                    None => return,
                },
                () = sleep_until(next) => self.sync().await,
                _ = check.tick() => self.check().await,
                question = ask::next(&mut questions) => self.answer(question),
            }
        }
    }

    /// Folds an event and all that wait behind it, so that one pass serves them all.
    fn fold(&mut self, event: WatchEvent, events: &mut mpsc::Receiver<WatchEvent>) {
        self.tracker.fold(event);
        while let Ok(event) = events.try_recv() {
            self.tracker.fold(event);
        }
        let first = self.latest.is_none() && self.failures == 0;
        if self.tracker.is_complete() && (self.tracker.has_changes() || first) {
            self.request();
        }
        let seen = self.tracker.seen();
        self.recorder.seen(seen.services, seen.slices, self.tracker.pending());
        self.recorder.node(&self.tracker.snapshot().node);
    }

    fn answer(&self, question: Question) {
        let told = Told { identity: &self.identity, tracker: &self.tracker, families: &self.families };
        told.answer(question);
    }

    fn request(&mut self) {
        self.requested = true;
        for family in &self.families {
            self.recorder.queued(family.family());
        }
    }

    /// When the next pass is due.
    fn next_pass(&self) -> Option<Instant> {
        if !self.tracker.is_complete() {
            return None;
        }
        if self.requested { Some(self.earliest) } else { self.latest.map(|latest| latest.max(self.earliest)) }
    }

    /// One pass over every family. They are independent: one that fails does not hold up the
    /// other.
    async fn sync(&mut self) {
        self.requested = false;
        let changes = self.tracker.take_changes();
        self.recorder.conflicts(&changes.conflicts);
        self.recorder.claims(&changes.claims);
        self.recorder.doubted(&self.tracker);
        let retry = self.retry_refused.is_some_and(|due| due <= Instant::now());
        if retry || self.last_full.elapsed() >= self.periods.full {
            self.families.iter_mut().for_each(FamilySync::forget);
            self.last_full = Instant::now();
            self.retry_refused = None;
        }
        let (mut failed, mut refused) = (false, false);
        for family in &mut self.families {
            let report = pass(family, &self.tracker, &changes).await;
            failed |= matches!(report.outcome, Outcome::Failed(_));
            self.recorder.passed(&report);
            if let Outcome::Done(applied) = &report.outcome {
                refused |= applied.newly_refused().next().is_some();
                let left_out = applied.refused.iter().map(|refusal| refusal.service.clone()).collect();
                let plan = family.plan(self.tracker.snapshot(), &changes, report.kind);
                let settled = self.settlement.settle(&plan, &left_out).await;
                self.recorder.settled(family.family(), &settled);
            }
        }
        if !failed {
            self.settlement.stands();
        }
        self.schedule_refused(refused);
        self.schedule(failed);
        let seen = self.tracker.seen();
        self.recorder.seen(seen.services, seen.slices, self.tracker.pending());
    }

    /// Every family is as the last changes want it, as far as we know.
    fn is_synced(&self) -> bool {
        self.latest.is_some() && self.failures == 0 && !self.requested
    }

    fn schedule(&mut self, failed: bool) {
        let now = Instant::now();
        self.earliest = now + self.periods.min;
        if failed {
            let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
            self.failures += 1;
            self.latest = Some(now + doubled.min(self.periods.sync));
        } else {
            self.failures = 0;
            let full = self.last_full + self.periods.full;
            self.latest = Some(self.retry_refused.map_or(full, |retry| retry.min(full)));
        }
    }

    /// What made the kernel refuse a Service may go away without the Service changing: it is
    /// tried again, ever more seldom.
    fn schedule_refused(&mut self, refused: bool) {
        if refused {
            let doubled = self.periods.sync.saturating_mul(1 << self.refusals.min(16));
            self.refusals += 1;
            self.retry_refused = Some(Instant::now() + doubled.min(self.periods.full));
        } else if self.retry_refused.is_none() {
            self.refusals = 0;
        }
    }

    /// Looks whether the kernel still has our rules, and the node its addresses; if not, there is
    /// a pass at once.
    async fn check(&mut self) {
        let taken = self.settlement.retry();
        self.recorder.taken(&taken);
        let now = Instant::now();
        let look = if self.thorough_from <= now { Look::Thorough } else { Look::Quick };
        let (mut drifted, mut checked) = (false, self.is_synced());
        for family in &mut self.families {
            match family.addresses_changed() {
                Ok(changed) => drifted |= changed,
                Err(error) => self.recorder.unverified(family.family(), &error),
            }
            match family.verify(look).await {
                Ok(found) => {
                    drifted |= !found.is_empty();
                    self.recorder.verified(family.family(), &found);
                }
                Err(error) => {
                    checked = false;
                    self.recorder.unverified(family.family(), &error);
                }
            }
        }
        if look == Look::Thorough {
            self.thorough_from = now + self.periods.sync.saturating_sub(CHECK_PERIOD);
        }
        if drifted {
            self.request();
            self.earliest = Instant::now();
        } else if checked {
            self.settlement.works();
        }
    }
}

#[cfg(test)]
impl<B: Backend, R> Runner<B, R> {
    /// The only family's dataplane.
    pub(super) fn backend(&mut self) -> &mut B {
        self.families[0].backend()
    }
}

async fn pass<B: Backend>(family: &mut FamilySync<B>, tracker: &Tracker, changes: &Changes) -> SyncReport {
    let start = Instant::now();
    let endpoints = tracker.endpoints(family.family());
    let (kind, outcome) = family.pass(tracker.snapshot(), changes, endpoints).await;
    let done = matches!(outcome, Outcome::Done(_));
    SyncReport {
        family: family.family(),
        kind,
        outcome,
        elapsed: start.elapsed(),
        services: changes.services.len(),
        triggered: if done { std::mem::take(&mut family.triggered) } else { Vec::new() },
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

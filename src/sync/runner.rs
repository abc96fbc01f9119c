//! When to sync: the first change at once, then no more often than the minimum period; at once
//! after the kernel lost something; again, ever more slowly, after a failure.

use super::pass::FamilySync;
use super::post_sync::PostSync;
use super::query::{self, Identity, LoopState, Query};
use super::report::{PassOutcome, Recorder, SyncReport};
use super::schedule::{Ended, Schedule};
use crate::backend::VerifyDepth;
use crate::model::{PerFamily, WatchEvent};
use crate::state::{ChangedObjects, Tracker};
use anyhow::Result;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often each family verifies what it wrote. As long as no other program changed anything, that costs one small
/// question to the kernel.
const VERIFY_PERIOD: Duration = Duration::from_secs(2);
/// The loop's periods.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// The longest wait between a failed pass and the next (`--iptables-sync-period`).
    pub sync: Duration,
    /// The shortest time between two passes (`--iptables-min-sync-period`).
    pub min: Duration,
    /// How long after a full pass another one is made in any case (kube-proxy: 1 h).
    pub full: Duration,
}

/// The loop: sole owner of the tracker and of every family's baseline.
pub struct Runner<R> {
    tracker: Tracker,
    families: Vec<FamilySync>,
    periods: Periods,
    recorder: R,
    post_sync: PostSync,
    /// When each family is synced: each by its own changes, as in kube-proxy.
    schedules: PerFamily<Schedule>,
    /// The first look from then on is a thorough one. There is one in each sync period, whatever it costs, so that no
    /// drift stands longer.
    thorough_from: Instant,
    /// Mode and tools, for those who ask.
    identity: Identity,
    queries: Option<mpsc::Receiver<Query>>,
}

impl<R: Recorder> Runner<R> {
    /// A loop that has seen nothing yet.
    pub fn new(mut tracker: Tracker, families: Vec<FamilySync>, periods: Periods, recorder: R) -> Self {
        let now = Instant::now();
        tracker.serve_only(families.iter().map(FamilySync::family));
        Runner {
            tracker,
            families,
            periods,
            recorder,
            post_sync: PostSync::default(),
            schedules: PerFamily::build(|_| Schedule::new(now)),
            thorough_from: now,
            identity: Identity::default(),
            queries: None,
        }
    }

    /// Answers queries between passes.
    #[must_use]
    pub fn answering(mut self, identity: Identity, queries: mpsc::Receiver<Query>) -> Self {
        (self.identity, self.queries) = (identity, Some(queries));
        self
    }

    /// Says what follows from rules being in force.
    #[must_use]
    pub fn followed_by(mut self, post_sync: PostSync) -> Self {
        self.post_sync = post_sync;
        self
    }

    /// Runs until the source of events is gone. Whatever is in the kernel stays there.
    pub async fn run(&mut self, events: &mut mpsc::Receiver<WatchEvent>) {
        if self.tracker.is_complete() {
            self.request_what_changed();
        }
        self.tell_snapshot();
        let mut verification = tokio::time::interval(VERIFY_PERIOD);
        verification.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut queries = self.queries.take();
        loop {
            let next = self.next_pass();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.fold(event, events),
                    None => return,
                },
                () = sleep_until(next) => self.sync().await,
                _ = verification.tick() => self.verify().await,
                query = query::next(&mut queries) => query(&self.state()),
            }
        }
    }

    /// Folds an event and all that wait behind it, so that one pass serves them all.
    fn fold(&mut self, event: WatchEvent, events: &mut mpsc::Receiver<WatchEvent>) {
        let was_unknown = self.tracker.unknown().is_some();
        self.tracker.fold(event);
        while let Ok(event) = events.try_recv() {
            self.tracker.fold(event);
        }
        if was_unknown && self.tracker.unknown().is_none() {
            self.request_all_now();
        }
        if self.tracker.is_complete() {
            self.request_what_changed();
        }
        self.tell_snapshot();
    }

    fn tell_snapshot(&mut self) {
        self.tell_seen();
        self.recorder.node(&self.tracker.snapshot().node);
        self.recorder.problems(self.tracker.problems());
    }

    fn state(&self) -> LoopState<'_> {
        LoopState { identity: &self.identity, tracker: &self.tracker, families: &self.families }
    }

    /// Asks for a pass over every family that has something to do, or was never synced.
    fn request_what_changed(&mut self) {
        for family in self.families.iter().map(FamilySync::family) {
            let schedule = self.schedules.get_mut(family);
            if schedule.is_new() || self.tracker.has_changes(family) {
                schedule.request();
                self.recorder.queued(family);
            }
        }
    }

    fn request_all_now(&mut self) {
        for family in self.families.iter().map(FamilySync::family) {
            self.schedules.get_mut(family).request_now(Instant::now());
            self.recorder.queued(family);
        }
    }

    fn tell_seen(&mut self) {
        let seen = self.tracker.seen();
        let families = self.families.iter().map(FamilySync::family);
        let slices = families.clone().map(|family| seen.slices.get(family)).sum();
        // Each family of kube-proxy counts all Services.
        let services = seen.services * families.map(|_| 1).sum::<u64>();
        self.recorder.seen(services, slices, self.tracker.pending());
    }

    /// When the next pass is due.
    fn next_pass(&self) -> Option<Instant> {
        if !self.tracker.is_complete() {
            return None;
        }
        self.families.iter().filter_map(|family| self.schedules.get(family.family()).due()).min()
    }

    /// One pass over every family whose time has come. They are independent: a family that fails does not hold
    /// up the other one.
    async fn sync(&mut self) {
        let disputes = self.tracker.take_disputes();
        self.recorder.conflicts(&disputes.conflicts);
        self.recorder.claims(&disputes.claims);
        self.recorder.over_bounds(&disputes.over_bounds);
        self.recorder.doubted(&self.tracker);
        for index in 0..self.families.len() {
            let due = self.schedules.get(self.families[index].family()).due();
            if due.is_some_and(|due| due <= Instant::now()) {
                self.sync_family(index).await;
            }
        }
        if self.families.iter().all(|family| self.schedules.get(family.family()).stands()) {
            self.post_sync.stands();
        }
        self.tell_seen();
    }

    async fn sync_family(&mut self, index: usize) {
        let Runner { families, schedules, tracker, recorder, post_sync, periods, .. } = self;
        let family = &mut families[index];
        let schedule = schedules.get_mut(family.family());
        if schedule.begin(Instant::now(), periods.full) {
            family.forget();
        }
        let mut changes = tracker.take_changes(family.family());
        changes.services.extend(family.take_unfinished());
        let report = pass(family, tracker, &changes).await;
        recorder.passed(&report);
        let (mut ended, mut is_unfinished) = (Ended::Failed, false);
        if let PassOutcome::Done(applied) = &report.outcome {
            is_unfinished = !applied.unfinished.is_empty();
            ended = if applied.newly_refused().next().is_some() { Ended::Refusing } else { Ended::Well };
            let left_out = applied.refused.iter().map(|refusal| refusal.service.clone()).collect();
            let plan = family.plan(tracker.snapshot(), &changes, report.kind);
            let result = post_sync.run(&plan, &left_out).await;
            recorder.post_synced(family.family(), &result);
        }
        schedule.end(Instant::now(), ended, periods);
        if is_unfinished {
            schedule.request_now(Instant::now());
        }
    }

    /// Verifies that the kernel still has what each family wrote, and the node its addresses; if not, there is a
    /// pass at once.
    async fn verify(&mut self) {
        let taken = self.post_sync.retry();
        self.recorder.taken(&taken);
        let now = Instant::now();
        let depth = if self.thorough_from <= now { VerifyDepth::Thorough } else { VerifyDepth::Quick };
        let mut fine = true;
        for family in &mut self.families {
            let schedule = self.schedules.get_mut(family.family());
            fine &= schedule.is_synced();
            match found_changed(family, depth, &mut self.recorder).await {
                Ok(false) => {}
                Ok(true) => {
                    fine = false;
                    schedule.request_now(Instant::now());
                    self.recorder.queued(family.family());
                }
                Err(error) => {
                    fine = false;
                    self.recorder.unverified(family.family(), &error);
                }
            }
        }
        if depth == VerifyDepth::Thorough {
            self.thorough_from = now + self.periods.sync.saturating_sub(VERIFY_PERIOD);
        }
        if fine {
            self.post_sync.works();
        }
    }
}

/// Whether the kernel has something else than we left there, or the node other addresses.
async fn found_changed(
    family: &mut FamilySync,
    depth: VerifyDepth,
    recorder: &mut impl Recorder,
) -> Result<bool> {
    let moved = family.addresses_changed().unwrap_or_else(|error| {
        recorder.unverified(family.family(), &error);
        false
    });
    let found = family.verify(depth).await?;
    recorder.verified(family.family(), &found);
    Ok(moved || !found.is_empty())
}

#[cfg(test)]
impl<R> Runner<R> {
    /// The only family's dataplane.
    pub(super) fn dataplane(&mut self) -> &mut dyn crate::backend::Dataplane {
        self.families[0].dataplane()
    }
}

async fn pass(family: &mut FamilySync, tracker: &Tracker, changes: &ChangedObjects) -> SyncReport {
    let start = Instant::now();
    let (kind, outcome) = family.pass(tracker, changes).await;
    let done = matches!(outcome, PassOutcome::Done(_));
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

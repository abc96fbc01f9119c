//! Telling iptables-restore, and finding out which Service it will not take.

use super::baseline::Baseline;
use super::chains::{Fixed, Holds, JUMPS, TABLES};
use super::desired::Desired;
use super::diff::{Changes, Step};
use super::input::Input;
use super::names::{CANARY, ChainId};
use crate::backend::options::OptionsRefused;
use crate::backend::slow::tell_if_slow;
use crate::backend::{Refusal, jumps};
use crate::kernel::iptables::{Place, RestoreError, Xtables};
use crate::model::ServiceName;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// More refusals than this in one pass mean that something else is wrong.
const MOST_REFUSALS: usize = 100;
/// Lines shown before and after the one that the tool refuses.
const SHOWN_AROUND: usize = 1;

/// The input of one Service alone was not done in time.
#[derive(Debug, thiserror::Error)]
#[error("{service}: {reason}; the next sync leaves it out")]
pub(super) struct TooSlow {
    pub(super) service: ServiceName,
    pub(super) reason: String,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) calls: usize,
    /// Rules written to the nat and to the filter table.
    pub(super) written: [usize; 2],
    pub(super) refused: Vec<Refusal>,
    /// Chains that could not be deleted: somebody else's rules jump to them.
    pub(super) stuck: BTreeSet<ChainId>,
    /// Chains of refused Services that can only be deleted later.
    pub(super) postponed: BTreeSet<ChainId>,
}

/// Carries changes out.
pub(super) async fn run<X: Xtables>(
    tools: &mut X,
    desired: &Desired<'_>,
    (changes, most_chains): (&Changes, usize),
    baseline: &Baseline,
    left_out: &BTreeMap<ServiceName, String>,
) -> Result<Outcome> {
    if changes.set_up {
        set_up(tools).await?;
    }
    let retried: BTreeSet<&ServiceName> = changes.services.iter().map(|change| &change.name).collect();
    let refused = baseline.refused.keys().filter(|name| !retried.contains(name));
    let excluded = refused.chain(left_out.keys()).cloned().collect();
    let steps = changes.steps(most_chains);
    let mut run = Run {
        tools,
        desired,
        changes,
        baseline,
        excluded,
        doomed: BTreeSet::new(),
        outcome: Outcome::default(),
    };
    for step in steps {
        run.step(step).await?;
    }
    run.remove_refused().await?;
    Ok(run.outcome)
}

/// Makes our top-level chains, the jumps to them, and the canaries.
async fn set_up(tools: &mut impl Xtables) -> Result<()> {
    let chains: BTreeSet<(&str, &str)> = JUMPS.iter().map(|jump| (jump.table, jump.to)).collect();
    for (table, chain) in chains {
        tools.ensure_chain(Place { table, chain }).await?;
    }
    jumps::ensure(tools, &JUMPS).await?;
    for table in TABLES {
        tools.ensure_chain(Place { table, chain: CANARY }).await?;
    }
    Ok(())
}

/// Which part of a step an attempt at isolation tries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// The Services' own chains.
    Chains,
    /// Their rules in shared chains.
    Dispatch,
}

struct Run<'r, 'd, X> {
    tools: &'r mut X,
    desired: &'r Desired<'d>,
    changes: &'r Changes,
    baseline: &'r Baseline,
    /// Services that get no rules in shared chains.
    excluded: BTreeSet<ServiceName>,
    /// All chains, old and new, of Services refused in this run.
    doomed: BTreeSet<ChainId>,
    outcome: Outcome,
}

impl<X: Xtables> Run<'_, '_, X> {
    async fn step(&mut self, mut step: Step) -> Result<()> {
        if step.only_deletes() {
            let delete = self.deletions(&step);
            return self.delete(delete).await;
        }
        self.lead_away_from_refused(&mut step);
        let services = self.accepted(step.services.clone());
        match self.send(&step, &services).await {
            Ok(()) => Ok(()),
            Err(error @ RestoreError::Unable { .. }) => {
                tracing::debug!(%error, "trying once more");
                self.send(&step, &services).await.map_err(|error| self.explain(&step, &services, error))
            }
            Err(error @ RestoreError::TimedOut { .. }) => match services[..] {
                [one] => {
                    let service = self.changes.services[one].name.clone();
                    Err(anyhow::Error::new(TooSlow { service, reason: error.to_string() }))
                }
                _ => self.isolate(step, services, error.into()).await,
            },
            // Another writer can get in between (nft has no lock), so a refusal counts twice.
            Err(_) => match self.send(&step, &services).await {
                Ok(()) => Ok(()),
                Err(error) => {
                    let error = self.explain(&step, &services, error);
                    self.isolate(step, services, error).await
                }
            },
        }
    }

    /// A step that comes after the Services' chains also takes away what leads to refused ones:
    /// before that, their old chains cannot go.
    fn lead_away_from_refused(&self, step: &mut Step) {
        let comes_late =
            step.fixed.iter().any(|chain| chain.holds() == Holds::Dispatch) || !step.delete.is_empty();
        if comes_late && !self.outcome.refused.is_empty() {
            step.fixed.extend(dispatch_chains());
        }
    }

    /// Deletes chains that nothing of ours leads to. One that the kernel will not let go stays,
    /// empty.
    async fn delete(&mut self, chains: Vec<ChainId>) -> Result<()> {
        let mut sets = vec![chains];
        while let Some(set) = sets.pop() {
            match self.send_deletions(&set).await {
                Ok(()) => {}
                Err(error @ RestoreError::Unable { .. }) => return Err(error.into()),
                Err(error) if set.len() <= 1 => {
                    tracing::warn!(chains = ?set, %error, "a chain cannot be deleted and stays");
                    self.empty(&set).await?;
                    self.outcome.stuck.extend(set);
                }
                Err(_) => {
                    let (left, right) = set.split_at(set.len() / 2);
                    sets.extend([right.to_vec(), left.to_vec()]);
                }
            }
        }
        Ok(())
    }

    /// Empties chains, so that they do not hold on to others. What makes a chain stay may stand
    /// in the way of this, too.
    async fn empty(&mut self, chains: &[ChainId]) -> Result<(), RestoreError> {
        let declared: String = chains.iter().map(|id| format!(":{id} - [0:0]\n")).collect();
        let at = || format!("emptying {} chains", chains.len());
        match self.restore(std::iter::once(format!("*nat\n{declared}COMMIT\n")), at).await {
            // Refused, it holds what it held, which the next look finds.
            Ok(()) | Err(RestoreError::Refused { .. } | RestoreError::TimedOut { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn send_deletions(&mut self, delete: &[ChainId]) -> Result<(), RestoreError> {
        let input = Input {
            desired: self.desired,
            changes: self.changes,
            baseline: self.baseline,
            step: &Step::default(),
            services: &[],
            delete,
            excluded: &BTreeSet::new(),
        };
        self.restore(input.pieces(), || format!("deleting {} chains", delete.len())).await
    }

    async fn restore(
        &mut self,
        pieces: impl Iterator<Item = String>,
        at: impl Fn() -> String,
    ) -> Result<(), RestoreError> {
        self.outcome.calls += 1;
        let (mut written, mut is_filter) = ([0, 0], false);
        let mut counted = pieces.inspect(|piece| count_rules(piece, &mut is_filter, &mut written));
        tell_if_slow(self.tools.restore(&mut counted), at).await?;
        self.outcome.written[0] += written[0];
        self.outcome.written[1] += written[1];
        Ok(())
    }

    /// Those Services of a range that were not refused before.
    fn accepted(&self, range: std::ops::Range<usize>) -> Vec<usize> {
        range.filter(|index| !self.excluded.contains(&self.changes.services[*index].name)).collect()
    }

    async fn send(&mut self, step: &Step, services: &[usize]) -> Result<(), RestoreError> {
        let excluded = std::mem::take(&mut self.excluded);
        let sent = self.send_excluding(step, services, &excluded).await;
        self.excluded = excluded;
        sent
    }

    async fn send_excluding(
        &mut self,
        step: &Step,
        services: &[usize],
        excluded: &BTreeSet<ServiceName>,
    ) -> Result<(), RestoreError> {
        self.send_of(self.desired, step, services, excluded).await
    }

    async fn send_of(
        &mut self,
        desired: &Desired<'_>,
        step: &Step,
        services: &[usize],
        excluded: &BTreeSet<ServiceName>,
    ) -> Result<(), RestoreError> {
        let delete = self.deletions(step);
        let input = Input {
            desired,
            changes: self.changes,
            baseline: self.baseline,
            step,
            services,
            delete: &delete,
            excluded,
        };
        let changes = self.changes;
        self.restore(input.pieces(), || content(changes, services, &delete)).await
    }

    /// Whether it is options that make the step be refused.
    async fn is_taken_without_options(&mut self, step: &Step, services: &[usize]) -> bool {
        let Some(plain) = self.desired.without_options() else { return false };
        let excluded = self.excluded.clone();
        self.send_of(&plain, step, services, &excluded).await.is_ok()
    }

    fn deletions(&self, step: &Step) -> Vec<ChainId> {
        let all = &self.changes.delete[step.delete.clone()];
        all.iter().filter(|id| !self.doomed.contains(id)).copied().collect()
    }

    /// A step is refused: programs all of it that can be programmed, and finds the Services that
    /// cannot.
    ///
    /// Only when everything is written, and without the tree. Before that the tables may have been
    /// damaged by somebody else, which is no Service's fault and is mended by writing everything.
    async fn isolate(&mut self, step: Step, services: Vec<usize>, error: anyhow::Error) -> Result<()> {
        if !self.changes.is_full {
            return Err(error);
        }
        let has_time = !matches!(error.downcast_ref(), Some(RestoreError::TimedOut { .. }));
        if has_time && self.is_taken_without_options(&step, &services).await {
            return Err(error.context(OptionsRefused));
        }
        if self.changes.nets.is_some() {
            return Err(error);
        }
        tracing::warn!(error = format!("{error:#}"), "input refused; looking for the Service at fault");
        let (dispatch, own) =
            step.fixed.iter().partition::<BTreeSet<_>, _>(|it| it.holds() == Holds::Dispatch);
        if !own.is_empty() {
            self.send(&Step { fixed: own, ..Step::default() }, &[]).await?;
        }
        let chains = Step { services: step.services.clone(), ..Step::default() };
        self.bisect(&chains, services, Trial::Chains).await?;
        let mut rest = Step { fixed: dispatch, services: 0..0, ..step };
        self.lead_away_from_refused(&mut rest);
        if rest.is_empty(self.changes) || self.send(&rest, &[]).await.is_ok() {
            return Ok(());
        }
        let dispatched = |index: &usize| self.changes.services[*index].dispatch;
        let candidates = self.accepted(0..self.changes.services.len()).into_iter().filter(dispatched);
        let candidates: Vec<usize> = candidates.collect();
        if candidates.is_empty() {
            return Err(error);
        }
        self.bisect(&rest, candidates, Trial::Dispatch).await
    }

    /// Tries ever smaller sets of Services; one that fails alone is refused.
    async fn bisect(&mut self, step: &Step, candidates: Vec<usize>, trial: Trial) -> Result<()> {
        let mut untried: BTreeSet<ServiceName> = BTreeSet::new();
        if trial == Trial::Dispatch {
            untried = candidates.iter().map(|index| self.changes.services[*index].name.clone()).collect();
            let without = untried.union(&self.excluded).cloned().collect();
            self.send_excluding(step, &[], &without).await.context("without any of the changed Services")?;
        }
        let mut sets = vec![candidates];
        while let Some(set) = sets.pop() {
            for index in &set {
                untried.remove(&self.changes.services[*index].name);
            }
            let without = untried.union(&self.excluded).cloned().collect();
            let services = if trial == Trial::Chains { set.as_slice() } else { &[] };
            match self.send_excluding(step, services, &without).await {
                Ok(()) => {}
                Err(error @ RestoreError::Unable { .. }) => return Err(error.into()),
                Err(error) if set.len() <= 1 => {
                    let Some(index) = set.first() else { return Err(error.into()) };
                    self.refuse(*index, &error)?;
                }
                Err(_) => {
                    if trial == Trial::Dispatch {
                        untried.extend(set.iter().map(|index| self.changes.services[*index].name.clone()));
                    }
                    let (left, right) = set.split_at(set.len() / 2);
                    sets.extend([right.to_vec(), left.to_vec()]);
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, index: usize, error: &RestoreError) -> Result<()> {
        let change = &self.changes.services[index];
        let old = self.baseline.services.get(&change.name);
        for print in old.into_iter().chain(change.print.as_ref()) {
            self.doomed.extend(print.ids());
        }
        self.excluded.insert(change.name.clone());
        self.outcome.refused.push(Refusal {
            service: change.name.clone(),
            reason: error.to_string(),
            is_new: true,
        });
        if self.outcome.refused.len() > MOST_REFUSALS {
            bail!("more than {MOST_REFUSALS} Services refused, the last with: {error}");
        }
        Ok(())
    }

    /// Deletes what is left of refused Services. Whatever made the kernel refuse them may stand
    /// in the way of this, too.
    async fn remove_refused(&mut self) -> Result<()> {
        if self.doomed.is_empty() {
            return Ok(());
        }
        let dispatch = Step { fixed: dispatch_chains().collect(), ..Step::default() };
        self.send(&dispatch, &[]).await.context("leading away from refused Services")?;
        let mut delete = std::mem::take(&mut self.doomed);
        if self.changes.unfinished.is_subset(&self.excluded) {
            delete.extend(&self.changes.postponed);
            return self.delete(delete.into_iter().collect()).await;
        }
        // What an earlier run left, and stays for now, may jump to them.
        self.outcome.postponed = delete;
        Ok(())
    }

    /// The error with the input lines at fault, which are rendered again for it.
    fn explain(&self, step: &Step, services: &[usize], error: RestoreError) -> anyhow::Error {
        let RestoreError::Refused { line: Some(line), .. } = &error else { return error.into() };
        let delete = self.deletions(step);
        let (desired, changes, baseline) = (self.desired, self.changes, self.baseline);
        let excluded = &self.excluded;
        let input = Input { desired, changes, baseline, step, services, delete: &delete, excluded };
        let shown = lines_around(input.pieces(), *line);
        anyhow::Error::new(error).context(format!("input: {shown}"))
    }
}

/// The lines around one, numbered, joined by " | ".
fn lines_around(pieces: impl Iterator<Item = String>, line: usize) -> String {
    let mut shown = Vec::new();
    let mut number = 0;
    for piece in pieces {
        for text in piece.lines() {
            number += 1;
            if number + SHOWN_AROUND >= line && number <= line + SHOWN_AROUND {
                shown.push(format!("{number}: {text}"));
            }
        }
    }
    shown.join(" | ")
}

/// What an input is about.
fn content(changes: &Changes, services: &[usize], delete: &[ChainId]) -> String {
    let size = |index: &usize| changes.services[*index].write.len();
    let deleted = if delete.is_empty() { String::new() } else { format!(", deleting {}", delete.len()) };
    let Some(largest) = services.iter().max_by_key(|index| size(index)) else {
        return format!("the shared chains{deleted}");
    };
    format!(
        "{} chains of {} Services, of which {} has {}{deleted}",
        services.iter().map(size).sum::<usize>(),
        services.len(),
        changes.services[*largest].name,
        size(largest),
    )
}

/// The shared chains that hold rules of Services.
fn dispatch_chains() -> impl Iterator<Item = Fixed> {
    Fixed::all().filter(|chain| chain.holds() == Holds::Dispatch)
}

/// Counts the rules in a piece of an input, by table.
fn count_rules(piece: &str, is_filter: &mut bool, written: &mut [usize; 2]) {
    for line in piece.lines() {
        if line.starts_with('*') {
            *is_filter = line == "*filter";
        }
        written[usize::from(*is_filter)] += usize::from(line.starts_with("-A "));
    }
}

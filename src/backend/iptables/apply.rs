//! Telling iptables-restore, and finding out which Service it will not take.

use super::baseline::Baseline;
use super::chains::{JUMPS, TABLES};
use super::desired::Desired;
use super::diff::{Changes, Step};
use super::names::{CANARY, ChainId};
use super::restore_input::{self, RestoreInput};
use crate::backend::jumps;
use crate::backend::options::OptionsRefused;
use crate::backend::quarantine::Quarantine;
use crate::backend::restore::Restored;
use crate::kernel::iptables::{Place, RestoreError, TRIAL, Xtables};
use crate::model::ServiceName;
use anyhow::Result;
use std::collections::BTreeSet;

/// Lines shown before and after the one that the tool refuses.
const SHOWN_AROUND: usize = 1;

/// What the runs of a pass did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) restored: Restored,
    /// Chains that could not be deleted: rules of another process jump to them.
    pub(super) stuck: BTreeSet<ChainId>,
    /// What the current run wrote, or may have written.
    pub(super) inputs: Vec<Step>,
    /// Options are not what makes inputs be refused.
    has_tried_options: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All of it took effect.
    Done,
    /// The kernel refuses Services that were not known to be refused.
    Refused,
    /// An input was refused, and the tables may not be as the baseline says.
    Doubtful,
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

/// Carries changes out.
pub(super) struct Run<'r, 'd, X> {
    pub(super) tools: &'r mut X,
    pub(super) desired: &'r Desired<'d>,
    pub(super) changes: &'r Changes,
    pub(super) baseline: &'r Baseline,
    pub(super) quarantine: &'r mut Quarantine,
    pub(super) outcome: &'r mut Outcome,
    /// The tables are known to be as the baseline says, so that a refusal is the fault of what is written.
    pub(super) is_verified: bool,
}

impl<'r, X: Xtables> Run<'r, '_, X> {
    /// Sends input by input. One that is refused is cut into smaller ones, until each is taken or is about one Service or
    /// one chain. Once a Service is refused, nothing is written but Services' chains: what leads to them comes with the
    /// next run, which does without the Service.
    pub(super) async fn run(mut self, most_chains: usize) -> Result<End> {
        if self.changes.set_up {
            set_up(self.tools).await?;
        }
        self.outcome.inputs.clear();
        let known = self.quarantine.len();
        let mut open = self.changes.steps(most_chains);
        open.reverse();
        while let Some(step) = open.pop().filter(|it| self.quarantine.len() == known || it.only_services()) {
            let Err(error) = self.send(&step).await else {
                self.outcome.inputs.push(step);
                continue;
            };
            // The filter table takes effect before the nat table is refused.
            self.outcome.inputs.push(Step { fixed: step.fixed.clone(), ..Step::default() });
            if matches!(error, RestoreError::Refused { .. }) && !self.is_verified {
                let input = self.shown(&step, &error);
                tracing::warn!(%error, input, "input refused; comparing the tables with what was written");
                return Ok(End::Doubtful);
            }
            let error = self.suspect_options(&step, error).await?;
            match self.changes.halves(&step) {
                steps if steps.len() > 1 => open.extend(steps.into_iter().rev()),
                _ => self.give_up(&step, error).await?,
            }
        }
        Ok(if self.quarantine.len() == known { End::Done } else { End::Refused })
    }

    async fn send(&mut self, step: &Step) -> Result<(), RestoreError> {
        let (desired, changes, baseline) = (self.desired, self.changes, self.baseline);
        let input = RestoreInput { desired, changes, baseline, step };
        self.outcome.restored.send(self.tools, || input.pieces(), || content(changes, step)).await
    }

    async fn send_without_options(&mut self, plain: &Desired<'_>, step: &Step) -> Result<(), RestoreError> {
        let (changes, baseline) = (self.changes, self.baseline);
        let input = RestoreInput { desired: plain, changes, baseline, step };
        self.outcome.restored.send_once(self.tools, input.pieces(), || content(changes, step)).await
    }

    /// Sends an input of one piece that is no step.
    async fn send_text(&mut self, text: String, about: impl Fn() -> String) -> Result<(), RestoreError> {
        self.outcome.restored.send_once(self.tools, std::iter::once(text), about).await
    }

    /// Before anything else is suspected of having made an input be refused, it is tried without options.
    ///
    /// # Errors
    /// When it is taken so, or the tool cannot do its work.
    async fn suspect_options(&mut self, step: &Step, error: RestoreError) -> Result<RestoreError> {
        match &error {
            RestoreError::Unable { .. } => return Err(error.into()),
            RestoreError::TimedOut { .. } => {
                tracing::warn!(%error, input = content(self.changes, step), "input too slow; looking for the cause");
                return Ok(error);
            }
            RestoreError::Refused { .. } => {}
        }
        if step.only_deletes() || std::mem::replace(&mut self.outcome.has_tried_options, true) {
            return Ok(error);
        }
        tracing::warn!(%error, input = self.shown(step, &error), "input refused; looking for the cause");
        if let Some(plain) = self.desired.without_options()
            && self.send_without_options(&plain, step).await.is_ok()
        {
            return Err(anyhow::Error::new(error).context(OptionsRefused));
        }
        Ok(error)
    }

    /// An input that cannot be cut is refused: does without what it is about.
    async fn give_up(&mut self, step: &Step, error: RestoreError) -> Result<()> {
        if step.only_deletes() {
            let stuck = &self.changes.delete[step.delete.clone()];
            tracing::warn!(chains = ?stuck, %error, "a chain cannot be deleted and stays");
            self.outcome.stuck.extend(stuck);
            return Ok(self.empty(stuck).await?);
        }
        if let [index] = step.services[..] {
            return self.quarantine.add(&self.changes.services[index].name, &error.to_string());
        }
        let known = self.quarantine.len();
        self.try_dispatch().await?;
        if self.quarantine.len() > known {
            return Ok(());
        }
        let shown = self.shown(step, &error);
        Err(anyhow::Error::new(error).context(format!("input: {shown}")))
    }

    /// Empties chains, so that they do not refer to other chains. What makes a chain stay may stand
    /// in the way of this, too.
    async fn empty(&mut self, chains: &[ChainId]) -> Result<(), RestoreError> {
        let declared: String = chains.iter().map(|id| format!(":{id} - [0:0]\n")).collect();
        let at = || format!("emptying {} chains", chains.len());
        match self.send_text(format!("*nat\n{declared}COMMIT\n"), at).await {
            // Refused, it holds what it held, which the next verification finds.
            Ok(()) | Err(RestoreError::Refused { .. } | RestoreError::TimedOut { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Finds the Services whose rules in dispatch chains are refused, in a chain that nothing leads to: their traffic
    /// goes on meanwhile.
    async fn try_dispatch(&mut self) -> Result<()> {
        let mut open = vec![self.suspects()];
        while let Some(set) = open.pop().filter(|set| !set.is_empty()) {
            match (self.try_rules(&set).await, &set[..]) {
                (Ok(()), _) => {}
                (Err(error @ RestoreError::Unable { .. }), _) => return Err(error.into()),
                (Err(error), [service]) => self.quarantine.add(service, &error.to_string())?,
                (Err(_), _) => {
                    let (left, right) = set.split_at(set.len() / 2);
                    open.extend([right.to_vec(), left.to_vec()]);
                }
            }
        }
        Ok(self.try_rules(&[]).await?)
    }

    /// The Services whose rules in dispatch chains may be refused: those whose rules there change; in a full sync all, since
    /// a chain that differs is written with the rules of every Service.
    fn suspects(&self) -> Vec<&'r ServiceName> {
        let (changes, desired) = (self.changes, self.desired);
        let names: Vec<_> = match changes.is_full {
            true => desired.services.iter().map(|(name, _)| name).collect(),
            false => changes.services.iter().filter(|it| it.dispatch).map(|it| &it.name).collect(),
        };
        names.into_iter().filter(|name| !changes.withheld.contains(*name)).collect()
    }

    async fn try_rules(&mut self, services: &[&ServiceName]) -> Result<(), RestoreError> {
        let trial = restore_input::trial(self.desired, TRIAL, services);
        let at = || format!("trying rules that lead to {} Services", services.len());
        self.send_text(trial, at).await
    }

    /// The lines at fault, which are rendered again for it, or what the input is about.
    fn shown(&self, step: &Step, error: &RestoreError) -> String {
        let (desired, changes, baseline) = (self.desired, self.changes, self.baseline);
        match error {
            RestoreError::Refused { line: Some(line), .. } => {
                lines_around(RestoreInput { desired, changes, baseline, step }.pieces(), *line)
            }
            _ => content(changes, step),
        }
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
fn content(changes: &Changes, step: &Step) -> String {
    let deleted =
        if step.delete.is_empty() { String::new() } else { format!(", deleting {}", step.delete.len()) };
    let services = || step.services.iter().map(|index| &changes.services[*index]);
    let Some(largest) = services().max_by_key(|service| service.write.len()) else {
        return format!("the shared chains{deleted}");
    };
    format!(
        "{} chains of {} Services, of which {} has {}{deleted}",
        services().map(|service| service.write.len()).sum::<usize>(),
        step.services.len(),
        largest.name,
        largest.write.len(),
    )
}

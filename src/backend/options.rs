//! Parts of rules that change no packet's way. Where tools or kernel refuse one, rules are written without it, because
//! with it a whole input is refused.

use crate::kernel::iptables::{RestoreError, RuleKind, Trial, Xtables, refused};
use std::collections::BTreeSet;
use std::fmt;

/// An input was refused, and taken without the options in its rules.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionsRefused;

impl fmt::Display for OptionsRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is taken without counters and --random-fully, so the next sync leaves these out")
    }
}

/// Which options are left out of the rules.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// Those that were refused when they were last tried; `None` when they have to be tried.
    refused: Option<BTreeSet<&'static str>>,
    /// Why an input was refused that was taken without options.
    suspicion: Option<String>,
    told: BTreeSet<&'static str>,
}

impl Options {
    /// Tries those that are wanted, unless they are known. Each that is left out is logged once.
    ///
    /// # Errors
    /// When the tool cannot do its work.
    pub(super) async fn find_out(
        &mut self,
        tools: &mut impl Xtables,
        (wanted, trial): (&[RuleKind], Trial),
    ) -> Result<(), RestoreError> {
        if self.refused.is_some() {
            return Ok(());
        }
        let mut found = refused(tools, wanted, trial).await?;
        if let Some(reason) = self.suspicion.take().filter(|_| found.is_empty()) {
            // By itself each is taken.
            found = wanted.iter().map(|kind| (*kind, reason.clone())).collect();
        }
        for (kind, reason) in &found {
            if self.told.insert(kind.name) {
                tracing::warn!(
                    option = kind.name,
                    reason,
                    "rules are written without this option: {}",
                    kind.need.words()
                );
            }
        }
        self.refused = Some(found.iter().map(|(kind, _)| kind.name).collect());
        Ok(())
    }

    /// Rules may have it.
    pub(super) fn allow(&self, kind: &RuleKind) -> bool {
        self.refused.as_ref().is_none_or(|refused| !refused.contains(kind.name))
    }

    /// A pass failed: what was taken before has to be tried again.
    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        self.refused = None;
        self.suspicion = error.is::<OptionsRefused>().then(|| format!("{error:#}"));
    }
}

//! Services that the kernel refuses.
//!
//! A plan is made without them, as if they did not exist, so that the ordinary comparison takes away what stood of them,
//! until they change or everything is compared again.

use super::Refusal;
use crate::model::ServiceName;
use crate::plan::{Plan, Scope};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// More refusals than this in one pass mean that something else is wrong.
const MOST_REFUSALS: usize = 100;

/// The Services of one family that the kernel refuses.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// With the kernel's or the tool's words.
    reasons: BTreeMap<ServiceName, String>,
    /// Those that this pass tried.
    new: BTreeSet<ServiceName>,
}

impl Quarantine {
    /// A pass begins: it tries the Services in its scope.
    pub(super) fn begin(&mut self, plan: &Plan<'_>) {
        self.new.clear();
        match plan.scope() {
            Scope::All => self.reasons.clear(),
            Scope::Only(names) => self.reasons.retain(|name, _| !names.contains(name)),
        }
    }

    /// The kernel refuses a Service.
    ///
    /// # Errors
    /// When this pass found more than 100 such Services.
    pub(super) fn add(&mut self, service: &ServiceName, reason: &str) -> Result<()> {
        if self.new.insert(service.clone()) {
            self.reasons.insert(service.clone(), reason.to_owned());
        }
        if self.new.len() > MOST_REFUSALS {
            bail!("more than {MOST_REFUSALS} Services refused, the last with: {reason}");
        }
        Ok(())
    }

    /// The Services to leave out.
    pub(super) fn names(&self) -> BTreeSet<ServiceName> {
        self.reasons.keys().cloned().collect()
    }

    /// How many Services there are.
    pub(super) fn len(&self) -> usize {
        self.reasons.len()
    }

    /// What to report of a pass.
    pub(super) fn refusals(&self) -> Vec<Refusal> {
        let refusal = |(service, reason): (&ServiceName, &String)| Refusal {
            service: service.clone(),
            reason: reason.clone(),
            is_new: self.new.contains(service),
        };
        self.reasons.iter().map(refusal).collect()
    }
}

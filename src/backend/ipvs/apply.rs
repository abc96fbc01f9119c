//! Telling the kernel.

use super::Kernel;
use super::cleanup;
use super::desired::Fact;
use super::diff::{Changes, Object};
use super::names::{INTERFACE, SetId};
use super::restore_input;
use crate::backend::jumps;
use crate::backend::restore::Restored;
use crate::kernel::ipset::SetSpec;
use crate::kernel::iptables::{RestoreError, Xtables};
use crate::kernel::ipvs::{Reason, Refused as RefusedServer};
use crate::model::{IpFamily, ServerOperation};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Operations per call; between two calls other tasks of the program get their turn.
const MOST_OPERATIONS: usize = 2048;

/// Something the kernel does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) object: Object,
    /// What was asked and why not, in the kernel's words.
    pub(super) reason: String,
    /// The object exists, but the kernel did not list it: no Service's fault.
    pub(super) was_unseen: bool,
}

/// A node's hands, and how they are to be used.
pub(super) struct Apply<'a, X> {
    pub(super) tools: &'a mut X,
    pub(super) kernel: &'a mut Kernel,
    pub(super) family: IpFamily,
    pub(super) upstream_compat: bool,
    /// Schedulers that turn out to be missing are added.
    pub(super) missing_schedulers: &'a mut BTreeSet<Arc<str>>,
    /// Requests to the kernel.
    pub(super) requests: usize,
    pub(super) restored: Restored,
}

pub(super) fn set_spec(id: SetId, name: &str, family: IpFamily) -> SetSpec<'_> {
    SetSpec { name, kind: id.kind(), family }
}

impl<X: Xtables> Apply<'_, X> {
    /// Carries changes out, in the order of the fields of `Changes` and past refusals, which it
    /// returns.
    pub(super) async fn run(&mut self, changes: &Changes) -> Result<Vec<Refused>> {
        let mut refused = Vec::new();
        if changes.set_up {
            self.set_up()?;
        }
        for (id, entries) in &changes.add_entries {
            self.requests += 1;
            let no = self.kernel.sets.add(set_spec(*id, &id.name(self.family), self.family), entries)?;
            refused
                .extend(no.into_iter().map(|(entry, reason)| refused_fact(Fact::Entry(*id, entry), reason)));
        }
        if let Some(rules) = &changes.rules {
            self.restore(rules).await?;
        }
        if changes.set_up {
            self.jump().await?;
        }
        refused.extend(self.operate(&changes.servers).await?);
        self.requests +=
            usize::from(!changes.add_addresses.is_empty() || !changes.delete_addresses.is_empty());
        let links = &mut self.kernel.links;
        let no = links.change_addresses(INTERFACE, &changes.add_addresses, &changes.delete_addresses)?;
        refused.extend(no.into_iter().map(|(address, reason)| refused_fact(Fact::Address(address), reason)));
        refused.extend(self.operate(&changes.removed).await?);
        for (id, entries) in &changes.delete_entries {
            self.requests += 1;
            self.kernel.sets.delete(set_spec(*id, &id.name(self.family), self.family), entries)?;
        }
        Ok(refused)
    }

    /// Makes the sets, which rules name, and the interface.
    fn set_up(&mut self) -> Result<()> {
        for id in SetId::in_use(self.upstream_compat) {
            self.kernel.sets.ensure(set_spec(id, &id.name(self.family), self.family))?;
        }
        self.kernel.links.ensure_dummy(INTERFACE)?;
        Ok(())
    }

    /// Leads packets into our chains, which restoring the rules has made, and no longer into those that are not
    /// wanted any more.
    async fn jump(&mut self) -> Result<()> {
        jumps::ensure(self.tools, restore_input::jumps(self.upstream_compat)).await?;
        if self.upstream_compat {
            cleanup::remove_additions(self.tools, self.kernel, self.family).await?;
        }
        Ok(())
    }

    async fn restore(&mut self, rules: &str) -> Result<()> {
        let input = || std::iter::once(rules.to_owned());
        let sent = self.restored.send(self.tools, input, || "the rules of IPVS mode".to_owned()).await;
        sent.map_err(|error| {
            let line = match &error {
                RestoreError::Refused { line: Some(line), .. } => rules.lines().nth(line.saturating_sub(1)),
                _ => None,
            };
            match line.map(str::to_owned) {
                Some(line) => anyhow::Error::new(error).context(format!("iptables rule: {line}")),
                None => error.into(),
            }
        })
    }

    async fn operate(&mut self, operations: &[ServerOperation]) -> Result<Vec<Refused>> {
        let mut refused = Vec::new();
        for chunk in operations.chunks(MOST_OPERATIONS) {
            self.requests += 1;
            let no = self.kernel.servers.run(chunk).context("programming virtual servers")?;
            refused.extend(no.into_iter().filter(|no| !is_done_already(no, chunk)));
            tokio::task::yield_now().await;
        }
        self.note_missing_schedulers(&refused, operations);
        let refusal = |it: RefusedServer| Refused {
            object: Object::Server(it.frontend),
            was_unseen: it.reason == Reason::Exists,
            reason: it.message,
        };
        Ok(refused.into_iter().map(refusal).collect())
    }

    /// Services that ask for a scheduler that the kernel lacks get the default next time.
    fn note_missing_schedulers(&mut self, refused: &[RefusedServer], operations: &[ServerOperation]) {
        for refused in refused.iter().filter(|it| it.reason == Reason::NoSuchScheduler) {
            let asked_for = operations.iter().find_map(|operation| match operation {
                ServerOperation::Add(at, with) | ServerOperation::Update(at, with)
                    if *at == refused.frontend =>
                {
                    Some(&with.scheduler.name)
                }
                _ => None,
            });
            if let Some(name) = asked_for
                && self.missing_schedulers.insert(name.clone())
            {
                tracing::error!(
                    scheduler = %name,
                    "the kernel has no such IPVS scheduler (module ip_vs_{name}); its Services use the default one"
                );
            }
        }
    }
}

fn refused_fact(fact: Fact, reason: String) -> Refused {
    Refused { object: Object::Fact(fact), reason, was_unseen: false }
}

/// What was to go is gone.
fn is_done_already(refused: &RefusedServer, operations: &[ServerOperation]) -> bool {
    refused.is_missing()
        && operations.iter().any(|operation| match operation {
            ServerOperation::Remove(at) | ServerOperation::RemoveReal(at, _) => *at == refused.frontend,
            _ => false,
        })
        && !operations.iter().any(|operation| match operation {
            ServerOperation::Add(at, _) | ServerOperation::AddReal(at, _) => *at == refused.frontend,
            _ => false,
        })
}

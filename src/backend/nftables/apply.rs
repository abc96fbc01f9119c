//! Telling the kernel: a few hundred Services at a time, then rules, then what is to go.

use super::baseline::Baseline;
use super::desired::ServiceElements;
use super::diff::{Change, Writes};
use super::element::{Content, ElementId, with_wire};
use super::layout::{Item, Layout};
use super::meters::is_counted;
use super::names::SetId;
use super::observe;
use super::watched::Watched;
use crate::kernel::nftables::Ruleset;
use crate::model::ServiceName;
use anyhow::{Context, Result, anyhow};
use nftables_rs::{Batch, Error, Operation, Refused, TableName, Value};
use std::collections::BTreeSet;

/// Where anybody listens to nf_tables' events, the kernel holds 8 KB for each changed element until a transaction is done.
const MOST_SERVICES: usize = 500;
const MOST_ELEMENTS: usize = 3_500;

/// More chains than these are not flushed one by one.
const MOST_CHAINS: usize = 500;

/// More refused Services than this in one pass mean that something else is wrong.
const MOST_REFUSALS: usize = 100;

/// So often a transaction is tried on top of what others have done meanwhile; then whatever they do.
const ATTEMPTS: usize = 3;

/// The kernel does not have what it was believed to have.
#[derive(Debug, thiserror::Error)]
#[error("the table is not as it was left: {0}")]
pub(super) struct Surprise(String);

/// Whose elements the kernel refused.
enum Blame {
    /// These changes', with the kernel's words.
    Changes(Vec<(usize, String)>),
    /// It does not say: before Linux 5.19 (b53c11664250, in 5.15.165 as well), no element is named.
    Unnamed(String),
}

/// One pass's writes.
pub(super) struct Writing<'a, K> {
    pub(super) kernel: &'a mut K,
    pub(super) table: TableName<'static>,
    pub(super) watched: &'a mut Watched,
    pub(super) baseline: &'a mut Baseline,
    /// What is there was just compared with what is believed: a refusal is the Service's.
    pub(super) is_sure: bool,
    pub(super) batch: Batch,
    pending: Vec<Change>,
    pending_elements: usize,
    pub(super) calls: usize,
    /// Elements written.
    pub(super) written: usize,
    pub(super) refused: Vec<(ServiceName, String)>,
    /// Elements that count, written now: they begin at zero.
    pub(super) counted: BTreeSet<ElementId>,
    /// Affinity does not lead to some endpoint any more.
    pub(super) is_affinity_lost: bool,
    /// Transactions that should have deleted chains of an earlier proxy and were refused.
    pub(super) failed_sweeps: usize,
}

impl<'a, K: Ruleset> Writing<'a, K> {
    pub(super) fn new(
        kernel: &'a mut K,
        table: TableName<'static>,
        (watched, baseline): (&'a mut Watched, &'a mut Baseline),
        is_sure: bool,
    ) -> Self {
        Writing {
            kernel,
            table,
            watched,
            baseline,
            is_sure,
            batch: Batch::new(),
            pending: Vec::new(),
            pending_elements: 0,
            calls: 0,
            written: 0,
            refused: Vec::new(),
            counted: BTreeSet::new(),
            is_affinity_lost: false,
            failed_sweeps: 0,
        }
    }

    /// Notes what a Service needs of the structure.
    pub(super) fn need(&mut self, elements: Option<&ServiceElements>) {
        elements.into_iter().for_each(|elements| self.baseline.structure.need(elements));
    }

    /// Takes a change; says whether there are enough for a transaction.
    pub(super) fn push(&mut self, change: Change) -> bool {
        self.pending_elements += change.len();
        self.pending.push(change);
        let is_enough = self.pending.len() >= MOST_SERVICES || self.pending_elements >= MOST_ELEMENTS;
        // What replaces the whole table has to do so at once.
        is_enough && !self.baseline.structure.is_unfit
    }

    /// Writes what was taken. What Services share and none of them has any more goes with the last of them.
    pub(super) fn flush(&mut self, layout: &Layout, is_last: bool) -> Result<()> {
        self.pending_elements = 0;
        let changes = std::mem::take(&mut self.pending);
        self.write(changes, layout, is_last)
    }

    /// The same of these. What is too much for the kernel's memory is written in halves.
    fn write(&mut self, mut changes: Vec<Change>, layout: &Layout, is_last: bool) -> Result<()> {
        let (added, deleted) = loop {
            let mut writes = Writes::of(&changes, self.baseline);
            if is_last {
                writes.finish(&changes, self.baseline);
            }
            self.batch.clear();
            self.prepare(layout);
            write_elements(&mut self.batch, self.table, &writes);
            if self.baseline.structure.is_unfit {
                write_rules(&mut self.batch, layout);
            }
            if self.batch.is_empty() {
                break (Vec::new(), Vec::new());
            }
            match self.commit() {
                Ok(()) => {
                    self.written += writes.add.len() + writes.delete.len();
                    self.counted.extend(writes.add.iter().map(|(id, ..)| *id).filter(is_counted));
                    self.is_affinity_lost |= loses_affinity(&writes);
                    break (writes.added_hairpins().collect(), writes.deleted_hairpins().collect());
                }
                Err(error) if is_short_of_memory(&error) && self.can_halve(&changes) => {
                    tracing::warn!(%error, services = changes.len(), "a transaction is written in halves");
                    return self.write_halves(changes, layout, is_last);
                }
                Err(error) if is_short_of_memory(&error) => return Err(error.into()),
                Err(Error::Refused(refused)) => {
                    let guilty = match self.blame(&refused, &writes)? {
                        Blame::Changes(guilty) => guilty,
                        Blame::Unnamed(_) if self.can_halve(&changes) => {
                            return self.write_halves(changes, layout, is_last);
                        }
                        Blame::Unnamed(reason) => vec![(0, reason)],
                    };
                    self.leave_out(&mut changes, &guilty)?;
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.note_structure(layout);
        changes.into_iter().for_each(|change| change.commit(self.baseline));
        for key in added {
            self.baseline.hairpins.entry(key).or_default().is_there = true;
        }
        for key in deleted {
            self.baseline.hairpins.remove(&key);
        }
        Ok(())
    }

    fn write_halves(&mut self, mut changes: Vec<Change>, layout: &Layout, is_last: bool) -> Result<()> {
        let rest = changes.split_off(changes.len() / 2);
        self.write(changes, layout, false)?;
        self.write(rest, layout, is_last)
    }

    /// What replaces the whole table has to do so at once.
    fn can_halve(&self, changes: &[Change]) -> bool {
        changes.len() > 1 && !self.baseline.structure.is_unfit
    }

    /// Which changes the kernel refused, and its words.
    fn blame(&self, refused: &[Refused], writes: &Writes<'_>) -> Result<Blame> {
        let mut guilty = Vec::new();
        for refused in refused {
            let is_of_others =
                matches!(refused.errno, libc::EEXIST | libc::ENOENT) || self.watched.is_compare_due;
            let is_unseen = is_of_others && !self.is_sure;
            let owner = refused.element.and_then(|number| writes.owner(number));
            match (refused.operation, owner) {
                (Some(Operation::AddElements), Some(index)) if !is_unseen => {
                    guilty.push((index, words(refused, writes)));
                }
                (Some(Operation::AddElements), None) if refused.element.is_none() && self.is_sure => {
                    return Ok(Blame::Unnamed(words(refused, writes)));
                }
                _ => return Err(Surprise(words(refused, writes)).into()),
            }
        }
        Ok(Blame::Changes(guilty))
    }

    fn leave_out(&mut self, changes: &mut [Change], guilty: &[(usize, String)]) -> Result<()> {
        for (index, reason) in guilty {
            if let Some(change) = changes.get_mut(*index) {
                change.take_back();
                self.refused.push((change.name.clone(), reason.clone()));
            }
        }
        if self.refused.len() > MOST_REFUSALS {
            let reasons = self.refused.iter().take(3).map(|(_, reason)| reason.as_str());
            let reasons: Vec<&str> = reasons.collect();
            return Err(anyhow!("more than {MOST_REFUSALS} Services refused: {}", reasons.join("; ")));
        }
        Ok(())
    }

    /// Adds to a transaction what its elements need.
    fn prepare(&mut self, layout: &Layout) {
        let structure = &self.baseline.structure;
        if structure.is_unfit {
            self.batch.delete_table(self.table);
        }
        if structure.is_unfit || !structure.is_there {
            self.batch.add_table(&layout.table());
        }
        for id in layout.sets.iter().filter(|id| !structure.sets.contains(id)) {
            layout.with_set(*id, |set| self.batch.add_set(set));
        }
    }

    fn note_structure(&mut self, layout: &Layout) {
        let structure = &mut self.baseline.structure;
        if std::mem::take(&mut structure.is_unfit) {
            structure.rules = Some(layout.settings.clone());
            structure.surplus_sets.clear();
            structure.surplus_chains.clear();
        }
        structure.sets.extend(&layout.sets);
        structure.is_there = true;
    }

    /// Becomes the owner of a table that has none and is to have one. Makes a table that is not there, with all but what hangs on
    /// hooks, so that no packet comes to it. When a rule is added that looks a map up, the kernel goes through all of the map's
    /// elements; now there are none.
    pub(super) fn begin(&mut self, layout: &Layout) -> Result<()> {
        if std::mem::take(&mut self.baseline.structure.is_orphan) {
            self.batch.clear();
            self.batch.add_table(&layout.table());
            self.commit().context("becoming the table's owner")?;
        }
        if self.baseline.structure.is_there {
            return Ok(());
        }
        self.batch.clear();
        self.prepare(layout);
        write_chains(&mut self.batch, layout, &|chain| !Layout::is_base(chain));
        write_rules_of(&mut self.batch, layout, &|chain| !Layout::is_base(chain));
        self.commit().context("making the table")?;
        self.note_structure(layout);
        Ok(())
    }

    /// Makes the rules what they should be, in place of whatever rules there are. Chains that are right are left alone.
    pub(super) fn ensure_rules(&mut self, layout: &Layout) -> Result<()> {
        if self.baseline.structure.rules.as_ref() == Some(&layout.settings) {
            return Ok(());
        }
        self.batch.clear();
        write_rules(&mut self.batch, layout);
        let differing = observe::differing_chains(self.kernel, layout, &self.batch)?;
        if !differing.is_empty() {
            self.batch.clear();
            write_chains(&mut self.batch, layout, &|_| true);
            // kube-proxy has a chain for each endpoint.
            let is_all = differing.len() > MOST_CHAINS;
            if is_all {
                self.batch.flush_table(self.table);
            } else {
                differing.iter().for_each(|chain| self.batch.flush_chain(self.table, chain));
            }
            write_rules_of(&mut self.batch, layout, &|chain| is_all || differing.contains(chain));
            self.commit().context("writing the rules")?;
        }
        self.baseline.structure.rules = Some(layout.settings.clone());
        Ok(())
    }

    /// Deletes what nothing needs any more.
    pub(super) fn sweep(&mut self, layout: &Layout) -> Result<()> {
        self.sweep_elements()?;
        self.sweep_sets(layout)?;
        self.sweep_chains()
    }

    /// Deletes what was found and is not wanted.
    fn sweep_elements(&mut self) -> Result<()> {
        let ids = self.baseline.found.take_all();
        for ids in ids.chunks(MOST_ELEMENTS) {
            let writes = Writes::deleting(ids);
            self.batch.clear();
            write_elements(&mut self.batch, self.table, &writes);
            match self.commit() {
                Ok(()) => self.is_affinity_lost |= loses_affinity(&writes),
                Err(Error::Refused(refused)) => {
                    let words = refused.first().map(|refused| words(refused, &writes)).unwrap_or_default();
                    return Err(Surprise(words).into());
                }
                Err(error) => return Err(error.into()),
            }
            self.written += ids.len();
            self.baseline.elements = self.baseline.elements.saturating_sub(ids.len());
        }
        Ok(())
    }

    /// Deletes elements that nothing of ours could be.
    pub(super) fn sweep_strange(&mut self) -> Result<()> {
        for strange in self.baseline.found.take_strange() {
            self.batch.clear();
            let element = nftables_rs::Element {
                key_end: strange.key_end.as_ref().map(Value::as_bytes),
                ..nftables_rs::Element::new(strange.key.as_bytes())
            };
            self.batch.delete_elements(self.table, &*strange.set.name()).push(&element);
            self.commit().context("deleting an element that is not ours")?;
        }
        Ok(())
    }

    /// Deletes sets that no rule uses, and that are not ours.
    fn sweep_sets(&mut self, layout: &Layout) -> Result<()> {
        let structure = &mut self.baseline.structure;
        let unused = structure.sets.iter().filter(|id| !layout.sets.contains(id));
        let names = unused.map(|id| id.name().into_owned()).chain(structure.surplus_sets.iter().cloned());
        let names: Vec<String> = names.collect();
        for names in names.chunks(MOST_SERVICES) {
            self.batch.clear();
            names.iter().for_each(|name| self.batch.delete_set(self.table, name));
            self.commit().context("deleting sets that nothing uses")?;
        }
        let structure = &mut self.baseline.structure;
        structure.surplus_sets.clear();
        structure.sets.retain(|id| layout.sets.contains(id));
        Ok(())
    }

    /// Deletes chains that are not ours. Of older kernels, one that an element led to a moment ago is still in use.
    pub(super) fn sweep_chains(&mut self) -> Result<()> {
        let names: Vec<String> = self.baseline.structure.surplus_chains.iter().cloned().collect();
        for names in names.chunks(MOST_SERVICES) {
            self.batch.clear();
            names.iter().for_each(|name| self.batch.delete_chain(self.table, name));
            match self.commit() {
                Ok(()) => names.iter().for_each(|name| {
                    self.baseline.structure.surplus_chains.remove(name);
                }),
                Err(Error::Refused(refused)) => {
                    self.failed_sweeps += 1;
                    let error = Error::Refused(refused);
                    tracing::debug!(%error, "chains of an earlier proxy are still in use; a later verification deletes them");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Commits the batch on top of what we know; what others have done meanwhile is noted.
    fn commit(&mut self) -> Result<(), Error> {
        self.calls += 1;
        for _ in 0..ATTEMPTS {
            let before = match self.watched.known() {
                Some(known) => known,
                None => self.kernel.generation()?,
            };
            match self.kernel.commit(&mut self.batch, Some(before)) {
                Err(Error::Stale) => {
                    self.watched.is_compare_due = true;
                    self.watched.know(self.kernel.generation()?);
                }
                Ok(()) => {
                    let now = self.kernel.generation()?;
                    self.watched.committed(before, now);
                    return Ok(());
                }
                error => return error,
            }
        }
        self.watched.forget();
        self.kernel.commit(&mut self.batch, None)
    }
}

/// Whether clients may be led where nothing leads any more.
fn loses_affinity(writes: &Writes<'_>) -> bool {
    writes.delete.iter().any(|(id, _)| matches!(id.set, SetId::AffinityEndpoints(_)))
}

/// Whether it is the kernel's memory, or the socket's, that a transaction was too large for.
fn is_short_of_memory(error: &Error) -> bool {
    let is_short = |errno: i32| [libc::ENOMEM, libc::ENOBUFS, libc::EMSGSIZE].contains(&errno);
    match error {
        Error::Refused(refused) => refused.iter().any(|refused| is_short(refused.errno)),
        Error::Netlink(netlink::Error::Io { source, .. }) => source.raw_os_error().is_some_and(is_short),
        Error::Netlink(error) => error.errno().is_some_and(is_short),
        _ => false,
    }
}

/// The kernel's words about a refused element, with the element instead of its number.
fn words(refused: &Refused, writes: &Writes<'_>) -> String {
    let id = refused.element.and_then(|number| match number.checked_sub(writes.delete.len()) {
        None => writes.delete.get(number).map(|(id, _)| *id),
        Some(number) => writes.add.get(number).map(|(id, ..)| *id),
    });
    match id {
        None => refused.to_string(),
        Some(id) => {
            let verb = if refused.operation == Some(Operation::DeleteElements) { "delete" } else { "add" };
            let error = std::io::Error::from_raw_os_error(refused.errno);
            let message = refused.message.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
            format!("cannot {verb} element {id}: {error}{message}")
        }
    }
}

/// Nothing besides a key.
static BARE: Content = Content { to: None, comment: None };

pub(super) fn write_elements(batch: &mut Batch, table: TableName<'_>, writes: &Writes<'_>) {
    for same_set in writes.delete.chunk_by(|(a, _), (b, _)| a.set == b.set) {
        let Some(name) = same_set.first().map(|(id, _)| id.set.name()) else { continue };
        let mut list = batch.delete_elements(table, &*name);
        for (id, _) in same_set {
            with_wire(id, &BARE, |element| _ = list.push(element));
        }
    }
    for same_set in writes.add.chunk_by(|(a, ..), (b, ..)| a.set == b.set) {
        let Some(name) = same_set.first().map(|(id, ..)| id.set.name()) else { continue };
        let mut list = batch.add_elements(table, &*name);
        for (id, content, _) in same_set {
            with_wire(id, content, |element| _ = list.push(element));
        }
    }
}

/// Writes all chains and rules; chains that are there stay.
pub(super) fn write_rules(batch: &mut Batch, layout: &Layout) {
    write_chains(batch, layout, &|_| true);
    write_rules_of(batch, layout, &|_| true);
}

/// Writes those of the chains that are wanted.
fn write_chains(batch: &mut Batch, layout: &Layout, is_wanted: &dyn Fn(&str) -> bool) {
    layout.visit(&mut |item| match item {
        Item::Chain(chain) if is_wanted(chain.name) => batch.add_chain(chain),
        _ => {}
    });
}

/// Writes the rules of those of the chains that are wanted.
fn write_rules_of(batch: &mut Batch, layout: &Layout, is_wanted: &dyn Fn(&str) -> bool) {
    layout.visit(&mut |item| match item {
        Item::Rule(rule, _) if is_wanted(rule.chain) => batch.add_rule(rule),
        Item::Anonymous(chain, set, name, elements) if is_wanted(chain) => {
            batch.add_set(set);
            let mut list = batch.add_elements(layout.table, name);
            elements.iter().for_each(|element| _ = list.push(element));
        }
        _ => {}
    });
}

//! iptables tools and an nf_tables that take everything and only count.

use crate::kernel::iptables::{
    CountedRule, Flavor, Place, RestoreError, RuleKind, Stamp, Trial, Version, Xtables,
};
use crate::kernel::nft::{Act, Concerns, ForeignWrite, Heard, Part};
use crate::kernel::nftables::Ruleset;
use anyhow::Result;
use nftables_rs::{
    Batch, Element, Error, Generation, ListedChain, ListedElement, ListedRule, ListedSet, ListedTable,
    TableName,
};
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// Counts what is sent and what is asked.
#[derive(Default)]
pub struct Sink {
    /// Lines of input.
    pub lines: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Lines of the longest input.
    pub longest: usize,
    /// Listings of chains or rules.
    pub listings: usize,
    generation: u32,
    concerns: Option<Concerns>,
    heard: Heard,
}

impl Sink {
    /// Another process adds a rule to a chain of the nat table.
    pub fn others_write(&mut self, chain: &str) {
        self.generation += 1;
        if self.concerns.as_ref().is_some_and(|concerns| concerns("nat", chain, Act::RuleAdded)) {
            let (table, chain, by) = ("nat".to_owned(), chain.to_owned(), "others".to_owned());
            self.heard.writes.push(ForeignWrite { table, chain, act: Act::RuleAdded, by });
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl Xtables for Sink {
    fn flavor(&self) -> Flavor {
        Flavor::Nft
    }

    fn version(&self) -> Version {
        Version(1, 8, 9)
    }

    async fn check_nat_table(&self) -> Result<()> {
        Ok(())
    }

    fn stamp(&mut self) -> Result<Stamp> {
        Ok(Stamp::Generation(self.generation))
    }

    fn has_counter(&mut self, _: &str) -> bool {
        true
    }

    fn ensure_counter(&mut self, _name: &str) -> bool {
        true
    }

    async fn chains(&mut self, _table: &str, visit: &mut dyn FnMut(Part<&str>)) -> Result<()> {
        self.listings += 1;
        visit(Part::Start);
        Ok(())
    }

    fn counted_rules(
        &mut self,
        _: &str,
        _: Option<&str>,
        visit: &mut dyn FnMut(Part<CountedRule<'_>>),
    ) -> Result<bool> {
        self.listings += 1;
        visit(Part::Start);
        Ok(true)
    }

    async fn list(&mut self, _: &str, _: Option<&str>, _: &mut dyn FnMut(&str)) -> Result<()> {
        self.listings += 1;
        Ok(())
    }

    fn listen(&mut self, concerns: Concerns) -> Result<bool> {
        (self.concerns, self.heard) = (Some(concerns), Heard::default());
        Ok(true)
    }

    fn hear(&mut self) -> Heard {
        std::mem::take(&mut self.heard)
    }

    async fn restore(&mut self, pieces: &mut dyn Iterator<Item = String>) -> Result<(), RestoreError> {
        let mut lines = 0;
        for piece in pieces {
            lines += piece.lines().count();
            self.bytes += piece.len();
            let tables = piece.lines().filter(|line| line.starts_with('*')).count();
            self.generation += u32::try_from(tables).unwrap_or(u32::MAX);
        }
        self.lines += lines;
        self.longest = self.longest.max(lines);
        Ok(())
    }

    async fn try_rules(&mut self, _kinds: &[RuleKind], _trial: Trial) -> Result<(), RestoreError> {
        Ok(())
    }

    async fn ensure_chain(&mut self, _place: Place<'_>) -> Result<()> {
        Ok(())
    }

    async fn insert_rules(&mut self, _rules: &[(Place<'_>, &str)]) -> Result<()> {
        Ok(())
    }

    async fn delete_rule(&mut self, _place: Place<'_>, _arguments: &str) -> Result<bool> {
        Ok(true)
    }
}

/// nf_tables that takes every transaction, and in which nothing was before.
#[derive(Debug)]
pub struct ElementSink {
    /// Elements that were added or deleted.
    pub elements: usize,
    /// Transactions.
    pub transactions: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Lists that were read.
    pub listings: usize,
    generation: Rc<Cell<Generation>>,
}

impl Default for ElementSink {
    fn default() -> Self {
        let generation = Rc::new(Cell::new(Generation(1)));
        ElementSink { elements: 0, transactions: 0, bytes: 0, listings: 0, generation }
    }
}

impl ElementSink {
    /// Counts from zero again.
    pub fn start_over(&mut self) {
        *self = self.another();
    }

    /// Another handle on the same kernel.
    #[must_use]
    pub fn another(&self) -> ElementSink {
        ElementSink { generation: self.generation.clone(), ..ElementSink::default() }
    }

    /// Another process makes a transaction.
    pub fn others_write(&mut self) {
        self.generation.set(self.generation.get().next());
    }

    fn list<T>(&mut self, visit: &mut dyn FnMut(Part<T>)) {
        self.listings += 1;
        visit(Part::Start);
    }
}

impl Ruleset for ElementSink {
    fn port(&self) -> u32 {
        1
    }

    fn generation(&mut self) -> Result<Generation, Error> {
        Ok(self.generation.get())
    }

    fn commit(&mut self, batch: &mut Batch, _: Option<Generation>) -> Result<(), Error> {
        self.elements += batch.elements();
        self.transactions += 1;
        self.bytes += batch.as_bytes().len();
        self.others_write();
        Ok(())
    }

    fn tables(&mut self, visit: &mut dyn FnMut(Part<ListedTable<'_>>)) -> Result<(), Error> {
        self.list(visit);
        Ok(())
    }

    fn chains(
        &mut self,
        _: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedChain<'_>>),
    ) -> Result<(), Error> {
        self.list(visit);
        Ok(())
    }

    fn rules(&mut self, _: TableName<'_>, visit: &mut dyn FnMut(Part<ListedRule<'_>>)) -> Result<(), Error> {
        self.list(visit);
        Ok(())
    }

    fn sets(&mut self, _: TableName<'_>, visit: &mut dyn FnMut(Part<ListedSet<'_>>)) -> Result<(), Error> {
        self.list(visit);
        Ok(())
    }

    fn element(
        &mut self,
        _: TableName<'_>,
        _: &str,
        _: &Element<'_>,
        _: &mut dyn FnMut(ListedElement<'_>),
    ) -> Result<bool, Error> {
        self.listings += 1;
        Ok(false)
    }

    fn elements(
        &mut self,
        _: TableName<'_>,
        _: &str,
        visit: &mut dyn FnMut(Part<ListedElement<'_>>),
    ) -> Result<bool, Error> {
        self.list(visit);
        Ok(false)
    }
}

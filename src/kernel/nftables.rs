//! nf_tables, as the nftables dataplane uses it.

use nftables_rs::{
    Batch, Element, Error, Generation, ListedChain, ListedElement, ListedRule, ListedSet, ListedTable,
    Nftables, Part, TableName,
};
use std::cell::Cell;
use std::rc::Rc;

/// Which transactions were this process's. The kernel counts those of all tables and families together, so one family's dataplane
/// has to know of the other's to tell them from those of other programs. Clones share what they know.
#[derive(Clone, Debug, Default)]
pub struct Generations(Rc<Cell<Option<Run>>>);

/// Generations without a foreign one between them, in the order of the count.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Generation,
    last: Generation,
}

impl Generations {
    /// Notes that a transaction of ours, and no other, led from one generation to the next.
    pub fn note(&self, before: Generation, now: Generation) {
        let first = match self.0.get() {
            Some(run) if run.last == before => run.first,
            _ => before,
        };
        self.0.set(Some(Run { first, last: now }));
    }

    /// The generation that only transactions of ours led to from this one: itself, if there was none.
    #[must_use]
    pub fn after(&self, known: Generation) -> Generation {
        let distance = |from: Generation, to: Generation| to.0.wrapping_sub(from.0);
        match self.0.get() {
            Some(Run { first, last }) if distance(first, known) <= distance(first, last) => last,
            _ => known,
        }
    }
}

/// What the dataplane needs of nf_tables: transactions, and reading back what they made.
///
/// Lists go through `visit`; at [`Part::Start`], which comes first and whenever a list starts over, what was seen before is to
/// be forgotten.
pub trait Ruleset {
    /// The netlink port of our socket: tables that it owns are listed with it.
    fn port(&self) -> u32;

    /// The number of the ruleset's state: each transaction that changes something, of any process, makes the next.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or on lack of permission.
    fn generation(&mut self) -> Result<Generation, Error>;

    /// Carries out a transaction, all or nothing; with a `generation`, only on top of that.
    ///
    /// # Errors
    /// [`Error::Stale`] if the generation is another one; [`Error::Refused`] with each message that the kernel refused.
    fn commit(&mut self, batch: &mut Batch, generation: Option<Generation>) -> Result<(), Error>;

    /// Visits all tables.
    ///
    /// # Errors
    /// If the kernel cannot be read, as of all lists.
    fn tables(&mut self, visit: &mut dyn FnMut(Part<ListedTable<'_>>)) -> Result<(), Error>;

    /// Visits the chains of a table.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    fn chains(
        &mut self,
        table: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedChain<'_>>),
    ) -> Result<(), Error>;

    /// Visits the rules of a table, chain by chain and in order.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    fn rules(
        &mut self,
        table: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedRule<'_>>),
    ) -> Result<(), Error>;

    /// Visits the sets and maps of a table.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    fn sets(&mut self, table: TableName<'_>, visit: &mut dyn FnMut(Part<ListedSet<'_>>))
    -> Result<(), Error>;

    /// Visits the elements of a set or map; says whether there is one of this name.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    fn elements(
        &mut self,
        table: TableName<'_>,
        set: &str,
        visit: &mut dyn FnMut(Part<ListedElement<'_>>),
    ) -> Result<bool, Error>;

    /// Reads the element of a set that has this key; says whether there is one. It costs the same in a set of any size.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    fn element(
        &mut self,
        table: TableName<'_>,
        set: &str,
        key: &Element<'_>,
        read: &mut dyn FnMut(ListedElement<'_>),
    ) -> Result<bool, Error>;
}

impl Ruleset for Nftables {
    fn port(&self) -> u32 {
        Nftables::port(self)
    }

    fn generation(&mut self) -> Result<Generation, Error> {
        Nftables::generation(self)
    }

    fn commit(&mut self, batch: &mut Batch, generation: Option<Generation>) -> Result<(), Error> {
        Nftables::commit(self, batch, generation)
    }

    fn tables(&mut self, visit: &mut dyn FnMut(Part<ListedTable<'_>>)) -> Result<(), Error> {
        Nftables::tables(self, None, visit)
    }

    fn chains(
        &mut self,
        table: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedChain<'_>>),
    ) -> Result<(), Error> {
        Nftables::chains(self, table, visit)
    }

    fn rules(
        &mut self,
        table: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedRule<'_>>),
    ) -> Result<(), Error> {
        Nftables::rules(self, table, None, visit)
    }

    fn sets(
        &mut self,
        table: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedSet<'_>>),
    ) -> Result<(), Error> {
        Nftables::sets(self, table, visit)
    }

    fn elements(
        &mut self,
        table: TableName<'_>,
        set: &str,
        visit: &mut dyn FnMut(Part<ListedElement<'_>>),
    ) -> Result<bool, Error> {
        Nftables::elements(self, table, set, visit)
    }

    fn element(
        &mut self,
        table: TableName<'_>,
        set: &str,
        key: &Element<'_>,
        read: &mut dyn FnMut(ListedElement<'_>),
    ) -> Result<bool, Error> {
        Nftables::element(self, table, set, key, read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_our_transactions_led_to_is_known() {
        let ours = Generations::default();
        let after = |known| ours.after(Generation(known)).0;
        assert_eq!(after(7), 7);
        ours.clone().note(Generation(7), Generation(8));
        ours.note(Generation(8), Generation(9));
        assert_eq!([6, 7, 8, 9, 10].map(after), [6, 9, 9, 9, 10]);
        // 10 was foreign.
        ours.note(Generation(10), Generation(11));
        assert_eq!([8, 9, 10, 11].map(after), [8, 9, 11, 11]);
        // The count starts over, without zero.
        ours.note(Generation(u32::MAX), Generation(u32::MAX).next());
        assert_eq!([u32::MAX, 1, 2].map(after), [1, 1, 2]);
    }
}

//! nf_tables, as the nftables dataplane uses it.

use nftables_rs::{
    Batch, Element, Error, Generation, ListedChain, ListedElement, ListedRule, ListedSet, ListedTable,
    Nftables, Part, TableName,
};

/// What the dataplane needs of nf_tables: transactions, and reading back what they made.
///
/// Lists go through `visit`; at [`Part::Start`], which comes first and whenever a list starts over, what was seen before is to
/// be forgotten.
pub trait Ruleset {
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

//! The handle.

use crate::batch::{Batch, begin};
use crate::chain::ListedChain;
use crate::element::{Element, ListedElement};
use crate::error::Error;
use crate::read;
use crate::rule::ListedRule;
use crate::set::ListedSet;
use crate::table::{Family, ListedTable, TableName};
use crate::wire::{LIST_ITEM, SUBSYSTEM, elements, message, rule, set};
use netlink::{Malformed, Message, MsgBuf, Part, Protocol, Socket};

/// Refusals of some 2,000 messages.
const MOST_WAITING: usize = 2 << 20;

/// How often a list of elements starts over.
const LIST_ATTEMPTS: u32 = 10;

/// The number of the ruleset's state: every transaction that changes something, in whatever family, makes the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation(pub u32);

impl Generation {
    /// The one that the next change makes.
    #[must_use]
    pub const fn next(self) -> Generation {
        // The kernel skips zero.
        match self.0.wrapping_add(1) {
            0 => Generation(1),
            next => Generation(next),
        }
    }
}

/// A handle on nf_tables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
    request: MsgBuf,
}

impl Nftables {
    /// Opens a handle.
    ///
    /// # Errors
    /// If the kernel has no netfilter netlink.
    pub fn open() -> Result<Nftables, Error> {
        let socket = Socket::open(Protocol::Netfilter)?;
        socket.let_wait(MOST_WAITING)?;
        Ok(Nftables { socket, request: MsgBuf::new() })
    }

    /// The netlink port of this handle's socket: what it owns is listed with it ([`ListedTable::owner`]).
    #[must_use]
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// The ruleset's generation.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, on lack of permission, or if the exchange fails.
    pub fn generation(&mut self) -> Result<Generation, Error> {
        self.begin(message::GET_GENERATION, 0);
        let mut found = None;
        self.socket.request(&mut self.request, &mut |reply| {
            if reply.kind == message::NEW_GENERATION {
                found = Some(read::generation(&reply)?);
            }
            Ok(())
        })?;
        found.ok_or(Error::Netlink(Malformed("no generation").into()))
    }

    /// Carries out all changes of a transaction, or none.
    ///
    /// With a `generation`, it changes nothing unless the ruleset still is of that one, so that no change of another
    /// program is overwritten unseen. The transaction can be committed again, as it is or with more added. One
    /// without changes waits for those that are under way, and tells whether the generation is the current one.
    ///
    /// # Errors
    /// [`Error::Stale`] if the generation is another one; [`Error::Refused`] with each message that the kernel
    /// refused; [`Error::Netlink`] if the exchange failed, or with the kernel's refusal of the whole transaction.
    pub fn commit(&mut self, batch: &mut Batch, generation: Option<Generation>) -> Result<(), Error> {
        let generation = generation.map(|Generation(number)| number);
        match self.socket.transaction(SUBSYSTEM, generation, &mut batch.requests) {
            Ok(refused) if refused.is_empty() => Ok(()),
            Ok(refused) => Err(Error::Refused(batch.name_refused(refused))),
            Err(error) if error.errno() == Some(libc::ERESTART) => Err(Error::Stale),
            Err(error) => Err(error.into()),
        }
    }

    /// Visits the tables of one family or of all.
    ///
    /// This and the other lists stream through one fixed buffer. [`Part::Start`] comes first, and again when the ruleset
    /// was changed while it was read: then forget what came before.
    ///
    /// # Errors
    /// On lack of permission, if the ruleset never held still, or if the exchange fails. This holds for all lists.
    pub fn tables(
        &mut self,
        family: Option<Family>,
        visit: &mut dyn FnMut(Part<ListedTable<'_>>),
    ) -> Result<(), Error> {
        self.begin(message::GET_TABLE, family.map_or(0, Family::number));
        self.dump(&mut |part| {
            read_part(part, read::table).map(|part| part.into_iter().for_each(&mut *visit))
        })?;
        Ok(())
    }

    /// Visits the chains of a table; a table that is not there has none.
    ///
    /// # Errors
    /// As [`tables`](Nftables::tables).
    pub fn chains(
        &mut self,
        table: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedChain<'_>>),
    ) -> Result<(), Error> {
        self.begin(message::GET_CHAIN, table.family.number());
        self.dump(&mut |part| {
            match read_part(part, read::chain)? {
                // The kernel sends those of all tables of the family.
                Some(Part::Item(listed)) if listed.chain.table != table => {}
                part => part.into_iter().for_each(&mut *visit),
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Visits the rules of a table or of one of its chains, chain by chain and in order; what is not there has none.
    ///
    /// # Errors
    /// As [`tables`](Nftables::tables).
    pub fn rules(
        &mut self,
        table: TableName<'_>,
        chain: Option<&str>,
        visit: &mut dyn FnMut(Part<ListedRule<'_>>),
    ) -> Result<(), Error> {
        self.begin(message::GET_RULE, table.family.number());
        self.request.string(rule::TABLE, table.name);
        chain.into_iter().for_each(|chain| self.request.string(rule::CHAIN, chain));
        self.dump(&mut |part| {
            read_part(part, read::rule).map(|part| part.into_iter().for_each(&mut *visit))
        })?;
        Ok(())
    }

    /// Visits the sets and maps of a table; a table that is not there has none.
    ///
    /// # Errors
    /// As [`tables`](Nftables::tables).
    pub fn sets(
        &mut self,
        table: TableName<'_>,
        visit: &mut dyn FnMut(Part<ListedSet<'_>>),
    ) -> Result<(), Error> {
        self.begin(message::GET_SET, table.family.number());
        self.request.string(set::TABLE, table.name);
        self.dump(&mut |part| read_part(part, read::set).map(|part| part.into_iter().for_each(&mut *visit)))?;
        Ok(())
    }

    /// Visits the elements of a set or map. Says whether there is one of this name.
    ///
    /// Of elements, the kernel does not tell that they were changed while it handed them out: some then come twice, and
    /// others are passed over. So the list starts over unless the ruleset's generation stood still, with no transaction under
    /// way before or after.
    ///
    /// Three things go unseen: what rules learn and what times out meanwhile; a transaction that added to this set
    /// and was refused in the end; and the growth of the kernel's table, which comes a moment after many elements were
    /// added. Ask for the [`element`](Nftables::element) that a list did not have, before anything is done about it.
    ///
    /// The kernel walks a large set again and again to find where it was: some 60 ms for 50,000 elements, a
    /// second for 250,000.
    ///
    /// # Errors
    /// As [`tables`](Nftables::tables).
    pub fn elements(
        &mut self,
        table: TableName<'_>,
        set: &str,
        visit: &mut dyn FnMut(Part<ListedElement<'_>>),
    ) -> Result<bool, Error> {
        for _ in 0..LIST_ATTEMPTS {
            let generation = self.generation()?;
            if !self.is_at_rest(generation)? {
                continue;
            }
            let is_there = self.elements_once(table, set, visit)?;
            if self.is_at_rest(generation)? {
                return Ok(is_there);
            }
        }
        Err(Error::Netlink(netlink::Error::Interrupted { attempts: LIST_ATTEMPTS }))
    }

    /// Whether the ruleset is of this generation, once transactions that are under way have come to their end.
    /// [`generation`](Nftables::generation) does not wait, and tells of a new one before it is quite there.
    fn is_at_rest(&mut self, generation: Generation) -> Result<bool, Error> {
        match self.commit(&mut Batch::new(), Some(generation)) {
            Ok(()) => Ok(true),
            Err(Error::Stale) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn elements_once(
        &mut self,
        table: TableName<'_>,
        set: &str,
        visit: &mut dyn FnMut(Part<ListedElement<'_>>),
    ) -> Result<bool, Error> {
        self.begin(message::GET_ELEMENTS, table.family.number());
        self.request.string(elements::TABLE, table.name);
        self.request.string(elements::SET, set);
        self.dump(&mut |part| {
            match part {
                Part::Start => visit(Part::Start),
                Part::Item(message) => {
                    read::visit_elements(&message, &mut |element| visit(Part::Item(element)))?;
                }
            }
            Ok(())
        })
    }

    /// Reads the element that has this key (of ranges, also the end of the key). Says whether there is one. It costs the
    /// same in a set of any size.
    ///
    /// # Errors
    /// On lack of permission, or if the exchange fails.
    pub fn element(
        &mut self,
        table: TableName<'_>,
        set: &str,
        key: &Element<'_>,
        read: &mut dyn FnMut(ListedElement<'_>),
    ) -> Result<bool, Error> {
        self.begin(message::GET_ELEMENTS, table.family.number());
        self.request.string(elements::TABLE, table.name);
        self.request.string(elements::SET, set);
        let list = self.request.begin_list(elements::LIST);
        self.request.extend(list, |buf| buf.nest(LIST_ITEM, |buf| key.write(buf)));
        let answer = self
            .socket
            .request(&mut self.request, &mut |reply| Ok(read::visit_elements(&reply, &mut *read)?));
        is_there(answer)
    }

    fn begin(&mut self, kind: u16, family: u8) {
        self.request.clear();
        begin(&mut self.request, kind, 0, family);
    }

    fn dump(
        &mut self,
        visit: &mut dyn FnMut(Part<Message<'_>>) -> Result<(), Malformed>,
    ) -> Result<bool, Error> {
        is_there(self.socket.dump(&mut self.request, &mut |part| Ok(visit(part)?)))
    }
}

/// Whether the object is there: `ENOENT` says that it is not.
fn is_there(answer: Result<(), netlink::Error>) -> Result<bool, Error> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads what a message of a list holds; `None` if that is something else.
fn read_part<'a, T>(
    part: Part<Message<'a>>,
    read: impl FnOnce(&Message<'a>) -> Result<Option<T>, Malformed>,
) -> Result<Option<Part<T>>, Malformed> {
    match part {
        Part::Start => Ok(Some(Part::Start)),
        Part::Item(message) => Ok(read(&message)?.map(Part::Item)),
    }
}

//! What other processes write: nf_tables tells of every transaction that takes effect, and of the socket that made it.
//!
//! There is one monitor for all families of this process. A transaction is our own if the port id of the socket that
//! made it is that of a child of ours: the kernel gives a socket the number of its process for one.

use super::rules::{NEW_RULE, RuleMark, read_mark, read_place};
use super::{HEADER_LEN, NEW_CHAIN, NEW_GENERATION, SUBSYSTEM, nfnetlink, read_chain};
use crate::model::{IpFamily, word};
use anyhow::{Context, Result};
use netlink::{Error, Malformed, Message, Notices, Protocol};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// The multicast group of nf_tables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GENERATION_PROCESS: u16 = 3;
/// `NLM_F_CREATE` and `NLM_F_EXCL`, as the process asked for it.
const CREATED: u16 = 0x600;
/// What may wait to be read: some 20,000 rules. It takes kernel memory only while it waits.
const MOST_WAITING: usize = 16 << 20;
/// How often the socket is read while a child of ours writes. Its notices come all at once, 10 MB for 10,000 rules.
const TURN: Duration = Duration::from_millis(5);
/// Chains of one family that are remembered; what is done to more counts as lost.
const MOST_CHAINS: usize = 10_000;
/// How much of a process's name the kernel keeps.
const COMM_LEN: usize = 15;

/// What was done to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// A rule was added. One in another's place is deleted and added.
    RuleAdded,
    /// A rule was deleted.
    RuleDeleted,
    /// The chain was given this name, or something else of it was changed.
    Altered,
    /// The chain was deleted.
    Deleted,
}

/// Whether what is done to a chain of a table is of interest.
pub type Concerns = Rc<dyn Fn(&str, &str, Act) -> bool>;

/// What other processes did to one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignWrite {
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What was done.
    pub act: Act,
    /// The name of the process that did it last, up to 15 characters of its own choice.
    pub by: String,
}

/// What other processes did since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// By chain and act.
    pub writes: Vec<ForeignWrite>,
    /// Some of it was lost.
    pub is_incomplete: bool,
}

/// Hears of all transactions in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor(RefCell<Inner>);

struct Inner {
    notices: Notices,
    listeners: Vec<Listener>,
    child: Option<Child>,
    /// What is being told of, and not at its end yet.
    open: Transaction,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("child", &self.child).finish_non_exhaustive()
    }
}

/// One family, and what was heard of it.
struct Listener {
    family: IpFamily,
    concerns: Concerns,
    heard: BTreeMap<Write, String>,
    is_incomplete: bool,
}

/// Table, chain and act.
type Write = (String, String, Act);

/// A child of ours that writes.
#[derive(Debug)]
struct Child {
    port: u32,
    /// A transaction of it was heard.
    has_written: bool,
    /// What other programs wrote meanwhile.
    meanwhile: Vec<Transaction>,
}

/// What one transaction did that is of interest.
#[derive(Debug, Default)]
struct Transaction {
    by: String,
    writes: Vec<(IpFamily, Write)>,
    /// The rule that was deleted last; it may come back at once.
    deleted: Option<(IpFamily, Write, RuleMark)>,
}

/// A family's share of a monitor.
#[derive(Debug)]
pub struct Subscription {
    monitor: Rc<Monitor>,
    family: IpFamily,
}

impl Monitor {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or without `CAP_NET_ADMIN`.
    pub fn open() -> Result<Rc<Monitor>> {
        let listening =
            || "cannot read the kernel's notices of nf_tables; the tables are listed and compared";
        let notices = Notices::of(Protocol::Netfilter, GROUP).with_context(listening)?;
        notices.let_wait(MOST_WAITING).with_context(listening)?;
        let open = Transaction::default();
        Ok(Rc::new(Monitor(RefCell::new(Inner { notices, listeners: Vec::new(), child: None, open }))))
    }

    /// Follows what other programs write to chains of a family; earlier writes do not count.
    pub fn subscribe(self: &Rc<Self>, family: IpFamily, concerns: Concerns) -> Subscription {
        let mut inner = self.0.borrow_mut();
        inner.read();
        inner.listeners.retain(|listener| listener.family != family);
        let (heard, is_incomplete) = (BTreeMap::new(), false);
        inner.listeners.push(Listener { family, concerns, heard, is_incomplete });
        Subscription { monitor: self.clone(), family }
    }

    /// Waits for what a child of ours does, and reads its notices meanwhile, which would
    /// fill the socket. `work` says at its end whether the child has changed anything.
    pub async fn follow<T>(
        &self,
        (child, name): (Option<u32>, &str),
        work: impl Future<Output = T>,
        has_changed: impl FnOnce(&T) -> bool,
    ) -> T {
        if let Some(port) = child {
            let child = Child { port, has_written: false, meanwhile: Vec::new() };
            let mut inner = self.0.borrow_mut();
            inner.read();
            inner.child = Some(child);
        }
        let done = self.read_while(work).await;
        let mut inner = self.0.borrow_mut();
        // All notices of the child came before it ended.
        inner.read();
        inner.end_child(name, has_changed(&done));
        done
    }

    async fn read_while<T>(&self, work: impl Future<Output = T>) -> T {
        let (mut work, mut turn) = (pin!(work), interval(TURN));
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = turn.tick() => self.0.borrow_mut().read(),
            }
        }
    }
}

impl Subscription {
    /// What other processes wrote since the last call.
    pub fn hear(&self) -> Heard {
        let mut inner = self.monitor.0.borrow_mut();
        inner.read();
        let Some(listener) = inner.listeners.iter_mut().find(|it| it.family == self.family) else {
            return Heard::default();
        };
        let writes = std::mem::take(&mut listener.heard).into_iter();
        let write = |((table, chain, act), by)| ForeignWrite { table, chain, act, by };
        Heard {
            writes: writes.map(write).collect(),
            is_incomplete: std::mem::take(&mut listener.is_incomplete),
        }
    }
}

impl Inner {
    /// Reads all notices that have come.
    fn read(&mut self) {
        let Inner { notices, listeners, child, open } = self;
        let read = notices.read(&mut |message| take(&message, listeners, child.as_mut(), open));
        let Err(error) = read else { return };
        if !matches!(error, Error::Overrun) {
            tracing::debug!(%error, "cannot read the kernel's notices of nf_tables; the tables are listed and compared");
        }
        *open = Transaction::default();
        listeners.iter_mut().for_each(|listener| listener.is_incomplete = true);
    }

    /// Settles whose the transactions were that were made beside a child of ours.
    fn end_child(&mut self, name: &str, has_changed: bool) {
        let Some(Child { has_written, mut meanwhile, .. }) = self.child.take() else { return };
        if has_changed && !has_written {
            // Another socket had the number of the child, so the kernel gave it another one.
            let name = name.get(..COMM_LEN).unwrap_or(name);
            let is_named = meanwhile.iter().any(|transaction| transaction.by == name);
            meanwhile.retain(|transaction| is_named && transaction.by != name);
        }
        for transaction in meanwhile {
            transaction.tell(&mut self.listeners);
        }
    }
}

/// Takes a notice.
fn take(
    message: &Message<'_>,
    listeners: &mut [Listener],
    mut child: Option<&mut Child>,
    open: &mut Transaction,
) -> Result<(), Malformed> {
    let is_own = child.as_ref().is_some_and(|child| child.port == message.port);
    if message.kind != NEW_GENERATION {
        return if is_own { Ok(()) } else { open.take(message, listeners) };
    }
    let mut transaction = std::mem::take(open);
    transaction.close();
    match &mut child {
        Some(child) if is_own => child.has_written = true,
        _ if transaction.writes.is_empty() => {}
        Some(child) => {
            transaction.by = process(message)?;
            child.meanwhile.push(transaction);
        }
        None => {
            transaction.by = process(message)?;
            transaction.tell(listeners);
        }
    }
    Ok(())
}

impl Transaction {
    fn take(&mut self, message: &Message<'_>, listeners: &[Listener]) -> Result<(), Malformed> {
        let of_family = |it: &&Listener| message.payload.first() == Some(&nfnetlink::number(it.family));
        let Some(listener) = listeners.iter().find(of_family) else { return Ok(()) };
        let (act, table, chain) = match message.kind {
            NEW_RULE => {
                let (table, chain) = read_place(message)?;
                (Act::RuleAdded, table, chain)
            }
            DELETE_RULE => {
                let (table, chain) = read_place(message)?;
                (Act::RuleDeleted, table, chain)
            }
            // Kernels before 5.17 do not say whether it is new.
            NEW_CHAIN if message.flags & CREATED == 0 => {
                let chain = read_chain(message)?;
                if chain.is_base {
                    return Ok(());
                }
                (Act::Altered, chain.table, chain.name)
            }
            DELETE_CHAIN => {
                let chain = read_chain(message)?;
                (Act::Deleted, chain.table, chain.name)
            }
            _ => return Ok(()),
        };
        if !(listener.concerns)(table, chain, act) {
            self.close();
            return Ok(());
        }
        let write = (table.to_owned(), chain.to_owned(), act);
        self.note(listener.family, write, message)
    }

    fn note(&mut self, family: IpFamily, write: Write, message: &Message<'_>) -> Result<(), Malformed> {
        match write.2 {
            Act::RuleAdded => {
                let mark = read_mark(message)?;
                // A process that zeroes the counters of a rule deletes it and puts it back.
                let is_back = self.deleted.as_ref().is_some_and(|(of, (table, chain, _), deleted)| {
                    (*of, table, chain, deleted) == (family, &write.0, &write.1, &mark)
                });
                if is_back {
                    self.deleted = None;
                    return Ok(());
                }
                self.close();
                self.push(family, write);
            }
            Act::RuleDeleted => {
                self.close();
                let mark = read_mark(message)?;
                self.deleted = Some((family, write, mark));
            }
            Act::Altered | Act::Deleted => {
                self.close();
                self.push(family, write);
            }
        }
        Ok(())
    }

    /// The rule that was deleted last does not come back.
    fn close(&mut self) {
        if let Some((family, write, _)) = self.deleted.take() {
            self.push(family, write);
        }
    }

    /// Changes of many rules of a chain count as one.
    fn push(&mut self, family: IpFamily, write: Write) {
        let write = (family, write);
        if self.writes.last() != Some(&write) {
            self.writes.push(write);
        }
    }

    fn tell(self, listeners: &mut [Listener]) {
        for (family, write) in self.writes {
            let Some(listener) = listeners.iter_mut().find(|it| it.family == family) else { continue };
            if listener.heard.len() < MOST_CHAINS || listener.heard.contains_key(&write) {
                listener.heard.insert(write, self.by.clone());
            } else {
                listener.is_incomplete = true;
            }
        }
    }
}

/// The name of the process that made a generation. One that is no text is none.
fn process(message: &Message<'_>) -> Result<String, Malformed> {
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        if attribute.kind == GENERATION_PROCESS {
            return Ok(word(attribute.string().unwrap_or_default()).into_owned());
        }
    }
    Ok(String::new())
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(message: &Message<'_>) {
    let listener = Listener {
        family: IpFamily::V4,
        concerns: Rc::new(|_, _, _| true),
        heard: BTreeMap::new(),
        is_incomplete: false,
    };
    let _ = take(message, &mut [listener], None, &mut Transaction::default());
}

#[cfg(test)]
mod tests;

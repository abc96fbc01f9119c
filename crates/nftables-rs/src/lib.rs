//! A client for nf_tables, the packet filter in the Linux kernel, over netlink.
//!
//! A [`Table`] holds chains of rules, and sets and maps that rules look things up in. What is to change is written into a
//! [`Batch`], which [`Nftables::commit`] carries out as one transaction. This crate speaks to the kernel directly: no
//! `nft`, no C library. It knows how to say things, not what to say.
//!
//! ```no_run
//! use nftables_rs::{
//!     BaseChain, Batch, Chain, DataType, Element, Expression, Family, Hook, Nftables, PayloadBase, Register, Rule,
//!     Set, SetType, Table, TableName, Verdict,
//! };
//!
//! # fn main() -> Result<(), nftables_rs::Error> {
//! let table = TableName::new(Family::Ipv4, "example");
//! let mut batch = Batch::new();
//! batch.add_table(&Table::new(table));
//! batch.add_set(&Set::new(table, "blocked", SetType::Types(&[DataType::IPV4_ADDRESS])));
//! batch.add_elements(table, "blocked").push(&Element::new(&[192, 0, 2, 1]));
//!
//! let base = BaseChain { kind: "filter", hook: Hook::Input, priority: 0, policy: None };
//! batch.add_chain(&Chain { base: Some(base), ..Chain::new(table, "input") });
//! // ip saddr @blocked drop
//! let source = Register::word(0);
//! let expressions = &[
//!     Expression::Payload { to: source, base: PayloadBase::NETWORK, offset: 12, len: 4 },
//!     Expression::Lookup { set: "blocked".into(), key: source, to: None, inverse: false },
//!     Expression::Verdict(Verdict::Drop),
//! ];
//! batch.add_rule(&Rule { table, chain: "input", expressions, comment: None });
//! Nftables::open()?.commit(&mut batch, None)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What to know
//!
//! - Everything blocks; the kernel answers at once. An [`Nftables`] works in the network namespace of the thread that
//!   opened it.
//! - Reading needs `CAP_NET_ADMIN` as writing does.
//! - Adding what is there is no error: a table, chain or set stays as it is, an element keeps its comment and must have
//!   the same data. To replace an element, delete and add it in one transaction.
//! - Listening to nf_tables' events, by any process on the machine, makes the kernel hold some 8 KB for each changed element
//!   until the transaction is done: keep transactions to a few thousand elements.
//! - What rules change ([`Expression::Dynset`]) and what times out is no transaction: it makes no generation, and a list
//!   of elements that is read meanwhile may miss some or have some twice.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod batch;
mod chain;
mod client;
mod element;
mod error;
mod expression;
mod numbers;
mod read;
mod register;
mod rule;
mod set;
mod table;
mod user_data;
mod value;
mod wire;

pub use batch::{Batch, ElementList};
pub use chain::{BaseChain, Chain, Hook, ListedChain, Policy};
pub use client::{Generation, Nftables};
pub use element::{Counted, Data, Element, ListedElement};
pub use error::{Error, Operation, Refused};
pub use expression::{
    ByteOrderChange, Comparison, CtKey, Direction, DynsetOperation, Expression, FibFlags, FibResult, MetaKey,
    NatFlags, NatKind, NumgenKind, PayloadBase, Reject, SetRef, Verdict,
};
/// Why an exchange with the kernel failed; see [`Error::Netlink`].
pub use netlink::Error as NetlinkError;
/// What a list hands out.
pub use netlink::Part;
pub use register::Register;
pub use rule::{ListedRule, Rule};
pub use set::{ByteOrder, DataType, ListedSet, MapData, Set, SetFlags, SetType, TypeOf};
pub use table::{Family, ListedTable, Table, TableFlags, TableName};
pub use user_data::cut_comment;
pub use value::Value;

#[doc(hidden)]
pub mod fuzzing {
    //! Entry points for fuzzers; not part of the interface.

    /// Feeds bytes to every parser, as if the kernel had sent them.
    pub fn parse_anything(bytes: &[u8]) {
        for message in netlink::Messages::new(bytes).map_while(Result::ok) {
            crate::read::read_anything(&message);
            crate::batch::name_anything(&message);
        }
    }
}

//! What went wrong, with which object.

use crate::wire::message;
use std::fmt;
use std::io;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ruleset's generation is not the one that the transaction was meant for: meanwhile, there was another one.
    /// Nothing was changed.
    #[error("nf_tables: the ruleset was changed meanwhile")]
    Stale,
    /// The kernel refused at least one change of a transaction. Nothing was changed.
    #[error("nf_tables: {}", summary(.0))]
    Refused(Vec<Refused>),
    /// The exchange with the kernel failed, or the kernel refused the transaction as a whole. A transaction that the
    /// kernel refused has changed nothing; of other failures it is unknown.
    #[error("nf_tables: {0}")]
    Netlink(#[from] netlink::Error),
}

fn summary(refused: &[Refused]) -> String {
    match refused {
        [] => "the transaction was refused".to_owned(),
        [only] => only.to_string(),
        [first, others @ ..] => format!("{first} (and {} more)", others.len()),
    }
}

/// What a message of a transaction asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Make a table.
    AddTable,
    /// Delete a table.
    DeleteTable,
    /// Make a chain.
    AddChain,
    /// Delete a chain.
    DeleteChain,
    /// Make a rule.
    AddRule,
    /// Delete rules.
    DeleteRule,
    /// Make a set or map.
    AddSet,
    /// Delete a set or map.
    DeleteSet,
    /// Add elements.
    AddElements,
    /// Delete elements.
    DeleteElements,
}

impl Operation {
    /// That of a message.
    pub(crate) fn of(kind: u16) -> Option<Operation> {
        match kind {
            message::NEW_TABLE => Some(Operation::AddTable),
            message::DELETE_TABLE => Some(Operation::DeleteTable),
            message::NEW_CHAIN => Some(Operation::AddChain),
            message::DELETE_CHAIN => Some(Operation::DeleteChain),
            message::NEW_RULE => Some(Operation::AddRule),
            message::DELETE_RULE => Some(Operation::DeleteRule),
            message::NEW_SET => Some(Operation::AddSet),
            message::DELETE_SET => Some(Operation::DeleteSet),
            message::NEW_ELEMENTS => Some(Operation::AddElements),
            message::DELETE_ELEMENTS => Some(Operation::DeleteElements),
            _ => None,
        }
    }

    pub(crate) fn is_on_elements(self) -> bool {
        matches!(self, Operation::AddElements | Operation::DeleteElements)
    }

    /// The verb, what is done it to, and what stands before the object's name.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Operation::AddTable => ("add", ""),
            Operation::DeleteTable => ("delete", ""),
            Operation::AddChain => ("add", "chain"),
            Operation::DeleteChain => ("delete", "chain"),
            Operation::AddRule => ("add", "a rule to chain"),
            Operation::DeleteRule => ("delete", "rules of chain"),
            Operation::AddSet => ("add", "set"),
            Operation::DeleteSet => ("delete", "set"),
            Operation::AddElements => ("add", "to set"),
            Operation::DeleteElements => ("delete", "from set"),
        }
    }
}

/// A change that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// Which message of the transaction, counted from zero.
    pub request: usize,
    /// What it asked for.
    pub operation: Option<Operation>,
    /// Family and name of the table, as in `ip6 filter`.
    pub table: Box<str>,
    /// The chain or set, if it is about one.
    pub object: Box<str>,
    /// Which element the kernel objects to, counted over all elements of the transaction from zero; see
    /// [`Batch::elements`](crate::Batch::elements). The kernel names the first of each message, if it can.
    pub element: Option<usize>,
    /// The name of the expression that the kernel objects to.
    pub expression: Option<Box<str>>,
    /// The kernel's error number, positive.
    pub errno: i32,
    /// The kernel's explanation, where it gave one.
    pub message: Option<Box<str>>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, what) = self.operation.map_or(("carry out", "a request about"), Operation::words);
        write!(f, "cannot {verb} ")?;
        match (self.operation, self.element) {
            (Some(operation), None) if operation.is_on_elements() => f.write_str("elements ")?,
            (_, Some(element)) => write!(f, "element {element} ")?,
            (_, None) => {}
        }
        if self.object.is_empty() {
            write!(f, "table {}", self.table)?;
        } else {
            write!(f, "{what} {} of table {}", self.object, self.table)?;
        }
        if let Some(expression) = &self.expression {
            write!(f, ", expression {expression}")?;
        }
        write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

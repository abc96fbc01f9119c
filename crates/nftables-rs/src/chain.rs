//! Chains.

use crate::table::TableName;
use crate::user_data::write_comment;
use crate::wire::{chain, hook};
use netlink::MsgBuf;

/// A point in a packet's way through the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// It has just come in.
    Prerouting,
    /// It is for this machine.
    Input,
    /// It is for another machine.
    Forward,
    /// This machine has made it.
    Output,
    /// It is about to go out.
    Postrouting,
    /// Another, by its number: it differs between families.
    Other(u32),
}

impl Hook {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
            Hook::Other(number) => number,
        }
    }

    /// The hook with this number.
    #[must_use]
    pub const fn of(number: u32) -> Hook {
        match number {
            0 => Hook::Prerouting,
            1 => Hook::Input,
            2 => Hook::Forward,
            3 => Hook::Output,
            4 => Hook::Postrouting,
            number => Hook::Other(number),
        }
    }
}

/// What a chain without a verdict does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
}

impl Policy {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Policy::Drop => 0,
            Policy::Accept => 1,
        }
    }
}

/// What a chain that hangs on a hook has besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain<'a> {
    /// `filter`, `nat` or `route`.
    pub kind: &'a str,
    /// Where it hangs.
    pub hook: Hook,
    /// Its place among those on the hook: lower ones come first.
    pub priority: i32,
    /// What becomes of a packet that no rule decides; without one, it is accepted.
    pub policy: Option<Policy>,
}

/// A chain of rules. Those that hang on a hook see packets; all others are jumped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Its table.
    pub table: TableName<'a>,
    /// Its name.
    pub name: &'a str,
    /// Where it hangs, if it does. Device hooks are not covered.
    pub base: Option<BaseChain<'a>>,
    /// A comment; cut to 128 bytes.
    pub comment: Option<&'a str>,
}

impl<'a> Chain<'a> {
    /// A chain to jump to.
    #[must_use]
    pub const fn new(table: TableName<'a>, name: &'a str) -> Chain<'a> {
        Chain { table, name, base: None, comment: None }
    }

    pub(crate) fn write(&self, buf: &mut MsgBuf) {
        buf.string(chain::TABLE, self.table.name);
        buf.string(chain::NAME, self.name);
        if let Some(base) = &self.base {
            buf.string(chain::KIND, base.kind);
            if let Some(policy) = base.policy {
                buf.be32(chain::POLICY, policy.number());
            }
            buf.nest(chain::HOOK, |buf| {
                buf.be32(hook::NUMBER, base.hook.number());
                buf.be32(hook::PRIORITY, base.priority.cast_unsigned());
            });
        }
        write_comment(buf, chain::USER_DATA, self.comment);
    }
}

/// A chain, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedChain<'a> {
    /// The chain.
    pub chain: Chain<'a>,
    /// The kernel's number for it.
    pub handle: u64,
    /// Rules in the chain, plus rules anywhere that jump or go to it, plus elements of verdict maps that name it.
    pub uses: u32,
}

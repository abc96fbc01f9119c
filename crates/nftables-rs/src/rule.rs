//! Rules.

use crate::expression::{self, Expression};
use crate::table::TableName;
use crate::user_data::write_comment;
use crate::wire::{LIST_ITEM, rule};
use netlink::{Attributes, Malformed, MsgBuf};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule<'a> {
    /// Its table.
    pub table: TableName<'a>,
    /// Its chain.
    pub chain: &'a str,
    /// What it does, step by step.
    pub expressions: &'a [Expression<'a>],
    /// A comment; cut to 128 bytes.
    pub comment: Option<&'a str>,
}

impl Rule<'_> {
    pub(crate) fn write(&self, buf: &mut MsgBuf) {
        buf.string(rule::TABLE, self.table.name);
        buf.string(rule::CHAIN, self.chain);
        buf.nest(rule::EXPRESSIONS, |buf| {
            for expression in self.expressions {
                buf.nest(LIST_ITEM, |buf| expression.write(buf));
            }
        });
        write_comment(buf, rule::USER_DATA, self.comment);
    }
}

/// A rule, as the kernel lists it.
#[derive(Clone, Debug)]
pub struct ListedRule<'a> {
    /// Its table.
    pub table: TableName<'a>,
    /// Its chain.
    pub chain: &'a str,
    /// The kernel's number for it.
    pub handle: u64,
    /// A comment.
    pub comment: Option<&'a str>,
    pub(crate) expressions: Attributes<'a>,
}

impl<'a> ListedRule<'a> {
    /// What it does, step by step.
    pub fn expressions(&self) -> impl Iterator<Item = Result<Expression<'a>, Malformed>> + use<'a> {
        self.expressions.clone().map(|item| expression::expression(item?))
    }

    /// Whether it is what `wanted` would make. Counts do not count, nor do the numbers that the kernel gives anonymous sets.
    #[must_use]
    pub fn is_like(&self, wanted: &Rule<'_>) -> bool {
        let is_same =
            |(found, expression): (Result<Expression<'_>, _>, &Expression<'_>)| match (found, expression) {
                (Ok(Expression::Counter { .. }), Expression::Counter { .. }) => true,
                (
                    Ok(Expression::Lookup { set, key, to, inverse }),
                    Expression::Lookup { set: wanted, .. },
                ) if wanted.is_numbered_as(set.name) => {
                    let found = Expression::Lookup { set: *wanted, key, to, inverse };
                    found == *expression
                }
                (Ok(found), wanted) => found == *wanted,
                (Err(_), _) => false,
            };
        (self.table, self.chain, self.comment) == (wanted.table, wanted.chain, wanted.comment)
            && self.expressions.clone().count() == wanted.expressions.len()
            && self.expressions().zip(wanted.expressions).all(is_same)
    }
}

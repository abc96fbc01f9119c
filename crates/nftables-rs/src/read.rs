//! Answers to objects.

use crate::chain::{BaseChain, Chain, Hook, ListedChain, Policy};
use crate::client::Generation;
use crate::element::{Counted, Data, Element, ListedElement};
use crate::expression::{Expression, expression, verdict};
use crate::rule::ListedRule;
use crate::set::{ListedSet, SetFlags};
use crate::table::{Family, ListedTable, Table, TableFlags, TableName};
use crate::user_data::find_comment;
use crate::wire::{
    HEADER_LEN, chain, data, description, element, elements, generation, hook, message, rule, set, table,
    user_data,
};
use netlink::{Attribute, Attributes, Malformed, Message};
use std::time::Duration;

/// `None` for a family that has no name here.
fn family(message: &Message<'_>) -> Option<Family> {
    message.payload.first().copied().and_then(Family::of)
}

fn duration(attribute: &Attribute<'_>) -> Result<Duration, Malformed> {
    attribute.be64().map(Duration::from_millis)
}

/// The generation of the ruleset, and the process that made it.
pub(crate) fn generation(message: &Message<'_>) -> Result<Generation, Malformed> {
    let mut found = None;
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        if attribute.kind == generation::ID {
            found = Some(Generation(attribute.be32()?));
        }
    }
    found.ok_or(Malformed("generation without a number"))
}

/// A table; `None` if the message is about something else.
pub(crate) fn table<'a>(message: &Message<'a>) -> Result<Option<ListedTable<'a>>, Malformed> {
    let Some(family) = family(message).filter(|_| message.kind == message::NEW_TABLE) else {
        return Ok(None);
    };
    let mut listed =
        ListedTable { table: Table::new(TableName::new(family, "")), handle: 0, uses: 0, owner: None };
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            table::NAME => listed.table.name.name = attribute.string()?,
            table::FLAGS => listed.table.flags = TableFlags(attribute.be32()?),
            table::USES => listed.uses = attribute.be32()?,
            table::HANDLE => listed.handle = attribute.be64()?,
            table::OWNER => listed.owner = Some(attribute.be32()?),
            table::USER_DATA => {
                listed.table.comment = find_comment(attribute.value, user_data::COMMENT);
            }
            _ => {}
        }
    }
    Ok(Some(listed))
}

/// A chain; `None` if the message is about something else.
pub(crate) fn chain<'a>(message: &Message<'a>) -> Result<Option<ListedChain<'a>>, Malformed> {
    let Some(family) = family(message).filter(|_| message.kind == message::NEW_CHAIN) else {
        return Ok(None);
    };
    let mut listed = ListedChain { chain: Chain::new(TableName::new(family, ""), ""), handle: 0, uses: 0 };
    let (mut kind, mut policy, mut hook) = ("", None, None);
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            chain::TABLE => listed.chain.table.name = attribute.string()?,
            chain::NAME => listed.chain.name = attribute.string()?,
            chain::HANDLE => listed.handle = attribute.be64()?,
            chain::USES => listed.uses = attribute.be32()?,
            chain::KIND => kind = attribute.string()?,
            chain::POLICY => policy = Some(policy_of(attribute.be32()?)),
            chain::HOOK => hook = Some(read_hook(attribute)?),
            chain::USER_DATA => {
                listed.chain.comment = find_comment(attribute.value, user_data::COMMENT);
            }
            _ => {}
        }
    }
    listed.chain.base = hook.map(|(hook, priority)| BaseChain { kind, hook, priority, policy });
    Ok(Some(listed))
}

fn policy_of(number: u32) -> Policy {
    if number == Policy::Drop.number() { Policy::Drop } else { Policy::Accept }
}

fn read_hook(attribute: Attribute<'_>) -> Result<(Hook, i32), Malformed> {
    let (mut number, mut priority) = (0, 0);
    for part in attribute.nested() {
        let part = part?;
        match part.kind {
            hook::NUMBER => number = part.be32()?,
            hook::PRIORITY => priority = part.be32()?.cast_signed(),
            _ => {}
        }
    }
    Ok((Hook::of(number), priority))
}

/// A rule; `None` if the message is about something else.
pub(crate) fn rule<'a>(message: &Message<'a>) -> Result<Option<ListedRule<'a>>, Malformed> {
    let Some(family) = family(message).filter(|_| message.kind == message::NEW_RULE) else { return Ok(None) };
    let mut listed = ListedRule {
        table: TableName::new(family, ""),
        chain: "",
        handle: 0,
        comment: None,
        expressions: Attributes::new(&[]),
    };
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            rule::TABLE => listed.table.name = attribute.string()?,
            rule::CHAIN => listed.chain = attribute.string()?,
            rule::HANDLE => listed.handle = attribute.be64()?,
            rule::EXPRESSIONS => listed.expressions = attribute.nested(),
            rule::USER_DATA => listed.comment = find_comment(attribute.value, user_data::COMMENT),
            _ => {}
        }
    }
    Ok(Some(listed))
}

/// A set; `None` if the message is about something else.
pub(crate) fn set<'a>(message: &Message<'a>) -> Result<Option<ListedSet<'a>>, Malformed> {
    let Some(family) = family(message).filter(|_| message.kind == message::NEW_SET) else { return Ok(None) };
    let mut listed = ListedSet {
        table: TableName::new(family, ""),
        name: "",
        handle: 0,
        flags: SetFlags::NONE,
        key_type: 0,
        key_len: 0,
        data_type: 0,
        data_len: 0,
        size: None,
        timeout: None,
        comment: None,
        user_data: &[],
    };
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            set::TABLE => listed.table.name = attribute.string()?,
            set::NAME => listed.name = attribute.string()?,
            set::HANDLE => listed.handle = attribute.be64()?,
            set::FLAGS => listed.flags = SetFlags(attribute.be32()?),
            set::KEY_TYPE => listed.key_type = attribute.be32()?,
            set::KEY_LEN => listed.key_len = attribute.be32()?,
            set::DATA_TYPE => listed.data_type = attribute.be32()?,
            set::DATA_LEN => listed.data_len = attribute.be32()?,
            set::TIMEOUT => listed.timeout = Some(duration(&attribute)?),
            set::DESCRIPTION => listed.size = size(attribute)?,
            set::USER_DATA => {
                listed.user_data = attribute.value;
                listed.comment = find_comment(attribute.value, user_data::set::COMMENT);
            }
            _ => {}
        }
    }
    Ok(Some(listed))
}

fn size(attribute: Attribute<'_>) -> Result<Option<u32>, Malformed> {
    for part in attribute.nested() {
        let part = part?;
        if part.kind == description::SIZE {
            return part.be32().map(Some);
        }
    }
    Ok(None)
}

/// Visits the elements of one message of a list; none if it is about something else.
pub(crate) fn visit_elements<'a>(
    message: &Message<'a>,
    visit: &mut dyn FnMut(ListedElement<'a>),
) -> Result<(), Malformed> {
    if message.kind != message::NEW_ELEMENTS {
        return Ok(());
    }
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        if attribute.kind == elements::LIST {
            for item in attribute.nested() {
                visit(listed_element(item?)?);
            }
        }
    }
    Ok(())
}

fn listed_element<'a>(item: Attribute<'a>) -> Result<ListedElement<'a>, Malformed> {
    let mut listed = ListedElement { element: Element::new(&[]), expires_in: None, counter: None };
    for part in item.nested() {
        let part = part?;
        match part.kind {
            element::KEY => listed.element.key = bytes(part)?,
            element::KEY_END => listed.element.key_end = Some(bytes(part)?),
            element::DATA => listed.element.data = Some(read_data(part)?),
            element::FLAGS => listed.element.is_range_end = part.be32()? & element::INTERVAL_END != 0,
            element::TIMEOUT => listed.element.timeout = Some(duration(&part)?),
            element::EXPIRES => listed.expires_in = Some(duration(&part)?),
            element::USER_DATA => {
                listed.element.comment = find_comment(part.value, user_data::COMMENT);
            }
            element::EXPRESSION => {
                if let Expression::Counter { packets, bytes } = expression(part)? {
                    listed.counter = Some(Counted { packets, bytes });
                }
            }
            _ => {}
        }
    }
    Ok(listed)
}

fn bytes<'a>(attribute: Attribute<'a>) -> Result<&'a [u8], Malformed> {
    for part in attribute.nested() {
        let part = part?;
        if part.kind == data::VALUE {
            return Ok(part.value);
        }
    }
    Err(Malformed("key without a value"))
}

fn read_data<'a>(attribute: Attribute<'a>) -> Result<Data<'a>, Malformed> {
    match verdict(attribute) {
        Some(verdict) => Ok(Data::Verdict(verdict)),
        None => bytes(attribute).map(Data::Value),
    }
}

/// Reads whatever it is, for fuzzing.
pub(crate) fn read_anything(message: &Message<'_>) {
    let _ = generation(message);
    let _ = table(message);
    let _ = chain(message);
    let _ = set(message);
    let _ = visit_elements(message, &mut |_| {});
    for expression in rule(message).into_iter().flatten().flat_map(|rule| rule.expressions()) {
        let _ = expression;
    }
}

#[cfg(test)]
mod tests;

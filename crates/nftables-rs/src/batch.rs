//! Many changes that take effect together.

use crate::chain::Chain;
use crate::element::Element;
use crate::error::{Operation, Refused};
use crate::expression::SetRef;
use crate::rule::{ListedRule, Rule};
use crate::set::Set;
use crate::table::{Family, Table, TableName};
use crate::wire::{HEADER_LEN, LIST_ITEM, chain, elements, flag, message, rule, set, table};
use netlink::{List, Message, Messages, MsgBuf};

/// A message of elements ends here: its list is an attribute, whose length has 16 bits.
const MOST_BYTES_OF_ELEMENTS: usize = 60_000;

/// Length of `struct nlmsghdr` and of `struct nlattr`.
const MESSAGE_HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// A transaction: changes that the kernel carries out in order, all or none ([`crate::Nftables::commit`]).
///
/// All is written into one buffer, which [`clear`](Batch::clear) keeps for the next one.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) requests: MsgBuf,
    elements: usize,
}

impl Batch {
    /// A transaction that changes nothing.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Forgets all changes, keeps the memory.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.elements = 0;
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// How many elements were pushed so far, to add and to delete, in all lists together: the number that
    /// [`Refused::element`] will give the next one.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// All messages, as they will be sent between the two that mark the transaction's ends. Their sequence
    /// numbers come when they are sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.requests.as_bytes()
    }

    /// The rules that it adds, as the kernel would list them, but for handles and the numbers of anonymous sets.
    pub fn rules(&self) -> impl Iterator<Item = ListedRule<'_>> {
        Messages::new(self.as_bytes())
            .map_while(Result::ok)
            .filter_map(|message| crate::read::rule(&message).ok().flatten())
    }

    /// The first element that it adds whose key has these bytes in it: its number, as [`Refused::element`] counts.
    #[must_use]
    pub fn find_added(&self, bytes: &[u8]) -> Option<usize> {
        let mut before = 0;
        for message in Messages::new(self.as_bytes()).map_while(Result::ok) {
            let items = list(&message, elements::LIST).into_iter().flatten();
            for (_, _, item) in
                items.filter(|_| Operation::of(message.kind).is_some_and(Operation::is_on_elements))
            {
                let has = |it: &netlink::Attribute<'_>| it.value.windows(bytes.len()).any(|it| it == bytes);
                let mut parts = item.nested().map_while(Result::ok);
                let mut key = parts.find(|part| part.kind == crate::wire::element::KEY);
                if message.kind == message::NEW_ELEMENTS && key.take().is_some_and(|key| has(&key)) {
                    return Some(before);
                }
                before += 1;
            }
        }
        None
    }

    /// What the kernel says if it refuses an element that it is to add, by its number: for tests of what handles
    /// refusals.
    #[must_use]
    pub fn refusal(&self, element: usize, errno: i32) -> Refused {
        Refused {
            request: 0,
            operation: Some(Operation::AddElements),
            table: "".into(),
            object: "".into(),
            element: Some(element),
            expression: None,
            errno,
            message: None,
        }
    }

    /// Makes a table, unless it is there.
    pub fn add_table(&mut self, table: &Table<'_>) {
        self.begin(message::NEW_TABLE, 0, table.name.family);
        table.write(&mut self.requests);
    }

    /// Deletes a table and all that is in it.
    pub fn delete_table(&mut self, table: TableName<'_>) {
        self.begin(message::DELETE_TABLE, 0, table.family);
        self.requests.string(table::NAME, table.name);
    }

    /// Makes a chain, unless it is there.
    pub fn add_chain(&mut self, chain: &Chain<'_>) {
        self.begin(message::NEW_CHAIN, flag::CREATE, chain.table.family);
        chain.write(&mut self.requests);
    }

    /// Deletes a chain, which must have no rules, and nothing that refers to it.
    pub fn delete_chain(&mut self, table: TableName<'_>, name: &str) {
        self.begin(message::DELETE_CHAIN, 0, table.family);
        self.requests.string(chain::TABLE, table.name);
        self.requests.string(chain::NAME, name);
    }

    /// Adds a rule at the end of its chain.
    pub fn add_rule(&mut self, rule: &Rule<'_>) {
        self.begin(message::NEW_RULE, flag::CREATE | flag::APPEND, rule.table.family);
        rule.write(&mut self.requests);
    }

    /// Adds a rule at the start of its chain.
    pub fn insert_rule(&mut self, rule: &Rule<'_>) {
        self.begin(message::NEW_RULE, flag::CREATE, rule.table.family);
        rule.write(&mut self.requests);
    }

    /// Deletes one rule.
    pub fn delete_rule(&mut self, table: TableName<'_>, chain: &str, handle: u64) {
        self.flush_chain(table, chain);
        self.requests.be64(rule::HANDLE, handle);
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: TableName<'_>, chain: &str) {
        self.flush_table(table);
        self.requests.string(rule::CHAIN, chain);
    }

    /// Deletes all rules of a table.
    pub fn flush_table(&mut self, table: TableName<'_>) {
        self.begin(message::DELETE_RULE, 0, table.family);
        self.requests.string(rule::TABLE, table.name);
    }

    /// Makes a set or map, unless it is there.
    pub fn add_set(&mut self, set: &Set<'_>) {
        self.begin(message::NEW_SET, flag::CREATE, set.table.family);
        set.write(&mut self.requests);
    }

    /// Deletes a set or map, which no rule may refer to.
    pub fn delete_set(&mut self, table: TableName<'_>, name: &str) {
        self.begin(message::DELETE_SET, 0, table.family);
        self.requests.string(set::TABLE, table.name);
        self.requests.string(set::NAME, name);
    }

    /// Deletes all elements of a set or map.
    pub fn flush_set(&mut self, table: TableName<'_>, name: &str) {
        self.begin(message::DELETE_ELEMENTS, 0, table.family);
        self.requests.string(elements::SET, name);
        self.requests.string(elements::TABLE, table.name);
    }

    /// Adds the elements that are pushed to a set or map. The kernel refuses one that is there with other data.
    pub fn add_elements<'a>(
        &'a mut self,
        table: TableName<'a>,
        set: impl Into<SetRef<'a>>,
    ) -> ElementList<'a> {
        ElementList::new(self, message::NEW_ELEMENTS, flag::CREATE, table, set.into())
    }

    /// Deletes the elements that are pushed, by their keys. The kernel refuses those that are not there.
    pub fn delete_elements<'a>(
        &'a mut self,
        table: TableName<'a>,
        set: impl Into<SetRef<'a>>,
    ) -> ElementList<'a> {
        ElementList::new(self, message::DELETE_ELEMENTS, 0, table, set.into())
    }

    fn begin(&mut self, kind: u16, flags: u16, family: Family) {
        begin(&mut self.requests, kind, flags, family.number());
    }

    /// Names the objects of refusals, which come in the order of their messages.
    pub(crate) fn name_refused(&self, refused: Vec<netlink::Refused>) -> Vec<Refused> {
        let mut named = Vec::with_capacity(refused.len());
        let mut waiting = refused.into_iter().peekable();
        let mut elements_before = 0;
        for (index, message) in Messages::new(self.as_bytes()).map_while(Result::ok).enumerate() {
            while let Some(refused) = waiting.next_if(|refused| refused.index <= index) {
                named.push(name_refused(&message, refused, elements_before));
            }
            if Operation::of(message.kind).is_some_and(Operation::is_on_elements) {
                elements_before += list(&message, elements::LIST).map_or(0, Iterator::count);
            }
        }
        named
    }
}

/// Elements that are added to or deleted from one set or map, in as many messages as it takes.
#[derive(Debug)]
pub struct ElementList<'a> {
    batch: &'a mut Batch,
    kind: u16,
    flags: u16,
    table: TableName<'a>,
    set: SetRef<'a>,
    /// The message being written, if there is one: where it starts, its list, how many are in it.
    message: Option<(usize, List, u16)>,
}

impl<'a> ElementList<'a> {
    fn new(
        batch: &'a mut Batch,
        kind: u16,
        flags: u16,
        table: TableName<'a>,
        set: SetRef<'a>,
    ) -> ElementList<'a> {
        ElementList { batch, kind, flags, table, set, message: None }
    }

    /// Adds one to the list.
    pub fn push(&mut self, element: &Element<'_>) -> &mut Self {
        let len = self.batch.len();
        let is_full =
            |(start, ..): &(usize, List, u16)| len - start + element.len_at_most() > MOST_BYTES_OF_ELEMENTS;
        let (start, list, items) = match self.message {
            Some(message) if !is_full(&message) => message,
            _ => self.begin_message(),
        };
        // nft numbers them from 1; the kernel does not look.
        let item = items + LIST_ITEM;
        self.batch.requests.extend(list, |buf| buf.nest(item, |buf| element.write(buf)));
        self.batch.elements += 1;
        self.message = Some((start, list, item));
        self
    }

    fn begin_message(&mut self) -> (usize, List, u16) {
        let start = self.batch.len();
        self.batch.begin(self.kind, self.flags, self.table.family);
        let requests = &mut self.batch.requests;
        requests.string(elements::TABLE, self.table.name);
        requests.string(elements::SET, self.set.name);
        self.set.id.into_iter().for_each(|id| requests.be32(elements::SET_ID, id));
        (start, requests.begin_list(elements::LIST), 0)
    }
}

/// Begins a message.
pub(crate) fn begin(buf: &mut MsgBuf, kind: u16, flags: u16, family: u8) {
    buf.begin(kind, flags);
    buf.header(&[family, 0, 0, 0]);
}

/// Each item of a list among a message's attributes: where in the message it starts, where it ends, the item.
fn list<'a>(
    message: &Message<'a>,
    kind: u16,
) -> Option<impl Iterator<Item = (usize, usize, netlink::Attribute<'a>)>> {
    let mut at = MESSAGE_HEADER_LEN + HEADER_LEN;
    for attribute in message.attributes(HEADER_LEN).ok()?.map_while(Result::ok) {
        if attribute.kind == kind {
            at += ATTRIBUTE_HEADER_LEN;
            return Some(attribute.nested().map_while(Result::ok).map(move |item| {
                let start = at;
                at += ATTRIBUTE_HEADER_LEN + item.value.len().next_multiple_of(4);
                (start, at, item)
            }));
        }
        at += ATTRIBUTE_HEADER_LEN + attribute.value.len().next_multiple_of(4);
    }
    None
}

/// Which item of a list the offset of a refusal means.
fn item_at<'a>(
    message: &Message<'a>,
    kind: u16,
    offset: Option<u32>,
) -> Option<(usize, netlink::Attribute<'a>)> {
    let offset = usize::try_from(offset?).ok()?;
    let mut items = list(message, kind)?.enumerate();
    items.find_map(|(index, (start, end, item))| (start..end).contains(&offset).then_some((index, item)))
}

/// Names the object of the refusal of one message.
fn name_refused(message: &Message<'_>, refused: netlink::Refused, elements_before: usize) -> Refused {
    let netlink::Refused { index, refusal } = refused;
    let operation = Operation::of(message.kind);
    let element = match operation {
        Some(Operation::AddElements | Operation::DeleteElements) => {
            item_at(message, elements::LIST, refusal.offset).map(|(index, _)| elements_before + index)
        }
        _ => None,
    };
    let expression = match operation {
        Some(Operation::AddRule) => item_at(message, rule::EXPRESSIONS, refusal.offset)
            .and_then(|(_, item)| crate::expression::expression(item).ok())
            .map(|expression| expression.name().into()),
        _ => None,
    };
    let (table, object) = names(message, operation);
    Refused {
        request: index,
        operation,
        table: table.into(),
        object: object.into(),
        element,
        expression,
        errno: refusal.errno,
        message: refusal.message,
    }
}

/// Family and name of the table, and the name of the chain or set.
fn names<'a>(message: &Message<'a>, operation: Option<Operation>) -> (String, &'a str) {
    // Of all messages, the table is the first attribute.
    let object_kind = match operation {
        Some(Operation::AddChain | Operation::DeleteChain) => chain::NAME,
        Some(Operation::AddRule | Operation::DeleteRule) => rule::CHAIN,
        Some(Operation::AddSet | Operation::DeleteSet) => set::NAME,
        Some(Operation::AddElements | Operation::DeleteElements) => elements::SET,
        _ => 0,
    };
    let text = |kind| {
        let mut attributes = message.attributes(HEADER_LEN).ok()?.map_while(Result::ok);
        attributes.find(|attribute| attribute.kind == kind)?.string().ok()
    };
    let family = message.payload.first().copied().and_then(Family::of);
    let family = family.map_or(String::new(), |family| format!("{family} "));
    (family + text(table::NAME).unwrap_or_default(), text(object_kind).unwrap_or_default())
}

/// Names whatever it is, for fuzzing.
pub(crate) fn name_anything(message: &Message<'_>) {
    for offset in [None, Some(0), Some(20), Some(36), Some(64), u32::try_from(message.payload.len()).ok()] {
        let refusal = netlink::Refusal { errno: libc::EINVAL, message: None, offset };
        let named = name_refused(message, netlink::Refused { index: 0, refusal }, 0);
        let _ = named.to_string();
    }
}

#[cfg(test)]
mod tests;

//! Sets and maps.

use crate::expression::{CtKey, Direction, MetaKey, NumgenKind};
use crate::numbers::flags;
use crate::table::TableName;
use crate::user_data::Entries;
use crate::wire::user_data::{set as entry, type_of};
use crate::wire::{LIST_ITEM, description, expression, set};
use netlink::MsgBuf;
use std::time::Duration;

/// In which order a value's bytes are; nft needs it to list numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// Neither, or of no matter.
    None,
    /// That of this machine.
    Host,
    /// That of the network.
    Network,
}

impl ByteOrder {
    const fn number(self) -> u32 {
        match self {
            ByteOrder::None => 0,
            ByteOrder::Host => 1,
            ByteOrder::Network => 2,
        }
    }
}

/// The type of a value, as nft knows it. The kernel only needs its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataType {
    /// nft's number for it.
    pub number: u32,
    /// Its length in bytes.
    pub len: u32,
    /// The order of its bytes.
    pub order: ByteOrder,
}

impl DataType {
    /// A number, in host order. nft lists it only as a part, or as `typeof`.
    pub const INTEGER: DataType = DataType::host(4, 4);
    /// An IPv4 address.
    pub const IPV4_ADDRESS: DataType = DataType::network(7, 4);
    /// An IPv6 address.
    pub const IPV6_ADDRESS: DataType = DataType::network(8, 16);
    /// A MAC address.
    pub const ETHERNET_ADDRESS: DataType = DataType::network(9, 6);
    /// A protocol above IP.
    pub const INET_PROTO: DataType = DataType::network(12, 1);
    /// A port.
    pub const INET_SERVICE: DataType = DataType::network(13, 2);
    /// A mark, in host order.
    pub const MARK: DataType = DataType::host(19, 4);
    /// The index of an interface, in host order.
    pub const INTERFACE_INDEX: DataType = DataType::host(20, 4);
    /// The name of an interface.
    pub const INTERFACE_NAME: DataType = DataType::host(41, 16);

    const fn host(number: u32, len: u32) -> DataType {
        DataType { number, len, order: ByteOrder::Host }
    }

    const fn network(number: u32, len: u32) -> DataType {
        DataType { number, len, order: ByteOrder::Network }
    }
}

/// An expression that a set's key or data comes from. Listings show it as `typeof`, which can say what types
/// cannot: that a part is a number that [`Numgen`](TypeOf::Numgen) draws, for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TypeOf {
    /// `ip saddr`
    Ipv4Source,
    /// `ip daddr`
    Ipv4Destination,
    /// `ip6 saddr`
    Ipv6Source,
    /// `ip6 daddr`
    Ipv6Destination,
    /// `th sport`: of any protocol.
    SourcePort,
    /// `th dport`: of any protocol.
    DestinationPort,
    /// `meta l4proto`
    L4Protocol,
    /// `meta mark`
    Mark,
    /// `ct …`
    Ct {
        /// What is known of a connection.
        key: CtKey,
        /// Of which direction.
        direction: Option<Direction>,
        /// Its type.
        data: DataType,
    },
    /// `numgen … mod …`
    Numgen {
        /// How it goes from one number to the next.
        kind: NumgenKind,
        /// Below this.
        modulus: u32,
        /// Plus this.
        offset: u32,
    },
}

impl TypeOf {
    /// The type of what the expression gives.
    #[must_use]
    pub const fn data_type(&self) -> DataType {
        match *self {
            TypeOf::Ipv4Source | TypeOf::Ipv4Destination => DataType::IPV4_ADDRESS,
            TypeOf::Ipv6Source | TypeOf::Ipv6Destination => DataType::IPV6_ADDRESS,
            TypeOf::SourcePort | TypeOf::DestinationPort => DataType::INET_SERVICE,
            // As nft has it where it is not part of a packet.
            TypeOf::L4Protocol => DataType { order: ByteOrder::Host, ..DataType::INET_PROTO },
            TypeOf::Mark => DataType::MARK,
            TypeOf::Ct { data, .. } => data,
            TypeOf::Numgen { .. } => DataType::INTEGER,
        }
    }

    /// The kind of expression and what it is made of.
    fn describe(&self, entries: &mut Entries) {
        let mut kind_and = |kind: u32, numbers: &[u32]| {
            of_kind(entries, kind, |entries| {
                for (index, number) in (0_u8..).zip(numbers) {
                    entries.number(index, *number);
                }
            });
        };
        match *self {
            TypeOf::Ipv4Source => kind_and(type_of::PAYLOAD, &[type_of::IPV4, 11]),
            TypeOf::Ipv4Destination => kind_and(type_of::PAYLOAD, &[type_of::IPV4, 12]),
            TypeOf::Ipv6Source => kind_and(type_of::PAYLOAD, &[type_of::IPV6, 8]),
            TypeOf::Ipv6Destination => kind_and(type_of::PAYLOAD, &[type_of::IPV6, 9]),
            TypeOf::SourcePort => kind_and(type_of::PAYLOAD, &[type_of::TRANSPORT, 1]),
            TypeOf::DestinationPort => kind_and(type_of::PAYLOAD, &[type_of::TRANSPORT, 2]),
            TypeOf::L4Protocol => kind_and(type_of::META, &[MetaKey::L4PROTO.0]),
            TypeOf::Mark => kind_and(type_of::META, &[MetaKey::MARK.0]),
            TypeOf::Ct { key, direction, .. } => {
                let direction = match direction {
                    None => u32::MAX,
                    Some(Direction::Original) => 0,
                    Some(Direction::Reply) => 1,
                };
                kind_and(type_of::CT, &[key.0, direction]);
            }
            TypeOf::Numgen { kind, modulus, offset } => {
                kind_and(type_of::NUMGEN, &[kind.0, modulus, offset]);
            }
        }
    }
}

/// What keys or data are made of: one part, or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetType<'a> {
    /// Listed as `type`.
    Types(&'a [DataType]),
    /// Listed as `typeof`; of maps, only if key and data both are.
    TypeOf(&'a [TypeOf]),
}

impl<'a> SetType<'a> {
    /// The types of its parts.
    pub fn parts(self) -> impl Iterator<Item = DataType> + 'a {
        let (types, expressions) = match self {
            SetType::Types(types) => (types, &[][..]),
            SetType::TypeOf(expressions) => (&[][..], expressions),
        };
        types.iter().copied().chain(expressions.iter().map(TypeOf::data_type))
    }

    /// nft's number for it: six bits for each part.
    #[must_use]
    pub fn number(self) -> u32 {
        self.parts().fold(0, |number, part| number << 6 | part.number)
    }

    /// Its length in bytes; the parts of a concatenation are padded to four bytes.
    #[must_use]
    pub fn len(self) -> u32 {
        if self.is_concatenation() {
            self.parts().map(|part| part.len.next_multiple_of(4)).sum()
        } else {
            self.parts().map(|part| part.len).sum()
        }
    }

    /// Whether it has no part; the kernel refuses such.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.parts().next().is_none()
    }

    fn is_concatenation(self) -> bool {
        self.parts().nth(1).is_some()
    }

    fn order(self) -> ByteOrder {
        if self.is_concatenation() {
            return ByteOrder::None;
        }
        self.parts().next().map_or(ByteOrder::None, |part| part.order)
    }

    /// What listings need beyond the number.
    fn describe(self, entries: &mut Entries, kind: u8) {
        match self {
            SetType::TypeOf([only]) => entries.nest(kind, |entries| only.describe(entries)),
            SetType::TypeOf(parts) => entries.nest(kind, |entries| {
                of_kind(entries, type_of::CONCAT, |entries| {
                    for (index, part) in (0_u8..).zip(parts) {
                        entries.nest(index, |entries| part.describe(entries));
                    }
                });
            }),
            SetType::Types(_) if self.is_concatenation() => {
                entries.nest(kind, |entries| of_kind(entries, type_of::CONCAT, |_| {}));
            }
            SetType::Types(_) => {}
        }
    }
}

/// An expression of a kind, and what it is made of.
fn of_kind(entries: &mut Entries, kind: u32, parts: impl FnOnce(&mut Entries)) {
    entries.number(type_of::EXPRESSION, kind);
    entries.nest(type_of::DESCRIPTION, parts);
}

/// What a map's keys lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapData<'a> {
    /// A value.
    Value(SetType<'a>),
    /// A verdict. The kernel checks each element of *all* verdict maps when a transaction adds one that jumps or
    /// goes to a chain.
    Verdict,
}

flags! {
    /// What is special about a set. That it is a map, and that its ranges have several parts, goes without saying.
    SetFlags {
        /// It is gone with the rule that looks things up in it.
        ANONYMOUS = 0x01;
        /// It does not change while a rule refers to it.
        CONSTANT = 0x02;
        /// Its keys are ranges.
        INTERVAL = 0x04;
        /// Its elements may have timeouts.
        TIMEOUT = 0x10;
        /// Rules may change it ([`Expression::Dynset`](crate::Expression::Dynset)).
        DYNAMIC = 0x20;
    }
}

/// A set, or with `data` a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set<'a> {
    /// Its table.
    pub table: TableName<'a>,
    /// Its name. An anonymous set's holds `%d`, for which the kernel puts a number.
    pub name: &'a str,
    /// Its number within the transaction; see [`SetRef`](crate::SetRef). Only those of anonymous sets need to differ.
    pub id: u32,
    /// What its keys are made of.
    pub key: SetType<'a>,
    /// What they lead to, in a map.
    pub data: Option<MapData<'a>>,
    /// What is special about it.
    pub flags: SetFlags,
    /// At most this many elements. The kernel then makes a table of that size, which does not grow.
    pub size: Option<u32>,
    /// How long elements live that do not say.
    pub timeout: Option<Duration>,
    /// How often the kernel removes those that have timed out.
    pub gc_interval: Option<Duration>,
    /// Listings show neighbouring ranges as one.
    pub merge: bool,
    /// Each element counts the packets that it matched.
    pub counter: bool,
    /// A comment; cut to 128 bytes.
    pub comment: Option<&'a str>,
}

impl<'a> Set<'a> {
    /// A plain set.
    #[must_use]
    pub const fn new(table: TableName<'a>, name: &'a str, key: SetType<'a>) -> Set<'a> {
        Set {
            table,
            name,
            id: 0,
            key,
            data: None,
            flags: SetFlags::NONE,
            size: None,
            timeout: None,
            gc_interval: None,
            merge: false,
            counter: false,
            comment: None,
        }
    }

    /// A plain map to values.
    #[must_use]
    pub const fn map(table: TableName<'a>, name: &'a str, key: SetType<'a>, data: SetType<'a>) -> Set<'a> {
        Set { data: Some(MapData::Value(data)), ..Set::new(table, name, key) }
    }

    /// A plain map to verdicts.
    #[must_use]
    pub const fn verdict_map(table: TableName<'a>, name: &'a str, key: SetType<'a>) -> Set<'a> {
        Set { data: Some(MapData::Verdict), ..Set::new(table, name, key) }
    }

    /// Ranges of several parts.
    fn has_concatenated_ranges(&self) -> bool {
        self.flags.contains(SetFlags::INTERVAL) && self.key.is_concatenation()
    }

    fn flag_bits(&self) -> u32 {
        let map = if self.data.is_some() { set::MAP } else { 0 };
        let concat = if self.has_concatenated_ranges() { set::CONCAT } else { 0 };
        self.flags.0 | map | concat
    }

    pub(crate) fn write(&self, buf: &mut MsgBuf) {
        buf.string(set::TABLE, self.table.name);
        buf.string(set::NAME, self.name);
        buf.be32(set::FLAGS, self.flag_bits());
        buf.be32(set::KEY_TYPE, self.key.number());
        buf.be32(set::KEY_LEN, self.key.len());
        let (data_type, data_len) = match self.data {
            None => (None, 0),
            Some(MapData::Value(data)) => (Some(data.number()), data.len()),
            Some(MapData::Verdict) => (Some(set::VERDICT), 0),
        };
        if let Some(data_type) = data_type {
            buf.be32(set::DATA_TYPE, data_type);
            buf.be32(set::DATA_LEN, data_len);
        }
        buf.be32(set::ID, self.id);
        self.write_description(buf);
        if let Some(timeout) = self.timeout {
            buf.be64(set::TIMEOUT, crate::expression::milliseconds(timeout));
        }
        if let Some(interval) = self.gc_interval {
            buf.be32(set::GC_INTERVAL, u32::try_from(interval.as_millis()).unwrap_or(u32::MAX));
        }
        buf.bytes(set::USER_DATA, self.user_data().as_bytes());
        if self.counter {
            buf.nest(set::EXPRESSION, |buf| {
                buf.string(expression::NAME, "counter");
                buf.nest(expression::DATA, |_| {});
            });
        }
    }

    fn write_description(&self, buf: &mut MsgBuf) {
        if self.size.is_none() && !self.has_concatenated_ranges() {
            return;
        }
        buf.nest(set::DESCRIPTION, |buf| {
            self.size.into_iter().for_each(|size| buf.be32(description::SIZE, size));
            if self.has_concatenated_ranges() {
                buf.nest(description::CONCAT, |buf| {
                    for part in self.key.parts() {
                        buf.nest(LIST_ITEM, |buf| buf.be32(description::FIELD_LEN, part.len));
                    }
                });
            }
        });
    }

    /// What nft needs to list it.
    fn user_data(&self) -> Entries {
        let mut entries = Entries::new();
        entries.number(entry::KEY_BYTE_ORDER, self.key.order().number());
        match self.data {
            None => {}
            Some(MapData::Value(data)) => entries.number(entry::DATA_BYTE_ORDER, data.order().number()),
            Some(MapData::Verdict) => entries.number(entry::DATA_BYTE_ORDER, ByteOrder::None.number()),
        }
        if self.merge {
            entries.number(entry::MERGE, 1);
        }
        self.key.describe(&mut entries, entry::KEY_TYPEOF);
        match (self.data, self.key) {
            (Some(MapData::Value(data)), _) => data.describe(&mut entries, entry::DATA_TYPEOF),
            (Some(MapData::Verdict), SetType::TypeOf(_)) => {
                entries.nest(entry::DATA_TYPEOF, |entries| of_kind(entries, type_of::VERDICT, |_| {}));
            }
            (Some(MapData::Verdict), SetType::Types(_)) | (None, _) => {}
        }
        if self.data.is_some() {
            entries.number(entry::DATA_INTERVAL, 0);
        }
        if let Some(comment) = self.comment {
            entries.comment(entry::COMMENT, comment);
        }
        entries
    }
}

/// A set, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedSet<'a> {
    /// Its table.
    pub table: TableName<'a>,
    /// Its name.
    pub name: &'a str,
    /// The kernel's number for it.
    pub handle: u64,
    /// What is special about it; [`is_map`](ListedSet::is_map) tells whether it is a map.
    pub flags: SetFlags,
    /// nft's number for the type of its keys; see [`SetType::number`].
    pub key_type: u32,
    /// Their length in bytes.
    pub key_len: u32,
    /// nft's number for the type of its data, in a map.
    pub data_type: u32,
    /// The length of the data in bytes.
    pub data_len: u32,
    /// At most this many elements.
    pub size: Option<u32>,
    /// How long elements live that do not say.
    pub timeout: Option<Duration>,
    /// A comment.
    pub comment: Option<&'a str>,
    /// What nft keeps for its listings, as it came.
    pub user_data: &'a [u8],
}

impl ListedSet<'_> {
    /// Whether it is a map.
    #[must_use]
    pub const fn is_map(&self) -> bool {
        self.flags.0 & set::MAP != 0
    }

    /// Whether its elements lead to verdicts.
    #[must_use]
    pub const fn is_verdict_map(&self) -> bool {
        self.is_map() && self.data_type == set::VERDICT
    }

    /// Whether it is what `wanted` would make: the same types, limits, flags and listing. Size and timeouts are
    /// compared as well.
    #[must_use]
    pub fn is_like(&self, wanted: &Set<'_>) -> bool {
        let (data_type, data_len) = match wanted.data {
            None => (0, 0),
            Some(MapData::Value(data)) => (data.number(), data.len()),
            Some(MapData::Verdict) => (set::VERDICT, 0),
        };
        (self.table, self.name) == (wanted.table, wanted.name)
            && self.flags.0 == wanted.flag_bits()
            && (self.key_type, self.key_len) == (wanted.key.number(), wanted.key.len())
            && self.data_type == data_type
            && (self.is_verdict_map() || self.data_len == data_len)
            && (self.size, self.timeout) == (wanted.size, wanted.timeout)
            && self.user_data == wanted.user_data().as_bytes()
    }
}

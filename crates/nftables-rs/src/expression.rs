//! What rules are made of.

use crate::numbers::{flags, numbers};
use crate::register::Register;
use crate::table::Family;
use crate::value::Value;
use std::time::Duration;

mod read;
mod write;

pub(crate) use read::{expression, verdict};
pub(crate) use write::{milliseconds, verdict as write_verdict};

numbers! {
    /// Where in a packet an offset counts from.
    PayloadBase {
        /// The link-layer header.
        LINK = 0;
        /// The IP header.
        NETWORK = 1;
        /// The TCP, UDP or SCTP header.
        TRANSPORT = 2;
        /// What follows the transport header.
        INNER = 3;
    }
}

numbers! {
    /// What the kernel knows of a packet besides its bytes (`NFT_META_*`).
    MetaKey {
        /// Length of the packet.
        LEN = 0;
        /// The mark, in host order.
        MARK = 3;
        /// Index of the interface it came in by.
        IIF = 4;
        /// Index of the interface it will go out by.
        OIF = 5;
        /// Name of the interface it came in by, 16 bytes.
        IIFNAME = 6;
        /// Name of the interface it will go out by, 16 bytes.
        OIFNAME = 7;
        /// User id of the socket that sent it.
        SKUID = 10;
        /// IPv4 or IPv6, one byte.
        NFPROTO = 15;
        /// The protocol above IP, one byte.
        L4PROTO = 16;
    }
}

numbers! {
    /// What connection tracking knows of a packet's connection (`NFT_CT_*`).
    CtKey {
        /// A bit: new 8, established 2, related 4, invalid 1.
        STATE = 0;
        /// The direction of this packet.
        DIRECTION = 1;
        /// Bits; 0x20 tells that the destination was translated, 0x10 the source.
        STATUS = 2;
        /// The connection's mark, in host order.
        MARK = 3;
        /// The protocol above IP, one byte.
        PROTOCOL = 10;
        /// The source port of a direction.
        PROTO_SOURCE = 11;
        /// The destination port of a direction.
        PROTO_DESTINATION = 12;
        /// The IPv4 source of a direction.
        SOURCE_IPV4 = 19;
        /// The IPv4 destination of a direction.
        DESTINATION_IPV4 = 20;
        /// The IPv6 source of a direction.
        SOURCE_IPV6 = 21;
        /// The IPv6 destination of a direction.
        DESTINATION_IPV6 = 22;
    }
}

/// One of the two directions of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As its first packet went, before any translation.
    Original,
    /// As replies go.
    Reply,
}

numbers! {
    /// How [`Expression::Cmp`] compares.
    Comparison {
        /// Equal.
        EQUAL = 0;
        /// Not equal.
        NOT_EQUAL = 1;
        /// Less, byte by byte from the first.
        LESS = 2;
        /// Less or equal.
        LESS_OR_EQUAL = 3;
        /// Greater.
        GREATER = 4;
        /// Greater or equal.
        GREATER_OR_EQUAL = 5;
    }
}

numbers! {
    /// From which order to which; both do the same.
    ByteOrderChange {
        /// Network order to host order.
        TO_HOST = 0;
        /// Host order to network order.
        TO_NETWORK = 1;
    }
}

/// Which address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NatKind {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

flags! {
    /// How addresses and ports are chosen where there is a choice.
    NatFlags {
        /// A random port, of few.
        RANDOM = 4;
        /// The same address for all of a client's connections.
        PERSISTENT = 8;
        /// A random port, of all.
        FULLY_RANDOM = 16;
    }
}

/// What a rejected packet's sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Destination unreachable with this code, of the packet's family: codes differ between ICMP and ICMPv6.
    Unreachable(u8),
    /// A TCP reset.
    TcpReset,
    /// Destination unreachable in tables of both families: 0 no route, 1 port, 2 host, 3 prohibited.
    UnreachableOfBoth(u8),
}

impl Reject {
    /// Port unreachable, over IPv4.
    pub const PORT_UNREACHABLE_IPV4: Reject = Reject::Unreachable(3);
    /// Port unreachable, over IPv6.
    pub const PORT_UNREACHABLE_IPV6: Reject = Reject::Unreachable(4);
}

numbers! {
    /// How [`Expression::Numgen`] goes from one number to the next.
    NumgenKind {
        /// One up, and back to the first.
        INCREMENTAL = 0;
        /// At random.
        RANDOM = 1;
    }
}

numbers! {
    /// What a look-up in the routing tables gives.
    FibResult {
        /// The index of the outgoing interface, or 0.
        OIF = 1;
        /// The name of the outgoing interface, 16 bytes.
        OIFNAME = 2;
        /// The address's type, in host order: 1 unicast, 2 local, 3 broadcast, 5 multicast, …
        ADDRESS_TYPE = 3;
    }
}

flags! {
    /// What is looked up in the routing tables, and in the light of what.
    FibFlags {
        /// The packet's source address.
        SOURCE = 1;
        /// The packet's destination address.
        DESTINATION = 2;
        /// With the packet's mark.
        MARK = 4;
        /// Only what is so on the incoming interface.
        IIF = 8;
        /// Only what is so on the outgoing interface.
        OIF = 16;
        /// Only whether there is a route.
        PRESENT = 32;
    }
}

numbers! {
    /// What [`Expression::Dynset`] does.
    DynsetOperation {
        /// Adds an element, unless it is there.
        ADD = 0;
        /// Adds an element; if it is there, its time starts over, and its data stays as it is.
        UPDATE = 1;
        /// Deletes an element.
        DELETE = 2;
    }
}

/// Names a set from within a rule or a list of elements.
///
/// The name is enough, but for anonymous sets: they get theirs from the kernel, and until then only the
/// number tells which is meant. Two are equal if their names are.
#[derive(Clone, Copy, Debug, Eq)]
pub struct SetRef<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number within the transaction, if that makes the set.
    pub id: Option<u32>,
}

impl SetRef<'_> {
    /// Whether the kernel may have made this name of it, an anonymous set's.
    pub(crate) fn is_numbered_as(&self, name: &str) -> bool {
        let number = self.name.strip_suffix("%d").and_then(|prefix| name.strip_prefix(prefix));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

impl PartialEq for SetRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<'a> From<&'a str> for SetRef<'a> {
    fn from(name: &'a str) -> SetRef<'a> {
        SetRef { name, id: None }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict<'a> {
    /// It passes this hook's chain.
    Accept,
    /// It is dropped.
    Drop,
    /// The next rule.
    Continue,
    /// Back to the rule after the one that jumped here.
    Return,
    /// On to a chain, and back after its last rule.
    Jump(&'a str),
    /// On to a chain, and not back.
    Goto(&'a str),
    /// Another, by its number.
    Other(i32),
}

/// One step of a rule. A rule goes on to its next step until one does not match or gives a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression<'a> {
    /// Loads bytes of the packet.
    Payload {
        /// Where to.
        to: Register,
        /// Where the offset counts from.
        base: PayloadBase,
        /// The first byte.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Loads what the kernel knows of the packet.
    Meta {
        /// Where to.
        to: Register,
        /// What.
        key: MetaKey,
    },
    /// Changes what the kernel knows of the packet.
    SetMeta {
        /// What.
        key: MetaKey,
        /// The new value.
        from: Register,
    },
    /// Loads what is known of the connection.
    Ct {
        /// Where to.
        to: Register,
        /// What.
        key: CtKey,
        /// Of which direction, where it has two.
        direction: Option<Direction>,
    },
    /// Matches if the comparison holds.
    Cmp {
        /// What is compared.
        register: Register,
        /// How.
        comparison: Comparison,
        /// With what.
        value: Value,
    },
    /// `to = (from & mask) ^ xor`
    Bitwise {
        /// The operand.
        from: Register,
        /// The result.
        to: Register,
        /// As long as the operand.
        mask: Value,
        /// As long as the operand.
        xor: Value,
    },
    /// Turns numbers round.
    ByteOrder {
        /// The numbers.
        from: Register,
        /// The result.
        to: Register,
        /// Which way.
        change: ByteOrderChange,
        /// Bytes in all.
        len: u32,
        /// Bytes of each: 2, 4 or 8.
        size: u32,
    },
    /// Matches if a set or map has the key, or if it has not; loads the key's data.
    Lookup {
        /// Where it is looked up.
        set: SetRef<'a>,
        /// The key.
        key: Register,
        /// Where the data goes; [`Register::VERDICT`] with a verdict map.
        to: Option<Register>,
        /// Match if the set does not have it.
        inverse: bool,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        to: Register,
        /// What.
        value: Value,
    },
    /// Gives a verdict.
    Verdict(Verdict<'a>),
    /// Translates an address, a port or both, and accepts.
    Nat {
        /// Which address.
        kind: NatKind,
        /// The address's family: IPv4 or IPv6.
        family: Family,
        /// The new address.
        address: Option<Register>,
        /// The new port.
        port: Option<Register>,
        /// How to choose.
        flags: NatFlags,
    },
    /// Translates the source address to the outgoing interface's.
    Masquerade {
        /// How to choose a port.
        flags: NatFlags,
    },
    /// Drops the packet and tells its sender.
    Reject(Reject),
    /// Draws a number, in host order.
    Numgen {
        /// Where to.
        to: Register,
        /// How.
        kind: NumgenKind,
        /// Below this.
        modulus: u32,
        /// Plus this.
        offset: u32,
    },
    /// Looks an address up in the routing tables.
    Fib {
        /// Where to.
        to: Register,
        /// What is wanted.
        result: FibResult,
        /// What is looked up.
        flags: FibFlags,
    },
    /// Changes a dynamic set or map.
    Dynset {
        /// Which.
        set: SetRef<'a>,
        /// How.
        operation: DynsetOperation,
        /// The key.
        key: Register,
        /// The data, of a map.
        data: Option<Register>,
        /// How long the element lives; without it, as long as the set says.
        timeout: Option<Duration>,
    },
    /// Counts packets.
    Counter {
        /// Packets so far.
        packets: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Anything else, as it came. It can be written back, too.
    Other {
        /// The expression's name.
        name: &'a str,
        /// Its attributes.
        data: &'a [u8],
    },
}

impl Expression<'_> {
    /// A counter that has counted nothing.
    pub const COUNTER: Expression<'static> = Expression::Counter { packets: 0, bytes: 0 };
}

#[cfg(test)]
mod tests;

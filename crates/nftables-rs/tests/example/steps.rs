//! Expressions, put together to what rules need.

use nftables_rs::{
    ByteOrderChange, Comparison, CtKey, Direction, DynsetOperation, Expression, Family, FibFlags, FibResult,
    MetaKey, NatFlags, NatKind, NumgenKind, PayloadBase, Register, Reject, SetRef, Value, Verdict,
};
use std::time::Duration;

/// A part of a key, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPart {
    Source,
    Destination,
    Protocol,
    Port,
    /// The destination as it was before the translation.
    OriginalDestination,
    OriginalPort,
    /// A random number below this.
    Random(u32),
}

/// A rule that is being put together.
#[derive(Clone, Debug)]
pub struct Steps {
    family: Family,
    pub list: Vec<Expression<'static>>,
}

const ENDPOINT: &[KeyPart] = &[KeyPart::Destination, KeyPart::Port];

const FIRST: Register = Register::word(0);
const CT_NEW: u32 = 8;
const CT_STATUS_DNAT: u32 = 0x20;
const ADDRESS_IS_LOCAL: u32 = 2;

impl Steps {
    pub fn new(family: Family) -> Steps {
        Steps { family, list: Vec::new() }
    }

    fn step(mut self, expression: Expression<'static>) -> Steps {
        self.list.push(expression);
        self
    }

    fn is_ipv6(&self) -> bool {
        self.family == Family::Ipv6
    }

    /// Where the addresses of a packet are, and how long they are.
    fn address(&self, part: KeyPart) -> (u32, u32) {
        match (self.is_ipv6(), part) {
            (false, KeyPart::Source) => (12, 4),
            (false, _) => (16, 4),
            (true, KeyPart::Source) => (8, 16),
            (true, _) => (24, 16),
        }
    }

    /// How many registers a part takes.
    fn words(&self, part: KeyPart) -> u8 {
        let is_address =
            matches!(part, KeyPart::Source | KeyPart::Destination | KeyPart::OriginalDestination);
        if is_address && self.is_ipv6() { 4 } else { 1 }
    }

    fn load_part(self, part: KeyPart, at: u8) -> Steps {
        let to = Register::word(at);
        let original = Some(Direction::Original);
        let expression = match part {
            KeyPart::Source | KeyPart::Destination => {
                let (offset, len) = self.address(part);
                Expression::Payload { to, base: PayloadBase::NETWORK, offset, len }
            }
            KeyPart::Protocol => Expression::Meta { to, key: MetaKey::L4PROTO },
            KeyPart::Port => Expression::Payload { to, base: PayloadBase::TRANSPORT, offset: 2, len: 2 },
            KeyPart::OriginalDestination => {
                let key = if self.is_ipv6() { CtKey::DESTINATION_IPV6 } else { CtKey::DESTINATION_IPV4 };
                Expression::Ct { to, key, direction: original }
            }
            KeyPart::OriginalPort => {
                Expression::Ct { to, key: CtKey::PROTO_DESTINATION, direction: original }
            }
            KeyPart::Random(modulus) => {
                Expression::Numgen { to, kind: NumgenKind::RANDOM, modulus, offset: 0 }
            }
        };
        self.step(expression)
    }

    /// Loads the parts one after the other; says where the next one would go.
    fn load(mut self, parts: &[KeyPart], mut at: u8) -> (Steps, u8) {
        for part in parts {
            let words = self.words(*part);
            self = self.load_part(*part, at);
            at += words;
        }
        (self, at)
    }

    fn look_up(self, set: SetRef<'static>, to: Option<Register>, inverse: bool) -> Steps {
        self.step(Expression::Lookup { set, key: FIRST, to, inverse })
    }

    pub fn match_in(self, set: SetRef<'static>, key: &[KeyPart]) -> Steps {
        self.load(key, 0).0.look_up(set, None, false)
    }

    /// As nft writes it: it turns the protocol round, one byte of two, which changes nothing.
    pub fn match_no_source(self, set: SetRef<'static>) -> Steps {
        let (steps, protocol) = self.load(&[KeyPart::Destination], 0);
        let (steps, port) = steps.load(&[KeyPart::Protocol], protocol);
        let register = Register::word(protocol);
        let turned = steps.step(Expression::ByteOrder {
            from: register,
            to: register,
            change: ByteOrderChange::TO_NETWORK,
            len: 1,
            size: 2,
        });
        turned.load(&[KeyPart::Port, KeyPart::Source], port).0.look_up(set, None, true)
    }

    fn compare(self, comparison: Comparison, value: Value) -> Steps {
        self.step(Expression::Cmp { register: FIRST, comparison, value })
    }

    fn mask(self, mask: Value, xor: Value) -> Steps {
        self.step(Expression::Bitwise { from: FIRST, to: FIRST, mask, xor })
    }

    fn has_bit(self, bit: u32) -> Steps {
        self.mask(Value::host(bit), Value::host(0)).compare(Comparison::NOT_EQUAL, Value::host(0))
    }

    fn ct(self, key: CtKey) -> Steps {
        self.step(Expression::Ct { to: FIRST, key, direction: None })
    }

    pub fn match_new(self) -> Steps {
        self.ct(CtKey::STATE).has_bit(CT_NEW)
    }

    pub fn match_translated(self) -> Steps {
        self.ct(CtKey::STATUS).has_bit(CT_STATUS_DNAT)
    }

    pub fn match_local_source(self) -> Steps {
        let flags = FibFlags::SOURCE;
        self.step(Expression::Fib { to: FIRST, result: FibResult::ADDRESS_TYPE, flags })
            .compare(Comparison::EQUAL, Value::host(ADDRESS_IS_LOCAL))
    }

    fn change_mark(self, mask: u32, xor: u32) -> Steps {
        self.step(Expression::Meta { to: FIRST, key: MetaKey::MARK })
            .mask(Value::host(mask), Value::host(xor))
            .step(Expression::SetMeta { key: MetaKey::MARK, from: FIRST })
    }

    /// Sets a bit of the mark.
    pub fn mark(self, bit: u32) -> Steps {
        self.change_mark(!bit, bit)
    }

    /// Matches if the mark has the bit, and clears it.
    pub fn unmark(self, bit: u32) -> Steps {
        self.step(Expression::Meta { to: FIRST, key: MetaKey::MARK }).has_bit(bit).change_mark(u32::MAX, bit)
    }

    pub fn masquerade(self) -> Steps {
        self.step(Expression::Masquerade { flags: NatFlags::FULLY_RANDOM })
    }

    /// Translates the destination to the endpoint that a map has for the key.
    pub fn translate_by(self, map: SetRef<'static>, key: &[KeyPart]) -> Steps {
        let family = self.family;
        let port = Register::word(self.words(KeyPart::Destination));
        self.load(key, 0).0.look_up(map, Some(FIRST), false).step(Expression::Nat {
            kind: NatKind::Destination,
            family,
            address: Some(FIRST),
            port: Some(port),
            flags: NatFlags::NONE,
        })
    }

    /// Changes what is known of the client, from a packet that is translated already.
    pub fn learn(
        self,
        operation: DynsetOperation,
        map: SetRef<'static>,
        destination: &[KeyPart],
        timeout: Option<Duration>,
    ) -> Steps {
        let (steps, at) = self.load(&[KeyPart::Source], 0);
        let (steps, at) = steps.load(destination, at);
        // nft begins with a register of 128 bits; with IPv6 there are too few of them.
        let data = if steps.is_ipv6() { at } else { at.next_multiple_of(4) };
        let (steps, _) = steps.load(ENDPOINT, data);
        let data = Some(Register::word(data));
        steps.step(Expression::Dynset { set: map, operation, key: FIRST, data, timeout })
    }

    pub fn reject(self) -> Steps {
        let answer =
            if self.is_ipv6() { Reject::PORT_UNREACHABLE_IPV6 } else { Reject::PORT_UNREACHABLE_IPV4 };
        self.step(Expression::Reject(answer))
    }

    pub fn verdict(self, verdict: Verdict<'static>) -> Steps {
        self.step(Expression::Verdict(verdict))
    }
}

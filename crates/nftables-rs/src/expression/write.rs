//! Expressions to attributes, in the order in which nft writes them.

use super::{Direction, Expression, NatKind, Reject, Verdict};
use crate::register::Register;
use crate::value::Value;
use crate::wire::{data, expression};
use netlink::MsgBuf;
use std::time::Duration;

/// Attributes of the expressions, `NFTA_PAYLOAD_*` and so on.
pub(super) mod attribute {
    pub(crate) mod payload {
        pub(crate) const TO: u16 = 1;
        pub(crate) const BASE: u16 = 2;
        pub(crate) const OFFSET: u16 = 3;
        pub(crate) const LEN: u16 = 4;
    }
    pub(crate) mod meta {
        pub(crate) const TO: u16 = 1;
        pub(crate) const KEY: u16 = 2;
        pub(crate) const FROM: u16 = 3;
    }
    pub(crate) mod ct {
        pub(crate) const TO: u16 = 1;
        pub(crate) const KEY: u16 = 2;
        pub(crate) const DIRECTION: u16 = 3;
    }
    pub(crate) mod cmp {
        pub(crate) const REGISTER: u16 = 1;
        pub(crate) const COMPARISON: u16 = 2;
        pub(crate) const VALUE: u16 = 3;
    }
    pub(crate) mod bitwise {
        pub(crate) const FROM: u16 = 1;
        pub(crate) const TO: u16 = 2;
        pub(crate) const LEN: u16 = 3;
        pub(crate) const MASK: u16 = 4;
        pub(crate) const XOR: u16 = 5;
        pub(crate) const OPERATION: u16 = 6;
    }
    pub(crate) mod byte_order {
        pub(crate) const FROM: u16 = 1;
        pub(crate) const TO: u16 = 2;
        pub(crate) const CHANGE: u16 = 3;
        pub(crate) const LEN: u16 = 4;
        pub(crate) const SIZE: u16 = 5;
    }
    pub(crate) mod lookup {
        pub(crate) const SET: u16 = 1;
        pub(crate) const KEY: u16 = 2;
        pub(crate) const TO: u16 = 3;
        pub(crate) const SET_ID: u16 = 4;
        pub(crate) const FLAGS: u16 = 5;
    }
    pub(crate) mod immediate {
        pub(crate) const TO: u16 = 1;
        pub(crate) const VALUE: u16 = 2;
    }
    pub(crate) mod nat {
        pub(crate) const KIND: u16 = 1;
        pub(crate) const FAMILY: u16 = 2;
        pub(crate) const ADDRESS: u16 = 3;
        pub(crate) const ADDRESS_MAX: u16 = 4;
        pub(crate) const PORT: u16 = 5;
        pub(crate) const PORT_MAX: u16 = 6;
        pub(crate) const FLAGS: u16 = 7;
    }
    pub(crate) mod masquerade {
        pub(crate) const FLAGS: u16 = 1;
    }
    pub(crate) mod reject {
        pub(crate) const KIND: u16 = 1;
        pub(crate) const CODE: u16 = 2;
    }
    pub(crate) mod numgen {
        pub(crate) const TO: u16 = 1;
        pub(crate) const MODULUS: u16 = 2;
        pub(crate) const KIND: u16 = 3;
        pub(crate) const OFFSET: u16 = 4;
    }
    pub(crate) mod fib {
        pub(crate) const TO: u16 = 1;
        pub(crate) const RESULT: u16 = 2;
        pub(crate) const FLAGS: u16 = 3;
    }
    pub(crate) mod dynset {
        pub(crate) const SET: u16 = 1;
        pub(crate) const SET_ID: u16 = 2;
        pub(crate) const OPERATION: u16 = 3;
        pub(crate) const KEY: u16 = 4;
        pub(crate) const DATA: u16 = 5;
        pub(crate) const TIMEOUT: u16 = 6;
        pub(crate) const PAD: u16 = 8;
        pub(crate) const FLAGS: u16 = 9;
    }
    pub(crate) mod counter {
        pub(crate) const BYTES: u16 = 1;
        pub(crate) const PACKETS: u16 = 2;
        pub(crate) const PAD: u16 = 3;
    }
}
use attribute::{
    bitwise, byte_order, cmp, counter, ct, dynset, fib, immediate, lookup, masquerade, meta, nat, numgen,
    payload, reject,
};

/// The names by which the kernel knows expressions.
pub(super) mod name {
    pub(crate) const PAYLOAD: &str = "payload";
    pub(crate) const META: &str = "meta";
    pub(crate) const CT: &str = "ct";
    pub(crate) const CMP: &str = "cmp";
    pub(crate) const BITWISE: &str = "bitwise";
    pub(crate) const BYTE_ORDER: &str = "byteorder";
    pub(crate) const LOOKUP: &str = "lookup";
    pub(crate) const IMMEDIATE: &str = "immediate";
    pub(crate) const NAT: &str = "nat";
    pub(crate) const MASQUERADE: &str = "masq";
    pub(crate) const REJECT: &str = "reject";
    pub(crate) const NUMGEN: &str = "numgen";
    pub(crate) const FIB: &str = "fib";
    pub(crate) const DYNSET: &str = "dynset";
    pub(crate) const COUNTER: &str = "counter";
}

/// The lookup's and the dynset's flag for "not".
pub(super) const INVERSE: u32 = 1;

impl Expression<'_> {
    /// The kernel's name for it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Expression::Payload { .. } => name::PAYLOAD,
            Expression::Meta { .. } | Expression::SetMeta { .. } => name::META,
            Expression::Ct { .. } => name::CT,
            Expression::Cmp { .. } => name::CMP,
            Expression::Bitwise { .. } => name::BITWISE,
            Expression::ByteOrder { .. } => name::BYTE_ORDER,
            Expression::Lookup { .. } => name::LOOKUP,
            Expression::Immediate { .. } | Expression::Verdict(_) => name::IMMEDIATE,
            Expression::Nat { .. } => name::NAT,
            Expression::Masquerade { .. } => name::MASQUERADE,
            Expression::Reject(_) => name::REJECT,
            Expression::Numgen { .. } => name::NUMGEN,
            Expression::Fib { .. } => name::FIB,
            Expression::Dynset { .. } => name::DYNSET,
            Expression::Counter { .. } => name::COUNTER,
            Expression::Other { name, .. } => name,
        }
    }

    /// Writes name and attributes.
    pub(crate) fn write(&self, buf: &mut MsgBuf) {
        buf.string(expression::NAME, self.name());
        buf.nest(expression::DATA, |buf| self.attributes(buf));
    }

    fn attributes(&self, buf: &mut MsgBuf) {
        match *self {
            Expression::Payload { to, base, offset, len } => {
                register(buf, payload::TO, to);
                buf.be32(payload::BASE, base.0);
                buf.be32(payload::OFFSET, offset);
                buf.be32(payload::LEN, len);
            }
            Expression::Meta { to, key } => {
                buf.be32(meta::KEY, key.0);
                register(buf, meta::TO, to);
            }
            Expression::SetMeta { key, from } => {
                buf.be32(meta::KEY, key.0);
                register(buf, meta::FROM, from);
            }
            Expression::Ct { to, key, direction } => {
                buf.be32(ct::KEY, key.0);
                register(buf, ct::TO, to);
                if let Some(direction) = direction {
                    buf.u8(ct::DIRECTION, u8::from(direction == Direction::Reply));
                }
            }
            Expression::Numgen { to, kind, modulus, offset } => {
                register(buf, numgen::TO, to);
                buf.be32(numgen::MODULUS, modulus);
                buf.be32(numgen::KIND, kind.0);
                buf.be32(numgen::OFFSET, offset);
            }
            Expression::Fib { to, result, flags } => {
                buf.be32(fib::FLAGS, flags.0);
                buf.be32(fib::RESULT, result.0);
                register(buf, fib::TO, to);
            }
            Expression::Other { data, .. } => buf.header(data),
            _ => self.more_attributes(buf),
        }
    }

    /// Of those that do more than load.
    fn more_attributes(&self, buf: &mut MsgBuf) {
        match *self {
            Expression::Cmp { register: compared, comparison, value: constant } => {
                register(buf, cmp::REGISTER, compared);
                buf.be32(cmp::COMPARISON, comparison.0);
                value(buf, cmp::VALUE, &constant);
            }
            Expression::Bitwise { from, to, mask, xor } => {
                register(buf, bitwise::FROM, from);
                register(buf, bitwise::TO, to);
                buf.be32(bitwise::LEN, u32::try_from(mask.as_bytes().len()).unwrap_or(u32::MAX));
                value(buf, bitwise::MASK, &mask);
                value(buf, bitwise::XOR, &xor);
            }
            Expression::ByteOrder { from, to, change, len, size } => {
                register(buf, byte_order::FROM, from);
                register(buf, byte_order::TO, to);
                buf.be32(byte_order::CHANGE, change.0);
                buf.be32(byte_order::LEN, len);
                buf.be32(byte_order::SIZE, size);
            }
            Expression::Immediate { to, value: constant } => {
                register(buf, immediate::TO, to);
                value(buf, immediate::VALUE, &constant);
            }
            Expression::Verdict(given) => {
                register(buf, immediate::TO, Register::VERDICT);
                buf.nest(immediate::VALUE, |buf| verdict(buf, given));
            }
            Expression::Counter { packets, bytes } => {
                if (packets, bytes) != (0, 0) {
                    buf.be64(counter::BYTES, bytes);
                    buf.be64(counter::PACKETS, packets);
                }
            }
            Expression::Masquerade { flags } => {
                if flags.0 != 0 {
                    buf.be32(masquerade::FLAGS, flags.0);
                }
            }
            _ => self.actions(buf),
        }
    }

    /// Of those with parts that may be absent.
    fn actions(&self, buf: &mut MsgBuf) {
        match *self {
            Expression::Lookup { set, key, to, inverse } => {
                register(buf, lookup::KEY, key);
                to.into_iter().for_each(|to| register(buf, lookup::TO, to));
                buf.string(lookup::SET, set.name);
                set.id.into_iter().for_each(|id| buf.be32(lookup::SET_ID, id));
                if inverse {
                    buf.be32(lookup::FLAGS, INVERSE);
                }
            }
            Expression::Nat { kind, family, address, port, flags } => {
                buf.be32(nat::KIND, u32::from(kind == NatKind::Destination));
                buf.be32(nat::FAMILY, family.number().into());
                address.into_iter().for_each(|address| register(buf, nat::ADDRESS, address));
                port.into_iter().for_each(|port| register(buf, nat::PORT, port));
                if flags.0 != 0 {
                    buf.be32(nat::FLAGS, flags.0);
                }
            }
            Expression::Reject(answer) => {
                let (kind, code) = match answer {
                    Reject::Unreachable(code) => (0, code),
                    Reject::TcpReset => (1, 0),
                    Reject::UnreachableOfBoth(code) => (2, code),
                };
                buf.be32(reject::KIND, kind);
                buf.u8(reject::CODE, code);
            }
            Expression::Dynset { set, operation, key, data, timeout } => {
                register(buf, dynset::KEY, key);
                data.into_iter().for_each(|data| register(buf, dynset::DATA, data));
                buf.be32(dynset::OPERATION, operation.0);
                timeout.into_iter().for_each(|timeout| buf.be64(dynset::TIMEOUT, milliseconds(timeout)));
                buf.string(dynset::SET, set.name);
                set.id.into_iter().for_each(|id| buf.be32(dynset::SET_ID, id));
            }
            _ => {}
        }
    }
}

fn register(buf: &mut MsgBuf, kind: u16, register: Register) {
    buf.be32(kind, register.number());
}

fn value(buf: &mut MsgBuf, kind: u16, value: &Value) {
    buf.nest(kind, |buf| buf.bytes(data::VALUE, value.as_bytes()));
}

/// The attribute that holds a verdict.
pub(crate) fn verdict(buf: &mut MsgBuf, verdict: Verdict<'_>) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Continue => (-1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
        Verdict::Other(code) => (code, None),
    };
    buf.nest(data::VERDICT, |buf| {
        buf.be32(data::CODE, code.cast_unsigned());
        chain.into_iter().for_each(|chain| buf.string(data::CHAIN, chain));
    });
}

/// Milliseconds, as far as the field reaches.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

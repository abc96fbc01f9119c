//! Attributes to expressions. What has a part that is not known here is handed on as it came.

use super::write::attribute::{
    bitwise, byte_order, cmp, counter, ct, dynset, fib, immediate, lookup, masquerade, meta, nat, numgen,
    payload, reject,
};
use super::write::{INVERSE, name};
use super::{
    ByteOrderChange, Comparison, CtKey, Direction, DynsetOperation, Expression, FibFlags, FibResult, MetaKey,
    NatFlags, NatKind, NumgenKind, PayloadBase, Reject, SetRef, Verdict,
};
use crate::register::Register;
use crate::table::Family;
use crate::value::Value;
use crate::wire::{data, expression};
use netlink::{Attribute, Malformed};
use std::time::Duration;

/// More than any expression here has kinds of attributes.
const KINDS: usize = 12;

/// Bits of a translation that say only which registers there are.
const NAT_REGISTERS: u32 = 3;

/// Attributes by kind. Each is taken out once it is understood.
struct Parts<'a> {
    found: [Option<Attribute<'a>>; KINDS],
    has_others: bool,
}

impl<'a> Parts<'a> {
    fn of(data: Attribute<'a>) -> Result<Parts<'a>, Malformed> {
        let mut parts = Parts { found: [None; KINDS], has_others: false };
        for attribute in data.nested() {
            let attribute = attribute?;
            match parts.found.get_mut(usize::from(attribute.kind)) {
                Some(place @ None) => *place = Some(attribute),
                _ => parts.has_others = true,
            }
        }
        Ok(parts)
    }

    fn take(&mut self, kind: u16) -> Option<Attribute<'a>> {
        self.found.get_mut(usize::from(kind))?.take()
    }

    fn number(&mut self, kind: u16) -> Option<u32> {
        self.take(kind)?.be32().ok()
    }

    /// A number that is 0 when it is not there.
    fn number_or_none(&mut self, kind: u16) -> Option<u32> {
        self.take(kind).map_or(Some(0), |attribute| attribute.be32().ok())
    }

    fn register(&mut self, kind: u16) -> Option<Register> {
        Register::of(self.number(kind)?)
    }

    /// A register that may be absent; outer `None` if it is no register.
    #[expect(clippy::option_option, reason = "absent and not understood are two things")]
    fn optional_register(&mut self, kind: u16) -> Option<Option<Register>> {
        self.take(kind).map_or(Some(None), |it| it.be32().ok().and_then(Register::of).map(Some))
    }

    fn text(&mut self, kind: u16) -> Option<&'a str> {
        self.take(kind)?.string().ok()
    }

    fn value(&mut self, kind: u16) -> Option<Value> {
        value(self.take(kind)?)
    }

    fn set(&mut self, kind: u16) -> Option<SetRef<'a>> {
        self.text(kind).map(SetRef::from)
    }

    fn are_all_taken(&self) -> bool {
        !self.has_others && self.found.iter().all(Option::is_none)
    }
}

/// Reads one expression of a list.
pub(crate) fn expression<'a>(item: Attribute<'a>) -> Result<Expression<'a>, Malformed> {
    let (mut name, mut attributes) = ("", None);
    for part in item.nested() {
        let part = part?;
        match part.kind {
            expression::NAME => name = part.string()?,
            expression::DATA => attributes = Some(part),
            _ => {}
        }
    }
    let Some(attributes) = attributes else { return Ok(Expression::Other { name, data: &[] }) };
    let mut parts = Parts::of(attributes)?;
    let known = known(name, &mut parts).filter(|_| parts.are_all_taken());
    Ok(known.unwrap_or(Expression::Other { name, data: attributes.value }))
}

/// `None` if it is not known, or not like this.
fn known<'a>(name: &str, parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    match name {
        name::PAYLOAD => Some(Expression::Payload {
            to: parts.register(payload::TO)?,
            base: PayloadBase(parts.number(payload::BASE)?),
            offset: parts.number(payload::OFFSET)?,
            len: parts.number(payload::LEN)?,
        }),
        name::META => read_meta(parts),
        name::CT => read_ct(parts),
        name::CMP => Some(Expression::Cmp {
            register: parts.register(cmp::REGISTER)?,
            comparison: Comparison(parts.number(cmp::COMPARISON)?),
            value: parts.value(cmp::VALUE)?,
        }),
        name::BITWISE => read_bitwise(parts),
        name::BYTE_ORDER => Some(Expression::ByteOrder {
            from: parts.register(byte_order::FROM)?,
            to: parts.register(byte_order::TO)?,
            change: ByteOrderChange(parts.number(byte_order::CHANGE)?),
            len: parts.number(byte_order::LEN)?,
            size: parts.number(byte_order::SIZE)?,
        }),
        name::LOOKUP => read_lookup(parts),
        name::IMMEDIATE => read_immediate(parts),
        name::NUMGEN => Some(Expression::Numgen {
            to: parts.register(numgen::TO)?,
            modulus: parts.number(numgen::MODULUS)?,
            kind: NumgenKind(parts.number(numgen::KIND)?),
            offset: parts.number_or_none(numgen::OFFSET)?,
        }),
        name::FIB => Some(Expression::Fib {
            to: parts.register(fib::TO)?,
            result: FibResult(parts.number(fib::RESULT)?),
            flags: FibFlags(parts.number(fib::FLAGS)?),
        }),
        _ => known_action(name, parts),
    }
}

fn known_action<'a>(name: &str, parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    match name {
        name::NAT => read_nat(parts),
        name::MASQUERADE => {
            Some(Expression::Masquerade { flags: NatFlags(parts.number_or_none(masquerade::FLAGS)?) })
        }
        name::REJECT => read_reject(parts).map(Expression::Reject),
        name::DYNSET => read_dynset(parts),
        name::COUNTER => {
            // Some architectures align 64 bits.
            parts.take(counter::PAD);
            let mut count =
                |kind| parts.take(kind).map_or(Some(0), |attribute: Attribute<'_>| attribute.be64().ok());
            Some(Expression::Counter { bytes: count(counter::BYTES)?, packets: count(counter::PACKETS)? })
        }
        _ => None,
    }
}

fn read_meta<'a>(parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    let key = MetaKey(parts.number(meta::KEY)?);
    match parts.optional_register(meta::TO)? {
        Some(to) => Some(Expression::Meta { to, key }),
        None => Some(Expression::SetMeta { key, from: parts.register(meta::FROM)? }),
    }
}

fn read_ct<'a>(parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    let direction = match parts.take(ct::DIRECTION).map(|direction| direction.u8()) {
        None => None,
        Some(Ok(0)) => Some(Direction::Original),
        Some(Ok(1)) => Some(Direction::Reply),
        Some(_) => return None,
    };
    Some(Expression::Ct { to: parts.register(ct::TO)?, key: CtKey(parts.number(ct::KEY)?), direction })
}

fn read_bitwise<'a>(parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    let len = usize::try_from(parts.number(bitwise::LEN)?).ok()?;
    let (mask, xor) = (parts.value(bitwise::MASK)?, parts.value(bitwise::XOR)?);
    let is_mask_and_xor = parts.number_or_none(bitwise::OPERATION)? == 0;
    if !is_mask_and_xor || mask.as_bytes().len() != len || xor.as_bytes().len() != len {
        return None;
    }
    Some(Expression::Bitwise {
        from: parts.register(bitwise::FROM)?,
        to: parts.register(bitwise::TO)?,
        mask,
        xor,
    })
}

fn read_lookup<'a>(parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    parts.take(lookup::SET_ID);
    let inverse = match parts.number_or_none(lookup::FLAGS)? {
        0 => false,
        INVERSE => true,
        _ => return None,
    };
    Some(Expression::Lookup {
        set: parts.set(lookup::SET)?,
        key: parts.register(lookup::KEY)?,
        to: parts.optional_register(lookup::TO)?,
        inverse,
    })
}

fn read_immediate<'a>(parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    let constant = parts.take(immediate::VALUE)?;
    match parts.register(immediate::TO)? {
        Register::VERDICT => verdict(constant).map(Expression::Verdict),
        to => Some(Expression::Immediate { to, value: value(constant)? }),
    }
}

fn read_nat<'a>(parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    let kind = match parts.number(nat::KIND)? {
        0 => NatKind::Source,
        1 => NatKind::Destination,
        _ => return None,
    };
    let family = u8::try_from(parts.number(nat::FAMILY)?).ok().and_then(Family::of)?;
    // The kernel tells the end of a range where there is none: it is the start.
    let mut single = |kind, kind_max| {
        let register = parts.optional_register(kind)?;
        let end = parts.optional_register(kind_max)?;
        (end.is_none() || end == register).then_some(register)
    };
    let address = single(nat::ADDRESS, nat::ADDRESS_MAX)?;
    let port = single(nat::PORT, nat::PORT_MAX)?;
    let flags = NatFlags(parts.number_or_none(nat::FLAGS)? & !NAT_REGISTERS);
    Some(Expression::Nat { kind, family, address, port, flags })
}

fn read_reject(parts: &mut Parts<'_>) -> Option<Reject> {
    let code = parts.take(reject::CODE).map_or(Some(0), |code| code.u8().ok())?;
    match parts.number(reject::KIND)? {
        0 => Some(Reject::Unreachable(code)),
        1 => Some(Reject::TcpReset),
        2 => Some(Reject::UnreachableOfBoth(code)),
        _ => None,
    }
}

fn read_dynset<'a>(parts: &mut Parts<'a>) -> Option<Expression<'a>> {
    parts.take(dynset::SET_ID);
    parts.take(dynset::PAD);
    if parts.number_or_none(dynset::FLAGS)? != 0 {
        return None;
    }
    let timeout = parts.take(dynset::TIMEOUT).map_or(Some(0), |timeout| timeout.be64().ok())?;
    Some(Expression::Dynset {
        set: parts.set(dynset::SET)?,
        operation: DynsetOperation(parts.number(dynset::OPERATION)?),
        key: parts.register(dynset::KEY)?,
        data: parts.optional_register(dynset::DATA)?,
        timeout: (timeout != 0).then(|| Duration::from_millis(timeout)),
    })
}

/// The bytes in a value attribute.
fn value(attribute: Attribute<'_>) -> Option<Value> {
    let mut inside = attribute.nested().flatten();
    let bytes = inside.find(|inner| inner.kind == data::VALUE)?.value;
    Some(Value::new(bytes)).filter(|value| value.as_bytes().len() == bytes.len())
}

/// The verdict in a value attribute.
pub(crate) fn verdict<'a>(attribute: Attribute<'a>) -> Option<Verdict<'a>> {
    let inside = attribute.nested().flatten().find(|inner| inner.kind == data::VERDICT)?;
    let (mut code, mut chain) = (None, None);
    for part in inside.nested() {
        let part = part.ok()?;
        match part.kind {
            data::CODE => code = part.be32().ok(),
            data::CHAIN => chain = part.string().ok(),
            _ => {}
        }
    }
    Some(match (code?.cast_signed(), chain) {
        (0, None) => Verdict::Drop,
        (1, None) => Verdict::Accept,
        (-1, None) => Verdict::Continue,
        (-3, Some(chain)) => Verdict::Jump(chain),
        (-4, Some(chain)) => Verdict::Goto(chain),
        (-5, None) => Verdict::Return,
        (code, None) => Verdict::Other(code),
        (_, Some(_)) => return None,
    })
}

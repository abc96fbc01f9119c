use super::*;
use crate::wire::LIST_ITEM;
use netlink::{Attribute, Message, Messages, MsgBuf};

const FIRST: Register = Register::word(0);
const LAST: Register = Register::word(15);

/// One of each kind, in all its forms.
fn one_of_each() -> Vec<Expression<'static>> {
    let set = SetRef::from("some-set");
    let look_up = |to, inverse| Expression::Lookup { set, key: FIRST, to, inverse };
    let nat =
        |kind, address, port, flags| Expression::Nat { kind, family: Family::Ipv6, address, port, flags };
    let dynset = |operation, data, timeout| Expression::Dynset { set, operation, key: FIRST, data, timeout };
    vec![
        Expression::Payload { to: LAST, base: PayloadBase::TRANSPORT, offset: 2, len: 2 },
        Expression::Meta { to: FIRST, key: MetaKey::IIFNAME },
        Expression::SetMeta { key: MetaKey::MARK, from: LAST },
        Expression::Ct { to: FIRST, key: CtKey::STATE, direction: None },
        Expression::Ct { to: FIRST, key: CtKey::PROTO_SOURCE, direction: Some(Direction::Reply) },
        Expression::Cmp { register: FIRST, comparison: Comparison::LESS, value: Value::new(b"cali") },
        Expression::Bitwise { from: FIRST, to: LAST, mask: Value::host(7), xor: Value::host(1) },
        Expression::ByteOrder { from: FIRST, to: LAST, change: ByteOrderChange::TO_HOST, len: 4, size: 2 },
        look_up(None, false),
        look_up(None, true),
        look_up(Some(LAST), false),
        look_up(Some(Register::VERDICT), false),
        Expression::Immediate { to: LAST, value: Value::new(&[1; 64]) },
        Expression::Verdict(Verdict::Accept),
        Expression::Verdict(Verdict::Drop),
        Expression::Verdict(Verdict::Continue),
        Expression::Verdict(Verdict::Return),
        Expression::Verdict(Verdict::Jump("there")),
        Expression::Verdict(Verdict::Goto("there")),
        Expression::Verdict(Verdict::Other(3)),
        nat(NatKind::Source, Some(FIRST), None, NatFlags::PERSISTENT),
        nat(NatKind::Destination, Some(FIRST), Some(LAST), NatFlags::NONE),
        nat(NatKind::Destination, None, Some(LAST), NatFlags::RANDOM),
        Expression::Masquerade { flags: NatFlags::NONE },
        Expression::Masquerade { flags: NatFlags::FULLY_RANDOM },
        Expression::Reject(Reject::PORT_UNREACHABLE_IPV6),
        Expression::Reject(Reject::TcpReset),
        Expression::Reject(Reject::UnreachableOfBoth(3)),
        Expression::Numgen { to: FIRST, kind: NumgenKind::INCREMENTAL, modulus: 10, offset: 3 },
        Expression::Fib { to: FIRST, result: FibResult::OIF, flags: FibFlags::SOURCE | FibFlags::IIF },
        dynset(DynsetOperation::ADD, None, None),
        dynset(DynsetOperation::UPDATE, Some(LAST), Some(Duration::from_millis(1_500))),
        dynset(DynsetOperation::DELETE, Some(LAST), None),
        Expression::COUNTER,
        Expression::Counter { packets: u64::MAX, bytes: 1 },
        Expression::Other { name: "limit", data: &[8, 0, 1, 0, 1, 2, 3, 4] },
    ]
}

fn written(expression: &Expression<'_>) -> MsgBuf {
    let mut buf = MsgBuf::new();
    buf.begin(0, 0);
    buf.nest(LIST_ITEM, |buf| expression.write(buf));
    buf
}

fn item(buf: &MsgBuf) -> Attribute<'_> {
    let message: Message<'_> = Messages::new(buf.as_bytes()).next().unwrap().unwrap();
    message.attributes(0).unwrap().next().unwrap().unwrap()
}

/// An expression with attributes of any kind.
fn other(name: &str, fill: impl FnOnce(&mut MsgBuf)) -> MsgBuf {
    let mut attributes = MsgBuf::new();
    attributes.begin(0, 0);
    fill(&mut attributes);
    let data = Messages::new(attributes.as_bytes()).next().unwrap().unwrap().payload;
    written(&Expression::Other { name, data })
}

#[test]
fn what_was_written_reads_back() {
    for expected in one_of_each() {
        let buf = written(&expected);
        assert_eq!(expression(item(&buf)), Ok(expected));
    }
}

#[test]
fn what_has_an_unknown_part_is_handed_on_as_it_came() {
    for known in one_of_each() {
        let buf = written(&known);
        let data = item(&buf).nested().nth(1).unwrap().unwrap().value.to_vec();
        let extended = other(known.name(), |buf| {
            buf.header(&data);
            buf.be32(99, 1);
        });
        let read = expression(item(&extended)).unwrap();
        assert!(matches!(read, Expression::Other { name, .. } if name == known.name()), "{read:?}");
        assert_eq!(written(&read).as_bytes(), extended.as_bytes());
    }
}

#[test]
fn a_range_of_addresses_is_not_taken_for_one_address() {
    let translation = |end| {
        other("nat", |buf| {
            buf.be32(1, 0);
            buf.be32(2, 2);
            buf.be32(3, 1);
            buf.be32(4, end);
            buf.be32(7, 1);
        })
    };
    let one = Expression::Nat {
        kind: NatKind::Source,
        family: Family::Ipv4,
        address: Some(FIRST),
        port: None,
        flags: NatFlags::NONE,
    };
    assert_eq!(expression(item(&translation(1))), Ok(one), "as the kernel tells a single one");
    assert!(matches!(expression(item(&translation(2))), Ok(Expression::Other { .. })));
}

#[test]
fn a_shift_is_not_taken_for_a_mask() {
    let shift = other("bitwise", |buf| {
        buf.be32(1, 1);
        buf.be32(2, 1);
        buf.be32(3, 4);
        buf.be32(6, 1);
        buf.nest(7, |buf| buf.bytes(1, &[1, 0, 0, 0]));
    });
    assert!(matches!(expression(item(&shift)), Ok(Expression::Other { .. })));
}

#[test]
fn an_expression_without_attributes_is_read() {
    let mut buf = MsgBuf::new();
    buf.begin(0, 0);
    buf.nest(LIST_ITEM, |buf| buf.string(1, "notrack"));
    assert_eq!(expression(item(&buf)), Ok(Expression::Other { name: "notrack", data: &[] }));
}

//! Byte for byte what nft 1.0.6 sends; `tests/recorded/record` tells how that was recorded.
//!
//! Three things differ by design. Sequence numbers and `NLM_F_REQUEST` come when a batch is sent, as do the messages
//! at its ends. And nft states in some bitwise expressions that they are "mask and xor", which is what they are
//! where it does not.
#![cfg(target_endian = "little")]
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod example;

use example::Example;
use nftables_rs::{
    BaseChain, Batch, Chain, Comparison, CtKey, Data, DataType, Direction, DynsetOperation, Element,
    Expression, Family, FibFlags, FibResult, Hook, MetaKey, NatFlags, NatKind, NumgenKind, PayloadBase,
    Policy, Register, Reject, Rule, Set, SetFlags, SetRef, SetType, Table, TableFlags, TableName, TypeOf,
    Value, Verdict,
};
use std::time::Duration;

macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!("recorded/", $name))
    };
}

/// Reads a recording: hexadecimal digits, and comments after `#`.
fn bytes(text: &str) -> Vec<u8> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let digits: String = lines.collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn half(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The messages of a buffer.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let len = usize::try_from(u32::from_le_bytes(bytes[..4].try_into().unwrap())).unwrap();
        let (message, rest) = bytes.split_at(len);
        messages.push(message);
        bytes = rest;
    }
    messages
}

/// A message without what comes when it is sent, and without what nft says or does not say.
fn normal(message: &[u8]) -> Vec<u8> {
    let mut normal = message[4..8].to_vec();
    normal[2] |= 1;
    normal.extend_from_slice(&message[16..20]);
    normal.extend(normal_attributes(&message[20..], false));
    normal
}

fn normal_attributes(mut bytes: &[u8], is_bitwise: bool) -> Vec<u8> {
    const NESTED: usize = 0x8000;
    const BITWISE_OPERATION: usize = 6;
    let (mut normal, mut name) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let (len, kind) = (half(bytes, 0), half(bytes, 2));
        let mut value = bytes[4..len].to_vec();
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
        if kind & NESTED != 0 {
            value = normal_attributes(&value, name == b"bitwise\0");
        } else if kind == 1 {
            name.clone_from(&value);
        }
        if is_bitwise && kind == BITWISE_OPERATION && value == [0; 4] {
            continue;
        }
        normal.extend(u16::try_from(value.len() + 4).unwrap().to_le_bytes());
        normal.extend(u16::try_from(kind).unwrap().to_le_bytes());
        normal.extend(&value);
        normal.resize(normal.len().next_multiple_of(4), 0);
    }
    normal
}

/// Compares message by message.
fn assert_same(batch: &Batch, recording: &str) {
    let theirs = bytes(recording);
    let theirs = messages(&theirs);
    let (begin, end) = (theirs[0], theirs[theirs.len() - 1]);
    assert_eq!((half(begin, 4), half(end, 4)), (0x10, 0x11), "the ends of a transaction");
    let theirs = &theirs[1..theirs.len() - 1];
    let ours = messages(batch.as_bytes());
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let (ours, theirs) = (normal(ours), normal(theirs));
        assert!(
            ours == theirs,
            "message {index} differs\nours:   {}\ntheirs: {}",
            ours.escape_ascii(),
            theirs.escape_ascii()
        );
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn the_example_is_written_as_nft_writes_it() {
    for (family, recording) in
        [(Family::Ipv4, recorded!("example-ip.hex")), (Family::Ipv6, recorded!("example-ip6.hex"))]
    {
        let mut batch = Batch::new();
        Example::new(family).write(&mut batch, family == Family::Ipv4);
        assert_same(&batch, recording);
    }
}

#[test]
fn elements_are_written_as_nft_writes_them() {
    for (family, text, recording) in [
        (Family::Ipv4, recorded!("elements-ip.nft"), recorded!("elements-ip.hex")),
        (Family::Ipv6, recorded!("elements-ip6.nft"), recorded!("elements-ip6.hex")),
    ] {
        let mut batch = Batch::new();
        Example::new(family).write_elements(&mut batch, text);
        assert_same(&batch, recording);
    }
}

#[test]
fn changes_and_deletions_are_written_as_nft_writes_them() {
    let example = Example::new(Family::Ipv4);
    let table = example.table;
    let mut batch = Batch::new();
    let expressions = &[Expression::COUNTER];
    batch.insert_rule(&Rule { table, chain: "prerouting", expressions, comment: None });
    batch.delete_rule(table, "prerouting", 1);
    batch.flush_chain(table, "prerouting");
    batch.flush_set(table, "services");
    let elements: Vec<_> =
        recorded!("changes.nft").lines().filter(|line| line.contains(" element ")).collect();
    assert_eq!(elements.len(), 4);
    example.write_elements(&mut batch, &elements.join("\n"));
    batch.delete_chain(table, "learn");
    batch.delete_set(table, "clients");
    batch.flush_table(table);
    batch.delete_table(table);
    assert_same(&batch, recorded!("changes.hex"));
}

const TABLE: TableName<'static> = TableName::new(Family::Inet, "other");
const ADDRESS_AND_PORT: SetType<'static> = SetType::Types(&[DataType::IPV4_ADDRESS, DataType::INET_SERVICE]);
const FIRST: Register = Register::word(0);

fn address_and_port(last: u8) -> Value {
    Value::concat(&[&[192, 0, 2, last], &80_u16.to_be_bytes()])
}

/// Sets of all kinds that the example has not, each with its elements.
fn other_sets(batch: &mut Batch) {
    let set = |id, name, key| Set { id, ..Set::new(TABLE, name, key) };
    let id = |name, id| SetRef { name, id: Some(id) };
    batch.add_set(&Set {
        flags: SetFlags::TIMEOUT | SetFlags::DYNAMIC,
        timeout: Some(Duration::from_secs(3600)),
        gc_interval: Some(Duration::from_secs(10)),
        size: Some(100),
        counter: true,
        comment: Some("timed"),
        ..set(1, "timed", SetType::Types(&[DataType::IPV4_ADDRESS]))
    });
    let first = Element {
        timeout: Some(Duration::from_secs(300)),
        comment: Some("x"),
        ..Element::new(&[192, 0, 2, 1])
    };
    batch.add_elements(TABLE, id("timed", 1)).push(&first).push(&Element::new(&[192, 0, 2, 2]));

    batch.add_set(&Set {
        flags: SetFlags::INTERVAL,
        merge: true,
        ..set(2, "ports", SetType::Types(&[DataType::INET_SERVICE]))
    });
    let mut ports = batch.add_elements(TABLE, id("ports", 2));
    for (port, is_range_end) in [(0_u16, true), (80, false), (81, true), (100, false), (201, true)] {
        ports.push(&Element { is_range_end, ..Element::new(&port.to_be_bytes()) });
    }

    batch.add_set(&set(3, "names", SetType::Types(&[DataType::INTERFACE_NAME])));
    batch.add_set(&set(4, "marks", SetType::TypeOf(&[TypeOf::Mark])));
    let destination = TypeOf::Ct {
        key: CtKey::DESTINATION_IPV4,
        direction: Some(Direction::Original),
        data: DataType::IPV4_ADDRESS,
    };
    let mark = TypeOf::Ct { key: CtKey::MARK, direction: None, data: DataType::MARK };
    batch.add_set(&set(5, "pairs", SetType::TypeOf(&[destination, mark])));

    batch.add_set(&Set { id: 6, ..Set::verdict_map(TABLE, "verdicts", ADDRESS_AND_PORT) });
    let mut verdicts = batch.add_elements(TABLE, id("verdicts", 6));
    for (last, verdict) in [(1, Verdict::Goto("elsewhere")), (2, Verdict::Drop), (3, Verdict::Accept)] {
        let key = address_and_port(last);
        verdicts.push(&Element { data: Some(Data::Verdict(verdict)), ..Element::new(key.as_bytes()) });
    }
    let key = SetType::Types(&[DataType::MARK]);
    batch.add_set(&Set { id: 7, ..Set::map(TABLE, "endpoints", key, ADDRESS_AND_PORT) });
    let endpoint = address_and_port(1);
    let element = Element::entry(&[1, 0, 0, 0], endpoint.as_bytes());
    batch.add_elements(TABLE, id("endpoints", 7)).push(&element);

    let key = &[TypeOf::Numgen { kind: NumgenKind::INCREMENTAL, modulus: 10, offset: 3 }];
    batch.add_set(&Set { id: 8, ..Set::verdict_map(TABLE, "numbers", SetType::TypeOf(key)) });
}

fn other_chains(batch: &mut Batch) {
    let base = |kind, hook, priority, policy| Some(BaseChain { kind, hook, priority, policy });
    batch.add_chain(&Chain { comment: Some("a chain"), ..Chain::new(TABLE, "elsewhere") });
    let filter = base("filter", Hook::Forward, -5, Some(Policy::Drop));
    batch.add_chain(&Chain { base: filter, ..Chain::new(TABLE, "base") });
    let nat = base("nat", Hook::Postrouting, 100, None);
    batch.add_chain(&Chain { base: nat, ..Chain::new(TABLE, "post") });
}

/// Matches one byte of what the kernel knows.
fn is(key: MetaKey, value: u8) -> [Expression<'static>; 2] {
    [
        Expression::Meta { to: FIRST, key },
        Expression::Cmp { register: FIRST, comparison: Comparison::EQUAL, value: Value::from([value]) },
    ]
}

fn payload(to: Register, base: PayloadBase, offset: u32, len: u32) -> Expression<'static> {
    Expression::Payload { to, base, offset, len }
}

fn equal(value: Value) -> Expression<'static> {
    Expression::Cmp { register: FIRST, comparison: Comparison::EQUAL, value }
}

fn look_up(name: &'static str, id: u32) -> Expression<'static> {
    let set = SetRef { name, id: Some(id) };
    Expression::Lookup { set, key: FIRST, to: Some(Register::VERDICT), inverse: false }
}

/// Rules with all expressions and forms that the example has not: the first of them, all but one without a comment.
fn first_rules() -> Vec<Vec<Expression<'static>>> {
    let set_mark = [
        Expression::COUNTER,
        Expression::Immediate { to: FIRST, value: Value::host(1) },
        Expression::SetMeta { key: MetaKey::MARK, from: FIRST },
        Expression::Verdict(Verdict::Accept),
    ];
    let counted = [Expression::Counter { packets: 3, bytes: 99 }, Expression::Verdict(Verdict::Return)];
    let by_verdict = [
        payload(FIRST, PayloadBase::NETWORK, 16, 4),
        payload(Register::word(1), PayloadBase::TRANSPORT, 2, 2),
        look_up("verdicts", 6),
    ];
    let from_interface = [
        Expression::Meta { to: FIRST, key: MetaKey::IIFNAME },
        equal(Value::new(b"cali")),
        Expression::Verdict(Verdict::Return),
    ];
    let (mask, xor) = (Value::from([0xff, 0x80, 0, 0]), Value::from([0; 4]));
    let from_prefix = [
        payload(FIRST, PayloadBase::NETWORK, 12, 4),
        Expression::Bitwise { from: FIRST, to: FIRST, mask, xor },
        equal(Value::from([10, 0, 0, 0])),
        Expression::COUNTER,
    ];
    let is_ipv4 = is(MetaKey::NFPROTO, 2);
    vec![
        set_mark.to_vec(),
        counted.to_vec(),
        [&is_ipv4[..], &by_verdict].concat(),
        from_interface.to_vec(),
        [&is_ipv4[..], &from_prefix].concat(),
    ]
}

/// The other rules.
fn last_rules() -> Vec<Vec<Expression<'static>>> {
    let flags = FibFlags::DESTINATION | FibFlags::IIF;
    let to_local = [
        Expression::Fib { to: FIRST, result: FibResult::ADDRESS_TYPE, flags },
        equal(Value::host(2)),
        Expression::Verdict(Verdict::Continue),
    ];
    let by_number = [
        Expression::Numgen { to: FIRST, kind: NumgenKind::INCREMENTAL, modulus: 10, offset: 3 },
        look_up("numbers", 8),
    ];
    let learn = Expression::Dynset {
        set: SetRef { name: "timed", id: Some(1) },
        operation: DynsetOperation::ADD,
        key: FIRST,
        data: None,
        timeout: None,
    };
    vec![
        [&is(MetaKey::L4PROTO, 6)[..], &[Expression::Reject(Reject::TcpReset)]].concat(),
        vec![Expression::Reject(Reject::UnreachableOfBoth(3))],
        to_local.to_vec(),
        by_number.to_vec(),
        [&is(MetaKey::NFPROTO, 2)[..], &[payload(FIRST, PayloadBase::NETWORK, 12, 4), learn]].concat(),
    ]
}

/// The rules of the chain that translates.
fn other_translations() -> Vec<Vec<Expression<'static>>> {
    let source = Expression::Nat {
        kind: NatKind::Source,
        family: Family::Ipv4,
        address: Some(FIRST),
        port: None,
        flags: NatFlags::PERSISTENT,
    };
    let to_address = [
        payload(FIRST, PayloadBase::NETWORK, 9, 1),
        Expression::Cmp { register: FIRST, comparison: Comparison::EQUAL, value: Value::from([6]) },
        Expression::Immediate { to: FIRST, value: Value::from([192, 0, 2, 1]) },
        source,
    ];
    vec![
        vec![Expression::Masquerade { flags: NatFlags::NONE }],
        vec![Expression::Masquerade { flags: NatFlags::RANDOM | NatFlags::PERSISTENT }],
        [&is(MetaKey::NFPROTO, 2)[..], &to_address].concat(),
    ]
}

#[test]
fn what_the_example_has_not_is_written_as_nft_writes_it() {
    let mut batch = Batch::new();
    batch.add_table(&Table { flags: TableFlags::DORMANT, comment: Some("a table"), ..Table::new(TABLE) });
    other_chains(&mut batch);
    other_sets(&mut batch);
    for (index, expressions) in first_rules().into_iter().chain(last_rules()).enumerate() {
        let comment = (index == 0).then_some("a rule");
        batch.add_rule(&Rule { table: TABLE, chain: "base", expressions: &expressions, comment });
    }
    for expressions in other_translations() {
        batch.add_rule(&Rule { table: TABLE, chain: "post", expressions: &expressions, comment: None });
    }
    assert_same(&batch, recorded!("other.hex"));
}

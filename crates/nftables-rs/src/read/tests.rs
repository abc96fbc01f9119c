use super::*;
use crate::set::{DataType, Set, SetType, TypeOf};
use crate::{Comparison, MetaKey, NumgenKind, Register, Rule, Value, Verdict};
use netlink::Messages;
use proptest::prelude::*;

/// What Linux 6.18 answers; see `tests/recorded/record`.
fn answers() -> Vec<u8> {
    let lines = include_str!("../../tests/recorded/answers.hex").lines();
    let digits: String = lines.filter(|line| !line.starts_with('#')).collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// What a reader makes of the answers.
fn read<'a, T>(bytes: &'a [u8], read: impl Fn(&Message<'a>) -> Result<Option<T>, Malformed>) -> Vec<T> {
    Messages::new(bytes).filter_map(|message| read(&message.unwrap()).unwrap()).collect()
}

const TABLE: TableName<'static> = TableName::new(Family::Inet, "other");

#[test]
#[cfg(target_endian = "little")]
fn tables_and_chains_are_read() {
    let bytes = answers();
    let tables = read(&bytes, |message| table(message));
    assert_eq!(tables.len(), 1);
    let expected = Table { flags: TableFlags::DORMANT, comment: Some("a table"), ..Table::new(TABLE) };
    assert_eq!((tables[0].table, tables[0].uses, tables[0].owner), (expected, 11, None));
    let chains: Vec<_> = read(&bytes, |message| chain(message)).iter().map(|listed| listed.chain).collect();
    let base = |kind, hook, priority, policy| Some(BaseChain { kind, hook, priority, policy: Some(policy) });
    assert_eq!(
        chains,
        [
            Chain { comment: Some("a chain"), ..Chain::new(TABLE, "elsewhere") },
            Chain { base: base("filter", Hook::Forward, -5, Policy::Drop), ..Chain::new(TABLE, "base") },
            Chain { base: base("nat", Hook::Postrouting, 100, Policy::Accept), ..Chain::new(TABLE, "post") },
        ]
    );
}

#[test]
#[cfg(target_endian = "little")]
fn sets_are_read_and_compared() {
    let bytes = answers();
    let sets = read(&bytes, |message| set(message));
    let names: Vec<_> = sets.iter().map(|set| set.name).collect();
    assert_eq!(names, ["timed", "ports", "names", "marks", "pairs", "verdicts", "endpoints", "numbers"]);
    let timed = Set {
        flags: SetFlags::TIMEOUT | SetFlags::DYNAMIC,
        timeout: Some(Duration::from_secs(3600)),
        size: Some(100),
        comment: Some("timed"),
        ..Set::new(TABLE, "timed", SetType::Types(&[DataType::IPV4_ADDRESS]))
    };
    assert!(sets[0].is_like(&timed));
    assert_eq!(sets[0].comment, Some("timed"));
    for other in [
        Set { name: "time", ..timed },
        Set { size: None, ..timed },
        Set { timeout: None, ..timed },
        Set { flags: SetFlags::TIMEOUT, ..timed },
        Set { comment: None, ..timed },
        Set { key: SetType::Types(&[DataType::MARK]), ..timed },
    ] {
        assert!(!sets[0].is_like(&other), "{other:?}");
    }
    let address_and_port = SetType::Types(&[DataType::IPV4_ADDRESS, DataType::INET_SERVICE]);
    assert!(sets[5].is_like(&Set::verdict_map(TABLE, "verdicts", address_and_port)));
    assert!(sets[5].is_verdict_map() && !sets[6].is_verdict_map() && sets[6].is_map() && !sets[0].is_map());
    let marks = SetType::Types(&[DataType::MARK]);
    assert!(sets[6].is_like(&Set::map(TABLE, "endpoints", marks, address_and_port)));
    let numbers = &[TypeOf::Numgen { kind: NumgenKind::INCREMENTAL, modulus: 10, offset: 3 }];
    assert!(sets[7].is_like(&Set::verdict_map(TABLE, "numbers", SetType::TypeOf(numbers))));
}

#[test]
#[cfg(target_endian = "little")]
fn elements_are_read_with_all_they_have() {
    let bytes = answers();
    let mut found = Vec::new();
    for message in Messages::new(&bytes).flatten() {
        visit_elements(&message, &mut |element| found.push(element)).unwrap();
    }
    assert_eq!(found.len(), 2 + 5 + 3 + 1);
    let timed = found.iter().find(|listed| listed.element.key == [192, 0, 2, 1]).unwrap();
    assert_eq!(timed.element.timeout, Some(Duration::from_secs(300)));
    assert!(timed.expires_in.unwrap() > Duration::from_secs(290));
    assert_eq!((timed.element.comment, timed.counter), (Some("x"), Some(Counted::default())));
    let ends = found.iter().filter(|listed| listed.element.is_range_end);
    assert_eq!(
        ends.map(|listed| listed.element.key.to_vec()).collect::<Vec<_>>(),
        [201_u16.to_be_bytes(), 81_u16.to_be_bytes(), 0_u16.to_be_bytes()]
    );
    let mut verdicts = Vec::new();
    for listed in &found {
        if let Some(Data::Verdict(verdict)) = listed.element.data {
            verdicts.push(verdict);
        }
    }
    assert_eq!(verdicts.len(), 3);
    for verdict in [Verdict::Goto("elsewhere"), Verdict::Drop, Verdict::Accept] {
        assert!(verdicts.contains(&verdict), "{verdict:?}");
    }
    let endpoint = found.iter().find(|listed| listed.element.key == [1, 0, 0, 0]).unwrap();
    assert_eq!(endpoint.element.data, Some(Data::Value(&[192, 0, 2, 1, 0, 80, 0, 0])));
}

#[test]
#[cfg(target_endian = "little")]
fn rules_are_read_and_compared_whatever_they_count() {
    let bytes = answers();
    let rules = read(&bytes, |message| rule(message));
    assert_eq!(rules.len(), 13);
    let first = Register::word(0);
    let wanted = Rule {
        table: TABLE,
        chain: "base",
        expressions: &[
            Expression::COUNTER,
            Expression::Immediate { to: first, value: Value::host(1) },
            Expression::SetMeta { key: MetaKey::MARK, from: first },
            Expression::Verdict(Verdict::Accept),
        ],
        comment: Some("a rule"),
    };
    assert!(rules[0].is_like(&wanted));
    assert!(!rules[0].is_like(&Rule { comment: None, ..wanted }));
    assert!(!rules[0].is_like(&Rule { chain: "post", ..wanted }));
    assert!(!rules[0].is_like(&Rule { expressions: &wanted.expressions[..3], ..wanted }));
    let counted = Rule {
        expressions: &[Expression::COUNTER, Expression::Verdict(Verdict::Return)],
        comment: None,
        ..wanted
    };
    assert!(rules[1].is_like(&counted), "it counts three packets");
    let interface = Rule {
        expressions: &[
            Expression::Meta { to: first, key: MetaKey::IIFNAME },
            Expression::Cmp { register: first, comparison: Comparison::EQUAL, value: Value::new(b"cali") },
            Expression::Verdict(Verdict::Return),
        ],
        ..counted
    };
    assert!(rules[3].is_like(&interface));
    // All are understood.
    for listed in &rules {
        for expression in listed.expressions() {
            assert!(!matches!(expression, Ok(Expression::Other { .. }) | Err(_)), "{expression:?}");
        }
    }
}

#[test]
fn every_truncation_of_an_answer_is_an_error_or_read_in_part() {
    let bytes = answers();
    for len in 0..bytes.len() {
        Messages::new(&bytes[..len]).map_while(Result::ok).for_each(|message| read_anything(&message));
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(kind in 0x0a00_u16..0x0a12, payload in proptest::collection::vec(any::<u8>(), 0..512)) {
        read_anything(&Message { kind, flags: 0, seq: 0, port: 0, payload: &payload });
    }

    #[test]
    fn flipped_bytes_never_panic(at in any::<proptest::sample::Index>(), value in any::<u8>()) {
        let mut bytes = answers();
        let at = at.index(bytes.len());
        bytes[at] = value;
        Messages::new(&bytes).map_while(Result::ok).for_each(|message| read_anything(&message));
    }
}

//! Talks to a real kernel: needs root and nf_tables, hence ignored by default.
//!
//! `cargo test -p nftables-rs --test live -- --ignored`. Each test has a network namespace of its own. Where nft is
//! installed, it must list what was written.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod example;
mod netns;

use example::{Example, ExampleRule};
use netns::{Namespace, has_nft, sh};
use nftables_rs::{
    Batch, Chain, Data, DataType, Element, Error, Expression, Family, ListedRule, NetlinkError, Nftables,
    Operation, Part, Refused, Rule, Set, SetRef, SetType, Table, TableFlags, TableName, Value,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs `test` in a new network namespace, on a thread of its own.
fn in_fresh_netns(test: impl FnOnce(&mut Nftables) + Send + 'static) {
    Namespace::new().run(|| test(&mut Nftables::open().unwrap()));
}

const TABLE: TableName<'static> = TableName::new(Family::Ipv4, "test");
const NUMBER: SetType<'static> = SetType::Types(&[DataType::MARK]);

/// Makes the table with a set and a map from numbers to numbers.
fn numbers(nft: &mut Nftables) {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(TABLE));
    batch.add_set(&Set::new(TABLE, "numbers", NUMBER));
    batch.add_set(&Set::map(TABLE, "pairs", NUMBER, NUMBER));
    nft.commit(&mut batch, None).unwrap();
}

/// The elements of a set as numbers: keys, data and comments.
fn pairs(nft: &mut Nftables, set: &str) -> BTreeMap<u32, (Option<u32>, Option<String>)> {
    let mut found = BTreeMap::new();
    let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    let is_there = nft
        .elements(TABLE, set, &mut |part| match part {
            Part::Start => found.clear(),
            Part::Item(listed) => {
                let data = listed.element.data.map(|data| match data {
                    Data::Value(bytes) => number(bytes),
                    Data::Verdict(_) => panic!("no verdicts here"),
                });
                let comment = listed.element.comment.map(str::to_owned);
                found.insert(number(listed.element.key), (data, comment));
            }
        })
        .unwrap();
    assert!(is_there);
    found
}

fn refused(error: Error) -> Vec<Refused> {
    match error {
        Error::Refused(refused) => refused,
        other => panic!("{other}"),
    }
}

/// The names of anonymous sets come from the kernel.
fn with_wanted_name<'a>(expression: Expression<'a>) -> Expression<'a> {
    match expression {
        Expression::Lookup { set: SetRef { name, .. }, key, to, inverse } if name.starts_with("__set") => {
            Expression::Lookup { set: "__set%d".into(), key, to, inverse }
        }
        other => other,
    }
}

fn is_like(found: &ListedRule<'_>, wanted: &ExampleRule) -> bool {
    let expressions: Vec<_> = found.expressions().map(|found| with_wanted_name(found.unwrap())).collect();
    let by_name = |wanted: &Expression<'static>| match *wanted {
        Expression::Lookup { set, key, to, inverse } => {
            Expression::Lookup { set: set.name.into(), key, to, inverse }
        }
        Expression::Dynset { set, operation, key, data, timeout } => {
            Expression::Dynset { set: set.name.into(), operation, key, data, timeout }
        }
        other => other,
    };
    let wanted_expressions: Vec<_> = wanted.expressions.iter().map(by_name).collect();
    (found.chain, found.comment) == (wanted.chain, wanted.comment) && expressions == wanted_expressions
}

/// Every object of the example is there as it was written, and nothing else.
fn assert_reads_back(nft: &mut Nftables, example: &Example) {
    let mut chains = Vec::new();
    nft.chains(example.table, &mut |part| match part {
        Part::Start => chains.clear(),
        Part::Item(mut listed) => {
            // Base chains without a policy have one: accept.
            listed.chain.base.iter_mut().for_each(|base| base.policy = None);
            chains.push(format!("{:?}", listed.chain));
        }
    })
    .unwrap();
    let wanted: Vec<String> = example.chains().iter().map(|chain| format!("{chain:?}")).collect();
    assert_eq!(chains, wanted);

    let wanted = example.sets();
    let mut names = Vec::new();
    nft.sets(example.table, &mut |part| match part {
        Part::Start => names.clear(),
        Part::Item(listed) if listed.name.starts_with("__set") => {}
        Part::Item(listed) => {
            let set = wanted.iter().find(|set| set.name == listed.name).unwrap();
            assert!(listed.is_like(set), "{listed:?} is not {set:?}");
            names.push(listed.name.to_owned());
        }
    })
    .unwrap();
    assert_eq!(names, wanted.iter().map(|set| set.name).collect::<Vec<_>>());

    // Chain by chain, in the order in which the chains were made.
    let wanted = example.rules();
    let mut next = 0;
    nft.rules(example.table, None, &mut |part| match part {
        Part::Start => next = 0,
        Part::Item(listed) => {
            assert!(is_like(&listed, &wanted[next]), "{listed:?} is not {:?}", wanted[next]);
            next += 1;
        }
    })
    .unwrap();
    assert_eq!(next, wanted.len());
}

#[test]
#[ignore = "needs root and nf_tables"]
fn the_example_reads_back_as_written_and_nft_lists_and_loads_it() {
    for family in [Family::Ipv4, Family::Ipv6] {
        in_fresh_netns(move |nft| {
            let example = Example::new(family);
            let mut batch = Batch::new();
            example.write(&mut batch, true);
            nft.commit(&mut batch, None).unwrap();
            assert_reads_back(nft, &example);
            if has_nft() {
                let listed = sh("nft list ruleset");
                assert!(listed.contains("delete @clients"), "{listed}");
                // Version 1.0.6 runs out of registers on what is learnt of IPv6 clients.
                if family == Family::Ipv4 {
                    assert_eq!(loaded(&listed), listed);
                }
            }
        });
    }
}

/// What nft lists of a ruleset that it has loaded.
fn loaded(ruleset: &str) -> String {
    let file = std::env::temp_dir().join(format!("nftables-rs-{}.nft", std::process::id()));
    std::fs::write(&file, ruleset).unwrap();
    let listed = Namespace::new().sh(&format!("nft -f {}; nft list ruleset", file.display()));
    std::fs::remove_file(file).unwrap();
    listed
}

#[test]
#[ignore = "needs root and nf_tables"]
fn elements_read_back_and_nft_lists_them_as_if_it_had_loaded_them() {
    for (family, text) in [
        (Family::Ipv4, include_str!("recorded/elements-ip.nft")),
        (Family::Ipv6, include_str!("recorded/elements-ip6.nft")),
    ] {
        in_fresh_netns(move |nft| {
            let example = Example::new(family);
            let mut batch = Batch::new();
            example.write(&mut batch, family == Family::Ipv4);
            let of_rules = batch.elements();
            example.write_elements(&mut batch, text);
            let written = batch.elements() - of_rules;
            nft.commit(&mut batch, None).unwrap();

            let mut found = 0;
            for set in example.sets() {
                nft.elements(example.table, set.name, &mut |part| {
                    found += usize::from(matches!(part, Part::Item(_)))
                })
                .unwrap();
            }
            assert_eq!(found, written);
            if has_nft() {
                let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded");
                let listed = sh("nft list ruleset");
                let by_nft = Namespace::new().sh(&format!(
                    "nft -f {folder}/example-{family}.nft; nft -f {folder}/elements-{family}.nft; nft list ruleset"
                ));
                assert_eq!(sorted(&listed), sorted(&by_nft));
            }
        });
    }
}

/// The kernel lists elements in the order of a hash: words in any order, then.
fn sorted(listing: &str) -> Vec<&str> {
    let mut words: Vec<&str> =
        listing.split([' ', ',', '\n', '\t']).filter(|word| !word.is_empty()).collect();
    words.sort_unstable();
    words
}

#[test]
#[ignore = "needs root and nf_tables"]
fn elements_are_added_replaced_and_deleted_with_comments() {
    in_fresh_netns(|nft| {
        numbers(nft);
        let (one, two) = (Value::host(1), Value::host(2));
        let mut batch = Batch::new();
        let element = Element { comment: Some("first"), ..Element::entry(one.as_bytes(), two.as_bytes()) };
        batch.add_elements(TABLE, "pairs").push(&element);
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(pairs(nft, "pairs"), BTreeMap::from([(1, (Some(2), Some("first".to_owned())))]));

        // An element that is there keeps its comment, and is refused with other data.
        batch.clear();
        let same = Element { comment: Some("second"), ..element };
        batch.add_elements(TABLE, "pairs").push(&same);
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(pairs(nft, "pairs")[&1].1.as_deref(), Some("first"));
        batch.clear();
        let other = Element::entry(one.as_bytes(), one.as_bytes());
        batch.add_elements(TABLE, "pairs").push(&other);
        assert_eq!(refused(nft.commit(&mut batch, None).unwrap_err())[0].errno, libc::EEXIST);

        // Deleted and added in one transaction, it is replaced.
        batch.clear();
        batch.delete_elements(TABLE, "pairs").push(&Element::new(one.as_bytes()));
        batch.add_elements(TABLE, "pairs").push(&other);
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(pairs(nft, "pairs"), BTreeMap::from([(1, (Some(1), None))]));

        let get = |nft: &mut Nftables, key: Value| {
            let mut data = None;
            let key = Element::new(key.as_bytes());
            let found = nft.element(TABLE, "pairs", &key, &mut |listed| {
                data = Some(format!("{:?}", listed.element.data))
            });
            (found.unwrap(), data)
        };
        assert_eq!(get(nft, one), (true, Some(format!("{:?}", other.data))));
        assert_eq!(get(nft, two), (false, None));

        batch.clear();
        batch.flush_set(TABLE, "pairs");
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(pairs(nft, "pairs"), BTreeMap::new());
        assert!(!nft.elements(TABLE, "no such set", &mut |_| {}).unwrap());
    });
}

#[test]
#[ignore = "needs root and nf_tables"]
fn a_refused_element_is_named_by_its_number_whatever_the_size() {
    in_fresh_netns(|nft| {
        numbers(nft);
        let key = |number: u32| number.to_ne_bytes();
        let mut batch = Batch::new();
        batch.add_elements(TABLE, "pairs").push(&Element::entry(&key(4_370), &key(9)));
        nft.commit(&mut batch, None).unwrap();

        // More than fits a message, or the send buffer that a socket has at first.
        batch.clear();
        batch.add_elements(TABLE, "numbers").push(&Element::new(&key(1))).push(&Element::new(&key(2)));
        let mut list = batch.add_elements(TABLE, "pairs");
        for number in 0..6_000 {
            list.push(&Element {
                comment: Some("shop/web:http"),
                ..Element::entry(&key(number), &key(number))
            });
        }
        assert!(batch.len() > 250_000 && batch.elements() == 6_002);
        let refused_ones = refused(nft.commit(&mut batch, None).unwrap_err());
        assert_eq!(refused_ones.len(), 1);
        assert_eq!(refused_ones[0].element, Some(4_372));
        assert_eq!(refused_ones[0].operation, Some(Operation::AddElements));
        assert_eq!(
            refused_ones[0].to_string(),
            "cannot add element 4372 to set pairs of table ip test: File exists (os error 17)"
        );
        assert_eq!(pairs(nft, "pairs").len(), 1, "all or nothing");
        assert_eq!(pairs(nft, "numbers").len(), 0, "all or nothing");

        // The same again without it.
        batch.clear();
        let mut list = batch.add_elements(TABLE, "pairs");
        for number in (0..6_000).filter(|number| *number != 4_370) {
            list.push(&Element::entry(&key(number), &key(number)));
        }
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(pairs(nft, "pairs").len(), 6_000);

        // Each message names its first; deletions as well.
        batch.clear();
        batch.delete_elements(TABLE, "numbers").push(&Element::new(&key(7)));
        batch.delete_elements(TABLE, "pairs").push(&Element::new(&key(7))).push(&Element::new(&key(7_000)));
        let named: Vec<_> = refused(nft.commit(&mut batch, None).unwrap_err())
            .into_iter()
            .map(|refused| (refused.object, refused.element, refused.errno))
            .collect();
        assert_eq!(
            named,
            [("numbers".into(), Some(0), libc::ENOENT), ("pairs".into(), Some(2), libc::ENOENT)]
        );
    });
}

#[test]
#[ignore = "needs root and nf_tables"]
fn many_refusals_are_all_told() {
    in_fresh_netns(|nft| {
        let mut batch = Batch::new();
        for _ in 0..1_500 {
            batch.flush_chain(TABLE, "missing");
        }
        let all = refused(nft.commit(&mut batch, None).unwrap_err());
        assert_eq!(all.len(), 1_500);
        assert!(all.iter().enumerate().all(|(index, refused)| refused.request == index));
        assert!(nft.generation().is_ok(), "the socket is still in step");
    });
}

#[test]
#[ignore = "needs root and nf_tables"]
fn a_stale_generation_changes_nothing() {
    in_fresh_netns(|nft| {
        let before = nft.generation().unwrap();
        let mut batch = Batch::new();
        batch.add_table(&Table::new(TABLE));
        nft.commit(&mut batch, Some(before)).unwrap();
        assert_eq!(nft.generation().unwrap(), before.next());
        // The table is there, so nothing changes, and no generation is made.
        nft.commit(&mut batch, Some(before.next())).unwrap();
        assert_eq!(nft.generation().unwrap(), before.next());

        let mut other = Nftables::open().unwrap();
        let mut foreign = Batch::new();
        foreign.add_chain(&Chain::new(TABLE, "foreign"));
        other.commit(&mut foreign, None).unwrap();
        batch.clear();
        batch.delete_table(TABLE);
        assert!(matches!(nft.commit(&mut batch, Some(before.next())).unwrap_err(), Error::Stale));
        let mut chains = 0;
        nft.chains(TABLE, &mut |part| chains += usize::from(matches!(part, Part::Item(_)))).unwrap();
        assert_eq!(chains, 1);
        let generation = nft.generation().unwrap();
        nft.commit(&mut batch, Some(generation)).unwrap();
    });
}

#[test]
#[ignore = "needs root and nf_tables"]
fn a_probe_changes_nothing_and_names_what_the_kernel_lacks() {
    in_fresh_netns(|nft| {
        let before = nft.generation().unwrap();
        let mut batch = Batch::new();
        batch.add_table(&Table::new(TABLE));
        batch.add_chain(&Chain::new(TABLE, "probe"));
        let known = &[Expression::COUNTER];
        let unknown = &[Expression::COUNTER, Expression::Other { name: "perceive", data: &[] }];
        for expressions in [&known[..], unknown] {
            batch.add_rule(&Rule { table: TABLE, chain: "probe", expressions, comment: None });
        }
        batch.delete_table(TableName::new(Family::Ipv4, "missing"));
        let refused = refused(nft.commit(&mut batch, None).unwrap_err());
        let named: Vec<String> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(
            named,
            [
                "cannot add a rule to chain probe of table ip test, expression perceive: No such file or directory (os error 2)",
                "cannot delete table ip missing: No such file or directory (os error 2)"
            ]
        );
        assert_eq!(refused[0].expression.as_deref(), Some("perceive"));
        assert_eq!(nft.generation().unwrap(), before);
    });
}

#[test]
#[ignore = "needs root and nf_tables"]
fn a_list_that_changes_while_it_is_read_is_whole() {
    const STAYING: u32 = 20_000;
    in_fresh_netns(|nft| {
        numbers(nft);
        let mut batch = Batch::new();
        let mut list = batch.add_elements(TABLE, "numbers");
        (0..STAYING).for_each(|number| {
            list.push(&Element::new(&number.to_ne_bytes()));
        });
        nft.commit(&mut batch, None).unwrap();
        let before = Instant::now();
        nft.elements(TABLE, "numbers", &mut |_| {}).unwrap();
        // Some lists are read while nothing changes, some not.
        let pause = before.elapsed() * 3;
        let is_done = AtomicBool::new(false);
        let (mut starts, mut whole, mut wrong) = (0, 0, Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| come_and_go(STAYING, pause, &is_done));
            let until = Instant::now() + Duration::from_secs(60);
            while (whole < 20 || starts <= whole) && Instant::now() < until {
                let mut found = 0;
                let listed = nft.elements(TABLE, "numbers", &mut |part| match part {
                    Part::Start => (starts, found) = (starts + 1, 0),
                    Part::Item(listed) => {
                        let key = u32::from_ne_bytes(listed.element.key.try_into().unwrap());
                        found += u32::from(key < STAYING);
                    }
                });
                match listed {
                    Ok(_) if found == STAYING => whole += 1,
                    Ok(_) => wrong.push(found),
                    // It never held still; the error has to say so, no more.
                    Err(Error::Netlink(NetlinkError::Interrupted { .. })) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            is_done.store(true, Ordering::Relaxed);
        });
        assert_eq!(wrong, [], "these lists had not all elements once");
        assert!(
            whole >= 20 && starts > whole,
            "{starts} starts, {whole} whole lists: this test shows nothing"
        );
    });
}

/// Adds and deletes elements from `first` on, again and again.
fn come_and_go(first: u32, pause: Duration, is_done: &AtomicBool) {
    let mut other = Nftables::open().unwrap();
    let mut batch = Batch::new();
    let keys: Vec<_> = (first..first + 500).map(u32::to_ne_bytes).collect();
    while !is_done.load(Ordering::Relaxed) {
        for is_added in [true, false] {
            batch.clear();
            let mut list = if is_added {
                batch.add_elements(TABLE, "numbers")
            } else {
                batch.delete_elements(TABLE, "numbers")
            };
            keys.iter().for_each(|key| {
                list.push(&Element::new(key));
            });
            other.commit(&mut batch, None).unwrap();
            std::thread::sleep(pause);
        }
    }
}

#[test]
#[ignore = "needs root and nf_tables"]
fn one_transaction_changes_both_families() {
    in_fresh_netns(|nft| {
        let names = [TABLE, TableName::new(Family::Ipv6, "test")];
        let mut batch = Batch::new();
        for name in names {
            batch.add_table(&Table { comment: Some("mine"), ..Table::new(name) });
            batch.add_set(&Set::new(name, "numbers", NUMBER));
        }
        nft.commit(&mut batch, None).unwrap();
        let list = |nft: &mut Nftables, family| {
            let mut found = Vec::new();
            nft.tables(family, &mut |part| match part {
                Part::Start => found.clear(),
                Part::Item(listed) => {
                    found.push((
                        listed.table.name.to_string(),
                        listed.table.comment.map(str::to_owned),
                        listed.uses,
                    ));
                }
            })
            .unwrap();
            found.sort();
            found
        };
        let [ipv4, ipv6] = names.map(|name| (name.to_string(), Some("mine".to_owned()), 1));
        assert_eq!(list(nft, None), [ipv4.clone(), ipv6.clone()]);
        assert_eq!(list(nft, Some(Family::Ipv4)), [ipv4]);
        assert_eq!(list(nft, Some(Family::Ipv6)), [ipv6]);
    });
}

#[test]
#[ignore = "needs root and nf_tables"]
fn an_owned_table_is_its_sockets_alone_and_may_outlive_it() {
    let tables = |nft: &mut Nftables| {
        let mut found = Vec::new();
        nft.tables(None, &mut |part| match part {
            Part::Start => found.clear(),
            Part::Item(listed) => found.push((listed.table.flags, listed.owner.is_some())),
        })
        .unwrap();
        found
    };
    in_fresh_netns(move |nft| {
        let own = |nft: &mut Nftables, flags| {
            let mut batch = Batch::new();
            batch.add_table(&Table { flags, ..Table::new(TABLE) });
            nft.commit(&mut batch, None)
        };
        let mut owner = Nftables::open().unwrap();
        own(&mut owner, TableFlags::OWNER).unwrap();
        assert_eq!(tables(nft), [(TableFlags::OWNER, true)]);
        let mut batch = Batch::new();
        batch.delete_table(TABLE);
        assert_eq!(refused(nft.commit(&mut batch, None).unwrap_err())[0].errno, libc::EPERM);
        drop(owner);
        assert_eq!(tables(nft), [], "it goes with its owner");

        let mut owner = Nftables::open().unwrap();
        let flags = TableFlags::OWNER | TableFlags::PERSIST;
        match own(&mut owner, flags) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(refused(error)[0].errno, libc::EOPNOTSUPP, "only kernels before 6.9 refuse");
                return eprintln!("the kernel has no persistent tables: they are LEFT OUT");
            }
        }
        drop(owner);
        assert_eq!(tables(nft).len(), 1);
        assert!(!tables(nft)[0].1, "it has no owner");
        own(nft, flags).unwrap();
        assert_eq!(tables(nft), [(flags, true)]);
    });
}

#[test]
#[ignore = "needs root and nf_tables"]
fn rules_are_inserted_deleted_and_flushed_and_count() {
    in_fresh_netns(|nft| {
        let mut batch = Batch::new();
        batch.add_table(&Table::new(TABLE));
        for chain in ["a", "b"] {
            batch.add_chain(&Chain::new(TABLE, chain));
        }
        let rule =
            |chain, comment| Rule { table: TABLE, chain, expressions: &[Expression::COUNTER], comment };
        batch.add_rule(&rule("a", Some("second")));
        batch.add_rule(&rule("b", Some("other")));
        batch.insert_rule(&rule("a", Some("first")));
        nft.commit(&mut batch, None).unwrap();
        let list = |nft: &mut Nftables, chain: Option<&str>| {
            let mut found = Vec::new();
            nft.rules(TABLE, chain, &mut |part| match part {
                Part::Start => found.clear(),
                Part::Item(listed) => found.push((listed.comment.unwrap().to_owned(), listed.handle)),
            })
            .unwrap();
            found
        };
        let comments =
            |rules: Vec<(String, u64)>| rules.into_iter().map(|(comment, _)| comment).collect::<Vec<_>>();
        let in_a = list(nft, Some("a"));
        assert_eq!(comments(in_a.clone()), ["first", "second"]);
        batch.clear();
        batch.delete_rule(TABLE, "a", in_a[0].1);
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(comments(list(nft, None)), ["second", "other"]);
        batch.clear();
        batch.flush_chain(TABLE, "a");
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(comments(list(nft, None)), ["other"]);
        batch.clear();
        batch.flush_table(TABLE);
        batch.delete_chain(TABLE, "a");
        nft.commit(&mut batch, None).unwrap();
        assert_eq!(list(nft, None), []);
        assert_eq!(list(nft, Some("missing")), []);
        assert_eq!(list(nft, Some("a")), []);
    });
}

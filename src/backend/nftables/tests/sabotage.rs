//! Another program deletes, replaces and adds to our table: each act is named, and one sync mends it.

use super::*;

/// A random choice.
fn pick<'a, T>(random: &mut Generator, of: &'a [T]) -> &'a T {
    &of[usize::try_from(random.below(of.len() as u64)).unwrap()]
}

/// The elements of a set of ours, as nft takes them, and what they lead to.
fn elements(set: &str) -> Vec<(String, Option<String>)> {
    let leads = set.ends_with("-endpoints") && !set.starts_with("affinity-");
    let listed = nft(&["list", if leads { "map" } else { "set" }, "ip", "kube-proxy", set]);
    let Some((_, elements)) = listed.split_once("elements = {") else { return Vec::new() };
    let elements = elements.split('}').next().unwrap();
    elements.split(',').map(|element| read(element.trim())).collect()
}

fn read(element: &str) -> (String, Option<String>) {
    let (key, to) = match element.split_once(" : ") {
        Some((key, to)) => (key, Some(to.to_owned())),
        None => (element, None),
    };
    (key.split(" comment ").next().unwrap().to_owned(), to)
}

/// What is done, and what has to be named.
struct Act {
    script: String,
    names: String,
}

/// One of all kinds of acts.
fn act(random: &mut Generator, sets: &[String], chains: &[String]) -> Act {
    let (set, chain) = (pick(random, sets).clone(), pick(random, chains).clone());
    let at = format!("ip kube-proxy {set}");
    let there = elements(&set);
    let (key, to) = pick(random, &there).clone();
    let (script, names) = match random.below(12) {
        0 | 1 => (format!("delete element {at} {{ {key} }}"), set),
        2 => (format!("flush set {at}"), set),
        3 if to.is_some() => {
            let foreign = format!("{key} : 192.0.2.7 . 9");
            (format!("delete element {at} {{ {key} }}; add element {at} {{ {foreign} }}"), set)
        }
        3 | 4 => {
            let comment = if to.is_some() { "" } else { " comment \"of another\"" };
            let to = to.map(|to| format!(" : {to}")).unwrap_or_default();
            (
                format!(
                    "delete element {at} {{ {key} }}; add element {at} {{ {} }}",
                    foreign(&key) + comment + &to
                ),
                set,
            )
        }
        5 => (format!("insert rule ip kube-proxy {chain} ip saddr 192.0.2.1 drop"), chain),
        6 => (format!("add rule ip kube-proxy {chain} counter accept comment \"of another\""), chain),
        7 => (format!("flush chain ip kube-proxy {chain}"), chain),
        8 => (
            "add chain ip kube-proxy of-another; add rule ip kube-proxy of-another drop".to_owned(),
            "of-another".to_owned(),
        ),
        9 => (
            "add set ip kube-proxy of-another { type ipv4_addr;elements = { 192.0.2.1 } }".to_owned(),
            "of-another".to_owned(),
        ),
        10 => ("delete table ip kube-proxy".to_owned(), "is gone".to_owned()),
        _ => ("flush ruleset".to_owned(), "is gone".to_owned()),
    };
    Act { script, names }
}

/// Another key than ours.
fn foreign(key: &str) -> String {
    let mut parts: Vec<&str> = key.split(" . ").collect();
    match parts.iter().position(|part| part.contains('.')) {
        Some(address) => parts[address] = "192.0.2.9",
        None => parts[1] = "7",
    }
    parts.join(" . ")
}

#[test]
fn random_acts_are_named_and_mended_by_one_sync() {
    live(async || {
        let mut random = Generator::new(2026);
        let mut bench = Bench::new(IpFamily::V4);
        bench.fold(&mut Generator::new(5), 80);
        bench.sync().await;
        let good = bench.table();
        // Of sets that have elements, and of chains that have rules after the line that tells their hook.
        let of_kind = |kind: &str, least: usize| {
            let filled = good.iter().filter(|(_, lines)| lines.len() >= least);
            filled.filter_map(|(name, _)| name.strip_prefix(kind).map(str::to_owned)).collect::<Vec<_>>()
        };
        // Ranges are not written as nft lists them.
        let (mut sets, chains) = (of_kind("set ", 1), of_kind("chain ", 2));
        sets.retain(|set| set != "firewall-sources");
        for number in 0..thorough(25, 200) {
            let Act { script, names } = act(&mut random, &sets, &chains);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), script.replace("; ", "\n") + "\n").unwrap();
            nft(&["-f", file.path().to_str().unwrap()]);
            let found = bench.verify(VerifyDepth::Thorough).await;
            assert!(found.iter().any(|it| it.contains(&names)), "act {number}, {script}: {found:?}");
            bench.sync().await;
            assert_same(&bench.table(), &good, &format!("act {number}, {script}"));
            assert_eq!(bench.verify(VerifyDepth::Thorough).await, [""; 0], "act {number}, {script}");
        }
    });
}

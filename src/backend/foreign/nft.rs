//! Tables that other programs made of nf_tables themselves, as `nft list table` prints them.

use super::known::{Holds, KnownPart};
use super::line::{ForeignLine, LineTarget};
use super::{BaseChain, ChainRules, ForeignEffect, ForeignTable, Language, PacketHook, Stage};
use crate::model::IpFamily;

/// The priority at which destinations are translated in prerouting and output.
const TRANSLATION: i32 = -100;

impl ForeignTable {
    /// Reads what `nft -y list table` prints of a table (`inet firewalld`).
    #[must_use]
    pub fn of_nft(name: &str, text: &str) -> ForeignTable {
        let mut table = ForeignTable {
            name: name.to_owned(),
            language: Language::Nft,
            chains: ChainRules::new(),
            bases: Vec::new(),
            translates: false,
            has_ours: false,
        };
        let (mut chain, mut policy): (Option<String>, Option<String>) = (None, None);
        for line in statements(text) {
            if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.split(' ').next()) {
                chain = Some(name.to_owned());
                table.chains.entry(name.to_owned()).or_default();
            } else if line == "}" {
                if let (Some(name), Some(policy)) = (chain.take(), policy.take()) {
                    table.chains.entry(name).or_default().push(policy);
                }
            } else if let Some(name) = &chain {
                if let Some(hook) = line.strip_prefix("type ") {
                    policy = hook.contains("policy drop").then(|| "policy drop".to_owned());
                    table.translates |= hook.starts_with("nat ");
                    table.bases.extend(base(name, hook));
                } else {
                    table.chains.entry(name.clone()).or_default().push(line);
                }
            }
        }
        table
    }
}

/// The lines, where one that goes on in the next is one.
pub(super) fn statements(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut depth = 0_usize;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match found.last_mut().filter(|_| depth > 0) {
            Some(last) => {
                last.push(' ');
                last.push_str(line);
            }
            None => found.push(line.to_owned()),
        }
        let count = |sign| line.matches(sign).count();
        // What begins a table, a chain or a set is a line of its own.
        let opens = if depth == 0 && is_head(line) { 0 } else { count('{') };
        let closes = if depth == 0 && line == "}" { 0 } else { count('}') };
        depth = (depth + opens).saturating_sub(closes);
    }
    found
}

fn is_head(line: &str) -> bool {
    let first = line.split(' ').next().unwrap_or_default();
    line.ends_with('{')
        && [
            "table",
            "chain",
            "set",
            "map",
            "flowtable",
            "counter",
            "ct",
            "limit",
            "quota",
            "secmark",
            "synproxy",
        ]
        .contains(&first)
        && !line.contains(" vmap ")
        && line.split(' ').count() <= 5
}

/// `filter hook forward priority 10; policy accept;`
pub(super) fn base(name: &str, line: &str) -> Option<BaseChain> {
    let mut words = line.split([' ', ';']).filter(|word| !word.is_empty());
    let kind = words.next()?;
    let hook = match words.by_ref().skip_while(|word| *word != "hook").nth(1)? {
        "prerouting" => PacketHook::Prerouting,
        "input" => PacketHook::Input,
        "forward" => PacketHook::Forward,
        "output" => PacketHook::Output,
        "postrouting" => PacketHook::Postrouting,
        _ => return None,
    };
    let priority: i32 = words.skip_while(|word| *word != "priority").nth(1)?.parse().ok()?;
    let is_early = kind == "nat" || priority <= TRANSLATION;
    let is_at_start = matches!(hook, PacketHook::Prerouting | PacketHook::Output);
    let stage = Stage { hook, is_translated: !(is_early && is_at_start) };
    Some(BaseChain { name: name.to_owned(), stage })
}

/// The words of a rule; a text in quotes is one, and so is a set in braces.
fn words(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '"' => rest.get(1..).and_then(|inner| inner.find('"')).map_or(rest.len(), |at| at + 2),
            '{' => rest.find('}').map_or(rest.len(), |at| at + 1),
            _ => rest.find(' ').unwrap_or(rest.len()),
        };
        let (word, left) = rest.split_at_checked(end).unwrap_or((rest, ""));
        found.push(word);
        rest = left.trim_start();
    }
    found
}

/// Reads a rule, as far as it matters here. What is not understood may hold.
pub(super) fn parse_rule<'r>(text: &'r str, packet: &KnownPart) -> ForeignLine<'r> {
    let all = words(text);
    let mut rule = ForeignLine { holds: Holds::Yes, targets: vec![LineTarget::Other] };
    let mut rest = all.as_slice();
    while let Some((word, after)) = rest.split_first() {
        if let Some((target, holds)) = verdict(word, after) {
            (rule.targets, rule.holds) = (vec![target], rule.holds.and(holds));
            break;
        }
        let (head, tail) = rest.split_at_checked(head_len(rest)).unwrap_or((rest, &[]));
        if let [map, value, ..] = tail
            && *map == "vmap"
        {
            let (targets, holds) = of_map(head, value, packet);
            (rule.targets, rule.holds) = (targets, rule.holds.and(holds));
            break;
        }
        let (holds, taken) = statement(rest).unwrap_or_else(|| condition((head, tail), packet));
        rule.holds = rule.holds.and(holds);
        rest = rest.get(taken.max(1)..).unwrap_or_default();
    }
    rule
}

/// What ends a rule.
fn verdict<'r>(word: &'r str, after: &[&'r str]) -> Option<(LineTarget<'r>, Holds)> {
    let value = after.first().copied().unwrap_or_default();
    let target = match word {
        "accept" => LineTarget::Accept,
        "drop" => LineTarget::Has(ForeignEffect::Drops),
        // What a program behind a queue decides is not known.
        "queue" => return Some((LineTarget::Has(ForeignEffect::Drops), Holds::Maybe)),
        "reject" => LineTarget::Has(ForeignEffect::Refuses),
        "return" => LineTarget::Return,
        "continue" => LineTarget::Other,
        "jump" => LineTarget::Chain(value, false),
        "goto" => LineTarget::Chain(value, true),
        "dnat" | "redirect" | "tproxy" => LineTarget::Has(ForeignEffect::Redirects),
        "snat" | "masquerade" => LineTarget::Has(ForeignEffect::Masquerades),
        "notrack" => LineTarget::Has(ForeignEffect::Untracks),
        _ => return None,
    };
    Some((target, Holds::Yes))
}

/// Where a map sends a packet: `{ established : accept, invalid : drop }`. One that does not stand in the rule may drop it.
fn of_map<'r>(head: &[&str], map: &'r str, packet: &KnownPart) -> (Vec<LineTarget<'r>>, Holds) {
    if !map.starts_with('{') {
        return (vec![LineTarget::Has(ForeignEffect::Drops)], Holds::Maybe);
    }
    let mut targets = Vec::new();
    for (key, end) in members(map).filter_map(|element| element.split_once(" : ")) {
        let holds = test(head, key.trim_matches('"'), packet);
        let (word, value) = end.split_once(' ').unwrap_or((end, ""));
        let Some((target, _)) = verdict(word, &[value]).filter(|_| holds != Holds::No) else { continue };
        if holds == Holds::Yes {
            return (vec![target], Holds::Yes);
        }
        targets.push(target);
    }
    let holds = if targets.is_empty() { Holds::No } else { Holds::Maybe };
    (targets, holds)
}

/// The members of a set that is written in a rule, or the one value.
fn members(value: &str) -> impl Iterator<Item = &str> {
    let inner = value.trim_start_matches('{').trim_end_matches('}');
    inner.split(',').map(|part| part.trim().trim_matches('"'))
}

/// How many words name what is compared.
fn head_len(words: &[&str]) -> usize {
    match words.first().copied().unwrap_or_default() {
        "fib" => 3,
        "ip" | "ip6" | "ct" | "meta" | "tcp" | "udp" | "sctp" | "th" | "icmp" | "icmpv6" => 2,
        _ => 1,
    }
}

/// What asks nothing of a packet, and how many words it has.
fn statement(words: &[&str]) -> Option<(Holds, usize)> {
    let at = |index: usize| words.get(index).copied().unwrap_or_default();
    let taken = match (at(0), at(1), at(2)) {
        ("counter", "packets", _) => 5,
        ("counter", ..) | ("policy", ..) => 1,
        ("comment", ..) => 2,
        ("log", ..) | ("meta" | "ct", _, "set") => {
            let ends = |word: &&str| verdict(word, &[]).is_some() || *word == "comment";
            words.iter().position(ends).unwrap_or(words.len())
        }
        _ => return None,
    };
    Some((Holds::Yes, taken))
}

/// Whether the condition that words begin with holds, and how many words it has.
fn condition((head, tail): (&[&str], &[&str]), packet: &KnownPart) -> (Holds, usize) {
    let (sign, rest) = match tail {
        [sign @ ("!=" | "=="), rest @ ..] => (*sign, rest),
        rest => ("==", rest),
    };
    let taken = head.len() + tail.len() - rest.len() + 1;
    let holds = match rest {
        // What stands in a set elsewhere, or is joined with something else, is not known.
        [] | [".", ..] | [_, ".", ..] => header(head, packet).and(Holds::Maybe),
        [value, ..] if value.starts_with('@') => header(head, packet).and(Holds::Maybe),
        [value, ..] => header(head, packet).and(test(head, value, packet).negated(sign == "!=")),
    };
    (holds, taken)
}

/// Whether what is compared has one of these values.
fn test(head: &[&str], value: &str, packet: &KnownPart) -> Holds {
    match head {
        ["ip" | "ip6", "daddr"] => any(value, |it| packet.goes_to(it)),
        ["ip" | "ip6", "saddr"] => any(value, |it| packet.comes_from(it)),
        ["ip", "protocol"] | ["ip6", "nexthdr"] | ["meta", "l4proto"] => any(value, |it| packet.is_of(it)),
        ["meta", "nfproto"] => any(value, |it| match it {
            "ipv4" => packet.is_family(IpFamily::V4),
            "ipv6" => packet.is_family(IpFamily::V6),
            _ => Holds::Maybe,
        }),
        ["ct", "state"] => packet.has_state(members(value)),
        ["ct", "status"] => any(value, |it| match it {
            "dnat" => Holds::of(packet.is_translated),
            _ => Holds::Maybe,
        }),
        ["tcp" | "udp" | "sctp" | "th", "dport"] => packet.goes_to_port(members(value), '-'),
        ["fib", "daddr", "type"] => any(value, |it| packet.goes_to_type(it)),
        ["iifname" | "iif"] => any(value, |it| packet.came_in_by(it, '*')),
        ["oifname" | "oif"] => any(value, |it| packet.leaves_by(it, '*')),
        _ => Holds::Maybe,
    }
}

/// Whether the packet has the header that is looked at.
fn header(head: &[&str], packet: &KnownPart) -> Holds {
    match head {
        ["icmp" | "icmpv6", ..] => Holds::No,
        ["tcp", ..] => packet.is_of("tcp"),
        ["udp", ..] => packet.is_of("udp"),
        ["sctp", ..] => packet.is_of("sctp"),
        ["ip", ..] => packet.is_family(IpFamily::V4),
        ["ip6", ..] => packet.is_family(IpFamily::V6),
        _ => Holds::Yes,
    }
}

/// Whether a condition holds for one of the members.
fn any(value: &str, holds: impl Fn(&str) -> Holds) -> Holds {
    let all: Vec<Holds> = members(value).map(holds).collect();
    match (all.contains(&Holds::Yes), all.contains(&Holds::Maybe)) {
        (true, _) => Holds::Yes,
        (false, true) => Holds::Maybe,
        (false, false) => Holds::No,
    }
}

//! What a rule says, as a number that is the same for a rule as we write it and as the tools print it.
//!
//! The tools print options in an order of their own, and leave out or spell out what goes without saying. So each
//! option is brought into one form and hashed, and the sum of all does not depend on their order.

use super::rule::{Word, mark_change, network, protocol_name, value_and_mask, words};
use crate::model::Cidr;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

/// The kernel throws dice with so many sides.
const CHANCES: f64 = (1_u32 << 31) as f64;

/// A hash of all that a rule says, without `-A CHAIN`.
pub(super) fn meaning(rule: &str) -> u64 {
    sum(rule, &|_| true)
}

/// A hash of what a rule does: its comment does not count.
pub(super) fn effect(rule: &str) -> u64 {
    sum(rule, &|extension| extension != "comment")
}

/// The sum of a rule's options that belong to such extensions, or to none.
fn sum(rule: &str, counts: &dyn Fn(&str) -> bool) -> u64 {
    let mut words = words(rule).peekable();
    let is_value = |word: &Word<'_>| word.is_quoted || !(word.text == "!" || word.text.starts_with('-'));
    let (mut sum, mut is_negated, mut extension) = (0_u64, false, "");
    while let Some(Word { text: name, .. }) = words.next() {
        if name == "!" {
            is_negated = true;
            continue;
        }
        let value = words.next_if(is_value).map_or("", |word| word.text);
        let more =
            std::iter::from_fn(|| words.next_if(is_value)).fold(0, |more, word| hash(&(more, word.text)));
        if ["-m", "-j", "-g"].contains(&name) {
            extension = value;
        }
        let of = if name.starts_with("--") || name == "-m" { extension } else { "" };
        if counts(of)
            && let Some((name, value)) = in_one_form(is_negated, name, value)
        {
            sum = sum.wrapping_add(hash(&(of, is_negated, name, value, more)));
        }
        is_negated = false;
    }
    sum
}

/// A value of an option.
#[derive(Hash)]
enum Value<'a> {
    Word(&'a str),
    Network(Cidr),
    Masked(u32, u32),
    Number(u64),
    Endpoint(SocketAddr),
}

/// An option, whichever way it is written; `None` if it goes without saying.
fn in_one_form<'a>(is_negated: bool, name: &'a str, value: &'a str) -> Option<(&'a str, Value<'a>)> {
    let read = match name {
        // Comes with the protocol.
        "-m" if ["tcp", "udp", "sctp"].contains(&value) => return None,
        "--rsource" => return None,
        "--mask" if is_all_ones(value) => return None,
        "--reject-with" if ["icmp-port-unreachable", "icmp6-port-unreachable"].contains(&value) => {
            return None;
        }
        "-s" | "-d" | "--vaddr" => match network(value) {
            Some(net) if net.prefix_len() == 0 && !is_negated => return None,
            net => net.map(|net| Value::Network(net.trunc())),
        },
        "-p" | "--vproto" => Some(Value::Word(protocol_name(value))),
        "--mark" => value_and_mask(value).map(|(value, mask)| Value::Masked(value, mask)),
        "--or-mark" | "--xor-mark" | "--set-mark" | "--set-xmark" => {
            let change = mark_change(name, value);
            return Some(
                change.map_or((name, Value::Word(value)), |(clear, flip)| ("", Value::Masked(clear, flip))),
            );
        }
        "--probability" => {
            value.parse().ok().map(|chance: f64| Value::Number((chance * CHANCES).round().to_bits()))
        }
        "--ctstate" => {
            Some(Value::Number(value.split(',').map(|state| hash(&state)).fold(0, u64::wrapping_add)))
        }
        "--to-destination" => value.parse().ok().map(Value::Endpoint),
        _ => None,
    };
    Some((name, read.unwrap_or(Value::Word(value))))
}

fn is_all_ones(mask: &str) -> bool {
    match mask.parse() {
        Ok(IpAddr::V4(mask)) => mask.to_bits() == u32::MAX,
        Ok(IpAddr::V6(mask)) => mask.to_bits() == u128::MAX,
        Err(_) => false,
    }
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(
        "-m comment --comment \"shop/web:http cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 ! -s 10.128.0.0/16 -j KUBE-MARK-MASQ",
        "! -s 10.128.0.0/16 -d 10.96.0.1/32 -p tcp -m comment --comment \"shop/web:http cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ"
    )]
    #[case("-m comment --comment \"shop/web\" -j A", "-m comment --comment shop/web -j A")]
    #[case("-j MARK --or-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x4000")]
    #[case("-j MARK --xor-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x0")]
    #[case("-m mark ! --mark 0x00004000/0x00004000 -j RETURN", "-m mark ! --mark 0x4000/0x4000 -j RETURN")]
    #[case(
        "-m statistic --mode random --probability 0.3333333333 -j A",
        "-m statistic --mode random --probability 0.33333333349 -j A"
    )]
    #[case(
        "-m recent --name L --rcheck --seconds 10800 --reap -j A",
        "-m recent --rcheck --seconds 10800 --reap --name L --mask 255.255.255.255 --rsource -j A"
    )]
    #[case(
        "-m recent --name L --set",
        "-m recent --set --name L --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource"
    )]
    #[case(
        "-m ipvs --vaddr 10.0.0.1 --vproto tcp --vport 80 -j DROP",
        "-m ipvs --vaddr 10.0.0.1/32 --vproto 6 --vport 80 -j DROP"
    )]
    #[case("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable")]
    #[case("-m conntrack --ctstate RELATED,ESTABLISHED", "-m conntrack --ctstate ESTABLISHED,RELATED")]
    #[case("-s 0.0.0.0/0 -d fd00::0:1 -j A", "-d fd00::1/128 -j A")]
    #[case("-s 10.1.2.3/8 -j A", "-s 10.0.0.0/8 -j A")]
    fn what_we_write_means_the_same_as_what_the_tools_print(#[case] ours: &str, #[case] printed: &str) {
        assert_eq!(meaning(ours), meaning(printed));
    }

    #[rstest]
    #[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -j DROP")]
    #[case("-d 10.0.0.1 -j ACCEPT", "-s 10.0.0.1 -j ACCEPT")]
    #[case("-d 10.0.0.1 -j ACCEPT", "! -d 10.0.0.1 -j ACCEPT")]
    #[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -g ACCEPT")]
    #[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -m limit --limit 1/sec -j ACCEPT")]
    #[case("-j ACCEPT", "-m socket -j ACCEPT")]
    #[case("-m comment --comment \"a b\" -j A", "-m comment --comment \"a c\" -j A")]
    #[case("-m comment --comment \"-j A\" -j B", "-j A -m comment --comment -j B")]
    #[case("-j DNAT --to-destination 10.0.0.1:80", "-j DNAT --to-destination 10.0.0.1:81")]
    #[case("-j DNAT --to-destination 10.0.0.1:80", "-j DNAT --to-destination 10.0.0.1:80-90")]
    #[case("-m set --match-set A dst,dst -j X", "-m set --match-set A dst,src -j X")]
    #[case("-m set --match-set A dst,dst -j X", "-m set ! --match-set A dst,dst -j X")]
    #[case("-m physdev ! --physdev-is-in -j X", "-m physdev --physdev-is-in -j X")]
    #[case("-m statistic --probability 0.5 -j A", "-m statistic --probability 0.50000001 -j A")]
    #[case("-j MARK --or-mark 0x4000", "-j MARK --xor-mark 0x4000")]
    #[case("-m conntrack --ctstate NEW", "-m conntrack --ctstate NEW,INVALID")]
    #[case("-j REJECT", "-j REJECT --reject-with tcp-reset")]
    #[case("-m recent --name L --set", "-m recent --name M --set")]
    #[case("-p tcp --dport 80", "-p udp --dport 80")]
    #[case("! -s 0.0.0.0/0 -j A", "-j A")]
    #[case("-m mark --mark 1 -m connmark --mark 2", "-m mark --mark 2 -m connmark --mark 1")]
    fn rules_that_differ_are_told_apart(#[case] one: &str, #[case] other: &str) {
        assert_ne!(meaning(one), meaning(other));
    }

    #[test]
    fn a_comment_has_no_effect() {
        let (one, other) = ("-s 10.0.0.1 -j A", "-s 10.0.0.1/32 -m comment --comment \"-j B\" -j A");
        assert_eq!(effect(one), effect(other));
        assert_ne!(meaning(one), meaning(other));
        assert_ne!(effect(one), effect("-s 10.0.0.2 -j A"));
    }

    #[test]
    fn whatever_it_is_has_a_meaning() {
        for rule in ["", "!", "\"", "-s", "--comment \"", "--mark 0x", "-s a -s b \\\" \"\"", "a b c d e f"] {
            meaning(rule);
        }
    }
}

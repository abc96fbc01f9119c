//! Reading rules, as we write them and as the tools print them.

use super::hash::hash;
use super::{Asks, Comment, Match, Name, Rule, Share, States, Target};
use crate::model::{Cidr, Frontend, Protocol};
use std::iter::Peekable;
use std::net::IpAddr;

/// A rule that was read.
#[derive(Clone, Debug)]
pub(in crate::backend) struct Parsed<'a> {
    matches: Vec<Match<'a>>,
    target: Target,
}

impl<'a> Parsed<'a> {
    /// Reads a rule, without `-A CHAIN`. A hash distinguishes what we never write.
    pub(in crate::backend) fn of(text: &'a str) -> Self {
        let mut parsed = Parsed { matches: Vec::new(), target: Target::None };
        let mut words = words(text).peekable();
        let mut group: Vec<Opt<'a>> = Vec::new();
        // Options go with the extension, or the target, before them.
        while let Some(option) = Opt::next(&mut words) {
            if option.begins_group() {
                parsed.close(&mut group);
                group.push(option);
            } else if !option.name.starts_with("--") {
                parsed.matches.extend(core(&option));
            } else if group.is_empty() {
                parsed.matches.push(unknown(&option));
            } else {
                group.push(option);
            }
        }
        parsed.close(&mut group);
        parsed
    }

    pub(in crate::backend) fn rule(&self) -> Rule<'_> {
        Rule { matches: &self.matches, target: self.target }
    }

    /// Takes an extension or a target with its options.
    fn close(&mut self, group: &mut Vec<Opt<'a>>) {
        let Some((head, options)) = group.split_first() else { return };
        if head.name != "-m" {
            self.target = target(head, options);
        } else if let Some(found) = extension(head.value, options) {
            self.matches.extend(found);
        } else {
            self.matches.extend(group.iter().map(|option| unknown(&(head.value, option))));
        }
        group.clear();
    }
}

/// An option with its values.
#[derive(Clone, Debug, Hash)]
struct Opt<'a> {
    is_negated: bool,
    name: &'a str,
    value: &'a str,
    /// Of the values after the first.
    more: Vec<&'a str>,
}

impl<'a> Opt<'a> {
    fn next(words: &mut Peekable<impl Iterator<Item = Word<'a>>>) -> Option<Self> {
        let is_value = |word: &Word<'_>| word.is_quoted || !(word.text == "!" || word.text.starts_with('-'));
        let mut is_negated = false;
        while words.next_if(|word| word.text == "!" && !word.is_quoted).is_some() {
            is_negated = true;
        }
        let name = words.next()?.text;
        let value = words.next_if(is_value).map_or("", |word| word.text);
        let more = std::iter::from_fn(|| words.next_if(is_value)).map(|word| word.text).collect();
        Some(Opt { is_negated, name, value, more })
    }

    fn begins_group(&self) -> bool {
        ["-m", "-j", "-g"].contains(&self.name)
    }
}

fn unknown(what: &impl std::hash::Hash) -> Match<'static> {
    Asks::Unknown(hash(what)).into()
}

/// An option of the tool itself.
fn core<'a>(option: &Opt<'a>) -> Option<Match<'a>> {
    let Opt { is_negated, name, value, .. } = *option;
    let asks = match name {
        "-s" | "-d" => match network(value) {
            // Goes without saying.
            Some(net) if net.prefix_len() == 0 && !is_negated => return None,
            Some(net) if name == "-s" => Some(Asks::Source(net.into())),
            net => net.map(|net| Asks::Destination(net.into())),
        },
        "-p" => protocol(value).map(|protocol| Asks::Protocol(protocol, Default::default())),
        "-i" => Some(match value.strip_suffix('+') {
            Some(prefix) => Asks::InInterface(prefix, true),
            None => Asks::InInterface(value, false),
        }),
        _ => None,
    };
    let known = asks.filter(|_| option.more.is_empty()).map(|asks| Match { is_negated, asks });
    Some(known.unwrap_or_else(|| unknown(option)))
}

/// What an extension with these options asks; `None` if we never ask for that.
fn extension<'a>(name: &str, options: &[Opt<'a>]) -> Option<Option<Match<'a>>> {
    let known = match (name, options) {
        ("tcp" | "udp" | "sctp", []) => return Some(None),
        ("recent", options) => recent(options)?.into(),
        ("statistic", [mode, share]) if (mode.name, mode.value) == ("--mode", "random") => {
            let asks = (share.name == "--probability").then(|| Share::parse(share.value))?;
            Match { is_negated: share.is_negated, asks: Asks::Share(asks?) }
        }
        ("ipvs", [address, protocol, port]) => through([address, protocol, port])?.into(),
        (name, [option]) => Match { is_negated: option.is_negated, asks: single(name, option)? },
        _ => return None,
    };
    Some(Some(known))
}

/// What an extension with one option asks.
fn single<'a>(extension: &str, option: &Opt<'a>) -> Option<Asks<'a>> {
    let Opt { value, ref more, .. } = *option;
    let asks = match (extension, option.name) {
        ("comment", "--comment") => Asks::Comment(Comment::Text(value)),
        ("tcp" | "udp" | "sctp", "--dport") => Asks::DestinationPort(value.parse().ok()?),
        ("addrtype", "--src-type") if value == "LOCAL" => Asks::SourceIsLocal,
        ("addrtype", "--dst-type") if value == "LOCAL" => Asks::DestinationIsLocal,
        ("mark", "--mark") => {
            let (value, mask) = value_and_mask(value)?;
            Asks::Mark { value, mask }
        }
        ("conntrack", "--ctstate") => Asks::State(States::parse(value)?),
        ("nfacct", "--nfacct-name") => Asks::Count(Name::of(value)?),
        ("set", "--match-set") => {
            let [parts] = more.as_slice() else { return None };
            return Some(Asks::InSet(Name::of(value)?, parts));
        }
        ("physdev", "--physdev-is-in") => Asks::FromBridgePort,
        _ => return None,
    };
    more.is_empty().then_some(asks)
}

fn recent<'a>(options: &[Opt<'a>]) -> Option<Asks<'a>> {
    let (mut list, mut checks, mut seconds, mut reaps) = (None, None, None, false);
    for option in options {
        match (option.name, option.is_negated) {
            ("--name", false) => list = Name::of(option.value),
            ("--rcheck", false) => checks = Some(true),
            ("--set", false) => checks = Some(false),
            ("--seconds", false) => seconds = Some(option.value.parse().ok()?),
            ("--reap", false) => reaps = true,
            ("--rsource", false) => {}
            ("--mask", false) if is_all_ones(option.value) => {}
            _ => return None,
        }
    }
    match (checks?, seconds, reaps) {
        (true, Some(seconds), true) => Some(Asks::Recent(list?, seconds)),
        (false, None, false) => Some(Asks::Remember(list?)),
        _ => None,
    }
}

/// The tools print the protocol first.
fn through(options: [&Opt<'_>; 3]) -> Option<Asks<'static>> {
    let is_plain = |it: &&&Opt<'_>| !it.is_negated && it.more.is_empty();
    let value = |name| options.iter().filter(is_plain).find(|it| it.name == name).map(|it| it.value);
    let net = network(value("--vaddr")?).filter(|net| net.prefix_len() == net.max_prefix_len())?;
    let (protocol, port) = (protocol(value("--vproto")?)?, value("--vport")?.parse().ok()?);
    Some(Asks::Through(Frontend { address: net.addr(), port, protocol }))
}

fn target(head: &Opt<'_>, options: &[Opt<'_>]) -> Target {
    let otherwise = || Target::Unknown(hash(&(head, options)));
    let chain = || Name::of(head.value).map_or_else(otherwise, Target::Jump);
    match (head.name, head.value, options) {
        ("-g", name, []) => Name::of(name).map_or_else(otherwise, Target::Goto),
        ("-j", "ACCEPT", []) => Target::Accept,
        ("-j", "DROP", []) => Target::Drop,
        ("-j", "RETURN", []) => Target::Return,
        ("-j", "REJECT", []) => Target::Reject(None),
        ("-j", "REJECT", [with]) if is_default_reject(with) => Target::Reject(None),
        ("-j", "REJECT", with) => Target::Reject(Some(hash(&with))),
        ("-j", "MASQUERADE", []) => Target::Masquerade(false),
        ("-j", "MASQUERADE", [with]) if with.name == "--random-fully" => Target::Masquerade(true),
        ("-j", "MARK", [change]) => mark(change).unwrap_or_else(otherwise),
        ("-j", "DNAT", [to]) if to.name == "--to-destination" => {
            to.value.parse().map_or_else(|_| otherwise(), Target::Dnat)
        }
        ("-j", "MARK" | "DNAT", _) => otherwise(),
        ("-j", _, []) => chain(),
        _ => otherwise(),
    }
}

fn is_default_reject(with: &Opt<'_>) -> bool {
    with.name == "--reject-with" && ["icmp-port-unreachable", "icmp6-port-unreachable"].contains(&with.value)
}

/// The bits that are cleared, and those that are then flipped.
fn mark(change: &Opt<'_>) -> Option<Target> {
    let (value, mask) = value_and_mask(change.value)?;
    let (clear, flip) = match change.name {
        "--or-mark" => (value, value),
        "--xor-mark" => (0, value),
        "--set-mark" => (mask | value, value),
        "--set-xmark" => (mask, value),
        _ => return None,
    };
    Some(Target::Mark { clear, flip })
}

fn value_and_mask(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// By its name, or by its number, which the tools print in places.
fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" | "6" => Some(Protocol::Tcp),
        "udp" | "17" => Some(Protocol::Udp),
        "sctp" | "132" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn network(text: &str) -> Option<Cidr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Cidr::from))
}

fn is_all_ones(mask: &str) -> bool {
    match mask.parse() {
        Ok(IpAddr::V4(mask)) => mask.to_bits() == u32::MAX,
        Ok(IpAddr::V6(mask)) => mask.to_bits() == u128::MAX,
        Err(_) => false,
    }
}

/// A word of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) struct Word<'a> {
    pub(in crate::backend) text: &'a str,
    /// So that it is a value, whatever it looks like.
    pub(in crate::backend) is_quoted: bool,
}

/// A rule's words; text in quotes is one.
pub(in crate::backend) fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let quoted = rest.strip_prefix('"');
        let (is_quoted, from) = (quoted.is_some(), quoted.unwrap_or(rest));
        let ends = |byte: u8| byte == b'"' || (!is_quoted && byte.is_ascii_whitespace());
        let end = from.bytes().position(ends).unwrap_or(from.len());
        let (text, left) = from.split_at(end);
        rest = if is_quoted { left.strip_prefix('"').unwrap_or(left) } else { left };
        (is_quoted || !text.is_empty()).then_some(Word { text, is_quoted })
    })
}

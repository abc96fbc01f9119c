//! One rule, taken apart: as we write it and as the tools print it, so that a packet can be walked through
//! either.

use crate::model::Cidr;
use std::net::{IpAddr, SocketAddr};

/// Options with one value that are understood.
const UNDERSTOOD: [&str; 13] = [
    "-s",
    "-d",
    "-p",
    "--dport",
    "-i",
    "--src-type",
    "--dst-type",
    "--mark",
    "--ctstate",
    "--probability",
    "--vaddr",
    "--vport",
    "--vproto",
];

/// What a rule asks of a packet.
#[derive(Clone, Debug)]
pub(super) enum Match {
    Source(bool, Cidr),
    Destination(bool, Cidr),
    Protocol(bool, String),
    DestinationPort(bool, u16),
    Interface(bool, String),
    SourceIsLocal(bool),
    DestinationIsLocal(bool),
    /// Value and mask.
    Mark(bool, u32, u32),
    /// Sorted.
    State(bool, Vec<String>),
    Probability(f64),
    Remembered(String),
    /// A set, and what of the packet it is asked for.
    Set(bool, String, String),
    /// Where the packet went before IPVS sent it on.
    VirtualAddress(bool, Cidr),
    VirtualPort(bool, u16),
    VirtualProtocol(bool, String),
    FromBridgePort(bool),
    /// Something that we never ask.
    Other,
}

/// Where a rule sends a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Accept,
    Drop,
    Reject,
    Return,
    Masquerade,
    /// Bits of the mark that are cleared, and those that are then flipped.
    Mark(u32, u32),
    Dnat(SocketAddr),
    /// A chain, or an extension that lets the packet go on.
    Chain(String),
}

/// A rule: its matches, what it remembers the client in, and where it sends the packet.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    pub(super) matches: Vec<Match>,
    pub(super) remember: Option<String>,
    pub(super) target: Option<Target>,
    /// As it was written, without `-A CHAIN`.
    pub(super) text: String,
}

impl Rule {
    /// Reads a rule, without `-A CHAIN`. What is not understood is kept as it is.
    pub(super) fn parse(text: &str) -> Rule {
        let mut reader = Reader { words: words(text).map(|word| word.text).peekable(), negated: false };
        let mut rule = Rule { text: text.to_owned(), ..Rule::default() };
        let (mut list, mut checks, mut sets) = (String::new(), false, false);
        while let Some(word) = reader.words.next() {
            match word {
                "!" => {
                    reader.negated = true;
                    continue;
                }
                "-m" | "--comment" | "--nfacct-name" | "--mode" | "--seconds" | "--reject-with"
                | "--mask" => {
                    reader.value();
                }
                "--reap" | "--random-fully" | "--rsource" => {}
                "--rcheck" => checks = true,
                "--set" => sets = true,
                "--name" => list = reader.value(),
                "-j" | "-g" => rule.target = Some(Target::named(&reader.value())),
                "--or-mark" | "--xor-mark" | "--set-xmark" | "--set-mark" => {
                    rule.target =
                        mark_change(word, &reader.value()).map(|(clear, flip)| Target::Mark(clear, flip));
                }
                "--to-destination" => rule.target = reader.value().parse().ok().map(Target::Dnat),
                _ => {
                    let wanted = reader.wanted(word);
                    rule.matches.push(wanted);
                }
            }
            reader.negated = false;
        }
        if checks {
            rule.matches.push(Match::Remembered(list.clone()));
        }
        rule.remember = sets.then_some(list);
        rule
    }
}

impl Target {
    fn named(name: &str) -> Target {
        match name {
            "ACCEPT" => Target::Accept,
            "DROP" => Target::Drop,
            "REJECT" => Target::Reject,
            "RETURN" => Target::Return,
            "MASQUERADE" => Target::Masquerade,
            // Its argument follows and replaces this.
            "MARK" => Target::Mark(0, 0),
            chain => Target::Chain(chain.to_owned()),
        }
    }
}

/// The words of a rule that are still to be read.
struct Reader<'a, I: Iterator<Item = &'a str>> {
    words: std::iter::Peekable<I>,
    negated: bool,
}

impl<'a, I: Iterator<Item = &'a str>> Reader<'a, I> {
    fn value(&mut self) -> String {
        self.words.next().unwrap_or_default().to_owned()
    }

    fn wanted(&mut self, word: &str) -> Match {
        let negated = self.negated;
        match word {
            "--physdev-is-in" => return Match::FromBridgePort(negated),
            "--match-set" => return Match::Set(negated, self.value(), self.value()),
            word if !UNDERSTOOD.contains(&word) => return self.unknown(),
            _ => {}
        }
        let value = self.value();
        let known = match word {
            "-s" => network(&value).map(|net| Match::Source(negated, net)),
            "-d" => network(&value).map(|net| Match::Destination(negated, net)),
            "-p" => Some(Match::Protocol(negated, value.clone())),
            "--dport" => value.parse().ok().map(|port| Match::DestinationPort(negated, port)),
            "-i" => Some(Match::Interface(negated, value.clone())),
            "--src-type" if value == "LOCAL" => Some(Match::SourceIsLocal(negated)),
            "--dst-type" if value == "LOCAL" => Some(Match::DestinationIsLocal(negated)),
            "--mark" => value_and_mask(&value).map(|(value, mask)| Match::Mark(negated, value, mask)),
            "--ctstate" => {
                let mut states: Vec<String> = value.split(',').map(str::to_owned).collect();
                states.sort();
                Some(Match::State(negated, states))
            }
            "--probability" => value.parse().ok().map(Match::Probability),
            "--vaddr" => network(&value).map(|net| Match::VirtualAddress(negated, net)),
            "--vport" => value.parse().ok().map(|port| Match::VirtualPort(negated, port)),
            "--vproto" => Some(Match::VirtualProtocol(negated, protocol_name(&value).to_owned())),
            _ => None,
        };
        known.unwrap_or(Match::Other)
    }

    /// An option that we never use, with its values.
    fn unknown(&mut self) -> Match {
        while self.words.next_if(|next| !next.starts_with('-') && *next != "!").is_some() {}
        Match::Other
    }
}

/// What a mark option does: the bits that are cleared, and those that are then flipped.
pub(super) fn mark_change(option: &str, value: &str) -> Option<(u32, u32)> {
    let (value, mask) = value_and_mask(value)?;
    Some(match option {
        "--or-mark" => (value, value),
        "--xor-mark" => (0, value),
        "--set-mark" => (mask | value, value),
        _ => (mask, value),
    })
}

pub(super) fn value_and_mask(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// A protocol's name, where the tools print its number.
pub(super) fn protocol_name(text: &str) -> &str {
    match text {
        "6" => "tcp",
        "17" => "udp",
        "132" => "sctp",
        name => name,
    }
}

pub(super) fn network(text: &str) -> Option<Cidr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Cidr::from))
}

/// A word of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    /// So that it is a value, whatever it looks like.
    pub(super) is_quoted: bool,
}

/// A rule's words; text in quotes is one.
pub(super) fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_quotes_is_one_word() {
        let words: Vec<_> = words(" -m  comment --comment \"a -j b\" \"\" c\"d\"\"e ").collect();
        let word = |text| Word { text, is_quoted: false };
        let quoted = |text| Word { text, is_quoted: true };
        let all = [word("-m"), word("comment"), word("--comment"), quoted("a -j b"), quoted(""), word("c")];
        assert_eq!(words, [&all[..], &[quoted("d"), quoted("e ")]].concat());
    }
}

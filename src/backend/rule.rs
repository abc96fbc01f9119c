//! One rule, taken apart: as we write it and as the tools print it, so that the two can be compared and
//! a packet can be walked through either.

use crate::model::Cidr;
use std::net::{IpAddr, SocketAddr};

/// Chances differ by the kernel's rounding to 2^-31.
const CHANCE_ROUNDING: f64 = 1e-8;

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
    /// Something that we never ask, word for word.
    Other(String),
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
        let words = words(text);
        let mut reader = Reader { words: words.iter().map(String::as_str).peekable(), negated: false };
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
                    rule.target = mark_target(word, &reader.value());
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

    /// Whether two rules do the same to every packet, however they are written.
    pub(super) fn is_like(&self, other: &Rule) -> bool {
        let holds = |matches: &[Match], wanted: &Match| matches.iter().any(|it| it.is_like(wanted));
        self.target == other.target
            && self.remember == other.remember
            && self.matches.len() == other.matches.len()
            && self.matches.iter().all(|wanted| holds(&other.matches, wanted))
            && other.matches.iter().all(|wanted| holds(&self.matches, wanted))
    }
}

impl Match {
    fn is_like(&self, other: &Match) -> bool {
        match (self, other) {
            (Match::Source(a, b), Match::Source(c, d))
            | (Match::Destination(a, b), Match::Destination(c, d))
            | (Match::VirtualAddress(a, b), Match::VirtualAddress(c, d)) => (a, b) == (c, d),
            (Match::Protocol(a, b), Match::Protocol(c, d))
            | (Match::Interface(a, b), Match::Interface(c, d))
            | (Match::VirtualProtocol(a, b), Match::VirtualProtocol(c, d)) => (a, b) == (c, d),
            (Match::DestinationPort(a, b), Match::DestinationPort(c, d))
            | (Match::VirtualPort(a, b), Match::VirtualPort(c, d)) => (a, b) == (c, d),
            (Match::Set(a, b, c), Match::Set(d, e, f)) => (a, b, c) == (d, e, f),
            (Match::SourceIsLocal(a), Match::SourceIsLocal(b))
            | (Match::FromBridgePort(a), Match::FromBridgePort(b))
            | (Match::DestinationIsLocal(a), Match::DestinationIsLocal(b)) => a == b,
            (Match::Mark(a, b, c), Match::Mark(d, e, f)) => (a, b, c) == (d, e, f),
            (Match::State(a, b), Match::State(c, d)) => (a, b) == (c, d),
            (Match::Probability(a), Match::Probability(b)) => (a - b).abs() < CHANCE_ROUNDING,
            (Match::Remembered(a), Match::Remembered(b)) | (Match::Other(a), Match::Other(b)) => a == b,
            _ => false,
        }
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
            word if !UNDERSTOOD.contains(&word) => return self.unknown(word),
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
        known.unwrap_or_else(|| Match::Other(format!("{}{word} {value}", if negated { "! " } else { "" })))
    }

    /// An option that we never use, with its values.
    fn unknown(&mut self, word: &str) -> Match {
        let mut text = if self.negated { format!("! {word}") } else { word.to_owned() };
        while let Some(value) = self.words.next_if(|next| !next.starts_with('-') && *next != "!") {
            text.push(' ');
            text.push_str(value);
        }
        Match::Other(text)
    }
}

fn mark_target(word: &str, value: &str) -> Option<Target> {
    let (value, mask) = value_and_mask(value)?;
    Some(match word {
        "--or-mark" => Target::Mark(value, value),
        "--xor-mark" => Target::Mark(0, value),
        _ => Target::Mark(mask, value),
    })
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

/// A protocol's name, where the tools print its number.
fn protocol_name(text: &str) -> &str {
    match text {
        "6" => "tcp",
        "17" => "udp",
        "132" => "sctp",
        name => name,
    }
}

fn network(text: &str) -> Option<Cidr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Cidr::from))
}

/// A rule's words; text in quotes is one.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in text.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
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
        "-m ipvs --vaddr 10.0.0.1 --vproto tcp --vport 80 -j DROP",
        "-m ipvs --vaddr 10.0.0.1/32 --vproto 6 --vport 80 -j DROP"
    )]
    #[case("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable")]
    fn what_we_write_is_like_what_the_tools_print(#[case] ours: &str, #[case] printed: &str) {
        let (ours, printed) = (Rule::parse(ours), Rule::parse(printed));
        assert!(ours.is_like(&printed), "{ours:?}\n{printed:?}");
    }

    #[rstest]
    #[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -j DROP")]
    #[case("-d 10.0.0.1 -j ACCEPT", "! -d 10.0.0.1 -j ACCEPT")]
    #[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -m limit --limit 1/sec -j ACCEPT")]
    #[case("-j DNAT --to-destination 10.0.0.1:80", "-j DNAT --to-destination 10.0.0.1:81")]
    #[case("-m set --match-set A dst,dst -j X", "-m set --match-set A dst,src -j X")]
    #[case("-m set --match-set A dst,dst -j X", "-m set ! --match-set A dst,dst -j X")]
    #[case("-m physdev ! --physdev-is-in -j X", "-m physdev --physdev-is-in -j X")]
    #[case("-m statistic --probability 0.5 -j A", "-m statistic --probability 0.51 -j A")]
    fn rules_that_differ_are_told_apart(#[case] one: &str, #[case] other: &str) {
        assert!(!Rule::parse(one).is_like(&Rule::parse(other)));
    }
}

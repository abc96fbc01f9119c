//! Rules of other programs as the iptables tools print them.

use super::ForeignEffect;
use super::known::{Holds, KnownPart};
use crate::backend::rule::words;

/// What begins the names of chains of service proxies and kubelet.
const OURS: &str = "KUBE-";

/// A rule, as far as it matters here.
pub(super) struct ForeignLine<'r> {
    pub(super) holds: Holds,
    /// Where it sends a packet; each only may be it, if there are several.
    pub(super) targets: Vec<LineTarget<'r>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineTarget<'r> {
    Accept,
    Return,
    Has(ForeignEffect),
    /// A chain that may be there, and whether it does not come back.
    Chain(&'r str, bool),
    /// A chain of a service proxy.
    Ours(&'r str),
    Other,
}

/// Extensions that ask nothing without an option of their own.
const NEUTRAL: [&str; 19] = [
    "tcp",
    "udp",
    "sctp",
    "comment",
    "conntrack",
    "state",
    "multiport",
    "addrtype",
    "mark",
    "connmark",
    "set",
    "physdev",
    "owner",
    "statistic",
    "limit",
    "hashlimit",
    "recent",
    "iprange",
    "string",
];

impl<'r> ForeignLine<'r> {
    pub(super) fn parse(text: &'r str, packet: &KnownPart) -> ForeignLine<'r> {
        let mut words = words(text).map(|word| word.text).peekable();
        let (mut holds, mut is_negated) = (Holds::Yes, false);
        let mut target = LineTarget::Other;
        while let Some(word) = words.next() {
            let value = words.peek().copied().unwrap_or_default();
            let found = match word {
                "!" => {
                    is_negated = true;
                    continue;
                }
                "-j" | "-g" => {
                    target = LineTarget::parse(value, word == "-g", text);
                    holds = holds.and(certainty(value));
                    break;
                }
                "-m" | "--match" => {
                    if NEUTRAL.contains(&value) {
                        Holds::Yes
                    } else {
                        Holds::Maybe
                    }
                }
                "--comment" => Holds::Yes,
                "-d" => packet.goes_to(value),
                "-s" => packet.comes_from(value),
                "-p" => packet.is_of(value),
                "--dport" | "--dports" => packet.goes_to_port(value.split(','), ':'),
                "-i" => packet.came_in_by(value, '+'),
                "-o" => packet.leaves_by(value, '+'),
                "--ctstate" | "--state" => packet.has_state(value.split(',')),
                "--dst-type" => packet.goes_to_type(value),
                word if word.starts_with('-') => Holds::Maybe,
                // A value.
                _ => continue,
            };
            if matches!(word, "-m" | "--match" | "--comment" | "-d" | "-s" | "-p" | "-i" | "-o") {
                words.next();
            }
            holds = holds.and(found.negated(is_negated));
            is_negated = false;
        }
        ForeignLine { holds, targets: vec![target] }
    }
}

/// What a program behind a queue decides is not known.
fn certainty(target: &str) -> Holds {
    if target == "NFQUEUE" { Holds::Maybe } else { Holds::Yes }
}

impl<'r> LineTarget<'r> {
    fn parse(name: &'r str, is_goto: bool, text: &str) -> LineTarget<'r> {
        match name {
            "ACCEPT" => LineTarget::Accept,
            "RETURN" => LineTarget::Return,
            "DROP" | "NFQUEUE" | "SYNPROXY" | "TARPIT" => LineTarget::Has(ForeignEffect::Drops),
            "REJECT" => LineTarget::Has(ForeignEffect::Refuses),
            "DNAT" | "REDIRECT" | "TPROXY" | "NETMAP" => LineTarget::Has(ForeignEffect::Redirects),
            "MASQUERADE" | "SNAT" => LineTarget::Has(ForeignEffect::Masquerades),
            "NOTRACK" => LineTarget::Has(ForeignEffect::Untracks),
            "CT" if text.contains("--notrack") => LineTarget::Has(ForeignEffect::Untracks),
            ours if ours.starts_with(OURS) => LineTarget::Ours(ours),
            chain => LineTarget::Chain(chain, is_goto),
        }
    }
}

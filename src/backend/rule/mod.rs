//! One iptables rule: what it asks of a packet, and where it sends it.
//!
//! Renderers make rules of borrowed parts. `Display` writes the text that iptables-restore takes, and `parse` reads
//! that text as well as what the tools print. The tools print options in an order of their own, spell values in
//! another way, and leave out or add defaults; none of that makes another rule: two rules are equal if they do the
//! same, and then their hashes are.

mod hash;
mod name;
mod parse;
mod text;

pub(super) use hash::ChainHash;
pub(super) use name::Name;
pub(super) use parse::Parsed;
pub(super) use parse::words;

use crate::model::{Cidr, Frontend, Protocol, ServicePortName};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

/// How a value is spelled, where that makes no difference.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spelling<T>(pub(super) T);

impl<T> PartialEq for Spelling<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Spelling<T> {}

impl<T> Hash for Spelling<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A network; a single address may be spelled without its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Network {
    pub(super) cidr: Cidr,
    is_bare: Spelling<bool>,
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Network { cidr: Cidr::from(address), is_bare: Spelling(true) }
    }
}

impl From<Cidr> for Network {
    fn from(cidr: Cidr) -> Self {
        Network { cidr: cidr.trunc(), is_bare: Spelling(false) }
    }
}

/// States of connection tracking, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct States(u8);

impl States {
    const NAMES: [&'static str; 7] =
        ["INVALID", "NEW", "RELATED", "ESTABLISHED", "DNAT", "SNAT", "UNTRACKED"];
    pub(super) const INVALID: States = States(1);
    pub(super) const NEW: States = States(1 << 1);
    pub(super) const KNOWN: States = States((1 << 2) | (1 << 3));
    pub(super) const KNOWN_OR_DNAT: States = States((1 << 2) | (1 << 3) | (1 << 4));

    fn parse(text: &str) -> Option<States> {
        let bit = |name| Self::NAMES.iter().position(|known| *known == name);
        text.split(',').try_fold(States(0), |states, name| Some(States(states.0 | 1 << bit(name)?)))
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().enumerate().filter(move |(bit, _)| self.0 & (1 << bit) != 0).map(|it| it.1)
    }

    /// Whether one of them is this one.
    pub(super) fn has(self, state: States) -> bool {
        self.0 & state.0 != 0
    }

    /// Whether the destination was translated is one of them.
    pub(super) fn has_dnat(self) -> bool {
        self.has(States(1 << 4))
    }
}

/// The kernel holds the share of the packets that a rule takes as a part of this.
const CHANCES: f64 = (1_u32 << 31) as f64;
/// Decimals of a share as kube-proxy writes it.
const SHARE_DIGITS: f64 = 1e10;

/// A share in units of its last decimal, rounded as one prints it: half to even, by the exact value.
fn in_digits(share: f64) -> f64 {
    let product = share * SHARE_DIGITS;
    let (whole, lost) = (product.floor(), share.mul_add(SHARE_DIGITS, -product));
    let fraction = product - whole + lost;
    let is_odd = whole % 2.0 > 0.5;
    if fraction > 0.5 || (fraction >= 0.5 && is_odd) { whole + 1.0 } else { whole }
}

/// The share of the packets that a rule takes at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Share {
    /// Of 2^31.
    chances: u32,
    /// In units of 10^-10.
    digits: Spelling<u64>,
}

impl Share {
    /// That of the first `first` of `all`.
    pub(super) fn of_first(first: usize, all: usize) -> Share {
        #[expect(clippy::cast_precision_loss, reason = "endpoint counts are far below 2^52")]
        let share = first as f64 / all as f64;
        Share::rounded(share)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is between 0 and 1")]
    fn rounded(share: f64) -> Share {
        let digits = in_digits(share);
        // What counts is what the tool reads: the decimals.
        Share { chances: (digits / SHARE_DIGITS * CHANCES).round() as u32, digits: Spelling(digits as u64) }
    }

    /// As a tool prints it, with more decimals than we write.
    fn parse(text: &str) -> Option<Share> {
        let share: f64 = text.parse().ok()?;
        if !(0.0..=1.0).contains(&share) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 1")]
        let chances = (share * CHANCES).round() as u32;
        Some(Share { chances, ..Share::rounded(share) })
    }

    /// As a number between 0 and 1.
    pub(super) fn chance(self) -> f64 {
        f64::from(self.chances) / CHANCES
    }
}

/// A comment, in the parts that it is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Comment<'a> {
    Text(&'a str),
    /// A Service port between two pieces of text.
    Port(&'static str, &'a ServicePortName, &'static str),
    /// A Service port and its endpoint.
    Endpoint(&'a ServicePortName, &'a str),
    /// A Service port, a piece of text, and a chain.
    Chain(&'a ServicePortName, &'static str, Name),
}

/// What a rule asks of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asks<'a> {
    /// Nothing; it is not written.
    Nothing,
    Comment(Comment<'a>),
    Source(Network),
    Destination(Network),
    /// May be spelled with the extension of the protocol.
    Protocol(Protocol, Spelling<bool>),
    DestinationPort(u16),
    /// Its name, or what its name begins with.
    InInterface(&'a str, bool),
    SourceIsLocal,
    DestinationIsLocal,
    Mark {
        value: u32,
        mask: u32,
    },
    State(States),
    Share(Share),
    /// The client is in the list, and not for longer than this.
    Recent(Name, u32),
    /// Nothing: the client is put into the list.
    Remember(Name),
    /// Nothing: the packet is counted there.
    Count(Name),
    /// A set has these of the packet's parts: `dst,dst,src`.
    InSet(Name, &'a str),
    FromBridgePort,
    /// IPVS sent the packet on from there.
    Through(Frontend),
    /// Something that we never ask; a hash of it.
    Unknown(u64),
}

/// One thing that a rule asks of a packet, or its opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Match<'a> {
    pub(super) is_negated: bool,
    pub(super) asks: Asks<'a>,
}

impl<'a> From<Asks<'a>> for Match<'a> {
    fn from(asks: Asks<'a>) -> Self {
        Match { is_negated: false, asks }
    }
}

impl<'a> Match<'a> {
    /// Asks nothing and is not written.
    pub(super) const NOTHING: Match<'static> = Match { is_negated: false, asks: Asks::Nothing };

    /// The opposite.
    pub(super) const fn not(asks: Asks<'a>) -> Self {
        Match { is_negated: true, asks }
    }

    pub(super) fn comment(text: &'a str) -> Self {
        Asks::Comment(Comment::Text(text)).into()
    }

    pub(super) fn source(network: impl Into<Network>) -> Self {
        Asks::Source(network.into()).into()
    }

    pub(super) fn destination(network: impl Into<Network>) -> Self {
        Asks::Destination(network.into()).into()
    }
}

/// Where a rule sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// On to the next rule.
    None,
    Accept,
    Drop,
    /// With the usual message, or another one; a hash of that.
    Reject(Option<u64>),
    Return,
    /// With or without source ports chosen at random.
    Masquerade(bool),
    /// On, with a mark of which these bits are cleared and those then flipped.
    Mark {
        clear: u32,
        flip: u32,
    },
    Dnat(SocketAddr),
    Jump(Name),
    Goto(Name),
    /// A target that we never use; a hash of it.
    Unknown(u64),
}

impl Target {
    /// A chain that the packet goes to.
    pub(super) fn chain(&self) -> Option<&Name> {
        match self {
            Target::Jump(chain) | Target::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

/// A rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule<'a> {
    /// In the order in which they are written.
    pub(super) matches: &'a [Match<'a>],
    pub(super) target: Target,
}

impl<'a> Rule<'a> {
    pub(super) fn new(matches: &'a [Match<'a>], target: Target) -> Self {
        Rule { matches, target }
    }

    /// All that it asks.
    pub(super) fn asks(&self) -> impl Iterator<Item = &'a Match<'a>> + Clone + use<'a> {
        self.matches.iter().filter(|it| it.asks != Asks::Nothing)
    }
}

impl PartialEq for Rule<'_> {
    fn eq(&self, other: &Self) -> bool {
        let mut left: Vec<_> = other.asks().collect();
        let is_there = |it: &Match<'_>| match left.iter().position(|that| *that == it) {
            Some(index) => {
                left.swap_remove(index);
                true
            }
            None => false,
        };
        self.target == other.target && self.asks().all(is_there) && left.is_empty()
    }
}

impl Eq for Rule<'_> {}

#[cfg(test)]
mod tests;

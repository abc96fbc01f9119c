//! What is known of a packet, and whether it fulfils a condition of a rule.

use crate::model::{Cidr, IpFamily, Protocol};
use std::net::{IpAddr, SocketAddr};

/// A packet that opens a connection, or the first one that comes back, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPart {
    /// Where it goes.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The client, where that is known.
    pub from: Option<IpAddr>,
    /// The interface that it comes in on, where that is known; it is not the loopback interface otherwise.
    pub in_interface: Option<String>,
    /// The interface that it leaves by, where that is known.
    pub out_interface: Option<String>,
    /// The destination is an address of this node.
    pub to_is_local: bool,
    /// A Service's rule has translated its destination.
    pub is_translated: bool,
    /// It is an endpoint's answer: it goes to a client that is not known, and `to` is where the client's packets went.
    pub is_answer: bool,
    /// What the rules of Services do to it.
    pub ours: OurRules,
}

/// What a packet meets where a rule leads to a chain of Services, in the tables that have the proxy's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OurRules {
    /// They take it in the nat table; in the others it comes out again.
    Translate,
    /// They take it in the nat table, and accept it where it is forwarded.
    TranslateAndAccept,
    /// They refuse or drop it, wherever it meets them.
    Stop,
    /// It comes out again everywhere.
    LetPass,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    Maybe,
}

impl Holds {
    pub(super) fn of(holds: bool) -> Holds {
        if holds { Holds::Yes } else { Holds::No }
    }

    pub(super) fn negated(self, is_negated: bool) -> Holds {
        match self {
            Holds::Yes if is_negated => Holds::No,
            Holds::No if is_negated => Holds::Yes,
            other => other,
        }
    }

    pub(super) fn and(self, other: Holds) -> Holds {
        match (self, other) {
            (Holds::No, _) | (_, Holds::No) => Holds::No,
            (Holds::Yes, Holds::Yes) => Holds::Yes,
            _ => Holds::Maybe,
        }
    }
}

impl KnownPart {
    pub(super) fn goes_to(&self, network: &str) -> Holds {
        if self.is_answer { Holds::Maybe } else { within(network, self.to.ip()) }
    }

    pub(super) fn comes_from(&self, network: &str) -> Holds {
        self.from.map_or(Holds::Maybe, |from| within(network, from))
    }

    /// By name or number, or `all`.
    pub(super) fn is_of(&self, protocol: &str) -> Holds {
        let number = match self.protocol {
            Protocol::Tcp => "6",
            Protocol::Udp => "17",
            Protocol::Sctp => "132",
        };
        Holds::of([self.protocol.as_str(), number, "all", "0"].contains(&protocol))
    }

    pub(super) fn is_family(&self, family: IpFamily) -> Holds {
        Holds::of(IpFamily::of(self.to.ip()) == family)
    }

    /// One of several ports and ranges of them, as `first` to `last` with this sign between them.
    pub(super) fn goes_to_port<'p>(&self, parts: impl Iterator<Item = &'p str>, range: char) -> Holds {
        if self.is_answer {
            // Clients choose their ports, and rules are about those of servers.
            return Holds::No;
        }
        let port = self.to.port();
        let holds = |part: &str| match part.split_once(range) {
            Some((first, last)) => Some((first.parse().ok()?..=last.parse().ok()?).contains(&port)),
            None => Some(part.parse::<u16>().ok()? == port),
        };
        let found: Option<Vec<bool>> = parts.map(|part| holds(part.trim())).collect();
        found.map_or(Holds::Maybe, |all| Holds::of(all.contains(&true)))
    }

    /// The first packet of a connection, whose destination may be translated, or an answer to it.
    pub(super) fn has_state<'s>(&self, mut states: impl Iterator<Item = &'s str>) -> Holds {
        Holds::of(states.any(|state| match state.trim().to_ascii_uppercase().as_str() {
            "NEW" => !self.is_answer,
            "ESTABLISHED" => self.is_answer,
            "DNAT" => self.is_translated,
            _ => false,
        }))
    }

    pub(super) fn came_in_by(&self, name: &str, wildcard: char) -> Holds {
        match (&self.in_interface, name) {
            (None, "lo") => Holds::No,
            (known, name) => matches(name, known.as_deref(), wildcard),
        }
    }

    pub(super) fn leaves_by(&self, name: &str, wildcard: char) -> Holds {
        matches(name, self.out_interface.as_deref(), wildcard)
    }

    /// Whether the destination is of a type of addresses. It is never one of many receivers.
    pub(super) fn goes_to_type(&self, types: &str) -> Holds {
        if self.is_answer {
            return Holds::Maybe;
        }
        let known = |name: &str| match name {
            "LOCAL" => Some(self.to_is_local),
            "UNICAST" => Some(!self.to_is_local),
            "BROADCAST" | "MULTICAST" | "ANYCAST" => Some(false),
            _ => None,
        };
        let upper = types.to_ascii_uppercase();
        let found: Option<Vec<bool>> = upper.split(',').map(known).collect();
        found.map_or(Holds::Maybe, |all| Holds::of(all.contains(&true)))
    }
}

/// Whether an address is in a network, a range `first-last`, or is that address.
fn within(network: &str, address: IpAddr) -> Holds {
    if let Some((first, last)) = network.split_once('-') {
        return match (first.parse::<IpAddr>(), last.parse::<IpAddr>()) {
            (Ok(first), Ok(last)) => Holds::of((first..=last).contains(&address)),
            _ => Holds::Maybe,
        };
    }
    let network =
        network.parse::<Cidr>().ok().or_else(|| network.parse().ok().map(|ip: IpAddr| Cidr::from(ip)));
    let is_in = |it: Cidr| IpFamily::of_cidr(&it) == IpFamily::of(address) && it.contains(&address);
    network.map_or(Holds::Maybe, |it| Holds::of(is_in(it)))
}

fn matches(name: &str, known: Option<&str>, wildcard: char) -> Holds {
    match (name.strip_suffix(wildcard), known) {
        (_, None) => Holds::Maybe,
        (Some(prefix), Some(known)) => Holds::of(known.starts_with(prefix)),
        (None, Some(known)) => Holds::of(known == name),
    }
}

//! A packet's way through chains, with every branch that a random choice can take.

use super::rule::{Match, Rule, Target};
use crate::model::Protocol;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A packet that nobody rewrites more than this often, so that rules in a circle end.
const MOST_RULES: usize = 256;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The interface it comes in on; `None` when the node itself sends it.
    pub interface: Option<String>,
    /// The client's address.
    pub source: IpAddr,
    /// Where it is sent.
    pub destination: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An endpoint gets it.
    Served {
        /// The endpoint.
        endpoint: SocketAddr,
        /// With one of the node's addresses as its source.
        masqueraded: bool,
    },
    /// A rule refuses it at once.
    Rejected,
    /// A rule, or the policy of a chain, drops it silently.
    Dropped,
    /// No rule takes it: it goes where its address says.
    Untouched,
}

/// One thing that can become of a packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What.
    pub verdict: Verdict,
    /// The chance that it does.
    pub chance: f64,
    /// The rules that it meets, as `table CHAIN: rule`; the last one decides.
    pub rules: Vec<String>,
    /// The lists that remember the client afterwards.
    pub remembered: Option<String>,
}

/// The chains of all tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    chains: BTreeMap<(String, String), Vec<Rule>>,
}

/// A packet on its way, with the chance that it gets there.
#[derive(Clone, Debug)]
struct Traveller {
    chance: f64,
    packet: Packet,
    mark: u32,
    /// Where destination translation sent it.
    translated: bool,
    /// The list that remembers the client, if one does.
    remembered: Option<String>,
    end: Option<Target>,
    trail: Vec<String>,
}

impl Tables {
    /// Adds rules to a chain, which is made.
    pub(super) fn add<'r>(&mut self, table: &str, chain: &str, rules: impl Iterator<Item = &'r str>) {
        let known = self.chains.entry((table.to_owned(), chain.to_owned())).or_default();
        known.extend(rules.map(Rule::parse));
    }

    /// The rules of a chain; none when it is not known.
    pub(super) fn rules(&self, table: &str, chain: &str) -> &[Rule] {
        self.chains.get(&(table.to_owned(), chain.to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// Walks packets through tables, on a node.
pub(super) struct Walk<'a> {
    pub(super) tables: &'a Tables,
    /// Whether an address is one of the node's own.
    pub(super) is_local: &'a dyn Fn(IpAddr) -> bool,
}

impl Walk<'_> {
    /// All that can become of a packet whose client is remembered in `remembered`.
    pub(super) fn trace(&self, packet: &Packet, remembered: Option<&str>) -> Vec<Outcome> {
        let outgoing = packet.interface.is_none();
        let first = Traveller {
            chance: 1.0,
            packet: packet.clone(),
            mark: 0,
            translated: false,
            remembered: remembered.map(str::to_owned),
            end: None,
            trail: Vec::new(),
        };
        let mut outcomes = Vec::new();
        for traveller in self.walk("nat", if outgoing { "OUTPUT" } else { "PREROUTING" }, first) {
            // What the node sends to itself comes in again, through lo.
            let hooks: &[&str] = match (outgoing, (self.is_local)(traveller.packet.destination.ip())) {
                (true, false) => &["OUTPUT"],
                (true, true) => &["OUTPUT", "INPUT"],
                (false, true) => &["INPUT"],
                (false, false) => &["FORWARD"],
            };
            for traveller in self.filter(hooks, traveller) {
                match traveller.end {
                    Some(Target::Reject) => outcomes.push(traveller.ends(Verdict::Rejected)),
                    Some(Target::Drop) => outcomes.push(traveller.ends(Verdict::Dropped)),
                    _ if !traveller.translated => outcomes.push(traveller.ends(Verdict::Untouched)),
                    _ => self.leave(traveller, &mut outcomes),
                }
            }
        }
        outcomes
    }

    /// One filter hook after the other, until one says no.
    fn filter(&self, hooks: &[&str], traveller: Traveller) -> Vec<Traveller> {
        let refused = |it: &Traveller| matches!(it.end, Some(Target::Reject | Target::Drop));
        let mut travellers = vec![traveller];
        for hook in hooks {
            let (mut out, rest) = travellers.into_iter().partition::<Vec<_>, _>(refused);
            let rest = rest.into_iter().map(|it| Traveller { end: None, ..it });
            out.extend(rest.flat_map(|it| self.walk("filter", hook, it)));
            travellers = out;
        }
        travellers
    }

    fn leave(&self, traveller: Traveller, outcomes: &mut Vec<Outcome>) {
        let endpoint = traveller.packet.destination;
        for gone in self.walk("nat", "POSTROUTING", Traveller { end: None, ..traveller }) {
            let masqueraded = gone.end == Some(Target::Masquerade);
            outcomes.push(gone.ends(Verdict::Served { endpoint, masqueraded }));
        }
    }

    /// All that can become of a packet in a chain; whoever has no end was returned.
    fn walk(&self, table: &str, chain: &str, traveller: Traveller) -> Vec<Traveller> {
        let (mut inside, mut out) = (vec![traveller], Vec::new());
        for rule in self.tables.rules(table, chain) {
            let mut next = Vec::new();
            for traveller in inside {
                let chance = self.chance_of(&traveller, rule);
                if chance < 1.0 {
                    next.push(Traveller { chance: traveller.chance * (1.0 - chance), ..traveller.clone() });
                }
                if chance > 0.0 {
                    let mut hit = Traveller { chance: traveller.chance * chance, ..traveller };
                    hit.remembered = rule.remember.clone().or(hit.remembered);
                    hit.trail.push(format!("{table} {chain}: {}", rule.text));
                    self.send(table, rule.target.as_ref(), hit, (&mut next, &mut out));
                }
            }
            inside = next;
        }
        out.extend(inside);
        out
    }

    /// Carries a target out: the packet stays in the chain or leaves it.
    fn send(
        &self,
        table: &str,
        target: Option<&Target>,
        mut hit: Traveller,
        (inside, out): (&mut Vec<Traveller>, &mut Vec<Traveller>),
    ) {
        match target {
            None => inside.push(hit),
            Some(Target::Mark(clear, flip)) => {
                inside.push(Traveller { mark: (hit.mark & !clear) ^ flip, ..hit });
            }
            Some(Target::Return) => out.push(hit),
            Some(Target::Chain(_)) if hit.trail.len() > MOST_RULES => inside.push(hit),
            Some(Target::Chain(chain)) => {
                let (ended, returned) = self
                    .walk(table, chain, hit)
                    .into_iter()
                    .partition::<Vec<_>, _>(|traveller| traveller.end.is_some());
                out.extend(ended);
                inside.extend(returned);
            }
            Some(end) => {
                if let Target::Dnat(destination) = end {
                    hit.packet.destination = *destination;
                    hit.translated = true;
                }
                out.push(Traveller { end: Some(end.clone()), ..hit });
            }
        }
    }

    /// The chance that a packet passes a rule's matches.
    fn chance_of(&self, traveller: &Traveller, rule: &Rule) -> f64 {
        rule.matches.iter().map(|wanted| self.passes(traveller, wanted)).product()
    }

    fn passes(&self, traveller: &Traveller, wanted: &Match) -> f64 {
        let packet = &traveller.packet;
        let holds = match wanted {
            Match::Source(negated, network) => network.contains(&packet.source) != *negated,
            Match::Destination(negated, network) => network.contains(&packet.destination.ip()) != *negated,
            Match::Protocol(negated, name) => (packet.protocol.as_str() == name) != *negated,
            Match::DestinationPort(negated, port) => (packet.destination.port() == *port) != *negated,
            Match::Interface(negated, pattern) => {
                packet.interface.as_deref().is_some_and(|name| names_interface(pattern, name)) != *negated
            }
            Match::SourceIsLocal(negated) => (self.is_local)(packet.source) != *negated,
            Match::DestinationIsLocal(negated) => (self.is_local)(packet.destination.ip()) != *negated,
            Match::Mark(negated, value, mask) => (traveller.mark & mask == *value) != *negated,
            Match::State(negated, states) => {
                let mut holds = states.iter().any(|state| state == "NEW");
                holds |= traveller.translated && states.iter().any(|state| state == "DNAT");
                holds != *negated
            }
            Match::Probability(chance) => return *chance,
            Match::Remembered(list) => traveller.remembered.as_ref() == Some(list),
            // Nothing of ours: whether it holds is not known here.
            Match::Other(_) => false,
        };
        if holds { 1.0 } else { 0.0 }
    }
}

impl Traveller {
    fn ends(self, verdict: Verdict) -> Outcome {
        Outcome { verdict, chance: self.chance, rules: self.trail, remembered: self.remembered }
    }
}

fn names_interface(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

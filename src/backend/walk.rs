//! A packet's way through chains, with every branch that a random choice can take.

use super::rule::{Match, Rule, Target};
use crate::model::{Frontend, Protocol, RealServer, SetEntry};
use std::collections::{BTreeMap, BTreeSet};
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

/// What a virtual server's step begins with among the rules that a packet meets.
pub const SERVER_RULE: &str = "ipvs virtual server ";

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
    /// The rules that it meets, as `table CHAIN: rule`, and the virtual server, as `ipvs virtual server …`.
    pub rules: Vec<String>,
    /// The lists that remember the client afterwards.
    pub remembered: Option<String>,
}

/// The chains of all tables, the sets that their rules ask, and the virtual servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    chains: BTreeMap<(String, String), Vec<Rule>>,
    sets: BTreeMap<String, BTreeSet<SetEntry>>,
    servers: BTreeMap<Frontend, Vec<RealServer>>,
}

/// A place on a packet's way where something decides about it.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// A built-in chain, after its table.
    Chain(&'static str, &'static str),
    /// IPVS.
    Servers,
}

/// What comes in; then it is known whether it is for this node.
const ARRIVES: &[Stop] = &[Stop::Chain("nat", "PREROUTING")];
/// What the node sends. IPVS takes its share before the filter table sees it.
const SENT: &[Stop] = &[
    Stop::Chain("mangle", "OUTPUT"),
    Stop::Chain("nat", "OUTPUT"),
    Stop::Servers,
    Stop::Chain("filter", "OUTPUT"),
];
/// What is for this node.
const ENTERS: &[Stop] = &[Stop::Chain("mangle", "INPUT"), Stop::Chain("filter", "INPUT"), Stop::Servers];
/// What IPVS sends on: the nat table has seen it already.
const SENT_ON: &[Stop] = &[Stop::Chain("mangle", "OUTPUT"), Stop::Chain("filter", "OUTPUT")];
/// What is for somebody else.
const PASSES: &[Stop] = &[Stop::Chain("mangle", "FORWARD"), Stop::Chain("filter", "FORWARD")];

/// A packet on its way, with the chance that it gets there.
#[derive(Clone, Debug)]
struct Traveller {
    chance: f64,
    packet: Packet,
    mark: u32,
    /// Where destination translation sent it.
    translated: bool,
    /// The virtual server that took it.
    through: Option<Frontend>,
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

    /// Adds a set with these entries.
    pub(super) fn add_set(&mut self, name: &str, entries: BTreeSet<SetEntry>) {
        self.sets.insert(name.to_owned(), entries);
    }

    /// Adds a virtual server with these real servers.
    pub(super) fn add_server(&mut self, at: Frontend, reals: Vec<RealServer>) {
        self.servers.insert(at, reals);
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
            through: None,
            remembered: remembered.map(str::to_owned),
            end: None,
            trail: Vec::new(),
        };
        let mut outcomes = Vec::new();
        for traveller in self.pass(if outgoing { SENT } else { ARRIVES }, vec![first]) {
            // What the node sends to itself comes in again, through lo.
            let is_local = (self.is_local)(traveller.packet.destination.ip());
            let gone = match (outgoing, is_local) {
                (true, false) => vec![traveller],
                (_, true) => self.enter(traveller),
                (false, false) => self.pass(PASSES, vec![traveller]),
            };
            for traveller in gone {
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

    /// What is for this node, and what IPVS makes of it.
    fn enter(&self, traveller: Traveller) -> Vec<Traveller> {
        let entered = self.pass(ENTERS, vec![traveller]).into_iter();
        let is_sent_on =
            |it: &Traveller| it.through.is_some() && !(self.is_local)(it.packet.destination.ip());
        let (sent_on, mut here) = entered.partition::<Vec<_>, _>(is_sent_on);
        here.extend(self.pass(SENT_ON, sent_on));
        here
    }

    /// One stop after the other, until one says no.
    fn pass(&self, stops: &[Stop], mut travellers: Vec<Traveller>) -> Vec<Traveller> {
        let refused = |it: &Traveller| matches!(it.end, Some(Target::Reject | Target::Drop));
        for stop in stops {
            let (mut out, rest) = travellers.into_iter().partition::<Vec<_>, _>(refused);
            for traveller in rest {
                let traveller = Traveller { end: None, ..traveller };
                out.extend(match stop {
                    Stop::Chain(table, chain) => self.walk(table, chain, traveller),
                    Stop::Servers => self.balance(traveller),
                });
            }
            travellers = out;
        }
        travellers
    }

    /// Sends a packet to the real servers of its virtual server, by their weights; without any, IPVS
    /// refuses it.
    fn balance(&self, mut traveller: Traveller) -> Vec<Traveller> {
        let Packet { destination, protocol, .. } = traveller.packet;
        let at = Frontend { address: destination.ip(), port: destination.port(), protocol };
        let Some(reals) = self.tables.servers.get(&at).filter(|_| !traveller.translated) else {
            return vec![traveller];
        };
        let total: u32 = reals.iter().map(|real| real.weight).sum();
        if total == 0 {
            traveller.trail.push(format!("{SERVER_RULE}{at}: no real server takes new connections"));
            return vec![Traveller { end: Some(Target::Reject), ..traveller }];
        }
        let sent_to = |real: &RealServer| {
            let mut sent = traveller.clone();
            sent.chance *= f64::from(real.weight) / f64::from(total);
            (sent.packet.destination, sent.translated, sent.through) = (real.address, true, Some(at));
            sent.trail.push(format!("{SERVER_RULE}{at}: real server {}", real.address));
            sent
        };
        reals.iter().filter(|real| real.weight > 0).map(sent_to).collect()
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
            Match::Set(negated, name, places) => self.is_in_set(packet, name, places) != *negated,
            Match::VirtualAddress(negated, network) => {
                traveller.through.is_some_and(|at| network.contains(&at.address)) != *negated
            }
            Match::VirtualPort(negated, port) => {
                traveller.through.is_some_and(|at| at.port == *port) != *negated
            }
            Match::VirtualProtocol(negated, name) => {
                traveller.through.is_some_and(|at| at.protocol.as_str() == name) != *negated
            }
            // Pods on a bridge whose packets pass the rules there already: not known here.
            Match::FromBridgePort(negated) => *negated,
            // Nothing of ours: whether it holds is not known here.
            Match::Other => false,
        };
        if holds { 1.0 } else { 0.0 }
    }
}

impl Walk<'_> {
    /// Whether a set has what stands in these places (`dst,dst,src`) of a packet.
    fn is_in_set(&self, packet: &Packet, name: &str, places: &str) -> bool {
        let places: Vec<&str> = places.split(',').collect();
        let address = |index: usize| match places.get(index) {
            Some(&"src") => packet.source,
            _ => packet.destination.ip(),
        };
        // The client's port is not known.
        let is_port =
            |index: usize, port: u16| places.get(index) == Some(&"dst") && packet.destination.port() == port;
        let is_at =
            |at: &Frontend| (at.address, at.protocol) == (address(0), packet.protocol) && is_port(1, at.port);
        let holds = |entry: &SetEntry| match entry {
            SetEntry::Port(port) => is_port(0, *port),
            SetEntry::Ip(ip) => *ip == address(0),
            SetEntry::IpPort(at) => is_at(at),
            SetEntry::IpPortIp(at, ip) => is_at(at) && *ip == address(2),
            SetEntry::IpPortNet(at, network) => is_at(at) && network.contains(&address(2)),
        };
        self.tables.sets.get(name).is_some_and(|entries| entries.iter().any(holds))
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

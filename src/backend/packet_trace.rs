//! A packet's way through chains, with every branch that a random choice can take.

use super::rule::{Asks, Match, Parsed, Rule, States, Target};
use crate::model::{Frontend, Protocol, RealServer, SetEntry, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// What begins the names of chains of service proxies.
const OURS: &str = "KUBE-";
/// Rules that one packet meets at most, so that rules in a circle end.
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

impl Packet {
    /// An interface that is not known, and not the loopback interface.
    pub const SOME_INTERFACE: &'static str = "another";
}

/// What a virtual server's step begins with among the rules that a packet meets.
pub const SERVER_RULE: &str = "ipvs virtual server ";

/// The endpoint that gets a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedEndpoint {
    /// Its address.
    pub address: SocketAddr,
    /// It sees one of the node's addresses as the source.
    pub masqueraded: bool,
}

/// One thing that can become of a packet.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOutcome {
    /// What.
    pub verdict: Verdict<TracedEndpoint>,
    /// The chance that it does.
    pub chance: f64,
    /// The rules that it meets, as `table CHAIN: rule`, and the virtual server, as `ipvs virtual server …`.
    pub rules: Vec<String>,
    /// The lists that remember the client afterwards.
    pub remembered: Option<String>,
    /// Rules in our chains that are not ours and may decide: what they ask of the packet is not known here.
    pub doubts: Vec<String>,
}

/// The chains of all tables, the sets that their rules ask, and the virtual servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    chains: BTreeMap<(String, String), Vec<String>>,
    sets: BTreeMap<String, BTreeSet<SetEntry>>,
    servers: BTreeMap<Frontend, Vec<RealServer>>,
}

/// A place on a packet's way where something decides about it.
#[derive(Clone, Copy, Debug)]
enum Hook {
    /// A built-in chain, after its table.
    Chain(&'static str, &'static str),
    /// IPVS.
    Servers,
}

/// What comes in; then it is known whether it is for this node.
const ARRIVES: &[Hook] = &[Hook::Chain("nat", "PREROUTING")];
/// What the node sends. IPVS takes its share before the filter table sees it.
const SENT: &[Hook] = &[
    Hook::Chain("mangle", "OUTPUT"),
    Hook::Chain("nat", "OUTPUT"),
    Hook::Servers,
    Hook::Chain("filter", "OUTPUT"),
];
/// What is for this node.
const ENTERS: &[Hook] = &[Hook::Chain("mangle", "INPUT"), Hook::Chain("filter", "INPUT"), Hook::Servers];
/// What IPVS sends on: the nat table has seen it already.
const SENT_ON: &[Hook] = &[Hook::Chain("mangle", "OUTPUT"), Hook::Chain("filter", "OUTPUT")];
/// What the node forwards.
const PASSES: &[Hook] = &[Hook::Chain("mangle", "FORWARD"), Hook::Chain("filter", "FORWARD")];

/// A packet on its way, with the chance that it gets there.
#[derive(Clone, Debug)]
struct TracedPacket {
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
    doubts: Vec<String>,
}

impl Tables {
    /// Adds rules to a chain, which is made.
    pub(super) fn add<'r>(&mut self, table: &str, chain: &str, rules: impl Iterator<Item = &'r str>) {
        let known = self.chains.entry((table.to_owned(), chain.to_owned())).or_default();
        known.extend(rules.map(str::to_owned));
    }

    /// Adds those rules of a chain that are ours: all of a chain of ours, and in another one the jumps to ours.
    pub(super) fn add_ours<'r>(&mut self, table: &str, chain: &str, rules: impl Iterator<Item = &'r str>) {
        let is_ours = |name: &str| name.starts_with(OURS);
        let leads_to_ours = |text: &&str| {
            Parsed::of(text).rule().target.chain().is_some_and(|target| is_ours(&target.to_string()))
        };
        self.add(table, chain, rules.filter(|text| is_ours(chain) || leads_to_ours(text)));
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
    fn rules(&self, table: &str, chain: &str) -> &[String] {
        self.chains.get(&(table.to_owned(), chain.to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// Walks packets through tables, on a node.
pub(super) struct PacketTrace<'a> {
    pub(super) tables: &'a Tables,
    /// Whether an address is one of the node's own.
    pub(super) is_local: &'a dyn Fn(IpAddr) -> bool,
}

impl PacketTrace<'_> {
    /// All that can become of a packet whose client is remembered in `remembered`.
    pub(super) fn trace(&self, packet: &Packet, remembered: Option<&str>) -> Vec<TraceOutcome> {
        let outgoing = packet.interface.is_none();
        let first = TracedPacket {
            chance: 1.0,
            packet: packet.clone(),
            mark: 0,
            translated: false,
            through: None,
            remembered: remembered.map(str::to_owned),
            end: None,
            trail: Vec::new(),
            doubts: Vec::new(),
        };
        let mut outcomes = Vec::new();
        for traced in self.pass(if outgoing { SENT } else { ARRIVES }, vec![first]) {
            // What the node sends to itself comes in again, through lo.
            let is_local = (self.is_local)(traced.packet.destination.ip());
            let gone = match (outgoing, is_local) {
                (true, false) => vec![traced],
                (_, true) => self.enter(traced),
                (false, false) => self.pass(PASSES, vec![traced]),
            };
            for traced in gone {
                match traced.end {
                    Some(Target::Reject(_)) => outcomes.push(traced.ends(Verdict::Refused)),
                    Some(Target::Drop) => outcomes.push(traced.ends(Verdict::Dropped)),
                    _ if !traced.translated => outcomes.push(traced.ends(Verdict::Untouched)),
                    _ => self.leave(traced, &mut outcomes),
                }
            }
        }
        outcomes
    }

    /// What is for this node, and what IPVS makes of it.
    fn enter(&self, traced: TracedPacket) -> Vec<TracedPacket> {
        let entered = self.pass(ENTERS, vec![traced]).into_iter();
        let is_sent_on =
            |it: &TracedPacket| it.through.is_some() && !(self.is_local)(it.packet.destination.ip());
        let (sent_on, mut here) = entered.partition::<Vec<_>, _>(is_sent_on);
        here.extend(self.pass(SENT_ON, sent_on));
        here
    }

    /// One hook after the other, until one drops or rejects the packet.
    fn pass(&self, hooks: &[Hook], mut packets: Vec<TracedPacket>) -> Vec<TracedPacket> {
        let refused = |it: &TracedPacket| matches!(it.end, Some(Target::Reject(_) | Target::Drop));
        for hook in hooks {
            let (mut out, rest) = packets.into_iter().partition::<Vec<_>, _>(refused);
            for traced in rest {
                let traced = TracedPacket { end: None, ..traced };
                out.extend(match hook {
                    Hook::Chain(table, chain) => self.walk(table, chain, traced),
                    Hook::Servers => self.balance(traced),
                });
            }
            packets = out;
        }
        packets
    }

    /// Sends a packet to the real servers of its virtual server, by their weights; without any, IPVS
    /// refuses it.
    fn balance(&self, mut traced: TracedPacket) -> Vec<TracedPacket> {
        let Packet { destination, protocol, .. } = traced.packet;
        let at = Frontend { address: destination.ip(), port: destination.port(), protocol };
        let Some(reals) = self.tables.servers.get(&at).filter(|_| !traced.translated) else {
            return vec![traced];
        };
        let total: u32 = reals.iter().map(|real| real.weight).sum();
        if total == 0 {
            traced.trail.push(format!("{SERVER_RULE}{at}: no real server takes new connections"));
            return vec![TracedPacket { end: Some(Target::Reject(None)), ..traced }];
        }
        let sent_to = |real: &RealServer| {
            let mut sent = traced.clone();
            sent.chance *= f64::from(real.weight) / f64::from(total);
            (sent.packet.destination, sent.translated, sent.through) = (real.address, true, Some(at));
            sent.trail.push(format!("{SERVER_RULE}{at}: real server {}", real.address));
            sent
        };
        reals.iter().filter(|real| real.weight > 0).map(sent_to).collect()
    }

    fn leave(&self, traced: TracedPacket, outcomes: &mut Vec<TraceOutcome>) {
        let address = traced.packet.destination;
        for gone in self.walk("nat", "POSTROUTING", TracedPacket { end: None, ..traced }) {
            let masqueraded = matches!(gone.end, Some(Target::Masquerade(_)));
            outcomes.push(gone.ends(Verdict::Served(TracedEndpoint { address, masqueraded })));
        }
    }

    /// All that can become of a packet in a chain; one without an end was returned.
    fn walk(&self, table: &str, chain: &str, traced: TracedPacket) -> Vec<TracedPacket> {
        let (mut inside, mut out) = (vec![traced], Vec::new());
        for text in self.tables.rules(table, chain) {
            let parsed = Parsed::of(text);
            let rule = parsed.rule();
            let mut next = Vec::new();
            for mut traced in inside {
                let chance = self.chance_of(&traced, &rule);
                if self.is_doubtful(&traced, &rule) {
                    traced.doubts.push(format!("{table} {chain}: {text}"));
                }
                if chance < 1.0 {
                    next.push(TracedPacket { chance: traced.chance * (1.0 - chance), ..traced.clone() });
                }
                if chance > 0.0 {
                    let mut hit = TracedPacket { chance: traced.chance * chance, ..traced };
                    hit.remembered = remembers(&rule).or(hit.remembered);
                    hit.trail.push(format!("{table} {chain}: {text}"));
                    self.send(table, rule.target, hit, (&mut next, &mut out));
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
        target: Target,
        mut hit: TracedPacket,
        (inside, out): (&mut Vec<TracedPacket>, &mut Vec<TracedPacket>),
    ) {
        match target {
            Target::None | Target::Unknown(_) => inside.push(hit),
            Target::Mark { clear, flip } => {
                inside.push(TracedPacket { mark: (hit.mark & !clear) ^ flip, ..hit });
            }
            Target::Return => out.push(hit),
            Target::Jump(_) | Target::Goto(_) if hit.trail.len() > MOST_RULES => inside.push(hit),
            Target::Jump(chain) | Target::Goto(chain) => {
                let (ended, returned) = self
                    .walk(table, chain.as_str(), hit)
                    .into_iter()
                    .partition::<Vec<_>, _>(|traced| traced.end.is_some());
                out.extend(ended);
                inside.extend(returned);
            }
            end => {
                if let Target::Dnat(destination) = end {
                    hit.packet.destination = destination;
                    hit.translated = true;
                }
                out.push(TracedPacket { end: Some(end), ..hit });
            }
        }
    }

    /// The chance that a packet passes a rule's matches.
    fn chance_of(&self, traced: &TracedPacket, rule: &Rule<'_>) -> f64 {
        rule.asks().map(|wanted| self.passes(traced, wanted)).product()
    }

    /// Whether it hangs on what is not known whether a rule takes the packet.
    fn is_doubtful(&self, traced: &TracedPacket, rule: &Rule<'_>) -> bool {
        let is_known = |wanted: &&Match<'_>| !matches!(wanted.asks, Asks::Unknown(_));
        let may = |wanted: &Match<'_>| self.passes(traced, wanted) > 0.0;
        rule.asks().any(|it| !is_known(&it)) && rule.asks().filter(is_known).all(may)
    }

    fn passes(&self, traced: &TracedPacket, wanted: &Match<'_>) -> f64 {
        let packet = &traced.packet;
        let holds = match &wanted.asks {
            Asks::Share(share) if wanted.is_negated => return 1.0 - share.chance(),
            Asks::Share(share) => return share.chance(),
            Asks::Nothing | Asks::Comment(_) | Asks::Remember(_) | Asks::Count(_) => return 1.0,
            // Nothing of ours: whether it holds is not known here.
            Asks::Unknown(_) => return 0.0,
            Asks::Source(network) => network.cidr.contains(&packet.source),
            Asks::Destination(network) => network.cidr.contains(&packet.destination.ip()),
            Asks::Protocol(protocol, _) => packet.protocol == *protocol,
            Asks::DestinationPort(port) => packet.destination.port() == *port,
            Asks::InInterface(name, is_prefix) => packet
                .interface
                .as_deref()
                .is_some_and(|it| if *is_prefix { it.starts_with(name) } else { it == *name }),
            Asks::SourceIsLocal => (self.is_local)(packet.source),
            Asks::DestinationIsLocal => (self.is_local)(packet.destination.ip()),
            Asks::Mark { value, mask } => traced.mark & mask == *value,
            Asks::State(states) => states.has(States::NEW) || traced.translated && states.has_dnat(),
            Asks::Recent(list, _) => traced.remembered.as_deref() == Some(list.as_str()),
            Asks::InSet(name, parts) => self.is_in_set(packet, name.as_str(), parts),
            Asks::Through(at) => traced.through == Some(*at),
            // Pods on a bridge whose packets pass the rules there already: not known here.
            Asks::FromBridgePort => false,
        };
        if holds != wanted.is_negated { 1.0 } else { 0.0 }
    }
}

/// The list that a rule puts the client into.
fn remembers(rule: &Rule<'_>) -> Option<String> {
    rule.asks().find_map(|it| match it.asks {
        Asks::Remember(list) => Some(list.to_string()),
        _ => None,
    })
}

impl PacketTrace<'_> {
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

impl TracedPacket {
    fn ends(self, verdict: Verdict<TracedEndpoint>) -> TraceOutcome {
        let TracedPacket { chance, trail, remembered, doubts, .. } = self;
        TraceOutcome { verdict, chance, rules: trail, remembered, doubts }
    }
}

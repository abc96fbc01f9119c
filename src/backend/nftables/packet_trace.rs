//! A packet's way through the table, with every branch that a random choice can take: rules are run as the kernel runs them.

use super::layout::BASE_CHAINS;
use crate::backend::packet_trace::{Packet, TraceOutcome, TracedEndpoint};
use crate::model::{self, Protocol};
use nftables_rs::{
    Batch, Comparison, CtKey, DynsetOperation, Expression, FibFlags, FibResult, Hook, MetaKey, PayloadBase,
    Register, Value, Verdict,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// Chains lead no deeper than this.
const DEEPEST: usize = 16;
const REGISTER_BYTES: usize = 64;
const CT_NEW: u32 = 8;
const CT_DNAT: u32 = 0x20;
const LOCAL: u32 = 2;
const UNICAST: u32 = 1;

/// Looks a key up, whose bytes come first of these, in a set: nothing if it does not have it, else what the key leads to.
pub(super) type LookUp<'a> = dyn FnMut(&str, &[u8]) -> Option<Found> + 'a;

/// What a key leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or data.
    Data(Vec<u8>),
    /// A verdict; none of our own maps has such.
    Says(Says),
}

/// The rules of a chain, each with how it is written, after the chain's name.
type Steps<'a> = Vec<(Vec<Expression<'a>>, Rc<str>)>;

/// Walks packets through rules, on a node.
pub(super) struct PacketTrace<'a, 'n> {
    chains: BTreeMap<String, Rc<Steps<'a>>>,
    look_up: &'n mut LookUp<'n>,
    /// Whether an address is one of the node's own.
    is_local: &'n dyn Fn(IpAddr) -> bool,
}

/// A packet on its way, with the chance that it gets there.
#[derive(Clone, Debug)]
struct TracedPacket {
    chance: f64,
    packet: Packet,
    /// Where it was sent before translation.
    original: SocketAddr,
    mark: u32,
    is_translated: bool,
    is_masqueraded: bool,
    remembered: Option<String>,
    trail: Vec<Rc<str>>,
}

/// What a rule or a chain says about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// It does not concern the packet.
    Nothing,
    /// The next rule.
    Continue,
    Accept,
    Drop,
    Reject,
    Return,
    Jump(String),
    Goto(String),
}

impl Says {
    /// What a verdict says.
    pub(super) fn of(verdict: Verdict<'_>) -> Says {
        match verdict {
            Verdict::Accept => Says::Accept,
            Verdict::Drop => Says::Drop,
            Verdict::Continue | Verdict::Other(_) => Says::Continue,
            Verdict::Return => Says::Return,
            Verdict::Jump(chain) => Says::Jump(chain.to_owned()),
            Verdict::Goto(chain) => Says::Goto(chain.to_owned()),
        }
    }
}

/// One way that a rule can go.
#[derive(Clone, Debug)]
struct Branch {
    registers: [u8; REGISTER_BYTES],
    traveller: TracedPacket,
}

impl<'a, 'n> PacketTrace<'a, 'n> {
    /// Through the rules that a transaction makes. `texts` are how they are written, by chain.
    pub(super) fn new(
        rules: &'a Batch,
        texts: &BTreeMap<String, Vec<String>>,
        (look_up, is_local): (&'n mut LookUp<'n>, &'n dyn Fn(IpAddr) -> bool),
    ) -> Self {
        let mut chains: BTreeMap<String, Steps<'a>> = BTreeMap::new();
        for rule in rules.rules() {
            let steps: Vec<_> = rule.expressions().map_while(Result::ok).collect();
            let known = chains.entry(rule.chain.to_owned()).or_default();
            let text = texts.get(rule.chain).and_then(|texts| texts.get(known.len()));
            let text = text.cloned().unwrap_or_else(|| format!("{steps:?}"));
            known.push((steps, format!("{}: {text}", rule.chain).into()));
        }
        let chains = chains.into_iter().map(|(name, rules)| (name, Rc::new(rules))).collect();
        PacketTrace { chains, look_up, is_local }
    }

    /// All that can become of a packet.
    pub(super) fn trace(&mut self, packet: &Packet) -> Vec<TraceOutcome> {
        let first = TracedPacket {
            chance: 1.0,
            original: packet.destination,
            packet: packet.clone(),
            mark: 0,
            is_translated: false,
            is_masqueraded: false,
            remembered: None,
            trail: Vec::new(),
        };
        let is_outgoing = packet.interface.is_none();
        let mut outcomes = Vec::new();
        for traveller in
            self.pass(if is_outgoing { Hook::Output } else { Hook::Prerouting }, first, &mut outcomes)
        {
            let is_here = (self.is_local)(traveller.packet.destination.ip());
            let gone = match (is_outgoing, is_here) {
                (_, true) => self.pass(Hook::Input, traveller, &mut outcomes),
                (false, false) => self.pass(Hook::Forward, traveller, &mut outcomes),
                (true, false) => vec![traveller],
            };
            for traveller in gone {
                if !traveller.is_translated {
                    outcomes.push(traveller.ends(model::Verdict::Untouched));
                    continue;
                }
                for left in self.pass(Hook::Postrouting, traveller, &mut outcomes) {
                    let (address, masqueraded) = (left.packet.destination, left.is_masqueraded);
                    outcomes.push(left.ends(model::Verdict::Served(TracedEndpoint { address, masqueraded })));
                }
            }
        }
        outcomes
    }

    /// One base chain of a hook after the other, until one says no.
    fn pass(
        &mut self,
        hook: Hook,
        traveller: TracedPacket,
        outcomes: &mut Vec<TraceOutcome>,
    ) -> Vec<TracedPacket> {
        let mut base: Vec<_> = BASE_CHAINS.into_iter().filter(|(_, _, at, _)| *at == hook).collect();
        base.sort_by_key(|(.., priority)| *priority);
        let mut travellers = vec![traveller];
        for (name, ..) in base {
            let mut passed = Vec::new();
            for traveller in travellers {
                for (traveller, says) in self.chain(name, traveller, 0) {
                    match says {
                        Says::Drop => outcomes.push(traveller.ends(model::Verdict::Dropped)),
                        Says::Reject => outcomes.push(traveller.ends(model::Verdict::Refused)),
                        _ => passed.push(traveller),
                    }
                }
            }
            travellers = passed;
        }
        travellers
    }

    fn chain(&mut self, name: &str, traveller: TracedPacket, depth: usize) -> Vec<(TracedPacket, Says)> {
        let rules = self.chains.get(name).cloned().unwrap_or_default();
        let (mut inside, mut out) = (vec![traveller], Vec::new());
        for (steps, text) in rules.iter().filter(|_| depth < DEEPEST) {
            let mut next = Vec::new();
            for traveller in inside {
                for (mut traveller, says) in self.rule(steps, traveller) {
                    if says != Says::Nothing {
                        traveller.trail.push(Rc::clone(text));
                    }
                    self.follow((traveller, says), depth, (&mut next, &mut out));
                }
            }
            inside = next;
        }
        out.extend(inside.into_iter().map(|traveller| (traveller, Says::Return)));
        out
    }

    /// Carries out what a rule says: the packet stays in the chain or leaves it.
    fn follow(
        &mut self,
        (traveller, says): (TracedPacket, Says),
        depth: usize,
        (inside, out): (&mut Vec<TracedPacket>, &mut Vec<(TracedPacket, Says)>),
    ) {
        match says {
            Says::Nothing | Says::Continue => inside.push(traveller),
            Says::Jump(to) => {
                for (traveller, says) in self.chain(&to, traveller, depth + 1) {
                    match says {
                        Says::Return | Says::Nothing | Says::Continue => inside.push(traveller),
                        end => out.push((traveller, end)),
                    }
                }
            }
            Says::Goto(to) => out.extend(self.chain(&to, traveller, depth + 1)),
            end => out.push((traveller, end)),
        }
    }

    /// All ways that a rule can go. Those that it does not concern go on as one.
    fn rule(&mut self, steps: &[Expression<'_>], traveller: TracedPacket) -> Vec<(TracedPacket, Says)> {
        let mut passed = TracedPacket { chance: 0.0, ..traveller.clone() };
        let mut branches = vec![Branch { registers: [0; REGISTER_BYTES], traveller }];
        let mut found = Vec::new();
        for step in steps {
            let mut next = Vec::new();
            for branch in branches {
                match self.step(step, branch) {
                    Stepped::On(branch) => next.push(branch),
                    Stepped::Split(all) => next.extend(all),
                    Stepped::Off(chance) => passed.chance += chance,
                    Stepped::Ends(traveller, says) => found.push((traveller, says)),
                }
            }
            branches = next;
        }
        found.extend(branches.into_iter().map(|branch| (branch.traveller, Says::Continue)));
        if passed.chance > 0.0 {
            found.push((passed, Says::Nothing));
        }
        found
    }

    fn step(&mut self, step: &Expression<'_>, mut branch: Branch) -> Stepped {
        if let Some((to, bytes)) = self.loaded(step, &branch.traveller) {
            branch.load(to, &bytes);
            return Stepped::On(branch);
        }
        match *step {
            Expression::SetMeta { key: MetaKey::MARK, from } => {
                branch.traveller.mark = u32::from_ne_bytes(branch.word(from));
            }
            Expression::Cmp { register, comparison, value } => {
                let is_equal = branch.read(register).starts_with(value.as_bytes());
                let is_known = [Comparison::EQUAL, Comparison::NOT_EQUAL].contains(&comparison);
                return branch.goes_on(is_known && is_equal == (comparison == Comparison::EQUAL));
            }
            Expression::Bitwise { from, to, mask, xor } => {
                let pairs = mask.as_bytes().iter().zip(xor.as_bytes());
                let masked = branch.read(from).iter().zip(pairs).map(|(byte, (mask, xor))| byte & mask ^ xor);
                let bytes: Vec<u8> = masked.collect();
                branch.load(to, &bytes);
            }
            // Of one byte: nothing is turned round.
            Expression::ByteOrder { len: 1, .. } | Expression::Counter { .. } => {}
            Expression::Lookup { set, key, to, inverse } => {
                let found = (self.look_up)(set.name, branch.read(key));
                if found.is_some() == inverse {
                    return branch.goes_on(false);
                }
                match (to, found) {
                    (Some(to), Some(Found::Data(data))) => branch.load(to, &data),
                    (Some(_), Some(Found::Says(says))) => return Stepped::Ends(branch.traveller, says),
                    _ => {}
                }
            }
            Expression::Numgen { to, modulus, offset, .. } => return branch.split(to, modulus, offset),
            Expression::Dynset { set, operation: DynsetOperation::UPDATE, .. } => {
                branch.traveller.remembered = Some(set.name.to_owned());
            }
            Expression::Dynset { .. } => {}
            _ => return branch.decide(step),
        }
        Stepped::On(branch)
    }

    /// What a step loads, of the packet and of what the kernel knows of it.
    fn loaded(&self, step: &Expression<'_>, traveller: &TracedPacket) -> Option<(Register, Vec<u8>)> {
        match *step {
            Expression::Payload { to, base, offset, len } => {
                let (start, len) = (offset as usize, len as usize);
                let bytes = payload(&traveller.packet, base);
                bytes.get(start..start + len).map(|part| (to, part.to_vec()))
            }
            Expression::Meta { to, key } => meta(traveller, key).map(|bytes| (to, bytes)),
            Expression::Ct { to, key, .. } => ct(traveller, key).map(|bytes| (to, bytes)),
            Expression::Immediate { to, value } => Some((to, value.as_bytes().to_vec())),
            Expression::Fib { to, result: FibResult::ADDRESS_TYPE, flags } => {
                let is_source = flags == FibFlags::SOURCE;
                let packet = &traveller.packet;
                let address = if is_source { packet.source } else { packet.destination.ip() };
                let kind = if (self.is_local)(address) { LOCAL } else { UNICAST };
                Some((to, kind.to_ne_bytes().to_vec()))
            }
            _ => None,
        }
    }
}

/// What comes of one step.
enum Stepped {
    On(Branch),
    Split(Vec<Branch>),
    /// The rule does not concern the packet; so large a part of it.
    Off(f64),
    Ends(TracedPacket, Says),
}

impl Branch {
    fn goes_on(self, holds: bool) -> Stepped {
        if holds { Stepped::On(self) } else { Stepped::Off(self.traveller.chance) }
    }

    /// What ends a rule. Of what is not known here, nothing matches.
    fn decide(mut self, step: &Expression<'_>) -> Stepped {
        match *step {
            Expression::Nat { address: Some(address), port: Some(port), .. } => self.translate(address, port),
            Expression::Masquerade { .. } => {
                self.traveller.is_masqueraded = true;
                Stepped::Ends(self.traveller, Says::Accept)
            }
            Expression::Reject(_) => Stepped::Ends(self.traveller, Says::Reject),
            Expression::Verdict(verdict) => Stepped::Ends(self.traveller, Says::of(verdict)),
            _ => self.goes_on(false),
        }
    }

    /// The bytes from a register on.
    fn read(&self, from: Register) -> &[u8] {
        self.registers.get(from.offset()..).unwrap_or_default()
    }

    fn word(&self, from: Register) -> [u8; 4] {
        self.read(from).first_chunk::<4>().copied().unwrap_or_default()
    }

    /// Loads bytes, and zeros up to the end of the word.
    fn load(&mut self, to: Register, bytes: &[u8]) {
        let padded = Value::concat(&[bytes]);
        let space = self.registers.iter_mut().skip(to.offset());
        space.zip(padded.as_bytes()).for_each(|(place, byte)| *place = *byte);
    }

    /// One branch for each number.
    fn split(self, to: Register, modulus: u32, offset: u32) -> Stepped {
        let chance = self.traveller.chance / f64::from(modulus.max(1));
        let with = |number: u32| {
            let mut branch = self.clone();
            branch.traveller.chance = chance;
            branch.load(to, &(number + offset).to_ne_bytes());
            branch
        };
        Stepped::Split((0..modulus).map(with).collect())
    }

    fn translate(mut self, address: Register, port: Register) -> Stepped {
        let is_v4 = self.traveller.packet.destination.is_ipv4();
        let bytes = self.read(address);
        let to: Option<IpAddr> = match is_v4 {
            true => bytes.first_chunk::<4>().map(|octets| (*octets).into()),
            false => bytes.first_chunk::<16>().map(|octets| (*octets).into()),
        };
        let [high, low, ..] = self.word(port);
        if let Some(to) = to {
            self.traveller.packet.destination = SocketAddr::new(to, u16::from_be_bytes([high, low]));
            self.traveller.is_translated = true;
        }
        Stepped::Ends(self.traveller, Says::Accept)
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A packet's header, as far as rules look at it.
fn payload(packet: &Packet, base: PayloadBase) -> Vec<u8> {
    if base == PayloadBase::TRANSPORT {
        return [[0; 2], packet.destination.port().to_be_bytes()].concat();
    }
    let before = if packet.source.is_ipv4() { 12 } else { 8 };
    [vec![0; before], octets(packet.source), octets(packet.destination.ip())].concat()
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn meta(traveller: &TracedPacket, key: MetaKey) -> Option<Vec<u8>> {
    match key {
        MetaKey::L4PROTO => Some(vec![protocol_number(traveller.packet.protocol)]),
        MetaKey::MARK => Some(traveller.mark.to_ne_bytes().to_vec()),
        MetaKey::IIFNAME => {
            let mut name = traveller.packet.interface.clone()?.into_bytes();
            name.resize(16, 0);
            Some(name)
        }
        _ => None,
    }
}

/// The packet is the first of its connection.
fn ct(traveller: &TracedPacket, key: CtKey) -> Option<Vec<u8>> {
    match key {
        CtKey::STATE => Some(CT_NEW.to_ne_bytes().to_vec()),
        CtKey::STATUS => {
            let status = if traveller.is_translated { CT_DNAT } else { 0 };
            Some(status.to_ne_bytes().to_vec())
        }
        CtKey::DESTINATION_IPV4 | CtKey::DESTINATION_IPV6 => Some(octets(traveller.original.ip())),
        CtKey::PROTO_DESTINATION => Some(traveller.original.port().to_be_bytes().to_vec()),
        _ => None,
    }
}

impl TracedPacket {
    fn ends(self, verdict: model::Verdict<TracedEndpoint>) -> TraceOutcome {
        let TracedPacket { chance, trail, remembered, .. } = self;
        let rules = trail.iter().map(ToString::to_string).collect();
        TraceOutcome { verdict, chance, rules, remembered, doubts: Vec::new() }
    }
}

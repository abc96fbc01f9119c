//! Expressions, put together to what rules need.

use crate::model::{Cidr, IpFamily};
use crate::plan::LocalDetector;
use nftables_rs::{
    ByteOrderChange, Comparison, CtKey, Direction, DynsetOperation, Expression, Family, FibFlags, FibResult,
    MetaKey, NatFlags, NatKind, NumgenKind, PayloadBase, Register, Reject, SetRef, Value, Verdict,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// A part of a key, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyPart {
    Source,
    Destination,
    Protocol,
    Port,
    /// The destination as it was before the translation.
    OriginalDestination,
    OriginalPort,
    /// A random number below this.
    Random(u32),
}

/// A rule that is being put together.
#[derive(Clone, Debug)]
pub(super) struct Steps<'a> {
    family: IpFamily,
    pub(super) list: Vec<Expression<'a>>,
    /// As nft writes it.
    pub(super) text: String,
}

pub(super) const ENDPOINT: &[KeyPart] = &[KeyPart::Destination, KeyPart::Port];

const FIRST: Register = Register::word(0);
const CT_NEW: u32 = 8;
const CT_STATUS_DNAT: u32 = 0x20;
const ADDRESS_IS_LOCAL: u32 = 2;
const INTERFACE_NAME_LEN: usize = 16;
const LOOPBACK_IPV4: ipnet::Ipv4Net = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// What stands before a value that a packet must not have.
fn not(comparison: Comparison) -> &'static str {
    if comparison == Comparison::NOT_EQUAL { "!= " } else { "" }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl<'a> Steps<'a> {
    pub(super) fn new(family: IpFamily) -> Steps<'a> {
        Steps { family, list: Vec::new(), text: String::new() }
    }

    fn step(mut self, expression: Expression<'a>) -> Steps<'a> {
        self.list.push(expression);
        self
    }

    /// Adds words to the text.
    fn say(mut self, words: &str) -> Steps<'a> {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(words);
        self
    }

    fn ip(&self) -> &'static str {
        if self.is_ipv6() { "ip6" } else { "ip" }
    }

    fn part_text(&self, part: KeyPart) -> String {
        let ip = self.ip();
        match part {
            KeyPart::Source => format!("{ip} saddr"),
            KeyPart::Destination => format!("{ip} daddr"),
            KeyPart::Protocol => "meta l4proto".to_owned(),
            KeyPart::Port => "th dport".to_owned(),
            KeyPart::OriginalDestination => format!("ct original {ip} daddr"),
            KeyPart::OriginalPort => "ct original proto-dst".to_owned(),
            KeyPart::Random(modulus) => format!("numgen random mod {modulus}"),
        }
    }

    fn key_text(&self, key: &[KeyPart]) -> String {
        let parts: Vec<String> = key.iter().map(|part| self.part_text(*part)).collect();
        parts.join(" . ")
    }

    fn is_ipv6(&self) -> bool {
        self.family == IpFamily::V6
    }

    /// Where the addresses of a packet are, and how long they are.
    fn address(&self, part: KeyPart) -> (u32, u32) {
        match (self.is_ipv6(), part) {
            (false, KeyPart::Source) => (12, 4),
            (false, _) => (16, 4),
            (true, KeyPart::Source) => (8, 16),
            (true, _) => (24, 16),
        }
    }

    /// How many registers a part takes.
    fn words(&self, part: KeyPart) -> u8 {
        let is_address =
            matches!(part, KeyPart::Source | KeyPart::Destination | KeyPart::OriginalDestination);
        if is_address && self.is_ipv6() { 4 } else { 1 }
    }

    fn load_part(self, part: KeyPart, at: u8) -> Steps<'a> {
        let to = Register::word(at);
        let original = Some(Direction::Original);
        let expression = match part {
            KeyPart::Source | KeyPart::Destination => {
                let (offset, len) = self.address(part);
                Expression::Payload { to, base: PayloadBase::NETWORK, offset, len }
            }
            KeyPart::Protocol => Expression::Meta { to, key: MetaKey::L4PROTO },
            KeyPart::Port => Expression::Payload { to, base: PayloadBase::TRANSPORT, offset: 2, len: 2 },
            KeyPart::OriginalDestination => {
                let key = if self.is_ipv6() { CtKey::DESTINATION_IPV6 } else { CtKey::DESTINATION_IPV4 };
                Expression::Ct { to, key, direction: original }
            }
            KeyPart::OriginalPort => {
                Expression::Ct { to, key: CtKey::PROTO_DESTINATION, direction: original }
            }
            KeyPart::Random(modulus) => {
                Expression::Numgen { to, kind: NumgenKind::RANDOM, modulus, offset: 0 }
            }
        };
        self.step(expression)
    }

    /// Loads the parts one after the other; says where the next one would go.
    fn load(mut self, parts: &[KeyPart], mut at: u8) -> (Steps<'a>, u8) {
        for part in parts {
            let words = self.words(*part);
            self = self.load_part(*part, at);
            at += words;
        }
        (self, at)
    }

    fn look_up(self, set: SetRef<'a>, to: Option<Register>, inverse: bool) -> Steps<'a> {
        self.step(Expression::Lookup { set, key: FIRST, to, inverse })
    }

    pub(super) fn match_in(self, set: SetRef<'a>, key: &[KeyPart]) -> Steps<'a> {
        let text = format!("{} @{}", self.key_text(key), set.name);
        self.load(key, 0).0.look_up(set, None, false).say(&text)
    }

    /// Which of TCP, UDP and SCTP it is, by an anonymous set of these.
    pub(super) fn match_protocols(self, set: SetRef<'a>) -> Steps<'a> {
        self.load(&[KeyPart::Protocol], 0).0.look_up(set, None, false).say("meta l4proto { tcp, udp, sctp }")
    }

    pub(super) fn match_not_in(self, set: SetRef<'a>, key: &[KeyPart]) -> Steps<'a> {
        let text = format!("{} != @{}", self.key_text(key), set.name);
        self.load(key, 0).0.look_up(set, None, true).say(&text)
    }

    /// As nft writes it: it turns the protocol round, one byte of two, which changes nothing.
    pub(super) fn match_no_source(self, set: SetRef<'a>) -> Steps<'a> {
        let (steps, protocol) = self.load(&[KeyPart::Destination], 0);
        let (steps, port) = steps.load(&[KeyPart::Protocol], protocol);
        let register = Register::word(protocol);
        let turned = steps.step(Expression::ByteOrder {
            from: register,
            to: register,
            change: ByteOrderChange::TO_NETWORK,
            len: 1,
            size: 2,
        });
        let key = [KeyPart::Destination, KeyPart::Protocol, KeyPart::Port, KeyPart::Source];
        let text = format!("{} != @{}", turned.key_text(&key), set.name);
        turned.load(&[KeyPart::Port, KeyPart::Source], port).0.look_up(set, None, true).say(&text)
    }

    fn compare(self, comparison: Comparison, value: Value) -> Steps<'a> {
        self.step(Expression::Cmp { register: FIRST, comparison, value })
    }

    fn mask(self, mask: Value, xor: Value) -> Steps<'a> {
        self.step(Expression::Bitwise { from: FIRST, to: FIRST, mask, xor })
    }

    fn has_bit(self, bit: u32) -> Steps<'a> {
        self.mask(Value::host(bit), Value::host(0)).compare(Comparison::NOT_EQUAL, Value::host(0))
    }

    fn ct(self, key: CtKey) -> Steps<'a> {
        self.step(Expression::Ct { to: FIRST, key, direction: None })
    }

    pub(super) fn match_new(self) -> Steps<'a> {
        self.ct(CtKey::STATE).has_bit(CT_NEW).say("ct state new")
    }

    pub(super) fn match_translated(self) -> Steps<'a> {
        self.ct(CtKey::STATUS).has_bit(CT_STATUS_DNAT).say("ct status dnat")
    }

    /// Compares the first bits of an address. Whole bytes need no mask.
    pub(super) fn match_prefix(self, part: KeyPart, cidr: Cidr, comparison: Comparison) -> Steps<'a> {
        let (offset, len) = self.address(part);
        let network = match cidr.prefix_len() == cidr.max_prefix_len() {
            true => cidr.addr().to_string(),
            false => cidr.to_string(),
        };
        let text = format!("{} {}{network}", self.part_text(part), not(comparison));
        let (network, mask) = (octets(cidr.network()), octets(cidr.netmask()));
        let payload = |len| Expression::Payload { to: FIRST, base: PayloadBase::NETWORK, offset, len };
        let bits = u32::from(cidr.prefix_len());
        if bits.is_multiple_of(8) && bits > 0 {
            let whole: Vec<u8> = network.into_iter().take((bits / 8) as usize).collect();
            return self.step(payload(bits / 8)).compare(comparison, Value::new(&whole)).say(&text);
        }
        let zeros = vec![0; network.len()];
        self.step(payload(len))
            .mask(Value::new(&mask), Value::new(&zeros))
            .compare(comparison, Value::new(&network))
            .say(&text)
    }

    /// Matches, or with `NOT_EQUAL` does not match, what comes from this node's pods.
    pub(super) fn match_detected(self, detector: &LocalDetector, comparison: Comparison) -> Steps<'a> {
        match detector {
            LocalDetector::Cidr(cidr) => self.match_prefix(KeyPart::Source, *cidr, comparison),
            LocalDetector::InterfacePrefix(prefix) => {
                let text = format!("iifname {}\"{prefix}*\"", not(comparison));
                self.match_interface(prefix.as_bytes(), comparison).say(&text)
            }
            LocalDetector::BridgeInterface(name) => {
                let mut padded = name.clone().into_bytes();
                padded.resize(INTERFACE_NAME_LEN, 0);
                let text = format!("iifname {}\"{name}\"", not(comparison));
                self.match_interface(&padded, comparison).say(&text)
            }
        }
    }

    /// Compares the start of the incoming interface's name.
    fn match_interface(self, name: &[u8], comparison: Comparison) -> Steps<'a> {
        self.step(Expression::Meta { to: FIRST, key: MetaKey::IIFNAME }).compare(comparison, Value::new(name))
    }

    pub(super) fn match_local(self, flags: FibFlags) -> Steps<'a> {
        self.step(Expression::Fib { to: FIRST, result: FibResult::ADDRESS_TYPE, flags })
            .compare(Comparison::EQUAL, Value::host(ADDRESS_IS_LOCAL))
            .say(if flags == FibFlags::SOURCE { "fib saddr type local" } else { "fib daddr type local" })
    }

    pub(super) fn match_not_loopback(self) -> Steps<'a> {
        let loopback = match self.family {
            IpFamily::V4 => LOOPBACK_IPV4.into(),
            IpFamily::V6 => Cidr::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        };
        self.match_prefix(KeyPart::Destination, loopback, Comparison::NOT_EQUAL)
    }

    fn change_mark(self, mask: u32, xor: u32) -> Steps<'a> {
        self.step(Expression::Meta { to: FIRST, key: MetaKey::MARK })
            .mask(Value::host(mask), Value::host(xor))
            .step(Expression::SetMeta { key: MetaKey::MARK, from: FIRST })
    }

    /// Sets a bit of the mark.
    pub(super) fn mark(self, bit: u32) -> Steps<'a> {
        self.change_mark(!bit, bit).say(&format!("meta mark set meta mark | {bit:#010x}"))
    }

    /// Matches if the mark has the bit, and clears it.
    pub(super) fn unmark(self, bit: u32) -> Steps<'a> {
        let text = format!("meta mark & {bit:#010x} != 0 meta mark set meta mark ^ {bit:#010x}");
        let marked = self.step(Expression::Meta { to: FIRST, key: MetaKey::MARK }).has_bit(bit);
        marked.change_mark(u32::MAX, bit).say(&text)
    }

    pub(super) fn masquerade(self) -> Steps<'a> {
        self.step(Expression::Masquerade { flags: NatFlags::FULLY_RANDOM }).say("masquerade fully-random")
    }

    /// Translates the destination to the endpoint that a map has for the key.
    pub(super) fn translate_by(self, map: SetRef<'a>, key: &[KeyPart]) -> Steps<'a> {
        let family = if self.is_ipv6() { Family::Ipv6 } else { Family::Ipv4 };
        let port = Register::word(self.words(KeyPart::Destination));
        let text = format!("dnat {} to {} map @{}", self.ip(), self.key_text(key), map.name);
        let nat = Expression::Nat {
            kind: NatKind::Destination,
            family,
            address: Some(FIRST),
            port: Some(port),
            flags: NatFlags::NONE,
        };
        self.load(key, 0).0.look_up(map, Some(FIRST), false).step(nat).say(&text)
    }

    /// Changes what is known of the client, from a packet that is translated already.
    pub(super) fn learn(
        self,
        operation: DynsetOperation,
        map: SetRef<'a>,
        destination: &[KeyPart],
        timeout: Option<Duration>,
    ) -> Steps<'a> {
        let verb = if operation == DynsetOperation::DELETE { "delete" } else { "update" };
        let client = format!("{} . {}", self.part_text(KeyPart::Source), self.key_text(destination));
        let lives = timeout.map(|it| format!(" timeout {}s", it.as_secs())).unwrap_or_default();
        let text = format!("{verb} @{} {{ {client}{lives} : {} }}", map.name, self.key_text(ENDPOINT));
        let (steps, at) = self.load(&[KeyPart::Source], 0);
        let (steps, at) = steps.load(destination, at);
        // nft begins with a register of 128 bits; with IPv6 there are too few of them.
        let data = if steps.is_ipv6() { at } else { at.next_multiple_of(4) };
        let (steps, _) = steps.load(ENDPOINT, data);
        let data = Some(Register::word(data));
        steps.step(Expression::Dynset { set: map, operation, key: FIRST, data, timeout }).say(&text)
    }

    pub(super) fn reject(self) -> Steps<'a> {
        let answer =
            if self.is_ipv6() { Reject::PORT_UNREACHABLE_IPV6 } else { Reject::PORT_UNREACHABLE_IPV4 };
        self.step(Expression::Reject(answer)).say("reject")
    }

    pub(super) fn verdict(self, verdict: Verdict<'a>) -> Steps<'a> {
        let text = match verdict {
            Verdict::Accept => "accept".to_owned(),
            Verdict::Drop => "drop".to_owned(),
            Verdict::Return => "return".to_owned(),
            Verdict::Jump(chain) => format!("jump {chain}"),
            Verdict::Goto(chain) => format!("goto {chain}"),
            Verdict::Continue | Verdict::Other(_) => "continue".to_owned(),
        };
        self.step(Expression::Verdict(verdict)).say(&text)
    }
}

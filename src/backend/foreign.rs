//! Rules of other programs that decide about the packets of Services.
//!
//! They are walked with one packet, whose client is not known: what a rule asks of the client, of marks, sets and other
//! things that only the packet itself has makes a rule one that may hold. What follows from such rules "may" happen.

use super::rule::words;
use crate::model::{Cidr, IpFamily, Protocol};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// What begins the names of chains of service proxies and kubelet.
const OURS: &str = "KUBE-";
/// Nesting of chains that is followed: the kernel allows 16.
const DEEPEST: usize = 16;

/// The chains of one table with their rules; a policy other than ACCEPT is the last rule of its chain.
pub type ChainRules = BTreeMap<String, Vec<String>>;

/// A packet that opens a connection, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPart {
    /// Where it goes.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The interface that it leaves by, where that is known.
    pub out_interface: Option<String>,
}

/// What a foreign rule does to packets of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForeignEffect {
    /// It drops or rejects them.
    Stops,
    /// It sends them elsewhere, before a rule of a Service can.
    Redirects,
    /// It keeps them out of connection tracking, so that no rule can translate their destination.
    Untracks,
}

/// A foreign rule in the way of packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRule {
    /// The chain.
    pub chain: String,
    /// The rule, without `-A CHAIN`.
    pub rule: String,
    /// What it does.
    pub effect: ForeignEffect,
    /// It does so to every such packet; another one depends on more than is known.
    pub is_certain: bool,
}

impl ForeignRule {
    /// The rule with its chain, or that it is the chain's policy.
    #[must_use]
    pub fn words(&self) -> String {
        match self.rule.strip_prefix(POLICY) {
            Some(policy) => format!("the policy of {} is {policy}", self.chain),
            None => format!("-A {} {}", self.chain, self.rule),
        }
    }
}

/// How the tools' handle spells the policy of a chain as its last rule.
const POLICY: &str = "-m comment --comment \"the chain's policy\" -j ";

/// The foreign rules that a packet meets from a built-in chain on. Our own chains are passed by in the filter and raw
/// tables; in the nat table the walk ends where ours take over.
#[must_use]
pub fn foreign_rules(chains: &ChainRules, start: &str, packet: &KnownPart) -> Vec<ForeignRule> {
    let mut walk = ForeignWalk { chains, packet, found: BTreeSet::new() };
    walk.chain(start, true, DEEPEST);
    walk.found.into_iter().collect()
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Maybe,
}

impl Holds {
    fn of(holds: bool) -> Holds {
        if holds { Holds::Yes } else { Holds::No }
    }

    fn negated(self, is_negated: bool) -> Holds {
        match self {
            Holds::Yes if is_negated => Holds::No,
            Holds::No if is_negated => Holds::Yes,
            other => other,
        }
    }

    fn and(self, other: Holds) -> Holds {
        match (self, other) {
            (Holds::No, _) | (_, Holds::No) => Holds::No,
            (Holds::Yes, Holds::Yes) => Holds::Yes,
            _ => Holds::Maybe,
        }
    }
}

/// What can become of a packet that enters a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passage {
    /// It can come out of the chain.
    comes_out: bool,
    /// A rule can end its way.
    ends: bool,
}

struct ForeignWalk<'a> {
    chains: &'a ChainRules,
    packet: &'a KnownPart,
    found: BTreeSet<ForeignRule>,
}

impl ForeignWalk<'_> {
    /// Walks a chain with a packet that enters it for certain, or may.
    fn chain(&mut self, name: &str, is_certain: bool, depth: usize) -> Passage {
        let chains = self.chains;
        let (mut is_here, mut returns, mut ends) = (true, false, false);
        for text in chains.get(name).map(Vec::as_slice).unwrap_or_default() {
            let rule = ForeignLine::parse(text, self.packet);
            if rule.holds == Holds::No {
                continue;
            }
            let is_every = rule.holds == Holds::Yes;
            let is_certain = is_certain && is_every && !returns && !ends;
            // Whether the rule keeps none of the packets that it holds for in this chain.
            let leaves = match rule.target {
                LineTarget::Accept => {
                    ends = true;
                    true
                }
                LineTarget::Return => {
                    returns = true;
                    true
                }
                LineTarget::Has(effect) => {
                    let (chain, rule) = (name.to_owned(), text.clone());
                    self.found.insert(ForeignRule { chain, rule, effect, is_certain });
                    // A packet that is not tracked goes on.
                    ends |= effect != ForeignEffect::Untracks;
                    effect != ForeignEffect::Untracks
                }
                LineTarget::Chain(next, is_goto) if depth > 0 && chains.contains_key(next) => {
                    let inside = self.chain(next, is_certain, depth - 1);
                    ends |= inside.ends;
                    returns |= is_goto && inside.comes_out;
                    is_goto || !inside.comes_out
                }
                LineTarget::Ours if self.is_nat() => {
                    ends = true;
                    true
                }
                LineTarget::Chain(..) | LineTarget::Ours | LineTarget::Other => false,
            };
            if leaves && is_every {
                is_here = false;
                break;
            }
        }
        Passage { comes_out: is_here || returns, ends }
    }

    /// Chains of the nat table end the way of a packet; those of others are passed by.
    fn is_nat(&self) -> bool {
        self.chains.contains_key("KUBE-SERVICES") && self.chains.contains_key("KUBE-POSTROUTING")
    }
}

/// A rule, as far as it matters here.
struct ForeignLine<'r> {
    holds: Holds,
    target: LineTarget<'r>,
}

enum LineTarget<'r> {
    Accept,
    Return,
    Has(ForeignEffect),
    /// A chain that may be there, and whether it does not come back.
    Chain(&'r str, bool),
    /// A chain of a service proxy.
    Ours,
    Other,
}

impl<'r> ForeignLine<'r> {
    fn parse(text: &'r str, packet: &KnownPart) -> ForeignLine<'r> {
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
                    break;
                }
                "-m" | "--match" | "--comment" => Holds::Yes,
                "-d" => destination(value, packet.to.ip()),
                "-p" => protocol(value, packet.protocol),
                "--dport" | "--dports" => ports(value, packet.to.port()),
                // No packet to a Service comes from the loopback interface.
                "-i" => {
                    if value == "lo" {
                        Holds::No
                    } else {
                        Holds::Maybe
                    }
                }
                "-o" => interface(value, packet.out_interface.as_deref()),
                "--ctstate" | "--state" => states(value),
                word if word.starts_with('-') => Holds::Maybe,
                // A value.
                _ => continue,
            };
            if matches!(word, "-m" | "--match" | "--comment" | "-d" | "-p" | "-i" | "-o") {
                words.next();
            }
            holds = holds.and(found.negated(is_negated));
            is_negated = false;
        }
        ForeignLine { holds, target }
    }
}

impl<'r> LineTarget<'r> {
    fn parse(name: &'r str, is_goto: bool, text: &str) -> LineTarget<'r> {
        match name {
            "ACCEPT" => LineTarget::Accept,
            "RETURN" => LineTarget::Return,
            "DROP" | "REJECT" => LineTarget::Has(ForeignEffect::Stops),
            "DNAT" | "REDIRECT" | "TPROXY" => LineTarget::Has(ForeignEffect::Redirects),
            "NOTRACK" => LineTarget::Has(ForeignEffect::Untracks),
            "CT" if text.contains("--notrack") => LineTarget::Has(ForeignEffect::Untracks),
            ours if ours.starts_with(OURS) => LineTarget::Ours,
            chain => LineTarget::Chain(chain, is_goto),
        }
    }
}

fn destination(network: &str, to: IpAddr) -> Holds {
    let network =
        network.parse::<Cidr>().ok().or_else(|| network.parse().ok().map(|ip: IpAddr| Cidr::from(ip)));
    network
        .map_or(Holds::Maybe, |it| Holds::of(IpFamily::of_cidr(&it) == IpFamily::of(to) && it.contains(&to)))
}

fn protocol(name: &str, of: Protocol) -> Holds {
    Holds::of(name == of.as_str() || name == "all")
}

/// The packet is the first of a connection whose destination is translated.
fn states(list: &str) -> Holds {
    Holds::of(list.split(',').any(|state| state == "NEW" || state == "DNAT"))
}

/// One port, several, or ranges of them.
fn ports(list: &str, port: u16) -> Holds {
    let holds = |part: &str| match part.split_once(':') {
        Some((first, last)) => Some((first.parse().ok()?..=last.parse().ok()?).contains(&port)),
        None => Some(part.parse::<u16>().ok()? == port),
    };
    let found: Option<Vec<bool>> = list.split(',').map(holds).collect();
    found.map_or(Holds::Maybe, |all| Holds::of(all.contains(&true)))
}

fn interface(name: &str, out: Option<&str>) -> Holds {
    match (name.strip_suffix('+'), out) {
        (_, None) => Holds::Maybe,
        (Some(prefix), Some(out)) => Holds::of(out.starts_with(prefix)),
        (None, Some(out)) => Holds::of(out == name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn chains(lines: &[&str]) -> ChainRules {
        let mut chains = ChainRules::new();
        for line in lines {
            let (chain, rule) = line.split_once(' ').unwrap();
            chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
        }
        chains
    }

    fn endpoint() -> KnownPart {
        KnownPart {
            to: "10.128.0.5:8080".parse().unwrap(),
            protocol: Protocol::Tcp,
            out_interface: Some("cni0".to_owned()),
        }
    }

    fn found(lines: &[&str], start: &str) -> Vec<String> {
        let rules = foreign_rules(&chains(lines), start, &endpoint());
        let certain = |rule: &ForeignRule| if rule.is_certain { "" } else { "maybe " };
        rules.iter().map(|rule| format!("{}{}", certain(rule), rule.words())).collect()
    }

    const POLICY_DROP: &str = "FORWARD -m comment --comment \"the chain's policy\" -j DROP";

    #[rstest]
    #[case::other_destination(&["FORWARD -d 192.0.2.0/24 -j DROP"], &[])]
    #[case::broken_connections(&["FORWARD -m conntrack --ctstate INVALID -j DROP"], &[])]
    #[case::all(&["FORWARD -j REJECT --reject-with icmp-port-unreachable"], &["-A FORWARD -j REJECT --reject-with icmp-port-unreachable"])]
    #[case::of_a_client(&["FORWARD -s 192.0.2.0/24 -d 10.128.0.0/16 -j DROP"], &["maybe -A FORWARD -s 192.0.2.0/24 -d 10.128.0.0/16 -j DROP"])]
    #[case::behind_an_accept(&["FORWARD -j ACCEPT", "FORWARD -j DROP"], &[])]
    #[case::policy(&[POLICY_DROP], &["the policy of FORWARD is DROP"])]
    #[case::docker_user(&["FORWARD -j DOCKER-USER", "DOCKER-USER -d 10.128.0.5/32 -j DROP", "DOCKER-USER -j RETURN"], &["-A DOCKER-USER -d 10.128.0.5/32 -j DROP"])]
    #[case::other_port(&["FORWARD -p tcp -m tcp --dport 8443 -j DROP", "FORWARD -p udp -j DROP"], &[])]
    #[case::ports(&["FORWARD -p tcp -m multiport --dports 80,8000:8100 -j DROP"], &["-A FORWARD -p tcp -m multiport --dports 80,8000:8100 -j DROP"])]
    fn a_rule_that_can_stop_a_new_connection_is_found_wherever_it_stands(
        #[case] lines: &[&str],
        #[case] wanted: &[&str],
    ) {
        assert_eq!(found(lines, "FORWARD"), wanted);
    }

    #[rstest]
    #[case::flannel(&["FORWARD -j FLANNEL-FWD", "FLANNEL-FWD -s 10.128.0.0/16 -j ACCEPT", "FLANNEL-FWD -d 10.128.0.0/16 -j ACCEPT", POLICY_DROP])]
    #[case::docker(&[
        "FORWARD -j DOCKER-USER", "FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "FORWARD -o docker0 -j DOCKER",
        "FORWARD -i docker0 ! -o docker0 -j ACCEPT", "FORWARD -o cni0 -j ACCEPT", POLICY_DROP,
        "DOCKER-USER -j RETURN", "DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2",
        "DOCKER-ISOLATION-STAGE-1 -j RETURN", "DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
        "DOCKER-ISOLATION-STAGE-2 -j RETURN", "DOCKER ! -i docker0 -o docker0 -j DROP",
    ])]
    #[case::of_loopback(&["FORWARD -i lo -j DROP"])]
    #[case::own_chains(&["FORWARD -j KUBE-FORWARD", "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP", "FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL", "KUBE-PROXY-FIREWALL -j DROP"])]
    fn a_healthy_node_has_nothing_in_the_way(#[case] lines: &[&str]) {
        assert_eq!(found(lines, "FORWARD"), [""; 0]);
    }

    #[test]
    fn what_hangs_on_a_foreign_mark_may_be_let_through() {
        let calico = [
            "FORWARD -j cali-FORWARD",
            "cali-FORWARD -j MARK --set-xmark 0x0/0xe0000",
            "cali-FORWARD -i cali+ -j cali-from-wl",
            "cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT",
            "cali-from-wl -j MARK --set-xmark 0x10000/0x10000",
            POLICY_DROP,
        ];
        assert_eq!(found(&calico, "FORWARD"), ["maybe the policy of FORWARD is DROP"]);
    }

    #[test]
    fn a_foreign_translation_before_our_chains_counts_and_one_behind_them_does_not() {
        let ours = "PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
        let dnat = "PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 192.0.2.1";
        let rest = ["KUBE-SERVICES -j X", "KUBE-POSTROUTING -j X"];
        let before = [&[dnat, ours][..], &rest[..]].concat();
        let words = "-A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 192.0.2.1";
        assert_eq!(found(&before, "PREROUTING"), [words]);
        assert_eq!(found(&[&[ours, dnat][..], &rest[..]].concat(), "PREROUTING"), [""; 0]);
    }

    #[rstest]
    #[case("PREROUTING -d 10.128.0.5/32 -p tcp -j CT --notrack")]
    #[case("PREROUTING -p tcp -m tcp --dport 8080 -j NOTRACK")]
    fn what_is_kept_out_of_connection_tracking_is_found(#[case] line: &str) {
        let rules = foreign_rules(&chains(&[line]), "PREROUTING", &endpoint());
        assert_eq!(rules.len(), 1);
        assert_eq!((rules[0].effect, rules[0].is_certain), (ForeignEffect::Untracks, true));
    }

    #[test]
    fn chains_in_a_circle_end() {
        assert_eq!(found(&["FORWARD -j A", "A -j B", "B -j A", "FORWARD -j DROP"], "FORWARD").len(), 1);
    }
}

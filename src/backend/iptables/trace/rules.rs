//! Rendered rules, taken apart far enough to walk them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::Cidr;
use crate::testing::packets::{Flow, Place, pod_side_address};

/// What a rule asks of a packet. Each match of ours is here; any other fails the test.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Match {
    Source(bool, Cidr),
    Destination(bool, Cidr),
    Protocol(String),
    DestinationPort(u16),
    Interface(bool, String),
    SourceIsLocal,
    DestinationIsLocal,
    Mark(bool, u32),
    State(bool, Vec<String>),
    Probability(f64),
    Remembered(String),
}

/// One rule: its matches, what it remembers the client in, and where it sends the packet.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    pub(super) matches: Vec<Match>,
    pub(super) remember: Option<String>,
    pub(super) target: Option<Target>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    Accept,
    Drop,
    Reject,
    Return,
    Masquerade,
    OrMark(u32),
    XorMark(u32),
    Dnat(std::net::SocketAddr),
    Chain(String),
}

/// The chains of all tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    chains: BTreeMap<(String, String), Vec<Rule>>,
}

impl Tables {
    /// Reads restore input, as often as there are inputs. A chain declared again is emptied.
    pub(super) fn load(&mut self, input: &str) {
        let mut table = String::new();
        for line in input.lines() {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
            } else if let Some(declaration) = line.strip_prefix(':') {
                let chain = declaration.split(' ').next().unwrap();
                self.chains.insert((table.clone(), chain.to_owned()), Vec::new());
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rule) = rule.split_once(' ').unwrap();
                let rules = self.chains.get_mut(&(table.clone(), chain.to_owned()));
                rules.unwrap_or_else(|| panic!("{chain} is not declared: {line}")).push(Rule::parse(rule));
            } else {
                assert!(line == "COMMIT" || line.starts_with("-X "), "unknown line {line}");
            }
        }
    }

    /// Inserts a rule at the top of a chain, making the chain if need be.
    pub(super) fn insert(&mut self, table: &str, chain: &str, rule: &str) {
        let rules = self.chains.entry((table.to_owned(), chain.to_owned())).or_default();
        rules.insert(0, Rule::parse(rule));
    }

    /// The rules of a chain; none for a built-in one that nothing was put into.
    pub(super) fn rules(&self, table: &str, chain: &str) -> &[Rule] {
        let key = (table.to_owned(), chain.to_owned());
        let known = self.chains.get(&key);
        assert!(known.is_some() || !chain.starts_with("KUBE-"), "a jump to {chain}, which is not there");
        known.map_or(&[], Vec::as_slice)
    }
}

impl Rule {
    fn parse(text: &str) -> Rule {
        let words = words(text);
        let mut words = words.iter().map(String::as_str);
        let mut rule = Rule::default();
        let mut negated = false;
        let mut list = String::new();
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} without a value: {text}"));
            match word {
                "!" => {
                    negated = true;
                    continue;
                }
                "-m" | "--comment" | "--nfacct-name" | "--mode" | "--seconds" => drop(value()),
                "--rcheck" => rule.matches.push(Match::Remembered(list.clone())),
                "--reap" | "--random-fully" => {}
                "--set" => rule.remember = Some(list.clone()),
                "--name" => value().clone_into(&mut list),
                "-j" => rule.target = Some(Target::named(value())),
                "--or-mark" => rule.target = Some(Target::OrMark(mask(value()))),
                "--xor-mark" => rule.target = Some(Target::XorMark(mask(value()))),
                "--to-destination" => rule.target = Some(Target::Dnat(value().parse().unwrap())),
                _ => rule.matches.push(Match::parse(word, value(), negated)),
            }
            negated = false;
        }
        rule
    }
}

impl Match {
    fn parse(word: &str, value: &str, negated: bool) -> Match {
        match word {
            "-s" => Match::Source(negated, network(value)),
            "-d" => Match::Destination(negated, network(value)),
            "-p" => Match::Protocol(value.to_owned()),
            "--dport" => Match::DestinationPort(value.parse().unwrap()),
            "-i" => Match::Interface(negated, value.to_owned()),
            "--src-type" => Match::SourceIsLocal,
            "--dst-type" => Match::DestinationIsLocal,
            "--mark" => Match::Mark(negated, mask(value.split('/').next().unwrap())),
            "--ctstate" => Match::State(negated, value.split(',').map(str::to_owned).collect()),
            "--probability" => Match::Probability(value.parse().unwrap()),
            other => panic!("no idea what {other} {value} matches"),
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
            // Their arguments follow and replace these.
            "MARK" => Target::OrMark(0),
            "DNAT" => Target::Dnat(std::net::SocketAddr::from(([0; 4], 0))),
            chain => Target::Chain(chain.to_owned()),
        }
    }
}

/// A packet on its way through the tables, with the chance that it gets there.
#[derive(Clone, Debug)]
pub(super) struct Traveller {
    pub(super) chance: f64,
    pub(super) flow: Flow,
    pub(super) mark: u32,
    /// Where destination translation sent it.
    pub(super) translated: bool,
    /// The list that remembers the client, if one does.
    pub(super) remembered: Option<String>,
    pub(super) end: Option<Target>,
}

impl Traveller {
    /// The chance that this packet passes a rule's matches.
    pub(super) fn chance_of(&self, rule: &Rule) -> f64 {
        rule.matches.iter().map(|wanted| self.passes(wanted)).product()
    }

    fn passes(&self, wanted: &Match) -> f64 {
        let flow = &self.flow;
        let holds = match wanted {
            Match::Source(negated, network) => network.contains(&flow.source) != *negated,
            Match::Destination(negated, network) => network.contains(&flow.destination.ip()) != *negated,
            Match::Protocol(name) => flow.protocol.as_str() == name,
            Match::DestinationPort(port) => flow.destination.port() == *port,
            Match::Interface(negated, pattern) => {
                flow.interface.is_some_and(|name| names_interface(pattern, name)) != *negated
            }
            Match::SourceIsLocal => is_local(flow.source),
            Match::DestinationIsLocal => is_local(flow.destination.ip()),
            Match::Mark(negated, bits) => (self.mark & bits == *bits) != *negated,
            Match::State(negated, states) => {
                let mut holds = states.iter().any(|state| state == "NEW");
                holds |= self.translated && states.iter().any(|state| state == "DNAT");
                holds != *negated
            }
            Match::Probability(chance) => return *chance,
            Match::Remembered(list) => self.remembered.as_deref() == Some(list),
        };
        if holds { 1.0 } else { 0.0 }
    }
}

fn names_interface(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// Whether an address is one of our node's.
pub(super) fn is_local(address: IpAddr) -> bool {
    let family = crate::model::IpFamily::of(address);
    address.is_loopback() || [Place::Node.address(family), pod_side_address(family)].contains(&address)
}

fn network(text: &str) -> Cidr {
    text.parse().unwrap_or_else(|_| Cidr::from(text.parse::<IpAddr>().unwrap()))
}

fn mask(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
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

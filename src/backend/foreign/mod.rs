//! Rules of other programs that decide about the packets of Services.
//!
//! They are walked with one packet, of which not all is known: what a rule asks of marks, sets and other things that only
//! the packet itself has, and of a client that is not known, makes the rule one that may hold. What follows from such rules
//! "may" happen. The findings of `explain` and its packet trace both come from this walk.

mod known;
mod line;
mod nft;
mod traced;
mod unfollowed;

pub use known::{KnownPart, OurRules};
pub use traced::{ForeignSurroundings, TracedPast, past_foreign_rules};
pub use unfollowed::unfollowed_hooks;

use known::Holds;
use line::{ForeignLine, LineTarget};
use std::collections::BTreeMap;
use std::fmt;

/// Nesting of chains that is followed: the kernel allows 16.
const DEEPEST: usize = 16;
/// Our chain of the filter table that accepts forwarded packets.
const ACCEPTING: &str = "KUBE-FORWARD";

/// The chains of one table with their rules; a policy other than ACCEPT is the last rule of its chain.
pub type ChainRules = BTreeMap<String, Vec<String>>;

/// A place on the way of packets where chains are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketHook {
    /// What comes in.
    Prerouting,
    /// What is for this node.
    Input,
    /// What the node forwards.
    Forward,
    /// What the node itself sends.
    Output,
    /// What leaves.
    Postrouting,
}

/// Where on its way a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The hook.
    pub hook: PacketHook,
    /// Behind the place of that hook where destinations are translated.
    pub is_translated: bool,
}

/// A chain that hangs on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BaseChain {
    name: String,
    stage: Stage,
}

/// How rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Iptables,
    Nft,
}

/// A table with rules of other programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignTable {
    /// As messages have it: `filter`, `iptables-legacy filter`, `inet firewalld`.
    name: String,
    language: Language,
    chains: ChainRules,
    bases: Vec<BaseChain>,
    translates: bool,
    /// The proxy has rules in it, which are walked elsewhere.
    has_ours: bool,
}

impl ForeignTable {
    /// A table of the iptables tools; `words` stand before its name. Where the proxy has its rules in other tables, chains
    /// with names like ours are another proxy's.
    #[must_use]
    pub fn of_iptables(words: &str, table: &str, chains: ChainRules, has_ours: bool) -> ForeignTable {
        use PacketHook::{Forward, Input, Output, Postrouting, Prerouting};
        let hooks: &[(&str, PacketHook, bool)] = match table {
            "raw" => &[("PREROUTING", Prerouting, false), ("OUTPUT", Output, false)],
            "nat" => &[
                ("PREROUTING", Prerouting, false),
                ("OUTPUT", Output, false),
                ("POSTROUTING", Postrouting, true),
            ],
            "mangle" => &[
                ("PREROUTING", Prerouting, false),
                ("OUTPUT", Output, false),
                ("INPUT", Input, true),
                ("FORWARD", Forward, true),
                ("POSTROUTING", Postrouting, true),
            ],
            _ => &[("INPUT", Input, true), ("FORWARD", Forward, true), ("OUTPUT", Output, true)],
        };
        let base = |(name, hook, is_translated): &(&str, PacketHook, bool)| BaseChain {
            name: (*name).to_owned(),
            stage: Stage { hook: *hook, is_translated: *is_translated },
        };
        ForeignTable {
            name: format!("{words}{table}"),
            language: Language::Iptables,
            chains,
            bases: hooks.iter().map(base).collect(),
            translates: table == "nat",
            has_ours,
        }
    }
}

/// What a foreign rule does to packets of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForeignEffect {
    /// It drops them.
    Drops,
    /// It rejects them.
    Refuses,
    /// It sends them elsewhere, before a rule of a Service can.
    Redirects,
    /// It lets them out of the nat table, before a rule of a Service can translate them.
    Bypasses,
    /// It keeps them out of connection tracking, so that no rule can translate their destination.
    Untracks,
    /// It gives them another source address.
    Masquerades,
}

impl ForeignEffect {
    /// What it does to a packet, after `this` or `this may`.
    #[must_use]
    pub fn verb(self, is_certain: bool) -> &'static str {
        match (self, is_certain) {
            (ForeignEffect::Drops, true) => "drops it",
            (ForeignEffect::Drops, false) => "drop it",
            (ForeignEffect::Refuses, true) => "rejects it",
            (ForeignEffect::Refuses, false) => "reject it",
            (ForeignEffect::Redirects, true) => "sends it elsewhere",
            (ForeignEffect::Redirects, false) => "send it elsewhere",
            (ForeignEffect::Bypasses, true) => "lets it past the Service's rules",
            (ForeignEffect::Bypasses, false) => "let it past the Service's rules",
            (ForeignEffect::Untracks, true) => "keeps it out of connection tracking",
            (ForeignEffect::Untracks, false) => "keep it out of connection tracking",
            (ForeignEffect::Masquerades, true) => "gives it another source address",
            (ForeignEffect::Masquerades, false) => "give it another source address",
        }
    }

    /// The packet's way does not end with it.
    fn goes_on(self) -> bool {
        matches!(self, ForeignEffect::Untracks)
    }
}

/// A foreign rule in the way of packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRule {
    /// Its table, as messages have it.
    pub table: String,
    /// The chains that lead to it, from the one on a hook to its own.
    pub way: Vec<String>,
    /// The rule, without its chain.
    pub rule: String,
    /// The hook.
    pub hook: PacketHook,
    /// What it does.
    pub effect: ForeignEffect,
    /// It does so to every such packet; another one depends on more than is known.
    pub is_certain: bool,
}

/// The rule with its table and the way to it: `filter FORWARD > DOCKER-USER: -j DROP`.
impl fmt::Display for ForeignRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.rule.strip_prefix(POLICY).or_else(|| self.rule.strip_prefix(NFT_POLICY));
        write!(f, "{} {}: ", self.table, self.way.join(" > "))?;
        match policy {
            Some(policy) => write!(f, "the policy is {policy}"),
            None => f.write_str(&self.rule),
        }
    }
}

impl ForeignRule {
    /// The network of the clients that it is about, where it names one.
    #[must_use]
    pub fn clients(&self) -> Option<&str> {
        let mut words = self.rule.split_whitespace();
        let mut before = "";
        while let Some(word) = words.next() {
            if (word == "-s" || word == "saddr") && before != "!" {
                return words.next().filter(|value| value.starts_with(|c: char| c.is_ascii_hexdigit()));
            }
            before = word;
        }
        None
    }
}

/// How the tools' handle spells the policy of a chain as its last rule.
const POLICY: &str = "-m comment --comment \"the chain's policy\" -j ";
/// How the policy of a chain of nft stands as its last rule.
const NFT_POLICY: &str = "policy ";

/// The foreign rules of a table that a packet meets at a stage of its way, in their order. Our own chains are passed by, or the walk ends
/// where ours take over.
#[must_use]
pub fn foreign_rules(table: &ForeignTable, stage: Stage, packet: &KnownPart) -> Vec<ForeignRule> {
    let mut walk = ForeignWalk { table, stage, packet, way: Vec::new(), found: Vec::new() };
    for base in table.bases.iter().filter(|base| base.stage == stage) {
        walk.chain(&base.name, true);
    }
    walk.found
}

/// What can become of a packet that enters a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passage {
    /// It can come out of the chain.
    comes_out: bool,
    /// A rule can end its way.
    ends: bool,
}

/// What can have become of a packet in a chain so far.
#[derive(Clone, Copy, Debug, Default)]
struct Inside {
    returns: bool,
    ends: bool,
}

struct ForeignWalk<'a> {
    table: &'a ForeignTable,
    stage: Stage,
    packet: &'a KnownPart,
    /// The chains that were entered and not left.
    way: Vec<&'a str>,
    found: Vec<ForeignRule>,
}

impl<'a> ForeignWalk<'a> {
    /// Walks a chain with a packet that enters it for certain, or may.
    fn chain(&mut self, name: &'a str, is_certain: bool) -> Passage {
        let table = self.table;
        self.way.push(name);
        let (mut is_here, mut inside) = (true, Inside::default());
        for text in table.chains.get(name).map(Vec::as_slice).unwrap_or_default() {
            let rule = match table.language {
                Language::Iptables => ForeignLine::parse(text, self.packet),
                Language::Nft => nft::parse_rule(text, self.packet),
            };
            if rule.holds == Holds::No {
                continue;
            }
            let is_every = rule.holds == Holds::Yes && rule.targets.len() == 1;
            let is_certain = is_certain && is_every && !inside.returns && !inside.ends;
            // Whether the rule keeps none of the packets that it holds for in this chain.
            let leaves: Vec<bool> =
                rule.targets.iter().map(|it| self.target(it, text, is_certain, &mut inside)).collect();
            if is_every && leaves == [true] {
                is_here = false;
                break;
            }
        }
        self.way.pop();
        Passage { comes_out: is_here || inside.returns, ends: inside.ends }
    }

    /// Whether no packet that a target is for stays in the chain.
    fn target(&mut self, target: &LineTarget<'a>, text: &str, is_certain: bool, inside: &mut Inside) -> bool {
        match *target {
            LineTarget::Accept => {
                if self.is_before_ours() {
                    self.find(text, ForeignEffect::Bypasses, is_certain);
                }
                inside.ends = true;
                true
            }
            LineTarget::Return => {
                inside.returns = true;
                true
            }
            LineTarget::Has(effect) => {
                self.find(text, effect, is_certain);
                inside.ends |= !effect.goes_on();
                !effect.goes_on()
            }
            LineTarget::Ours(name) if self.table.has_ours => {
                let ends = self.ends_in(name);
                inside.ends |= ends;
                ends
            }
            LineTarget::Ours(next) => self.enter(next, (is_certain, false), inside),
            LineTarget::Chain(next, is_goto) => self.enter(next, (is_certain, is_goto), inside),
            LineTarget::Other => false,
        }
    }

    fn enter(&mut self, next: &'a str, (is_certain, is_goto): (bool, bool), inside: &mut Inside) -> bool {
        if self.way.len() > DEEPEST || !self.table.chains.contains_key(next) {
            return false;
        }
        let passage = self.chain(next, is_certain);
        inside.ends |= passage.ends;
        inside.returns |= is_goto && passage.comes_out;
        is_goto || !passage.comes_out
    }

    fn find(&mut self, text: &str, effect: ForeignEffect, is_certain: bool) {
        // Which of several chains for translation is asked first depends on when each was made.
        let is_contested =
            effect == ForeignEffect::Redirects && self.table.translates && !self.table.has_ours;
        let rule = ForeignRule {
            table: self.table.name.clone(),
            way: self.way.iter().map(|name| (*name).to_owned()).collect(),
            rule: text.to_owned(),
            hook: self.stage.hook,
            effect,
            is_certain: is_certain && !is_contested,
        };
        if !self.found.contains(&rule) {
            self.found.push(rule);
        }
    }

    /// Rules of Services further on in the table would translate the packet.
    fn is_before_ours(&self) -> bool {
        let translate = matches!(self.packet.ours, OurRules::Translate | OurRules::TranslateAndAccept);
        self.table.has_ours && self.table.translates && !self.stage.is_translated && translate
    }

    /// Whether a packet's way ends in one of our chains.
    fn ends_in(&self, chain: &str) -> bool {
        let is_at_translation = self.table.translates && !self.stage.is_translated;
        match self.packet.ours {
            OurRules::Translate => is_at_translation,
            OurRules::TranslateAndAccept => is_at_translation || chain == ACCEPTING,
            OurRules::Stop => true,
            OurRules::LetPass => false,
        }
    }
}

#[cfg(test)]
mod tests;

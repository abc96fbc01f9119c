//! The packet trace, past the rules of other programs.

use super::{
    ForeignEffect, ForeignRule, ForeignTable, KnownPart, OurRules, PacketHook, Stage, foreign_rules,
};
use crate::backend::packet_trace::{Packet, SERVER_RULE, TraceOutcome};
use crate::model::Verdict;
use std::net::{IpAddr, SocketAddr};

/// What begins the rule of a trace by which our chain accepts a forwarded packet.
const ACCEPTED: &str = "filter KUBE-FORWARD: ";

/// What is around the rules of Services.
pub struct ForeignSurroundings<'a> {
    /// The tables of other programs, and the shared ones.
    pub tables: &'a [ForeignTable],
    /// Whether an address is one of the node's own.
    pub is_local: &'a dyn Fn(IpAddr) -> bool,
    /// The interface by which packets leave for an address.
    pub out_interface: &'a dyn Fn(SocketAddr) -> Option<String>,
}

/// One thing that can become of a packet, with the rules of other programs on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedPast {
    /// What becomes of it if none of `may` does anything.
    pub outcome: TraceOutcome,
    /// The foreign rule that decides.
    pub decided_by: Option<ForeignRule>,
    /// The foreign rules that may decide otherwise, in the order in which they are met.
    pub may: Vec<ForeignRule>,
}

/// What our rules make of a packet, with what others make of it before and after that. Outcomes that one foreign rule makes
/// equal are joined.
#[must_use]
pub fn past_foreign_rules(
    outcomes: Vec<TraceOutcome>,
    packet: &Packet,
    around: &ForeignSurroundings<'_>,
) -> Vec<TracedPast> {
    let mut all: Vec<TracedPast> = Vec::new();
    for outcome in outcomes {
        let traced = past(outcome, packet, around);
        let is_same = |it: &&mut TracedPast| {
            let (known, new) = (&it.outcome, &traced.outcome);
            traced.decided_by.is_some()
                && (&it.decided_by, &it.may) == (&traced.decided_by, &traced.may)
                && (&known.verdict, &known.rules) == (&new.verdict, &new.rules)
        };
        match all.iter_mut().find(is_same) {
            Some(known) => known.outcome.chance += traced.outcome.chance,
            None => all.push(traced),
        }
    }
    all
}

fn past(mut outcome: TraceOutcome, packet: &Packet, around: &ForeignSurroundings<'_>) -> TracedPast {
    let (certain, mut may) = Way { packet, outcome: &outcome, around }.meets();
    let mut decided_by = None;
    for (stage, rule) in certain {
        match &mut outcome.verdict {
            // The order of two refusals is not known everywhere.
            Verdict::Refused | Verdict::Dropped => may.push(ForeignRule { is_certain: false, ..rule }),
            Verdict::Served(endpoint) if rule.effect == ForeignEffect::Masquerades => {
                endpoint.masqueraded = true;
                outcome.rules.push(rule.to_string());
            }
            _ => {
                decide(&mut outcome, stage, &rule);
                decided_by = Some(rule);
            }
        }
    }
    TracedPast { outcome, decided_by, may }
}

/// A virtual server sends the packet on. It needs no connection tracking for that. Masquerading does, without which an answer
/// may go another way.
fn is_by_server(outcome: &TraceOutcome) -> bool {
    outcome.rules.iter().any(|rule| rule.starts_with(SERVER_RULE))
}

/// Changes an outcome to what a foreign rule makes of the packet.
fn decide(outcome: &mut TraceOutcome, stage: Stage, rule: &ForeignRule) {
    outcome.verdict = match rule.effect {
        ForeignEffect::Drops => Verdict::Dropped,
        ForeignEffect::Refuses => Verdict::Refused,
        _ => Verdict::Untouched,
    };
    if !stage.is_translated {
        // Our rules do not see it.
        outcome.rules.clear();
        outcome.remembered = None;
    }
    outcome.rules.retain(|rule| !rule.to_ascii_lowercase().contains("postrouting"));
    outcome.rules.push(rule.to_string());
}

/// A packet's way, by what our rules make of it.
struct Way<'a> {
    packet: &'a Packet,
    outcome: &'a TraceOutcome,
    around: &'a ForeignSurroundings<'a>,
}

impl Way<'_> {
    /// The rules that do something to the packet for certain, up to the first that ends its way, and those before it that
    /// may.
    fn meets(&self) -> (Vec<(Stage, ForeignRule)>, Vec<ForeignRule>) {
        let (mut certain, mut may) = (Vec::new(), Vec::new());
        for (stage, to) in self.stages() {
            let known = self.known(stage, to);
            for table in self.around.tables {
                let mut rules = foreign_rules(table, stage, &known);
                rules.retain(|rule| self.matters(rule));
                if is_by_server(self.outcome) {
                    rules.iter_mut().for_each(|it| it.is_certain &= it.effect != ForeignEffect::Untracks);
                }
                let (sure, possible): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.is_certain);
                may.extend(possible);
                let ends = sure.iter().any(|rule| rule.effect != ForeignEffect::Masquerades);
                certain.extend(sure.into_iter().take(1).map(|rule| (stage, rule)));
                if ends {
                    return (certain, may);
                }
            }
        }
        (certain, may)
    }

    /// Where it gets to in the end.
    fn end(&self) -> SocketAddr {
        match self.outcome.verdict {
            Verdict::Served(endpoint) => endpoint.address,
            _ => self.packet.destination,
        }
    }

    /// The stages in their order, and where the packet goes there.
    fn stages(&self) -> Vec<(Stage, SocketAddr)> {
        use PacketHook::{Forward, Input, Output, Postrouting, Prerouting};
        let (asked, end) = (self.packet.destination, self.end());
        let is_outgoing = self.packet.interface.is_none();
        let is_local = (self.around.is_local)(end.ip());
        let is_by_server = is_by_server(self.outcome);
        let first = if is_outgoing { Output } else { Prerouting };
        let then = |hook| (Stage { hook, is_translated: true }, end);
        let mut stages = vec![(Stage { hook: first, is_translated: false }, asked)];
        match (is_by_server, is_outgoing, is_local) {
            (true, false, _) => {
                let enters = (Stage { hook: Input, is_translated: true }, asked);
                stages.extend([(Stage { hook: first, is_translated: true }, asked), enters, then(Output)]);
                stages.push(then(Postrouting));
            }
            (_, true, true) => {
                stages.extend([then(Output), then(Postrouting), then(Prerouting), then(Input)])
            }
            (_, true, false) => stages.extend([then(Output), then(Postrouting)]),
            (false, false, true) => stages.extend([then(Prerouting), then(Input)]),
            (false, false, false) => stages.extend([then(Prerouting), then(Forward), then(Postrouting)]),
        }
        stages
    }

    fn known(&self, stage: Stage, to: SocketAddr) -> KnownPart {
        let Packet { interface, source, protocol, .. } = self.packet;
        let is_served = matches!(self.outcome.verdict, Verdict::Served(_));
        let is_sent =
            matches!(stage.hook, PacketHook::Forward | PacketHook::Output | PacketHook::Postrouting);
        let is_local = (self.around.is_local)(to.ip());
        // What the node sends to itself comes in by the loopback interface.
        let comes_back =
            interface.is_none() && matches!(stage.hook, PacketHook::Prerouting | PacketHook::Input);
        let in_interface = match interface {
            Some(name) if name != Packet::SOME_INTERFACE => Some(name.clone()),
            _ => comes_back.then(|| "lo".to_owned()),
        };
        let out_interface = match (is_sent, is_local) {
            (true, true) => Some("lo".to_owned()),
            (true, false) => (self.around.out_interface)(to),
            (false, _) => None,
        };
        KnownPart {
            to,
            protocol: *protocol,
            from: Some(*source),
            in_interface,
            out_interface,
            to_is_local: is_local,
            is_translated: is_served && stage.is_translated,
            is_answer: false,
            ours: self.ours(),
        }
    }

    fn ours(&self) -> OurRules {
        let is_accepted = |rule: &String| rule.starts_with(ACCEPTED) && rule.ends_with("-j ACCEPT");
        match self.outcome.verdict {
            Verdict::Served(_) if self.outcome.rules.iter().any(is_accepted) => OurRules::TranslateAndAccept,
            Verdict::Served(_) => OurRules::Translate,
            Verdict::Refused | Verdict::Dropped => OurRules::Stop,
            Verdict::Untouched => OurRules::LetPass,
        }
    }

    /// Whether a rule changes what our rules make of the packet.
    fn matters(&self, rule: &ForeignRule) -> bool {
        match rule.effect {
            ForeignEffect::Masquerades => {
                matches!(self.outcome.verdict, Verdict::Served(endpoint) if !endpoint.masqueraded)
            }
            // The packet is translated already.
            ForeignEffect::Redirects | ForeignEffect::Bypasses => rule.hook != PacketHook::Postrouting,
            ForeignEffect::Untracks => !matches!(self.outcome.verdict, Verdict::Untouched),
            ForeignEffect::Drops | ForeignEffect::Refuses => true,
        }
    }
}

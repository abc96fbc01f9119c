//! What is wrong with the kernel's part of a Service: objects that differ, and rules of other programs.

use super::facts::{BridgeFilter, Bridged, FamilyFacts, Obstacle, Unrouted};
use super::findings::{Code, Finding, Severity, finding};
use crate::backend::{Difference, ForeignEffect};
use crate::model::NotForwarding;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// What a family's kernel objects are judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// The objects should be there: of a Service that is left out, none is.
    pub(super) objects: bool,
    /// Some endpoint gets traffic.
    pub(super) endpoints: bool,
}

/// What the kernel has of a family.
pub(super) fn kernel(facts: &FamilyFacts, expected: Expected) -> Vec<Finding> {
    let mut found = objects(facts, expected);
    found.extend(facts.obstacles.iter().map(|obstacle| obstacle_finding(obstacle, &facts.family)));
    found.extend(facts.unrouted.iter().map(|unrouted| unrouted_finding(unrouted, &facts.family)));
    found
}

/// The same without the rules of other programs and without routes: what is about the node as a whole.
pub(super) fn objects(facts: &FamilyFacts, expected: Expected) -> Vec<Finding> {
    let mut found = Vec::new();
    let family = &facts.family;
    if let Some(error) = &facts.unreadable {
        found.push(finding(
            (Code::KernelUnreadable, Severity::Unknown),
            format!("the kernel's {family} state cannot be read: {error}"),
            "Run this as root on the node, with the same iptables tools as the proxy.",
        ));
    }
    let lacking =
        facts.differences.iter().filter(|it| expected.objects && (it.is_gone || !it.missing.is_empty()));
    if let Some(what) = summary(lacking, lack_words) {
        found.push(finding(
            (Code::KernelObjectMissing, Severity::Broken),
            what,
            "Another program deleted it, or it could not be written yet. The proxy writes it again within seconds; if it \
             is still so, kube-proxy-rs status says what keeps the proxy from it.",
        ));
    }
    let stale = facts.differences.iter().filter(|it| expected.objects && !it.surplus.is_empty());
    if let Some(what) = summary(stale, surplus_words) {
        found.push(finding(
            (Code::KernelStateStale, Severity::Broken),
            what,
            "The kernel is behind the API, or an operator or a program added it: see kube-proxy-rs status for the last \
             sync.",
        ));
    }
    if !facts.unseen_tables.is_empty() {
        let tables = facts.unseen_tables.join(", ");
        found.push(finding(
            (Code::ForeignNftTable, Severity::Note),
            format!("{family} packets also meet rules of other programs that were not followed: {tables}"),
            "Where a tool is missing, run this where nft and iptables are installed. nft list table FAMILY NAME shows the rules of \
             a table; nft monitor trace shows which of them packets meet.",
        ));
    }
    found.extend(facts.bridged.as_ref().map(bridged));
    found.extend(forwarding(facts, expected));
    found.extend(facts.untracked_by.as_ref().map(|setting| masquerading_off(setting, family)));
    found
}

/// Rules of the nat table have no effect on what virtual servers send on.
fn masquerading_off(setting: &str, family: &str) -> Finding {
    finding(
        (Code::MasqueradingOff, Severity::Broken),
        format!(
            "{setting} is 0: no {family} packet that a virtual server sends on is masqueraded, and the node itself and clients \
             outside may get no answer"
        ),
        format!("sysctl -w {setting}=1; the proxy sets it at its start"),
    )
}

/// Packets that are not forwarded: none of the family, or none that come in on an interface.
fn forwarding(facts: &FamilyFacts, expected: Expected) -> Option<Finding> {
    let family = &facts.family;
    let (message, advice) = match facts.forwards? {
        false if NotForwarding::judge(Some(expected.endpoints), true) == NotForwarding::Broken => (
            format!("the node does not forward {family} packets: endpoints of other nodes and pods get none"),
            match family.as_str() {
                "IPv6" => "sysctl -w net.ipv6.conf.all.forwarding=1".to_owned(),
                _ => "sysctl -w net.ipv4.ip_forward=1".to_owned(),
            },
        ),
        true if !facts.still.is_empty() => {
            let all = facts.still.join(", ");
            (
                format!(
                    "{all}: the interface does not forward {family} packets, so that no client but this node gets the answers of \
                     endpoints behind it"
                ),
                format!(
                    "sysctl -w net.ipv4.conf.INTERFACE.forwarding=1 for {all}; find the program that switched it off."
                ),
            )
        }
        _ => return None,
    };
    Some(finding((Code::ForwardingOff, Severity::Broken), message, advice))
}

/// Answers within a bridge that no rule sees, or packets that it does not send back.
fn bridged(it: &Bridged) -> Finding {
    let Bridged { bridges, setting, state } = it;
    let bridges = bridges.join(", ");
    let (state, remedy) = match state {
        BridgeFilter::Off => {
            (format!("{setting} is 0"), format!("sysctl -w {setting}=1, and keep it in /etc/sysctl.d"))
        }
        BridgeFilter::NotLoaded => (
            "br_netfilter is not loaded".to_owned(),
            "modprobe br_netfilter, and keep it in /etc/modules-load.d".to_owned(),
        ),
        BridgeFilter::On => {
            return finding(
                (Code::HairpinOff, Severity::Note),
                format!(
                    "{setting} is 1, and no port of the bridge {bridges} is in hairpin mode: a pod there cannot reach itself \
                     through a Service that it is an endpoint of"
                ),
                "Have the network plugin set it (hairpinMode of the CNI plugin bridge), or: bridge link set dev PORT hairpin on",
            );
        }
    };
    finding(
        (Code::BridgedPastRules, Severity::Problem),
        format!(
            "{state}, and endpoints are on the bridge {bridges}: a pod on the same bridge gets their answers past the rules, \
             from the endpoint's own address, and connections to the Service hang"
        ),
        remedy,
    )
}

/// A rule of another program. What only may happen is a note, and so is what the node does with an address of its own.
pub(super) fn obstacle_finding(obstacle: &Obstacle, family: &str) -> Finding {
    let Obstacle { rule, effect, is_certain, local, clients, is_by_server, .. } = obstacle;
    let severity = if *is_certain && local.is_none() { Severity::Broken } else { Severity::Note };
    let does = |certain: &'static str, possible: &'static str| if *is_certain { certain } else { possible };
    let (code, does, whose, advice) = match effect {
        ForeignEffect::Drops | ForeignEffect::Refuses | ForeignEffect::Masquerades => (
            Code::ForeignDropRule,
            does("this stops", "this may stop"),
            String::new(),
            "Find the program that writes it (a firewall, Docker, the network plugin), and have it accept traffic to pods.",
        ),
        ForeignEffect::Redirects => (
            Code::ForeignTranslation,
            does("this sends elsewhere", "this may send elsewhere"),
            ", before the Service's rules see them".to_owned(),
            "Remove the rule of the other program, or have it leave out the Service's addresses.",
        ),
        ForeignEffect::Bypasses => (
            Code::ForeignAccept,
            does("this lets past the Service's rules", "this may let past the Service's rules"),
            ", which leave the nat table here".to_owned(),
            "Move the rule behind the jump to KUBE-SERVICES, or have it leave out the Service's addresses.",
        ),
        ForeignEffect::Untracks => (
            Code::NotTracked,
            does("this keeps out of connection tracking", "this may keep out of connection tracking"),
            format!(
                ", and without tracking {}{}",
                match is_by_server {
                    true => "none is masqueraded: the node itself and clients outside may get no answer",
                    false => "no rule can translate their destination",
                },
                local.map(|ip| format!("; this node has the address {ip} itself")).unwrap_or_default()
            ),
            "NodeLocal DNSCache means to do so for the address of the DNS Service, which it answers itself. Otherwise \
             remove the rule from the raw table.",
        ),
    };
    let at = met_at(obstacle);
    let message = match obstacle.by_answers {
        true => format!("{rule}: {does} {family} answers from {at} to clients{whose}"),
        false => format!("{rule}: {does} {family} packets from {clients} to {at}{whose}"),
    };
    finding((code, severity), message, advice)
}

/// A missing route. Of a cluster IP, only the node itself needs one: a packet from elsewhere is translated before it is routed.
pub(super) fn unrouted_finding(unrouted: &Unrouted, family: &str) -> Finding {
    let Unrouted { reason, is_endpoint, at, .. } = unrouted;
    let (message, advice) = match is_endpoint {
        true => (
            format!("the node has {reason} for {family} packets to the endpoints {}", named(at)),
            "ip route get ADDRESS shows it. The network plugin makes the routes to pods: see whether it runs on this node.",
        ),
        false => (
            format!(
                "the node has {reason} for {family} packets to {}: the node itself cannot connect there, since the kernel looks for a \
                 route before a rule translates the destination",
                named(at)
            ),
            "Add a default route, or one to the network of the Services: any interface will do.",
        ),
    };
    finding((Code::NoRoute, Severity::Problem), message, advice)
}

/// The first few of several addresses, and how many more there are.
fn named(at: &BTreeSet<SocketAddr>) -> String {
    let named: Vec<String> = at.iter().take(MOST_OBJECTS).map(ToString::to_string).collect();
    let more = at.len().saturating_sub(MOST_OBJECTS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// What packets are on their way to, and how much of it is concerned.
fn met_at(obstacle: &Obstacle) -> String {
    let named = named(&obstacle.at);
    match obstacle.of_endpoints {
        Some(all) if all == obstacle.at.len() && all > 1 => format!("all {all} endpoints"),
        Some(1) => format!("the only endpoint ({named})"),
        Some(all) => format!("{} of {all} endpoints ({named})", obstacle.at.len()),
        None => named,
    }
}

/// At most this many objects are named in one sentence.
const MOST_OBJECTS: usize = 3;

/// One sentence about all objects that differ in one way: the first ones by name, and how many more there are.
fn summary<'d>(
    differences: impl Iterator<Item = &'d Difference>,
    words: fn(&Difference) -> String,
) -> Option<String> {
    let all: Vec<&Difference> = differences.collect();
    let named: Vec<String> = all.iter().take(MOST_OBJECTS).map(|it| words(it)).collect();
    match all.len().saturating_sub(MOST_OBJECTS) {
        _ if all.is_empty() => None,
        0 => Some(named.join("; ")),
        more => Some(format!("{}; and {more} more kernel objects", named.join("; "))),
    }
}

fn lack_words(it: &Difference) -> String {
    match (it.is_gone, it.missing.len()) {
        (true, _) => format!("{} does not exist", it.object),
        (false, 1) => format!("{} lacks 1 entry", it.object),
        (false, count) => format!("{} lacks {count} entries", it.object),
    }
}

fn surplus_words(it: &Difference) -> String {
    match it.surplus.len() {
        1 => format!("{} has 1 entry that the proxy does not want there", it.object),
        count => format!("{} has {count} entries that the proxy does not want there", it.object),
    }
}

//! Rules of other programs in the way of Services' packets: read once for a family, then walked for each Service and each
//! traced packet.

use super::routes::Routes;
use super::tables_beside;
use crate::backend::{
    ForeignEffect, ForeignRule, ForeignSurroundings, ForeignTable, KnownPart, OurRules, Packet, PacketHook,
    Stage, TraceOutcome, TracedPast, foreign_rules, past_foreign_rules,
};
use crate::explain::{BridgeFilter, Bridged, EndpointView, FamilyView, Obstacle, PortView};
use crate::kernel::addresses::node_addresses;
use crate::kernel::iptables::Tools;
use crate::kernel::links;
use crate::kernel::sysctl::Sysctls;
use crate::model::{IpFamily, Protocol};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// The rules that Services' packets meet besides our own.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    tables: Vec<ForeignTable>,
    /// What packets meet and could not be read, each with the reason.
    pub(super) unseen: Vec<String>,
    pub(super) routes: Routes,
    /// The addresses that the node has besides those of Services.
    node: Vec<IpAddr>,
    /// Services have addresses of the node, which takes their packets in and sends them on itself.
    takes_in: bool,
}

/// Before a rule can translate packets.
const BEFORE: [Stage; 2] = [
    Stage { hook: PacketHook::Prerouting, is_translated: false },
    Stage { hook: PacketHook::Output, is_translated: false },
];
/// On the way to an endpoint on another node, or in a pod.
const BEHIND: [Stage; 3] = [
    Stage { hook: PacketHook::Prerouting, is_translated: true },
    Stage { hook: PacketHook::Forward, is_translated: true },
    Stage { hook: PacketHook::Output, is_translated: true },
];

/// On the way to an endpoint on this node itself.
const HERE: [Stage; 1] = [Stage { hook: PacketHook::Input, is_translated: true }];
/// Where the node takes packets to Services in.
const IN: [Stage; 3] = [BEFORE[0], BEFORE[1], HERE[0]];
/// Where the node sends on what it has taken in.
const ON: [Stage; 1] = [Stage { hook: PacketHook::Output, is_translated: true }];
/// Where the answers to what the node has sent on come back.
const BACK: [Stage; 1] = [Stage { hook: PacketHook::Forward, is_translated: true }];

/// The frontends, endpoints and Services that a rule concerns.
#[derive(Default)]
struct Concerned<'v> {
    obstacle: Option<Obstacle>,
    at: BTreeSet<SocketAddr>,
    services: BTreeSet<&'v str>,
    /// Used endpoints of these Services.
    endpoints: BTreeSet<SocketAddr>,
}

/// What makes rules the same: their words, whether they are certain, and the node's own address that they concern.
type Known<'v> = BTreeMap<(String, bool, Option<IpAddr>), Concerned<'v>>;

impl Surroundings {
    /// Reads them, with as many processes as there are tables: those of the proxy's tools and of the other flavour, and those
    /// that other programs made of nf_tables. `has_ours`: the proxy writes rules with the tools. `traces`: packets are traced,
    /// which meet more chains. `takes_in`: Services have addresses of the node.
    ///
    /// # Errors
    /// Where the proxy's own tables cannot be read: the tools' words.
    pub(super) async fn read(
        tools: Result<&Tools>,
        family: IpFamily,
        (has_ours, traces, takes_in): (bool, bool, bool),
    ) -> Result<Surroundings> {
        let (tables, unseen) = tables_beside::read(tools, family, (has_ours, traces)).await?;
        let (routes, node) = (Routes::of(family), node_addresses(family).unwrap_or_default());
        Ok(Surroundings { tables, unseen, routes, node, takes_in })
    }

    /// What becomes of a traced packet among these rules.
    pub(super) fn past(
        &self,
        outcomes: Vec<TraceOutcome>,
        packet: &Packet,
        own: &[IpAddr],
    ) -> Vec<TracedPast> {
        let around = ForeignSurroundings {
            tables: &self.tables,
            is_local: &|address| address.is_loopback() || own.contains(&address),
            out_interface: &|to| self.routes.interface_towards(to),
        };
        past_foreign_rules(outcomes, packet, &around)
    }

    /// What stands in the way of these Services' packets; each rule once, with the Services that it concerns.
    pub(super) fn obstacles<'v>(
        &self,
        services: impl IntoIterator<Item = (&'v str, &'v FamilyView)>,
        own: &[IpAddr],
    ) -> Vec<Obstacle> {
        let mut known = Known::new();
        for (service, family) in services {
            for port in &family.ports {
                self.of_port((service, port), own, &mut known);
            }
        }
        let whole = |it: Concerned<'_>| {
            let Concerned { obstacle, at, services, endpoints } = it;
            let of_endpoints = obstacle.as_ref()?.of_endpoints.map(|_| endpoints.len());
            let services = services.into_iter().map(str::to_owned).collect();
            obstacle.map(|obstacle| Obstacle { at, of_endpoints, services, ..obstacle })
        };
        known.into_values().filter_map(whole).collect()
    }

    /// Packets meet rules before our rules see them, and on their way to an endpoint.
    fn of_port<'v>(&self, (service, port): (&'v str, &'v PortView), own: &[IpAddr], known: &mut Known<'v>) {
        let protocol = protocol(port);
        let used = port.endpoints.iter().filter(|endpoint| endpoint.is_used());
        let used: BTreeSet<SocketAddr> = used.filter_map(EndpointView::address).collect();
        let mut note = |rules: Vec<ForeignRule>, to: SocketAddr, is_endpoint: bool| {
            let local = (!is_endpoint && self.node.contains(&to.ip())).then_some(to.ip());
            for rule in rules {
                let it = known.entry((rule.to_string(), rule.is_certain, local)).or_default();
                let of_endpoints = is_endpoint.then_some(0);
                let by_answers = self.takes_in && rule.hook == PacketHook::Forward;
                it.obstacle.get_or_insert_with(|| Obstacle {
                    of_endpoints,
                    by_answers,
                    is_by_server: self.takes_in,
                    ..Obstacle::of(&rule, local)
                });
                it.at.insert(to);
                it.services.insert(service);
                it.endpoints.extend(&used);
            }
        };
        for to in used.iter().copied() {
            note(self.on_the_way_to(to, protocol, own.contains(&to.ip())), to, true);
        }
        for to in port.frontends.iter().filter_map(|frontend| frontend.address.parse().ok()) {
            let packet = unknown(to, protocol, OurRules::Translate);
            let to_is_local = own.contains(&to.ip());
            let stages = if self.takes_in { &IN[..] } else { &BEFORE };
            note(self.met(stages, &KnownPart { to_is_local, ..packet }), to, false);
        }
    }

    /// What packets to an endpoint meet behind the rules of Services, and where the node sends them on itself, what answers
    /// meet, which our chain accepts there.
    fn on_the_way_to(&self, to: SocketAddr, protocol: Protocol, is_own: bool) -> Vec<ForeignRule> {
        let packet = KnownPart { to_is_local: is_own, ..unknown(to, protocol, OurRules::Translate) };
        match (self.takes_in, is_own) {
            // What goes to the node itself is not forwarded.
            (false, true) => self.met(&HERE, &KnownPart { is_translated: true, ..packet }),
            (false, false) => self.met(
                &BEHIND,
                &KnownPart {
                    is_translated: true,
                    out_interface: self.routes.interface_towards(to),
                    ..packet
                },
            ),
            (true, true) => self.met(&ON, &packet),
            (true, false) => {
                let interface = self.routes.interface_towards(to);
                let sent = KnownPart { out_interface: interface.clone(), ..packet.clone() };
                let answer = KnownPart {
                    from: Some(to.ip()),
                    in_interface: interface,
                    is_answer: true,
                    ours: OurRules::TranslateAndAccept,
                    ..packet
                };
                [self.met(&ON, &sent), self.met(&BACK, &answer)].concat()
            }
        }
    }

    /// The rules that a packet of any client meets.
    fn met(&self, stages: &[Stage], packet: &KnownPart) -> Vec<ForeignRule> {
        let tables = || self.tables.iter();
        let all = stages.iter().flat_map(|stage| tables().flat_map(|it| foreign_rules(it, *stage, packet)));
        all.filter(|rule| rule.effect != ForeignEffect::Masquerades).collect()
    }

    /// The interfaces by which packets leave for used endpoints.
    pub(super) fn towards_endpoints<'v>(
        &self,
        services: impl IntoIterator<Item = &'v FamilyView>,
    ) -> BTreeSet<String> {
        let ports = services.into_iter().flat_map(|family| &family.ports);
        let used = ports.flat_map(|port| &port.endpoints).filter(|endpoint| endpoint.is_used());
        let addresses: BTreeMap<IpAddr, SocketAddr> =
            used.filter_map(EndpointView::address).map(|to| (to.ip(), to)).collect();
        addresses.into_values().filter_map(|to| self.routes.interface_towards(to)).collect()
    }
}

/// A packet of any client.
fn unknown(to: SocketAddr, protocol: Protocol, ours: OurRules) -> KnownPart {
    KnownPart {
        to,
        protocol,
        from: None,
        in_interface: None,
        out_interface: None,
        to_is_local: false,
        is_translated: false,
        is_answer: false,
        ours,
    }
}

/// What bridges do to packets between endpoints of this node. `by_address`: the mode takes packets where they are for this
/// node, which is behind the bridge.
pub(super) fn bridged<'v>(
    (family, by_address): (IpFamily, bool),
    views: impl IntoIterator<Item = &'v FamilyView>,
) -> Option<Bridged> {
    let (path, setting) = match family {
        IpFamily::V4 => ("net/bridge/bridge-nf-call-iptables", "net.bridge.bridge-nf-call-iptables"),
        IpFamily::V6 => ("net/bridge/bridge-nf-call-ip6tables", "net.bridge.bridge-nf-call-ip6tables"),
    };
    let value = Sysctls::default().read(path).ok();
    let all = interfaces_of_endpoints(family, views).into_iter();
    let (state, bridges): (_, Vec<String>) = match value.as_deref() {
        Some("1") if by_address => return None,
        Some("1") => (BridgeFilter::On, all.filter(|name| links::lacks_hairpin(name)).collect()),
        // A pod alone on its bridge has no neighbour there.
        Some(_) => (BridgeFilter::Off, all.filter(|name| links::bridge_ports(name) > 1).collect()),
        None => (BridgeFilter::NotLoaded, all.filter(|name| links::bridge_ports(name) > 1).collect()),
    };
    (!bridges.is_empty()).then_some(Bridged { bridges, setting, state })
}

/// The interfaces by which packets leave for used endpoints of this node.
fn interfaces_of_endpoints<'v>(
    family: IpFamily,
    views: impl IntoIterator<Item = &'v FamilyView>,
) -> BTreeSet<String> {
    let routes = Routes::of(family);
    let endpoints = views.into_iter().flat_map(|view| &view.ports).flat_map(|port| &port.endpoints);
    let local = endpoints.filter(|it| it.local && it.is_used()).filter_map(EndpointView::address);
    let local: BTreeSet<SocketAddr> = local.collect();
    local.into_iter().filter_map(|to| routes.interface_towards(to)).collect()
}

/// The protocol of a port.
pub(super) fn protocol(port: &PortView) -> Protocol {
    Protocol::ALL.into_iter().find(|it| it.as_str() == port.protocol).unwrap_or_default()
}

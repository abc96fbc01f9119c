//! The packet table against the rendered rules: each packet is walked through them, with every
//! branch a random choice can take, and must end where the table says.

mod rules;

use std::collections::BTreeMap;

use crate::backend::iptables::{Features, base, render_inputs};
use crate::kernel::iptables::Flavor;
use crate::model::{Cidr, IpFamily, NodeFacts, Protocol, Snapshot, WatchEvent};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses, Plan, Scope};
use crate::state::Tracker;
use crate::testing::packets::{
    CLUSTER_CIDR, NODE_NAME, Packet, PacketCase, Place, Share, Source, Verdict, cases, pod_side_address,
};
use crate::watch::convert;
use rstest::rstest;
use rules::{Tables, Target, Traveller, is_local};

/// Where a packet can end up, and with which chance.
#[derive(Debug, Default)]
struct Fate {
    /// By endpoint: its share, and whether the source was masqueraded.
    served: BTreeMap<Place, (f64, Vec<bool>)>,
    rejected: f64,
    dropped: f64,
    untouched: f64,
    /// The lists that remember the client afterwards.
    remembered_in: Vec<String>,
}

impl Tables {
    fn trace(&self, packet: Traveller) -> Fate {
        let outgoing = packet.flow.interface.is_none();
        let mut fate = Fate::default();
        for packet in self.walk("nat", if outgoing { "OUTPUT" } else { "PREROUTING" }, packet) {
            // What the node sends to itself comes in again, through lo.
            let hooks: &[&str] = match (outgoing, is_local(packet.flow.destination.ip())) {
                (true, false) => &["OUTPUT"],
                (true, true) => &["OUTPUT", "INPUT"],
                (false, true) => &["INPUT"],
                (false, false) => &["FORWARD"],
            };
            for packet in self.filter(hooks, packet) {
                match packet.end {
                    Some(Target::Reject) => fate.rejected += packet.chance,
                    Some(Target::Drop) => fate.dropped += packet.chance,
                    _ if !packet.translated => fate.untouched += packet.chance,
                    _ => self.leave(packet, &mut fate),
                }
            }
        }
        fate
    }

    /// One filter hook after the other, until one says no.
    fn filter(&self, hooks: &[&str], packet: Traveller) -> Vec<Traveller> {
        let refused = |packet: &Traveller| matches!(packet.end, Some(Target::Reject | Target::Drop));
        let mut packets = vec![packet];
        for hook in hooks {
            let (mut out, rest) = packets.into_iter().partition::<Vec<_>, _>(refused);
            let rest = rest.into_iter().map(|packet| Traveller { end: None, ..packet });
            out.extend(rest.flat_map(|packet| self.walk("filter", hook, packet)));
            packets = out;
        }
        packets
    }

    fn leave(&self, packet: Traveller, fate: &mut Fate) {
        let family = IpFamily::of(packet.flow.source);
        let endpoint = packet.flow.destination.ip();
        let place = Place::SERVERS.into_iter().find(|place| place.address(family) == endpoint).unwrap();
        fate.remembered_in.extend(packet.remembered.clone());
        for packet in self.walk("nat", "POSTROUTING", Traveller { end: None, ..packet }) {
            let (share, masqueraded) = fate.served.entry(place).or_default();
            *share += packet.chance;
            masqueraded.push(packet.end == Some(Target::Masquerade));
        }
    }

    /// All that can become of a packet in a chain; whoever has no end was returned.
    fn walk(&self, table: &str, chain: &str, packet: Traveller) -> Vec<Traveller> {
        let (mut inside, mut out) = (vec![packet], Vec::new());
        for rule in self.rules(table, chain) {
            let mut next = Vec::new();
            for packet in inside {
                let chance = packet.chance_of(rule);
                if chance < 1.0 {
                    next.push(Traveller { chance: packet.chance * (1.0 - chance), ..packet.clone() });
                }
                if chance > 0.0 {
                    let mut hit = Traveller { chance: packet.chance * chance, ..packet };
                    hit.remembered = rule.remember.clone().or(hit.remembered);
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
        mut packet: Traveller,
        (inside, out): (&mut Vec<Traveller>, &mut Vec<Traveller>),
    ) {
        match target {
            None => inside.push(packet),
            Some(Target::OrMark(bits)) => inside.push(Traveller { mark: packet.mark | bits, ..packet }),
            Some(Target::XorMark(bits)) => inside.push(Traveller { mark: packet.mark ^ bits, ..packet }),
            Some(Target::Return) => out.push(packet),
            Some(Target::Chain(chain)) => {
                let (ended, returned) = self
                    .walk(table, chain, packet)
                    .into_iter()
                    .partition::<Vec<_>, _>(|packet| packet.end.is_some());
                out.extend(ended);
                inside.extend(returned);
            }
            Some(end) => {
                if let Target::Dnat(destination) = end {
                    packet.flow.destination = *destination;
                    packet.translated = true;
                }
                out.push(Traveller { end: Some(end.clone()), ..packet });
            }
        }
    }
}

/// The picture that a case's objects make.
fn snapshot(case: &PacketCase) -> Snapshot {
    let node = NodeFacts {
        name: NODE_NAME.into(),
        addresses: IpFamily::ALL.map(|family| Place::Node.address(family)).into(),
        ..NodeFacts::default()
    };
    let mut tracker = Tracker::new(node, 0);
    for object in case.objects() {
        let event = if object["kind"] == "Service" {
            let converted = convert::service(&serde_json::from_value(object).unwrap());
            assert_eq!(converted.issues, [], "{}", case.name);
            WatchEvent::Service(Box::new(converted.value.unwrap()))
        } else {
            let converted = convert::endpoint_slice(&serde_json::from_value(object).unwrap(), NODE_NAME);
            assert_eq!(converted.issues, [], "{}", case.name);
            WatchEvent::Slice(Box::new(converted.value.unwrap()))
        };
        tracker.fold(event);
    }
    tracker.snapshot().clone()
}

fn cidrs(text: &str) -> Vec<Cidr> {
    text.split(',').map(|cidr| cidr.parse().unwrap()).collect()
}

/// What a case's flags come to in one family.
fn settings(case: &PacketCase, family: IpFamily) -> FamilySettings {
    let mut settings = FamilySettings::new(family);
    settings.node_ip = Place::Node.address(family);
    let network = cidrs(CLUSTER_CIDR).into_iter().find(|cidr| IpFamily::of_cidr(cidr) == family);
    settings.detector = network.map(LocalDetector::Cidr);
    for flag in case.flags {
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        match name {
            "--masquerade-all" => settings.masquerade_all = true,
            "--nodeport-addresses" => {
                settings.node_port_addresses = NodePortAddresses::of_family(&cidrs(value), family);
                settings.localhost_node_ports &= settings.node_port_addresses.includes_v4_loopback();
            }
            "--iptables-localhost-nodeports" => settings.localhost_node_ports = false,
            "--pod-interface-name-prefix" => {
                settings.detector = Some(LocalDetector::InterfacePrefix(value.to_owned()));
            }
            "--detect-local-mode" | "--cluster-cidr" => {}
            other => panic!("the tracer does not know {other}"),
        }
    }
    settings
}

fn tables(case: &PacketCase, family: IpFamily, flavor: Flavor, features: &Features) -> Tables {
    let (snapshot, settings) = (snapshot(case), settings(case, family));
    let addresses = [Place::Node.address(family), pod_side_address(family)];
    let plan = Plan::new(&settings, &snapshot, Scope::All).with_local_addresses(&addresses);
    let mut tables = Tables::default();
    for input in render_inputs(&plan, features, flavor) {
        tables.load(&input);
    }
    for jump in base::JUMPS {
        // Without node ports on localhost, KUBE-FIREWALL is kubelet's and may be empty.
        if jump.to != "KUBE-FIREWALL" || base::keeps_firewall(&settings) {
            tables.insert(jump.table, jump.from, &jump.arguments());
        }
    }
    tables
}

fn traveller(case: &PacketCase, packet: &Packet, family: IpFamily) -> Traveller {
    let flow = case.flow(packet, family);
    Traveller { chance: 1.0, flow, mark: 0, translated: false, remembered: None, end: None }
}

#[rstest]
fn every_packet_of_the_table_ends_where_it_should(
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[values(usize::MAX, 0)] tree_threshold: usize,
) {
    let features = Features { tree_threshold, ..Features::default() };
    let mut failures = Vec::new();
    for case in cases() {
        let tables = tables(&case, family, flavor, &features);
        for packet in case.packets.iter().filter(|packet| packet.families.contains(&family)) {
            let fate = tables.trace(traveller(&case, packet, family));
            if !fate.is(&packet.verdict) {
                let route = format!("{} -> {:?}", packet.from.name(), packet.to);
                failures.push(format!("{}: {route}: wanted {:?}, found {fate:?}", case.name, packet.verdict));
            }
            failures.extend(forgetful(&tables, &traveller(&case, packet, family), &packet.verdict, &fate));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// With session affinity, a client that an endpoint's list remembers must get that endpoint.
fn forgetful(tables: &Tables, packet: &Traveller, verdict: &Verdict, first: &Fate) -> Option<String> {
    let Verdict::Served { by, share: Share::Sticky | Share::StickyUntilTimeout, .. } = verdict else {
        return None;
    };
    let mut reached = Vec::new();
    for list in &first.remembered_in {
        let fate = tables.trace(Traveller { remembered: Some(list.clone()), ..packet.clone() });
        reached.extend(fate.served.into_keys());
    }
    reached.sort();
    let mut wanted = by.clone();
    wanted.sort();
    (reached != wanted).then(|| format!("remembered clients reach {reached:?}, not {wanted:?}"))
}

impl Fate {
    fn is(&self, verdict: &Verdict) -> bool {
        let certain = |chance: f64| (chance - 1.0).abs() < 1e-6;
        match verdict {
            Verdict::Rejected => certain(self.rejected),
            Verdict::Dropped => certain(self.dropped),
            Verdict::Untouched => certain(self.untouched),
            Verdict::Served { by, source, .. } => {
                let masqueraded = *source == Source::Masqueraded;
                let even = 1.0 / by.len() as f64;
                self.served.len() == by.len()
                    && by.iter().all(|place| {
                        self.served.get(place).is_some_and(|(share, sources)| {
                            (share - even).abs() < 1e-6 && sources.iter().all(|was| *was == masqueraded)
                        })
                    })
            }
        }
    }
}

/// The tracer must be able to fail: a rule too few shows.
#[test]
fn a_missing_masquerade_mark_is_noticed() {
    let case = cases().into_iter().find(|case| case.shape.protocol == Protocol::Udp).unwrap();
    let packet = case.packets.iter().find(|packet| packet.from == Place::Node).unwrap();
    let (snapshot, mut settings) = (snapshot(&case), settings(&case, IpFamily::V4));
    settings.detector = None;
    let plan = Plan::new(&settings, &snapshot, Scope::All);
    let mut tables = Tables::default();
    for input in render_inputs(&plan, &Features::default(), Flavor::Nft) {
        tables.load(&input);
    }
    for jump in base::JUMPS {
        tables.insert(jump.table, jump.from, &jump.arguments());
    }
    assert!(!tables.trace(traveller(&case, packet, IpFamily::V4)).is(&packet.verdict));
}

//! The packet table against the rendered rules: each packet is walked through them, with every
//! branch a random choice can take, and must end where the table says.

use std::collections::BTreeMap;

use super::walk::{Outcome, Packet as Sent, Tables, Verdict as Found, Walk};
use crate::backend::iptables::{Features, base, inspect, render_inputs};
use crate::kernel::iptables::Flavor;
use crate::model::{Cidr, IpFamily, NodeFacts, Protocol, Snapshot, WatchEvent};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses, Plan, Scope};
use crate::state::Tracker;
use crate::testing::packets::{
    CLUSTER_CIDR, NODE_NAME, Packet, PacketCase, Place, Share, Source, Verdict, cases, pod_side_address,
};
use crate::watch::convert;
use rstest::rstest;
use std::net::IpAddr;

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

impl Fate {
    fn of(outcomes: Vec<Outcome>) -> Fate {
        let mut fate = Fate::default();
        for outcome in outcomes {
            match outcome.verdict {
                Found::Rejected => fate.rejected += outcome.chance,
                Found::Dropped => fate.dropped += outcome.chance,
                Found::Untouched => fate.untouched += outcome.chance,
                Found::Served { endpoint, masqueraded } => {
                    let family = IpFamily::of(endpoint.ip());
                    let at = |place: &Place| place.address(family) == endpoint.ip();
                    let place = Place::SERVERS.into_iter().find(at).unwrap();
                    fate.remembered_in.extend(outcome.remembered);
                    let (share, sources) = fate.served.entry(place).or_default();
                    *share += outcome.chance;
                    sources.push(masqueraded);
                }
            }
        }
        fate
    }
}

/// Whether an address is one of our node's.
fn is_local(address: IpAddr) -> bool {
    let family = IpFamily::of(address);
    address.is_loopback() || [Place::Node.address(family), pod_side_address(family)].contains(&address)
}

fn trace(tables: &Tables, packet: &Sent, remembered: Option<&str>) -> Fate {
    Fate::of(Walk { tables, is_local: &is_local }.trace(packet, remembered))
}

/// Restore inputs and the jumps to our chains, as the tables that they make.
fn load(inputs: &[String], settings: &FamilySettings) -> Tables {
    let mut tables = Tables::default();
    let mut table = "";
    for line in inputs.iter().flat_map(|input| input.lines()) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            tables.add(table, chain, std::iter::once(rule));
        }
    }
    for jump in base::JUMPS.iter().rev() {
        // Without node ports on localhost, KUBE-FIREWALL is kubelet's and may be empty.
        if !jump.is_shared_with_kubelet() || base::keeps_firewall(settings) {
            tables.add(jump.table, jump.from, std::iter::once(jump.arguments().as_str()));
        }
    }
    tables
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
    load(&render_inputs(&plan, features, flavor), &settings)
}

fn sent(case: &PacketCase, packet: &Packet, family: IpFamily) -> Sent {
    let flow = case.flow(packet, family);
    Sent {
        interface: flow.interface.map(str::to_owned),
        source: flow.source,
        destination: flow.destination,
        protocol: flow.protocol,
    }
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
            let sent = sent(&case, packet, family);
            let fate = trace(&tables, &sent, None);
            if !fate.is(&packet.verdict) {
                let route = format!("{} -> {:?}", packet.from.name(), packet.to);
                failures.push(format!("{}: {route}: wanted {:?}, found {fate:?}", case.name, packet.verdict));
            }
            failures.extend(forgetful(&tables, &sent, &packet.verdict, &fate));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// With session affinity, a client that an endpoint's list remembers must get that endpoint.
fn forgetful(tables: &Tables, packet: &Sent, verdict: &Verdict, first: &Fate) -> Option<String> {
    let Verdict::Served { by, share: Share::Sticky | Share::StickyUntilTimeout, .. } = verdict else {
        return None;
    };
    let mut reached = Vec::new();
    for list in &first.remembered_in {
        let fate = trace(tables, packet, Some(list));
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
    let tables = load(&render_inputs(&plan, &Features::default(), Flavor::Nft), &settings);
    assert!(!trace(&tables, &sent(&case, packet, IpFamily::V4), None).is(&packet.verdict));
}

/// What `explain` shows an operator goes the same way as the packets.
#[rstest]
fn every_packet_is_explained_as_it_goes(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    for case in cases() {
        let (snapshot, settings) = (snapshot(&case), settings(&case, family));
        let addresses = [Place::Node.address(family), pod_side_address(family)];
        let plan = Plan::new(&settings, &snapshot, Scope::All).with_local_addresses(&addresses);
        let objects = inspect::wanted(&plan, &Features::default());
        for packet in case.packets.iter().filter(|packet| packet.families.contains(&family)) {
            let outcomes = inspect::trace(&objects, &sent(&case, packet, family), &addresses);
            let decided = outcomes.iter().all(|it| it.verdict == Found::Untouched || !it.rules.is_empty());
            assert!(decided, "{}: a verdict without a rule", case.name);
            let fate = Fate::of(outcomes);
            assert!(fate.is(&packet.verdict), "{}: wanted {:?}, found {fate:?}", case.name, packet.verdict);
        }
    }
}

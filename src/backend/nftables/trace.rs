//! The packet table, walked through our rules and elements.

use super::apply::write_rules;
use super::baseline::Structure;
use super::element::{Content, ElementId, with_wire};
use super::names::SetId;
use super::packet_trace::{Found, PacketTrace};
use super::{Features, Layouts, node_elements, render, text};
use crate::backend::packet_tests::{Fate, is_local, sent, settings, snapshot};
use crate::backend::packet_trace::{Packet, TraceOutcome};
use crate::model::{IpFamily, ServiceName, Snapshot};
use crate::plan::{FamilySettings, NodePortAddresses, Plan, Scope};
use crate::testing::packets::{Place, Target, Verdict, cases, pod_side_address};
use nftables_rs::{Batch, Data};
use rstest::rstest;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What of a Service's elements is looked up.
type Sets = BTreeMap<String, Vec<(Vec<u8>, Option<Vec<u8>>, Vec<u8>)>>;

fn add(sets: &mut Sets, id: &ElementId, content: &Content) {
    with_wire(id, content, |element| {
        let data = match element.data {
            Some(Data::Value(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        };
        let entry = (element.key.to_vec(), element.key_end.map(<[u8]>::to_vec), data);
        sets.entry(id.set.name().into_owned()).or_default().push(entry);
    });
}

/// The rules and elements of a picture, and how to walk through them.
pub(super) struct Model {
    rules: Batch,
    texts: BTreeMap<String, Vec<String>>,
    sets: Sets,
}

impl Model {
    pub(super) fn new(settings: &FamilySettings, snapshot: &Snapshot, addresses: &[IpAddr]) -> Model {
        let plan = Plan::new(settings, snapshot, Scope::All).with_local_addresses(addresses);
        let (mut needs, mut sets) = (Structure::default(), Sets::new());
        let node_ports = plan.node_port_ips().unwrap_or_else(|| addresses.to_vec());
        let mut services = vec![(ServiceName::new("", ""), node_elements(node_ports))];
        services
            .extend(plan.services().map(|service| (service.name.clone(), render::service(&service, false))));
        for (name, elements) in services {
            needs.need(&elements);
            elements.items(&name).iter().for_each(|(id, content)| add(&mut sets, id, content));
            for (protocol, endpoint) in elements.hairpins() {
                add(&mut sets, &ElementId::hairpin(protocol, endpoint), &Content::default());
            }
        }
        let mut layouts = Layouts::new(Features { masquerade_mark: 0x4000, ..Features::default() });
        let layout = layouts.get(settings, &needs);
        let mut rules = Batch::new();
        write_rules(&mut rules, layout);
        Model { rules, texts: text::rules(layout), sets }
    }

    pub(super) fn trace(&self, packet: &Packet) -> Vec<TraceOutcome> {
        let mut look_up = |set: &str, bytes: &[u8]| {
            if set.starts_with("__set") {
                return [6, 17, 132].contains(&bytes[0]).then(|| Found::Data(Vec::new()));
            }
            let holds = |(key, end, _): &&(Vec<u8>, Option<Vec<u8>>, Vec<u8>)| match end {
                None => bytes.starts_with(key),
                Some(end) => {
                    let at = key.len() - if key.len() > 16 { 16 } else { 4 };
                    let same = bytes[..at] == key[..at];
                    same && key[at..] <= bytes[at..key.len()] && bytes[at..key.len()] <= end[at..]
                }
            };
            self.sets.get(set)?.iter().find(holds).map(|(_, _, data)| Found::Data(data.clone()))
        };
        PacketTrace::new(&self.rules, &self.texts, (&mut look_up, &is_local)).trace(packet)
    }
}

fn addresses(family: IpFamily) -> Vec<IpAddr> {
    vec![Place::Node.address(family), pod_side_address(family)]
}

#[rstest]
fn every_packet_goes_where_the_table_says(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    let mut failures = Vec::new();
    let mut walked = 0;
    for case in cases() {
        let settings = settings(&case, family);
        let model = Model::new(&settings, &snapshot(&case), &addresses(family));
        for packet in case.packets.iter().filter(|packet| packet.families.contains(&family)) {
            let verdict = match packet.to {
                // Node ports do not answer on loopback addresses in this mode.
                Target::NodePortOnLocalhost => Verdict::Untouched,
                _ => packet.verdict.clone(),
            };
            let fate = Fate::of(model.trace(&sent(&case, packet, family)));
            walked += 1;
            if !fate.is_within(&verdict, 1e-4) {
                failures.push(format!(
                    "{}: {:?} to {:?}: {fate:?}, not {verdict:?}",
                    case.name, packet.from, packet.to
                ));
            }
        }
    }
    assert!(walked > 50, "{walked}");
    assert!(failures.is_empty(), "{} of {walked}:\n{}", failures.len(), failures.join("\n"));
}

/// Every number of endpoints is fair, by the chances of the rules themselves.
#[test]
fn endpoints_have_even_shares() {
    use crate::testing::cluster;
    let settings = FamilySettings::new(IpFamily::V4);
    for endpoints in (1..=40).chain([100, 250, 1000]) {
        let (mut tracker, _) = crate::testing::pass::start(IpFamily::V4);
        tracker.fold(cluster::service(0));
        tracker.fold(cluster::slice(0, endpoints));
        let model = Model::new(&settings, tracker.snapshot(), &[]);
        let plan = Plan::new(&settings, tracker.snapshot(), Scope::All);
        let service = plan.services().next().unwrap();
        let port = &service.ports[0];
        let packet = Packet {
            interface: Some("eth0".to_owned()),
            source: [10, 128, 0, 9].into(),
            destination: (port.frontends.cluster_ip.unwrap(), port.frontends.port).into(),
            protocol: port.name.protocol,
        };
        let mut shares: BTreeMap<_, f64> = BTreeMap::new();
        for outcome in model.trace(&packet) {
            match outcome.verdict {
                Verdict::Served(endpoint) => {
                    *shares.entry(endpoint.address).or_default() += outcome.chance;
                }
                other => panic!("{other:?}"),
            }
        }
        let even = 1.0 / f64::from(endpoints);
        assert_eq!(shares.len(), endpoints as usize);
        for (endpoint, share) in shares {
            let off = (share / even - 1.0).abs();
            assert!(off < 0.01, "{endpoint} of {endpoints} has {share} and not {even}");
        }
    }
}

#[test]
fn node_ports_on_all_addresses_leave_out_loopback() {
    let case = cases().into_iter().find(|case| case.shape.exposed && case.flags.is_empty()).unwrap();
    let mut settings = settings(&case, IpFamily::V4);
    settings.node_port_addresses = NodePortAddresses::All;
    let model = Model::new(&settings, &snapshot(&case), &addresses(IpFamily::V4));
    let to = |address: IpAddr| Packet {
        interface: None,
        source: address,
        destination: (address, case.node_port()).into(),
        protocol: case.shape.protocol,
    };
    let served = |address| !Fate::of(model.trace(&to(address))).served.is_empty();
    assert!(served(Place::Node.address(IpFamily::V4)));
    assert!(!served([127, 0, 0, 1].into()));
    assert!(model.sets.contains_key(&*SetId::NodePortIps.name()));
}

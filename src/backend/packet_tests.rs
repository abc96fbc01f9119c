//! What the tracers of all backends share: the packet table's objects as a plan sees them, and what
//! becomes of its packets.

use super::packet_trace::{Packet as Sent, TraceOutcome, TracedEndpoint};
use crate::model::{Cidr, IpFamily, NodeFacts, Snapshot, WatchEvent};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses};
use crate::state::Tracker;
use crate::testing::packets::{
    CLUSTER_CIDR, NODE_NAME, Packet, PacketCase, Place, ServedBy, Source, Verdict, pod_side_address,
};
use crate::watch::convert;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Where a packet can end up, and with which chance.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// By endpoint: its share, and whether the source was masqueraded.
    pub(super) served: BTreeMap<Place, (f64, Vec<bool>)>,
    pub(super) rejected: f64,
    pub(super) dropped: f64,
    pub(super) untouched: f64,
    /// The lists that remember the client afterwards.
    pub(super) remembered_in: Vec<String>,
}

impl Fate {
    pub(super) fn of(outcomes: Vec<TraceOutcome>) -> Fate {
        let mut fate = Fate::default();
        for outcome in outcomes {
            match outcome.verdict {
                Verdict::Refused => fate.rejected += outcome.chance,
                Verdict::Dropped => fate.dropped += outcome.chance,
                Verdict::Untouched => fate.untouched += outcome.chance,
                Verdict::Served(TracedEndpoint { address, masqueraded }) => {
                    let family = IpFamily::of(address.ip());
                    let at = |place: &Place| place.address(family) == address.ip();
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
pub(super) fn is_local(address: IpAddr) -> bool {
    let family = IpFamily::of(address);
    address.is_loopback() || [Place::Node.address(family), pod_side_address(family)].contains(&address)
}

/// The picture that a case's objects make.
pub(super) fn snapshot(case: &PacketCase) -> Snapshot {
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
    tracker.allot();
    tracker.snapshot().clone()
}

fn cidrs(text: &str) -> Vec<Cidr> {
    text.split(',').map(|cidr| cidr.parse().unwrap()).collect()
}

/// What a case's flags come to in one family.
pub(super) fn settings(case: &PacketCase, family: IpFamily) -> FamilySettings {
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

/// A packet of the table, in a family.
pub(super) fn sent(case: &PacketCase, packet: &Packet, family: IpFamily) -> Sent {
    let flow = case.flow(packet, family);
    Sent {
        interface: flow.interface.map(str::to_owned),
        source: flow.source,
        destination: flow.destination,
        protocol: flow.protocol,
    }
}

impl Fate {
    /// Whether this is what the table says.
    pub(super) fn is(&self, verdict: &Verdict<ServedBy>) -> bool {
        self.is_within(verdict, 1e-6)
    }

    /// The same, with shares that may be off by `tolerance`.
    pub(super) fn is_within(&self, verdict: &Verdict<ServedBy>, tolerance: f64) -> bool {
        let certain = |chance: f64| (chance - 1.0).abs() < 1e-6;
        match verdict {
            Verdict::Refused => certain(self.rejected),
            Verdict::Dropped => certain(self.dropped),
            Verdict::Untouched => certain(self.untouched),
            Verdict::Served(ServedBy { by, source, .. }) => {
                let masqueraded = *source == Source::Masqueraded;
                let even = 1.0 / by.len() as f64;
                self.served.len() == by.len()
                    && by.iter().all(|place| {
                        self.served.get(place).is_some_and(|(share, sources)| {
                            (share - even).abs() < tolerance && sources.iter().all(|was| *was == masqueraded)
                        })
                    })
            }
        }
    }
}

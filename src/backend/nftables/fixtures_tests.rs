//! The fixtures' decisions: kube-proxy's own nftables rules, loaded with nft and read from the kernel, and ours are asked with
//! the same packets.

use super::names::table;
use super::packet_trace::{Found, PacketTrace, Says};
use super::trace::Model;
use crate::backend::TracedEndpoint;
use crate::backend::packet_tests::is_local;
use crate::backend::packet_trace::{Packet, TraceOutcome};
use crate::kernel::fresh_netns::{in_fresh_netns, run};
use crate::model::Verdict;
use crate::model::{Cidr, IpFamily, NodeFacts, Protocol};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses, Plan, Scope};
use crate::state::Tracker;
use crate::testing::packets::{NODE_NAME, Place, pod_side_address};
use crate::watch::manifests::{self, ManifestOptions};
use nftables_rs::{Batch, Data, Part, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Elements of one set, as the kernel lists them.
#[derive(Debug, Default)]
struct Elements {
    key_len: usize,
    /// By key: whether it is what follows a range, and what it leads to.
    by_key: BTreeMap<Vec<u8>, (bool, Found)>,
    is_interval: bool,
}

/// kube-proxy's table.
struct Reference {
    rules: Batch,
    sets: BTreeMap<String, Elements>,
}

impl Reference {
    fn load(file: &Path, family: IpFamily) -> Reference {
        run(&format!("nft -f {}", file.display()));
        let mut nft = nftables_rs::Nftables::open().unwrap();
        let mut rules = Batch::new();
        nft.rules(table(family), None, &mut |part| {
            if let Part::Item(rule) = part {
                let expressions: Vec<_> = rule.expressions().map(Result::unwrap).collect();
                let (table, chain, comment) = (rule.table, rule.chain, rule.comment);
                rules.add_rule(&Rule { table, chain, expressions: &expressions, comment });
            }
        })
        .unwrap();
        let mut sets: BTreeMap<String, Elements> = BTreeMap::new();
        nft.sets(table(family), &mut |part| {
            if let Part::Item(set) = part {
                let is_interval = set.flags.contains(nftables_rs::SetFlags::INTERVAL);
                let key_len = set.key_len as usize;
                sets.insert(set.name.to_owned(), Elements { key_len, is_interval, ..Elements::default() });
            }
        })
        .unwrap();
        for (name, elements) in &mut sets {
            nft.elements(table(family), name, &mut |part| {
                let Part::Item(listed) = part else { return };
                let found = match listed.element.data {
                    None => Found::Data(Vec::new()),
                    Some(Data::Value(bytes)) => Found::Data(bytes.to_vec()),
                    Some(Data::Verdict(verdict)) => Found::Says(Says::of(verdict)),
                };
                elements.by_key.insert(listed.element.key.to_vec(), (listed.element.is_range_end, found));
            })
            .unwrap();
        }
        Reference { rules, sets }
    }

    fn trace(&self, packet: &Packet) -> Vec<TraceOutcome> {
        let mut look_up = |set: &str, bytes: &[u8]| {
            let elements = &self.sets[set];
            let key = &bytes[..elements.key_len];
            match elements.is_interval {
                false => elements.by_key.get(key).map(|(_, found)| found.clone()),
                true => {
                    let (_, (is_end, found)) = elements.by_key.range(..=key.to_vec()).next_back()?;
                    (!is_end).then(|| found.clone())
                }
            }
        };
        PacketTrace::new(&self.rules, &BTreeMap::new(), (&mut look_up, &is_local)).trace(packet)
    }
}

/// What can become of a packet, in words.
fn decisions(outcomes: Vec<TraceOutcome>) -> BTreeSet<String> {
    let mut decisions = BTreeSet::new();
    for outcome in outcomes.into_iter().filter(|outcome| outcome.chance > 0.0) {
        decisions.insert(match outcome.verdict {
            Verdict::Served(TracedEndpoint { address, masqueraded }) => {
                format!("{address} masqueraded: {masqueraded}")
            }
            other => format!("{other:?}"),
        });
    }
    decisions
}

fn settings(flags: &str, family: IpFamily) -> FamilySettings {
    let mut settings = FamilySettings::new(family);
    settings.node_ip = Place::Node.address(family);
    let of_family = |text: &str| {
        let cidrs = text.split(',').filter_map(|text| text.parse::<Cidr>().ok());
        cidrs.filter(|cidr| IpFamily::of_cidr(cidr) == family).collect::<Vec<_>>()
    };
    let pods = of_family("10.128.0.0/16,fd00:128::/32");
    settings.detector = pods.first().copied().map(LocalDetector::Cidr);
    settings.node_port_addresses = NodePortAddresses::Within(vec![settings.node_ip.into()]);
    for flag in flags.split_whitespace() {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("--masquerade-all", _) => settings.masquerade_all = true,
            ("--nodeport-addresses", value) => {
                settings.node_port_addresses = NodePortAddresses::of_family(&of_family(value), family);
            }
            ("--detect-local-mode", "NodeCIDR") => {
                let node = of_family("10.128.0.0/24,fd00:128::/64");
                settings.detector = node.first().copied().map(LocalDetector::Cidr);
            }
            ("--pod-interface-name-prefix", value) => {
                settings.detector = Some(LocalDetector::InterfacePrefix(value.to_owned()));
            }
            ("--detect-local-mode" | "--cluster-cidr", _) => {}
            (other, _) => panic!("{other} is not known"),
        }
    }
    settings
}

/// Who may send: pods of the node, one of them an endpoint; the node; hosts outside, some within source ranges.
fn clients(family: IpFamily) -> Vec<(Option<&'static str>, IpAddr)> {
    let place = |place: Place| (place.interface(), place.address(family));
    let mut clients: Vec<_> = [
        Place::Local1,
        Place::Local2,
        Place::LocalClient,
        Place::Remote1,
        Place::Node,
        Place::Outside,
        Place::OutsideFriend,
    ]
    .map(place)
    .into();
    let ranged: &[&str] = match family {
        IpFamily::V4 => &["203.0.113.5", "198.51.100.7", "198.51.100.8", "192.0.2.10"],
        IpFamily::V6 => &["2001:db8::7"],
    };
    clients.extend(ranged.iter().map(|text| (Some("eth0"), text.parse().unwrap())));
    clients.push((None, pod_side_address(family)));
    clients
}

#[test]
fn the_fixtures_are_decided_as_by_kube_proxys_own_rules() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/fixtures"));
    let (mut asked, mut failures, mut situations) = (0, Vec::new(), 0);
    for file in std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()) {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        if file.extension().is_none_or(|it| it != "yaml") || name == "nodes" {
            continue;
        }
        situations += 1;
        let text = std::fs::read_to_string(&file).unwrap();
        let flags =
            text.lines().next().and_then(|line| line.strip_prefix("# extra flags:")).unwrap_or_default();
        let options = ManifestOptions { node_name: NODE_NAME.to_owned(), ..ManifestOptions::default() };
        let paths = [file.clone(), folder.join("nodes.yaml")];
        let (events, _) = manifests::load(&paths, &options).unwrap();
        let node = NodeFacts { name: NODE_NAME.into(), ..NodeFacts::default() };
        let mut tracker = Tracker::new(node, i64::MAX);
        events.into_iter().for_each(|event| tracker.fold(event));
        tracker.allot();
        for (family, ip) in [(IpFamily::V4, "ip"), (IpFamily::V6, "ip6")] {
            let rules = folder.join(format!("expected/nftables/{name}.{ip}.nft"));
            let settings = settings(flags, family);
            let reference = in_fresh_netns(|| Reference::load(&rules, family));
            let own = [Place::Node.address(family), pod_side_address(family)];
            let ours = Model::new(&settings, tracker.snapshot(), &own);
            for packet in packets(&settings, &tracker, family) {
                asked += 1;
                let (wanted, found) = (decisions(reference.trace(&packet)), decisions(ours.trace(&packet)));
                if wanted != found {
                    failures.push(format!("{name} {packet:?}:\n  kube-proxy {wanted:?}\n  ours {found:?}"));
                }
            }
        }
    }
    assert!(situations > 30 && asked > 1000, "{situations} situations, {asked} packets");
    assert!(failures.is_empty(), "{} of {asked}:\n{}", failures.len(), failures.join("\n"));
}

/// Packets to every destination of every Service, and beside them.
fn packets(settings: &FamilySettings, tracker: &Tracker, family: IpFamily) -> Vec<Packet> {
    let mut packets = Vec::new();
    for service in Plan::new(settings, tracker.snapshot(), Scope::All).services() {
        for port in &service.ports {
            let (frontends, protocol) = (&port.frontends, port.name.protocol);
            let addresses = frontends.cluster_ip.iter().chain(&frontends.external_ips);
            let mut to: Vec<(IpAddr, u16)> = addresses
                .chain(&frontends.load_balancer_ips)
                .flat_map(|address| [(*address, frontends.port), (*address, 9)])
                .collect();
            let node = [Place::Node.address(family), pod_side_address(family)];
            to.extend(frontends.node_port.iter().flat_map(|port| node.map(|address| (address, *port))));
            for (interface, source) in clients(family) {
                for destination in &to {
                    for protocol in [protocol, Protocol::Udp] {
                        packets.push(Packet {
                            interface: interface.map(str::to_owned),
                            source,
                            destination: (*destination).into(),
                            protocol,
                        });
                    }
                }
            }
        }
    }
    packets
}

//! The packet table against what IPVS mode renders: each packet is walked through rules, sets and
//! virtual servers, and must end where the table says, but for what IPVS cannot do.

use super::desired::{Baseline, Desired};
use super::diff::Changes;
use super::inspect::{Surroundings, trace};
use super::render::{RenderContext, node_port_ips};
use super::restore_input::{self, Features};
use crate::backend::KernelObject;
use crate::backend::packet_tests::{Fate, sent, settings, snapshot};
use crate::backend::packet_trace::TraceOutcome;
use crate::model::{Frontend, IpFamily, IpvsScheduler, RealServer, ServerOperation};
use crate::plan::{Plan, Scope};
use crate::testing::packets::{Packet, PacketCase, Place, Verdict, cases, pod_side_address};
use rstest::rstest;
use std::collections::{BTreeMap, BTreeSet};

/// A node on which a case's objects are programmed.
struct Node {
    chains: Vec<KernelObject>,
    around: Surroundings,
    servers: BTreeMap<Frontend, Vec<RealServer>>,
}

impl Node {
    fn of(case: &PacketCase, family: IpFamily) -> Node {
        let (snapshot, settings) = (snapshot(case), settings(case, family));
        let features = Features {
            masquerade_mark: 0x4000,
            random_fully: true,
            scheduler: IpvsScheduler::as_upstream("rr"),
            exclude: Vec::new(),
            upstream_compat: false,
            node_name: "node-0".into(),
        };
        let own = BTreeSet::from([Place::Node.address(family), pod_side_address(family)]);
        let context = RenderContext {
            upstream_compat: false,
            scheduler: &features.scheduler,
            missing_schedulers: &BTreeSet::new(),
            node_addresses: &own,
            node_port_ips: node_port_ips(&settings, &own),
        };
        let plan = Plan::new(&settings, &snapshot, Scope::All);
        let changes = Changes::between(&Baseline::default(), &Desired::of(&plan, &context), &features);
        let mut around = Surroundings { addresses: own.clone(), ..Surroundings::default() };
        around.addresses.extend(&changes.add_addresses);
        for (id, entries) in &changes.add_entries {
            around.sets.insert(id.name(family), entries.iter().copied().collect());
        }
        Node { chains: chains(changes.rules.as_deref().unwrap()), around, servers: servers(&changes.servers) }
    }

    fn trace(&self, case: &PacketCase, packet: &Packet, family: IpFamily) -> Vec<TraceOutcome> {
        let sent = sent(case, packet, family);
        let (to, protocol) = (sent.destination, sent.protocol);
        let at = Frontend { address: to.ip(), port: to.port(), protocol };
        let server = self.servers.get(&at).map(|reals| (at, reals.clone()));
        trace(&self.chains, &Surroundings { server, ..self.around.clone() }, &sent)
    }
}

fn chains(rules: &str) -> Vec<KernelObject> {
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut table = "";
    for line in rules.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            chains.entry(format!("{table} {chain}")).or_default().push(rule.to_owned());
        }
    }
    for jump in restore_input::jumps(false) {
        // Each was inserted at the top, so the last one stands first.
        chains.entry(format!("{} {}", jump.table, jump.from)).or_default().insert(0, jump.arguments());
    }
    let object = |(name, lines)| KernelObject { name, lines, is_shared: true };
    chains.into_iter().map(object).collect()
}

fn servers(operations: &[ServerOperation]) -> BTreeMap<Frontend, Vec<RealServer>> {
    let mut servers: BTreeMap<Frontend, Vec<RealServer>> = BTreeMap::new();
    for operation in operations {
        let reals = servers.entry(*operation.frontend()).or_default();
        if let ServerOperation::AddReal(_, real) = operation {
            reals.push(*real);
        }
    }
    servers
}

#[rstest]
fn every_packet_of_the_table_ends_where_it_should(#[values(IpFamily::V4, IpFamily::V6)] family: IpFamily) {
    let mut failures = Vec::new();
    for case in cases() {
        let node = Node::of(&case, family);
        for packet in case.packets.iter().filter(|packet| packet.families.contains(&family)) {
            let (fate, wanted) = (Fate::of(node.trace(&case, packet, family)), case.verdict_in_ipvs(packet));
            if !fate.is(&wanted) {
                let route = format!("{} -> {:?}", packet.from.name(), packet.to);
                failures.push(format!("{}: {route}: wanted {wanted:?}, found {fate:?}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The tracer must be able to fail: a virtual or a real server too few shows.
#[test]
fn a_missing_server_is_noticed() {
    let family = IpFamily::V4;
    let case = cases().into_iter().find(|case| case.shape.endpoints.len() > 1).unwrap();
    let packet = &case.packets[0];
    let mut node = Node::of(&case, family);
    assert!(Fate::of(node.trace(&case, packet, family)).is(&packet.verdict));
    for reals in node.servers.values_mut() {
        reals.truncate(1);
    }
    assert!(!Fate::of(node.trace(&case, packet, family)).is(&packet.verdict));
    node.servers.values_mut().for_each(Vec::clear);
    assert!(Fate::of(node.trace(&case, packet, family)).is(&Verdict::Refused));
    node.servers.clear();
    let outcomes = node.trace(&case, packet, family);
    assert!(outcomes[0].rules.iter().any(|rule| rule.contains("KUBE-IPVS-FILTER")), "{outcomes:?}");
}

//! The packet table against the rendered rules: each packet is walked through them, with every
//! branch a random choice can take, and must end where the table says.

use crate::backend::iptables::{Features, base, chains, inspect, render_inputs};
use crate::backend::packet_tests::{Fate, is_local, sent, settings, snapshot};
use crate::backend::packet_trace::{Packet as Sent, PacketTrace, Tables};
use crate::kernel::iptables::Flavor;
use crate::model::{IpFamily, Protocol};
use crate::plan::{FamilySettings, Plan, Scope};
use crate::testing::packets::{PacketCase, Place, ServedBy, Share, Verdict, cases, pod_side_address};
use rstest::rstest;

fn trace(tables: &Tables, packet: &Sent, remembered: Option<&str>) -> Fate {
    Fate::of(PacketTrace { tables, is_local: &is_local }.trace(packet, remembered))
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
    for jump in chains::JUMPS.iter().rev() {
        // Without node ports on localhost, KUBE-FIREWALL is kubelet's and may be empty.
        if !jump.is_shared_with_kubelet() || base::keeps_firewall(settings) {
            tables.add(jump.table, jump.from, std::iter::once(jump.arguments().as_str()));
        }
    }
    tables
}

fn tables(case: &PacketCase, family: IpFamily, flavor: Flavor, features: &Features) -> Tables {
    let (snapshot, settings) = (snapshot(case), settings(case, family));
    let addresses = [Place::Node.address(family), pod_side_address(family)];
    let plan = Plan::new(&settings, &snapshot, Scope::All).with_local_addresses(&addresses);
    load(&render_inputs(&plan, features, flavor), &settings)
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
fn forgetful(tables: &Tables, packet: &Sent, verdict: &Verdict<ServedBy>, first: &Fate) -> Option<String> {
    let Verdict::Served(ServedBy { by, share: Share::Sticky | Share::StickyUntilTimeout, .. }) = verdict
    else {
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
            let decided = outcomes.iter().all(|it| it.verdict == Verdict::Untouched || !it.rules.is_empty());
            assert!(decided, "{}: a verdict without a rule", case.name);
            let fate = Fate::of(outcomes);
            assert!(fate.is(&packet.verdict), "{}: wanted {:?}, found {fate:?}", case.name, packet.verdict);
        }
    }
}

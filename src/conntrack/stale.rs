//! Which flows are stale. Pure: plans and flows go in, a verdict comes out.
//!
//! A flow to a frontend is stale when none of the frontend's serving endpoints answers it. A flow
//! to what never was a frontend while we ran is left alone; so a restart, which remembers nothing,
//! cannot take a good flow for a stale one.

use crate::kernel::conntrack::{Destination, Flow};
use crate::model::{IpFamily, ServiceName};
use crate::plan::{Plan, Scope, TrackedPort};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What one successful pass put in force.
#[derive(Clone, Debug)]
pub struct Update {
    /// The family.
    pub family: IpFamily,
    /// The pass looked at every Service: those not named here are gone.
    all: bool,
    services: Vec<(ServiceName, Vec<TrackedPort>)>,
}

impl Update {
    /// What a plan says of flows.
    #[must_use]
    pub fn of(plan: &Plan<'_>) -> Update {
        let all = matches!(plan.scope(), Scope::All);
        let services = plan.names_in_scope().map(|name| (name.clone(), plan.tracked(name)));
        // Most Services have nothing but TCP; of those only a change may matter.
        let services = services.filter(|(_, ports)| !(all && ports.is_empty())).collect();
        Update { family: plan.family(), all, services }
    }
}

/// The endpoints that may answer a frontend, and whose frontend it is.
#[derive(Clone, Debug)]
struct Expected {
    owner: ServiceName,
    serving: Arc<[SocketAddr]>,
}

/// One family's frontends that are in force, and those of which flows may have become stale.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    expected: HashMap<Destination, Expected>,
    services: HashMap<ServiceName, Vec<Destination>>,
    suspects: HashSet<Destination>,
}

/// A frontend to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) to: Destination,
    /// The endpoints that may still answer it.
    pub(super) serving: Arc<[SocketAddr]>,
}

impl Ledger {
    /// Takes over what is in force now.
    pub(super) fn fold(&mut self, update: Update) {
        let named: HashSet<&ServiceName> = update.services.iter().map(|(name, _)| name).collect();
        let gone: Vec<ServiceName> = match update.all {
            true => self.services.keys().filter(|name| !named.contains(name)).cloned().collect(),
            false => Vec::new(),
        };
        let mut before: HashMap<Destination, Arc<[SocketAddr]>> = HashMap::new();
        for name in gone.iter().chain(named.iter().copied()) {
            self.remove(name, &mut before);
        }
        // A full pass looks at everything: it comes after a start, a failure, or an hour.
        if update.all {
            self.suspects.extend(self.expected.keys());
        }
        for (name, ports) in update.services {
            self.insert(&name, &ports, &mut before, update.all);
        }
        // What is left has no owner any more.
        self.suspects.extend(before.into_keys());
    }

    fn remove(&mut self, name: &ServiceName, before: &mut HashMap<Destination, Arc<[SocketAddr]>>) {
        for to in self.services.remove(name).unwrap_or_default() {
            if self.expected.get(&to).is_some_and(|expected| expected.owner == *name)
                && let Some(expected) = self.expected.remove(&to)
            {
                before.insert(to, expected.serving);
            }
        }
    }

    fn insert(
        &mut self,
        name: &ServiceName,
        ports: &[TrackedPort],
        before: &mut HashMap<Destination, Arc<[SocketAddr]>>,
        all: bool,
    ) {
        let mut mine = Vec::new();
        for port in ports {
            let serving: Arc<[SocketAddr]> = port.serving.as_slice().into();
            for to in destinations(port) {
                let suspicious = match before.remove(&to) {
                    // Flows from before there was an endpoint bypass the new ones.
                    Some(old) if old.is_empty() => !serving.is_empty(),
                    Some(old) => old.iter().any(|endpoint| !serving.contains(endpoint)),
                    None => true,
                };
                if all || suspicious {
                    self.suspects.insert(to);
                }
                let expected = Expected { owner: name.clone(), serving: Arc::clone(&serving) };
                self.expected.insert(to, expected);
                mine.push(to);
            }
        }
        if !mine.is_empty() {
            self.services.insert(name.clone(), mine);
        }
    }

    /// The frontends to look at, as they are now; they are no suspects any more.
    pub(super) fn take_suspects(&mut self) -> Vec<Suspect> {
        let suspects = std::mem::take(&mut self.suspects).into_iter();
        suspects
            .map(|to| {
                let serving = self.expected.get(&to).map(|expected| Arc::clone(&expected.serving));
                Suspect { to, serving: serving.unwrap_or_default() }
            })
            .collect()
    }

    /// Makes frontends suspects again: looking at them failed.
    pub(super) fn put_back(&mut self, suspects: &[Suspect]) {
        self.suspects.extend(suspects.iter().map(|suspect| suspect.to));
    }

    /// Whether an address and port is a frontend of its own, whatever node port has the same number.
    fn has_address(&self, flow: &Flow) -> bool {
        self.expected.contains_key(&Destination::of(flow)[0])
    }

    /// Whether a flow to a suspect is to be deleted. `local` are the node's addresses: node ports
    /// answer on them only, and what goes elsewhere is not ours.
    pub(super) fn is_stale(&self, suspect: &Suspect, flow: &Flow, local: &[IpAddr]) -> bool {
        if !suspect.to.covers(flow) {
            return false;
        }
        if suspect.to.address.is_none() && (!local.contains(&flow.destination.ip()) || self.has_address(flow))
        {
            return false;
        }
        if suspect.serving.is_empty() {
            // Only what we translated: the port may belong to a process of the node by now.
            return flow.reply_source != flow.destination;
        }
        !suspect.serving.contains(&flow.reply_source)
    }
}

fn destinations(port: &TrackedPort) -> impl Iterator<Item = Destination> {
    let protocol = port.protocol;
    let to = move |address: Option<IpAddr>, port: u16| Destination { protocol, address, port: Some(port) };
    let addresses = port.addresses.iter().map(move |address| to(Some(address.ip()), address.port()));
    addresses.chain(port.node_port.map(|port| to(None, port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    const LOCAL: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 200, 0, 11))];

    fn port(node_port: u16, serving: &[&str]) -> TrackedPort {
        TrackedPort {
            protocol: Protocol::Udp,
            addresses: vec!["10.96.0.10:53".parse().unwrap()],
            node_port: (node_port != 0).then_some(node_port),
            serving: serving.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn update(all: bool, services: &[(&str, TrackedPort)]) -> Update {
        let named = |(name, port): &(&str, TrackedPort)| (ServiceName::new("kube", name), vec![port.clone()]);
        Update { family: IpFamily::V4, all, services: services.iter().map(named).collect() }
    }

    fn gone(name: &str) -> Update {
        Update { services: vec![(ServiceName::new("kube", name), Vec::new())], ..update(false, &[]) }
    }

    fn flow(to: &str, answered_by: &str) -> Flow {
        Flow {
            protocol: Protocol::Udp,
            source: "10.128.0.9:40000".parse().unwrap(),
            destination: to.parse().unwrap(),
            reply_source: answered_by.parse().unwrap(),
            id: 1,
        }
    }

    /// Whether anything that is suspected now makes the flow stale.
    fn stale(ledger: &mut Ledger, to: &str, answered_by: &str) -> bool {
        let suspects = ledger.take_suspects();
        let verdict = suspects.iter().any(|suspect| ledger.is_stale(suspect, &flow(to, answered_by), &LOCAL));
        ledger.put_back(&suspects);
        verdict
    }

    fn settled(first: Update) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.fold(first);
        ledger.take_suspects();
        ledger
    }

    #[test]
    fn a_start_keeps_good_flows_and_finds_those_of_endpoints_that_are_gone() {
        let mut ledger = Ledger::default();
        ledger.fold(update(true, &[("dns", port(30053, &["10.128.0.5:53", "10.128.0.6:53"]))]));
        assert!(!stale(&mut ledger, "10.96.0.10:53", "10.128.0.5:53"));
        assert!(!stale(&mut ledger, "10.200.0.11:30053", "10.128.0.6:53"));
        assert!(stale(&mut ledger, "10.96.0.10:53", "10.128.0.7:53"));
        assert!(stale(&mut ledger, "10.200.0.11:30053", "10.128.0.7:53"));
        assert!(stale(&mut ledger, "10.96.0.10:53", "10.96.0.10:53"), "from before the Service was there");
        assert!(!stale(&mut ledger, "192.0.2.7:53", "10.128.0.7:53"), "no frontend of ours");
        assert!(!stale(&mut ledger, "192.0.2.7:30053", "192.0.2.7:30053"), "not to this node");
    }

    #[test]
    fn an_endpoint_that_goes_takes_its_flows_along_and_an_added_one_costs_no_look() {
        let mut ledger = settled(update(true, &[("dns", port(0, &["10.128.0.5:53", "10.128.0.6:53"]))]));
        let three = ["10.128.0.5:53", "10.128.0.6:53", "10.128.0.7:53"];
        ledger.fold(update(false, &[("dns", port(0, &three))]));
        assert_eq!(ledger.take_suspects(), []);
        ledger.fold(update(false, &[("dns", port(0, &three[1..]))]));
        assert!(stale(&mut ledger, "10.96.0.10:53", "10.128.0.5:53"));
        assert!(!stale(&mut ledger, "10.96.0.10:53", "10.128.0.6:53"));
    }

    #[test]
    fn a_service_scaled_to_zero_keeps_no_translated_flow() {
        let mut ledger = settled(update(true, &[("dns", port(30053, &["10.128.0.5:53"]))]));
        ledger.fold(update(false, &[("dns", port(30053, &[]))]));
        assert!(stale(&mut ledger, "10.96.0.10:53", "10.128.0.5:53"));
        assert!(stale(&mut ledger, "10.200.0.11:30053", "10.128.0.5:53"));
        assert!(!stale(&mut ledger, "10.200.0.11:30053", "10.200.0.11:30053"), "a process of the node");
    }

    #[test]
    fn the_old_node_port_loses_its_flows_unless_another_service_has_it_now() {
        let serving = ["10.128.0.5:53"];
        let mut ledger = settled(update(true, &[("dns", port(30053, &serving))]));
        ledger.fold(update(false, &[("dns", port(30054, &serving))]));
        assert!(stale(&mut ledger, "10.200.0.11:30053", "10.128.0.5:53"));
        assert!(!stale(&mut ledger, "10.200.0.11:30054", "10.128.0.5:53"));

        let mut other = port(30053, &["10.128.0.8:53"]);
        other.addresses = vec!["10.96.0.20:53".parse().unwrap()];
        ledger.fold(update(false, &[("other", other)]));
        assert!(!stale(&mut ledger, "10.200.0.11:30053", "10.128.0.8:53"));
        assert!(stale(&mut ledger, "10.200.0.11:30053", "10.128.0.5:53"));
    }

    #[test]
    fn a_changed_target_port_makes_flows_to_the_old_one_stale() {
        let mut ledger = settled(update(true, &[("dns", port(0, &["10.128.0.5:53"]))]));
        ledger.fold(update(false, &[("dns", port(0, &["10.128.0.5:5353"]))]));
        assert!(stale(&mut ledger, "10.96.0.10:53", "10.128.0.5:53"));
        assert!(!stale(&mut ledger, "10.96.0.10:53", "10.128.0.5:5353"));
    }

    #[test]
    fn a_service_that_is_gone_is_forgotten_with_its_flows() {
        for end in [gone("dns"), update(true, &[])] {
            let mut ledger = settled(update(true, &[("dns", port(0, &["10.128.0.5:53"]))]));
            ledger.fold(end);
            assert!(stale(&mut ledger, "10.96.0.10:53", "10.128.0.5:53"));
            assert!(ledger.expected.is_empty() && ledger.services.is_empty());
        }
    }

    #[test]
    fn an_address_that_is_a_frontend_goes_before_the_node_port_of_that_number() {
        let mut on_node = port(0, &["10.128.0.8:53"]);
        on_node.addresses = vec!["10.200.0.11:30053".parse().unwrap()];
        let services = [("dns", port(30053, &["10.128.0.5:53"])), ("external", on_node)];
        let mut ledger = Ledger::default();
        ledger.fold(update(true, &services));
        assert!(!stale(&mut ledger, "10.200.0.11:30053", "10.128.0.8:53"));
        assert!(stale(&mut ledger, "10.200.0.11:30053", "10.128.0.5:53"));
    }
}

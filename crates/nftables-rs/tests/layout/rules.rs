//! Rules, chain by chain.

use super::*;
use nftables_rs::{
    Comparison, DynsetOperation, Element, FibFlags, Rule, Set, SetFlags, SetRef, SetType, TypeOf, Verdict,
};
use std::time::Duration;

/// Hands out rules, and the anonymous sets that they need.
struct Rules<'a, 'v> {
    layout: &'a Layout,
    visit: &'v mut dyn FnMut(Item<'_>),
    anonymous: u32,
}

impl<'a> Rules<'a, '_> {
    fn add(&mut self, chain: &str, steps: Steps<'_>) {
        self.add_with(chain, steps, None);
    }

    fn add_with(&mut self, chain: &str, steps: Steps<'_>, comment: Option<&str>) {
        let rule = Rule { table: self.layout.table, chain, expressions: &steps.list, comment };
        (self.visit)(Item::Rule(&rule));
    }

    /// Which of TCP, UDP and SCTP it is; nft wants to know before it takes a port from connection tracking.
    fn protocol(&mut self) -> Steps<'a> {
        self.anonymous += 1;
        let id = u32::try_from(self.layout.sets.len()).unwrap() + self.anonymous;
        let set = SetRef { name: "__set%d", id: Some(id) };
        let of_three = Set {
            id,
            flags: SetFlags::ANONYMOUS | SetFlags::CONSTANT,
            size: Some(3),
            ..Set::new(self.layout.table, set.name, SetType::TypeOf(&[TypeOf::L4Protocol]))
        };
        (self.visit)(Item::Set(&of_three));
        (self.visit)(Item::Elements(set, &[&[6], &[17], &[132]].map(|key| Element::new(key))));
        self.layout.steps().match_in(set, &[Part::Protocol])
    }
}

impl Layout {
    pub fn visit_rules(&self, visit: &mut dyn FnMut(Item<'_>)) {
        let mut rules = Rules { layout: self, visit, anonymous: 0 };
        self.checks(&mut rules);
        self.masquerading(&mut rules);
        for kind in &self.kinds {
            self.picks(&mut rules, kind);
        }
        self.external_local(&mut rules, EXTERNAL_LOCAL, &self.kinds[2]);
        self.external_local(&mut rules, EXTERNAL_LOCAL_NODE_PORT, &self.kinds[3]);
        self.node_ports(&mut rules);
        self.services(&mut rules);
        if self.settings.has_affinity_rules {
            self.affinity_learn(&mut rules);
            self.affinity_guards(&mut rules);
        }
        self.base(&mut rules);
    }

    fn checks(&self, rules: &mut Rules<'_, '_>) {
        let refused = self
            .steps()
            .match_in(self.set("firewall-services"), SERVICE)
            .match_no_source(self.set("firewall-sources"))
            .verdict(Verdict::Drop);
        rules.add(FIREWALL_CHECK, refused);
        for (chain, destination, drop, reject) in [
            (SERVICE_ENDPOINTS_CHECK, SERVICE, "drop-services", "reject-services"),
            (NODE_PORT_ENDPOINTS_CHECK, NODE_PORT, "drop-nodeports", "reject-nodeports"),
        ] {
            rules.add(chain, self.steps().match_in(self.set(drop), destination).verdict(Verdict::Drop));
            rules.add(chain, self.steps().match_in(self.set(reject), destination).reject());
        }
        let invalid = self.steps().match_in(self.set("cluster-ips"), &[Part::Destination]).reject();
        let comment = Some("Reject traffic to invalid ports of ClusterIPs");
        rules.add_with(CLUSTER_IPS_CHECK, invalid, comment);
        for prefix in &self.settings.service_prefixes {
            let unallocated = self
                .steps()
                .match_prefix(Part::Destination, *prefix, Comparison::EQUAL)
                .verdict(Verdict::Drop);
            let comment = Some("Drop traffic to unallocated ClusterIPs");
            rules.add_with(CLUSTER_IPS_CHECK, unallocated, comment);
        }
    }

    fn masquerading(&self, rules: &mut Rules<'_, '_>) {
        let marked = self.steps().unmark(self.settings.masquerade_mark).masquerade();
        rules.add(MASQUERADING, marked);
        let hairpin = [Part::Source, Part::Destination, Part::Protocol, Part::Port];
        let to_itself =
            self.steps().match_translated().match_in(self.set("hairpin-connections"), &hairpin).masquerade();
        rules.add(MASQUERADING, to_itself);
    }

    /// The chains of a kind's classes.
    fn picks(&self, rules: &mut Rules<'_, '_>, kind: &Kind) {
        for (&class, chain) in self.settings.classes.iter().zip(&kind.chains) {
            // Both numbers below 2 exist.
            let tries = if class == 2 { 1 } else { self.settings.tries };
            let below = std::iter::repeat_n(class, tries).chain(below_half(class));
            for modulus in below {
                rules.add(chain, self.endpoint(kind, modulus));
            }
        }
    }

    /// Translates to the endpoint of a random number.
    fn endpoint(&self, kind: &Kind, modulus: u32) -> Steps<'_> {
        let mut key = kind.destination.to_vec();
        key.push(Part::Random(modulus));
        self.steps().translate_by(self.set(kind.map), &key)
    }

    /// To the endpoint that the client had before; else to the chain of the destination's class, or to its only
    /// endpoint.
    fn to_endpoints(&self, rules: &mut Rules<'_, '_>, chain: &str, kind: &Kind) {
        rules.add(chain, self.steps().translate_by(self.set(kind.affinity), kind.client));
        for (set, pick) in kind.sets.iter().zip(&kind.chains) {
            let steps = self.steps().match_in(self.set(set), kind.destination).verdict(Verdict::Goto(pick));
            rules.add(chain, steps);
        }
        rules.add(chain, self.endpoint(kind, 1));
    }

    /// Policy Local: pods and the node itself go back to the cluster-wide endpoints. The rest gets those of this node;
    /// without any, the packet stays as it is and is dropped.
    fn external_local(&self, rules: &mut Rules<'_, '_>, chain: &str, kind: &Kind) {
        for steps in self.local_steps() {
            let comment = Some("short-circuit pod traffic");
            rules.add_with(chain, steps.verdict(Verdict::Return), comment);
        }
        let from_node = self
            .steps()
            .match_local(FibFlags::SOURCE)
            .mark(self.settings.masquerade_mark)
            .verdict(Verdict::Return);
        rules.add_with(chain, from_node, Some("short-circuit and masquerade local traffic"));
        self.to_endpoints(rules, chain, kind);
        rules.add(chain, self.steps().verdict(Verdict::Accept));
    }

    /// Matches traffic from this node's pods: one rule for each prefix.
    fn local_steps(&self) -> Vec<Steps<'_>> {
        match &self.settings.local {
            Local::Prefixes(prefixes) => prefixes
                .iter()
                .map(|prefix| self.steps().match_prefix(Part::Source, *prefix, Comparison::EQUAL))
                .collect(),
            Local::Interfaces(name) => vec![self.steps().match_interface(name, Comparison::EQUAL)],
            Local::Unknown => Vec::new(),
        }
    }

    fn node_ports(&self, rules: &mut Rules<'_, '_>) {
        let kind = &self.kinds[1];
        let masquerade = self
            .steps()
            .match_in(self.set("masquerade-nodeports"), NODE_PORT)
            .mark(self.settings.masquerade_mark);
        rules.add(NODE_PORTS, masquerade);
        let local = self
            .steps()
            .match_in(self.set("local-policy-nodeports"), NODE_PORT)
            .verdict(Verdict::Jump(EXTERNAL_LOCAL_NODE_PORT));
        rules.add(NODE_PORTS, local);
        self.to_endpoints(rules, NODE_PORTS, kind);
    }

    fn services(&self, rules: &mut Rules<'_, '_>) {
        let cluster_ip = self.steps().match_in(self.set("cluster-ips"), &[Part::Destination]);
        if let Some(from_outside) = self.match_outside(cluster_ip) {
            let comment = Some("masquerade clusterIP traffic from outside cluster");
            rules.add_with(SERVICES, from_outside.mark(self.settings.masquerade_mark), comment);
        }
        let masquerade = self
            .steps()
            .match_in(self.set("masquerade-services"), SERVICE)
            .mark(self.settings.masquerade_mark);
        rules.add(SERVICES, masquerade);
        let local = self
            .steps()
            .match_in(self.set("local-policy-services"), SERVICE)
            .verdict(Verdict::Jump(EXTERNAL_LOCAL));
        rules.add(SERVICES, local);
        self.to_endpoints(rules, SERVICES, &self.kinds[0]);
        let to_node = self.match_node_ports(self.steps()).verdict(Verdict::Goto(NODE_PORTS));
        rules.add(SERVICES, to_node);
    }

    /// `None` if no traffic to ClusterIPs is masqueraded.
    fn match_outside<'a>(&self, steps: Steps<'a>) -> Option<Steps<'a>> {
        if self.settings.masquerade_all {
            return Some(steps);
        }
        match &self.settings.local {
            Local::Prefixes(prefixes) => Some(prefixes.iter().fold(steps, |steps, prefix| {
                steps.match_prefix(Part::Source, *prefix, Comparison::NOT_EQUAL)
            })),
            Local::Interfaces(name) => Some(steps.match_interface(name, Comparison::NOT_EQUAL)),
            Local::Unknown => None,
        }
    }

    fn match_node_ports<'a>(&'a self, steps: Steps<'a>) -> Steps<'a> {
        match self.settings.node_ports {
            NodePorts::AtAddresses => steps.match_in(self.set("nodeport-ips"), &[Part::Destination]),
            NodePorts::AtAll => steps.match_local(FibFlags::DESTINATION).match_not_loopback(),
        }
    }

    /// Remembers which endpoint a client was given.
    fn affinity_learn(&self, rules: &mut Rules<'_, '_>) {
        let sets = |timeout: &u32| {
            let services = self.set(&format!("affinity-services-{timeout}"));
            (
                services,
                self.set(&format!("affinity-nodeports-{timeout}")),
                Duration::from_secs((*timeout).into()),
            )
        };
        let timeouts: Vec<_> = self.settings.affinity_timeouts.iter().map(sets).collect();
        for &(services, node_ports, _) in &timeouts {
            let guarded = rules
                .protocol()
                .match_in(services, ORIGINAL_SERVICE)
                .verdict(Verdict::Jump(AFFINITY_SERVICES));
            rules.add(AFFINITY_LEARN, guarded);
            let guarded = self
                .match_original_node_port(rules.protocol(), node_ports)
                .verdict(Verdict::Jump(AFFINITY_NODE_PORTS));
            rules.add(AFFINITY_LEARN, guarded);
        }
        for &(services, node_ports, timeout) in &timeouts {
            let learnt = rules.protocol().match_in(services, ORIGINAL_SERVICE).learn(
                DynsetOperation::UPDATE,
                self.set("service-affinity"),
                ORIGINAL_SERVICE,
                Some(timeout),
            );
            rules.add(AFFINITY_LEARN, learnt);
            let learnt = self.match_original_node_port(rules.protocol(), node_ports).learn(
                DynsetOperation::UPDATE,
                self.set("nodeport-affinity"),
                ORIGINAL_NODE_PORT,
                Some(timeout),
            );
            rules.add(AFFINITY_LEARN, learnt);
        }
    }

    fn match_original_node_port<'a>(&'a self, steps: Steps<'a>, node_ports: SetRef<'a>) -> Steps<'a> {
        steps
            .match_in(node_ports, ORIGINAL_NODE_PORT)
            .match_in(self.set("nodeport-ips"), &[Part::OriginalDestination])
    }

    /// What was learnt of an endpoint that is gone is forgotten, and the packet dropped: the client tries again.
    fn affinity_guards(&self, rules: &mut Rules<'_, '_>) {
        for (chain, destination, endpoints, clients) in [
            (AFFINITY_SERVICES, ORIGINAL_SERVICE, "affinity-endpoints", "service-affinity"),
            (AFFINITY_NODE_PORTS, ORIGINAL_NODE_PORT, "affinity-nodeport-endpoints", "nodeport-affinity"),
        ] {
            let endpoint: Vec<_> = destination.iter().chain(ENDPOINT).copied().collect();
            let forgotten = rules
                .protocol()
                .match_not_in(self.set(endpoints), &endpoint)
                .learn(DynsetOperation::DELETE, self.set(clients), destination, None)
                .verdict(Verdict::Drop);
            rules.add(chain, forgotten);
        }
    }

    /// What the chains on hooks do.
    fn base(&self, rules: &mut Rules<'_, '_>) {
        let match_new = || self.steps().match_new();
        for &(name, kind, hook, priority) in BASE_CHAINS {
            let jumps: Vec<Steps<'_>> = match (kind, hook, priority) {
                ("nat", Hook::Postrouting, _) => vec![self.steps().verdict(Verdict::Jump(MASQUERADING))],
                ("nat", ..) => vec![self.steps().verdict(Verdict::Jump(SERVICES))],
                (_, _, -110) => vec![match_new().verdict(Verdict::Jump(FIREWALL_CHECK))],
                (_, _, -90) => vec![match_new().match_translated().verdict(Verdict::Jump(AFFINITY_LEARN))],
                (_, Hook::Input, _) => vec![
                    self.match_node_address(match_new()).verdict(Verdict::Jump(NODE_PORT_ENDPOINTS_CHECK)),
                    match_new().verdict(Verdict::Jump(SERVICE_ENDPOINTS_CHECK)),
                ],
                _ => vec![
                    match_new().verdict(Verdict::Jump(SERVICE_ENDPOINTS_CHECK)),
                    match_new().verdict(Verdict::Jump(CLUSTER_IPS_CHECK)),
                ],
            };
            jumps.into_iter().for_each(|steps| rules.add(name, steps));
        }
    }

    fn match_node_address<'a>(&'a self, steps: Steps<'a>) -> Steps<'a> {
        match self.settings.node_ports {
            NodePorts::AtAddresses => steps.match_in(self.set("nodeport-ips"), &[Part::Destination]),
            NodePorts::AtAll => steps.match_not_loopback(),
        }
    }
}

/// Half a class, and 1 unless that is the half.
fn below_half(class: u32) -> impl Iterator<Item = u32> {
    let half = class / 2;
    [half, 1].into_iter().take(if half == 1 { 1 } else { 2 })
}

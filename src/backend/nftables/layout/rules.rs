//! Rules, chain by chain.

use super::steps::{ENDPOINT, KeyPart, Steps};
use super::*;
use nftables_rs::{Comparison, DynsetOperation, FibFlags, SetFlags, SetType, TypeOf, Verdict};
use std::time::Duration;

/// How often a class's chain draws before it settles for the lower half, whose endpoints then have at most 0.4 % more.
const TRIES: usize = 8;

const SERVICE: &[KeyPart] = &[KeyPart::Destination, KeyPart::Protocol, KeyPart::Port];
const NODE_PORT: &[KeyPart] = &[KeyPart::Protocol, KeyPart::Port];
const CLIENT_OF_SERVICE: &[KeyPart] =
    &[KeyPart::Source, KeyPart::Destination, KeyPart::Protocol, KeyPart::Port];
const CLIENT_OF_NODE_PORT: &[KeyPart] = &[KeyPart::Source, KeyPart::Protocol, KeyPart::Port];
/// After the translation, what the destination was is known to connection tracking.
const ORIGINAL_SERVICE: &[KeyPart] =
    &[KeyPart::OriginalDestination, KeyPart::Protocol, KeyPart::OriginalPort];
const ORIGINAL_NODE_PORT: &[KeyPart] = &[KeyPart::Protocol, KeyPart::OriginalPort];
const HAIRPIN: &[KeyPart] = &[KeyPart::Source, KeyPart::Destination, KeyPart::Protocol, KeyPart::Port];

/// A fixed set, to look things up in.
fn set(id: SetId) -> SetRef<'static> {
    match id.name() {
        std::borrow::Cow::Borrowed(name) => name.into(),
        // Only those of classes and timeouts have made names, and these stand in the layout.
        std::borrow::Cow::Owned(_) => "".into(),
    }
}

/// What a packet's destination is looked up by.
fn destination(plane: Plane) -> &'static [KeyPart] {
    match plane {
        Plane::Services => SERVICE,
        Plane::NodePorts => NODE_PORT,
    }
}

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
        (self.visit)(Item::Rule(&rule, &steps.text));
    }

    /// Which of TCP, UDP and SCTP it is, for a rule of a chain; nft wants to know before it takes a port from connection tracking.
    fn protocol(&mut self, chain: &str) -> Steps<'a> {
        self.anonymous += 1;
        let of_three = SetRef { name: "__set%d", id: Some(self.anonymous) };
        let set = Set {
            id: self.anonymous,
            flags: SetFlags::ANONYMOUS | SetFlags::CONSTANT,
            size: Some(3),
            ..Set::new(self.layout.table, of_three.name, SetType::TypeOf(&[TypeOf::L4Protocol]))
        };
        let protocols = [&[6], &[17], &[132]].map(|key| Element::new(key));
        (self.visit)(Item::Anonymous(chain, &set, of_three, &protocols));
        self.layout.steps().match_protocols(of_three)
    }
}

impl Layout {
    fn steps(&self) -> Steps<'static> {
        Steps::new(self.settings.family)
    }

    pub(super) fn visit_rules(&self, visit: &mut dyn FnMut(Item<'_>)) {
        let mut rules = Rules { layout: self, visit, anonymous: 0 };
        self.checks(&mut rules);
        self.masquerading(&mut rules);
        Kind::ALL.into_iter().for_each(|kind| self.pick_rules(&mut rules, kind));
        self.external_local(&mut rules, EXTERNAL_LOCAL, Plane::Services);
        self.external_local(&mut rules, EXTERNAL_LOCAL_NODE_PORT, Plane::NodePorts);
        self.node_ports(&mut rules);
        self.services(&mut rules);
        if !self.timeouts.is_empty() {
            self.affinity_learn(&mut rules);
            self.affinity_guards(&mut rules);
        }
        if self.settings.counts {
            self.count_connections(&mut rules);
        }
        self.base(&mut rules);
    }

    fn checks(&self, rules: &mut Rules<'_, '_>) {
        let refused = self
            .steps()
            .match_in(set(SetId::Firewall), SERVICE)
            .match_no_source(set(SetId::FirewallSources))
            .verdict(Verdict::Drop);
        rules.add(FIREWALL_CHECK, refused);
        for (chain, plane) in
            [(SERVICE_ENDPOINTS_CHECK, Plane::Services), (NODE_PORT_ENDPOINTS_CHECK, Plane::NodePorts)]
        {
            let none_here = self.steps().match_in(set(SetId::Drop(plane)), destination(plane));
            rules.add(chain, none_here.verdict(Verdict::Drop));
            let none = self.steps().match_in(set(SetId::Reject(plane)), destination(plane));
            rules.add(chain, none.reject());
        }
        let invalid = self.steps().match_in(set(SetId::ClusterIps), &[KeyPart::Destination]).reject();
        let comment = Some("Reject traffic to invalid ports of ClusterIPs");
        rules.add_with(CLUSTER_IPS_CHECK, invalid, comment);
        for cidr in &self.settings.service_cidrs {
            let unallocated = self
                .steps()
                .match_prefix(KeyPart::Destination, *cidr, Comparison::EQUAL)
                .verdict(Verdict::Drop);
            let comment = Some("Drop traffic to unallocated ClusterIPs");
            rules.add_with(CLUSTER_IPS_CHECK, unallocated, comment);
        }
    }

    fn masquerading(&self, rules: &mut Rules<'_, '_>) {
        let marked = self.steps().unmark(self.settings.masquerade_mark).masquerade();
        rules.add(MASQUERADING, marked);
        let to_itself = self.steps().match_translated().match_in(set(SetId::Hairpin), HAIRPIN).masquerade();
        rules.add(MASQUERADING, to_itself);
    }

    /// The chains of a kind's classes.
    fn pick_rules(&self, rules: &mut Rules<'_, '_>, kind: Kind) {
        for (class, _, chain) in self.picks(kind) {
            let half = class.size() / 2;
            // Both numbers below 2 exist.
            let tries = if half == 1 { 1 } else { TRIES };
            let below = std::iter::repeat_n(class.size(), tries).chain((half > 1).then_some(half));
            for modulus in below.chain([1]) {
                rules.add(chain, self.endpoint(kind, modulus));
            }
        }
    }

    /// Translates to the endpoint of a random number.
    fn endpoint(&self, kind: Kind, modulus: u32) -> Steps<'static> {
        let mut key = destination(kind.plane).to_vec();
        key.push(KeyPart::Random(modulus));
        self.steps().translate_by(set(SetId::Endpoints(kind)), &key)
    }

    /// Leads to an endpoint: the one that the client has, one of many, or the only one.
    fn to_endpoints(&self, rules: &mut Rules<'_, '_>, chain: &str, kind: Kind) {
        let client = match kind.plane {
            Plane::Services => CLIENT_OF_SERVICE,
            Plane::NodePorts => CLIENT_OF_NODE_PORT,
        };
        rules.add(chain, self.steps().translate_by(set(SetId::Clients(kind.plane)), client));
        for (_, class_set, pick) in self.picks(kind) {
            let of_class = self.steps().match_in(class_set.into(), destination(kind.plane));
            rules.add(chain, of_class.verdict(Verdict::Goto(pick)));
        }
        rules.add(chain, self.endpoint(kind, 1));
    }

    /// Policy Local: pods and the node itself go back to the cluster-wide endpoints. The rest gets those of this node;
    /// without any, the packet stays as it is and is dropped.
    fn external_local(&self, rules: &mut Rules<'_, '_>, chain: &str, plane: Plane) {
        if let Some(detector) = &self.settings.detector {
            let comment = Some("short-circuit pod traffic");
            let from_pod = self.steps().match_detected(detector, Comparison::EQUAL);
            rules.add_with(chain, from_pod.verdict(Verdict::Return), comment);
        }
        let from_node = self
            .steps()
            .match_local(FibFlags::SOURCE)
            .mark(self.settings.masquerade_mark)
            .verdict(Verdict::Return);
        rules.add_with(chain, from_node, Some("short-circuit and masquerade local traffic"));
        self.to_endpoints(rules, chain, Kind { plane, is_local: true });
        rules.add(chain, self.steps().verdict(Verdict::Accept));
    }

    /// Sends external traffic to its endpoints by its policy.
    fn external(&self, rules: &mut Rules<'_, '_>, chain: &str, (plane, local): (Plane, &str)) {
        let masquerade = self
            .steps()
            .match_in(set(SetId::Masquerade(plane)), destination(plane))
            .mark(self.settings.masquerade_mark);
        rules.add(chain, masquerade);
        let is_local = self.steps().match_in(set(SetId::LocalPolicy(plane)), destination(plane));
        rules.add(chain, is_local.verdict(Verdict::Jump(local)));
        self.to_endpoints(rules, chain, Kind { plane, is_local: false });
    }

    fn node_ports(&self, rules: &mut Rules<'_, '_>) {
        self.external(rules, NODE_PORTS, (Plane::NodePorts, EXTERNAL_LOCAL_NODE_PORT));
    }

    fn services(&self, rules: &mut Rules<'_, '_>) {
        let cluster_ip = self.steps().match_in(set(SetId::ClusterIps), &[KeyPart::Destination]);
        let mark = self.settings.masquerade_mark;
        match &self.settings.detector {
            _ if self.settings.masquerade_all => {
                let comment = Some("masquerade all clusterIP traffic");
                rules.add_with(SERVICES, cluster_ip.mark(mark), comment);
            }
            Some(detector) => {
                let comment = Some("masquerade clusterIP traffic from outside cluster");
                let from_outside = cluster_ip.match_detected(detector, Comparison::NOT_EQUAL);
                rules.add_with(SERVICES, from_outside.mark(mark), comment);
            }
            None => {}
        }
        self.external(rules, SERVICES, (Plane::Services, EXTERNAL_LOCAL));
        let to_node = match self.settings.node_ports {
            NodePorts::AtAddresses => self.steps().match_in(set(SetId::NodePortIps), &[KeyPart::Destination]),
            NodePorts::AtAll => self.steps().match_local(FibFlags::DESTINATION).match_not_loopback(),
        };
        rules.add(SERVICES, to_node.verdict(Verdict::Goto(NODE_PORTS)));
    }

    /// Remembers which endpoint a client was given.
    fn affinity_learn(&self, rules: &mut Rules<'_, '_>) {
        for timeout in &self.timeouts {
            let service =
                rules.protocol(AFFINITY_LEARN).match_in(timeout.services.as_str().into(), ORIGINAL_SERVICE);
            rules.add(AFFINITY_LEARN, service.verdict(Verdict::Jump(AFFINITY_SERVICES)));
            let node_port = match_original_node_port(rules.protocol(AFFINITY_LEARN), &timeout.node_ports);
            rules.add(AFFINITY_LEARN, node_port.verdict(Verdict::Jump(AFFINITY_NODE_PORTS)));
        }
        for timeout in &self.timeouts {
            let seconds = Some(Duration::from_secs(timeout.seconds.into()));
            let service =
                rules.protocol(AFFINITY_LEARN).match_in(timeout.services.as_str().into(), ORIGINAL_SERVICE);
            let clients = set(SetId::Clients(Plane::Services));
            let learnt = service.learn(DynsetOperation::UPDATE, clients, ORIGINAL_SERVICE, seconds);
            rules.add(AFFINITY_LEARN, learnt);
            let node_port = match_original_node_port(rules.protocol(AFFINITY_LEARN), &timeout.node_ports);
            let clients = set(SetId::Clients(Plane::NodePorts));
            let learnt = node_port.learn(DynsetOperation::UPDATE, clients, ORIGINAL_NODE_PORT, seconds);
            rules.add(AFFINITY_LEARN, learnt);
        }
    }

    /// What was learnt of an endpoint that is gone is forgotten, and the packet dropped: the client tries again.
    fn affinity_guards(&self, rules: &mut Rules<'_, '_>) {
        for (chain, original, plane) in [
            (AFFINITY_SERVICES, ORIGINAL_SERVICE, Plane::Services),
            (AFFINITY_NODE_PORTS, ORIGINAL_NODE_PORT, Plane::NodePorts),
        ] {
            let endpoint: Vec<_> = original.iter().chain(ENDPOINT).copied().collect();
            let forgotten = rules
                .protocol(chain)
                .match_not_in(set(SetId::AffinityEndpoints(plane)), &endpoint)
                .learn(DynsetOperation::DELETE, set(SetId::Clients(plane)), original, None)
                .verdict(Verdict::Drop);
            rules.add(chain, forgotten);
        }
    }

    /// Counts a connection where it leads from its destination to its endpoint: the sets of these count what they match.
    fn count_connections(&self, rules: &mut Rules<'_, '_>) {
        let endpoint_of = |original: &[KeyPart]| original.iter().chain(ENDPOINT).copied().collect::<Vec<_>>();
        let counted = |plane| set(SetId::Counted(plane));
        let service = rules
            .protocol(COUNT_CONNECTIONS)
            .match_in(counted(Plane::Services), &endpoint_of(ORIGINAL_SERVICE));
        rules.add(COUNT_CONNECTIONS, service);
        let node_port = rules
            .protocol(COUNT_CONNECTIONS)
            .match_in(set(SetId::NodePortIps), &[KeyPart::OriginalDestination])
            .match_in(counted(Plane::NodePorts), &endpoint_of(ORIGINAL_NODE_PORT));
        rules.add(COUNT_CONNECTIONS, node_port);
    }

    /// What the chains on hooks do.
    fn base(&self, rules: &mut Rules<'_, '_>) {
        let match_new = || self.steps().match_new();
        let count = || self.steps().match_translated().verdict(Verdict::Jump(COUNT_CONNECTIONS));
        for (name, kind, hook, priority) in self.base_chains() {
            let jumps = match (kind, hook, priority) {
                ("nat", Hook::Postrouting, _) => {
                    let masquerade = self.steps().verdict(Verdict::Jump(MASQUERADING));
                    self.settings.counts.then(count).into_iter().chain([masquerade]).collect()
                }
                ("nat", Hook::Input, _) => vec![count()],
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

    fn match_node_address(&self, steps: Steps<'static>) -> Steps<'static> {
        match self.settings.node_ports {
            NodePorts::AtAddresses => steps.match_in(set(SetId::NodePortIps), &[KeyPart::Destination]),
            NodePorts::AtAll => steps.match_not_loopback(),
        }
    }
}

fn match_original_node_port<'a>(steps: Steps<'a>, node_ports: &'a str) -> Steps<'a> {
    steps
        .match_in(node_ports.into(), ORIGINAL_NODE_PORT)
        .match_in(set(SetId::NodePortIps), &[KeyPart::OriginalDestination])
}

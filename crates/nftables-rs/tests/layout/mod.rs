//! The structure of a service proxy's ruleset: sets, maps, chains and rules that depend on settings only. Services
//! are nothing but elements.
//!
//! A test fixture, written so that a dataplane can carry it over: [`Layout::visit`] hands out one object after the
//! other, in the order in which they can be written. How it works:
//!
//! - A destination (address, protocol, port; or protocol and node port) with its number from 0 leads to an endpoint, in one
//!   map for each [`Kind`] of destination.
//! - Destinations with 2, 3 to 4, 5 to 8, … endpoints are in the set of their class. A class's chain draws a number below
//!   the class's size until there is an endpoint of that number; then one below half of it, which always exists; then
//!   0. Destinations with one endpoint are in no class.
//! - Affinity is learnt after the translation: the client and the destination lead to the endpoint.

use nftables_rs::{BaseChain, Batch, Chain, Element, Family, Hook, Rule, Set, SetRef, Table, TableName};
use std::net::IpAddr;

mod rules;
mod services;
mod sets;
mod steps;

use sets::SetSpec;
use steps::ENDPOINT;
pub use steps::{Part, Steps};

/// A prefix of an address.
pub type Prefix = (IpAddr, u8);

/// Which traffic comes from pods of this node.
#[derive(Clone, Debug)]
pub enum Local {
    /// That from these addresses; one rule for each.
    Prefixes(Vec<Prefix>),
    /// That from interfaces whose names begin so.
    Interfaces(&'static str),
    /// It cannot be told.
    Unknown,
}

/// Where node ports are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// At the addresses in `nodeport-ips`.
    AtAddresses,
    /// At all addresses of the node but those of the loopback.
    AtAll,
}

/// All that the structure depends on.
#[derive(Clone, Debug)]
pub struct Settings {
    pub family: Family,
    /// The bit of the mark that says "masquerade".
    pub masquerade_mark: u32,
    pub masquerade_all: bool,
    pub local: Local,
    /// Where Services' own addresses come from; one rule for each.
    pub service_prefixes: Vec<Prefix>,
    pub node_ports: NodePorts,
    /// The size of each class, from 2 upwards, each twice the one before.
    pub classes: Vec<u32>,
    /// How often a class's chain draws before it settles for the lower half.
    pub tries: usize,
    /// Each timeout that affinity is used with, in seconds.
    pub affinity_timeouts: Vec<u32>,
    /// Whether there are the rules of affinity. Those of IPv6 list, but nft 1.0.6 cannot load its own listing.
    pub has_affinity_rules: bool,
}

impl Settings {
    /// As in the recorded rulesets: two classes, three tries.
    pub fn example(family: Family) -> Settings {
        let (pods, services) = match family {
            Family::Ipv6 => (("fd00:10:244::", 56), ("fd00:10:96::", 112)),
            _ => (("10.244.0.0", 16), ("10.96.0.0", 16)),
        };
        let prefix = |(address, len): (&str, u8)| (address.parse().unwrap(), len);
        Settings {
            family,
            masquerade_mark: 0x4000,
            masquerade_all: false,
            local: Local::Prefixes(vec![prefix(pods)]),
            service_prefixes: vec![prefix(services)],
            node_ports: NodePorts::AtAddresses,
            classes: vec![2, 4],
            tries: 3,
            affinity_timeouts: vec![10_800],
            has_affinity_rules: family == Family::Ipv4,
        }
    }
}

/// One object of the structure.
#[derive(Debug)]
pub enum Item<'a> {
    Table(&'a Table<'a>),
    Chain(&'a Chain<'a>),
    Set(&'a Set<'a>),
    Rule(&'a Rule<'a>),
    /// Elements that belong to the structure: those of anonymous sets.
    Elements(SetRef<'a>, &'a [Element<'a>]),
}

/// One of the four kinds of destinations that have endpoints.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What a packet's destination is looked up by.
    destination: &'static [Part],
    /// What a client of the destination is known by.
    client: &'static [Part],
    /// Where clients are known.
    affinity: &'static str,
    /// Destination and number lead to an endpoint.
    pub map: &'static str,
    /// One for each class.
    pub sets: Vec<String>,
    chains: Vec<String>,
}

const SERVICE: &[Part] = &[Part::Destination, Part::Protocol, Part::Port];
const NODE_PORT: &[Part] = &[Part::Protocol, Part::Port];
const CLIENT_OF_SERVICE: &[Part] = &[Part::Source, Part::Destination, Part::Protocol, Part::Port];
const CLIENT_OF_NODE_PORT: &[Part] = &[Part::Source, Part::Protocol, Part::Port];
/// After the translation, what the destination was is known to connection tracking.
const ORIGINAL_SERVICE: &[Part] = &[Part::OriginalDestination, Part::Protocol, Part::OriginalPort];
const ORIGINAL_NODE_PORT: &[Part] = &[Part::Protocol, Part::OriginalPort];

const FIREWALL_CHECK: &str = "firewall-check";
const SERVICE_ENDPOINTS_CHECK: &str = "service-endpoints-check";
const NODE_PORT_ENDPOINTS_CHECK: &str = "nodeport-endpoints-check";
const CLUSTER_IPS_CHECK: &str = "cluster-ips-check";
const MASQUERADING: &str = "masquerading";
const EXTERNAL_LOCAL: &str = "external-local";
const EXTERNAL_LOCAL_NODE_PORT: &str = "external-local-nodeport";
const NODE_PORTS: &str = "nodeports";
const SERVICES: &str = "services";
const AFFINITY_LEARN: &str = "affinity-learn";
const AFFINITY_SERVICES: &str = "affinity-services";
const AFFINITY_NODE_PORTS: &str = "affinity-nodeports";

/// Chains that hang on hooks: name, kind, hook, priority.
const BASE_CHAINS: &[(&str, &str, Hook, i32)] = &[
    ("filter-prerouting-pre-dnat", "filter", Hook::Prerouting, -110),
    ("filter-output-pre-dnat", "filter", Hook::Output, -110),
    ("nat-prerouting", "nat", Hook::Prerouting, -100),
    ("nat-output", "nat", Hook::Output, -100),
    ("filter-prerouting-post-dnat", "filter", Hook::Prerouting, -90),
    ("filter-output-post-dnat", "filter", Hook::Output, -90),
    ("filter-input", "filter", Hook::Input, 0),
    ("filter-forward", "filter", Hook::Forward, 0),
    ("filter-output", "filter", Hook::Output, 0),
    ("nat-postrouting", "nat", Hook::Postrouting, 100),
];

/// The structure for one family.
#[derive(Clone, Debug)]
pub struct Layout {
    settings: Settings,
    pub table: TableName<'static>,
    sets: Vec<SetSpec>,
    pub kinds: [Kind; 4],
}

impl Layout {
    pub fn new(settings: Settings) -> Layout {
        let names = |prefix: &str| settings.classes.iter().map(|class| format!("{prefix}-{class}")).collect();
        let of_service = |map, sets, chains| Kind {
            destination: SERVICE,
            client: CLIENT_OF_SERVICE,
            affinity: "service-affinity",
            map,
            sets: names(sets),
            chains: names(chains),
        };
        let of_node_port = |map, sets, chains| Kind {
            destination: NODE_PORT,
            client: CLIENT_OF_NODE_PORT,
            affinity: "nodeport-affinity",
            ..of_service(map, sets, chains)
        };
        let kinds = [
            of_service("service-endpoints", "services", "pick"),
            of_node_port("nodeport-endpoints", "nodeports", "nodeport-pick"),
            of_service("local-service-endpoints", "local-services", "local-pick"),
            of_node_port("local-nodeport-endpoints", "local-nodeports", "local-nodeport-pick"),
        ];
        let table = TableName::new(settings.family, "kube-proxy");
        let sets = sets::specs(&settings, &kinds);
        Layout { settings, table, sets, kinds }
    }

    /// Hands out the whole structure.
    pub fn visit(&self, visit: &mut dyn FnMut(Item<'_>)) {
        visit(Item::Table(&Table { comment: Some("rules for kube-proxy"), ..Table::new(self.table) }));
        self.visit_chains(visit);
        self.visit_sets(visit);
        self.visit_rules(visit);
    }

    /// Writes the whole structure.
    pub fn write(&self, batch: &mut Batch) {
        self.visit(&mut |item| match item {
            Item::Table(table) => batch.add_table(table),
            Item::Chain(chain) => batch.add_chain(chain),
            Item::Set(set) => batch.add_set(set),
            Item::Rule(rule) => batch.add_rule(rule),
            Item::Elements(set, elements) => {
                let mut list = batch.add_elements(self.table, set);
                elements.iter().for_each(|element| {
                    list.push(element);
                });
            }
        });
    }

    fn steps(&self) -> Steps<'_> {
        Steps::new(self.settings.family)
    }

    /// The number that a set has within the transaction that makes it.
    fn set(&self, name: &str) -> SetRef<'_> {
        let index = self.sets.iter().position(|set| set.name == name).expect("a set of the layout");
        SetRef { name: &self.sets[index].name, id: u32::try_from(index + 1).ok() }
    }

    fn visit_chains(&self, visit: &mut dyn FnMut(Item<'_>)) {
        let checks = [
            FIREWALL_CHECK,
            SERVICE_ENDPOINTS_CHECK,
            NODE_PORT_ENDPOINTS_CHECK,
            CLUSTER_IPS_CHECK,
            MASQUERADING,
        ];
        let picks = self.kinds.iter().flat_map(|kind| kind.chains.iter().map(String::as_str));
        let dispatch = [
            EXTERNAL_LOCAL,
            EXTERNAL_LOCAL_NODE_PORT,
            NODE_PORTS,
            SERVICES,
            AFFINITY_LEARN,
            AFFINITY_SERVICES,
            AFFINITY_NODE_PORTS,
        ];
        for name in checks.into_iter().chain(picks).chain(dispatch) {
            visit(Item::Chain(&Chain::new(self.table, name)));
        }
        for &(name, kind, hook, priority) in BASE_CHAINS {
            let base = Some(BaseChain { kind, hook, priority, policy: None });
            visit(Item::Chain(&Chain { base, ..Chain::new(self.table, name) }));
        }
    }
}

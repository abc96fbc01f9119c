//! The structure: sets, maps, chains and rules. It depends on settings, on the largest Service and on the timeouts of affinity
//! that are in use; Services are nothing but elements.
//!
//! - A destination with its number from 0 leads to an endpoint, in one map for each [`Kind`] of list.
//! - Destinations with 2, 3 to 4, 5 to 8, … endpoints are in the set of their [`Class`]. A class's chain draws a number
//!   below the class's size until there is an endpoint of that number; then one below half of it, which always exists;
//!   then 0. Destinations with one endpoint are in no class.
//! - Affinity is learnt after the translation: the client and the destination lead to the endpoint.

use super::Features;
use super::names::*;
use super::ownership::OWNED;
use crate::model::{Cidr, IpFamily};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses};
use nftables_rs::{BaseChain, Chain, Element, Hook, Rule, Set, SetRef, Table, TableFlags, TableName};

mod rules;
mod sets;
mod steps;

pub(super) use sets::is_compatible;

/// Where node ports are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodePorts {
    /// At the addresses in `nodeport-ips`.
    AtAddresses,
    /// At all addresses of the node but those of the loopback.
    AtAll,
}

/// All that the structure depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) family: IpFamily,
    /// The bit of the mark that says "masquerade".
    pub(super) masquerade_mark: u32,
    pub(super) masquerade_all: bool,
    pub(super) detector: Option<LocalDetector>,
    /// Where ClusterIPs come from; one rule for each.
    pub(super) service_cidrs: Vec<Cidr>,
    pub(super) node_ports: NodePorts,
    /// The class of the largest list.
    pub(super) largest: Class,
    /// Connections are counted by destination and endpoint.
    pub(super) counts: bool,
    /// The table is this process's alone.
    pub(super) owns_table: bool,
    /// Each timeout of affinity that is in use, in seconds, sorted. Without any there are no rules of affinity.
    pub(super) timeouts: Vec<u32>,
}

impl Settings {
    pub(super) fn new(
        family: &FamilySettings,
        features: &Features,
        (largest, timeouts): (Class, Vec<u32>),
    ) -> Self {
        Settings {
            family: family.family,
            masquerade_mark: features.masquerade_mark,
            masquerade_all: family.masquerade_all,
            detector: family.detector.clone(),
            service_cidrs: family.service_cidrs.clone(),
            node_ports: match family.node_port_addresses {
                NodePortAddresses::All => NodePorts::AtAll,
                NodePortAddresses::Within(_) => NodePorts::AtAddresses,
            },
            largest,
            counts: features.counts,
            owns_table: features.owns_table,
            timeouts,
        }
    }
}

/// One object of the structure.
#[derive(Debug)]
pub(super) enum Item<'a> {
    Chain(&'a Chain<'a>),
    /// A rule, and how nft writes it, without its comment.
    Rule(&'a Rule<'a>, &'a str),
    /// An anonymous set that the next rule of a chain needs, and its elements.
    Anonymous(&'a str, &'a Set<'a>, SetRef<'a>, &'a [Element<'a>]),
}

/// Chains that hang on hooks: name, kind, hook, priority.
pub(super) const BASE_CHAINS: [(&str, &str, Hook, i32); 10] = [
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

/// Where connections are counted, there is one more: what is delivered on this node passes no postrouting.
const COUNTING_CHAIN: (&str, &str, Hook, i32) = ("nat-input", "nat", Hook::Input, 100);

/// Chains to jump to.
const CHECK_CHAINS: [&str; 5] =
    [FIREWALL_CHECK, SERVICE_ENDPOINTS_CHECK, NODE_PORT_ENDPOINTS_CHECK, CLUSTER_IPS_CHECK, MASQUERADING];
const DISPATCH_CHAINS: [&str; 7] = [
    EXTERNAL_LOCAL,
    EXTERNAL_LOCAL_NODE_PORT,
    NODE_PORTS,
    SERVICES,
    AFFINITY_LEARN,
    AFFINITY_SERVICES,
    AFFINITY_NODE_PORTS,
];

/// The chains of one class.
#[derive(Clone, Debug)]
struct ClassNames {
    class: Class,
    /// Its set and its chain, for each kind.
    names: [(String, String); 4],
}

/// The sets of one timeout of affinity.
#[derive(Clone, Debug)]
struct TimeoutNames {
    seconds: u32,
    services: String,
    node_ports: String,
}

/// The structure for one family.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) settings: Settings,
    pub(super) table: TableName<'static>,
    /// The named sets and maps.
    pub(super) sets: Vec<SetId>,
    classes: Vec<ClassNames>,
    timeouts: Vec<TimeoutNames>,
}

impl Layout {
    pub(super) fn new(settings: Settings) -> Layout {
        let class = |class: Class| ClassNames {
            class,
            names: Kind::ALL.map(|kind| (SetId::Class(kind, class).name().into_owned(), kind.chain(class))),
        };
        let timeout = |seconds: &u32| TimeoutNames {
            seconds: *seconds,
            services: SetId::Affinity(Plane::Services, *seconds).name().into_owned(),
            node_ports: SetId::Affinity(Plane::NodePorts, *seconds).name().into_owned(),
        };
        let counted = SetId::COUNTED.into_iter().filter(|_| settings.counts);
        Layout {
            table: table(settings.family),
            sets: SetId::all(settings.largest, &settings.timeouts).chain(counted).collect(),
            classes: settings.largest.up_to().map(class).collect(),
            timeouts: settings.timeouts.iter().map(timeout).collect(),
            settings,
        }
    }

    /// That of a node of which nothing is known: it has all sets, of what types they are depends on the family alone.
    pub(super) fn bare(family: IpFamily, features: &Features) -> Layout {
        let settings = FamilySettings::new(family);
        Layout::new(Settings::new(&settings, features, (Class::USUAL, Vec::new())))
    }

    /// What is listed as the table.
    pub(super) fn table(&self) -> Table<'static> {
        let flags = if self.settings.owns_table { OWNED } else { TableFlags::NONE };
        Table { comment: Some(TABLE_COMMENT), flags, ..Table::new(self.table) }
    }

    /// The chains that hang on hooks.
    pub(super) fn base_chains(&self) -> impl Iterator<Item = (&'static str, &'static str, Hook, i32)> {
        BASE_CHAINS.into_iter().chain(self.settings.counts.then_some(COUNTING_CHAIN))
    }

    /// Hands out a set as the kernel is to have it.
    pub(super) fn with_set<T>(&self, id: SetId, take: impl FnOnce(&Set<'_>) -> T) -> T {
        let (name, comment) = (id.name(), id.comment());
        let set = sets::set(self.settings.family, self.table, (id, &name));
        take(&Set { comment: comment.as_deref(), ..set })
    }

    /// Hands out all chains, then all rules, chain by chain, in the order of chains, each rule after the anonymous set that it
    /// needs.
    pub(super) fn visit(&self, visit: &mut dyn FnMut(Item<'_>)) {
        self.visit_chains(visit);
        self.visit_rules(visit);
    }

    /// The chains of the classes of one kind, with their set and chain.
    fn picks(&self, kind: Kind) -> impl Iterator<Item = (Class, &str, &str)> {
        let index = Kind::ALL.iter().position(|it| *it == kind).unwrap_or_default();
        self.classes.iter().filter_map(move |names| {
            let (set, chain) = names.names.get(index)?;
            Some((names.class, set.as_str(), chain.as_str()))
        })
    }

    /// The names of chains that are there whatever classes there are.
    pub(super) fn fixed_chains(&self) -> impl Iterator<Item = &'static str> {
        let counting = self.settings.counts.then_some(COUNT_CONNECTIONS);
        CHECK_CHAINS.into_iter().chain(DISPATCH_CHAINS).chain(counting)
    }

    /// Whether packets come to a chain from a hook.
    pub(super) fn is_base(chain: &str) -> bool {
        BASE_CHAINS.iter().chain([&COUNTING_CHAIN]).any(|(name, ..)| *name == chain)
    }

    fn visit_chains(&self, visit: &mut dyn FnMut(Item<'_>)) {
        let picks = Kind::ALL.into_iter().flat_map(|kind| self.picks(kind).map(|(_, _, chain)| chain));
        let counting = self.settings.counts.then_some(COUNT_CONNECTIONS);
        for name in CHECK_CHAINS.into_iter().chain(picks).chain(DISPATCH_CHAINS).chain(counting) {
            visit(Item::Chain(&Chain::new(self.table, name)));
        }
        for (name, kind, hook, priority) in self.base_chains() {
            let base = Some(BaseChain { kind, hook, priority, policy: None });
            visit(Item::Chain(&Chain { base, ..Chain::new(self.table, name) }));
        }
    }
}

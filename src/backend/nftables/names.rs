//! Names that people see in the kernel: the table, its sets, maps and chains.

use crate::model::IpFamily;
use nftables_rs::{Family, TableName};
use std::borrow::Cow;

/// The table, in both families; kube-proxy's has the same name.
pub(super) const TABLE: &str = "kube-proxy";

/// A table that is never made: the kernel is asked whether it could be.
pub(super) const PROBE_TABLE: &str = "kube-proxy-rs-probe";

/// What is listed beside the table.
pub(super) const TABLE_COMMENT: &str = "rules for kube-proxy";

/// What the node's own elements are called where those of Services have a Service's name.
pub(super) const NODE_PORT_ADDRESSES: &str = "node-port addresses";

/// The table of a family.
pub(super) fn table(family: IpFamily) -> TableName<'static> {
    let family = match family {
        IpFamily::V4 => Family::Ipv4,
        IpFamily::V6 => Family::Ipv6,
    };
    TableName::new(family, TABLE)
}

/// What traffic is told by: a Service's address and port, or a port on the node's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Plane {
    Services,
    NodePorts,
}

impl Plane {
    pub(super) const ALL: [Plane; 2] = [Plane::Services, Plane::NodePorts];

    fn pick(self, services: &'static str, node_ports: &'static str) -> &'static str {
        match self {
            Plane::Services => services,
            Plane::NodePorts => node_ports,
        }
    }
}

/// A list of endpoints that traffic to a destination is balanced over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kind {
    pub(super) plane: Plane,
    /// That of external traffic under policy Local.
    pub(super) is_local: bool,
}

impl Kind {
    /// In the order in which they are written.
    pub(super) const ALL: [Kind; 4] = [
        Kind { plane: Plane::Services, is_local: false },
        Kind { plane: Plane::NodePorts, is_local: false },
        Kind { plane: Plane::Services, is_local: true },
        Kind { plane: Plane::NodePorts, is_local: true },
    ];

    /// The map that leads from destination and number to an endpoint.
    pub(super) fn map(self) -> &'static str {
        match self.is_local {
            false => self.plane.pick("service-endpoints", "nodeport-endpoints"),
            true => self.plane.pick("local-service-endpoints", "local-nodeport-endpoints"),
        }
    }

    /// The chain that picks one of up to `class` endpoints.
    pub(super) fn chain(self, class: Class) -> String {
        let prefix = match self.is_local {
            false => self.plane.pick("pick", "nodeport-pick"),
            true => self.plane.pick("local-pick", "local-nodeport-pick"),
        };
        format!("{prefix}-{}", class.size())
    }

    fn class_set(self, class: Class) -> String {
        let prefix = match self.is_local {
            false => self.plane.pick("services", "nodeports"),
            true => self.plane.pick("local-services", "local-nodeports"),
        };
        format!("{prefix}-{}", class.size())
    }
}

/// The size of a list, as the next power of two: 2, 4, 8, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Class(u8);

impl Class {
    /// Those that are always there.
    pub(super) const USUAL: Class = Class(10);
    /// No Service has more endpoints.
    pub(super) const LARGEST: Class = Class(24);

    /// That of a list; `None` if there is nothing to choose.
    pub(super) fn of(endpoints: usize) -> Option<Class> {
        let exponent = endpoints.checked_sub(1)?.checked_ilog2()? + 1;
        u8::try_from(exponent).ok().map(|exponent| Class(exponent.min(Self::LARGEST.0)))
    }

    /// All up to this one.
    pub(super) fn up_to(self) -> impl Iterator<Item = Class> + Clone {
        (1..=self.0).map(Class)
    }

    /// At most this many endpoints.
    pub(super) fn size(self) -> u32 {
        1 << self.0
    }

    fn comment(self) -> String {
        match self.size() {
            2 => "2 endpoints".to_owned(),
            size => format!("{} to {size} endpoints", size / 2 + 1),
        }
    }
}

/// A set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum SetId {
    /// ClusterIPs.
    ClusterIps,
    /// The node's addresses that answer on node ports.
    NodePortIps,
    /// Endpoints of this node that may reach themselves through a Service.
    Hairpin,
    /// Destination and number: endpoint.
    Endpoints(Kind),
    /// Destinations with as many endpoints as the class says.
    Class(Kind, Class),
    /// External destinations under policy Cluster.
    Masquerade(Plane),
    /// External destinations under policy Local.
    LocalPolicy(Plane),
    /// No endpoint anywhere.
    Reject(Plane),
    /// No endpoint here.
    Drop(Plane),
    /// Destinations that only some sources may reach.
    Firewall,
    /// Who may.
    FirewallSources,
    /// Client and destination: endpoint.
    Clients(Plane),
    /// Destinations with affinity, by timeout in seconds.
    Affinity(Plane, u32),
    /// What affinity may lead to.
    AffinityEndpoints(Plane),
    /// Destination and endpoint, with how many connections went this way.
    Counted(Plane),
}

impl SetId {
    /// Those that are there where connections are counted.
    pub(super) const COUNTED: [SetId; 2] =
        [SetId::Counted(Plane::Services), SetId::Counted(Plane::NodePorts)];

    pub(super) fn name(self) -> Cow<'static, str> {
        let fixed = match self {
            SetId::ClusterIps => "cluster-ips",
            SetId::NodePortIps => "nodeport-ips",
            SetId::Hairpin => "hairpin-connections",
            SetId::Endpoints(kind) => kind.map(),
            SetId::Masquerade(plane) => plane.pick("masquerade-services", "masquerade-nodeports"),
            SetId::LocalPolicy(plane) => plane.pick("local-policy-services", "local-policy-nodeports"),
            SetId::Reject(plane) => plane.pick("reject-services", "reject-nodeports"),
            SetId::Drop(plane) => plane.pick("drop-services", "drop-nodeports"),
            SetId::Firewall => "firewall-services",
            SetId::FirewallSources => "firewall-sources",
            SetId::Clients(plane) => plane.pick("service-affinity", "nodeport-affinity"),
            SetId::AffinityEndpoints(plane) => {
                plane.pick("affinity-endpoints", "affinity-nodeport-endpoints")
            }
            SetId::Counted(plane) => plane.pick("counted-endpoints", "counted-nodeport-endpoints"),
            SetId::Class(kind, class) => return kind.class_set(class).into(),
            SetId::Affinity(plane, seconds) => {
                let prefix = plane.pick("affinity-services", "affinity-nodeports");
                return format!("{prefix}-{seconds}").into();
            }
        };
        fixed.into()
    }

    /// The set of one timeout of affinity that has this name.
    pub(super) fn of_timeout(name: &str) -> Option<SetId> {
        Plane::ALL.into_iter().find_map(|plane| {
            let prefix = plane.pick("affinity-services-", "affinity-nodeports-");
            let seconds = name.strip_prefix(prefix)?.parse().ok()?;
            let id = SetId::Affinity(plane, seconds);
            (id.name() == name).then_some(id)
        })
    }

    /// What is listed beside it.
    pub(super) fn comment(self) -> Option<Cow<'static, str>> {
        let fixed = match self {
            SetId::ClusterIps => "Active ClusterIPs",
            SetId::NodePortIps => "IPs that accept NodePort traffic",
            SetId::Hairpin => "service hairpin connections",
            SetId::Endpoints(Kind { plane, is_local: false }) => {
                plane.pick("destination . number : endpoint", "node port . number : endpoint")
            }
            SetId::Endpoints(Kind { plane, is_local: true }) => plane.pick(
                "external, policy Local: destination . number : endpoint",
                "policy Local: node port . number : endpoint",
            ),
            SetId::Class(_, class) => return Some(class.comment().into()),
            SetId::Masquerade(plane) => {
                plane.pick("external destinations under policy Cluster", "node ports under policy Cluster")
            }
            SetId::LocalPolicy(plane) => {
                plane.pick("external destinations under policy Local", "node ports under policy Local")
            }
            SetId::Reject(_) => "services with no endpoints",
            SetId::Drop(_) => "services with no endpoints on this node",
            SetId::Firewall => "destinations that are subject to LoadBalancerSourceRanges",
            SetId::FirewallSources => "destination . source range that may use it",
            SetId::Clients(plane) => {
                plane.pick("client . destination : endpoint", "client . node port : endpoint")
            }
            SetId::Affinity(..) => return None,
            SetId::AffinityEndpoints(plane) => plane.pick("destination . endpoint", "node port . endpoint"),
            SetId::Counted(plane) => plane.pick(
                "destination . endpoint, counting connections",
                "node port . endpoint, counting connections",
            ),
        };
        Some(fixed.into())
    }

    /// Those that are there whatever Services there are, with classes up to this one, and affinity of these
    /// timeouts.
    pub(super) fn all(largest: Class, timeouts: &[u32]) -> impl Iterator<Item = SetId> {
        let of_both = |set: fn(Plane) -> SetId| Plane::ALL.map(set);
        let classes = Kind::ALL
            .into_iter()
            .flat_map(move |kind| largest.up_to().map(move |class| SetId::Class(kind, class)));
        let affinity =
            timeouts.iter().flat_map(|seconds| Plane::ALL.map(|plane| SetId::Affinity(plane, *seconds)));
        [SetId::ClusterIps, SetId::NodePortIps, SetId::Hairpin]
            .into_iter()
            .chain(Kind::ALL.map(SetId::Endpoints))
            .chain(classes)
            .chain(of_both(SetId::Masquerade))
            .chain(of_both(SetId::LocalPolicy))
            .chain(of_both(SetId::Reject))
            .chain(of_both(SetId::Drop))
            .chain([SetId::Firewall, SetId::FirewallSources])
            .chain(of_both(SetId::Clients))
            .chain(affinity)
            .chain(of_both(SetId::AffinityEndpoints))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

pub(super) const FIREWALL_CHECK: &str = "firewall-check";
pub(super) const SERVICE_ENDPOINTS_CHECK: &str = "service-endpoints-check";
pub(super) const NODE_PORT_ENDPOINTS_CHECK: &str = "nodeport-endpoints-check";
pub(super) const CLUSTER_IPS_CHECK: &str = "cluster-ips-check";
pub(super) const MASQUERADING: &str = "masquerading";
pub(super) const EXTERNAL_LOCAL: &str = "external-local";
pub(super) const EXTERNAL_LOCAL_NODE_PORT: &str = "external-local-nodeport";
pub(super) const NODE_PORTS: &str = "nodeports";
pub(super) const SERVICES: &str = "services";
pub(super) const AFFINITY_LEARN: &str = "affinity-learn";
pub(super) const AFFINITY_SERVICES: &str = "affinity-services";
pub(super) const AFFINITY_NODE_PORTS: &str = "affinity-nodeports";
pub(super) const COUNT_CONNECTIONS: &str = "count-connections";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_list_is_of_the_class_of_the_next_power_of_two() {
        let sizes: Vec<_> = [0, 1, 2, 3, 4, 5, 8, 9, 1024, 1025]
            .map(|endpoints| Class::of(endpoints).map(Class::size))
            .into();
        let some = |size| Some(size);
        let want =
            [None, None, some(2), some(4), some(4), some(8), some(8), some(16), some(1024), some(2048)];
        assert_eq!(sizes, want);
        assert_eq!(Class::USUAL.size(), 1024);
    }

    #[test]
    fn names_are_distinct() {
        let ids: Vec<_> = SetId::all(Class::USUAL, &[60, 10_800]).chain(SetId::COUNTED).collect();
        let names: BTreeSet<_> = ids.iter().map(|id| id.name()).collect();
        assert_eq!(names.len(), ids.len());
        assert!(names.contains("local-nodeports-1024"));
        assert!(names.contains("affinity-nodeports-60"));
        assert_eq!(SetId::of_timeout("affinity-nodeports-60"), Some(SetId::Affinity(Plane::NodePorts, 60)));
        assert_eq!(SetId::of_timeout("affinity-nodeports-060"), None);
        assert_eq!(SetId::of_timeout("affinity-endpoints"), None);
    }
}

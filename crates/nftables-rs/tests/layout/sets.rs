//! Sets and maps.

use super::{Item, Kind, Layout, SERVICE, Settings};
use nftables_rs::{DataType, Family, NumgenKind, Set, SetFlags, SetType, TableName, TypeOf};
use std::time::Duration;

const LONGEST_AFFINITY: Duration = Duration::from_secs(10_800);
/// A set of bounded size, when full, learns no more; it takes some 35 MB then.
const MOST_CLIENTS: u32 = 262_144;

/// What a set's keys are.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Address,
    Hairpin,
    Service,
    NodePort,
    SourceOfService,
    ClientOfService,
    ClientOfNodePort,
    EndpointOfService,
    EndpointOfNodePort,
    NumberOfService,
    NumberOfNodePort,
}

/// A named set of the structure.
#[derive(Clone, Debug)]
pub struct SetSpec {
    pub name: String,
    keys: Keys,
    comment: Option<String>,
}

pub fn specs(settings: &Settings, kinds: &[Kind; 4]) -> Vec<SetSpec> {
    let set = |name: &str, keys, comment: &str| SetSpec {
        name: name.to_owned(),
        keys,
        comment: (!comment.is_empty()).then(|| comment.to_owned()),
    };
    let mut sets = vec![
        set("cluster-ips", Keys::Address, "Active ClusterIPs"),
        set("nodeport-ips", Keys::Address, "IPs that accept NodePort traffic"),
        set("hairpin-connections", Keys::Hairpin, "service hairpin connections"),
        set(kinds[0].map, Keys::NumberOfService, "destination . number : endpoint"),
        set(kinds[1].map, Keys::NumberOfNodePort, "node port . number : endpoint"),
        set(kinds[2].map, Keys::NumberOfService, "external, policy Local: destination . number : endpoint"),
        set(kinds[3].map, Keys::NumberOfNodePort, "policy Local: node port . number : endpoint"),
    ];
    // Those of Services come first, then those of node ports, then the local ones.
    for kind in kinds {
        let keys = if kind.destination == SERVICE { Keys::Service } else { Keys::NodePort };
        for (class, name) in settings.classes.iter().zip(&kind.sets) {
            let comment = match class {
                2 => "2 endpoints".to_owned(),
                class => format!("{} to {class} endpoints", class / 2 + 1),
            };
            sets.push(set(name, keys, &comment));
        }
    }
    sets.extend([
        set("masquerade-services", Keys::Service, "external destinations under policy Cluster"),
        set("masquerade-nodeports", Keys::NodePort, "node ports under policy Cluster"),
        set("local-policy-services", Keys::Service, "external destinations under policy Local"),
        set("local-policy-nodeports", Keys::NodePort, "node ports under policy Local"),
        set("reject-services", Keys::Service, "services with no endpoints"),
        set("reject-nodeports", Keys::NodePort, "services with no endpoints"),
        set("drop-services", Keys::Service, "services with no endpoints on this node"),
        set("drop-nodeports", Keys::NodePort, "services with no endpoints on this node"),
        set("firewall-services", Keys::Service, "destinations that are subject to LoadBalancerSourceRanges"),
        set("firewall-sources", Keys::SourceOfService, "destination . source range that may use it"),
        set("service-affinity", Keys::ClientOfService, "client . destination : endpoint"),
        set("nodeport-affinity", Keys::ClientOfNodePort, "client . node port : endpoint"),
    ]);
    for timeout in &settings.affinity_timeouts {
        sets.push(set(&format!("affinity-services-{timeout}"), Keys::Service, ""));
        sets.push(set(&format!("affinity-nodeports-{timeout}"), Keys::NodePort, ""));
    }
    sets.extend([
        set("affinity-endpoints", Keys::EndpointOfService, "destination . endpoint"),
        set("affinity-nodeport-endpoints", Keys::EndpointOfNodePort, "node port . endpoint"),
    ]);
    sets
}

/// What one family's sets are made of.
struct Types {
    address: SetType<'static>,
    hairpin: SetType<'static>,
    service: SetType<'static>,
    node_port: SetType<'static>,
    source_of_service: SetType<'static>,
    client_of_service: SetType<'static>,
    client_of_node_port: SetType<'static>,
    endpoint_of_service: SetType<'static>,
    endpoint_of_node_port: SetType<'static>,
    number_of_service: SetType<'static>,
    number_of_node_port: SetType<'static>,
    /// Of numbers.
    endpoint: SetType<'static>,
    /// Of clients.
    learnt_endpoint: SetType<'static>,
}

const PROTOCOL: DataType = DataType::INET_PROTO;
const PORT: DataType = DataType::INET_SERVICE;
/// Listings show the modulus; lookups do not heed it.
const NUMBER: TypeOf = TypeOf::Numgen { kind: NumgenKind::RANDOM, modulus: 2, offset: 0 };

macro_rules! types {
    ($address:expr, $destination:expr) => {
        Types {
            address: SetType::Types(&[$address]),
            hairpin: SetType::Types(&[$address, $address, PROTOCOL, PORT]),
            service: SetType::Types(&[$address, PROTOCOL, PORT]),
            node_port: SetType::Types(&[PROTOCOL, PORT]),
            source_of_service: SetType::Types(&[$address, PROTOCOL, PORT, $address]),
            client_of_service: SetType::Types(&[$address, $address, PROTOCOL, PORT]),
            client_of_node_port: SetType::Types(&[$address, PROTOCOL, PORT]),
            endpoint_of_service: SetType::Types(&[$address, PROTOCOL, PORT, $address, PORT]),
            endpoint_of_node_port: SetType::Types(&[PROTOCOL, PORT, $address, PORT]),
            number_of_service: SetType::TypeOf(&[
                $destination,
                TypeOf::L4Protocol,
                TypeOf::DestinationPort,
                NUMBER,
            ]),
            number_of_node_port: SetType::TypeOf(&[TypeOf::L4Protocol, TypeOf::DestinationPort, NUMBER]),
            // Of any protocol: with `tcp dport`, nft adds "TCP only" to each rule that uses the map.
            endpoint: SetType::TypeOf(&[$destination, TypeOf::DestinationPort]),
            learnt_endpoint: SetType::Types(&[$address, PORT]),
        }
    };
}

static IPV4: Types = types!(DataType::IPV4_ADDRESS, TypeOf::Ipv4Destination);
static IPV6: Types = types!(DataType::IPV6_ADDRESS, TypeOf::Ipv6Destination);

impl Types {
    fn of(family: Family) -> &'static Types {
        if family == Family::Ipv6 { &IPV6 } else { &IPV4 }
    }

    /// A set without number and comment.
    fn set<'a>(&self, table: TableName<'a>, spec: &'a SetSpec) -> Set<'a> {
        let set = |key| Set::new(table, &spec.name, key);
        let numbers = |key| Set::map(table, &spec.name, key, self.endpoint);
        let clients = |key| Set {
            flags: SetFlags::DYNAMIC | SetFlags::TIMEOUT,
            size: Some(MOST_CLIENTS),
            timeout: Some(LONGEST_AFFINITY),
            ..Set::map(table, &spec.name, key, self.learnt_endpoint)
        };
        match spec.keys {
            Keys::Address => set(self.address),
            Keys::Hairpin => set(self.hairpin),
            Keys::Service => set(self.service),
            Keys::NodePort => set(self.node_port),
            Keys::SourceOfService => Set { flags: SetFlags::INTERVAL, ..set(self.source_of_service) },
            Keys::ClientOfService => clients(self.client_of_service),
            Keys::ClientOfNodePort => clients(self.client_of_node_port),
            Keys::EndpointOfService => set(self.endpoint_of_service),
            Keys::EndpointOfNodePort => set(self.endpoint_of_node_port),
            Keys::NumberOfService => numbers(self.number_of_service),
            Keys::NumberOfNodePort => numbers(self.number_of_node_port),
        }
    }
}

impl Layout {
    pub fn visit_sets(&self, visit: &mut dyn FnMut(Item<'_>)) {
        let types = Types::of(self.settings.family);
        for spec in &self.sets {
            let set = Set {
                id: self.set(&spec.name).id.unwrap_or_default(),
                comment: spec.comment.as_deref(),
                ..types.set(self.table, spec)
            };
            visit(Item::Set(&set));
        }
    }
}

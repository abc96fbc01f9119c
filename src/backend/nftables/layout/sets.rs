//! What sets and maps are made of.

use super::*;
use nftables_rs::{DataType, ListedSet, MapData, NumgenKind, SetFlags, SetType, TypeOf};
use std::time::Duration;

/// Of clients whose rule says nothing; all of ours do.
const USUAL_AFFINITY: Duration = Duration::from_secs(10_800);
/// A full map learns no more clients; it takes some 35 MB of the kernel's memory then.
const MOST_CLIENTS: u32 = 262_144;

/// What one family's sets are made of.
struct Types {
    address: SetType<'static>,
    hairpin: SetType<'static>,
    destination: [SetType<'static>; 2],
    source_of_service: SetType<'static>,
    client: [SetType<'static>; 2],
    endpoint_of: [SetType<'static>; 2],
    number_of: [SetType<'static>; 2],
    /// That a number leads to.
    endpoint: SetType<'static>,
    /// That a client leads to.
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
            destination: [SetType::Types(&[$address, PROTOCOL, PORT]), SetType::Types(&[PROTOCOL, PORT])],
            source_of_service: SetType::Types(&[$address, PROTOCOL, PORT, $address]),
            client: [
                SetType::Types(&[$address, $address, PROTOCOL, PORT]),
                SetType::Types(&[$address, PROTOCOL, PORT]),
            ],
            endpoint_of: [
                SetType::Types(&[$address, PROTOCOL, PORT, $address, PORT]),
                SetType::Types(&[PROTOCOL, PORT, $address, PORT]),
            ],
            number_of: [
                SetType::TypeOf(&[$destination, TypeOf::L4Protocol, TypeOf::DestinationPort, NUMBER]),
                SetType::TypeOf(&[TypeOf::L4Protocol, TypeOf::DestinationPort, NUMBER]),
            ],
            // Of any protocol: with `tcp dport`, nft adds "TCP only" to each rule that uses the map.
            endpoint: SetType::TypeOf(&[$destination, TypeOf::DestinationPort]),
            learnt_endpoint: SetType::Types(&[$address, PORT]),
        }
    };
}

static IPV4: Types = types!(DataType::IPV4_ADDRESS, TypeOf::Ipv4Destination);
static IPV6: Types = types!(DataType::IPV6_ADDRESS, TypeOf::Ipv6Destination);

fn of(plane: Plane, [services, node_ports]: [SetType<'static>; 2]) -> SetType<'static> {
    match plane {
        Plane::Services => services,
        Plane::NodePorts => node_ports,
    }
}

/// A set as the kernel is to have it, without its comment.
pub(super) fn set<'a>(family: IpFamily, table: TableName<'a>, (id, name): (SetId, &'a str)) -> Set<'a> {
    let types = match family {
        IpFamily::V4 => &IPV4,
        IpFamily::V6 => &IPV6,
    };
    let set = |key| Set::new(table, name, key);
    match id {
        SetId::ClusterIps | SetId::NodePortIps => set(types.address),
        SetId::Hairpin => set(types.hairpin),
        SetId::Endpoints(kind) => Set::map(table, name, of(kind.plane, types.number_of), types.endpoint),
        SetId::Class(Kind { plane, .. }, _)
        | SetId::Masquerade(plane)
        | SetId::LocalPolicy(plane)
        | SetId::Reject(plane)
        | SetId::Drop(plane)
        | SetId::Affinity(plane, _) => set(of(plane, types.destination)),
        SetId::Firewall => set(of(Plane::Services, types.destination)),
        SetId::FirewallSources => Set { flags: SetFlags::INTERVAL, ..set(types.source_of_service) },
        SetId::AffinityEndpoints(plane) => set(of(plane, types.endpoint_of)),
        SetId::Counted(plane) => Set { counter: true, ..set(of(plane, types.endpoint_of)) },
        SetId::Clients(plane) => Set {
            flags: SetFlags::DYNAMIC | SetFlags::TIMEOUT,
            size: Some(MOST_CLIENTS),
            timeout: Some(USUAL_AFFINITY),
            ..Set::map(table, name, of(plane, types.client), types.learnt_endpoint)
        },
    }
}

/// Whether a set that is there can hold what `wanted` is to hold: only how it is listed may differ.
pub(in crate::backend::nftables) fn is_compatible(found: &ListedSet<'_>, wanted: &Set<'_>) -> bool {
    let (data_type, data_len) = match wanted.data {
        Some(MapData::Value(data)) => (data.number(), data.len()),
        _ => (0, 0),
    };
    found.is_map() == wanted.data.is_some()
        && found.flags.contains(wanted.flags)
        && found.flags.contains(SetFlags::INTERVAL) == wanted.flags.contains(SetFlags::INTERVAL)
        && found.flags.contains(SetFlags::TIMEOUT) == wanted.flags.contains(SetFlags::TIMEOUT)
        && (found.key_type, found.key_len) == (wanted.key.number(), wanted.key.len())
        && (found.data_type, found.data_len) == (data_type, data_len)
        && (found.size, found.timeout) == (wanted.size, wanted.timeout)
}

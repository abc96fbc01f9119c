//! What the API server checks and conversion does not need to: it sees to it that what comes from
//! an API server makes sense, and nobody does so for a file.
//!
//! A field that is set where it means nothing is told and left alone. The API server refuses some
//! of these, but nothing that the proxy does depends on them.

use super::ManifestOptions;
use crate::model::IpFamily;
use crate::watch::convert::{Issues, check_name, check_namespace, parse_ip, quoted, special};
use crate::watch::objects::{
    EndpointObject, EndpointSliceObject, ServiceObject, ServicePortObject, ServiceSpec,
};
use std::collections::BTreeSet;

/// The API's limit of addresses of an endpoint.
const MAX_ADDRESSES: usize = 100;

/// Checks a Service that has its defaults.
pub(super) fn service(object: &ServiceObject, issues: &mut Issues) {
    let spec = &object.spec;
    check_name(object.metadata.name.as_deref(), issues);
    check_namespace(object.metadata.namespace.as_deref(), issues);
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let service_type = spec.service_type.as_deref().unwrap_or_default();
    if service_type != "ExternalName" {
        cluster_ips(spec, cluster_ip, issues);
        if spec.ports.is_empty() && cluster_ip != "None" {
            issues.error("spec.ports", "is missing");
        }
    }
    port_names(&spec.ports, issues);
    port_numbers(&spec.ports, issues);
    external_ips(spec, issues);
    unused_fields(spec, service_type, issues);
}

/// Takes away the node ports that are outside the range; the rest of the Service can do without.
pub(super) fn node_ports(object: &mut ServiceObject, options: &ManifestOptions, issues: &mut Issues) {
    let range = &options.node_port_range;
    let refused = |port: &Option<i64>| {
        let number = port.unwrap_or_default();
        let inside = u16::try_from(number).is_ok_and(|number| range.contains(&number));
        (number != 0 && !inside)
            .then(|| format!("{number} is outside the node port range {}-{}", range.start(), range.end()))
    };
    for (index, port) in object.spec.ports.iter_mut().enumerate() {
        if let Some(message) = refused(&port.node_port) {
            issues.error(format_args!("spec.ports[{index}].nodePort"), message);
            port.node_port = None;
        }
    }
    if let Some(message) = refused(&object.spec.health_check_node_port) {
        issues.error("spec.healthCheckNodePort", message);
        object.spec.health_check_node_port = None;
    }
}

fn cluster_ips(spec: &ServiceSpec, cluster_ip: &str, issues: &mut Issues) {
    if cluster_ip.is_empty() {
        let message = "is missing: nothing allocates one here, so the Service has no effect";
        issues.warning("spec.clusterIP", message);
    }
    if spec.cluster_ips.first().is_some_and(|first| first != cluster_ip) {
        issues.error("spec.clusterIPs[0]", format_args!("is not {}, the clusterIP", quoted(cluster_ip)));
    }
    for (field, found) in
        [("spec.clusterIPs", spec.cluster_ips.len()), ("spec.ipFamilies", spec.ip_families.len())]
    {
        if found > 2 {
            issues.error(field, format_args!("{found} are too many; there are two families"));
        }
    }
    let mut seen = BTreeSet::new();
    for (index, family) in spec.ip_families.iter().enumerate() {
        if !seen.insert(family) {
            issues.error(format_args!("spec.ipFamilies[{index}]"), twice(family));
        }
    }
}

fn port_names(ports: &[ServicePortObject], issues: &mut Issues) {
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        let field = format_args!("spec.ports[{index}].name");
        if name.is_empty() && ports.len() > 1 {
            issues.error(field, "is missing; with several ports, each needs a name");
        } else if !seen.insert(name) {
            issues.error(field, twice(name));
        }
    }
}

fn port_numbers(ports: &[ServicePortObject], issues: &mut Issues) {
    let mut ports_seen = BTreeSet::new();
    let mut node_ports_seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if let Some(number) = port.port.filter(|number| !ports_seen.insert((protocol, *number))) {
            let message = format_args!("{number} is there twice for {}", quoted(protocol));
            issues.error(format_args!("spec.ports[{index}].port"), message);
        }
        let node_port = port.node_port.filter(|number| *number != 0);
        if let Some(number) = node_port.filter(|number| !node_ports_seen.insert((protocol, *number))) {
            let message = format_args!("{number} is there twice for {}", quoted(protocol));
            issues.error(format_args!("spec.ports[{index}].nodePort"), message);
        }
    }
}

/// External IPs must be addresses that packets can come to, of a family that the Service has. The
/// API server lets the wrong family pass; in a file it can only be a mistake.
fn external_ips(spec: &ServiceSpec, issues: &mut Issues) {
    for (index, text) in spec.external_ips.iter().enumerate() {
        let field = format_args!("spec.externalIPs[{index}]");
        let Some(ip) = parse_ip(text) else {
            issues.error(field, format_args!("{} is not an IP address", quoted(text)));
            continue;
        };
        let family = IpFamily::of(ip);
        if let Some(what) = special(ip) {
            issues.error(field, format_args!("{ip} is {what}"));
        } else if !spec.ip_families.is_empty() && !spec.ip_families.iter().any(|own| own == family.as_str()) {
            issues.error(field, format_args!("{ip} is an {family} address; the Service has none"));
        }
    }
}

fn unused_fields(spec: &ServiceSpec, service_type: &str, issues: &mut Issues) {
    let accessible = matches!(service_type, "NodePort" | "LoadBalancer") || !spec.external_ips.is_empty();
    let policy = spec.external_traffic_policy.as_deref().unwrap_or_default();
    if !policy.is_empty() && !accessible {
        issues.warning(
            "spec.externalTrafficPolicy",
            "has no effect: no external traffic can reach the Service",
        );
    }
    let health_checked = service_type == "LoadBalancer" && policy == "Local";
    if spec.health_check_node_port.unwrap_or_default() != 0 && !health_checked {
        issues.warning(
            "spec.healthCheckNodePort",
            "has no effect: it takes type LoadBalancer and externalTrafficPolicy Local",
        );
    }
}

/// Checks an EndpointSlice that has its defaults.
pub(super) fn endpoint_slice(object: &EndpointSliceObject, issues: &mut Issues) {
    let mut seen = BTreeSet::new();
    for (index, port) in object.ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        if !seen.insert(name) {
            issues.error(format_args!("ports[{index}].name"), twice(name));
        }
    }
    let family =
        IpFamily::ALL.into_iter().find(|family| Some(family.as_str()) == object.address_type.as_deref());
    let Some(family) = family else { return };
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        addresses(endpoint, index, family, issues);
    }
}

/// All of an endpoint's addresses must be good, although only the first one is ever used.
fn addresses(endpoint: &EndpointObject, endpoint_index: usize, family: IpFamily, issues: &mut Issues) {
    if endpoint.addresses.len() > MAX_ADDRESSES {
        let found = endpoint.addresses.len();
        issues.error(
            format_args!("endpoints[{endpoint_index}].addresses"),
            format_args!("{found} are too many; an endpoint can have {MAX_ADDRESSES}"),
        );
    }
    for (index, text) in endpoint.addresses.iter().take(MAX_ADDRESSES).enumerate() {
        let field = format_args!("endpoints[{endpoint_index}].addresses[{index}]");
        match parse_ip(text) {
            None => issues.error(field, format_args!("{} is not an IP address", quoted(text))),
            Some(ip) if IpFamily::of(ip) != family => {
                issues.error(field, format_args!("{ip} is not an {family} address"));
            }
            Some(ip) => {
                if let Some(what) = special(ip) {
                    issues.error(field, format_args!("{ip} is {what}"));
                }
            }
        }
    }
}

fn twice(text: &str) -> String {
    format!("{} is there twice", quoted(text))
}

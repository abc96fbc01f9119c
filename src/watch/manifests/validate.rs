//! The rules of the API between the fields of an object: an API server enforces them, but not
//! for a file. Conversion checks every field by itself, whatever the source.
//!
//! A field that is set where it means nothing gets a warning and no more. The API server refuses some
//! of these, but nothing that the proxy does depends on them.

use crate::model::{IpFamily, quoted};
use crate::watch::convert::{Issues, parse_ip};
use crate::watch::objects::{
    EndpointObject, EndpointSliceObject, ServiceObject, ServicePortObject, ServiceSpec,
};
use std::collections::BTreeSet;

/// The API's limit of addresses of an endpoint.
const MAX_ADDRESSES: usize = 100;

/// Checks a Service that has its defaults.
pub(super) fn service(object: &ServiceObject, issues: &mut Issues) {
    let spec = &object.spec;
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

/// Conversion takes blank entries for absent ones (kube-proxy).
fn external_ips(spec: &ServiceSpec, issues: &mut Issues) {
    for (index, _) in spec.external_ips.iter().enumerate().filter(|(_, text)| text.trim().is_empty()) {
        issues.error(format_args!("spec.externalIPs[{index}]"), "is blank");
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

/// The addresses beyond the first must be good, too, although they are never used.
fn addresses(endpoint: &EndpointObject, endpoint_index: usize, family: IpFamily, issues: &mut Issues) {
    if endpoint.addresses.len() > MAX_ADDRESSES {
        let found = endpoint.addresses.len();
        issues.error(
            format_args!("endpoints[{endpoint_index}].addresses"),
            format_args!("{found} are too many; an endpoint can have {MAX_ADDRESSES}"),
        );
    }
    for (index, text) in endpoint.addresses.iter().enumerate().take(MAX_ADDRESSES).skip(1) {
        let field = format_args!("endpoints[{endpoint_index}].addresses[{index}]");
        match parse_ip(text) {
            None => issues.error(field, format_args!("{} is not an IP address", quoted(text))),
            Some(ip) if IpFamily::of(ip) != family => {
                issues.error(field, format_args!("{ip} is not an {family} address"));
            }
            Some(_) => {}
        }
    }
}

fn twice(text: &str) -> String {
    format!("{} is there twice", quoted(text))
}

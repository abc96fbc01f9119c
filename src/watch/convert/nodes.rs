//! Nodes.

use super::names::check_name;
use super::parse::{parse_cidr, parse_ip};
use super::{Converted, Issues};
use crate::model::{Cidr, NodeFacts, quoted};
use crate::watch::objects::{NodeObject, NodeSpec, ZONE_LABEL};
use std::net::IpAddr;

/// The taint by which the cluster autoscaler announces that it will delete the Node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts a Node.
pub fn node(object: &NodeObject) -> Converted<NodeFacts> {
    let mut issues = Issues::default();
    let Some(name) = check_name(object.metadata.name.as_deref(), &mut issues) else {
        return issues.converted(None);
    };
    let zone = object.metadata.labels.get(ZONE_LABEL);
    let facts = NodeFacts {
        name: name.into(),
        is_known: true,
        zone: zone.filter(|zone| !zone.is_empty()).map(Into::into),
        addresses: addresses(object, &mut issues),
        pod_cidrs: pod_cidrs(&object.spec, &mut issues),
        deleting: object.metadata.deletion_timestamp.is_some(),
        to_be_deleted: object.spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED),
    };
    issues.converted(Some(facts))
}

/// Internal addresses before external ones, each in the Node's order; names are ignored.
fn addresses(object: &NodeObject, issues: &mut Issues) -> Box<[IpAddr]> {
    let mut found = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (index, entry) in object.status.addresses.iter().enumerate() {
            if entry.address_type != kind {
                continue;
            }
            match parse_ip(&entry.address) {
                Some(ip) => found.push(ip),
                None => issues.error(
                    format_args!("status.addresses[{index}].address"),
                    format_args!("{} is not an IP address", quoted(&entry.address)),
                ),
            }
        }
    }
    found.into()
}

/// `podCIDRs`, or `podCIDR` where only that is set: the API keeps the two alike, people do not.
fn pod_cidrs(spec: &NodeSpec, issues: &mut Issues) -> Box<[Cidr]> {
    let (entries, single) = match &spec.pod_cidr {
        Some(cidr) if spec.pod_cidrs.is_empty() && !cidr.is_empty() => (std::slice::from_ref(cidr), true),
        _ => (spec.pod_cidrs.as_slice(), false),
    };
    let mut found = Vec::with_capacity(entries.len());
    for (index, text) in entries.iter().enumerate() {
        match parse_cidr(text) {
            Some(cidr) => found.push(cidr),
            None => issues.error(
                if single { "spec.podCIDR".to_owned() } else { format!("spec.podCIDRs[{index}]") },
                format_args!("{} is not a network in CIDR form", quoted(text)),
            ),
        }
    }
    found.into()
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;

//! EndpointSlices.

use super::names::{check_label, check_name, check_namespace};
use super::parse::{self, parse_ip, port_number, special};
use super::services::not_a_port;
use super::{Converted, Issues};
use crate::model::{
    EndpointFacts, EndpointSlice, Hints, IpFamily, ServiceName, SliceEndpoint, SlicePort, quoted,
};
use crate::watch::objects::{
    EndpointHints, EndpointObject, EndpointSliceObject, HEADLESS_LABEL, Hint, SERVICE_NAME_LABEL,
    SlicePortObject, TRIGGER_TIME_ANNOTATION,
};
use k8s_openapi::jiff;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// The API's limit of endpoints in a slice.
const MAX_ENDPOINTS: usize = 1000;
/// The API's limit of ports in a slice. Its documentation says 100; its validation says this.
const MAX_PORTS: usize = 20_000;
/// The API's limit of hints of either kind.
const MAX_HINTS: usize = 8;

/// Converts an EndpointSlice. There is no value if the slice belongs to a headless Service, and
/// none either if its addresses are names or it belongs to no Service, which is worth a warning.
pub fn endpoint_slice(object: &EndpointSliceObject, node_name: &str) -> Converted<EndpointSlice> {
    if label(object, HEADLESS_LABEL).is_some() {
        return Converted::nothing();
    }
    let mut issues = Issues::default();
    let name = check_name(object.metadata.name.as_deref(), &mut issues);
    let namespace = check_namespace(object.metadata.namespace.as_deref(), &mut issues);
    let service = service_label(object, &mut issues);
    let family = family(object, &mut issues);
    let fits = fits(object, &mut issues);
    let (Some(name), Some(namespace), Some(service), Some(family), true) =
        (name, namespace, service, family, fits)
    else {
        return issues.converted(None);
    };
    let Some(ports) = ports(&object.ports, &mut issues) else {
        return issues.converted(None);
    };
    let mut hints = HintTable::default();
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    let mut refused = 0;
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let Some(address) = address(endpoint, index, family, &mut issues) else { continue };
        if is_refused(address, index, &mut issues) {
            refused += 1;
            continue;
        }
        let facts = facts(endpoint, node_name);
        endpoints.push(SliceEndpoint {
            address,
            facts,
            hints: hints.index_of(&endpoint.hints, index, &mut issues),
        });
    }
    let slice = EndpointSlice {
        name: format!("{namespace}/{name}").into(),
        service: ServiceName::new(namespace, service),
        family,
        ports,
        endpoints: endpoints.into(),
        hints: hints.table.into(),
        refused,
        triggered: triggered(object),
    };
    issues.converted(Some(slice))
}

fn label<'a>(object: &'a EndpointSliceObject, key: &str) -> Option<&'a str> {
    object.metadata.labels.get(key)
}

fn service_label<'a>(object: &'a EndpointSliceObject, issues: &mut Issues) -> Option<&'a str> {
    let field = format!("metadata.labels[{SERVICE_NAME_LABEL}]");
    match label(object, SERVICE_NAME_LABEL) {
        None | Some("") => {
            issues.warning(field, "is missing: the slice belongs to no Service");
            None
        }
        Some(name) => check_label(name, field, issues),
    }
}

fn family(object: &EndpointSliceObject, issues: &mut Issues) -> Option<IpFamily> {
    let text = object.address_type.as_deref().unwrap_or_default();
    let family = IpFamily::ALL.into_iter().find(|family| family.as_str() == text);
    match (family, text) {
        (Some(_), _) => {}
        (None, "FQDN") => issues.warning("addressType", "endpoints that are names cannot be proxied to"),
        (None, _) => issues.error("addressType", format_args!("{} is neither IPv4 nor IPv6", quoted(text))),
    }
    family
}

/// Whether the slice keeps to the API's limits.
fn fits(object: &EndpointSliceObject, issues: &mut Issues) -> bool {
    let lists =
        [("endpoints", object.endpoints.len(), MAX_ENDPOINTS), ("ports", object.ports.len(), MAX_PORTS)];
    let mut all_fit = true;
    for (field, found, limit) in lists {
        if found > limit {
            issues.error(field, format_args!("{found} are too many; a slice can have {limit}"));
            all_fit = false;
        }
    }
    all_fit
}

/// The ports that have a name and a number. `None` if a name is not one.
fn ports(objects: &[SlicePortObject], issues: &mut Issues) -> Option<Box<[SlicePort]>> {
    let mut ports = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        let Some(name) = object.name.as_deref() else {
            issues.warning(format_args!("ports[{index}].name"), "is missing: the port cannot be used");
            continue;
        };
        if !name.is_empty() {
            check_label(name, format_args!("ports[{index}].name"), issues)?;
        }
        let protocol =
            parse::protocol(object.protocol.as_deref(), format_args!("ports[{index}].protocol"), issues);
        let port = number(object, index, issues);
        if let (Some(protocol), Some(port)) = (protocol, port) {
            ports.push(SlicePort { name: name.into(), protocol, port });
        }
    }
    Some(ports.into())
}

fn number(object: &SlicePortObject, index: usize, issues: &mut Issues) -> Option<u16> {
    let field = format_args!("ports[{index}].port");
    let Some(number) = object.port else {
        issues.warning(field, "is missing: the port cannot be used");
        return None;
    };
    let port = port_number(number);
    if port.is_none() {
        issues.error(field, not_a_port(number));
    }
    port
}

/// The endpoint's address.
fn address(endpoint: &EndpointObject, index: usize, family: IpFamily, issues: &mut Issues) -> Option<IpAddr> {
    let Some(text) = endpoint.addresses.first() else {
        issues.error(format_args!("endpoints[{index}].addresses"), "is empty");
        return None;
    };
    let field = format_args!("endpoints[{index}].addresses[0]");
    match parse_ip(text) {
        None => issues.error(field, format_args!("{} is not an IP address", quoted(text))),
        Some(ip) if IpFamily::of(ip) != family => {
            issues.error(field, format_args!("{ip} is not an {family} address"));
        }
        Some(ip) => return Some(ip),
    }
    None
}

/// A user who may write slices must not thereby reach what only the node itself, or its neighbours on the
/// link, can reach: such addresses are refused, even if the API server accepted them. The slice's other
/// endpoints are used.
fn is_refused(ip: IpAddr, index: usize, issues: &mut Issues) -> bool {
    let field = format_args!("endpoints[{index}].addresses[0]");
    match special(ip) {
        Some(what) => issues.warning(field, format_args!("{ip} is {what}; the endpoint is not used")),
        None if ip.is_multicast() => {
            issues.warning(field, format_args!("{ip} is a multicast address; the endpoint is not used"));
        }
        None => return false,
    }
    true
}

fn facts(endpoint: &EndpointObject, node_name: &str) -> EndpointFacts {
    let conditions = endpoint.conditions;
    EndpointFacts::new(
        conditions.ready.unwrap_or(true),
        conditions.serving.unwrap_or(true),
        conditions.terminating.unwrap_or(false),
        !node_name.is_empty() && endpoint.node_name.as_deref() == Some(node_name),
    )
}

fn triggered(object: &EndpointSliceObject) -> Option<i64> {
    let text = object.metadata.annotations.get(TRIGGER_TIME_ANNOTATION)?;
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.as_millisecond())
}

/// The distinct hints of a slice. Its endpoints share a handful of zones, so each set of hints and
/// each name is stored once.
#[derive(Default)]
struct HintTable {
    table: Vec<Hints>,
    names: BTreeSet<Arc<str>>,
}

impl HintTable {
    /// Where the table has these hints: 0 for none.
    fn index_of(&mut self, hints: &EndpointHints, endpoint: usize, issues: &mut Issues) -> u16 {
        let hints = Hints {
            zones: self.names(&hints.for_zones, format_args!("endpoints[{endpoint}].hints.forZones"), issues),
            nodes: self.names(&hints.for_nodes, format_args!("endpoints[{endpoint}].hints.forNodes"), issues),
        };
        if hints == Hints::default() {
            return 0;
        }
        if self.table.is_empty() {
            self.table.push(Hints::default());
        }
        let found = self.table.iter().position(|known| *known == hints);
        let index = found.unwrap_or_else(|| {
            self.table.push(hints);
            self.table.len() - 1
        });
        // A slice has at most MAX_ENDPOINTS different hints, so the index always fits.
        u16::try_from(index).unwrap_or_default()
    }

    fn names(
        &mut self,
        hints: &[Hint],
        field: std::fmt::Arguments<'_>,
        issues: &mut Issues,
    ) -> Box<[Arc<str>]> {
        if hints.len() > MAX_HINTS {
            issues.error(field, format_args!("{} are too many; there can be {MAX_HINTS}", hints.len()));
        }
        let used = hints.iter().take(MAX_HINTS).filter(|hint| !hint.name.is_empty());
        used.map(|hint| self.name(&hint.name)).collect()
    }

    fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let name: Arc<str> = text.into();
        self.names.insert(name.clone());
        name
    }
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;

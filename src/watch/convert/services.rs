//! Services.

use super::names::{check_label, check_namespace, check_service_name};
use super::parse::{self, parse_cidr, parse_ip, port_number};
use super::{Converted, Issue, IssueSeverity, Issues};
use crate::model::{
    Cidr, External, IpFamily, IpvsScheduler, PerFamily, Service, ServiceName, ServicePort, TrafficPolicy,
    quoted,
};
use crate::watch::objects::{
    IPVS_SCHEDULER_ANNOTATION, PROXY_NAME_LABEL, ServiceObject, ServicePortObject, ServiceSpec,
};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// What the API server makes of `ClientIP` without a timeout: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// The longest timeout: a day.
const MAX_AFFINITY_SECONDS: i64 = 86_400;

/// Converts a Service. There is no value, and nothing wrong, if the Service is headless, an
/// `ExternalName`, not yet allocated an address, or meant for another proxy.
pub fn service(object: &ServiceObject) -> Converted<Service> {
    let spec = &object.spec;
    if is_not_for_us(object) {
        return Converted::nothing();
    }
    let mut issues = Issues::default();
    let name = check_service_name(object.metadata.name.as_deref(), &mut issues);
    let namespace = check_namespace(object.metadata.namespace.as_deref(), &mut issues);
    let cluster_ips = cluster_ips(spec, &mut issues);
    let (Some(name), Some(namespace)) = (name, namespace) else {
        return issues.converted(None);
    };
    if cluster_ips.v4.is_none() && cluster_ips.v6.is_none() {
        return issues.converted(None);
    }
    let Some(ports) = ports(&spec.ports, &mut issues) else {
        return issues.converted(None);
    };
    let service = Service {
        name: ServiceName::new(namespace, name),
        created: object.metadata.creation_timestamp.map(|time| time.seconds).filter(|time| *time != 0),
        internal_traffic_policy: policy(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
            &mut issues,
        ),
        affinity_seconds: affinity_seconds(spec, &mut issues),
        ipvs_scheduler: ipvs_scheduler(object, &mut issues),
        ports,
        external: external(object, &cluster_ips, &mut issues),
        cluster_ips,
    };
    issues.converted(Some(service))
}

/// Node ports that are not among those that the cluster is said to give out. They are used: whoever gave
/// them out knows better.
pub fn node_ports_outside(service: &Service, range: &RangeInclusive<u16>) -> impl Iterator<Item = Issue> {
    let ports = service.ports.iter().enumerate().filter(|(_, port)| port.node_port != 0);
    ports.filter(|(_, port)| !range.contains(&port.node_port)).map(|(index, port)| Issue {
        field: format!("spec.ports[{index}].nodePort"),
        message: format!("{} is outside --service-node-port-range and is used all the same", port.node_port),
        severity: IssueSeverity::Warning,
    })
}

/// The scheduler that the Service's annotation asks for; a bad one is reported and not used.
fn ipvs_scheduler(object: &ServiceObject, issues: &mut Issues) -> Option<IpvsScheduler> {
    let text = object.metadata.annotations.get(IPVS_SCHEDULER_ANNOTATION)?;
    let scheduler = IpvsScheduler::parse(text);
    if scheduler.is_none() {
        issues.warning(
            format_args!("metadata.annotations[{IPVS_SCHEDULER_ANNOTATION}]"),
            format_args!(
                "{} is none of {}, sh-port, mh-port; the default is used",
                quoted(text),
                IpvsScheduler::KNOWN.join(", ")
            ),
        );
    }
    scheduler
}

/// Whether the Service asks for nothing that this proxy does.
fn is_not_for_us(object: &ServiceObject) -> bool {
    let other_proxy = object.metadata.labels.get(PROXY_NAME_LABEL).is_some();
    let no_cluster_ip = matches!(object.spec.cluster_ip.as_deref(), None | Some("" | "None"));
    other_proxy || no_cluster_ip || object.spec.service_type.as_deref() == Some("ExternalName")
}

/// The cluster IP of each family: by `ipFamilies`, or by its looks where there are no families.
fn cluster_ips(spec: &ServiceSpec, issues: &mut Issues) -> PerFamily<Option<IpAddr>> {
    let mut ips = PerFamily::default();
    if spec.ip_families.is_empty() {
        let text = spec.cluster_ip.as_deref().unwrap_or_default();
        match parse_ip(text) {
            Some(ip) => *ips.get_mut(IpFamily::of(ip)) = Some(ip),
            None => issues.error("spec.clusterIP", format_args!("{} is not an IP address", quoted(text))),
        }
        return ips;
    }
    for (index, (family, text)) in spec.ip_families.iter().zip(&spec.cluster_ips).enumerate() {
        let Some(family) = IpFamily::ALL.into_iter().find(|known| known.as_str() == family) else {
            issues.error(
                format_args!("spec.ipFamilies[{index}]"),
                format_args!("{} is neither IPv4 nor IPv6", quoted(family)),
            );
            continue;
        };
        let field = format_args!("spec.clusterIPs[{index}]");
        match parse_ip(text) {
            None => issues.error(field, format_args!("{} is not an IP address", quoted(text))),
            Some(ip) if IpFamily::of(ip) != family => {
                issues.error(field, format_args!("{ip} is not an {family} address"));
            }
            // The first one of a family wins, as it does upstream.
            Some(ip) => _ = ips.get_mut(family).get_or_insert(ip),
        }
    }
    ips
}

/// The ports that can be served. `None` if a name is not one, which no API server would let pass.
fn ports(objects: &[ServicePortObject], issues: &mut Issues) -> Option<Box<[ServicePort]>> {
    let mut ports = Vec::with_capacity(objects.len());
    let mut names_are_good = true;
    for (index, object) in objects.iter().enumerate() {
        let name = object.name.as_deref().unwrap_or_default();
        if !name.is_empty() && check_label(name, format_args!("spec.ports[{index}].name"), issues).is_none() {
            names_are_good = false;
        }
        ports.extend(port(object, index, issues));
    }
    names_are_good.then(|| ports.into())
}

fn port(object: &ServicePortObject, index: usize, issues: &mut Issues) -> Option<ServicePort> {
    let protocol =
        parse::protocol(object.protocol.as_deref(), format_args!("spec.ports[{index}].protocol"), issues);
    let number = object.port.unwrap_or_default();
    let port = port_number(number);
    if port.is_none() {
        issues.error(format_args!("spec.ports[{index}].port"), not_a_port(number));
    }
    let number = object.node_port.unwrap_or_default();
    let node_port = u16::try_from(number).unwrap_or_else(|_| {
        issues.error(format_args!("spec.ports[{index}].nodePort"), not_a_port(number));
        0
    });
    let name = object.name.as_deref().unwrap_or_default().into();
    Some(ServicePort { name, protocol: protocol?, port: port?, node_port })
}

pub(super) fn not_a_port(number: i64) -> String {
    format!("{number} is not a port; ports are 1 to 65535")
}

fn policy(text: Option<&str>, field: &str, issues: &mut Issues) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            issues.error(field, format_args!("{} is neither Cluster nor Local", quoted(other)));
            TrafficPolicy::Cluster
        }
    }
}

fn affinity_seconds(spec: &ServiceSpec, issues: &mut Issues) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => {
            let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
            Some(seconds.map_or(DEFAULT_AFFINITY_SECONDS, |seconds| timeout(seconds, issues)))
        }
        Some(other) => {
            let message = format_args!("{} is neither None nor ClientIP", quoted(other));
            issues.error("spec.sessionAffinity", message);
            None
        }
    }
}

fn timeout(seconds: i64, issues: &mut Issues) -> u32 {
    if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
        issues.error(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format_args!("{seconds} is not from 1 to {MAX_AFFINITY_SECONDS}"),
        );
        return DEFAULT_AFFINITY_SECONDS;
    }
    u32::try_from(seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS)
}

/// Everything beyond the cluster IP; `None` if there is nothing of it.
fn external(
    object: &ServiceObject,
    cluster_ips: &PerFamily<Option<IpAddr>>,
    issues: &mut Issues,
) -> Option<Box<External>> {
    let spec = &object.spec;
    let service_type = spec.service_type.as_deref().unwrap_or_default();
    let serves = |ip: IpAddr| cluster_ips.get(IpFamily::of(ip)).is_some();
    let traffic_policy = match service_type {
        "NodePort" | "LoadBalancer" => external_policy(spec, issues),
        "" | "ClusterIP" if !spec.external_ips.is_empty() => external_policy(spec, issues),
        "" | "ClusterIP" => TrafficPolicy::Cluster,
        other => {
            issues.error("spec.type", format_args!("{} is not a type of Service", quoted(other)));
            TrafficPolicy::Cluster
        }
    };
    let local_balancer = service_type == "LoadBalancer" && traffic_policy == TrafficPolicy::Local;
    let external = External {
        external_ips: external_ips(spec, serves, issues),
        load_balancer_ips: load_balancer_ips(object, serves, issues),
        source_ranges: source_ranges(spec, issues),
        traffic_policy,
        health_check_node_port: if local_balancer { health_check_node_port(spec, issues) } else { 0 },
    };
    (external != External::default()).then(|| Box::new(external))
}

fn external_policy(spec: &ServiceSpec, issues: &mut Issues) -> TrafficPolicy {
    policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", issues)
}

fn external_ips(spec: &ServiceSpec, serves: impl Fn(IpAddr) -> bool, issues: &mut Issues) -> Box<[IpAddr]> {
    let entries = spec.external_ips.iter().enumerate().filter(|(_, text)| !text.trim().is_empty());
    entries
        .filter_map(|(index, text)| served_ip(text, format!("spec.externalIPs[{index}]"), &serves, issues))
        .collect()
}

/// Ingress addresses that packets arrive with. Entries with a host name only, and balancers that
/// speak to us as a proxy, are no business of ours.
fn load_balancer_ips(
    object: &ServiceObject,
    serves: impl Fn(IpAddr) -> bool,
    issues: &mut Issues,
) -> Box<[IpAddr]> {
    let mut ips = Vec::new();
    for (index, entry) in object.status.load_balancer.ingress.iter().enumerate() {
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        let field = format!("status.loadBalancer.ingress[{index}]");
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => ips.extend(served_ip(text, field + ".ip", &serves, issues)),
            Some("Proxy") => {}
            Some(other) => {
                let message = format_args!("{} is neither VIP nor Proxy", quoted(other));
                issues.error(field + ".ipMode", message);
            }
        }
    }
    ips.into()
}

/// The address, if it is one and the Service has a cluster IP of its family.
fn served_ip(
    text: &str,
    field: String,
    serves: &impl Fn(IpAddr) -> bool,
    issues: &mut Issues,
) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        issues.error(field, format_args!("{} is not an IP address", quoted(text)));
        return None;
    };
    if !serves(ip) {
        let family = IpFamily::of(ip);
        issues.warning(field, format_args!("{ip} is an {family} address; the Service has none"));
        return None;
    }
    Some(ip)
}

fn source_ranges(spec: &ServiceSpec, issues: &mut Issues) -> Box<[Cidr]> {
    let mut ranges = Vec::with_capacity(spec.load_balancer_source_ranges.len());
    for (index, text) in spec.load_balancer_source_ranges.iter().enumerate() {
        match parse_cidr(text.trim()) {
            Some(range) => ranges.push(range),
            None => issues.error(
                format_args!("spec.loadBalancerSourceRanges[{index}]"),
                format_args!("{} is not a network in CIDR form", quoted(text)),
            ),
        }
    }
    ranges.into()
}

fn health_check_node_port(spec: &ServiceSpec, issues: &mut Issues) -> u16 {
    let number = spec.health_check_node_port.unwrap_or_default();
    let port = port_number(number);
    if port.is_none() && number == 0 {
        issues
            .warning("spec.healthCheckNodePort", "is missing: load balancers cannot ask for local endpoints");
    } else if port.is_none() {
        issues.error("spec.healthCheckNodePort", not_a_port(number));
    }
    port.unwrap_or_default()
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;

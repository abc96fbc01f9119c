//! Services and their ports, reduced to what a proxy acts on.

use super::{Cidr, IpvsScheduler, PerFamily, Protocol};
use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A Service's `namespace/name`. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// Joins namespace and name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        ServiceName(format!("{namespace}/{name}").into())
    }

    /// `namespace/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the slash.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The part after the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The unit that is balanced: `namespace/name:port` and a protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceName,
    /// The port's name; empty when it has none.
    pub port: Box<str>,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    /// The *port string* of rule comments and chain-name hashes; it has no protocol (kube-proxy).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_port_string(f, &self.service, &self.port)
    }
}

fn write_port_string(f: &mut impl fmt::Write, service: &ServiceName, port: &str) -> fmt::Result {
    f.write_str(service.as_str())?;
    if port.is_empty() {
        return Ok(());
    }
    f.write_char(':')?;
    f.write_str(port)
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the port has no name.
    pub name: Box<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port on cluster, external and load-balancer IPs.
    pub port: u16,
    /// 0 when there is none.
    pub node_port: u16,
}

/// What a Service has beyond its cluster IP; most Services have nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// `spec.externalIPs`, in the API's order.
    pub external_ips: Box<[IpAddr]>,
    /// Ingress IPs of `status.loadBalancer` whose `ipMode` is absent or `VIP`.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`, host bits cleared, both families, valid entries only.
    pub source_ranges: Box<[Cidr]>,
    /// `externalTrafficPolicy`, Cluster where the API says that it does not apply.
    pub traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort` where it applies (type LoadBalancer and policy Local), else 0.
    pub health_check_node_port: u16,
}

/// A Service that this proxy serves: it has a cluster IP and is not an `ExternalName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `metadata.creationTimestamp` in seconds since 1970; the older Service wins a contested frontend.
    pub created: Option<i64>,
    /// The cluster IP of each family.
    pub cluster_ips: PerFamily<Option<IpAddr>>,
    /// `internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// The timeout of `ClientIP` session affinity in seconds; `None` without affinity.
    pub affinity_seconds: Option<u32>,
    /// Annotation `kube-proxy-rs.io/ipvs-scheduler`, if present and valid.
    pub ipvs_scheduler: Option<IpvsScheduler>,
    /// The ports, in the API's order.
    pub ports: Box<[ServicePort]>,
    /// External addresses and policies, if there are any.
    pub external: Option<Box<External>>,
}

impl Service {
    /// The name of one of its ports.
    #[must_use]
    pub fn port_name(&self, port: &ServicePort) -> ServicePortName {
        ServicePortName { service: self.name.clone(), port: port.name.clone(), protocol: port.protocol }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_string_leaves_out_the_protocol_and_an_empty_port_name() {
        let service = ServiceName::new("shop", "web");
        let mut name = ServicePortName { service, port: "http".into(), protocol: Protocol::Udp };
        assert_eq!(name.to_string(), "shop/web:http");
        name.port = "".into();
        assert_eq!(name.to_string(), "shop/web");
    }
}

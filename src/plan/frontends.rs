//! The addresses and ports a Service port answers on, in one family.

use super::FamilySettings;
use crate::model::{Cidr, FrontendKind, IpFamily, Service, ServiceRecord, TrafficPolicy, Wanted};
use std::net::IpAddr;

/// Where one Service port answers, and to which clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontends {
    /// The cluster IP; none where another Service has it.
    pub cluster_ip: Option<IpAddr>,
    /// The port on cluster IP, external IPs and load-balancer IPs.
    pub port: u16,
    /// `spec.externalIPs` of the family, unless they are switched off.
    pub external_ips: Vec<IpAddr>,
    /// It has external IPs, switched off or not: that alone makes its external traffic policy
    /// count (kube-proxy).
    has_external_ips: bool,
    /// Load-balancer IPs of the family.
    pub load_balancer_ips: Vec<IpAddr>,
    /// The clients that may use the load-balancer IPs; empty means all clients.
    pub source_ranges: Vec<Cidr>,
    /// Our own node is within the source ranges.
    pub node_in_source_ranges: bool,
    /// The node port.
    pub node_port: Option<u16>,
    /// The node port on which load balancers ask whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
}

impl Frontends {
    pub(super) fn of_port(
        settings: &FamilySettings,
        record: &ServiceRecord,
        service: &Service,
        index: usize,
    ) -> Self {
        let port = &service.ports[index];
        let mut frontends = Frontends {
            cluster_ip: record.cluster_ip(settings.family),
            port: port.port,
            external_ips: Vec::new(),
            has_external_ips: false,
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            node_in_source_ranges: false,
            node_port: record.node_port(index),
            health_check_node_port: record.health_check_node_port(),
            external_policy: TrafficPolicy::Cluster,
        };
        if let Some(external) = &service.external {
            let family = settings.family;
            let ours = |kind, addresses: &[IpAddr]| -> Vec<IpAddr> {
                let of_family = addresses.iter().copied().filter(|ip| IpFamily::of(*ip) == family);
                of_family.filter(|ip| record.has(Wanted::at(kind, *ip, index))).collect()
            };
            let external_ips = ours(FrontendKind::ExternalIp, &external.external_ips);
            frontends.has_external_ips = !external_ips.is_empty();
            frontends.external_ips = if settings.external_ips { external_ips } else { Vec::new() };
            frontends.load_balancer_ips = ours(FrontendKind::LoadBalancerIp, &external.load_balancer_ips);
            frontends.source_ranges = source_ranges(&external.source_ranges, family);
            frontends.node_in_source_ranges =
                frontends.source_ranges.iter().any(|range| range.contains(&settings.node_ip));
            frontends.external_policy = external.traffic_policy;
        }
        frontends
    }

    /// Whether anything leads here at all.
    #[must_use]
    pub fn accessible(&self) -> bool {
        self.cluster_ip.is_some() || self.externally_accessible()
    }

    /// Whether anything but the cluster IP leads here.
    #[must_use]
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || self.has_external_ips || !self.load_balancer_ips.is_empty()
    }

    /// Whether load-balancer IPs are open to the source ranges only.
    #[must_use]
    pub fn restricts_sources(&self) -> bool {
        !self.load_balancer_ips.is_empty() && !self.source_ranges.is_empty()
    }
}

/// The ranges of a family; one that allows every address lifts the restriction (kube-proxy).
fn source_ranges(ranges: &[Cidr], family: IpFamily) -> Vec<Cidr> {
    let ours: Vec<Cidr> = ranges.iter().copied().filter(|range| IpFamily::of_cidr(range) == family).collect();
    if ours.iter().any(|range| range.prefix_len() == 0) {
        return Vec::new();
    }
    ours
}

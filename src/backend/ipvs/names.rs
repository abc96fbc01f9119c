//! Names that people see in the kernel: the interface, chains, sets. They equal kube-proxy's.

use crate::model::{IpFamily, SetType};

/// The interface that holds the Services' addresses, so that the kernel takes their packets in.
pub(super) use crate::model::SERVICES_INTERFACE as INTERFACE;

pub(super) const SERVICES: &str = "KUBE-SERVICES";
pub(super) const NODE_PORT: &str = "KUBE-NODE-PORT";
pub(super) const LOAD_BALANCER: &str = "KUBE-LOAD-BALANCER";
pub(super) use crate::backend::masquerade::{MARK_MASQ, POSTROUTING};
pub(super) const FORWARD: &str = "KUBE-FORWARD";
pub(super) const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
pub(super) const SOURCE_RANGES: &str = "KUBE-SOURCE-RANGES-FIREWALL";
pub(super) const FILTER: &str = "KUBE-IPVS-FILTER";
pub(super) const OUT_FILTER: &str = "KUBE-IPVS-OUT-FILTER";
/// Ours: drops what the Local policy allows nobody here to answer.
pub(super) const LOCAL_POLICY: &str = "KUBE-LOCAL-POLICY";

/// The sets. All are there once per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum SetId {
    LoopBack,
    ClusterIp,
    ExternalIp,
    ExternalIpLocal,
    LoadBalancer,
    LoadBalancerFw,
    LoadBalancerLocal,
    LoadBalancerSourceIp,
    LoadBalancerSourceCidr,
    NodePortTcp,
    NodePortLocalTcp,
    NodePortUdp,
    NodePortLocalUdp,
    NodePortSctp,
    NodePortLocalSctp,
    HealthCheckNodePort,
    IpvsIps,
    /// Ours: nobody gets an answer here.
    NobodyLocal,
    /// Ours: clients from outside get no answer here.
    OutsideLocal,
}

/// The kernel's limit of 31 bytes.
const LONGEST: usize = 31;

impl SetId {
    pub(super) const ALL: [SetId; 19] = [
        SetId::LoopBack,
        SetId::ClusterIp,
        SetId::ExternalIp,
        SetId::ExternalIpLocal,
        SetId::LoadBalancer,
        SetId::LoadBalancerFw,
        SetId::LoadBalancerLocal,
        SetId::LoadBalancerSourceIp,
        SetId::LoadBalancerSourceCidr,
        SetId::NodePortTcp,
        SetId::NodePortLocalTcp,
        SetId::NodePortUdp,
        SetId::NodePortLocalUdp,
        SetId::NodePortSctp,
        SetId::NodePortLocalSctp,
        SetId::HealthCheckNodePort,
        SetId::IpvsIps,
        SetId::NobodyLocal,
        SetId::OutsideLocal,
    ];

    /// The sets of a mode of operation: kube-proxy has not all of ours.
    pub(super) fn in_use(upstream_compat: bool) -> impl Iterator<Item = SetId> {
        Self::ALL.into_iter().filter(move |id| !upstream_compat || !id.is_ours())
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, SetId::NobodyLocal | SetId::OutsideLocal)
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// The set's name, cut as kube-proxy cuts it.
    pub(super) fn name(self, family: IpFamily) -> String {
        let (name, _, _) = self.description();
        let prefix = if family == IpFamily::V6 { "KUBE-6-" } else { "KUBE-" };
        let mut full = format!("{prefix}{name}");
        full.truncate(LONGEST);
        full
    }

    pub(super) fn kind(self) -> SetType {
        self.description().1
    }

    /// What rules that use it have as their comment.
    pub(super) fn comment(self) -> &'static str {
        self.description().2
    }

    fn description(self) -> (&'static str, SetType, &'static str) {
        use SetType::{Ip, IpPort, IpPortIp, IpPortNet, Port};
        match self {
            SetId::LoopBack => (
                "LOOP-BACK",
                IpPortIp,
                "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
            ),
            SetId::ClusterIp => {
                ("CLUSTER-IP", IpPort, "Kubernetes service cluster ip + port for masquerade purpose")
            }
            SetId::ExternalIp => (
                "EXTERNAL-IP",
                IpPort,
                "Kubernetes service external ip + port for masquerade and filter purpose",
            ),
            SetId::ExternalIpLocal => (
                "EXTERNAL-IP-LOCAL",
                IpPort,
                "Kubernetes service external ip + port with externalTrafficPolicy=local",
            ),
            SetId::HealthCheckNodePort => {
                ("HEALTH-CHECK-NODE-PORT", Port, "Kubernetes health check node port")
            }
            SetId::IpvsIps => ("IPVS-IPS", Ip, "Addresses on the ipvs interface"),
            SetId::NobodyLocal => {
                ("NO-LOCAL-ENDPOINTS", IpPort, "Kubernetes service without local endpoints for anybody")
            }
            SetId::OutsideLocal => (
                "NO-LOCAL-ENDPOINTS-EXT",
                IpPort,
                "Kubernetes service without local endpoints for clients from outside",
            ),
            SetId::LoadBalancer => ("LOAD-BALANCER", IpPort, "Kubernetes service lb portal"),
            SetId::LoadBalancerFw => (
                "LOAD-BALANCER-FW",
                IpPort,
                "Kubernetes service load balancer ip + port for load balancer with sourceRange",
            ),
            SetId::LoadBalancerLocal => (
                "LOAD-BALANCER-LOCAL",
                IpPort,
                "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
            ),
            SetId::LoadBalancerSourceIp => (
                "LOAD-BALANCER-SOURCE-IP",
                IpPortIp,
                "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
            ),
            SetId::LoadBalancerSourceCidr => (
                "LOAD-BALANCER-SOURCE-CIDR",
                IpPortNet,
                "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
            ),
            node_port => node_port.node_port_description(),
        }
    }

    fn node_port_description(self) -> (&'static str, SetType, &'static str) {
        use SetType::{IpPort, Port};
        match self {
            SetId::NodePortTcp => {
                ("NODE-PORT-TCP", Port, "Kubernetes nodeport TCP port for masquerade purpose")
            }
            SetId::NodePortLocalTcp => {
                ("NODE-PORT-LOCAL-TCP", Port, "Kubernetes nodeport TCP port with externalTrafficPolicy=local")
            }
            SetId::NodePortUdp => {
                ("NODE-PORT-UDP", Port, "Kubernetes nodeport UDP port for masquerade purpose")
            }
            SetId::NodePortLocalUdp => {
                ("NODE-PORT-LOCAL-UDP", Port, "Kubernetes nodeport UDP port with externalTrafficPolicy=local")
            }
            SetId::NodePortSctp => (
                "NODE-PORT-SCTP-HASH",
                IpPort,
                "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
            ),
            _ => (
                "NODE-PORT-LOCAL-SCTP-HASH",
                IpPort,
                "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_fit_the_kernel_and_stay_distinct() {
        let names: BTreeSet<_> = IpFamily::ALL
            .into_iter()
            .flat_map(|family| SetId::ALL.into_iter().map(move |id| id.name(family)))
            .collect();
        assert_eq!(names.len(), 2 * SetId::ALL.len());
        assert!(names.iter().all(|name| name.len() <= LONGEST));
        assert!(names.contains("KUBE-6-LOAD-BALANCER-SOURCE-CID"));
        assert!(names.contains("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"));
        assert!(SetId::ALL.iter().enumerate().all(|(index, id)| id.index() == index));
    }
}

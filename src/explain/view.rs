//! What the plan makes of one Service, in a form that can be sent.

use super::kernel::Expected;
use crate::backend::KernelObject;
use crate::model::{IpFamily, ServiceName, TrafficPolicy, Verdict};
use crate::plan::{EndpointUse, Plan, ReasonedPort, Unused};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// One Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// `namespace/name`.
    pub service: String,
    /// The node that this is about.
    pub node: String,
    /// Its zone, where it is known.
    pub zone: Option<String>,
    /// `iptables` or `ipvs`.
    pub mode: String,
    /// The iptables tools: `nft` or `legacy`.
    pub flavor: String,
    /// Addresses that it asks for and that are another's.
    pub contested_ips: Vec<ContestedIp>,
    /// Ports of the node that it asks for and that are another's.
    pub contested_ports: Vec<ContestedPort>,
    /// Endpoints that its slices have and that are left out because of the range of their address.
    pub refused_endpoints: usize,
    /// What it asks for beyond what is programmed of one Service.
    pub too_large: Vec<String>,
    /// One part for each IP family that the Service has.
    pub families: Vec<FamilyView>,
}

/// Why a Service should not have a frontend, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contest {
    /// It is the node's, a pod's or a Service's, or none that Services can be reached at.
    Foreign,
    /// The API server is reached there.
    ApiServer,
    /// Another Service has it, or another use in the same Service.
    Taken,
}

/// An address that the Service asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContestedIp {
    /// It.
    pub address: IpAddr,
    /// Why it should not have it, or does not.
    pub contest: Contest,
    /// The Service goes without it, on all ports or on one.
    pub refused: bool,
    /// The Service that has it, if one does.
    pub owner: Option<String>,
    /// Where the Service asks for it, and whose it is.
    pub complaint: String,
}

/// A port of the node that the Service asks for and does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContestedPort {
    /// It.
    pub node_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Why it does not have it.
    pub contest: Contest,
    /// The Service that has it, if one does.
    pub owner: Option<String>,
    /// Where the Service asks for it, and whose it is.
    pub complaint: String,
}

/// One family of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyView {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// The addresses that answer on node ports; `None` means every address of the node.
    pub node_port_ips: Option<Vec<IpAddr>>,
    /// What it needs of the kernel.
    pub wanted: Vec<KernelObject>,
    /// The kernel's words, if it refuses the Service.
    pub refused: Option<String>,
}

/// An address that a Service port answers on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendView {
    /// `cluster IP`, `external IP`, `load-balancer IP` or `node port`.
    pub kind: String,
    /// `10.96.0.1:80`; `*:30080` for a node port on every address.
    pub address: String,
}

/// One port of a Service in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// Its name; empty when it has none.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Where it answers.
    pub frontends: Vec<FrontendView>,
    /// `internalTrafficPolicy` is Local.
    pub internal_local: bool,
    /// `externalTrafficPolicy` is Local.
    pub external_local: bool,
    /// What becomes of traffic to the cluster IP.
    pub internal: Verdict,
    /// What becomes of traffic from outside; `None` when nothing leads here from outside.
    pub external: Option<Verdict>,
    /// Who may use the load-balancer IPs; empty means everyone.
    pub source_ranges: Vec<String>,
    /// The ranges, where all are of the other family, so that the load-balancer IPs are open to every client.
    #[serde(default)]
    pub ranges_of_other_family: Vec<String>,
    /// The node port that the Service asks for; 0 for none.
    pub node_port: u16,
    /// Every endpoint.
    pub endpoints: Vec<EndpointView>,
}

/// One endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// Its IP.
    pub ip: IpAddr,
    /// Its port; `None` when its slice does not have the Service port.
    pub port: Option<u16>,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// It is on this node.
    pub local: bool,
    /// It has zone hints, and they name other zones only.
    pub hinted_elsewhere: bool,
    /// Why it gets no traffic of the cluster IP; `None` when it gets some.
    pub internal: Option<Unused>,
    /// Why it gets no traffic from outside; `None` when it gets some.
    pub external: Option<Unused>,
}

impl ServiceView {
    /// The port that answers at an address, if one does. A node port that stands on every address counts for any.
    #[must_use]
    pub fn port_at(&self, to: SocketAddr, protocol: &str) -> Option<&PortView> {
        let (at, on_node) = (to.to_string(), format!("*:{}", to.port()));
        let ports = self.families.iter().flat_map(|family| &family.ports);
        let answers =
            |port: &&PortView| port.frontends.iter().any(|it| it.address == at || it.address == on_node);
        ports.filter(|port| port.protocol == protocol).find(answers)
    }
}

impl FamilyView {
    /// A plan's part of a Service; `None` when the family has nothing of it.
    #[must_use]
    pub fn of(plan: &Plan<'_>, name: &ServiceName) -> Option<FamilyView> {
        let ports = plan.reasons(name)?;
        Some(FamilyView {
            family: plan.family().to_string(),
            ports: ports.iter().map(|port| PortView::of(port, plan)).collect(),
            node_port_ips: plan.node_port_ips(),
            wanted: Vec::new(),
            refused: None,
        })
    }

    /// What is expected of the kernel.
    pub(super) fn expected(&self) -> Expected {
        let mut endpoints = self.ports.iter().flat_map(|port| &port.endpoints);
        Expected { objects: self.refused.is_none(), endpoints: endpoints.any(EndpointView::is_used) }
    }

    /// The family.
    #[must_use]
    pub fn ip_family(&self) -> Option<IpFamily> {
        IpFamily::ALL.into_iter().find(|family| family.as_str() == self.family)
    }
}

impl PortView {
    fn of(port: &ReasonedPort, family: &Plan<'_>) -> PortView {
        let (plan, frontends) = (&port.plan, &port.plan.frontends);
        PortView {
            name: plan.name.port.to_string(),
            protocol: plan.name.protocol.to_string(),
            frontends: frontend_views(port, family.node_port_ips()),
            internal_local: port.internal_policy == TrafficPolicy::Local,
            external_local: frontends.external_policy == TrafficPolicy::Local,
            internal: plan.internal.kind(),
            external: frontends.externally_accessible().then(|| plan.external.kind()),
            source_ranges: frontends.source_ranges.iter().map(ToString::to_string).collect(),
            ranges_of_other_family: port.ranges_of_other_family.iter().map(ToString::to_string).collect(),
            node_port: port.node_port,
            endpoints: port.endpoints.iter().map(EndpointView::of).collect(),
        }
    }

    /// It has endpoints for traffic from wherever it comes.
    #[must_use]
    pub fn answers_everywhere(&self) -> bool {
        let is_served = |verdict| verdict == Verdict::Served(());
        is_served(self.internal) && self.external.is_none_or(is_served)
    }

    /// Its name as messages have it: `http (tcp)`.
    #[must_use]
    pub fn label(&self) -> String {
        match self.name.as_str() {
            "" => self.protocol.clone(),
            name => format!("{name} ({})", self.protocol),
        }
    }
}

fn frontend_views(port: &ReasonedPort, node_port_ips: Option<Vec<IpAddr>>) -> Vec<FrontendView> {
    let frontends = &port.plan.frontends;
    let view = |kind: &str, address: String| FrontendView { kind: kind.to_owned(), address };
    let at = |ip: &IpAddr| SocketAddr::new(*ip, frontends.port).to_string();
    let mut views: Vec<_> = frontends.cluster_ip.iter().map(|ip| view("cluster IP", at(ip))).collect();
    views.extend(frontends.external_ips.iter().map(|ip| view("external IP", at(ip))));
    views.extend(frontends.load_balancer_ips.iter().map(|ip| view("load-balancer IP", at(ip))));
    if let Some(port) = frontends.node_port {
        let addresses = match node_port_ips {
            None => vec![format!("*:{port}")],
            Some(ips) => ips.into_iter().map(|ip| SocketAddr::new(ip, port).to_string()).collect(),
        };
        views.extend(addresses.into_iter().map(|address| view("node port", address)));
    }
    views
}

impl EndpointView {
    fn of(endpoint: &EndpointUse) -> EndpointView {
        let facts = endpoint.facts;
        EndpointView {
            ip: endpoint.ip,
            port: endpoint.port,
            ready: facts.ready(),
            serving: facts.serving(),
            terminating: facts.terminating(),
            local: facts.local(),
            hinted_elsewhere: endpoint.hinted_elsewhere,
            internal: endpoint.internal,
            external: endpoint.external,
        }
    }

    /// It gets some traffic.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.internal.is_none() || self.external.is_none()
    }

    /// Address and port, where the port is known.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.port.map(|port| SocketAddr::new(self.ip, port))
    }
}

//! Who owns a node port when two Services claim it: the older one, then the first by name.

use crate::model::{Protocol, Service, ServiceName};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A node port and its protocol.
pub(crate) type NodePort = (Protocol, u16);

/// A Service port that cannot have its node port because another Service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortConflict {
    /// The Service that goes without.
    pub service: ServiceName,
    /// The node port's protocol.
    pub protocol: Protocol,
    /// The node port.
    pub node_port: u16,
    /// The Service that keeps it.
    pub owner: ServiceName,
}

impl fmt::Display for NodePortConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NodePortConflict { service, protocol, node_port, owner } = self;
        write!(f, "Service {service}: node port {node_port}/{protocol} belongs to Service {owner}")
    }
}

/// A claim; the order of claims is the order of precedence.
type Claim = (Option<i64>, ServiceName);

/// All claims of all Services.
#[derive(Debug, Default)]
pub(crate) struct NodePorts {
    claims: BTreeMap<NodePort, BTreeSet<Claim>>,
}

/// The node ports a Service asks for, with their protocols.
pub(super) fn ports_of(service: &Service) -> impl Iterator<Item = NodePort> + '_ {
    service.ports.iter().filter(|port| port.node_port != 0).map(|port| (port.protocol, port.node_port))
}

impl NodePorts {
    /// Records a Service's claims.
    pub(crate) fn claim(&mut self, service: &Service) {
        for port in ports_of(service) {
            self.claims.entry(port).or_default().insert((service.created, service.name.clone()));
        }
    }

    /// Forgets a Service's claims.
    pub(crate) fn release(&mut self, service: &Service) {
        for port in ports_of(service) {
            let Some(claims) = self.claims.get_mut(&port) else { continue };
            claims.remove(&(service.created, service.name.clone()));
            if claims.is_empty() {
                self.claims.remove(&port);
            }
        }
    }

    /// The Service that has the node port.
    pub(crate) fn owner(&self, port: NodePort) -> Option<&ServiceName> {
        self.claims.get(&port)?.first().map(|(_, name)| name)
    }

    /// Every Service that claims one of the ports.
    pub(crate) fn claimants(&self, ports: impl Iterator<Item = NodePort>) -> BTreeSet<ServiceName> {
        ports
            .filter_map(|port| self.claims.get(&port))
            .filter(|claims| claims.len() > 1)
            .flat_map(|claims| claims.iter().map(|(_, name)| name.clone()))
            .collect()
    }

    /// The ports of this Service, by index, that cannot have their node port: it is owned by
    /// another Service, or an earlier port of the Service has it.
    pub(crate) fn conflicts_of(&self, service: &Service) -> Vec<(usize, NodePortConflict)> {
        let mut own = BTreeSet::new();
        let claims = service.ports.iter().enumerate().filter(|(_, port)| port.node_port != 0);
        claims
            .filter_map(|(index, port)| {
                let owner = self.owner((port.protocol, port.node_port))?;
                let taken = *owner != service.name || !own.insert((port.protocol, port.node_port));
                let conflict = || NodePortConflict {
                    service: service.name.clone(),
                    protocol: port.protocol,
                    node_port: port.node_port,
                    owner: owner.clone(),
                };
                taken.then(|| (index, conflict()))
            })
            .collect()
    }
}

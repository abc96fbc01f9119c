//! Who owns a port of the node when two Services claim it, as a node port or as the port of a health
//! check: the older one, then the first by name.

use crate::model::{NodePortUse, Protocol, Service, ServiceName};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A port of the node and its protocol.
pub(super) type NodePort = (Protocol, u16);

/// A Service that cannot have a port of the node because another Service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortConflict {
    /// The Service that goes without.
    pub service: ServiceName,
    /// What it wanted the port for.
    pub wanted_for: NodePortUse,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The port.
    pub node_port: u16,
    /// The Service that keeps it.
    pub owner: ServiceName,
    /// The field in which the owner asks for it.
    pub owner_field: &'static str,
}

impl NodePortConflict {
    /// What is wrong, without the Service's name.
    #[must_use]
    pub fn complaint(&self) -> String {
        let NodePortConflict { wanted_for, protocol, node_port, owner, owner_field, .. } = self;
        let field = wanted_for.field();
        format!("{field}: {node_port}/{protocol} belongs to Service {owner} ({owner_field}); it is not used")
    }
}

impl fmt::Display for NodePortConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.complaint())
    }
}

/// A claim; the order of claims is the order of precedence.
type Claim = (Option<i64>, ServiceName, NodePortUse);

/// All claims of all Services.
#[derive(Debug, Default)]
pub(super) struct NodePorts {
    claims: BTreeMap<NodePort, BTreeSet<Claim>>,
    /// The conflicts that stand. All have been told.
    known: BTreeMap<ServiceName, Vec<NodePortConflict>>,
}

/// A Service's claims of ports of the node.
fn claims_of(service: &Service) -> impl Iterator<Item = (NodePort, Claim)> {
    let node_ports = service.ports.iter().enumerate();
    let node_ports =
        node_ports.map(|(index, port)| ((port.protocol, port.node_port), NodePortUse::Traffic(index)));
    let health_check = service.external.iter();
    let health_check =
        health_check.map(|it| ((Protocol::Tcp, it.health_check_node_port), NodePortUse::HealthCheck));
    let wanted = node_ports.chain(health_check).filter(|((_, port), _)| *port != 0);
    wanted.map(|(port, wanted_for)| (port, (service.created, service.name.clone(), wanted_for)))
}

impl NodePorts {
    /// Puts a new state of a Service in the place of the old one. Returns the Services that are to be
    /// judged again.
    pub(super) fn replace(&mut self, old: Option<&Service>, new: Option<&Service>) -> BTreeSet<ServiceName> {
        let mut ports = BTreeSet::new();
        for (port, claim) in old.into_iter().flat_map(claims_of) {
            self.claims.entry(port).or_default().remove(&claim);
            ports.insert(port);
        }
        for (port, claim) in new.into_iter().flat_map(claims_of) {
            self.claims.entry(port).or_default().insert(claim);
            ports.insert(port);
        }
        let mut affected: BTreeSet<ServiceName> =
            old.map(|service| service.name.clone()).into_iter().collect();
        for port in ports {
            match self.claims.get(&port) {
                Some(claims) if claims.is_empty() => drop(self.claims.remove(&port)),
                claims => affected.extend(claims.into_iter().flatten().map(|(_, name, _)| name.clone())),
            }
        }
        affected
    }

    /// The conflicts that stand, in the order of Services.
    pub(super) fn standing(&self) -> impl Iterator<Item = &NodePortConflict> {
        self.known.values().flatten()
    }

    /// The conflicts in which a Service goes without.
    pub(super) fn of(&self, name: &ServiceName) -> &[NodePortConflict] {
        self.known.get(name).map_or(&[], Vec::as_slice)
    }

    /// Judges a Service; `None` means that nothing changed since it was last judged.
    pub(super) fn judge(
        &mut self,
        name: &ServiceName,
        service: Option<&Service>,
    ) -> Option<Vec<NodePortConflict>> {
        let conflicts: Vec<_> = service.map_or_else(Vec::new, |service| self.conflicts(service));
        if self.of(name) == conflicts {
            return None;
        }
        match conflicts.is_empty() {
            true => self.known.remove(name),
            false => self.known.insert(name.clone(), conflicts.clone()),
        };
        Some(conflicts)
    }

    /// What a Service cannot have: of all claims of a port, the first one stands.
    fn conflicts(&self, service: &Service) -> Vec<NodePortConflict> {
        let conflict = |((protocol, node_port), claim): (NodePort, Claim)| {
            let first = self.claims.get(&(protocol, node_port))?.first()?;
            let (_, service, wanted_for) = claim.clone();
            (*first != claim).then(|| NodePortConflict {
                service,
                wanted_for,
                protocol,
                node_port,
                owner: first.1.clone(),
                owner_field: first.2.field(),
            })
        };
        claims_of(service).filter_map(conflict).collect()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.known.is_empty()
    }
}

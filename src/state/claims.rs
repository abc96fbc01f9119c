//! What all Services ask for, in the order in which claims of one frontend take precedence.

use crate::model::{FrontendKind, IpFamily, Protocol, Service, ServiceName, Wanted};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Where packets are sent to. Without an address it is a port of the node; port 0 stands for all ports of a
/// cluster IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

impl Place {
    pub(super) fn whole(address: IpAddr) -> Self {
        Place { address: Some(address), port: 0, protocol: Protocol::Tcp }
    }
}

/// One frontend that one Service asks for. Of those at one place, the first in this order precedes: what the
/// API server gives out goes before what the author of a Service writes, then the older Service before the
/// younger, then the name decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) place: Place,
    is_free: bool,
    /// An unknown time comes first.
    created: i64,
    pub(super) service: ServiceName,
    pub(super) kind: FrontendKind,
    /// The index of the Service's port.
    port: u16,
}

/// A claim but for its place.
type Precedence<'a> = (bool, i64, &'a ServiceName, FrontendKind, u16);

impl Claim {
    /// What is less takes precedence, at overlapping places, too.
    pub(super) fn precedence(&self) -> Precedence<'_> {
        (self.is_free, self.created, &self.service, self.kind, self.port)
    }

    /// Both lead to the same endpoints.
    pub(super) fn leads_where(&self, other: &Claim) -> bool {
        let is_traffic = |claim: &Claim| claim.kind != FrontendKind::HealthCheckNodePort;
        let same_port = self.port == other.port || self.kind == FrontendKind::ClusterIp;
        self.service == other.service && same_port && is_traffic(self) && is_traffic(other)
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted { kind: self.kind, address: self.place.address, port: usize::from(self.port) }
    }

    /// The least claim of a place.
    fn floor(place: Place) -> Claim {
        Claim {
            place,
            is_free: false,
            created: i64::MIN,
            service: ServiceName::default(),
            kind: FrontendKind::ClusterIp,
            port: 0,
        }
    }
}

/// A Service's claims, each once. External IPs are none where they are switched off.
pub(super) fn claims_of(service: &Service, external_ips: bool) -> BTreeSet<Claim> {
    let mut found = BTreeSet::new();
    let mut add = |kind: FrontendKind, place, index: usize| {
        // A Service has at most a few hundred ports: the API server stores no more.
        let Ok(port) = u16::try_from(index) else { return };
        let (name, created) = (service.name.clone(), service.created.unwrap_or(i64::MIN));
        found.insert(Claim { place, is_free: kind.is_free(), created, service: name, kind, port });
    };
    for address in IpFamily::ALL.into_iter().filter_map(|family| *service.cluster_ips.get(family)) {
        add(FrontendKind::ClusterIp, Place::whole(address), 0);
    }
    let external = service.external.as_deref();
    for (index, port) in service.ports.iter().enumerate() {
        let at = |address| Place { address, port: port.port, protocol: port.protocol };
        let ips = external.filter(|_| external_ips).map_or(&[][..], |it| &it.external_ips);
        ips.iter().for_each(|ip| add(FrontendKind::ExternalIp, at(Some(*ip)), index));
        let balancers = external.map_or(&[][..], |it| &it.load_balancer_ips);
        balancers.iter().for_each(|ip| add(FrontendKind::LoadBalancerIp, at(Some(*ip)), index));
        if port.node_port != 0 {
            add(FrontendKind::NodePort, Place { port: port.node_port, ..at(None) }, index);
        }
    }
    match external.map_or(0, |it| it.health_check_node_port) {
        0 => {}
        port => {
            let place = Place { address: None, port, protocol: Protocol::Tcp };
            add(FrontendKind::HealthCheckNodePort, place, 0);
        }
    }
    found
}

/// All claims of all Services. One flat set: most places have one claimant.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeSet<Claim>);

impl Claims {
    pub(super) fn insert(&mut self, claim: Claim) {
        self.0.insert(claim);
    }

    pub(super) fn remove(&mut self, claim: &Claim) {
        self.0.remove(claim);
    }

    /// The claims of a place, the first one first.
    pub(super) fn at(&self, place: Place) -> impl Iterator<Item = &Claim> {
        self.0.range(Claim::floor(place)..).take_while(move |claim| claim.place == place)
    }

    /// All claims of an address, whatever the port.
    pub(super) fn on(&self, address: IpAddr) -> impl Iterator<Item = &Claim> {
        let first = Claim::floor(Place::whole(address));
        self.0.range(first..).take_while(move |claim| claim.place.address == Some(address))
    }

    /// The claims of ports of the node.
    pub(super) fn on_node(&self) -> impl Iterator<Item = &Claim> {
        self.0.iter().take_while(|claim| claim.place.address.is_none())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Claim> {
        self.0.iter()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_takes_forty_eight_bytes() {
        assert_eq!(size_of::<Claim>(), 48);
    }
}

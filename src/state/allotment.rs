//! Which Service has which frontend, and which goes without: it is another's, or the node's, a pod's, the API
//! server's.
//!
//! Claims are collected as events come in and decided once before a pass, so that a list in which many Services
//! claim one frontend costs no more than any other.

use super::claims::{Claim, Claims, Place, claims_of};
use super::endpoints::{API_SERVICE, EndpointsAt};
use super::owners::{AddressOwner, Asked, FrontendConflict, Reserved, ReservedClaim};
use crate::model::{
    ApiServerAddress, EndpointSlice, FrontendKind, IpFamily, NodeFacts, Protocol, Service, ServiceName,
    ServiceRecord, Snapshot, Wanted,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Addresses of the API server that are remembered.
const MOST_API_SERVERS: usize = 1024;

/// Addresses and ports of the API server, and whether an interface of this node has the address.
type ApiServers = BTreeMap<SocketAddr, bool>;

/// What is to be said of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) claims: Vec<ReservedClaim>,
    pub(super) conflicts: Vec<FrontendConflict>,
}

/// What a Service goes without, and what is newly found about it.
pub(super) struct Verdict {
    pub(super) service: ServiceName,
    pub(super) refused: Box<[Wanted]>,
    pub(super) new: Findings,
}

/// All claims, and what was found about them.
#[derive(Debug, Default)]
pub(super) struct Allotment {
    pub(super) reserved: Reserved,
    claims: Claims,
    endpoints: EndpointsAt,
    /// Where the API server was reached since the start.
    told: ApiServers,
    /// The same, with its endpoints where it is reached at its cluster IP.
    api_servers: ApiServers,
    /// What has changed since the last decision concerns these.
    undecided: BTreeSet<ServiceName>,
    /// What stands. All has been told.
    known: BTreeMap<ServiceName, Findings>,
}

impl Allotment {
    /// Puts a new state of a Service in the place of the old one.
    pub(super) fn replace(&mut self, old: Option<&Service>, new: Option<&Service>, node: &NodeFacts) {
        let all = |service: Option<&Service>| {
            service.map(|service| claims_of(service, self.reserved.external_ips)).unwrap_or_default()
        };
        let (before, after) = (all(old), all(new));
        let (gone, come): (Vec<_>, Vec<_>) =
            (before.difference(&after).collect(), after.difference(&before).collect());
        gone.iter().for_each(|claim| self.claims.remove(claim));
        come.iter().for_each(|claim| self.claims.insert((*claim).clone()));
        for claim in gone.iter().chain(&come) {
            self.follow_endpoints(claim);
            self.reconsider(claim.place, node);
        }
        for service in [old, new].into_iter().flatten() {
            // Its ports may have changed, and they alone tell what of a cluster IP it has.
            for address in IpFamily::ALL.into_iter().filter_map(|family| *service.cluster_ips.get(family)) {
                self.reconsider(Place::whole(address), node);
            }
            self.undecided.insert(service.name.clone());
        }
    }

    /// Puts a new state of a slice in the place of the old one.
    pub(super) fn replace_slice(&mut self, old: Option<&EndpointSlice>, new: Option<&EndpointSlice>) {
        for address in self.endpoints.replace(old, new) {
            self.reconsider_address(address);
        }
    }

    /// The API server is reached at these, too.
    pub(super) fn tell_api_server(&mut self, addresses: &[ApiServerAddress]) {
        for ApiServerAddress { at, is_own } in addresses {
            let at = SocketAddr::new(at.ip().to_canonical(), at.port());
            if self.told.len() < MOST_API_SERVERS || self.told.contains_key(&at) {
                self.told.insert(at, *is_own);
            }
        }
    }

    /// The node has other addresses or pod networks.
    pub(super) fn node_changed(&mut self) {
        self.undecided.extend(self.claims.all().map(|claim| claim.service.clone()));
    }

    /// What stands, in the order of Services.
    pub(super) fn standing(&self) -> impl Iterator<Item = &Findings> {
        self.known.values()
    }

    /// What stands about one Service.
    pub(super) fn of(&self, name: &ServiceName) -> Option<&Findings> {
        self.known.get(name)
    }

    /// Decides again about what has changed.
    pub(super) fn allot(&mut self, snapshot: &Snapshot) -> Vec<Verdict> {
        self.endpoints.read(&snapshot.services);
        self.find_api_servers(snapshot);
        let undecided = std::mem::take(&mut self.undecided);
        let judge = Judge { allotment: self, snapshot };
        let judged: Vec<_> = undecided.into_iter().map(|name| judge.judge(name)).collect();
        judged.into_iter().map(|(name, refused, found)| self.verdict(name, refused, found)).collect()
    }

    /// Takes what was found over.
    fn verdict(&mut self, service: ServiceName, refused: BTreeSet<Wanted>, found: Findings) -> Verdict {
        let empty = Findings::default();
        let known = self.known.get(&service).unwrap_or(&empty);
        let new = Findings {
            claims: not_in(&known.claims, &found.claims),
            conflicts: not_in(&known.conflicts, &found.conflicts),
        };
        match found == empty {
            true => self.known.remove(&service),
            false => self.known.insert(service.clone(), found),
        };
        Verdict { service, refused: refused.into_iter().collect(), new }
    }

    fn follow_endpoints(&mut self, claim: &Claim) {
        let Some(address) = claim.place.address.filter(|_| claim.kind.is_free()) else { return };
        match self.claims.on(address).any(|claim| claim.kind.is_free()) {
            true => self.endpoints.follow(address),
            false => self.endpoints.forget(address),
        }
    }

    /// Every Service that claims a place, or one that overlaps with it, is to be judged again.
    fn reconsider(&mut self, place: Place, node: &NodeFacts) {
        match place.address {
            Some(address) if place.port == 0 => return self.reconsider_address(address),
            Some(_) => {}
            None => {
                let own = node.addresses.iter().chain(&self.reserved.node_addresses);
                let own = own.map(|address| Place { address: Some(*address), ..place });
                self.undecided
                    .extend(own.flat_map(|place| self.claims.at(place)).map(|it| it.service.clone()));
            }
        }
        self.undecided.extend(self.claims.at(place).map(|claim| claim.service.clone()));
    }

    fn reconsider_address(&mut self, address: IpAddr) {
        self.undecided.extend(self.claims.on(address).map(|claim| claim.service.clone()));
    }

    /// Finds where the API server is reached now. At its cluster IP it is reached at its endpoints, too.
    fn find_api_servers(&mut self, snapshot: &Snapshot) {
        let mut found = self.told.clone();
        if let Some((record, service)) = api_service(snapshot)
            && self.told.keys().any(|at| has_at(service, *at))
        {
            for slice in &record.slices {
                let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
                for (port, endpoint) in
                    ports.flat_map(|port| slice.endpoints.iter().map(move |it| (port, it)))
                {
                    let is_own = self.is_own(endpoint.address, &snapshot.node);
                    found.entry(SocketAddr::new(endpoint.address, port.port)).or_insert(is_own);
                }
            }
        }
        if found == self.api_servers {
            return;
        }
        let before = std::mem::replace(&mut self.api_servers, found);
        let changed: Vec<SocketAddr> = before
            .keys()
            .chain(self.api_servers.keys())
            .filter(|at| before.get(at) != self.api_servers.get(at))
            .copied()
            .collect();
        for at in changed {
            self.reconsider_address(at.ip());
            let ports = self.claims.on_node().filter(|claim| claim.place.port == at.port());
            self.undecided.extend(ports.map(|claim| claim.service.clone()));
        }
    }

    fn is_own(&self, address: IpAddr, node: &NodeFacts) -> bool {
        node.addresses.contains(&address) || self.reserved.node_addresses.contains(&address)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.endpoints.is_empty() && self.known.is_empty()
    }
}

/// The API server's Service, if it is known.
fn api_service(snapshot: &Snapshot) -> Option<(&ServiceRecord, &Service)> {
    let record = snapshot.services.get(API_SERVICE)?;
    Some((record, record.service.as_deref()?))
}

/// Whether an address and TCP port is at a cluster IP of the Service.
fn has_at(service: &Service, at: SocketAddr) -> bool {
    *service.cluster_ips.get(IpFamily::of(at.ip())) == Some(at.ip())
        && has_port(service, at.port(), Protocol::Tcp)
}

fn has_port(service: &Service, number: u16, protocol: Protocol) -> bool {
    service.ports.iter().any(|port| port.port == number && port.protocol == protocol)
}

/// Judges claims by what is known now.
struct Judge<'a> {
    allotment: &'a Allotment,
    snapshot: &'a Snapshot,
}

impl Judge<'_> {
    /// What a Service goes without, and what is to be said of it.
    fn judge(&self, name: ServiceName) -> (ServiceName, BTreeSet<Wanted>, Findings) {
        let (mut refused, mut found) = (BTreeSet::new(), Findings::default());
        let service = self.service(&name);
        let claims = service.map(|it| claims_of(it, self.allotment.reserved.external_ips));
        for claim in claims.iter().flatten() {
            if let Some(owner) = self.owner(claim) {
                let is_refused = self.is_refused(&owner);
                let asked = asked(claim, owner.is_api_server());
                found.claims.push(ReservedClaim { service: name.clone(), asked, owner, refused: is_refused });
                if is_refused {
                    refused.insert(claim.wanted());
                    continue;
                }
            }
            if let Some(rival) = self.rival(claim) {
                found.conflicts.push(FrontendConflict {
                    service: name.clone(),
                    asked: asked(claim, true),
                    owner: rival.service.clone(),
                    owner_field: rival.kind.field(),
                });
                refused.insert(claim.wanted());
            }
        }
        // A reserved address counts once, whatever the number of ports.
        found.claims.sort_unstable();
        found.claims.dedup();
        found.conflicts.sort_unstable();
        (name, refused, found)
    }

    fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.snapshot.services.get(name)?.service.as_deref()
    }

    fn is_refused(&self, owner: &AddressOwner) -> bool {
        owner.is_api_server() || self.allotment.reserved.strict
    }

    /// The claim of another Service, or of another use in this one, that goes before this claim.
    fn rival(&self, claim: &Claim) -> Option<&Claim> {
        let Claim { place, kind, .. } = claim;
        let whole = place.address.filter(|_| kind.is_free()).map(Place::whole);
        let own = place.address.filter(|address| kind.is_free() && self.is_own(*address));
        let on_node = own.map(|_| Place { address: None, ..*place });
        let places = [Some(*place), whole, on_node].into_iter().flatten();
        let firsts = places.filter_map(|place| self.first_at(place, claim));
        let first = firsts.min_by(|a, b| a.precedence().cmp(&b.precedence()))?;
        let goes_before = first.precedence() < claim.precedence() && !first.leads_where(claim);
        goes_before.then_some(first)
    }

    /// The first claim of a place that overlaps with a claim and is not refused itself.
    fn first_at(&self, place: Place, claim: &Claim) -> Option<&Claim> {
        let overlaps = |other: &Claim| {
            other.kind != FrontendKind::ClusterIp
                || claim.kind == FrontendKind::ClusterIp
                || self
                    .service(&other.service)
                    .is_some_and(|service| has_port(service, claim.place.port, claim.place.protocol))
        };
        let stands =
            |other: &Claim| other == claim || !self.owner(other).is_some_and(|owner| self.is_refused(&owner));
        self.allotment.claims.at(place).find(|other| overlaps(other) && stands(other))
    }

    /// Whose the place of a claim is, if it is not for Services to claim.
    fn owner(&self, claim: &Claim) -> Option<AddressOwner> {
        if let Some(owner) = self.api_server(claim) {
            return Some(owner);
        }
        let address = claim.place.address.filter(|_| claim.kind.is_free())?;
        let Allotment { reserved, claims, endpoints, .. } = self.allotment;
        let within = |cidrs: &[crate::model::Cidr]| cidrs.iter().any(|cidr| cidr.contains(&address));
        let range = AddressOwner::of_range(address);
        if range.is_some() {
            range
        } else if self.is_own(address) {
            Some(AddressOwner::Node)
        } else if claims.at(Place::whole(address)).next().is_some() {
            Some(AddressOwner::ClusterIp)
        } else if let Some(service) = endpoints.owner_beside(address, &claim.service) {
            Some(AddressOwner::Endpoint(service.clone()))
        } else if within(&reserved.service_cidrs) {
            Some(AddressOwner::ServiceNetwork)
        } else if within(&reserved.pod_cidrs) || within(&self.snapshot.node.pod_cidrs) {
            Some(AddressOwner::PodNetwork)
        } else {
            within(&reserved.node_cidrs).then_some(AddressOwner::NodeNetwork)
        }
    }

    /// Whether a claim is in the way to the API server. Its Service's cluster IP leads to it.
    fn api_server(&self, claim: &Claim) -> Option<AddressOwner> {
        let Claim { place, kind, service, .. } = claim;
        let servers = &self.allotment.api_servers;
        let Some(address) = place.address else {
            let is_own = |(at, is_own): (&SocketAddr, &bool)| {
                at.port() == place.port && (*is_own || at.ip().is_loopback())
            };
            let hit = place.protocol == Protocol::Tcp && servers.iter().any(is_own);
            return hit.then_some(AddressOwner::ApiServer);
        };
        let mut there = servers.range(SocketAddr::new(address, 0)..).take_while(|(at, _)| at.ip() == address);
        let hits = |port: u16| match kind {
            FrontendKind::ClusterIp => {
                self.service(service).is_some_and(|service| has_port(service, port, Protocol::Tcp))
            }
            _ => place.port == port && place.protocol == Protocol::Tcp,
        };
        if *kind == FrontendKind::ClusterIp && service.as_str() == API_SERVICE {
            None
        } else if there.clone().any(|(at, _)| hits(at.port())) {
            Some(AddressOwner::ApiServer)
        } else {
            let takes_all = self.allotment.reserved.takes_whole_addresses && there.any(|(_, is_own)| !is_own);
            takes_all.then_some(AddressOwner::ApiServerAddress)
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.allotment.is_own(address, &self.snapshot.node)
    }
}

/// Those that are not known; both are sorted.
fn not_in<T: Ord + Clone>(known: &[T], found: &[T]) -> Vec<T> {
    found.iter().filter(|it| known.binary_search(it).is_err()).cloned().collect()
}

/// What a claim asks for: with its port, unless it is for an address with all ports.
fn asked(claim: &Claim, with_port: bool) -> Asked {
    let Place { address, port, protocol } = claim.place;
    Asked { kind: claim.kind, address, port: (with_port && port != 0).then_some((port, protocol)) }
}

#[cfg(test)]
mod tests;

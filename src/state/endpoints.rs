//! Which Services have endpoints at the external addresses that Services ask for. Only those addresses are
//! remembered: there are few of them, and many endpoints.

use crate::model::{EndpointSlice, ServiceName, ServiceRecord};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The Service of the API server.
pub(super) const API_SERVICE: &str = "default/kubernetes";

/// The endpoints at addresses that are asked for.
#[derive(Debug, Default)]
pub(super) struct EndpointsAt {
    /// How many endpoints each Service has at an address.
    known: HashMap<IpAddr, BTreeMap<ServiceName, u32>>,
    /// Addresses whose endpoints have not been looked for.
    unread: BTreeSet<IpAddr>,
}

impl EndpointsAt {
    /// Remembers the endpoints of an address from the next `read` on.
    pub(super) fn follow(&mut self, address: IpAddr) {
        if !self.known.contains_key(&address) {
            self.unread.insert(address);
        }
    }

    pub(super) fn forget(&mut self, address: IpAddr) {
        self.unread.remove(&address);
        self.known.remove(&address);
    }

    /// Looks for the endpoints of the addresses that are new: one walk for all of them.
    pub(super) fn read(&mut self, services: &BTreeMap<ServiceName, ServiceRecord>) {
        let unread = std::mem::take(&mut self.unread);
        if unread.is_empty() {
            return;
        }
        self.known.extend(unread.iter().map(|address| (*address, BTreeMap::new())));
        for slice in services.values().flat_map(|record| &record.slices) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| unread.contains(&endpoint.address)) {
                let owners = self.known.entry(endpoint.address).or_default();
                *owners.entry(slice.service.clone()).or_default() += 1;
            }
        }
    }

    /// Puts a new state of a slice in the place of the old one. Returns the addresses at which a Service has its
    /// first endpoint now, or none any more.
    pub(super) fn replace(
        &mut self,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
    ) -> Vec<IpAddr> {
        if self.known.is_empty() {
            return Vec::new();
        }
        let mut changed = Vec::new();
        // What comes before what goes, so that what stays is not taken for a change.
        for (slice, comes) in
            new.map(|slice| (slice, true)).into_iter().chain(old.map(|slice| (slice, false)))
        {
            for address in slice.endpoints.iter().map(|endpoint| endpoint.address) {
                let Some(owners) = self.known.get_mut(&address) else { continue };
                let count = owners.get(&slice.service).copied().unwrap_or_default();
                let next = if comes { count.saturating_add(1) } else { count.saturating_sub(1) };
                if count == 0 || next == 0 {
                    changed.push(address);
                }
                match next {
                    0 => owners.remove(&slice.service),
                    next => owners.insert(slice.service.clone(), next),
                };
            }
        }
        changed
    }

    /// A Service with an endpoint at an address that is not of the asking one's namespace; the API server's
    /// count for all.
    pub(super) fn owner_beside(&self, address: IpAddr, asking: &ServiceName) -> Option<&ServiceName> {
        let owners = self.known.get(&address)?;
        // The Services of a namespace stand together: one of another namespace is first or last.
        let ends = [owners.keys().next(), owners.keys().next_back()].into_iter().flatten();
        let mut foreign = ends.filter(|service| service.namespace() != asking.namespace());
        let api = || owners.get_key_value(API_SERVICE).map(|(api, _)| api).filter(|api| *api != asking);
        foreign.next().or_else(api)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.unread.is_empty()
    }
}

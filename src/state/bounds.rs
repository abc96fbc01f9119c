//! Which Services ask for more than is programmed of one.

use crate::model::{Bound, Excess, Service, ServiceLimits, ServiceName, ServiceRecord};
use std::collections::BTreeMap;
use std::fmt;
use std::mem::discriminant;

/// Something of a Service that is over a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverBound {
    /// The Service.
    pub service: ServiceName,
    /// What it is.
    pub excess: Excess,
}

impl fmt::Display for OverBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.excess)
    }
}

/// The bounds, and the Services that are over them.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) limits: ServiceLimits,
    known: BTreeMap<ServiceName, Vec<OverBound>>,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { limits: ServiceLimits::NONE, known: BTreeMap::new() }
    }
}

impl Bounds {
    /// Leaves out of a Service what is over the bounds.
    pub(super) fn cut(&mut self, service: &mut Service) -> Vec<OverBound> {
        let found = self.limits.cut(service);
        self.put(&service.name, found, |bound| !is_of_endpoints(bound))
    }

    /// The Service is gone.
    pub(super) fn forget(&mut self, service: &ServiceName) {
        self.known.remove(service);
    }

    /// Looks how many endpoints a Service has.
    pub(super) fn count(&mut self, service: &ServiceName, record: &ServiceRecord) -> Vec<OverBound> {
        let found = self.limits.too_many_endpoints(record);
        self.put(service, found.into_iter().collect(), is_of_endpoints)
    }

    /// Puts what was found of some bounds in the place of what was known of these. Returns what is over a bound
    /// newly, not only by another number.
    fn put(&mut self, service: &ServiceName, found: Vec<Excess>, of: fn(Bound) -> bool) -> Vec<OverBound> {
        if found.is_empty() && !self.known.contains_key(service) {
            return Vec::new();
        }
        let known = self.known.entry(service.clone()).or_default();
        let is_new = |excess: &Excess| {
            known.iter().all(|it| discriminant(&it.excess.bound) != discriminant(&excess.bound))
        };
        let over = |excess: &Excess| OverBound { service: service.clone(), excess: *excess };
        let new = found.iter().filter(|excess| is_new(excess)).map(over).collect();
        known.retain(|it| !of(it.excess.bound));
        known.extend(found.iter().map(over));
        if known.is_empty() {
            self.known.remove(service);
        }
        new
    }

    /// What stands, in the order of Services.
    pub(super) fn standing(&self) -> impl Iterator<Item = &OverBound> {
        self.known.values().flatten()
    }

    /// What stands of one Service.
    pub(super) fn of(&self, service: &ServiceName) -> &[OverBound] {
        self.known.get(service).map_or(&[], Vec::as_slice)
    }
}

fn is_of_endpoints(bound: Bound) -> bool {
    matches!(bound, Bound::Endpoints { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{IpFamily, WatchEvent};
    use crate::state::Tracker;
    use crate::testing::cluster;

    fn name() -> ServiceName {
        cluster::name(0)
    }

    /// A Service with `ports` ports.
    fn service(ports: u16) -> WatchEvent {
        let WatchEvent::Service(mut service) = cluster::service(0) else { unreachable!() };
        let port = service.ports[0].clone();
        let numbered = |number| crate::model::ServicePort { port: number, ..port.clone() };
        service.ports = (1..=ports).map(numbered).collect();
        WatchEvent::Service(service)
    }

    fn new(tracker: &mut Tracker, event: WatchEvent) -> Vec<String> {
        tracker.fold(event);
        tracker.take_disputes().over_bounds.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_over_a_bound_is_told_once_and_stands_until_it_is_within() {
        let limits = ServiceLimits { ports: 2, ..ServiceLimits::NONE };
        let mut tracker = Tracker::default().limiting(limits);
        let standing = |tracker: &Tracker| {
            assert_eq!(tracker.over_bounds().count(), tracker.over_bounds_of(&name()).len());
            tracker.over_bounds().map(|it| it.excess.wanted).collect::<Vec<_>>()
        };
        assert!(new(&mut tracker, service(2)).is_empty());
        let text = format!(
            "Service {}: 3 ports in spec.ports, over --max-service-ports=2; its last ports are not used",
            name()
        );
        assert_eq!(new(&mut tracker, service(3)), [text]);
        assert_eq!(tracker.snapshot().services[&name()].service.as_ref().unwrap().ports.len(), 2);
        assert!(new(&mut tracker, service(4)).is_empty(), "by another number");
        assert_eq!(standing(&tracker), [4]);
        new(&mut tracker, service(1));
        assert_eq!(standing(&tracker), [0; 0]);
        assert_eq!(new(&mut tracker, service(3)).len(), 1);
        new(&mut tracker, WatchEvent::ServiceGone(name()));
        assert_eq!(standing(&tracker), [0; 0]);
    }

    #[test]
    fn endpoints_are_counted_as_slices_come_and_go() {
        let limits = ServiceLimits { endpoints: 3, ..ServiceLimits::NONE };
        let mut tracker = Tracker::default().limiting(limits);
        let slice = |number: u32| {
            let WatchEvent::Slice(mut slice) = cluster::slice(0, 2) else { unreachable!() };
            slice.name = format!("load/{number}").as_str().into();
            WatchEvent::Slice(slice)
        };
        new(&mut tracker, cluster::service(0));
        assert!(new(&mut tracker, slice(0)).is_empty());
        assert_eq!(new(&mut tracker, slice(1)).len(), 1);
        assert!(new(&mut tracker, slice(2)).is_empty(), "by another number");
        assert_eq!(tracker.over_bounds().next().unwrap().excess.wanted, 6);
        for number in [1, 2] {
            new(&mut tracker, WatchEvent::SliceGone(format!("load/{number}").as_str().into()));
        }
        assert_eq!((tracker.over_bounds().count(), tracker.endpoints(IpFamily::V4)), (0, 2));
        new(&mut tracker, slice(1));
        tracker.fold(WatchEvent::ServiceGone(name()));
        assert_eq!(tracker.over_bounds().count(), 0);
        assert_eq!(new(&mut tracker, cluster::service(0)).len(), 1, "its slices came first");
    }
}

//! The tracker: owner of the snapshot, and of what changed in it since the last pass.

use super::allotment::{Allotment, Findings};
use super::bounds::{Bounds, OverBound};
use super::owners::{FrontendConflict, Reserved, ReservedClaim};
use super::service_cidrs::ServiceCidrs;
use crate::model::{
    EndpointSlice, IpFamily, NodeFacts, ObjectKind, PerFamily, Service, ServiceLimits, ServiceName,
    SliceName, Snapshot, SourceProblem, WatchEvent,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What happened to one IP family since its last pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChangedObjects {
    /// Services of which the object or a slice changed.
    pub services: BTreeSet<ServiceName>,
    /// Our node's zone, addresses or pod networks changed: every Service may route differently.
    pub node: bool,
    /// The networks of cluster IPs changed; no Service is concerned.
    pub service_cidrs: bool,
    /// Trigger times (milliseconds since 1970) of the endpoint changes, for the latency metric.
    pub triggered: Vec<i64>,
}

/// What Services newly ask for and cannot have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disputes {
    /// Frontends that another Service has.
    pub conflicts: Vec<FrontendConflict>,
    /// Frontends that are none for Services.
    pub claims: Vec<ReservedClaim>,
    /// More than is programmed of one Service.
    pub over_bounds: Vec<OverBound>,
}

impl ChangedObjects {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.service_cidrs
    }
}

/// How many objects of each kind were told of; the source of upstream's counters. A list tells of all that
/// it names (kube-proxy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Service events.
    pub services: u64,
    /// EndpointSlice events.
    pub slices: PerFamily<u64>,
}

/// Folds events into a `Snapshot`.
#[derive(Debug, Default)]
pub struct Tracker {
    snapshot: Snapshot,
    /// Where a slice is filed: its Service can change, and a removal names only the slice.
    slice_services: HashMap<SliceName, ServiceName>,
    service_cidrs: ServiceCidrs,
    allotment: Allotment,
    bounds: Bounds,
    /// How many endpoints of a slice are refused; a slice without any is not there.
    refused_endpoints: BTreeMap<SliceName, u16>,
    endpoints: PerFamily<usize>,
    unlisted: Unlisted,
    complete: BTreeSet<ObjectKind>,
    /// What changes of these families is of no interest.
    unserved: PerFamily<bool>,
    changes: PerFamily<ChangedObjects>,
    triggers: PerFamily<BTreeMap<ServiceName, Vec<i64>>>,
    disputes: Disputes,
    problems: Box<[SourceProblem]>,
    started: i64,
    seen: Seen,
    /// The counts when the list under way began.
    before_list: Seen,
}

/// While a list runs: the objects of that kind it has not named yet.
#[derive(Debug, Default)]
struct Unlisted {
    services: Option<BTreeSet<ServiceName>>,
    slices: Option<BTreeSet<SliceName>>,
}

impl Tracker {
    /// An empty snapshot. `node` is what is known of the node before its object is seen;
    /// trigger times before `started` (milliseconds since 1970) are not reported.
    #[must_use]
    pub fn new(node: NodeFacts, started: i64) -> Self {
        let snapshot = Snapshot { node: Arc::new(node), ..Snapshot::default() };
        Tracker { snapshot, started, ..Tracker::default() }
    }

    /// The same snapshot, knowing which addresses are not for Services to claim.
    #[must_use]
    pub fn reserving(mut self, reserved: Reserved) -> Self {
        self.allotment.reserved = reserved;
        self
    }

    /// The same snapshot, of Services within these limits.
    #[must_use]
    pub fn limiting(mut self, limits: ServiceLimits) -> Self {
        self.bounds.limits = limits;
        self
    }

    /// Only these families are served: changes of any other family are forgotten and noted no more.
    pub fn serve_only(&mut self, families: impl Iterator<Item = IpFamily>) {
        self.unserved = PerFamily { v4: true, v6: true };
        families.for_each(|family| *self.unserved.get_mut(family) = false);
        for family in IpFamily::ALL {
            if *self.unserved.get(family) {
                self.take_changes(family);
            }
        }
    }

    /// The snapshot as it is now.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether Services and EndpointSlices have been listed once: before that, nothing may be
    /// programmed. The Node does not count (kube-proxy).
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.has_listed(ObjectKind::Service) && self.has_listed(ObjectKind::EndpointSlice)
    }

    /// Whether a kind has been listed once.
    #[must_use]
    pub fn has_listed(&self, kind: ObjectKind) -> bool {
        self.complete.contains(&kind)
    }

    /// How many endpoints the slices of a family hold, whatever their condition, once per port.
    #[must_use]
    pub fn endpoints(&self, family: IpFamily) -> usize {
        *self.endpoints.get(family)
    }

    /// Frontends that Services ask for and other Services have, as of the last decision.
    pub fn conflicts(&self) -> impl Iterator<Item = &FrontendConflict> {
        self.allotment.standing().flat_map(|found| &found.conflicts)
    }

    /// Those that one Service asks for.
    #[must_use]
    pub fn conflicts_of(&self, name: &ServiceName) -> &[FrontendConflict] {
        self.allotment.of(name).map_or(&[], |found| &found.conflicts)
    }

    /// Frontends that Services ask for and that are none for Services, as of the last decision.
    pub fn claims(&self) -> impl Iterator<Item = &ReservedClaim> {
        self.allotment.standing().flat_map(|found| &found.claims)
    }

    /// Those that one Service asks for.
    #[must_use]
    pub fn claims_of(&self, name: &ServiceName) -> &[ReservedClaim] {
        self.allotment.of(name).map_or(&[], |found| &found.claims)
    }

    /// What Services ask for beyond what is programmed of one.
    pub fn over_bounds(&self) -> impl Iterator<Item = &OverBound> {
        self.bounds.standing()
    }

    /// That of one Service.
    #[must_use]
    pub fn over_bounds_of(&self, name: &ServiceName) -> &[OverBound] {
        self.bounds.of(name)
    }

    /// The slices with endpoints whose addresses are refused, their Services, and how many these are.
    pub fn refused_endpoints(&self) -> impl Iterator<Item = (&SliceName, &ServiceName, u16)> {
        let refused = self.refused_endpoints.iter();
        refused.filter_map(|(slice, count)| Some((slice, self.slice_services.get(slice)?, *count)))
    }

    /// What the source cannot tell at the moment.
    #[must_use]
    pub fn problems(&self) -> &[SourceProblem] {
        &self.problems
    }

    /// Why there may be objects that nothing is known of, if there may be.
    #[must_use]
    pub fn unknown(&self) -> Option<&SourceProblem> {
        self.problems.iter().find(|problem| problem.hides_objects && !problem.stands)
    }

    /// Events seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen
    }

    #[cfg(test)]
    pub(super) fn allotment(&self) -> &Allotment {
        &self.allotment
    }

    /// What changed of a family since this was last called for it. Claims are decided first.
    pub fn take_changes(&mut self, family: IpFamily) -> ChangedObjects {
        self.allot();
        let mut changes = std::mem::take(self.changes.get_mut(family));
        changes.triggered = std::mem::take(self.triggers.get_mut(family)).into_values().flatten().collect();
        changes
    }

    /// What Services newly ask for and cannot have, since this was last called. Claims are decided first.
    pub fn take_disputes(&mut self) -> Disputes {
        self.allot();
        let mut disputes = std::mem::take(&mut self.disputes);
        // A list can name the owner of a frontend last.
        disputes.conflicts.retain(|it| self.conflicts_of(&it.service).contains(it));
        disputes.over_bounds.retain(|it| !self.bounds.of(&it.service).is_empty());
        disputes.claims.retain(|it| self.claims_of(&it.service).contains(it));
        disputes
    }

    /// Decides which Service has which frontend, by all that has been folded in.
    pub fn allot(&mut self) {
        for verdict in self.allotment.allot(&self.snapshot) {
            if let Some(record) = self.snapshot.services.get_mut(&verdict.service)
                && record.refused != verdict.refused
            {
                record.refused = verdict.refused;
                let families = families([record.service.as_deref(), None]);
                self.mark(&verdict.service, families);
            }
            let Findings { claims, conflicts } = verdict.new;
            self.disputes.claims.extend(claims);
            self.disputes.conflicts.extend(conflicts);
        }
    }

    /// How many Services wait for a pass.
    #[must_use]
    pub fn pending(&self) -> usize {
        let (v4, v6) = (&self.changes.v4.services, &self.changes.v6.services);
        // It is asked with every event, and most clusters have one family.
        if v4.is_empty() || v6.is_empty() { v4.len() + v6.len() } else { v4.union(v6).count() }
    }

    /// Whether `take_changes` would yield something to do. Claims are decided first.
    #[must_use]
    pub fn has_changes(&mut self, family: IpFamily) -> bool {
        self.allot();
        !self.changes.get(family).is_empty()
    }

    /// Folds one event into the snapshot.
    pub fn fold(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Listing(kind) => self.begin_list(kind),
            WatchEvent::Listed(kind) => self.end_list(kind),
            WatchEvent::Service(service) => self.fold_service(service),
            WatchEvent::ServiceGone(name) => self.remove_service(&name),
            WatchEvent::Slice(slice) => self.fold_slice(*slice),
            WatchEvent::SliceGone(name) => self.remove_slice(&name),
            WatchEvent::Node(node) => self.fold_node(node),
            // The last facts stay in force: a deleted Node object moves no traffic (kube-proxy).
            WatchEvent::NodeGone => {}
            WatchEvent::ServiceCidr(name, cidrs) => {
                self.service_cidrs.fold(name, cidrs);
                self.settle_service_cidrs();
            }
            WatchEvent::ServiceCidrGone(name) => {
                self.service_cidrs.remove(&name);
                self.settle_service_cidrs();
            }
            WatchEvent::Problems(problems) => self.problems = problems,
            WatchEvent::ApiServer(addresses) => self.allotment.tell_api_server(&addresses),
        }
    }

    fn begin_list(&mut self, kind: ObjectKind) {
        match kind {
            ObjectKind::Service => {
                match self.unlisted.services.is_some() {
                    // It was cut short: none of it counts.
                    true => self.seen.services = self.before_list.services,
                    false => self.before_list.services = self.seen.services,
                }
                let known = self.snapshot.services.iter();
                let names = known.filter(|(_, record)| record.service.is_some());
                self.unlisted.services = Some(names.map(|(name, _)| name.clone()).collect());
            }
            ObjectKind::EndpointSlice => {
                match self.unlisted.slices.is_some() {
                    true => self.seen.slices = self.before_list.slices,
                    false => self.before_list.slices = self.seen.slices,
                }
                self.unlisted.slices = Some(self.slice_services.keys().cloned().collect());
            }
            ObjectKind::ServiceCidr => self.service_cidrs.begin_list(),
            ObjectKind::Node => {}
        }
    }

    fn end_list(&mut self, kind: ObjectKind) {
        self.complete.insert(kind);
        match kind {
            ObjectKind::Service => {
                for name in self.unlisted.services.take().unwrap_or_default() {
                    self.remove_service(&name);
                }
            }
            ObjectKind::EndpointSlice => {
                for name in self.unlisted.slices.take().unwrap_or_default() {
                    self.remove_slice(&name);
                }
            }
            ObjectKind::ServiceCidr => {
                self.service_cidrs.end_list();
                self.settle_service_cidrs();
            }
            ObjectKind::Node => {}
        }
    }

    /// Notes that the families of a Service have to look at it.
    fn mark(&mut self, name: &ServiceName, families: PerFamily<bool>) {
        for family in IpFamily::ALL.into_iter().filter(|family| *families.get(*family)) {
            self.mark_in(family, name);
        }
    }

    fn mark_in(&mut self, family: IpFamily, name: &ServiceName) {
        if !self.unserved.get(family) {
            self.changes.get_mut(family).services.insert(name.clone());
        }
    }

    fn fold_service(&mut self, mut service: Box<Service>) {
        self.seen.services += 1;
        if let Some(unlisted) = &mut self.unlisted.services {
            unlisted.remove(&service.name);
        }
        let name = service.name.clone();
        self.disputes.over_bounds.extend(self.bounds.cut(&mut service));
        let record = self.snapshot.services.entry(name.clone()).or_default();
        if record.service.as_ref() == Some(&service) {
            return;
        }
        let old = record.service.as_deref();
        let families = families([old, Some(&service)]);
        self.allotment.replace(old, Some(&service), &self.snapshot.node);
        record.service = Some(service);
        self.disputes.over_bounds.extend(self.bounds.count(&name, record));
        self.mark(&name, families);
    }

    fn remove_service(&mut self, name: &ServiceName) {
        // A Service that is none of ours counts, too (kube-proxy).
        self.seen.services += 1;
        let Some(record) = self.snapshot.services.get_mut(name) else { return };
        let Some(old) = record.service.take() else { return };
        self.allotment.replace(Some(&old), None, &self.snapshot.node);
        self.bounds.forget(name);
        self.mark(name, families([Some(&*old), None]));
        self.drop_empty(name);
    }

    fn fold_slice(&mut self, slice: EndpointSlice) {
        *self.seen.slices.get_mut(slice.family) += 1;
        let is_listed = self.unlisted.slices.is_some();
        if let Some(unlisted) = &mut self.unlisted.slices {
            unlisted.remove(&slice.name);
        }
        if self.slice_services.get(&slice.name).is_some_and(|service| *service != slice.service) {
            self.take_slice(&slice.name.clone());
        }
        let record = self.snapshot.services.entry(slice.service.clone()).or_default();
        let place = record.slices.binary_search_by(|known| known.name.cmp(&slice.name));
        if is_listed && place.is_ok_and(|index| record.slices[index] == slice) {
            return;
        }
        self.note_slice(&slice);
        self.put_slice(slice);
    }

    /// Notes that a slice has changed, be it in a field that the model leaves out, such as a label:
    /// kube-proxy syncs and measures then, too.
    fn note_slice(&mut self, slice: &EndpointSlice) {
        self.mark_in(slice.family, &slice.service);
        let triggered = slice.triggered.filter(|time| *time >= self.started);
        if let Some(time) = triggered.filter(|_| !self.unserved.get(slice.family)) {
            self.triggers.get_mut(slice.family).entry(slice.service.clone()).or_default().push(time);
        }
        match slice.refused {
            0 => self.refused_endpoints.remove(&slice.name),
            count => self.refused_endpoints.insert(slice.name.clone(), count),
        };
    }

    fn put_slice(&mut self, slice: EndpointSlice) {
        let service = slice.service.clone();
        *self.endpoints.get_mut(slice.family) += weight(&slice);
        let record = self.snapshot.services.entry(slice.service.clone()).or_default();
        let place = record.slices.binary_search_by(|known| known.name.cmp(&slice.name));
        let old = place.ok().map(|index| &record.slices[index]);
        self.allotment.replace_slice(old, Some(&slice));
        match place {
            Ok(index) => {
                let old = std::mem::replace(&mut record.slices[index], slice);
                *self.endpoints.get_mut(old.family) -= weight(&old);
            }
            Err(index) => {
                self.slice_services.insert(slice.name.clone(), slice.service.clone());
                record.slices.reserve_exact(1);
                record.slices.insert(index, slice);
            }
        }
        let new = self.bounds.count(&service, record);
        self.disputes.over_bounds.extend(new);
    }

    /// A slice that was never known could not be used or was never there: it does not count (kube-proxy).
    fn remove_slice(&mut self, name: &SliceName) {
        if let Some(family) = self.take_slice(name) {
            *self.seen.slices.get_mut(family) += 1;
        }
    }

    /// Takes a slice out; returns its family.
    fn take_slice(&mut self, name: &SliceName) -> Option<IpFamily> {
        let service = self.slice_services.remove(name)?;
        self.refused_endpoints.remove(name);
        let record = self.snapshot.services.get_mut(&service)?;
        let index = record.slices.binary_search_by(|known| known.name.cmp(name)).ok()?;
        let old = record.slices.remove(index);
        self.allotment.replace_slice(Some(&old), None);
        *self.endpoints.get_mut(old.family) -= weight(&old);
        let new = self.bounds.count(&service, record);
        self.disputes.over_bounds.extend(new);
        self.triggers.get_mut(old.family).remove(&service);
        self.drop_empty(&service);
        self.mark_in(old.family, &service);
        Some(old.family)
    }

    fn drop_empty(&mut self, name: &ServiceName) {
        let empty =
            |record: &crate::model::ServiceRecord| record.service.is_none() && record.slices.is_empty();
        if self.snapshot.services.get(name).is_some_and(empty) {
            self.snapshot.services.remove(name);
        }
    }

    /// Notes the families whose networks of cluster IPs are others than before.
    fn settle_service_cidrs(&mut self) {
        let now = self.service_cidrs.all();
        for differing in self.snapshot.service_cidrs.symmetric_difference(&now) {
            self.changes.get_mut(IpFamily::of_cidr(differing)).service_cidrs = true;
        }
        self.snapshot.service_cidrs = now;
    }

    fn fold_node(&mut self, node: Arc<NodeFacts>) {
        let node = Arc::new(node.filled_up_from(&self.snapshot.node));
        let known = std::mem::replace(&mut self.snapshot.node, node);
        let node = &self.snapshot.node;
        let moved = (&known.addresses, &known.pod_cidrs) != (&node.addresses, &node.pod_cidrs);
        let counts = known.zone != node.zone || moved;
        for family in IpFamily::ALL {
            self.changes.get_mut(family).node |= counts;
        }
        if moved {
            self.allotment.node_changed();
        }
    }
}

/// The families in which any of these has a cluster IP.
fn families(services: [Option<&Service>; 2]) -> PerFamily<bool> {
    let serves = |family| services.iter().flatten().any(|service| service.cluster_ips.get(family).is_some());
    PerFamily::build(serves)
}

fn weight(slice: &EndpointSlice) -> usize {
    slice.endpoints.len() * slice.ports.len()
}

#[cfg(test)]
mod tests;

//! Views of what the loop knows: of one Service, of a page of Services, of the node as a whole.

use super::table::{Row, Services};
use super::view::{Contest, ContestedIp, ContestedPort, FamilyView, ServiceView};
use crate::backend::KernelObject;
use crate::model::{EndpointFacts, ServiceName, Snapshot, listed_ips, node_port_words, word};
use crate::state::{Asked, FrontendConflict, ReservedClaim};
use crate::sync::{FamilySync, Identity, LoopState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;

/// Services in one answer.
const PAGE: usize = 500;
/// Endpoints, once per port, after which a page ends: their rules are part of it.
const PAGE_ENDPOINTS: usize = 20_000;

/// What the loop knows of the cluster, in numbers, and how far it has got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Mode and tools.
    #[serde(flatten)]
    pub identity: Identity,
    /// Our node.
    pub node: String,
    /// Its zone, if it has one.
    pub zone: Option<String>,
    /// The node's own IP by family, where it is known.
    pub node_ips: BTreeMap<String, IpAddr>,
    /// The addresses that answer on node ports, by family; nothing means every address of the node.
    pub node_port_ips: BTreeMap<String, Option<Vec<IpAddr>>>,
    /// Services and EndpointSlices have been listed once.
    pub is_complete: bool,
    /// Services with a cluster IP.
    pub services: usize,
    /// Endpoints by family, once per port.
    pub endpoints: BTreeMap<String, usize>,
    /// Endpoints that terminate and still serve.
    pub draining: usize,
    /// Services whose latest change is not in the kernel yet.
    pub pending: usize,
}

impl std::fmt::Display for Overview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let zone = self.zone.as_deref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
        let Identity { mode, flavor } = &self.identity;
        writeln!(f, "Node       {}{zone}", self.node)?;
        writeln!(f, "Node IPs   {}", listed_ips(self.node_ips.values()))?;
        for (family, ips) in &self.node_port_ips {
            writeln!(f, "Node ports {family} on {}", node_port_words(ips.as_deref()))?;
        }
        let tools = if flavor.is_empty() { String::new() } else { format!(" (tools: iptables-{flavor})") };
        writeln!(f, "Mode       {mode}{tools}")?;
        writeln!(f, "Services   {}, {} waiting for a sync", self.services, self.pending)?;
        for (family, count) in &self.endpoints {
            writeln!(f, "Endpoints  {count} {family}")?;
        }
        writeln!(f, "Draining   {}", self.draining)?;
        if !self.is_complete {
            writeln!(f, "Waiting for the first list of Services and EndpointSlices: nothing is programmed")?;
        }
        Ok(())
    }
}

/// What one Service asks for and should not have, or does not: addresses, and ports of the node.
fn contested(
    claims: &[ReservedClaim],
    conflicts: &[FrontendConflict],
) -> (Vec<ContestedIp>, Vec<ContestedPort>) {
    let reserved = claims.iter().map(|claim| {
        let contest = if claim.owner.is_api_server() { Contest::ApiServer } else { Contest::Foreign };
        (&claim.asked, contest, claim.refused, None, claim.complaint())
    });
    let taken = conflicts.iter().map(|conflict| {
        (&conflict.asked, Contest::Taken, true, Some(conflict.owner.to_string()), conflict.complaint())
    });
    let (mut ips, mut ports) = (Vec::new(), Vec::new());
    for (Asked { address, port, .. }, contest, refused, owner, complaint) in reserved.chain(taken) {
        match (*address, *port) {
            (Some(address), _) => ips.push(ContestedIp { address, contest, refused, owner, complaint }),
            (None, Some((node_port, protocol))) => {
                let protocol = protocol.to_string();
                ports.push(ContestedPort { node_port, protocol, contest, owner, complaint });
            }
            (None, None) => {}
        }
    }
    (ips, ports)
}

/// One Service; `None` when it is not known.
#[must_use]
pub fn service(state: &LoopState<'_>, name: &ServiceName) -> Option<ServiceView> {
    view(state, name, true)
}

/// One Service; with what it needs of the kernel, if that is wanted.
fn view(state: &LoopState<'_>, name: &ServiceName, with_kernel: bool) -> Option<ServiceView> {
    let LoopState { identity, tracker, families } = *state;
    let snapshot = tracker.snapshot();
    let record = snapshot.services.get(name).filter(|record| record.service.is_some())?;
    let one = Snapshot {
        services: BTreeMap::from([(name.clone(), record.clone())]),
        node: snapshot.node.clone(),
        ..Snapshot::default()
    };
    let part = |family: &FamilySync| {
        let plan = family.plan_of(&one).with_endpoint_count(tracker.endpoints(family.family()));
        let wanted = if with_kernel { family.wanted(&plan) } else { Vec::new() };
        let refused = family.refused(name).map(str::to_owned);
        Some(FamilyView { wanted, refused, ..FamilyView::of(&plan, name)? })
    };
    let (contested_ips, contested_ports) = contested(tracker.claims_of(name), tracker.conflicts_of(name));
    Some(ServiceView {
        service: name.to_string(),
        node: snapshot.node.name.to_string(),
        zone: snapshot.node.zone.as_deref().map(|zone| word(zone).into_owned()),
        mode: identity.mode.clone(),
        flavor: identity.flavor.clone(),
        contested_ips,
        contested_ports,
        too_large: tracker.over_bounds_of(name).iter().map(|it| it.excess.to_string()).collect(),
        refused_endpoints: record.slices.iter().map(|slice| usize::from(slice.refused)).sum(),
        families: families.iter().filter_map(part).collect(),
    })
}

/// One page of the Services of a namespace (`None`: of all), after `namespace/name`, in the order of names.
#[must_use]
pub fn services(state: &LoopState<'_>, namespace: Option<&str>, after: Option<&str>) -> Services {
    let after = after.and_then(|text| text.split_once('/')).map(|(ns, name)| ServiceName::new(ns, name));
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    let known = state.tracker.snapshot().services.range((start, Bound::Unbounded));
    let mut names = known
        .filter(|(_, record)| record.service.is_some())
        .map(|(name, _)| name)
        .filter(|name| namespace.is_none_or(|wanted| wanted == name.namespace()));
    let page: Vec<&ServiceName> = names.by_ref().take(PAGE).collect();
    let last = page.last().map(ToString::to_string);
    let views = page.iter().filter_map(|name| view(state, name, false));
    Services {
        items: views.map(|view| Row::of(&view)).collect(),
        next: last.filter(|_| names.next().is_some()),
    }
}

/// A part of the node: Services, and what they need of the kernel together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePage {
    /// Mode and tools.
    #[serde(flatten)]
    pub identity: Identity,
    /// Our node.
    pub node: String,
    /// Services, without what each of them needs of the kernel.
    pub services: Vec<ServiceView>,
    /// What all of them need of it, by family.
    pub wanted: BTreeMap<String, Vec<KernelObject>>,
    /// Ask again for what comes after this name; `None` at the end.
    #[serde(rename = "continue")]
    pub next: Option<String>,
}

/// One page of the node, after the Service `namespace/name`.
#[must_use]
pub fn node_page(state: &LoopState<'_>, after: Option<&str>) -> NodePage {
    let LoopState { identity, tracker, families } = *state;
    let snapshot = tracker.snapshot();
    let after = after.and_then(|text| text.split_once('/')).map(|(ns, name)| ServiceName::new(ns, name));
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    let known = snapshot.services.range((start, Bound::Unbounded));
    let (mut page, mut endpoints, mut next) = (BTreeMap::new(), 0, None);
    for (name, record) in known.filter(|(_, record)| record.service.is_some()) {
        if page.len() == PAGE || endpoints > PAGE_ENDPOINTS {
            next = page.last_key_value().map(|(last, _): (&ServiceName, _)| last.to_string());
            break;
        }
        endpoints +=
            record.slices.iter().map(|slice| slice.endpoints.len() * slice.ports.len()).sum::<usize>();
        page.insert(name.clone(), record.clone());
    }
    let page = Snapshot {
        services: page,
        node: snapshot.node.clone(),
        service_cidrs: snapshot.service_cidrs.clone(),
    };
    let wanted = |family: &FamilySync| {
        let refused = page.services.keys().filter(|name| family.refused(name).is_some()).cloned().collect();
        let plan = family.plan_of(&page).without(&refused);
        let plan = plan.with_endpoint_count(tracker.endpoints(family.family()));
        (family.family().to_string(), family.wanted(&plan))
    };
    NodePage {
        identity: identity.clone(),
        node: snapshot.node.name.to_string(),
        services: page.services.keys().filter_map(|name| view(state, name, false)).collect(),
        wanted: families.iter().map(wanted).collect(),
        next,
    }
}

/// The node as a whole.
#[must_use]
pub fn overview(state: &LoopState<'_>) -> Overview {
    let LoopState { identity, tracker, families } = *state;
    let snapshot = tracker.snapshot();
    let records = snapshot.services.values();
    let slices = records.clone().flat_map(|record| &record.slices);
    let drains = |facts: EndpointFacts| facts.terminating() && facts.serving();
    let endpoints = families.iter().map(FamilySync::family);
    let node_ip = |it: &FamilySync| Some((it.family().to_string(), it.node_ip()?));
    let node_port_ips = |it: &FamilySync| (it.family().to_string(), it.node_port_ips());
    Overview {
        node_ips: families.iter().filter_map(node_ip).collect(),
        node_port_ips: families.iter().map(node_port_ips).collect(),
        identity: identity.clone(),
        node: snapshot.node.name.to_string(),
        zone: snapshot.node.zone.as_deref().map(|zone| word(zone).into_owned()),
        is_complete: tracker.is_complete(),
        services: records.filter(|record| record.service.is_some()).count(),
        endpoints: endpoints.map(|it| (it.to_string(), tracker.endpoints(it))).collect(),
        draining: slices.flat_map(|slice| &slice.endpoints).filter(|it| drains(it.facts)).count(),
        pending: tracker.pending(),
    }
}

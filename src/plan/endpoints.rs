//! Which endpoints serve a Service port: slices merged, readiness, traffic policy, topology.

use super::Frontends;
use super::topology::{Hinted, Preference};
use crate::model::{
    EndpointFacts, EndpointSlice, IpFamily, NodeFacts, ServicePort, ServiceRecord, SliceEndpoint,
    TrafficPolicy, Verdict,
};
use std::net::{IpAddr, SocketAddr};

/// An endpoint that traffic from this node can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address and port.
    pub address: SocketAddr,
    /// The same as `ip:port` or `[ip]:port`: what rules, comments and chain-name hashes hold.
    pub text: Box<str>,
    /// It is in the list of the Cluster policy.
    pub in_cluster: bool,
    /// It is in the list of the Local policy.
    pub in_local: bool,
}

/// An endpoint of a Service port, in whatever condition.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) address: SocketAddr,
    pub(super) text: Box<str>,
    pub(super) facts: EndpointFacts,
    pub(super) zone_hint: Hinted,
    pub(super) node_hint: Hinted,
}

impl Candidate {
    pub(super) fn is_hinted_elsewhere(&self) -> bool {
        self.zone_hint == Hinted::Others
    }

    pub(super) fn is_fallback(&self) -> bool {
        self.facts.serving() && self.facts.terminating()
    }
}

/// All endpoints of a Service port, merged over its slices and sorted by text.
///
/// An address that stands twice counts once: the later entry wins, unless it is terminating
/// (kube-proxy: a pod's successor can have its address). If they are more than `most`, those stay that serve best.
pub(super) fn candidates(
    (family, most): (IpFamily, Option<usize>),
    record: &ServiceRecord,
    port: &ServicePort,
    node: &NodeFacts,
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for slice in record.slices.iter().filter(|slice| slice.family == family) {
        for number in numbers(slice, port) {
            found.extend(slice.endpoints.iter().map(|endpoint| candidate(slice, endpoint, number, node)));
        }
    }
    // Stable: equal texts stay in the order of their slices.
    found.sort_by(|a, b| a.text.cmp(&b.text));
    found.dedup_by(|later, earlier| {
        let same = later.text == earlier.text;
        if same && !later.facts.terminating() {
            std::mem::swap(later, earlier);
        }
        same
    });
    if let Some(most) = most.filter(|most| found.len() > *most) {
        let fallback = |it: &Candidate| if it.is_fallback() { 1 } else { 2 };
        let rank = |it: &Candidate| if it.facts.ready() { 0 } else { fallback(it) };
        found.sort_by_key(|it| (rank(it), !it.facts.local(), it.is_hinted_elsewhere()));
        found.truncate(most);
        found.sort_by(|a, b| a.text.cmp(&b.text));
    }
    found
}

/// The numbers on which a slice's endpoints serve a Service port; none when it does not have the port.
pub(super) fn numbers<'a>(
    slice: &'a EndpointSlice,
    port: &'a ServicePort,
) -> impl Iterator<Item = u16> + use<'a> {
    let same = slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol);
    same.map(|port| port.port)
}

fn candidate(slice: &EndpointSlice, endpoint: &SliceEndpoint, port: u16, node: &NodeFacts) -> Candidate {
    let hints = slice.hints_of(endpoint);
    Candidate {
        address: SocketAddr::new(endpoint.address, port),
        text: target_text(endpoint.address, port),
        facts: endpoint.facts,
        zone_hint: Hinted::by(hints.map_or(&[], |hints| &hints.zones), node.zone.as_deref()),
        node_hint: Hinted::by(hints.map_or(&[], |hints| &hints.nodes), Some(&node.name)),
    }
}

fn target_text(address: IpAddr, port: u16) -> Box<str> {
    SocketAddr::new(address, port).to_string().into()
}

/// Which candidates are used for which traffic.
#[derive(Debug)]
pub(super) struct Choice {
    /// Candidates, by index, in the Cluster policy's list.
    cluster: Vec<bool>,
    /// Candidates, by index, in the Local policy's list.
    local: Vec<bool>,
    /// Which hints count in the Cluster policy's list.
    pub(super) preference: Preference,
    pub(super) has_any: bool,
    internal_policy: TrafficPolicy,
    external_policy: TrafficPolicy,
}

impl Choice {
    pub(super) fn of(candidates: &[Candidate], internal: TrafficPolicy, frontends: &Frontends) -> Self {
        let accessible = frontends.externally_accessible();
        let external = frontends.external_policy;
        let uses_cluster = internal == TrafficPolicy::Cluster || accessible;
        let uses_local = internal == TrafficPolicy::Local || (external == TrafficPolicy::Local && accessible);
        let mut choice = Choice {
            cluster: vec![false; candidates.len()],
            local: vec![false; candidates.len()],
            preference: Preference::Any,
            has_any: false,
            internal_policy: internal,
            external_policy: external,
        };
        if uses_cluster {
            let preference = Preference::of(candidates);
            choice.preference = preference;
            choice.cluster =
                ready_or_fallback(candidates, |candidate| preference.allows(candidate), |_| true);
            choice.has_any = choice.cluster.contains(&true);
        }
        if uses_local {
            let here = |candidate: &Candidate| candidate.facts.local();
            choice.local = ready_or_fallback(candidates, here, here);
            choice.has_any |=
                candidates.iter().any(|candidate| candidate.facts.ready() || candidate.is_fallback());
        }
        choice
    }

    /// Traffic to the cluster IP.
    pub(super) fn internal(&self) -> Verdict<TrafficPolicy> {
        self.route(self.internal_policy)
    }

    /// Traffic from outside.
    pub(super) fn external(&self) -> Verdict<TrafficPolicy> {
        self.route(self.external_policy)
    }

    fn route(&self, policy: TrafficPolicy) -> Verdict<TrafficPolicy> {
        if self.list(policy).contains(&true) {
            Verdict::Served(policy)
        } else if self.has_any {
            Verdict::Dropped
        } else {
            Verdict::Refused
        }
    }

    /// The candidates, by index, in the list of a policy.
    pub(super) fn list(&self, policy: TrafficPolicy) -> &[bool] {
        match policy {
            TrafficPolicy::Cluster => &self.cluster,
            TrafficPolicy::Local => &self.local,
        }
    }

    pub(super) fn into_targets(self, candidates: Vec<Candidate>) -> Vec<Target> {
        let chosen = candidates.into_iter().zip(self.cluster.into_iter().zip(self.local));
        let used = chosen.filter(|(_, (in_cluster, in_local))| *in_cluster || *in_local);
        used.map(|(candidate, (in_cluster, in_local))| Target {
            address: candidate.address,
            text: candidate.text,
            in_cluster,
            in_local,
        })
        .collect()
    }
}

/// The ready candidates that `allowed` lets through; when there is none, those that still serve
/// while they terminate and that `fallback_allowed` lets through.
fn ready_or_fallback(
    candidates: &[Candidate],
    allowed: impl Fn(&Candidate) -> bool,
    fallback_allowed: impl Fn(&Candidate) -> bool,
) -> Vec<bool> {
    let ready: Vec<bool> = candidates.iter().map(|it| it.facts.ready() && allowed(it)).collect();
    if ready.contains(&true) {
        return ready;
    }
    candidates.iter().map(|it| it.is_fallback() && fallback_allowed(it)).collect()
}

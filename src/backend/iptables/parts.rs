//! The endpoints of a large Service port, in parts.
//!
//! One rule per endpoint in one chain costs every new connection a walk over half of them, every change of an endpoint
//! a rewrite of all, and the tools, which are quadratic, half a minute for 50,000. So the rules of more than 1,000 stand
//! in chains of parts. An endpoint's own name says which part it is in: if one comes or goes, one part changes.

use super::names::ChainId;
use crate::model::{ServicePortName, TrafficPolicy};

/// Up to this many endpoints stand in one chain, as in kube-proxy.
const MOST_IN_ONE_CHAIN: usize = 1000;
/// How many endpoints a part has, more or less.
const SIZE: usize = 256;
/// More parts than this are not made.
const MOST: usize = 4096;

/// What a part's chain is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum PartKind {
    /// Finds the endpoint that remembers a client.
    Recall,
    /// Chooses one of the part's endpoints.
    Choose,
}

/// The number of parts that `endpoints` are cut into; `None` if they stand in one chain.
pub(super) fn count(endpoints: usize) -> Option<usize> {
    (endpoints > MOST_IN_ONE_CHAIN).then(|| (endpoints / SIZE).next_power_of_two().min(MOST))
}

/// Distributes endpoints over `count` parts, by the names of their chains. A part may be empty.
pub(super) fn cut<T: Copy>(endpoints: &[(T, ChainId)], count: usize) -> Vec<Vec<(T, ChainId)>> {
    let mut parts = vec![Vec::new(); count];
    for endpoint in endpoints {
        parts[endpoint.1.number() % count].push(*endpoint);
    }
    parts
}

/// The chain of a part.
pub(super) fn chain(
    port: &ServicePortName,
    (policy, kind): (TrafficPolicy, PartKind),
    index: usize,
) -> ChainId {
    ChainId::of_part(port, &format!("{policy:?}{kind:?}{index}"))
}

/// The chains of all parts.
pub(super) fn chains(
    port: &ServicePortName,
    policy: TrafficPolicy,
    count: usize,
) -> impl Iterator<Item = ChainId> {
    let kinds = [PartKind::Recall, PartKind::Choose];
    (0..count).flat_map(move |index| kinds.map(|kind| chain(port, (policy, kind), index)))
}

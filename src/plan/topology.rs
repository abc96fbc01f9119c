//! Zone and node hints: which of the ready endpoints this node should prefer.

use super::endpoints::Candidate;

/// Which hints count for one Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preference {
    /// None: every ready endpoint may be used.
    Any,
    /// Only endpoints hinted for our node.
    SameNode,
    /// Only endpoints hinted for our zone.
    SameZone,
}

impl Preference {
    /// Hints of a kind count when every ready endpoint has some and at least one names us; node
    /// hints go before zone hints (kube-proxy).
    pub(super) fn of(candidates: &[Candidate]) -> Self {
        let usable = |kind: fn(&Candidate) -> Hinted| {
            let mut ready = candidates.iter().filter(|candidate| candidate.facts.ready()).map(kind);
            let mut ours = false;
            ready.all(|hinted| {
                ours |= hinted == Hinted::Ours;
                hinted != Hinted::Not
            }) && ours
        };
        if usable(|candidate| candidate.node_hint) {
            Preference::SameNode
        } else if usable(|candidate| candidate.zone_hint) {
            Preference::SameZone
        } else {
            Preference::Any
        }
    }

    pub(super) fn allows(self, candidate: &Candidate) -> bool {
        match self {
            Preference::Any => true,
            Preference::SameNode => candidate.node_hint == Hinted::Ours,
            Preference::SameZone => candidate.zone_hint == Hinted::Ours,
        }
    }
}

/// What an endpoint's hints of one kind say of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hinted {
    /// It has none.
    Not,
    /// They name other zones or nodes only.
    Others,
    /// They name us.
    Ours,
}

impl Hinted {
    pub(super) fn by(names: &[std::sync::Arc<str>], ours: Option<&str>) -> Self {
        match names {
            [] => Hinted::Not,
            names if names.iter().any(|name| Some(&**name) == ours) => Hinted::Ours,
            _ => Hinted::Others,
        }
    }
}

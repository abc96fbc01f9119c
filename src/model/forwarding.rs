//! When a node that does not forward packets loses traffic.

/// What it means that a node does not forward the packets of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotForwarding {
    /// No packet of the family has to be forwarded.
    Harmless,
    /// Whether a packet has to be is not known.
    Doubtful,
    /// Endpoints of other nodes and pods get no packets.
    Broken,
}

impl NotForwarding {
    /// The judgement, by whether Services have endpoints of the family (`None`: not known) and whether the node has an
    /// address of its own in it.
    #[must_use]
    pub fn judge(has_endpoints: Option<bool>, has_address: bool) -> NotForwarding {
        match (has_endpoints, has_address) {
            (Some(true), _) => NotForwarding::Broken,
            (Some(false), _) | (None, false) => NotForwarding::Harmless,
            (None, true) => NotForwarding::Doubtful,
        }
    }
}

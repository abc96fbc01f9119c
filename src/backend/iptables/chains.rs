//! Our chains: those that always stand, with the jumps to them, and those of Services.

use super::names::{
    CANARY, ChainId, EXTERNAL_SERVICES, FIREWALL, FORWARD, MARK_MASQ, NODE_PORTS, POSTROUTING,
    PROXY_FIREWALL, SERVICES,
};
use crate::backend::jumps::Jump;
use crate::backend::rule::Name;
use std::fmt;

/// The tables that hold chains of ours.
pub(super) const TABLES: [&str; 3] = ["mangle", "nat", "filter"];

/// What a chain that always stands holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Rules that depend on settings only.
    FixedRules,
    /// The rules that lead to Services, or refuse what is sent to them: a dispatch chain.
    Dispatch,
    /// Nothing: a canary. If it vanishes, the table was flushed. Rules that other programs put there stay.
    Nothing,
}

/// A chain that always stands, in the order in which an input declares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fixed {
    FilterServices,
    ExternalServices,
    Forward,
    HealthCheckNodePorts,
    ProxyFirewall,
    /// Kubelet has rules in it, too.
    Firewall,
    Services,
    NodePorts,
    Postrouting,
    MarkMasq,
    MangleCanary,
    NatCanary,
    FilterCanary,
}

/// Table, name and content, by chain.
const FIXED: [(Fixed, &str, &str, Holds); 13] = [
    (Fixed::FilterServices, "filter", SERVICES, Holds::Dispatch),
    (Fixed::ExternalServices, "filter", EXTERNAL_SERVICES, Holds::Dispatch),
    (Fixed::Forward, "filter", FORWARD, Holds::FixedRules),
    (Fixed::HealthCheckNodePorts, "filter", NODE_PORTS, Holds::Dispatch),
    (Fixed::ProxyFirewall, "filter", PROXY_FIREWALL, Holds::Dispatch),
    (Fixed::Firewall, "filter", FIREWALL, Holds::FixedRules),
    (Fixed::Services, "nat", SERVICES, Holds::Dispatch),
    (Fixed::NodePorts, "nat", NODE_PORTS, Holds::Dispatch),
    (Fixed::Postrouting, "nat", POSTROUTING, Holds::FixedRules),
    (Fixed::MarkMasq, "nat", MARK_MASQ, Holds::FixedRules),
    (Fixed::MangleCanary, "mangle", CANARY, Holds::Nothing),
    (Fixed::NatCanary, "nat", CANARY, Holds::Nothing),
    (Fixed::FilterCanary, "filter", CANARY, Holds::Nothing),
];

/// All jumps. Each is inserted at the top if it is missing, so on an empty host they end up in
/// the reverse of this order, as kube-proxy's do.
pub(super) static JUMPS: [Jump; 14] = [
    Jump::new("filter", "INPUT", EXTERNAL_SERVICES, "kubernetes externally-visible service portals")
        .only_new(),
    Jump::new("filter", "FORWARD", EXTERNAL_SERVICES, "kubernetes externally-visible service portals")
        .only_new(),
    Jump::new("filter", "INPUT", NODE_PORTS, "kubernetes health check service ports"),
    Jump::new("filter", "FORWARD", SERVICES, "kubernetes service portals").only_new(),
    Jump::new("filter", "OUTPUT", SERVICES, "kubernetes service portals").only_new(),
    Jump::new("filter", "FORWARD", FORWARD, "kubernetes forwarding rules"),
    Jump::new("filter", "INPUT", PROXY_FIREWALL, "kubernetes load balancer firewall").only_new(),
    Jump::new("filter", "OUTPUT", PROXY_FIREWALL, "kubernetes load balancer firewall").only_new(),
    Jump::new("filter", "FORWARD", PROXY_FIREWALL, "kubernetes load balancer firewall").only_new(),
    Jump::new("nat", "OUTPUT", SERVICES, "kubernetes service portals"),
    Jump::new("nat", "PREROUTING", SERVICES, "kubernetes service portals"),
    Jump::new("nat", "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    Jump::new("filter", "INPUT", FIREWALL, "").shared_with_kubelet(),
    Jump::new("filter", "OUTPUT", FIREWALL, "").shared_with_kubelet(),
];

impl Fixed {
    pub(super) const COUNT: usize = FIXED.len();

    pub(super) fn all() -> impl Iterator<Item = Fixed> {
        FIXED.iter().map(|row| row.0)
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }

    pub(super) fn table(self) -> &'static str {
        FIXED[self.index()].1
    }

    pub(super) fn as_str(self) -> &'static str {
        FIXED[self.index()].2
    }

    pub(super) fn holds(self) -> Holds {
        FIXED[self.index()].3
    }

    /// It is in the filter table.
    pub(super) fn is_filter(self) -> bool {
        self.table() == "filter"
    }

    /// Whether other programs write it, too: then it is not ours to remove.
    pub(super) fn is_shared(self) -> bool {
        self == Fixed::Firewall
    }

    pub(super) fn parse(table: &str, name: &str) -> Option<Fixed> {
        FIXED.iter().find(|row| (row.1, row.2) == (table, name)).map(|row| row.0)
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One of our chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Chain {
    Fixed(Fixed),
    /// In the nat table.
    Own(ChainId),
}

impl Chain {
    /// The chain of ours with this name.
    pub(super) fn parse(table: &str, name: &str) -> Option<Chain> {
        let own = || (table == "nat").then(|| ChainId::parse(name)).flatten().map(Chain::Own);
        Fixed::parse(table, name).map(Chain::Fixed).or_else(own)
    }

    pub(super) fn table(self) -> &'static str {
        match self {
            Chain::Fixed(chain) => chain.table(),
            Chain::Own(_) => "nat",
        }
    }

    pub(super) fn name(self) -> Name {
        match self {
            Chain::Fixed(chain) => Name::new(chain.as_str()),
            Chain::Own(id) => id.name(),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chain_stands_in_its_row_and_is_found_by_its_name() {
        for (index, chain) in Fixed::all().enumerate() {
            assert_eq!(chain.index(), index);
            assert_eq!(Chain::parse(chain.table(), chain.as_str()), Some(Chain::Fixed(chain)));
        }
        for jump in &JUMPS {
            assert!(Fixed::parse(jump.table, jump.to).is_some(), "{jump:?}");
        }
    }
}

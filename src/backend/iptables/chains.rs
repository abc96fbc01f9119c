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

/// Table and name, by chain.
static FIXED: [(Fixed, &str, &str); 13] = [
    (Fixed::FilterServices, "filter", SERVICES),
    (Fixed::ExternalServices, "filter", EXTERNAL_SERVICES),
    (Fixed::Forward, "filter", FORWARD),
    (Fixed::HealthCheckNodePorts, "filter", NODE_PORTS),
    (Fixed::ProxyFirewall, "filter", PROXY_FIREWALL),
    (Fixed::Firewall, "filter", FIREWALL),
    (Fixed::Services, "nat", SERVICES),
    (Fixed::NodePorts, "nat", NODE_PORTS),
    (Fixed::Postrouting, "nat", POSTROUTING),
    (Fixed::MarkMasq, "nat", MARK_MASQ),
    (Fixed::MangleCanary, "mangle", CANARY),
    (Fixed::NatCanary, "nat", CANARY),
    (Fixed::FilterCanary, "filter", CANARY),
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
    pub(super) fn all() -> impl Iterator<Item = Fixed> {
        FIXED.iter().map(|row| row.0)
    }

    /// Those of a table.
    pub(super) fn of(table: &str) -> impl Iterator<Item = Fixed> {
        FIXED.iter().filter(move |row| row.1 == table).map(|row| row.0)
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

    /// Whether others write it, too: then it is not ours to remove.
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

//! Chain names. They equal kube-proxy's: people, dashboards and other programs look for them.

use crate::backend::rule::Name;
use crate::model::ServicePortName;
use data_encoding::BASE32;
use sha2::{Digest, Sha256};
use std::cmp::Ordering;
use std::fmt;

pub(super) const SERVICES: &str = "KUBE-SERVICES";
pub(super) const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
pub(super) const NODE_PORTS: &str = "KUBE-NODEPORTS";
pub(super) const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
pub(super) const FORWARD: &str = "KUBE-FORWARD";
pub(super) const FIREWALL: &str = "KUBE-FIREWALL";
pub(super) use crate::backend::masquerade::{MARK_MASQ, POSTROUTING};
pub(super) const CANARY: &str = "KUBE-PROXY-CANARY";

/// The nfacct objects that count packets, by name (kube-proxy).
pub(super) const INVALID_DROPPED: &str = "ct_state_invalid_dropped_pkts";
pub(super) const LOCALHOST_ACCEPTED: &str = "localhost_nps_accepted_pkts";

/// What a per-Service chain is for, in an order in which none jumps to an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ChainKind {
    /// Lets only the source ranges through.
    Fw,
    /// Where all external traffic enters.
    Ext,
    /// Balances over the Cluster policy's list.
    Svc,
    /// Balances over the Local policy's list.
    Svl,
    /// One endpoint.
    Sep,
}

impl ChainKind {
    const ALL: [ChainKind; 5] =
        [ChainKind::Fw, ChainKind::Ext, ChainKind::Svc, ChainKind::Svl, ChainKind::Sep];

    fn prefix(self) -> &'static str {
        match self {
            ChainKind::Svc => "KUBE-SVC-",
            ChainKind::Svl => "KUBE-SVL-",
            ChainKind::Ext => "KUBE-EXT-",
            ChainKind::Fw => "KUBE-FW-",
            ChainKind::Sep => "KUBE-SEP-",
        }
    }
}

/// A per-Service chain: its kind and the ten bytes that its name spells in base 32.
///
/// Ordered so that none jumps to an earlier one: in this order chains can be deleted batch by
/// batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ChainId {
    kind: ChainKind,
    hash: [u8; 10],
}

impl Ord for ChainId {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |id: &ChainId| match id.kind {
            ChainKind::Svc if id.is_of_prefix() => 0,
            ChainKind::Svl if id.is_part() => 2,
            ChainKind::Sep => 3,
            _ => 1,
        };
        let key = |id: &ChainId| (rank(id), id.kind, id.hash);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for ChainId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What the ten bytes take in base 32.
const HASH_TEXT: usize = 16;

/// How the ten bytes of a network's chain begin; a Service's hash begins so once in 2^24.
const NET: [u8; 3] = [0; 3];
/// Likewise that of a part of a Service's endpoints.
const PART: [u8; 3] = [0, 0, 1];

impl ChainId {
    /// A chain of a Service port.
    pub(super) fn of_port(kind: ChainKind, port: &PortHash) -> Self {
        ChainId { kind, hash: port.0 }
    }

    /// The chain of one endpoint (`ip:port`) of a Service port.
    pub(super) fn of_endpoint(port: &ServicePortName, endpoint: &str) -> Self {
        let text = format!("{port}{}{endpoint}", port.protocol);
        ChainId { kind: ChainKind::Sep, hash: digest(&text) }
    }

    /// The chain of a network in the tree that leads to Services. It carries a prefix that
    /// kube-proxy sweeps: after a roll-back to it no foreign-looking chain of ours may hold on to
    /// chains that it wants to delete. The level goes first, for the order.
    pub(super) fn of_prefix(level: u8, prefix: &str) -> Self {
        let mut hash = [0; 10];
        hash[..3].copy_from_slice(&NET);
        hash[3] = level;
        hash[4..].copy_from_slice(&digest(prefix)[..6]);
        ChainId { kind: ChainKind::Svc, hash }
    }

    /// The chain of a part of a Service port's endpoints; `use_of` says of which, and what for. It carries a prefix that
    /// kube-proxy sweeps.
    pub(super) fn of_part(port: &ServicePortName, use_of: &str) -> Self {
        let mut hash = [0; 10];
        hash[..3].copy_from_slice(&PART);
        hash[3..].copy_from_slice(&digest(&format!("{port}{}{use_of}", port.protocol))[..7]);
        ChainId { kind: ChainKind::Svl, hash }
    }

    /// A number that each endpoint's chain has, evenly distributed.
    pub(super) fn number(&self) -> usize {
        usize::from(u16::from_be_bytes([self.hash[0], self.hash[1]]))
    }

    pub(super) fn kind(&self) -> ChainKind {
        self.kind
    }

    pub(super) fn name(&self) -> Name {
        let mut hash = [0; HASH_TEXT];
        BASE32.encode_mut(&self.hash, &mut hash);
        Name::join(self.kind.prefix(), &hash)
    }

    /// Whether it is of the tree of networks.
    pub(super) fn is_of_prefix(&self) -> bool {
        self.kind == ChainKind::Svc && self.hash[..3] == NET
    }

    /// Whether it holds a part of a Service's endpoints.
    pub(super) fn is_part(&self) -> bool {
        self.kind == ChainKind::Svl && self.hash[..3] == PART
    }

    /// Whether rules in dispatch chains may lead to it.
    pub(super) fn is_led_to(&self) -> bool {
        self.kind != ChainKind::Sep && !self.is_part()
    }

    /// Reads a chain's name; `None` when it is not a per-Service chain.
    pub(super) fn parse(name: &str) -> Option<Self> {
        ChainKind::ALL.into_iter().find_map(|kind| {
            let text = name.strip_prefix(kind.prefix()).filter(|text| text.len() == HASH_TEXT)?;
            let mut hash = [0; 10];
            BASE32.decode_mut(text.as_bytes(), &mut hash).ok()?;
            Some(ChainId { kind, hash })
        })
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name(), f)
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the names of a Service port's chains have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortHash([u8; 10]);

impl PortHash {
    pub(super) fn of(port: &ServicePortName) -> Self {
        PortHash(digest(&format!("{port}{}", port.protocol)))
    }
}

/// The first 80 bits of SHA-256: what the first 16 base-32 characters spell.
fn digest(text: &str) -> [u8; 10] {
    let mut short = [0; 10];
    short.copy_from_slice(&Sha256::digest(text.as_bytes())[..10]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceName};

    fn port() -> ServicePortName {
        ServicePortName {
            service: ServiceName::new("ns1", "svc1"),
            port: "p80".into(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn names_equal_kube_proxys() {
        let chain = ChainId::of_port(ChainKind::Svc, &PortHash::of(&port()));
        assert_eq!(chain.to_string(), "KUBE-SVC-XPGD46QRK7WJZT7O");
        assert_eq!(ChainId::of_endpoint(&port(), "10.180.0.1:80").to_string(), "KUBE-SEP-SXIVWICOYRO3J4NJ");
    }

    #[test]
    fn names_fit_the_kernels_28_characters() {
        for kind in ChainKind::ALL {
            assert!(ChainId::of_port(kind, &PortHash::of(&port())).to_string().len() <= 28);
        }
    }

    #[test]
    fn names_read_back() {
        let chain = ChainId::of_endpoint(&port(), "[fd00::1]:80");
        assert_eq!(ChainId::parse(&chain.to_string()), Some(chain));
        for foreign in
            ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-SVC-short", "KUBE-SEP-XPGD46QRK7WJZT7OAAAAAAAA", "cali-x"]
        {
            assert_eq!(ChainId::parse(foreign), None, "{foreign}");
        }
    }
}

//! The rules that masquerade what is marked for it, the same in every mode.

use super::rule::{Asks, Match, Rule, Target};
use crate::model::{Cidr, IpFamily};
use crate::plan::LocalDetector;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Masquerades what is marked.
pub(super) const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Marks what has to be masqueraded.
pub(super) const MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// Asks for a mark's bit.
pub(super) fn marked(mask: u32) -> Asks<'static> {
    Asks::Mark { value: mask, mask }
}

/// Both chains' rules.
pub(super) fn rules(mask: u32, random_fully: bool, out: &mut dyn FnMut(&'static str, Rule<'_>)) {
    out(POSTROUTING, Rule::new(&[Match::not(marked(mask))], Target::Return));
    // Unmarked, so that a second walk of POSTROUTING (encapsulation) does not masquerade again.
    out(POSTROUTING, Rule::new(&[], Target::Mark { clear: 0, flip: mask }));
    let comment = Match::comment("kubernetes service traffic requiring SNAT");
    out(POSTROUTING, Rule::new(&[comment], Target::Masquerade(random_fully)));
    out(MARK_MASQ, Rule::new(&[], Target::Mark { clear: mask, flip: mask }));
}

/// Asks whether a packet is one of the cluster's own pods'.
pub(super) fn is_local(detector: &LocalDetector) -> Asks<'_> {
    match detector {
        LocalDetector::Cidr(cidr) => Asks::Source((*cidr).into()),
        LocalDetector::BridgeInterface(name) => Asks::InInterface(name, false),
        LocalDetector::InterfacePrefix(prefix) => Asks::InInterface(prefix, true),
    }
}

/// The loopback network.
pub(super) fn loopback(family: IpFamily) -> Cidr {
    match family {
        IpFamily::V4 => Cidr::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
        IpFamily::V6 => Cidr::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
    }
}

//! What the rules of iptables mode need of tools and kernel.

use crate::backend::kinds::{ADDRTYPE, COMMENT, CONNTRACK, MARK, MASQUERADE, RANDOM_FULLY, REJECT};
use crate::kernel::iptables::{Need, RuleKind};
use crate::model::IpFamily;

/// The counters that rules name are made for them.
pub(super) const NFACCT: RuleKind = RuleKind {
    name: "nfacct",
    table: "filter",
    rules: &["-m nfacct --nfacct-name KUBE-PROXY-TRIAL -j DROP"],
    need: Need::Option(
        "INVALID packets that are dropped, and node-port packets on localhost, are not counted",
    ),
};

const TCP: RuleKind = RuleKind {
    name: "tcp",
    table: "nat",
    rules: &["-m tcp -p tcp --dport 80 -j RETURN"],
    need: Need::Vital("Services with TCP ports"),
};

const UDP: RuleKind = RuleKind {
    name: "udp",
    table: "nat",
    rules: &["-m udp -p udp --dport 53 -j RETURN"],
    need: Need::Vital("Services with UDP ports"),
};

const SCTP: RuleKind = RuleKind {
    name: "sctp",
    table: "nat",
    rules: &["-m sctp -p sctp --dport 80 -j RETURN"],
    need: Need::Some("Services with SCTP ports"),
};

const STATISTIC: RuleKind = RuleKind {
    name: "statistic",
    table: "nat",
    rules: &["-m statistic --mode random --probability 0.5 -j RETURN"],
    need: Need::Vital("Services with several endpoints"),
};

const RECENT: RuleKind = RuleKind {
    name: "recent",
    table: "nat",
    rules: &[
        "-m recent --name KUBE-PROXY-TRIAL --rcheck --seconds 10 --reap -j RETURN",
        "-m recent --name KUBE-PROXY-TRIAL --set -j RETURN",
    ],
    need: Need::Some("Services with session affinity"),
};

const fn dnat(rules: &'static [&'static str]) -> RuleKind {
    RuleKind { name: "DNAT", table: "nat", rules, need: Need::Vital("all Services with endpoints") }
}

const DNAT_V4: RuleKind = dnat(&["-m tcp -p tcp -j DNAT --to-destination 192.0.2.1:80"]);
const DNAT_V6: RuleKind = dnat(&["-m tcp -p tcp -j DNAT --to-destination [2001:db8::1]:80"]);

/// All kinds of rules that this mode writes.
pub(super) fn rule_kinds(family: IpFamily) -> Vec<RuleKind> {
    let dnat = match family {
        IpFamily::V4 => DNAT_V4,
        IpFamily::V6 => DNAT_V6,
    };
    let of_every_mode = [COMMENT, CONNTRACK, MARK, MASQUERADE, ADDRTYPE, REJECT];
    let own = [TCP, UDP, SCTP, STATISTIC, RECENT, dnat, RANDOM_FULLY, NFACCT];
    of_every_mode.into_iter().chain(own).collect()
}

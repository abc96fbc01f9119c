//! What the rules of IPVS mode need of tools and kernel. They are one input, so what one of them lacks, all lack.

use crate::backend::kinds::{ADDRTYPE, COMMENT, CONNTRACK, MARK, MASQUERADE, RANDOM_FULLY, REJECT};
use crate::kernel::iptables::{Need, RuleKind};
use crate::model::IpFamily;

const SET: RuleKind = RuleKind {
    name: "set",
    table: "nat",
    rules: &["-m set --match-set KUBE-PROXY-TRIAL dst -j RETURN"],
    need: Need::Vital("all Services"),
};

const PHYSDEV: RuleKind = RuleKind {
    name: "physdev",
    table: "nat",
    rules: &["-m physdev ! --physdev-is-in -j ACCEPT"],
    need: Need::Some("all Services, once one has an external IP"),
};

const fn ipvs(rules: &'static [&'static str]) -> RuleKind {
    let need = Need::Some("all Services, once one has source ranges that leave this node out");
    RuleKind { name: "ipvs", table: "filter", rules, need }
}

const IPVS_V4: RuleKind = ipvs(&["-s 192.0.2.1 -m ipvs --vaddr 192.0.2.1 --vproto tcp --vport 80 -j DROP"]);
const IPVS_V6: RuleKind =
    ipvs(&["-s 2001:db8::1 -m ipvs --vaddr 2001:db8::1 --vproto tcp --vport 80 -j DROP"]);

/// All kinds of rules that this mode writes.
pub(super) fn rule_kinds(family: IpFamily) -> Vec<RuleKind> {
    let ipvs = match family {
        IpFamily::V4 => IPVS_V4,
        IpFamily::V6 => IPVS_V6,
    };
    vec![COMMENT, CONNTRACK, MARK, MASQUERADE, ADDRTYPE, REJECT, SET, PHYSDEV, ipvs, RANDOM_FULLY]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ipvs::names::SetId;
    use crate::backend::ipvs::restore_input::{Features, Rules, jumps};
    use crate::backend::kinds::{golden_rules, needs};
    use crate::model::{Cidr, Frontend, IpvsScheduler, Protocol};
    use crate::plan::{FamilySettings, LocalDetector};
    use rstest::rstest;

    #[rstest]
    fn exactly_what_rules_are_made_of_is_tried_on_a_node(
        #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
        #[values(true, false)] upstream_compat: bool,
    ) {
        let pods: Cidr = "10.128.0.0/16".parse().unwrap();
        let settings =
            FamilySettings { detector: Some(LocalDetector::Cidr(pods)), ..FamilySettings::new(family) };
        let features = Features {
            masquerade_mark: 1 << 14,
            random_fully: true,
            scheduler: IpvsScheduler::parse("rr").unwrap(),
            exclude: Vec::new(),
            upstream_compat,
            node_name: "node-0".into(),
        };
        let guard = Frontend { address: [192, 0, 2, 1].into(), port: 80, protocol: Protocol::Tcp };
        let set_sizes = [1; SetId::ALL.len()];
        let text =
            Rules { settings: &settings, features: &features, set_sizes, guards: vec![guard] }.text(|_| true);
        let mut written = golden_rules("ipvs");
        written.extend(text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned));
        written.extend(jumps(upstream_compat).map(|jump| jump.arguments()));
        let kinds = rule_kinds(family);
        let tried = kinds.iter().flat_map(|kind| kind.rules).copied();
        assert_eq!(needs(tried), needs(written.iter().map(String::as_str)));
    }
}

//! How many rules there are, in the way in which the kernel counts them.

use super::rule::{Name, Rule};

/// How many rules there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RuleCount {
    /// Rules.
    pub(super) rules: u32,
    /// Rules, and among them once more those that jump to a chain of ours. The kernel counts the
    /// same per chain, which makes a lost rule show without reading any.
    pub(super) uses: u32,
    /// Rules in `KUBE-MARK-MASQ` and jumps to it.
    pub(super) marks: u32,
}

/// The chain that other programs may jump to, too. Its uses are counted apart, so that those rules do not stand in
/// for lost ones of ours.
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// The chain that kubelet writes, too; its uses are not counted.
const SHARED_WITH_KUBELET: &str = "KUBE-FIREWALL";

impl RuleCount {
    /// Counts a rule of a chain.
    pub(super) fn add(&mut self, chain: &str, rule: &Rule<'_>) {
        self.rules += 1;
        match rule.target.chain().map(Name::as_str) {
            Some(MARK_MASQ) => self.marks += 1,
            Some(to) if to.starts_with("KUBE-") => self.uses += 1,
            _ => {}
        }
        match chain {
            MARK_MASQ => self.marks += 1,
            SHARED_WITH_KUBELET => {}
            _ => self.uses += 1,
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        RuleCount {
            rules: self.rules.saturating_add(other.rules),
            uses: self.uses.saturating_add(other.uses),
            marks: self.marks.saturating_add(other.marks),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        RuleCount {
            rules: self.rules.saturating_sub(other.rules),
            uses: self.uses.saturating_sub(other.uses),
            marks: self.marks.saturating_sub(other.marks),
        }
    }
}

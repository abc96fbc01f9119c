//! How many rules there are, in the way in which the kernel counts them.

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

/// Rules that jump to the chain that other programs may jump to, too. Their uses are counted apart, so
/// that those rules do not stand in for lost ones of ours.
const TO_MARK_MASQ: &str = " -j KUBE-MARK-MASQ";
const IN_MARK_MASQ: &str = "-A KUBE-MARK-MASQ ";
/// Rules of the chain that kubelet writes, too; its uses are not counted.
const SHARED_WITH_KUBELET: &str = "-A KUBE-FIREWALL ";

impl RuleCount {
    /// Counts in the input of a tool; lines that are no rules do not count.
    pub(super) fn of(text: &str) -> Self {
        let mut count = RuleCount::default();
        for line in text.lines().filter(|line| line.starts_with("-A ")) {
            count.rules += 1;
            if line.ends_with(TO_MARK_MASQ) {
                count.marks += 1;
            } else if line.contains(" -j KUBE-") {
                count.uses += 1;
            }
            if line.starts_with(IN_MARK_MASQ) {
                count.marks += 1;
            } else if !line.starts_with(SHARED_WITH_KUBELET) {
                count.uses += 1;
            }
        }
        count
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

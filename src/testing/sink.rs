//! iptables tools that take everything and only count.

use crate::kernel::iptables::{
    Flavor, Place, RestoreError, Rule, RuleKind, Said, Stamp, Trial, Version, Xtables,
};
use crate::kernel::nft::{ChainUse, Part, RuleMark, Told};
use anyhow::Result;

/// Counts what is sent and what is asked.
#[derive(Debug, Default)]
pub struct Sink {
    /// Lines of input.
    pub lines: usize,
    /// Lines of the longest input.
    pub longest: usize,
    /// Looks at all chains of a table, and readings of rules.
    pub surveys: usize,
    generation: u32,
    /// Somebody else has written, and we have not been told yet.
    is_told: bool,
}

impl Sink {
    /// Somebody else writes to a chain of his own.
    pub fn others_write(&mut self) {
        self.generation += 1;
        self.is_told = true;
    }
}

impl Xtables for Sink {
    fn flavor(&self) -> Flavor {
        Flavor::Nft
    }

    fn version(&self) -> Version {
        Version(1, 8, 9)
    }

    async fn check_nat_table(&self) -> Result<()> {
        Ok(())
    }

    fn stamp(&mut self) -> Result<Stamp> {
        Ok(Stamp::Generation(self.generation))
    }

    fn has_counter(&mut self, _: &str) -> bool {
        true
    }

    fn ensure_counter(&mut self, _name: &str) -> bool {
        true
    }

    async fn survey(&mut self, _table: &str, visit: &mut dyn FnMut(Part<ChainUse<'_>>)) -> Result<()> {
        self.surveys += 1;
        visit(Part::Start);
        // Whatever is looked for is there.
        for name in [
            "KUBE-PROXY-CANARY",
            "KUBE-SERVICES",
            "KUBE-MARK-MASQ",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-PROXY-FIREWALL",
        ] {
            visit(Part::Item(ChainUse { name, is_base: false, uses: u32::MAX / 2 }));
        }
        Ok(())
    }

    fn visit_rules(
        &mut self,
        _: &str,
        _: Option<&str>,
        visit: &mut dyn FnMut(Part<Rule<'_>>),
    ) -> Result<bool> {
        self.surveys += 1;
        visit(Part::Start);
        Ok(true)
    }

    async fn list_rules(&mut self, _: &str, _: &mut dyn FnMut(Said<'_>)) -> Result<()> {
        self.surveys += 1;
        Ok(())
    }

    fn listen(&mut self, _: bool) -> Result<()> {
        Ok(())
    }

    fn hear(&mut self, visit: &mut dyn FnMut(Told<'_>)) -> Result<bool> {
        if std::mem::take(&mut self.is_told) {
            let rule = RuleMark { handle: 1, content: 1 };
            visit(Told::RuleAdded { table: "nat", chain: "THEIRS", rule });
            visit(Told::Committed { generation: self.generation, by: "others" });
        }
        Ok(true)
    }

    async fn restore(&mut self, pieces: &mut dyn Iterator<Item = String>) -> Result<(), RestoreError> {
        let mut lines = 0;
        for piece in pieces {
            lines += piece.lines().count();
            let tables = piece.lines().filter(|line| line.starts_with('*')).count();
            self.generation += u32::try_from(tables).unwrap_or(u32::MAX);
        }
        self.lines += lines;
        self.longest = self.longest.max(lines);
        Ok(())
    }

    async fn try_rules(&mut self, _kinds: &[RuleKind], _trial: Trial) -> Result<(), RestoreError> {
        Ok(())
    }

    async fn ensure_chain(&mut self, _place: Place<'_>) -> Result<()> {
        Ok(())
    }

    async fn has_rule(&mut self, _place: Place<'_>, _arguments: &str) -> Result<bool> {
        Ok(true)
    }

    async fn insert_rules(&mut self, _rules: &[(Place<'_>, &str)]) -> Result<()> {
        Ok(())
    }

    async fn delete_rule(&mut self, _place: Place<'_>, _arguments: &str) -> Result<bool> {
        Ok(true)
    }
}

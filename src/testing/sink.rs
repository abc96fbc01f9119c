//! iptables tools that take everything and only count.

use crate::kernel::iptables::{Flavor, Place, RestoreError, Rule, Stamp, Version, Xtables};
use crate::kernel::nft::{ChainUse, Part, Told};
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
        Ok(Stamp::Generation(0))
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

    fn listen(&mut self, _: bool) -> Result<()> {
        Ok(())
    }

    fn hear(&mut self, _: &mut dyn FnMut(Told<'_>)) -> Result<bool> {
        Ok(true)
    }

    async fn restore(&mut self, pieces: &mut dyn Iterator<Item = String>) -> Result<(), RestoreError> {
        let lines = pieces.map(|piece| piece.lines().count()).sum();
        self.lines += lines;
        self.longest = self.longest.max(lines);
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

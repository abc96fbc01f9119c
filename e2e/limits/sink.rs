//! iptables tools that take everything and only count.

use anyhow::Result;
use kube_proxy_rs::kernel::iptables::{Flavor, Place, RestoreError, Stamp, Version, Xtables};
use kube_proxy_rs::kernel::nft::{ChainUse, Part};

/// Counts what is sent.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    pub(crate) lines: usize,
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
        visit(Part::Start);
        Ok(())
    }

    async fn restore(&mut self, pieces: &mut dyn Iterator<Item = String>) -> Result<(), RestoreError> {
        self.lines += pieces.map(|piece| piece.lines().count()).sum::<usize>();
        Ok(())
    }

    async fn ensure_chain(&mut self, _place: Place<'_>) -> Result<()> {
        Ok(())
    }

    async fn has_rule(&mut self, _place: Place<'_>, _arguments: &str) -> Result<bool> {
        Ok(true)
    }

    async fn insert_rule(&mut self, _place: Place<'_>, _arguments: &str) -> Result<()> {
        Ok(())
    }

    async fn delete_rule(&mut self, _place: Place<'_>, _arguments: &str) -> Result<bool> {
        Ok(true)
    }
}

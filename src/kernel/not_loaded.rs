//! What stands in for a kernel module that is not loaded: there is nothing of it to be seen.
//!
//! Looking for leftovers must not load modules, and a module that is not loaded holds nothing.

use super::ipset::{Ipsets, SetSpec};
use super::ipvs::{Connections, Listed, Refused, Timeouts, VirtualServers};
use crate::model::{Counts, Frontend, RealServer, ServerOperation, SetEntry};
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// A module that is not loaded. It can be asked and cleaned, but nothing can be added.
#[derive(Clone, Copy, Debug)]
pub struct NotLoaded;

impl VirtualServers for NotLoaded {
    fn list(&mut self) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }

    fn find(&mut self, _: &Frontend) -> Result<Option<Listed>> {
        Ok(None)
    }

    fn real_servers(&mut self, _: &Frontend) -> Result<Connections> {
        Ok(Connections::new())
    }

    fn survey(&mut self, _: &mut dyn FnMut(Frontend, &[RealServer])) {}

    fn counts(&mut self, _: &Frontend) -> Result<Option<Counts>> {
        Ok(None)
    }

    fn real_counts(&mut self, _: &Frontend) -> Result<Vec<(SocketAddr, Counts)>> {
        Ok(Vec::new())
    }

    fn run(&mut self, operations: &[ServerOperation]) -> Result<Vec<Refused>> {
        if operations.is_empty() { Ok(Vec::new()) } else { bail!("the kernel module ip_vs is not loaded") }
    }

    fn set_timeouts(&mut self, _: &Timeouts) -> Result<()> {
        bail!("the kernel module ip_vs is not loaded")
    }
}

impl Ipsets for NotLoaded {
    fn ensure(&mut self, _: SetSpec<'_>) -> Result<()> {
        bail!("the kernel module ip_set is not loaded")
    }

    fn entries(&mut self, _: SetSpec<'_>) -> Result<Option<BTreeSet<SetEntry>>> {
        Ok(None)
    }

    fn count(&mut self, _: SetSpec<'_>) -> Result<Option<usize>> {
        Ok(None)
    }

    fn add(&mut self, _: SetSpec<'_>, _: &[SetEntry]) -> Result<Vec<(SetEntry, String)>> {
        bail!("the kernel module ip_set is not loaded")
    }

    fn delete(&mut self, _: SetSpec<'_>, _: &[SetEntry]) -> Result<()> {
        bail!("the kernel module ip_set is not loaded")
    }

    fn swap(&mut self, _: &str, _: &str) -> Result<()> {
        bail!("the kernel module ip_set is not loaded")
    }

    fn destroy(&mut self, _: &str) -> Result<bool> {
        Ok(false)
    }
}

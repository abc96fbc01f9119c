//! The iptables tools of a family that work on this node.

use super::mode::Opening;
use crate::config::{Config, FlavorChoice};
use crate::kernel::iptables::{self, LockHeld, Tools, Xtables as _};
use crate::kernel::sysctl::Sysctls;
use crate::model::IpFamily;
use anyhow::{Context, Result, bail};
use std::time::Duration;
use tokio::time::sleep;

/// Between two attempts to get the lock of the legacy tables; a tool waits for it, too.
const LOCK_RETRY: Duration = Duration::from_secs(1);

/// The flavour that the configuration asks for; `None` is the one in use.
#[must_use]
pub fn flavor(config: &Config) -> Option<iptables::Flavor> {
    match config.iptables.flavor {
        FlavorChoice::Auto => None,
        FlavorChoice::Nft => Some(iptables::Flavor::Nft),
        FlavorChoice::Legacy => Some(iptables::Flavor::Legacy),
    }
}

/// Tools of the family that work here. The lock of the legacy tables says nothing about whether they work, so a proxy
/// waits for it; a command that only looks fails.
pub(super) async fn tools(opening: &Opening<'_>, family: IpFamily) -> Result<Tools> {
    let mut waits_for = None;
    let tools = loop {
        let error = match usable_tools(family, flavor(opening.config)).await {
            Ok(tools) => break tools,
            Err(error) => error,
        };
        let held = error.downcast_ref::<LockHeld>().filter(|_| opening.metrics.is_some());
        let Some(held) = held else { return Err(error) };
        if waits_for.as_ref() != Some(held) {
            tracing::warn!(%family, "waiting: {held}");
            waits_for = Some(held.clone());
        }
        sleep(LOCK_RETRY).await;
    };
    tracing::info!(%family, flavor = %tools.flavor(), version = %tools.version(), "using iptables");
    if tools.flavor() == iptables::Flavor::Nft
        && let Some(monitor) = opening.monitor()
    {
        return Ok(tools.with_monitor(monitor));
    }
    Ok(tools)
}

/// Tools of a family and flavour, if their nat table can be used.
///
/// # Errors
/// Names what is missing.
pub async fn usable_tools(family: IpFamily, flavor: Option<iptables::Flavor>) -> Result<Tools> {
    let found = iptables::find(family, flavor).await;
    let tools = match flavor {
        None => found,
        Some(flavor) => found.with_context(|| format!("--iptables-flavor={flavor}")),
    }?;
    if family == IpFamily::V6 && !ipv6_enabled() {
        bail!("IPv6 is switched off on this host");
    }
    tools.check_nat_table().await.with_context(|| format!("iptables for {family} does not work"))?;
    Ok(tools)
}

fn ipv6_enabled() -> bool {
    let disabled = Sysctls::default().read("net/ipv6/conf/all/disable_ipv6");
    disabled.is_ok_and(|value| value.trim() != "1")
}

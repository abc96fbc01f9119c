//! What other modes, other iptables flavours and earlier proxies left behind.

use super::families;
use crate::backend::Backend as _;
use crate::backend::iptables::{Features, Iptables, holds_rules};
use crate::config::Config;
use crate::kernel::iptables::{self as tools, Flavor, Tools};
use crate::kernel::nft::Nft;
use crate::model::IpFamily;
use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use tokio::sync::oneshot;

/// The table of kube-proxy's nftables mode.
const NFT_TABLE: &str = "kube-proxy";

/// Removes what any mode left: what belongs to IPVS, iptables rules of both families and flavours,
/// and the nftables table. Goes on past errors; may be repeated.
pub(super) async fn everything(config: &Config) -> Result<ExitCode> {
    let mut failures = Vec::new();
    for family in IpFamily::ALL {
        // First, because its chains lead into sets, and some bear the names of the other mode's.
        if let Ok(tools) = families::usable_tools(config, family).await
            && let Some(mut ipvs) = families::ipvs_leftovers(config, family, tools)
            && let Err(error) = ipvs.cleanup().await
        {
            failures.push(error.context(format!("removing what IPVS mode left of {family}")));
        }
        for flavor in [Flavor::Nft, Flavor::Legacy] {
            if let Err(error) = remove_rules(family, flavor).await {
                failures.push(error.context(format!("removing {flavor} iptables rules of {family}")));
            }
        }
        if let Err(error) = remove_nft_table(family) {
            failures.push(error);
        }
    }
    for failure in &failures {
        tracing::error!(error = format!("{failure:#}"), "cleanup");
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("encountered an error while tearing down rules");
}

/// The tools of a flavour, if they are installed and hold rules that carry our names. Tables that
/// nobody has made are not made by looking.
async fn tools_with_rules(family: IpFamily, flavor: Flavor) -> Result<Option<Tools>> {
    let Ok(mut tools) = tools::find(family, Some(flavor)).await else { return Ok(None) };
    Ok(holds_rules(&mut tools).await?.then_some(tools))
}

async fn remove_rules(family: IpFamily, flavor: Flavor) -> Result<()> {
    let Some(tools) = tools_with_rules(family, flavor).await? else { return Ok(()) };
    Iptables::new(tools, Features::default()).cleanup().await?;
    tracing::info!(%family, %flavor, "iptables rules removed");
    Ok(())
}

fn remove_nft_table(family: IpFamily) -> Result<()> {
    // Without nf_tables in the kernel there is no table in it.
    let Ok(mut nft) = Nft::open() else { return Ok(()) };
    let removed = nft.delete_table(family, NFT_TABLE);
    if removed.with_context(|| format!("removing nftables table {NFT_TABLE} of {family}"))? {
        tracing::info!(%family, table = NFT_TABLE, "nftables table removed");
    }
    Ok(())
}

/// Once our rules stand, removes those of kube-proxy's nftables mode and looks whether the other
/// flavour of iptables holds rules, too. Before that, removing them would leave the node without
/// any. Never ends, so that it can run beside the loop.
pub(super) async fn after_first_sync(
    config: &Config,
    flavors: Vec<(IpFamily, Flavor)>,
    standing: oneshot::Receiver<()>,
) -> std::convert::Infallible {
    if standing.await.is_ok() {
        for (family, flavor) in flavors {
            let other = match flavor {
                Flavor::Nft => Flavor::Legacy,
                Flavor::Legacy => Flavor::Nft,
            };
            let looked = settle_other_flavor(config, family, other).await;
            for error in [remove_nft_table(family).err(), looked.err()].into_iter().flatten() {
                tracing::warn!(%family, error = format!("{error:#}"), "cannot remove what another proxy left");
            }
        }
    }
    std::future::pending().await
}

async fn settle_other_flavor(config: &Config, family: IpFamily, other: Flavor) -> Result<()> {
    if tools_with_rules(family, other).await?.is_none() {
        return Ok(());
    }
    if config.iptables.cleanup_other_flavor {
        return remove_rules(family, other).await;
    }
    tracing::warn!(
        %family, flavor = %other,
        "the other flavour of iptables holds KUBE- rules, too, and both are in force; \
         --cleanup-other-flavor removes them"
    );
    Ok(())
}

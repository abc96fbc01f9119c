//! What other modes, other iptables flavours and earlier proxies left behind.

use super::families;
use crate::backend::{Standing, iptables, ipvs};
use crate::config::{Config, Mode};
use crate::kernel::iptables::{self as tools, Flavor, Tools, Xtables};
use crate::kernel::nft::Nft;
use crate::model::IpFamily;
use anyhow::{Context, Error, Result, bail};
use std::process::ExitCode;

/// The table of kube-proxy's nftables mode.
const NFT_TABLE: &str = "kube-proxy";

/// Removes what any mode left: rules of both families and flavours, the nftables table, and what
/// belongs to IPVS mode. Goes on past errors; may be repeated.
pub(super) async fn everything(config: &Config) -> Result<ExitCode> {
    let mut failures = Vec::new();
    for family in IpFamily::ALL {
        for flavor in [Flavor::Nft, Flavor::Legacy] {
            let removed = remove_rules(family, flavor).await;
            let doing = || format!("removing {flavor} iptables rules of {family}");
            failures.extend(removed.with_context(doing).err());
        }
        failures.extend(remove_nft_table(family).err());
    }
    // Last, because rules hold sets.
    failures.extend(remove_ipvs_objects(config));
    for failure in &failures {
        tracing::error!(error = format!("{failure:#}"), "cleanup");
    }
    if failures.is_empty() {
        tracing::info!(
            "cleanup is done: the kernel has no rules, tables, sets or servers of a service proxy"
        );
        return Ok(ExitCode::SUCCESS);
    }
    bail!("encountered an error while tearing down rules");
}

/// The tools of a flavour, if its tables hold rules that carry our names. Looking makes no tables.
///
/// # Errors
/// Where no tool works and the kernel holds such rules, or does not show whether it does.
async fn tools_with_rules(family: IpFamily, flavor: Flavor) -> Result<Option<Tools>> {
    if flavor == Flavor::Nft && Nft::open_if_there()?.is_none() {
        return Ok(None);
    }
    let (mut tools, fault) = tools::find_to_look(family, flavor).await;
    let holds = holds_rules(&mut tools).await;
    match (holds, fault) {
        (Ok(false), _) => Ok(None),
        (Ok(true), None) => Ok(Some(tools)),
        (Ok(true), Some(fault)) => Err(fault.context("there are KUBE- rules, which stay")),
        (Err(error), None) => Err(error),
        (Err(error), Some(fault)) => Err(fault.context(format!("there may be KUBE- rules: {error:#}"))),
    }
}

async fn holds_rules(tools: &mut impl Xtables) -> Result<bool> {
    Ok(iptables::holds_rules(tools, &Standing::default()).await? || ipvs::holds_rules(tools).await?)
}

async fn remove_rules(family: IpFamily, flavor: Flavor) -> Result<()> {
    let Some(mut tools) = tools_with_rules(family, flavor).await? else { return Ok(()) };
    remove_rules_of_all_modes(&mut tools).await?;
    tracing::info!(%family, %flavor, "iptables rules removed");
    Ok(())
}

async fn remove_rules_of_all_modes(tools: &mut impl Xtables) -> Result<()> {
    // The modes have chains in common that lead into those of either.
    ipvs::empty_chains(tools).await?;
    ipvs::remove_rules(tools, &iptables::standing()).await?;
    iptables::remove_rules(tools, &Standing::default()).await.map(drop)
}

fn remove_nft_table(family: IpFamily) -> Result<()> {
    let Some(mut nft) = Nft::open_if_there()? else { return Ok(()) };
    let removed = nft.delete_table(family, NFT_TABLE);
    if removed.with_context(|| format!("removing nftables table {NFT_TABLE} of {family}"))? {
        tracing::info!(%family, table = NFT_TABLE, "nftables table removed");
    }
    Ok(())
}

/// Removes virtual servers, sets and the interface of IPVS mode; returns what went wrong.
fn remove_ipvs_objects(config: &Config) -> Vec<Error> {
    let mut kernel = match ipvs::Kernel::of_leftovers() {
        Ok(kernel) => kernel,
        Err(error) => return vec![error.context("removing what IPVS mode left")],
    };
    let mut failures = Vec::new();
    for family in IpFamily::ALL {
        match kernel.remove_leftovers(family, &families::leftover_features(config, family)) {
            Ok(ipvs::Removed { servers: 0, sets: 0 }) => {}
            Ok(ipvs::Removed { servers, sets }) => {
                tracing::info!(%family, servers, sets, "virtual servers and ipsets of IPVS mode removed");
            }
            Err(error) => failures.push(error.context(format!("removing what IPVS mode left of {family}"))),
        }
    }
    match kernel.remove_interface() {
        Ok(true) => tracing::info!("interface of IPVS mode removed"),
        Ok(false) => {}
        Err(error) => failures.push(error.context("removing what IPVS mode left")),
    }
    failures
}

/// Once our rules stand, removes those of kube-proxy's and our own other modes, and looks whether
/// the other flavour of iptables holds rules, too. Before that, removing them would leave the node
/// without any.
pub(super) async fn after_first_sync(config: &Config, flavors: Vec<(IpFamily, Flavor)>) {
    let mut failures = Vec::new();
    for (family, flavor) in flavors {
        let other = match flavor {
            Flavor::Nft => Flavor::Legacy,
            Flavor::Legacy => Flavor::Nft,
        };
        failures.extend(remove_nft_table(family).err());
        failures.extend(remove_other_mode(config.mode, family, flavor).await.err());
        failures.extend(settle_other_flavor(config, family, other).await.err());
    }
    if config.mode == Mode::Iptables {
        failures.extend(remove_ipvs_objects(config));
    }
    for failure in failures {
        tracing::warn!(error = format!("{failure:#}"), "cannot remove what another proxy left");
    }
}

/// Removes the rules of the mode that does not run, but for those that the running one has, too.
async fn remove_other_mode(mode: Mode, family: IpFamily, flavor: Flavor) -> Result<()> {
    let mut tools = tools::find(family, Some(flavor)).await?;
    let (other, removed) = match mode {
        Mode::Iptables => ("ipvs", ipvs::remove_rules(&mut tools, &iptables::standing()).await),
        Mode::Ipvs => ("iptables", iptables::remove_rules(&mut tools, &ipvs::standing()).await),
    };
    if removed.with_context(|| format!("removing {family} rules of {other} mode"))? {
        tracing::info!(%family, mode = other, "rules of the other mode removed");
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::iptables::FakeXtables;

    /// The rules of a Service with a load balancer, as kube-proxy programs them in a mode, but for
    /// those that are kubelet's, too.
    fn fixture(mode: &str) -> String {
        let name = format!("e2e/fixtures/expected/{mode}/load-balancer-source-ranges.v4.rules");
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let text = std::fs::read_to_string(path).unwrap();
        let ours = |line: &&str| {
            !line.contains("KUBE-FIREWALL") && (!line.starts_with(':') || line.contains("KUBE-"))
        };
        text.lines().filter(ours).map(|line| format!("{line}\n")).collect()
    }

    /// Tables with the rules of modes, the last one in force. A jump is made only if it is missing.
    async fn tables(modes: &[&str]) -> FakeXtables {
        let mut tools = FakeXtables::default();
        for mode in modes {
            tools.restore(&mut std::iter::once(fixture(mode))).await.unwrap();
        }
        for rules in tools.tables.values_mut().flat_map(|table| table.values_mut()) {
            rules.sort();
            rules.dedup();
        }
        tools
    }

    #[tokio::test]
    async fn what_ipvs_mode_left_goes_and_what_iptables_mode_has_stays() {
        let mut tools = tables(&["ipvs", "iptables"]).await;
        assert!(ipvs::remove_rules(&mut tools, &iptables::standing()).await.unwrap());
        assert_eq!(tools.tables, tables(&["iptables"]).await.tables);
        assert!(!ipvs::remove_rules(&mut tools, &iptables::standing()).await.unwrap());
    }

    #[tokio::test]
    async fn what_iptables_mode_left_goes_and_what_ipvs_mode_has_stays() {
        let mut tools = tables(&["iptables", "ipvs"]).await;
        assert!(iptables::remove_rules(&mut tools, &ipvs::standing()).await.unwrap());
        assert_eq!(tools.tables, tables(&["ipvs"]).await.tables);
        assert!(!iptables::remove_rules(&mut tools, &ipvs::standing()).await.unwrap());
    }

    #[tokio::test]
    async fn cleanup_leaves_nothing_of_either_mode() {
        for modes in [["iptables", "ipvs"], ["ipvs", "iptables"]] {
            let mut tools = tables(&modes).await;
            for _ in 0..2 {
                remove_rules_of_all_modes(&mut tools).await.unwrap();
                assert_eq!(tools.tables, FakeXtables::default().tables, "{modes:?}");
            }
        }
    }
}

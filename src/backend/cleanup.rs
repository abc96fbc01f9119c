//! What other modes, the other iptables flavour and earlier proxies left behind.

use super::mode::{self, OpenConnections, ProxyMode, Removal};
use super::own_rules::{FoundRules, OwnRules};
use crate::config::{Config, Mode};
use crate::kernel::iptables::{self as tools, Flavor, Tools};
use crate::kernel::nft::Nft;
use crate::model::IpFamily;
use anyhow::{Context, Result, bail};
use std::time::Duration;

/// How often to look whether the last connections through what another mode left have ended.
const DRAIN_LOOK: Duration = Duration::from_secs(10);

/// Removes what any mode left: rules of both families and flavours, the nftables table, and what
/// belongs to IPVS mode. Goes on past errors; may be repeated.
///
/// # Errors
/// If anything stays; what, and why, is in the log.
pub async fn everything(config: &Config) -> Result<()> {
    let mut failures = all_rules().await;
    // Last, because rules hold sets.
    for (_, mode) in modes() {
        failures.extend(remove_objects(mode, config, OpenConnections::End).0);
    }
    for failure in &failures {
        tracing::error!(error = format!("{failure:#}"), "cleanup");
    }
    if failures.is_empty() {
        tracing::info!(
            "cleanup is done: the kernel has no rules, tables, sets or servers of a service proxy"
        );
        return Ok(());
    }
    bail!("encountered an error while tearing down rules");
}

/// Removes the rules of all modes, both flavours and both families; says what went wrong.
async fn all_rules() -> Vec<anyhow::Error> {
    let mut failures = Vec::new();
    for family in IpFamily::ALL {
        for flavor in [Flavor::Nft, Flavor::Legacy] {
            let removed = remove_rules(family, flavor).await;
            let doing = || format!("removing {flavor} iptables rules of {family}");
            failures.extend(removed.with_context(doing).err());
        }
    }
    failures
}

fn modes() -> impl Iterator<Item = (Mode, &'static dyn ProxyMode)> {
    Mode::ALL.into_iter().map(|mode| (mode, mode::open(mode)))
}

/// What went wrong, and how much is still in use.
fn remove_objects(
    mode: &dyn ProxyMode,
    config: &Config,
    connections: OpenConnections,
) -> (Vec<anyhow::Error>, usize) {
    let removed = |outcome: Result<String>| outcome.map(|what| tracing::info!("{what}")).err();
    let Removal { outcomes, in_use } = mode.remove_objects(config, connections);
    (outcomes.into_iter().filter_map(removed).collect(), in_use)
}

/// Removes what the modes that do not run left, but for what connections go through; says how much that is.
fn remove_objects_of_others(config: &Config) -> (Vec<anyhow::Error>, usize) {
    let (mut failures, mut in_use) = (Vec::new(), 0);
    for (_, mode) in modes().filter(|(mode, _)| *mode != config.mode) {
        let (failed, used) = remove_objects(mode, config, OpenConnections::Outlive);
        failures.extend(failed);
        in_use += used;
    }
    (failures, in_use)
}

fn warn_of(failures: Vec<anyhow::Error>) {
    for failure in failures {
        tracing::warn!(error = format!("{failure:#}"), "cannot remove what another proxy left");
    }
}

/// The rules of all modes.
fn all_own_rules() -> OwnRules {
    modes().fold(OwnRules::default(), |sum, (_, mode)| sum.and(mode.own_rules()))
}

/// The tools of a flavour and the rules that carry our names in its tables, if there are any. Looking makes no tables.
///
/// # Errors
/// Where no tool works and the kernel holds such rules, or does not show whether it does.
async fn rules_left(family: IpFamily, flavor: Flavor) -> Result<Option<(Tools, FoundRules)>> {
    if flavor == Flavor::Nft && Nft::open_if_there()?.is_none() {
        return Ok(None);
    }
    let (mut tools, fault) = tools::find_to_inspect(family, flavor).await;
    let found = all_own_rules().find(&mut tools, &OwnRules::default()).await;
    match (found, fault) {
        (Ok(found), _) if found.is_empty() => Ok(None),
        (Ok(found), None) => Ok(Some((tools, found))),
        (Ok(_), Some(fault)) => Err(fault.context("there are KUBE- rules, which stay")),
        (Err(error), None) => Err(error),
        (Err(error), Some(fault)) => Err(fault.context(format!("there may be KUBE- rules: {error:#}"))),
    }
}

async fn remove_rules(family: IpFamily, flavor: Flavor) -> Result<()> {
    let Some((mut tools, found)) = rules_left(family, flavor).await? else { return Ok(()) };
    found.remove(&mut tools, flavor.most_chains()).await?;
    tracing::info!(%family, %flavor, "iptables rules removed");
    Ok(())
}

/// Once our rules stand, removes those of kube-proxy's and our own other modes, and looks whether
/// the other flavour of iptables holds rules, too. Before that, removing them would leave the node
/// without any. `flavors` are the tools that the running mode writes with. Says whether connections go through something
/// of another mode, which [`once_connections_end`] removes.
pub async fn after_first_sync(config: &Config, flavors: Vec<(IpFamily, Flavor)>) -> bool {
    let mut failures = Vec::new();
    if flavors.is_empty() {
        // A mode that writes without tools has no iptables rules: none are to stay.
        failures.extend(all_rules().await);
    }
    for (family, flavor) in flavors {
        let other = match flavor {
            Flavor::Nft => Flavor::Legacy,
            Flavor::Legacy => Flavor::Nft,
        };
        failures.extend(remove_other_modes(config.mode, family, flavor).await.err());
        failures.extend(clean_other_flavor(config, family, other).await.err());
    }
    let (failed, in_use) = remove_objects_of_others(config);
    failures.extend(failed);
    warn_of(failures);
    if in_use > 0 {
        tracing::info!(
            in_use,
            "virtual servers of IPVS mode stay until the connections through them have ended; new connections go by our rules"
        );
    }
    in_use > 0
}

/// Removes what connections went through when our rules came into force, each thing once the last of its connections has
/// ended. Ends when nothing is left, or when something cannot be removed, which it logs.
pub async fn once_connections_end(config: &Config) {
    loop {
        tokio::time::sleep(DRAIN_LOOK).await;
        let (failures, in_use) = remove_objects_of_others(config);
        if !failures.is_empty() || in_use == 0 {
            warn_of(failures);
            return;
        }
    }
}

/// Removes the rules of the modes that do not run, but for those that the running one has, too.
async fn remove_other_modes(running: Mode, family: IpFamily, flavor: Flavor) -> Result<()> {
    let mut tools = tools::find(family, Some(flavor)).await?;
    let standing = mode::open(running).own_rules();
    for (mode, others) in modes().filter(|(mode, _)| *mode != running) {
        let mode = mode.as_str();
        let doing = || format!("removing {family} rules of {mode} mode");
        let found = others.own_rules().find(&mut tools, &standing).await.with_context(doing)?;
        if !found.is_empty() {
            found.remove(&mut tools, flavor.most_chains()).await.with_context(doing)?;
            tracing::info!(%family, mode, "rules of the other mode removed");
        }
    }
    Ok(())
}

async fn clean_other_flavor(config: &Config, family: IpFamily, other: Flavor) -> Result<()> {
    if rules_left(family, other).await?.is_none() {
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
    use crate::kernel::iptables::Xtables as _;
    use rstest::rstest;

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

    async fn remove(tools: &mut FakeXtables, rules: &OwnRules, standing: &OwnRules) -> bool {
        let found = rules.find(tools, standing).await.unwrap();
        found.remove(tools, 1).await.unwrap();
        !found.is_empty()
    }

    #[rstest]
    #[case("ipvs", Mode::Ipvs, "iptables", Mode::Iptables)]
    #[case("iptables", Mode::Iptables, "ipvs", Mode::Ipvs)]
    #[tokio::test]
    async fn what_one_mode_left_goes_and_what_the_other_has_stays(
        #[case] left: &str,
        #[case] of: Mode,
        #[case] running: &str,
        #[case] mode: Mode,
    ) {
        let (of, standing) = (mode::open(of).own_rules(), mode::open(mode).own_rules());
        let mut tools = tables(&[left, running]).await;
        assert!(remove(&mut tools, &of, &standing).await);
        assert_eq!(tools.tables, tables(&[running]).await.tables);
        assert!(!remove(&mut tools, &of, &standing).await);
    }

    #[tokio::test]
    async fn cleanup_leaves_nothing_of_either_mode() {
        for modes in [["iptables", "ipvs"], ["ipvs", "iptables"]] {
            let mut tools = tables(&modes).await;
            for is_there in [true, false] {
                assert_eq!(remove(&mut tools, &all_own_rules(), &OwnRules::default()).await, is_there);
                assert_eq!(tools.tables, FakeXtables::default().tables, "{modes:?}");
            }
        }
    }
}

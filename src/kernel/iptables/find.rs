//! Which iptables is installed, and which of two flavours this node uses.

use super::{Flavor, Tools};
use crate::kernel::nft::{ChainUse, Nft, Part};
use crate::kernel::xtables_info;
use crate::model::IpFamily;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::process::Stdio;
use tokio::process::Command;

/// The version of the tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl Version {
    /// The first to know `MASQUERADE --random-fully` and to wait for the lock in a restore.
    pub const RANDOM_FULLY: Version = Version(1, 6, 2);

    /// Reads the output of `iptables --version`: `iptables v1.8.9 (nf_tables)`.
    pub(super) fn parse(output: &str) -> Option<(Version, Flavor)> {
        let (_, rest) = output.split_once(" v")?;
        let digits = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut numbers = digits.split('.').map(|part| part.parse().ok());
        let version =
            Version(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or_default());
        let flavor = if rest.contains("nf_tables") { Flavor::Nft } else { Flavor::Legacy };
        Some((version, flavor))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The programs of one family and flavour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) rules: &'static str,
    pub(super) restore: &'static str,
    pub(super) save: &'static str,
}

/// Under which names a flavour may be installed, the telling one first.
fn candidates(family: IpFamily, flavor: Flavor) -> [Programs; 2] {
    let programs = |rules, restore, save| Programs { rules, restore, save };
    match (family, flavor) {
        (IpFamily::V4, Flavor::Nft) => [
            programs("iptables-nft", "iptables-nft-restore", "iptables-nft-save"),
            programs("iptables", "iptables-restore", "iptables-save"),
        ],
        (IpFamily::V4, Flavor::Legacy) => [
            programs("iptables-legacy", "iptables-legacy-restore", "iptables-legacy-save"),
            programs("iptables", "iptables-restore", "iptables-save"),
        ],
        (IpFamily::V6, Flavor::Nft) => [
            programs("ip6tables-nft", "ip6tables-nft-restore", "ip6tables-nft-save"),
            programs("ip6tables", "ip6tables-restore", "ip6tables-save"),
        ],
        (IpFamily::V6, Flavor::Legacy) => [
            programs("ip6tables-legacy", "ip6tables-legacy-restore", "ip6tables-legacy-save"),
            programs("ip6tables", "ip6tables-restore", "ip6tables-save"),
        ],
    }
}

/// The tools of a family: of the flavour asked for, or of the one this node uses.
///
/// # Errors
/// When no fitting tool is installed; names the programs looked for.
pub async fn find(family: IpFamily, flavor: Option<Flavor>) -> Result<Tools> {
    let flavor = match flavor {
        Some(flavor) => flavor,
        None => flavor_in_use(family).await?,
    };
    match installed(family, flavor).await {
        Some((programs, version)) => Ok(Tools::new(family, flavor, version, programs)),
        None => {
            let [telling, plain] = candidates(family, flavor);
            bail!(
                "no {flavor} iptables found for {family}: looked for {} and {}; install the package iptables, \
                 or choose another --iptables-flavor",
                telling.rules,
                plain.rules
            )
        }
    }
}

async fn installed(family: IpFamily, flavor: Flavor) -> Option<(Programs, Version)> {
    for programs in candidates(family, flavor) {
        match version_of(programs.rules).await {
            Some((version, found)) if found == flavor => return Some((programs, version)),
            _ => {}
        }
    }
    None
}

async fn version_of(program: &str) -> Option<(Version, Flavor)> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    Version::parse(&String::from_utf8_lossy(&output.stdout))
}

/// The flavour whose tables already hold kubelet's or our own marks; else the one that plain
/// `iptables` is; else whichever is installed.
async fn flavor_in_use(family: IpFamily) -> Result<Flavor> {
    let nft = installed(family, Flavor::Nft).await;
    let legacy = installed(family, Flavor::Legacy).await;
    match (&nft, &legacy) {
        (Some(_), None) => return Ok(Flavor::Nft),
        (None, Some(_)) => return Ok(Flavor::Legacy),
        (None, None) => {
            let name = candidates(family, Flavor::Nft)[1].rules;
            bail!(
                "{name} is not installed (neither the nft nor the legacy flavour); install the package iptables"
            )
        }
        (Some(_), Some((programs, version))) => {
            if nft_has_marks(family)
                .context("cannot look at the node's rules; this needs root or CAP_NET_ADMIN")?
            {
                return Ok(Flavor::Nft);
            }
            let legacy = Tools::new(family, Flavor::Legacy, *version, *programs);
            if legacy_has_marks(family, legacy).await? {
                return Ok(Flavor::Legacy);
            }
        }
    }
    let plain = version_of(candidates(family, Flavor::Nft)[1].rules).await;
    Ok(plain.map_or(Flavor::Nft, |(_, flavor)| flavor))
}

/// Chains in the mangle table that say "Kubernetes writes here".
const MARKS: [&str; 3] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY"];

fn nft_has_marks(family: IpFamily) -> Result<bool> {
    let mut found = false;
    Nft::open()?.chains(family, "mangle", &mut |part| match part {
        Part::Start => found = false,
        Part::Item(chain) => found |= MARKS.contains(&chain.name),
    })?;
    Ok(found)
}

async fn legacy_has_marks(family: IpFamily, mut legacy: Tools) -> Result<bool> {
    // Running the legacy tool would load its modules and make its tables; a look must not.
    if xtables_info::num_entries(family, "mangle")?.is_none() {
        return Ok(false);
    }
    let mut found = false;
    let mut look = |part: Part<ChainUse<'_>>| match part {
        Part::Start => found = false,
        Part::Item(chain) => found |= MARKS.contains(&chain.name),
    };
    super::Xtables::survey(&mut legacy, "mangle", &mut look).await?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_flavours_are_read() {
        assert_eq!(Version::parse("iptables v1.8.9 (nf_tables)\n"), Some((Version(1, 8, 9), Flavor::Nft)));
        assert_eq!(Version::parse("ip6tables v1.8.9 (legacy)\n"), Some((Version(1, 8, 9), Flavor::Legacy)));
        assert_eq!(Version::parse("iptables v1.6"), Some((Version(1, 6, 0), Flavor::Legacy)));
        assert_eq!(Version::parse("command not found"), None);
    }
}

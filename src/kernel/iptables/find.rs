//! Which iptables is installed, and which of two flavours this node uses.

use super::tools::words;
use super::{Flavor, Tools};
use crate::kernel::nft::{Nft, Part};
use crate::kernel::xtables_info;
use crate::model::IpFamily;
use anyhow::{Context, Result, bail};
use std::process::Stdio;
use std::time::Duration;
use std::{fmt, io};
use tokio::process::Command;
use tokio::time::timeout;

/// A tool that does not tell its version by then does not work.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

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
/// When no fitting tool works; names the programs that were tried and what is wrong with each.
pub async fn find(family: IpFamily, flavor: Option<Flavor>) -> Result<Tools> {
    let flavor = match flavor {
        Some(flavor) => flavor,
        None => flavor_in_use(family).await?,
    };
    match installed(family, flavor).await {
        Ok((programs, version)) => Ok(Tools::new(family, flavor, version, programs)),
        Err(faults) => {
            bail!("no {flavor} iptables for {family} works ({faults}); install the package iptables")
        }
    }
}

/// The tools of a family and flavour for inspection: where no tool works, with the reason, ones that only see what the
/// kernel shows without a tool: the chains of nf_tables, and whether a legacy table is empty.
pub async fn find_to_inspect(family: IpFamily, flavor: Flavor) -> (Tools, Option<anyhow::Error>) {
    match find(family, Some(flavor)).await {
        Ok(tools) => (tools, None),
        Err(error) => {
            let [telling, _] = candidates(family, flavor);
            (Tools::new(family, flavor, Version::RANDOM_FULLY, telling), Some(error))
        }
    }
}

async fn installed(family: IpFamily, flavor: Flavor) -> Result<(Programs, Version), String> {
    let mut faults = Vec::new();
    for programs in candidates(family, flavor) {
        match version_of(programs.rules).await {
            Ok((version, found)) if found == flavor => return Ok((programs, version)),
            Ok((_, found)) => faults.push(format!("{} is of the {found} flavour", programs.rules)),
            Err(fault) => faults.push(fault),
        }
    }
    Err(faults.join(", "))
}

async fn version_of(program: &str) -> Result<(Version, Flavor), String> {
    let mut command = Command::new(program);
    let run = command.arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match timeout(VERSION_LIMIT, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("{program} is not in PATH"));
        }
        Ok(Err(error)) => return Err(format!("{program} cannot be run: {error}")),
        Err(_) => return Err(format!("{program} --version did not come back within {VERSION_LIMIT:?}")),
    };
    Version::parse(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| format!("{program} --version fails: {}", words(&output)))
}

/// The flavour whose tables already hold kubelet's or our own marks; else the one that plain
/// `iptables` is; else the one that is installed.
async fn flavor_in_use(family: IpFamily) -> Result<Flavor> {
    let nft = installed(family, Flavor::Nft).await;
    let legacy = installed(family, Flavor::Legacy).await;
    match (&nft, &legacy) {
        (Ok(_), Err(_)) => return Ok(Flavor::Nft),
        (Err(_), Ok(_)) => return Ok(Flavor::Legacy),
        (Err(of_nft), Err(of_legacy)) => bail!(
            "no iptables for {family} works, neither nft ({of_nft}) nor legacy ({of_legacy}); \
             install the package iptables"
        ),
        (Ok(_), Ok((programs, version))) => {
            if nft_has_marks(family)
                .context("cannot list the rules of the node; this needs root or CAP_NET_ADMIN")?
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
        Part::Item(chain) => found |= MARKS.contains(&chain),
    })?;
    Ok(found)
}

async fn legacy_has_marks(family: IpFamily, mut legacy: Tools) -> Result<bool> {
    // Running the legacy tool would load its modules and make its tables; a look must not.
    if xtables_info::num_entries(family, "mangle")?.is_none() {
        return Ok(false);
    }
    let mut found = false;
    let mut visit = |part: Part<&str>| match part {
        Part::Start => found = false,
        Part::Item(chain) => found |= MARKS.contains(&chain),
    };
    super::Xtables::chains(&mut legacy, "mangle", &mut visit).await?;
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

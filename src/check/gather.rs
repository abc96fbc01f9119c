//! Asks the kernel. Decides nothing; what it cannot find out it says.

use super::facts::{CheckRequest, Facts, SysctlValue, ToolFacts};
use super::settings;
use crate::backend::{self, ProxyMode, StandingObjects};
use crate::config::Mode;
use crate::kernel::addresses::interface_addresses;
use crate::kernel::iptables::{self, Flavor, Trial, Xtables as _};
use crate::kernel::nft::{Nft, Part};
use crate::kernel::sysctl::Sysctls;
use crate::kernel::{links, process, sockets};
use crate::model::{IpFamily, PerFamily};
use anyhow::Result;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The chain of either mode that only a proxy makes; kubelet has chains of its own.
const PROXY_CHAIN: &str = "KUBE-SERVICES";

/// Finds out what is to be judged.
pub async fn gather(request: &CheckRequest) -> Facts {
    let mode = backend::open(request.mode);
    let of_family = |family| tools(mode, family, request.flavor);
    let (v4, v6) = (of_family(IpFamily::V4).await, of_family(IpFamily::V6).await);
    let other = [other_flavor(IpFamily::V4, &v4).await, other_flavor(IpFamily::V6, &v6).await];
    let [other_v4, other_v6] = other.map(words);
    let addresses = IpFamily::ALL.map(|family| interface_addresses(family).unwrap_or_default());
    let is_own =
        |ip: IpAddr| !ip.is_loopback() && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    Facts {
        is_root: process::is_root(),
        capabilities: process::capabilities().unwrap_or_default(),
        tools: PerFamily { v4: words(v4), v6: words(v6) },
        other_flavor: PerFamily { v4: other_v4, v6: other_v6 },
        standing: standing_objects(),
        requirements: mode.requirements().into_iter().chain(request.extras.iter().cloned()).collect(),
        has_bridge: links::has_bridge(),
        has_ipv6_address: addresses[1].iter().any(|it| is_own(it.address)),
        settings: read_settings(),
        listeners: words(sockets::listeners()),
        proxies: process::neighbours(&["kube-proxy", "kube-proxy-rs"]),
    }
}

fn words<T>(result: Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}

fn read_settings() -> BTreeMap<&'static str, SysctlValue> {
    let sysctls = Sysctls::default();
    let read = |name| {
        let value = sysctls.read(name).ok()?;
        Some((name, SysctlValue { value, writable: sysctls.is_writable(name) }))
    };
    settings::NAMES.into_iter().filter_map(read).collect()
}

async fn tools(mode: &dyn ProxyMode, family: IpFamily, flavor: Option<Flavor>) -> Result<ToolFacts> {
    let mut tools = iptables::find(family, flavor).await?;
    let tried = async {
        tools.check_nat_table().await?;
        Ok(iptables::refused(&mut tools, &mode.rule_kinds(family), Trial::Write).await?)
    };
    let (nat_table, refused) = match tried.await.map_err(|error: anyhow::Error| format!("{error:#}")) {
        Ok(refused) => (Ok(()), refused),
        Err(error) => (Err(error), Vec::new()),
    };
    Ok(ToolFacts { flavor: tools.flavor(), version: tools.version(), nat_table, refused })
}

/// Whether the flavour that is not used has rules of a proxy. Tables that do not exist are not made
/// by that.
async fn other_flavor(family: IpFamily, used: &Result<ToolFacts>) -> Result<bool> {
    // Without tools, the one that is looked for is the only finding.
    let Ok(used) = used else { return Ok(false) };
    if used.flavor == Flavor::Legacy && Nft::open_if_there()?.is_none() {
        return Ok(false);
    }
    let other = match used.flavor {
        Flavor::Nft => Flavor::Legacy,
        Flavor::Legacy => Flavor::Nft,
    };
    let (mut tools, _) = iptables::find_to_inspect(family, other).await;
    let mut found = false;
    let mut visit = |part: Part<&str>| match part {
        Part::Start => found = false,
        Part::Item(chain) => found |= chain == PROXY_CHAIN,
    };
    tools.chains("nat", &mut visit).await?;
    Ok(found)
}

fn standing_objects() -> Vec<(Mode, StandingObjects)> {
    let of = |mode| Some((mode, backend::open(mode).standing_objects()?));
    Mode::ALL.into_iter().filter_map(of).collect()
}

//! Reading the tables whose rules Services' packets meet besides our own.

use crate::backend::{ChainRules, ForeignTable, unfollowed_hooks};
use crate::kernel::iptables::{Flavor, Place, Tools, Xtables as _, find};
use crate::kernel::links;
use crate::kernel::nft::{MetTables, Nft, list_table};
use crate::kernel::xtables_info;
use crate::model::IpFamily;
use anyhow::{Result, anyhow};

/// The tables of the iptables tools, in the order in which packets meet them.
const TABLES: [&str; 4] = ["raw", "mangle", "nat", "filter"];

/// All tables that packets of a family meet, and what could not be read of them, each with the reason.
///
/// # Errors
/// Where the proxy's own tables cannot be read.
pub(super) async fn read(
    tools: Result<&Tools>,
    family: IpFamily,
    (has_ours, traces): (bool, bool),
) -> Result<(Vec<ForeignTable>, Vec<String>)> {
    let met = Nft::open_if_there()?.map(|mut nft| nft.met_tables(family)).transpose()?.unwrap_or_default();
    let (mut tables, mut unseen) = (Vec::new(), Vec::new());
    let used = tools.as_ref().ok().map(|tools| tools.flavor());
    if let Err(error) = &tools
        && has_ours
    {
        return Err(anyhow!("{error:#}"));
    }
    for flavor in [Flavor::Nft, Flavor::Legacy] {
        let there = existing(family, flavor, &met);
        let is_used = used == Some(flavor);
        if there.is_empty() {
            continue;
        }
        let own = tools.as_ref().ok().filter(|_| is_used);
        let found = match own {
            Some(tools) => of_tools(tools, (&there, "", traces), has_ours).await,
            None => of_other_flavor(family, flavor, &there).await,
        };
        match found {
            Ok(found) => tables.extend(found),
            Err(error) if is_used && has_ours => return Err(error),
            Err(error) => unseen.push(format!("iptables-{flavor} {} ({error:#})", there.join(", "))),
        }
    }
    for name in &met.foreign {
        match listed(name).await {
            Ok(text) => tables.push(ForeignTable::of_nft(name, &text)),
            Err(why) => unseen.push(why),
        }
    }
    unseen.extend(beside_the_walk(&met, family, has_ours).await);
    Ok((tables, unseen))
}

/// A table as `nft` prints it; or what it is called, with the reason why that is not known.
async fn listed(name: &str) -> Result<String, String> {
    match list_table(name).await {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(format!("{name} (the tool nft is not installed)")),
        Err(error) => Err(format!("{name} ({error:#})")),
    }
}

/// The tables that are not followed, each with the reason: those of bridges and devices that can stop packets, and that of
/// another proxy.
async fn beside_the_walk(met: &MetTables, family: IpFamily, has_ours: bool) -> Vec<String> {
    let mut unseen = Vec::new();
    let is_met = |name: &&String| !name.starts_with("bridge ") || links::has_bridge();
    for name in met.of_links.iter().filter(is_met) {
        match listed(name).await.map(|text| unfollowed_hooks(name, &text)) {
            Ok(hooks) if hooks.is_empty() => {}
            Ok(hooks) => {
                let hooks = Vec::from_iter(hooks).join("; ");
                unseen.push(format!(
                    "{name} (it can stop packets at hook {hooks}, where explain follows no chains)"
                ));
            }
            Err(why) => unseen.push(why),
        }
    }
    if has_ours && met.of_proxy {
        let ip = if family == IpFamily::V4 { "ip" } else { "ip6" };
        unseen.push(format!(
            "{ip} kube-proxy (a proxy in mode nftables left it, and it may translate packets first: \
             nft delete table {ip} kube-proxy removes it)"
        ));
    }
    unseen
}

/// The tables of a flavour that are there. None is made by looking.
fn existing(family: IpFamily, flavor: Flavor, met: &MetTables) -> Vec<&'static str> {
    let is_there = |table: &&str| match flavor {
        Flavor::Nft => met.of_tools.contains(*table),
        Flavor::Legacy => xtables_info::num_entries(family, table).is_ok_and(|size| size.is_some()),
    };
    TABLES.into_iter().filter(is_there).collect()
}

async fn of_other_flavor(family: IpFamily, flavor: Flavor, there: &[&str]) -> Result<Vec<ForeignTable>> {
    let tools = find(family, Some(flavor)).await?;
    of_tools(&tools, (there, &format!("iptables-{flavor} "), true), false).await
}

async fn of_tools(
    tools: &Tools,
    (there, words, traces): (&[&str], &str, bool),
    has_ours: bool,
) -> Result<Vec<ForeignTable>> {
    let mut tables = Vec::new();
    for table in there {
        let chains = match *table {
            "nat" if has_ours => beside_ours(tools, traces).await?,
            table => tools.table(table).await?,
        };
        tables.push(ForeignTable::of_iptables(words, table, chains, has_ours));
    }
    Ok(tables)
}

/// The nat table is nearly all Services', so that all of it is read only where it has to be.
async fn beside_ours(tools: &Tools, traces: bool) -> Result<ChainRules> {
    let mut nat = ChainRules::new();
    for chain in ["PREROUTING", "OUTPUT", "POSTROUTING"].into_iter().take(if traces { 3 } else { 2 }) {
        let rules = tools.rules(Place { table: "nat", chain }).await?.unwrap_or_default();
        nat.insert(chain.to_owned(), rules);
    }
    if nat.values().flatten().any(|rule| leads_to_foreign_chain(rule)) {
        nat = tools.table("nat").await?;
    }
    Ok(nat)
}

/// Whether a rule's target is a chain that is not a service proxy's.
fn leads_to_foreign_chain(rule: &str) -> bool {
    const TARGETS: [&str; 14] = [
        "ACCEPT",
        "DROP",
        "RETURN",
        "DNAT",
        "REDIRECT",
        "NOTRACK",
        "CT",
        "MARK",
        "LOG",
        "REJECT",
        "CONNMARK",
        "SNAT",
        "MASQUERADE",
        "TPROXY",
    ];
    let mut words = rule.split_whitespace().skip_while(|word| !["-j", "-g"].contains(word)).skip(1);
    words.next().is_some_and(|target| !TARGETS.contains(&target) && !target.starts_with("KUBE-"))
}

//! Taking down what carries our names, and no one else's virtual servers.

use super::Kernel;
use super::apply::set_spec;
use super::input::{self, CHAINS};
use super::names::{INTERFACE, SetId};
use super::observe::{self, Addresses};
use crate::backend::ipvs::input::Features;
use crate::kernel::iptables::{Place, Xtables};
use crate::kernel::nft::Part;
use crate::model::{IpFamily, ServerOperation};
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeSet;

/// Removes the jumps and chains, our virtual servers, the interface and the sets. What holds a
/// thing goes before it.
pub(super) async fn run(
    tools: &mut impl Xtables,
    kernel: &mut Kernel,
    family: IpFamily,
    features: &Features,
) -> Result<()> {
    let mut errors: Vec<String> = Vec::new();
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            errors.push(format!("{what}: {error:#}"));
        }
    };
    let there = existing_chains(tools).await?;
    // The tools refuse to look for a jump to a chain that does not exist.
    for jump in input::jumps(false).filter(|jump| there.contains(&(jump.table, jump.to))) {
        let place = Place { table: jump.table, chain: jump.from };
        note("jump", tools.delete_rule(place, &jump.arguments()).await.map(|_| ()));
    }
    for (table, chains) in CHAINS {
        note(table, remove_chains(tools, table, chains).await);
    }
    note("virtual servers", remove_servers(kernel, family, features));
    note(INTERFACE, kernel.links.delete(INTERFACE).map(|_| ()));
    for id in SetId::ALL {
        let name = id.name(family);
        note("set", kernel.sets.destroy(set_spec(id, &name, family).name).map(|_| ()));
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow!("{}", errors.join("; "))) }
}

fn remove_servers(kernel: &mut Kernel, family: IpFamily, features: &Features) -> Result<()> {
    let addresses = Addresses::read(kernel, family)?;
    let found = observe::all(kernel, family, features, &addresses)?;
    let excluded = |it: &std::net::IpAddr| features.exclude.iter().any(|cidr| cidr.contains(it));
    let ours = found.servers.iter().filter(|(at, held)| !held.is_foreign && !excluded(&at.address));
    let removals: Vec<_> = ours.map(|(at, _)| ServerOperation::Remove(*at)).collect();
    let refused = kernel.servers.run(&removals)?;
    match refused.iter().find(|refused| !refused.is_missing) {
        Some(refused) => bail!("{}", refused.message),
        None => Ok(()),
    }
}

/// Those of our chains that there are, with their tables.
async fn existing_chains(tools: &mut impl Xtables) -> Result<BTreeSet<(&'static str, &'static str)>> {
    let mut found = BTreeSet::new();
    for (table, chains) in CHAINS {
        let mut look = |part: Part<crate::kernel::nft::ChainUse<'_>>| match part {
            Part::Start => found.retain(|(known, _)| *known != table),
            Part::Item(chain) => {
                let ours = chains.iter().copied().find(|ours| *ours == chain.name);
                found.extend(ours.map(|ours| (table, ours)));
            }
        };
        tools.survey(table, &mut look).await?;
    }
    Ok(found)
}

/// Empties and deletes those of our chains that are there.
async fn remove_chains(tools: &mut impl Xtables, table: &str, chains: &[&str]) -> Result<()> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let mut look = |part: Part<crate::kernel::nft::ChainUse<'_>>| match part {
        Part::Start => found.clear(),
        Part::Item(chain) => found.extend(chains.iter().copied().find(|ours| *ours == chain.name)),
    };
    tools.survey(table, &mut look).await?;
    if found.is_empty() {
        return Ok(());
    }
    let mut text = format!("*{table}\n");
    found.iter().for_each(|chain| text.push_str(&format!(":{chain} - [0:0]\n")));
    found.iter().for_each(|chain| text.push_str(&format!("-X {chain}\n")));
    text.push_str("COMMIT\n");
    Ok(tools.restore(&mut std::iter::once(text)).await?)
}

//! Taking down what carries our names.

use super::chains::{Fixed, JUMPS, TABLES};
use super::most_chains;
use super::names::{ChainId, NODE_PORTS, SERVICES};
use crate::backend::SharedNames;
use crate::backend::jumps::Jump;
use crate::backend::lines::{Text, line};
use crate::kernel::iptables::{Place, TRIAL, Xtables};
use crate::kernel::nft::Part;
use anyhow::{Result, anyhow};
use std::collections::BTreeSet;

/// Removes the rules of this mode, but for those that another mode of ours has put in force under
/// the same names. Says whether there were any.
pub(in crate::backend) async fn remove_rules(
    tools: &mut impl Xtables,
    standing: &SharedNames,
) -> Result<bool> {
    if !holds_rules(tools, standing).await? {
        return Ok(false);
    }
    run(tools, most_chains(tools.flavor()), standing).await.map(|()| true)
}

/// Removes the jumps, then empties and deletes the chains, but for those that another mode of ours
/// has put in force under the same names. `KUBE-FIREWALL` stays: kubelet has the same.
pub(super) async fn run(tools: &mut impl Xtables, most_chains: usize, standing: &SharedNames) -> Result<()> {
    let mut errors: Vec<String> = Vec::new();
    let stays = |jump: &Jump| {
        jump.is_shared_with_kubelet() || standing.has_jump(jump.table, jump.from, &jump.arguments())
    };
    for jump in JUMPS.iter().filter(|jump| !stays(jump)) {
        let place = Place { table: jump.table, chain: jump.from };
        if let Err(error) = tools.delete_rule_throughout(place, &jump.arguments()).await {
            errors.push(format!("{error:#}"));
        }
    }
    for table in TABLES {
        if let Err(error) = remove_chains(tools, table, most_chains, standing).await {
            errors.push(format!("table {table}: {error:#}"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow!("{}", errors.join("; "))) }
}

/// The rules of this mode whose names another mode uses, too.
pub(in crate::backend) fn standing() -> SharedNames {
    let chains = Fixed::all().filter(|chain| !chain.is_shared()).map(|chain| (chain.table(), chain.as_str()));
    let jumps = JUMPS.iter().map(|jump| (jump.table, jump.from, jump.arguments()));
    SharedNames { chains: chains.collect(), jumps: jumps.collect() }
}

/// One of ours that is no Service's; what a trial left counts, too.
fn is_fixed(table: &str, chain: &str) -> bool {
    Fixed::parse(table, chain).is_some_and(|chain| !chain.is_shared()) || chain == TRIAL
}

/// Whether there is anything to remove.
pub(super) async fn holds_rules(tools: &mut impl Xtables, standing: &SharedNames) -> Result<bool> {
    for table in TABLES {
        let mut found = false;
        tools
            .chains(table, &mut |part| match part {
                Part::Start => found = false,
                Part::Item(chain) => {
                    found |= is_fixed(table, chain) && !standing.has_chain(table, chain);
                    found |= ChainId::parse(chain).is_some();
                }
            })
            .await?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn remove_chains(
    tools: &mut impl Xtables,
    table: &str,
    most_chains: usize,
    standing: &SharedNames,
) -> Result<()> {
    let mut fixed = BTreeSet::new();
    let mut services = BTreeSet::new();
    tools
        .chains(table, &mut |part| match part {
            Part::Start => {
                fixed.clear();
                services.clear();
            }
            Part::Item(chain) if is_fixed(table, chain) => {
                if !standing.has_chain(table, chain) {
                    fixed.insert(chain.to_owned());
                }
            }
            Part::Item(chain) if table == "nat" => {
                services.extend(ChainId::parse(chain));
            }
            Part::Item(_) => {}
        })
        .await?;
    // What leads into the Services is emptied first; their own chains are in an order in which
    // none is in use when its turn comes.
    let services: Vec<String> = services.iter().map(ToString::to_string).collect();
    let dispatch: Vec<String> =
        fixed.iter().filter(|chain| [SERVICES, NODE_PORTS].contains(&chain.as_str())).cloned().collect();
    rewrite(tools, table, &dispatch, false).await?;
    for batch in services.chunks(most_chains.min(services.len().max(1))) {
        rewrite(tools, table, batch, true).await?;
    }
    rewrite(tools, table, &fixed.into_iter().collect::<Vec<_>>(), true).await
}

/// Empties chains, and deletes them if asked to.
async fn rewrite(tools: &mut impl Xtables, table: &str, chains: &[String], delete: bool) -> Result<()> {
    if chains.is_empty() {
        return Ok(());
    }
    let mut text = Text::default();
    line!(text, "*{table}");
    for chain in chains {
        line!(text, ":{chain} - [0:0]");
    }
    for chain in chains.iter().filter(|_| delete) {
        line!(text, "-X {chain}");
    }
    line!(text, "COMMIT");
    Ok(tools.restore(&mut std::iter::once(text.into_string())).await?)
}

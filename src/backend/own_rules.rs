//! The iptables chains and jumps that carry a mode's names, whether this program or kube-proxy made them: which the tables hold, and
//! how they are removed.

use super::jumps::Jump;
use super::lines::{Text, line};
use crate::kernel::iptables::{Place, Xtables};
use crate::kernel::nft::Part;
use anyhow::{Result, anyhow};
use std::collections::BTreeSet;

/// Takes from chains of the nat table those of Services, in an order in which none is in use when its turn comes.
type ServiceChains = fn(&[String]) -> Vec<String>;

/// The rules of a mode, ours or kube-proxy's, by their names; without what kubelet has, too.
#[derive(Clone, Debug, Default)]
pub struct OwnRules {
    /// Tables and chains that always stand.
    pub(super) chains: BTreeSet<(&'static str, &'static str)>,
    pub(super) jumps: Vec<&'static Jump>,
    /// Of a mode whose Services have chains.
    pub(super) services: Option<ServiceChains>,
}

impl OwnRules {
    /// Those of two modes.
    #[must_use]
    pub fn and(mut self, other: OwnRules) -> OwnRules {
        self.chains.extend(other.chains);
        self.jumps.extend(other.jumps);
        self.services = self.services.or(other.services);
        self
    }

    /// Which of them the tables hold, but for those that a mode in force has, too.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub(super) async fn find(&self, tools: &mut impl Xtables, standing: &OwnRules) -> Result<FoundRules> {
        let tables: BTreeSet<&'static str> = self.chains.iter().map(|(table, _)| *table).collect();
        let (mut found, mut there) = (FoundRules::default(), BTreeSet::new());
        for table in tables {
            let mut names = Vec::new();
            let mut visit = |part: Part<&str>| match part {
                Part::Start => names.clear(),
                Part::Item(chain) => names.push(chain.to_owned()),
            };
            tools.chains(table, &mut visit).await?;
            let is_there =
                |(of, chain): &&(&str, &str)| *of == table && names.iter().any(|name| name == chain);
            let fixed: Vec<_> = self.chains.iter().filter(is_there).copied().collect();
            there.extend(fixed.iter().copied());
            let services =
                self.services.filter(|_| table == "nat").map(|take| take(&names)).unwrap_or_default();
            let fixed =
                fixed.into_iter().filter(|chain| !standing.chains.contains(chain)).map(|(_, chain)| chain);
            found.tables.push(FoundChains { table, fixed: fixed.collect(), services });
        }
        // The tools refuse to look for a jump to a chain that does not exist.
        let is_left =
            |jump: &&&Jump| there.contains(&(jump.table, jump.to)) && !standing.jumps.contains(*jump);
        found.jumps = self.jumps.iter().filter(is_left).copied().collect();
        Ok(found)
    }
}

/// Rules of a mode that the tables hold.
#[derive(Debug, Default)]
pub(super) struct FoundRules {
    jumps: Vec<&'static Jump>,
    tables: Vec<FoundChains>,
}

#[derive(Debug)]
struct FoundChains {
    table: &'static str,
    fixed: Vec<&'static str>,
    services: Vec<String>,
}

impl FoundRules {
    /// Whether there is no chain.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(|found| found.fixed.is_empty() && found.services.is_empty())
    }

    /// Removes the jumps, then the chains; one input names at most `most_chains` chains of Services.
    ///
    /// # Errors
    /// All that went wrong, in one; an error in one table does not hold up the others.
    pub(super) async fn remove(&self, tools: &mut impl Xtables, most_chains: usize) -> Result<()> {
        let mut outcomes = Vec::new();
        for jump in &self.jumps {
            let place = Place { table: jump.table, chain: jump.from };
            outcomes.push(("jump", tools.delete_rule_throughout(place, &jump.arguments()).await));
        }
        for found in &self.tables {
            outcomes.push((found.table, found.remove(tools, most_chains).await));
        }
        in_one(outcomes)
    }
}

impl FoundChains {
    async fn remove(&self, tools: &mut impl Xtables, most_chains: usize) -> Result<()> {
        if !self.services.is_empty() {
            // These lead to Services.
            rewrite(tools, self.table, &self.fixed, false).await?;
        }
        for batch in self.services.chunks(most_chains) {
            rewrite(tools, self.table, batch, true).await?;
        }
        rewrite(tools, self.table, &self.fixed, true).await
    }
}

/// Empties chains, and deletes them if asked to.
async fn rewrite(
    tools: &mut impl Xtables,
    table: &str,
    chains: &[impl AsRef<str>],
    delete: bool,
) -> Result<()> {
    if chains.is_empty() {
        return Ok(());
    }
    let mut text = Text::default();
    line!(text, "*{table}");
    for chain in chains {
        line!(text, ":{} - [0:0]", chain.as_ref());
    }
    for chain in chains.iter().filter(|_| delete) {
        line!(text, "-X {}", chain.as_ref());
    }
    line!(text, "COMMIT");
    Ok(tools.restore(&mut std::iter::once(text.into_string())).await?)
}

/// All that went wrong, in one.
pub(super) fn in_one(outcomes: impl IntoIterator<Item = (&'static str, Result<()>)>) -> Result<()> {
    let failed = outcomes.into_iter().filter_map(|(what, outcome)| Some((what, outcome.err()?)));
    let errors: Vec<String> = failed.map(|(what, error)| format!("{what}: {error:#}")).collect();
    if errors.is_empty() { Ok(()) } else { Err(anyhow!("{}", errors.join("; "))) }
}

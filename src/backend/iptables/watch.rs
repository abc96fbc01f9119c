//! Whether the kernel still has our chains as they were written.

use super::base::{CANARY_TABLES, JUMPS, fixed_chains};
use super::desired::{self, Baseline};
use super::diff::Changes;
use super::names::{
    CANARY, ChainId, EXTERNAL_SERVICES, FIREWALL, FORWARD, MARK_MASQ, NODE_PORTS, POSTROUTING,
    PROXY_FIREWALL, SERVICES,
};
use crate::backend::kept::{Chains, Kept};
use crate::backend::rule_count::RuleCount;
use crate::backend::{Drift, DriftKind};
use crate::kernel::iptables::{Flavor, Xtables};
use crate::kernel::nft::{ChainUse, Part};
use anyhow::Result;
use std::collections::BTreeSet;

/// The chains that hold no Service's own rules, with their tables.
const FIXED: [(&str, &str); 12] = [
    ("nat", SERVICES),
    ("nat", NODE_PORTS),
    ("nat", POSTROUTING),
    ("nat", MARK_MASQ),
    ("filter", SERVICES),
    ("filter", EXTERNAL_SERVICES),
    ("filter", FORWARD),
    ("filter", NODE_PORTS),
    ("filter", PROXY_FIREWALL),
    ("mangle", CANARY),
    ("nat", CANARY),
    ("filter", CANARY),
];

/// More chains than this are not listened to while they are written: what waits to be heard is bounded.
const MOST_FOLLOWED: usize = 500;

/// One of our chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ChainKey {
    /// By its place in `FIXED`.
    Fixed(u8),
    /// In the nat table.
    Own(ChainId),
}

fn fixed(table: &str, chain: &str) -> Option<ChainKey> {
    let index = FIXED.iter().position(|known| *known == (table, chain))?;
    u8::try_from(index).ok().map(ChainKey::Fixed)
}

/// The chains of iptables mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct OurChains;

impl Chains for OurChains {
    type Key = ChainKey;

    fn key(&self, table: &str, chain: &str) -> Option<ChainKey> {
        let own = || (table == "nat").then(|| ChainId::parse(chain)).flatten().map(ChainKey::Own);
        fixed(table, chain).or_else(own)
    }

    fn holder(&self, table: &str, chain: &str) -> Option<ChainKey> {
        self.key(table, chain).filter(|_| chain != CANARY)
    }

    fn place(&self, key: ChainKey) -> (&'static str, String) {
        match key {
            ChainKey::Fixed(index) => {
                let (table, chain) = FIXED[usize::from(index)];
                (table, chain.to_owned())
            }
            ChainKey::Own(id) => ("nat", id.to_string()),
        }
    }

    fn tables(&self) -> &'static [&'static str] {
        &["nat", "filter"]
    }

    fn shared(&self) -> BTreeSet<(&'static str, &'static str)> {
        let jumps = JUMPS.iter().map(|jump| (jump.table, jump.from));
        jumps.chain([("filter", FIREWALL)]).collect()
    }

    fn has_jump(&self, table: &str, from: &str, to: &str) -> bool {
        let goes = |jump: &crate::backend::jumps::Jump| (jump.table, jump.from, jump.to) == (table, from, to);
        JUMPS.iter().any(|jump| goes(jump) && !jump.is_shared_with_kubelet())
    }

    /// Kubelet writes this one, too.
    fn is_mixed(&self, table: &str, chain: &str) -> bool {
        (table, chain) == ("filter", FIREWALL)
    }
}

/// The chains that changes write.
fn written(changes: &Changes) -> Vec<ChainKey> {
    let parts: [(bool, &[(&str, &str)]); 4] = [
        (changes.fixed, &[("filter", FORWARD), ("nat", POSTROUTING), ("nat", MARK_MASQ)]),
        (
            changes.filter_dispatch,
            &[
                ("filter", SERVICES),
                ("filter", EXTERNAL_SERVICES),
                ("filter", NODE_PORTS),
                ("filter", PROXY_FIREWALL),
            ],
        ),
        (changes.nat_dispatch, &[("nat", SERVICES)]),
        (changes.node_ports, &[("nat", NODE_PORTS)]),
    ];
    let shared = parts.into_iter().filter(|(written, _)| *written).flat_map(|(_, chains)| chains);
    let services = changes.services.iter().flat_map(|service| service.write.iter().copied());
    let nets = changes.write_nets.iter().map(|chain| chain.net.chain());
    let own = services.chain(nets).map(ChainKey::Own);
    shared.filter_map(|(table, chain)| fixed(table, chain)).chain(own).collect()
}

/// What a pass writes.
#[derive(Debug)]
pub(super) struct Written {
    /// Nothing but this is in force then.
    all: bool,
    chains: Vec<ChainKey>,
    deleted: Vec<ChainKey>,
}

impl Written {
    pub(super) fn by(changes: &Changes) -> Self {
        let deleted = changes.delete.iter().copied().map(ChainKey::Own).collect();
        Written { all: changes.set_up, chains: written(changes), deleted }
    }

    /// Everything is written.
    pub(super) fn is_all(&self) -> bool {
        self.all
    }

    /// Too much is written to be listened to.
    pub(super) fn is_large(&self) -> bool {
        self.all || self.chains.len() + self.deleted.len() > MOST_FOLLOWED
    }
}

/// Notes how the kernel shows what was just written. Without that nothing can be compared later. Of
/// nf_tables only what stands among rules of others is read: what happens to our own chains is heard.
///
/// # Errors
/// When that could not be seen: then there is nothing to compare with.
pub(super) async fn keep(tools: &mut impl Xtables, written: Written, baseline: &mut Baseline) -> Result<()> {
    let Written { all, mut chains, deleted } = written;
    if tools.flavor() == Flavor::Nft {
        chains.clear();
    }
    match baseline.kept.take() {
        _ if all => baseline.kept = Some(Kept::all(tools, &OurChains, &chains).await?),
        Some(mut kept) => {
            kept.refresh(tools, &OurChains, (&chains, &deleted)).await?;
            baseline.kept = Some(kept);
        }
        None => {}
    }
    Ok(())
}

/// Counts how often chains are used, and looks for the canaries: no rule is read.
pub(super) async fn count(tools: &mut impl Xtables, baseline: &Baseline) -> Result<Vec<Drift>> {
    let mut drift = Vec::new();
    for table in CANARY_TABLES {
        let (chains, found) = look_at(tools, table).await?;
        let missing = fixed_chains(table).iter().filter(|chain| !chains.contains(**chain));
        let gone =
            |chain: &&str| Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), "is gone");
        drift.extend(missing.map(gone));
        if table != "mangle"
            && let Some(missing) = baseline.judge(table, found)
        {
            let what = format!("lacks about {missing} rules");
            drift.push(Drift::new(DriftKind::Table, table, what));
        }
    }
    Ok(drift)
}

/// Compares rules with what was written, as far as that is known.
pub(super) async fn compare(tools: &mut impl Xtables, baseline: &mut Baseline) -> Result<Vec<Drift>> {
    match &mut baseline.kept {
        Some(kept) => kept.compare(tools, &OurChains).await,
        None => Ok(Vec::new()),
    }
}

/// The fixed chains of a table that stand, and how often our chains are used there.
async fn look_at(tools: &mut impl Xtables, table: &str) -> Result<(BTreeSet<&'static str>, RuleCount)> {
    let (mut chains, mut uses) = (BTreeSet::new(), RuleCount::default());
    let known = fixed_chains(table);
    let mut look = |part: Part<ChainUse<'_>>| match part {
        Part::Start => (chains, uses) = (BTreeSet::new(), RuleCount::default()),
        Part::Item(chain) => {
            chains.extend(known.iter().copied().find(|name| *name == chain.name));
            uses = uses.plus(desired::counted(table, chain.name, chain.uses));
        }
    };
    tools.survey(table, &mut look).await?;
    Ok((chains, uses))
}

//! Whether the kernel still has our chains as they were written.

use super::chains::{Fixed, JUMPS, TABLES};
use super::desired::{self, Baseline};
use super::diff::Changes;
use super::names::{
    CANARY, ChainId, EXTERNAL_SERVICES, FIREWALL, FORWARD, MARK_MASQ, NODE_PORTS, POSTROUTING,
    PROXY_FIREWALL, SERVICES,
};
use crate::backend::jumps::Jump;
use crate::backend::kept::{Chains, Kept, Record};
use crate::backend::rule_count::RuleCount;
use crate::backend::{Drift, DriftKind};
use crate::kernel::iptables::Xtables;
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

    fn tables(&self) -> impl Iterator<Item = &'static str> {
        ["nat", "filter"].into_iter()
    }

    fn jumps(&self) -> impl Iterator<Item = &'static Jump> {
        JUMPS.iter().filter(|jump| !jump.is_shared_with_kubelet())
    }

    /// Kubelet writes this one, too.
    fn mixed(&self) -> Option<(&'static str, &'static str)> {
        Some(("filter", FIREWALL))
    }
}

/// What a pass writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// Nothing but this is in force then.
    all: bool,
    is_large: bool,
}

impl Written {
    pub(super) fn by(changes: &Changes) -> Self {
        let written: usize = changes.services.iter().map(|service| service.write.len()).sum();
        let chains = written + changes.write_nets.len() + changes.delete.len();
        let all = changes.set_up;
        Written { all, is_large: all || chains > MOST_FOLLOWED }
    }

    /// Everything is written.
    pub(super) fn is_all(&self) -> bool {
        self.all
    }

    /// Too much is written to be listened to.
    pub(super) fn is_large(&self) -> bool {
        self.is_large
    }
}

/// Notes what has to be found later: in legacy tables what was recorded, and of nf_tables how the kernel shows
/// what stands among rules of others. What happens to our own chains there is heard.
///
/// # Errors
/// When that could not be seen: then there is nothing to compare with.
pub(super) fn keep(
    tools: &mut impl Xtables,
    written: Written,
    record: Option<Record<OurChains>>,
    baseline: &mut Baseline,
) -> Result<()> {
    match (record, &mut baseline.kept) {
        (Some(record), Some(kept)) if !written.all => kept.add(record),
        (Some(record), kept) => *kept = written.all.then(|| Kept::recorded(OurChains, record)),
        (None, kept) if written.all => *kept = Some(Kept::shown(tools, OurChains, &[])?),
        (None, _) => {}
    }
    Ok(())
}

/// Counts how often chains are used, and looks for the canaries: no rule is read.
pub(super) async fn count(tools: &mut impl Xtables, baseline: &Baseline) -> Result<Vec<Drift>> {
    let mut drift = Vec::new();
    for table in TABLES {
        let (chains, found) = look_at(tools, table).await?;
        let missing = fixed_chains(table).filter(|chain| !chains.contains(chain));
        let gone = |chain: &str| Drift::new(DriftKind::Chain, format!("{chain} of table {table}"), "is gone");
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
pub(super) async fn compare(tools: &mut impl Xtables, baseline: &Baseline) -> Result<Vec<Drift>> {
    match &baseline.kept {
        Some(kept) => kept.compare(tools).await,
        None => Ok(Vec::new()),
    }
}

fn fixed_chains(table: &str) -> impl Iterator<Item = &'static str> {
    Fixed::of(table).filter(|chain| !chain.is_shared()).map(Fixed::as_str)
}

/// The fixed chains of a table that stand, and how often our chains are used there.
async fn look_at(tools: &mut impl Xtables, table: &str) -> Result<(BTreeSet<&'static str>, RuleCount)> {
    let (mut chains, mut uses) = (BTreeSet::new(), RuleCount::default());
    let mut look = |part: Part<ChainUse<'_>>| match part {
        Part::Start => (chains, uses) = (BTreeSet::new(), RuleCount::default()),
        Part::Item(chain) => {
            chains.extend(fixed_chains(table).find(|name| *name == chain.name));
            uses = uses.plus(desired::counted(table, chain.name, chain.uses));
        }
    };
    tools.survey(table, &mut look).await?;
    Ok((chains, uses))
}

//! What we have said to iptables-restore.

use super::{Chains, EMPTY, Print, SharedRule, with_rule};
use crate::backend::meaning::meaning;
use crate::kernel::iptables::{Rule, Said};
use std::collections::{BTreeMap, BTreeSet};

/// The chains that inputs write, with their rules.
#[derive(Debug)]
pub(in crate::backend) struct Record<C: Chains> {
    chains: C,
    /// The table that is being written, if it holds chains of ours.
    table: Option<&'static str>,
    prints: BTreeMap<C::Key, Print>,
    shared: BTreeSet<SharedRule>,
}

impl<C: Chains> Record<C> {
    pub(in crate::backend) fn of(chains: C) -> Self {
        Record { chains, table: None, prints: BTreeMap::new(), shared: BTreeSet::new() }
    }

    /// Takes a line of an input.
    pub(in crate::backend) fn take(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix('*') {
            self.table = self.chains.tables().iter().find(|table| **table == name).copied();
            return;
        }
        let Some(table) = self.table else { return };
        if let Some(declared) = line.strip_prefix(':') {
            // It is emptied, and what is deleted was declared before.
            let chain = declared.split(' ').next().unwrap_or_default();
            self.prints.extend(self.chains.holder(table, chain).map(|key| (key, EMPTY)));
        } else if let Some(rule) = Said::parse(line).map(said) {
            match self.chains.holder(table, rule.chain) {
                Some(key) => {
                    let print = self.prints.entry(key).or_insert(EMPTY);
                    *print = with_rule(*print, rule.content);
                }
                None => self.shared.extend(SharedRule::of(&self.chains, table, rule)),
            }
        }
    }

    /// Adds what was written later.
    pub(in crate::backend) fn append(&mut self, mut later: Record<C>) {
        self.prints.append(&mut later.prints);
        self.shared.append(&mut later.shared);
    }

    pub(super) fn into_parts(self) -> (BTreeMap<C::Key, Print>, BTreeSet<SharedRule>) {
        (self.prints, self.shared)
    }
}

/// The jumps that we keep in built-in chains, as they are listed.
pub(super) fn jumps<C: Chains>(chains: &C) -> impl Iterator<Item = SharedRule> {
    chains.jumps().filter_map(|jump| {
        let says = jump.arguments();
        let rule = Said { chain: jump.from, says: &says, jumps_to: Some(jump.to) };
        SharedRule::of(chains, jump.table, said(rule))
    })
}

/// A rule in words, as it is compared. Packets are not counted.
pub(super) fn said(rule: Said<'_>) -> Rule<'_> {
    let Said { chain, says, jumps_to } = rule;
    Rule { chain, content: meaning(says), jumps_to, packets: 0 }
}

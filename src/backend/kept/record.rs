//! What we have said to iptables-restore.

use super::{At, Chains, EMPTY, Rules, SharedRule, with_rule};
use crate::backend::rule::Parsed;
use crate::kernel::iptables::Said;
use std::collections::{BTreeMap, BTreeSet};

/// The chains that inputs write, with their rules.
#[derive(Debug)]
pub(in crate::backend) struct Record<C: Chains> {
    chains: C,
    /// The table that is being written, if it holds chains of ours.
    table: Option<&'static str>,
    /// Chains that were emptied or deleted are among them.
    rules: Rules<C::Key>,
}

impl<C: Chains> Record<C> {
    pub(in crate::backend) fn of(chains: C) -> Self {
        Record { chains, table: None, rules: Rules { prints: BTreeMap::new(), shared: BTreeSet::new() } }
    }

    /// Takes a line of an input.
    pub(in crate::backend) fn take(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix('*') {
            self.table = self.chains.tables().find(|table| *table == name);
            return;
        }
        let Some(table) = self.table else { return };
        if let Some(declared) = line.strip_prefix(':') {
            // It is emptied, and what is deleted was declared before.
            let chain = declared.split(' ').next().unwrap_or_default();
            self.rules.prints.extend(self.chains.holder(table, chain).map(|key| (key, EMPTY)));
        } else if let Some(Said { chain, says, jumps_to }) = Said::parse(line) {
            let content = || Parsed::of(says).rule().hash();
            match self.chains.holder(table, chain) {
                Some(key) => {
                    let print = self.rules.prints.entry(key).or_insert(EMPTY);
                    *print = with_rule(*print, content());
                }
                None => {
                    let at = At { table, chain, jumps_to };
                    self.rules.shared.extend(SharedRule::of(&self.chains, at, content));
                }
            }
        }
    }

    /// Adds what was written later.
    pub(in crate::backend) fn append(&mut self, mut later: Record<C>) {
        self.rules.prints.append(&mut later.rules.prints);
        self.rules.shared.append(&mut later.rules.shared);
    }

    pub(super) fn into_rules(self) -> Rules<C::Key> {
        self.rules
    }
}

/// The jumps that we keep in built-in chains, as they are listed.
pub(super) fn jumps<C: Chains>(chains: &C) -> impl Iterator<Item = SharedRule> {
    chains.jumps().filter_map(|jump| {
        let at = At { table: jump.table, chain: jump.from, jumps_to: Some(jump.to) };
        SharedRule::of(chains, at, || Parsed::of(&jump.arguments()).rule().hash())
    })
}

//! Reading what tables hold of ours.

use super::{Chains, EMPTY, Kept, Print, SharedRule, with_rule};
use crate::kernel::iptables::Rule;
use crate::kernel::nft::Part;

/// Reads rules, table by table or chain by chain.
pub(super) struct Reader<C: Chains> {
    chains: C,
    prints: Vec<(C::Key, Print)>,
    shared: Vec<SharedRule>,
    /// How many of these are of parts that have been read to their ends.
    done: (usize, usize),
    /// The chain that is being read, if it is one of ours.
    name: String,
    key: Option<C::Key>,
    print: Print,
}

impl<C: Chains> Reader<C> {
    pub(super) fn of(chains: C) -> Self {
        let (prints, shared, name) = (Vec::new(), Vec::new(), String::new());
        Reader { chains, prints, shared, done: (0, 0), name, key: None, print: EMPTY }
    }

    /// The rules of one chain come one after the other.
    pub(super) fn take(&mut self, table: &'static str, part: Part<Rule<'_>>) {
        let Part::Item(rule) = part else {
            self.prints.truncate(self.done.0);
            self.shared.truncate(self.done.1);
            (self.key, self.print) = (None, EMPTY);
            self.name.clear();
            return;
        };
        if self.name != rule.chain {
            self.end_chain();
            self.name.push_str(rule.chain);
            self.key = self.chains.holder(table, rule.chain);
        }
        match self.key {
            Some(_) => self.print = with_rule(self.print, rule.content),
            None => self.shared.extend(SharedRule::of(&self.chains, table, rule)),
        }
    }

    fn end_chain(&mut self) {
        let print = std::mem::replace(&mut self.print, EMPTY);
        self.prints.extend(self.key.take().map(|key| (key, print)));
        self.name.clear();
    }

    /// A table or a chain has been read to its end.
    pub(super) fn end_part(&mut self) {
        self.end_chain();
        self.done = (self.prints.len(), self.shared.len());
    }

    pub(super) fn finish(self) -> Kept<C> {
        let (prints, shared) = (self.prints.into_iter().collect(), self.shared.into_iter().collect());
        Kept { chains: self.chains, prints, shared }
    }
}

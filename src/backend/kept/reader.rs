//! Reading what tables hold of ours.

use super::{At, Chains, EMPTY, Found, Print, SharedRule, with_rule};
use crate::backend::rule::Parsed;
use crate::kernel::iptables::{Rule, Said};
use crate::kernel::nft::Part;

/// Reads rules, table by table or chain by chain.
pub(super) struct Reader<C: Chains> {
    chains: C,
    prints: Vec<(C::Key, Print)>,
    shared: Vec<SharedRule>,
    /// How many of these are of parts that have been read to their ends.
    done: (usize, usize),
    /// The chain that is being read; no key if it is none of ours.
    name: String,
    key: Option<C::Key>,
    print: Print,
}

impl<C: Chains> Reader<C> {
    pub(super) fn of(chains: C) -> Self {
        let (prints, shared, name) = (Vec::new(), Vec::new(), String::new());
        Reader { chains, prints, shared, done: (0, 0), name, key: None, print: EMPTY }
    }

    /// A rule as nf_tables shows it, or the news that this part comes once more from its start.
    pub(super) fn take_part(&mut self, table: &'static str, part: Part<Rule<'_>>) {
        match part {
            Part::Start => {
                self.prints.truncate(self.done.0);
                self.shared.truncate(self.done.1);
                (self.key, self.print) = (None, EMPTY);
                self.name.clear();
            }
            Part::Item(Rule { chain, jumps_to, content, .. }) => {
                self.take(At { table, chain, jumps_to }, || content);
            }
        }
    }

    /// A rule of a legacy table, as a tool lists it.
    pub(super) fn take_said(&mut self, table: &'static str, rule: Said<'_>) {
        let Said { chain, jumps_to, says } = rule;
        self.take(At { table, chain, jumps_to }, || Parsed::of(says).rule().hash());
    }

    /// The rules of one chain come one after the other. What those of others say does not matter.
    fn take(&mut self, at: At<'_>, content: impl FnOnce() -> u64) {
        if self.name != at.chain {
            self.end_chain();
            self.name.push_str(at.chain);
            self.key = self.chains.holder(at.table, at.chain);
        }
        match self.key {
            Some(_) => self.print = with_rule(self.print, content()),
            None => self.shared.extend(SharedRule::of(&self.chains, at, content)),
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

    pub(super) fn finish(mut self) -> Found<C::Key> {
        self.prints.sort_unstable_by_key(|(key, _)| *key);
        Found { prints: self.prints, shared: self.shared.into_iter().collect() }
    }
}

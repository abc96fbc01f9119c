//! What rules and chains do, as numbers.

use super::{Asks, Comment, Rule, Target};
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};

/// Odd, so that no place of a long chain is without weight.
const WEIGHT: u64 = 0x9e37_79b9_7f4a_7c15;

/// The same value has the same hash in every run.
pub(super) fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Comments are the same if their text is, whatever it was made of.
impl PartialEq for Comment<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Comment<'_> {}

impl Hash for Comment<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Nothing here fails.
        let _ = write!(Pieces(state), "{self}");
        state.write_u8(0xff);
    }
}

/// Hashes text as if it came in one piece.
struct Pieces<'h, H>(&'h mut H);

impl<H: Hasher> fmt::Write for Pieces<'_, H> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        self.0.write(piece.as_bytes());
        Ok(())
    }
}

impl Rule<'_> {
    /// A hash of all that it says; it does not depend on the order of its options.
    pub(in crate::backend) fn hash(&self) -> u64 {
        self.sum(|_| true)
    }

    /// A hash of what it does: its comment does not count.
    pub(in crate::backend) fn effect(&self) -> u64 {
        self.sum(|asks| !matches!(asks, Asks::Comment(_)))
    }

    fn sum(&self, counts: impl Fn(&Asks<'_>) -> bool) -> u64 {
        let target = if self.target == Target::None { 0 } else { hash(&self.target) };
        let asked = self.asks().filter(|it| counts(&it.asks)).map(hash);
        asked.fold(target, u64::wrapping_add)
    }
}

/// A hash of the rules of a chain, in their order. That of a chain is made of those of its pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct ChainHash {
    hash: u64,
    rules: u32,
}

impl ChainHash {
    /// Of a chain without rules.
    pub(in crate::backend) const EMPTY: ChainHash = ChainHash { hash: 0, rules: 0 };

    /// Of a chain with one rule.
    pub(in crate::backend) fn of(rule: &Rule<'_>) -> ChainHash {
        ChainHash { hash: rule.hash(), rules: 1 }
    }

    pub(in crate::backend) fn push(&mut self, rule: &Rule<'_>) {
        self.append(ChainHash::of(rule));
    }

    /// The hash of the rule, if there is only one.
    pub(in crate::backend) fn only_rule(self) -> Option<u64> {
        (self.rules == 1).then_some(self.hash)
    }

    /// Of this piece and the next one.
    pub(in crate::backend) fn append(&mut self, next: ChainHash) {
        self.hash = self.hash.wrapping_mul(WEIGHT.wrapping_pow(next.rules)).wrapping_add(next.hash);
        self.rules = self.rules.saturating_add(next.rules);
    }

    pub(in crate::backend) fn rules(self) -> u32 {
        self.rules
    }

    pub(in crate::backend) fn is_empty(self) -> bool {
        self.rules == 0
    }

    /// The same in fewer bytes, without the number of rules.
    pub(in crate::backend) const fn short(self) -> [u8; 8] {
        self.hash.to_ne_bytes()
    }
}

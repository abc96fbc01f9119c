//! The iptables tools, in either flavour.
//!
//! `Xtables` is what a backend needs of them for one IP family; `Tools` does it with the real
//! programs, `kernel::fake` in memory.

mod find;
mod lock;
mod saved;
mod tools;
mod trial;

pub use find::{Version, find, find_to_inspect};
pub use lock::LockHeld;
pub use tools::Tools;
pub(super) use trial::inputs as trial_inputs;
pub use trial::{Need, RuleKind, TRIAL, Trial, refused};

use super::nft::{Concerns, Heard, Part};
use super::xtables_info::TableSize;
use std::fmt;
use std::time::Duration;

/// Which kernel tables the tools write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// nf_tables, through `iptables-nft`.
    Nft,
    /// The x_tables of old, through `iptables-legacy`.
    Legacy,
}

impl Flavor {
    /// `nft` or `legacy`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Flavor::Nft => "nft",
            Flavor::Legacy => "legacy",
        }
    }

    /// How many chains one input should name. The nft-backed tool searches its chains one by one, so large inputs take it
    /// minutes; the legacy tool rewrites the whole table at each call, so there everything goes into one.
    #[must_use]
    pub fn most_chains(self) -> usize {
        match self {
            Flavor::Nft => 500,
            Flavor::Legacy => usize::MAX,
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that differs whenever the tables differ, and costs next to nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// The nf_tables generation: counts every change by any program.
    Generation(u32),
    /// The sizes of the legacy mangle, nat and filter tables: a rule more or less shows.
    Sizes([Option<TableSize>; 3]),
}

/// A rule's place: table and chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The table.
    pub table: &'a str,
    /// The chain.
    pub chain: &'a str,
}

/// A rule, as far as it matters for what it has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedRule<'a> {
    /// The chain it stands in.
    pub chain: &'a str,
    /// The chain that it jumps or goes to.
    pub jumps_to: Option<&'a str>,
    /// Packets that it has counted since it was written.
    pub packets: u64,
}

/// Why iptables-restore did not take an input.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The input was read and refused; nothing of the table was changed.
    #[error("{tool} refused the input{}: {message}", line.map_or(String::new(), |line| format!(" at line {line}")))]
    Refused {
        /// The program.
        tool: &'static str,
        /// The input line at fault, from 1, where the tool tells.
        line: Option<usize>,
        /// The tool's words.
        message: String,
    },
    /// The tool was stopped because it was not done in time: nothing of the input took effect.
    #[error("{tool} was stopped after {}s: the input is too much for it", after.as_secs())]
    TimedOut {
        /// The program.
        tool: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// The tool could not do its work: not there, no permission, lock not had.
    #[error("cannot run {tool}: {message}")]
    Unable {
        /// The program.
        tool: &'static str,
        /// What went wrong.
        message: String,
    },
}

/// What a backend asks of the iptables tools, for one IP family.
#[expect(async_fn_in_trait, reason = "used by generic code on one thread only")]
pub trait Xtables {
    /// Which tables are written.
    fn flavor(&self) -> Flavor;

    /// The version of the tools.
    fn version(&self) -> Version;

    /// Whether the family's nat table can be used at all.
    ///
    /// # Errors
    /// The tool's words: no permission, no kernel support.
    async fn check_nat_table(&self) -> anyhow::Result<()>;

    /// The tables' stamp.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn stamp(&mut self) -> anyhow::Result<Stamp>;

    /// Whether there is a packet counter that rules can name (nfacct).
    fn has_counter(&mut self, name: &str) -> bool;

    /// Makes a packet counter that rules can name (nfacct) unless it is there; whether it is.
    fn ensure_counter(&mut self, name: &str) -> bool;

    /// Visits the name of every chain of a table that is not built in. A missing table has no chains.
    /// `Part::Start` comes first, and again whenever what came before is to be forgotten.
    ///
    /// # Errors
    /// When the table cannot be read.
    async fn chains(&mut self, table: &str, visit: &mut dyn FnMut(Part<&str>)) -> anyhow::Result<()>;

    /// Visits what the rules of a table, or of one of its chains, have counted, in order; those of one chain come
    /// one after the other. What is missing has none. `Part::Start` as for `chains`. `false` if nothing was visited
    /// because it would cost too much: a large legacy table comes only as a whole.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn counted_rules(
        &mut self,
        table: &str,
        chain: Option<&str>,
        visit: &mut dyn FnMut(Part<CountedRule<'_>>),
    ) -> anyhow::Result<bool>;

    /// Visits the lines that a tool prints of a table, declarations and rules, however large it is; or the rules of one of
    /// its chains. Those of one chain come one after the other. What is not there has none.
    ///
    /// # Errors
    /// When it cannot be read; what was visited is not all then.
    async fn list(
        &mut self,
        table: &str,
        chain: Option<&str>,
        visit: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()>;

    /// Follows what other processes write to such chains of the family; what they wrote before does not count. `false`
    /// if these tables tell nothing.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn listen(&mut self, concerns: Concerns) -> anyhow::Result<bool>;

    /// What other processes have written since the last call.
    fn hear(&mut self) -> Heard;

    /// Feeds an input to iptables-restore, which leaves alone what the input does not name.
    ///
    /// # Errors
    /// When the input did not take effect as a whole.
    async fn restore(&mut self, pieces: &mut dyn Iterator<Item = String>) -> Result<(), RestoreError>;

    /// Tries kinds of rules in a chain that nothing leads to. Nothing of it is left.
    ///
    /// # Errors
    /// When they are not all taken.
    async fn try_rules(&mut self, kinds: &[RuleKind], trial: Trial) -> Result<(), RestoreError>;

    /// Makes a chain unless it is there.
    ///
    /// # Errors
    /// The tool's words.
    async fn ensure_chain(&mut self, place: Place<'_>) -> anyhow::Result<()>;

    /// Inserts rules at the top of their chains, one after the other: all of a table, or none.
    ///
    /// # Errors
    /// The tool's words.
    async fn insert_rules(&mut self, rules: &[(Place<'_>, &str)]) -> anyhow::Result<()>;

    /// Deletes a rule; says whether it was there. A jump to a chain that does not exist is not.
    ///
    /// # Errors
    /// The tool's words.
    async fn delete_rule(&mut self, place: Place<'_>, arguments: &str) -> anyhow::Result<bool>;

    /// Deletes a rule as often as it is there: tables that were restored from a file may have it twice.
    ///
    /// # Errors
    /// The tool's words.
    async fn delete_rule_throughout(&mut self, place: Place<'_>, arguments: &str) -> anyhow::Result<()> {
        while self.delete_rule(place, arguments).await? {}
        Ok(())
    }
}

/// Reads what a tool says, whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_tool_output(text: &str) {
    let _ = Version::parse(text);
    saved::read_anything(text);
    tools::read_anything(text);
}

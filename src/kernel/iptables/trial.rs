//! Trying kinds of rules, in a chain that nothing leads to.
//!
//! A tool that only reads an input (`--test`) does not ask the kernel for each rule, so rules are written and taken
//! away again.

use super::{RestoreError, Xtables};
use crate::kernel::ipset::{Ipsets as _, KernelIpsets, SetSpec};
use crate::kernel::nfacct::Nfacct;
use crate::model::{IpFamily, SetType};
use anyhow::Result;
use std::collections::BTreeSet;

/// The chain in which rules are tried, and the counter and the set that they name there. A process that ends in
/// between leaves them behind; they change no packet's way.
pub const TRIAL: &str = "KUBE-PROXY-TRIAL";

/// Rules that need the same of tools and kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleKind {
    /// The match, target or option that they need.
    pub name: &'static str,
    /// The table in which they stand.
    pub table: &'static str,
    /// Some of them, without `-A CHAIN`. The counter or set that they name is [`TRIAL`].
    pub rules: &'static [&'static str],
    /// What is lost without them.
    pub need: Need,
}

/// What is lost where a kind of rule is refused, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No packet goes another way: rules are written without it.
    Option(&'static str),
    /// Services of a kind that a cluster may not have.
    Some(&'static str),
    /// All Services, or such as every cluster has.
    Vital(&'static str),
}

impl Need {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Need::Option(words) | Need::Some(words) | Need::Vital(words) => words,
        }
    }
}

/// How rules are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The tool reads them; nothing is changed, and what only the kernel refuses is not seen.
    Read,
    /// They are written into a chain of their own, and deleted.
    Write,
}

/// Those of some kinds of rules that tools or kernel refuse, with their words.
///
/// # Errors
/// When the tool cannot do its work.
pub async fn refused(
    tools: &mut impl Xtables,
    kinds: &[RuleKind],
    trial: Trial,
) -> Result<Vec<(RuleKind, String)>, RestoreError> {
    let mut refused = Vec::new();
    if kinds.is_empty() {
        return Ok(refused);
    }
    // As a rule all are taken, which one call shows.
    match tools.try_rules(kinds, trial).await {
        Ok(()) => return Ok(refused),
        Err(error @ (RestoreError::Unable { .. } | RestoreError::TimedOut { .. })) => return Err(error),
        Err(RestoreError::Refused { .. }) => {}
    }
    for kind in kinds {
        match tools.try_rules(&[*kind], trial).await {
            Ok(()) => {}
            Err(error @ (RestoreError::Unable { .. } | RestoreError::TimedOut { .. })) => return Err(error),
            Err(error @ RestoreError::Refused { .. }) => refused.push((*kind, error.to_string())),
        }
    }
    Ok(refused)
}

/// The counter and the set that rules name while they are tried.
pub(super) struct Named {
    counter: Option<Nfacct>,
    set: Option<KernelIpsets>,
}

impl Named {
    /// Makes what these rules name.
    ///
    /// # Errors
    /// When the kernel has nothing of the kind.
    pub(super) fn by(kinds: &[RuleKind], family: IpFamily) -> Result<Named> {
        let names = |option| kinds.iter().flat_map(|kind| kind.rules).any(|rule| rule.contains(option));
        let mut named = Named { counter: None, set: None };
        if names("--nfacct-name") {
            named.counter.insert(Nfacct::probe()?).ensure(TRIAL)?;
        }
        if names("--match-set") {
            let spec = SetSpec { name: TRIAL, kind: SetType::Ip, family };
            named.set.insert(KernelIpsets::open()?).ensure(spec)?;
        }
        Ok(named)
    }
}

impl Drop for Named {
    /// What another process tries at the same time may stay in use; it takes it away.
    fn drop(&mut self) {
        if let Some(counter) = &mut self.counter {
            let _ = counter.remove(TRIAL);
        }
        if let Some(set) = &mut self.set {
            let _ = set.destroy(TRIAL);
        }
    }
}

/// The inputs that write rules into the trial chains of their tables, and delete these.
pub(in crate::kernel) fn inputs(kinds: &[RuleKind]) -> [String; 2] {
    let tables: BTreeSet<&str> = kinds.iter().map(|kind| kind.table).collect();
    let (mut write, mut delete) = (String::new(), String::new());
    for table in tables {
        let head = format!("*{table}\n:{TRIAL} - [0:0]\n");
        let rules = kinds.iter().filter(|kind| kind.table == table).flat_map(|kind| kind.rules);
        let lines: String = rules.map(|rule| format!("-A {TRIAL} {rule}\n")).collect();
        write.push_str(&format!("{head}{lines}COMMIT\n"));
        delete.push_str(&format!("{head}-X {TRIAL}\nCOMMIT\n"));
    }
    [write, delete]
}

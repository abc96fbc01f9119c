//! Dataplanes behind one seam.
//!
//! A backend translates a `Plan` into kernel objects and keeps one family of this node equal to
//! it. It decides nothing about traffic (that is `plan`) and nothing about when to act (`sync`).

mod drift;
pub mod iptables;
pub mod ipvs;
mod jumps;
mod kinds;
mod lines;
mod listing;
mod masquerade;
mod options;
mod rule;
mod tally;
mod walk;

pub use drift::DriftDetection;
pub use tally::{Detail, Measured, Measuring, Series, Told};
pub use walk::{Outcome, Packet, SERVER_RULE, Verdict};

use crate::kernel::iptables::RestoreError;
use crate::model::ServiceName;
use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One family's dataplane: what `sync` drives, the same for every mode.
///
/// `render` and `diff` are pure; `probe` and `observe` and `verify` read the kernel; `apply` writes
/// it. There is one diff: a partial sync is a diff against the baseline of the
/// last pass, a full sync one against what `observe` found.
#[expect(async_fn_in_trait, reason = "used by generic code on one thread only")]
pub trait Backend {
    /// The kernel objects wanted, as keys and fingerprints; their text is written when it is sent.
    type Desired<'a>;
    /// What we believe is in the kernel.
    type Baseline;
    /// What has to be done, in an order that is safe at every step.
    type Changes;

    /// Whether this node's kernel has what the backend needs. That its tools work has been seen
    /// before, when it was settled which families the node can run.
    ///
    /// # Errors
    /// Says what is missing and what to do about it.
    async fn probe(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What of ours is in the kernel now. May know less than there is: that costs work, never
    /// correctness.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    async fn observe(&mut self) -> anyhow::Result<Self::Baseline>;

    /// Whether Services were found in the kernel.
    fn holds_services(&self, found: &Self::Baseline) -> bool;

    /// Everything in the plan's scope, and whatever else of the baseline is damaged, as kernel objects.
    fn render<'a>(&self, plan: &Plan<'a>, baseline: &Self::Baseline) -> Self::Desired<'a>;

    /// What separates the two; empty when nothing does.
    fn diff(&self, baseline: &Self::Baseline, desired: &Self::Desired<'_>) -> Self::Changes;

    /// Learns of the node what `wanted` depends on, without changing anything.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    async fn learn(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What a plan of few Services needs of the kernel, spelled out for people.
    fn wanted(&self, plan: &Plan<'_>) -> Vec<KernelObject>;

    /// Carries the changes out and notes them in the baseline. A Service that the kernel refuses
    /// is left out and named; all others are programmed.
    ///
    /// # Errors
    /// When the kernel is not known to be as wanted: the caller forgets the baseline.
    async fn apply(
        &mut self,
        desired: &Self::Desired<'_>,
        changes: Self::Changes,
        baseline: &mut Self::Baseline,
    ) -> anyhow::Result<Applied>;

    /// Whether the kernel still has what the baseline says. What drifted is not known to the baseline any more, so that
    /// the next pass, whatever its scope, writes it again. If the baseline is outdated as a whole, the caller forgets it.
    ///
    /// # Errors
    /// When the kernel cannot be read, which says nothing about its state.
    async fn verify(&mut self, baseline: &mut Self::Baseline, look: Look) -> anyhow::Result<Vec<Finding>>;

    /// Does what `apply` had to leave for later, if its time has come; called every few seconds.
    ///
    /// # Errors
    /// When it could not be done now; it is tried again.
    async fn tend(&mut self, _baseline: &mut Self::Baseline) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Rules that a mode has put in force under names that another mode uses, too. They stay when what
/// the other mode left is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Tables and chains.
    pub chains: Vec<(&'static str, &'static str)>,
    /// Tables, built-in chains and the arguments of jumps from them.
    pub jumps: Vec<(&'static str, &'static str, String)>,
}

impl Standing {
    /// Whether a chain has to stay.
    #[must_use]
    pub fn has_chain(&self, table: &str, chain: &str) -> bool {
        self.chains.contains(&(table, chain))
    }

    /// Whether a jump has to stay.
    #[must_use]
    pub fn has_jump(&self, table: &str, from: &str, arguments: &str) -> bool {
        self.jumps.iter().any(|(in_table, in_chain, with)| {
            (*in_table, *in_chain, with.as_str()) == (table, from, arguments)
        })
    }
}

/// A kernel object, spelled out: a chain with its rules, a virtual server with its real servers, a set
/// with its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelObject {
    /// `nat KUBE-SERVICES`, `virtual server 10.96.0.1:80/tcp`, `set KUBE-CLUSTER-IP`.
    pub name: String,
    /// Its rules, real servers or entries.
    pub lines: Vec<String>,
    /// Others may have something in it, too.
    pub is_shared: bool,
}

/// How closely `verify` looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Counts and stamps: so cheap that it can be done every few seconds.
    Quick,
    /// Every object is compared, unless it is known what others changed.
    Thorough,
}

/// What `verify` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Somebody else changed what we programmed.
    Drift(Drift),
    /// What we programmed was made of facts that have changed, or may have been changed unseen.
    Outdated(&'static str),
}

/// A kernel object of ours that somebody else removed or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// What it is.
    pub kind: DriftKind,
    /// Which one, with its place.
    pub name: String,
    /// What is wrong with it.
    pub what: String,
    /// The program that did it, where the kernel tells.
    pub by: Option<String>,
}

impl Drift {
    fn new(kind: DriftKind, name: impl Into<String>, what: impl Into<String>) -> Self {
        Drift { kind, name: name.into(), what: what.into(), by: None }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str().replace('_', " ");
        write!(f, "{kind} {} {}", self.name, self.what)?;
        self.by.as_ref().map_or(Ok(()), |by| write!(f, " by {by}"))
    }
}

/// The kinds of kernel objects that can drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriftKind {
    /// A chain of ours.
    Chain,
    /// A jump from a built-in chain to one of ours.
    Jump,
    /// A table as a whole, when no chain can be named.
    Table,
    /// An ipset.
    Ipset,
    /// An IPVS virtual server.
    VirtualServer,
    /// The real servers of a virtual server.
    RealServers,
    /// The interface with the Services' addresses.
    Interface,
}

impl DriftKind {
    /// As the metric's label has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DriftKind::Chain => "chain",
            DriftKind::Jump => "jump",
            DriftKind::Table => "table",
            DriftKind::Ipset => "ipset",
            DriftKind::VirtualServer => "virtual_server",
            DriftKind::RealServers => "real_servers",
            DriftKind::Interface => "interface",
        }
    }
}

/// What `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Kernel objects of ours.
    pub objects: Vec<ObjectCount>,
    /// Requests to the kernel or calls of a tool.
    pub calls: usize,
    /// Services that are left out now because the kernel refuses them.
    pub refused: Vec<Refusal>,
}

impl Applied {
    /// Services that this pass tried and the kernel refused.
    pub fn newly_refused(&self) -> impl Iterator<Item = &Refusal> {
        self.refused.iter().filter(|refusal| refusal.is_new)
    }
}

/// What kernel objects are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// iptables rules in the nat table.
    NatRules,
    /// iptables rules in the filter table.
    FilterRules,
    /// IPVS virtual servers.
    VirtualServers,
    /// IPVS real servers.
    RealServers,
}

/// How many kernel objects of a kind there are, and how many of them were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectCount {
    /// Their kind.
    pub kind: ObjectKind,
    /// Objects of ours.
    pub total: usize,
    /// Objects written by this pass.
    pub written: usize,
}

/// A Service that could not be programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The Service.
    pub service: ServiceName,
    /// The kernel's or the tool's words.
    pub reason: String,
    /// Found by this pass; others were refused before and have not been tried again.
    pub is_new: bool,
}

impl Refusal {
    /// What stands after a pass that found some of them.
    fn standing(all: &BTreeMap<ServiceName, String>, found: &[Refusal]) -> Vec<Refusal> {
        let found: BTreeSet<&ServiceName> = found.iter().map(|refusal| &refusal.service).collect();
        let refusal = |(service, reason): (&ServiceName, &String)| Refusal {
            service: service.clone(),
            reason: reason.clone(),
            is_new: found.contains(service),
        };
        all.iter().map(refusal).collect()
    }
}

/// Whether a pass failed because a tool did, rather than the kernel's own interfaces.
#[must_use]
pub fn is_tool_failure(error: &anyhow::Error) -> bool {
    error.downcast_ref::<RestoreError>().is_some()
}

#[cfg(test)]
mod packet_tests;

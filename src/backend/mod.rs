//! Dataplanes behind one seam.
//!
//! A backend translates a `Plan` into kernel objects and keeps one family of this node equal to
//! it. It decides nothing about traffic (that is `plan`) and nothing about when to act (`sync`).

pub mod cleanup;
mod counters;
mod drift;
mod foreign;
pub mod iptables;
pub mod ipvs;
mod jumps;
mod kinds;
mod lines;
mod listing;
mod masquerade;
mod mode;
pub mod nftables;
mod options;
mod own_rules;
mod packet_trace;
mod quarantine;
mod restore;
mod rule;
mod rule_differences;
mod service_metrics;
mod slow;
mod usable;

pub use counters::{Detail, Measured, Measurement, Measuring, Series};
pub use foreign::{
    ChainRules, ForeignEffect, ForeignRule, ForeignSurroundings, ForeignTable, KnownPart, OurRules,
    PacketHook, Stage, TracedPast, foreign_rules, past_foreign_rules, unfollowed_hooks,
};
pub use mode::{
    InspectedNode, Inspection, ModeFacts, Opening, ProxyMode, Requirement, StandingObjects, choose, open,
};
pub use packet_trace::{Packet, SERVER_RULE, TraceOutcome, TracedEndpoint};
pub use usable::{flavor, usable_tools};

use crate::kernel::iptables::{Flavor, RestoreError};
use crate::model::ServiceName;
use crate::plan::Plan;
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;

/// One family's dataplane: what `sync` drives, the same for every mode.
///
/// It keeps what it believes to be in the kernel to itself. A sync reads the kernel if nothing is known of it, renders
/// the plan, compares, and writes what differs; these are functions of their own in each mode.
pub trait Dataplane: Any {
    /// Whether the next sync needs a plan of all Services: what is in the kernel is not known.
    fn needs_all(&self) -> bool;

    /// Brings the kernel in line with a plan, within its scope, and writes again whatever drifted. A Service that the kernel
    /// refuses is left out and named; all others are programmed.
    ///
    /// # Errors
    /// When the kernel is not known to be as wanted. Everything is forgotten then.
    fn sync<'a>(&'a mut self, plan: &'a Plan<'a>) -> LocalBoxFuture<'a, anyhow::Result<Applied>>;

    /// Whether the kernel still has what was written, and whatever else has to be done every few seconds. What drifted
    /// is written again by the next sync, whatever its scope.
    ///
    /// # Errors
    /// When the kernel cannot be read, which says nothing about its state.
    fn verify(&mut self, depth: VerifyDepth) -> LocalBoxFuture<'_, anyhow::Result<Vec<Deviation>>>;

    /// The flavour of the iptables tools that it writes with; `None` if it needs none.
    fn flavor(&self) -> Option<Flavor>;

    /// Makes the next sync look at the whole kernel.
    fn forget(&mut self);

    /// Whether Services, of this process or an earlier one, are in the kernel.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn holds_services(&mut self) -> LocalBoxFuture<'_, anyhow::Result<bool>>;

    /// Learns of the node what `wanted` depends on, without changing anything.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn learn(&mut self) -> LocalBoxFuture<'_, anyhow::Result<()>>;

    /// What a plan of few Services needs of the kernel, spelled out for people.
    fn wanted(&self, plan: &Plan<'_>) -> Vec<KernelObject>;
}

/// A kernel object, spelled out: a chain with its rules, a virtual server with its real servers, a set
/// with its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelObject {
    /// `nat KUBE-SERVICES`, `virtual server 10.96.0.1:80/tcp`, `set KUBE-CLUSTER-IP`.
    pub name: String,
    /// Its rules, real servers or entries.
    pub lines: Vec<String>,
    /// Other programs, or other Services, may have something in it, too.
    pub is_shared: bool,
}

/// How one kernel object differs from what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The object.
    pub object: String,
    /// It is not there at all.
    pub is_gone: bool,
    /// Lines that should be there.
    pub missing: Vec<String>,
    /// Lines that should not.
    pub surplus: Vec<String>,
}

impl Difference {
    fn gone(object: &KernelObject) -> Self {
        Difference {
            object: object.name.clone(),
            is_gone: true,
            missing: object.lines.clone(),
            surplus: Vec::new(),
        }
    }

    fn of(object: &KernelObject, missing: Vec<String>, surplus: Vec<String>) -> Option<Self> {
        let differs = !(missing.is_empty() && surplus.is_empty());
        differs.then(|| Difference { object: object.name.clone(), is_gone: false, missing, surplus })
    }
}

/// How closely `verify` looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyDepth {
    /// Counts, stamps and what the kernel told: so cheap that it can be done every few seconds.
    Quick,
    /// Every object is compared, but for tables of which the kernel tells each change.
    Thorough,
}

/// What `verify` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// Another program changed what we programmed; the next sync writes that again, and nothing else.
    Drift(Drift),
    /// What we programmed depends on facts that have changed, or may have been changed unseen; the next sync writes
    /// everything again.
    Outdated(&'static str),
}

/// A kernel object of ours that another program removed or changed.
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
    /// A set or map of nf_tables.
    Set,
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
            DriftKind::Set => "set",
            DriftKind::VirtualServer => "virtual_server",
            DriftKind::RealServers => "real_servers",
            DriftKind::Interface => "interface",
        }
    }
}

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Kernel objects of ours.
    pub objects: Vec<ObjectCount>,
    /// Requests to the kernel or calls of a tool.
    pub calls: usize,
    /// Services that are left out now because the kernel refuses them.
    pub refused: Vec<Refusal>,
    /// Services so large that they take several passes; the next, with them in its scope, should come at once.
    pub unfinished: BTreeSet<ServiceName>,
}

impl Applied {
    /// Services that this pass tried and the kernel refused.
    pub fn newly_refused(&self) -> impl Iterator<Item = &Refusal> {
        self.refused.iter().filter(|refusal| refusal.is_new)
    }
}

/// What kernel objects are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelObjectKind {
    /// iptables rules in the nat table.
    NatRules,
    /// iptables rules in the filter table.
    FilterRules,
    /// IPVS virtual servers.
    VirtualServers,
    /// IPVS real servers.
    RealServers,
    /// Elements of nf_tables' sets and maps.
    Elements,
}

/// How many kernel objects of a kind there are, and how many of them were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectCount {
    /// Their kind.
    pub kind: KernelObjectKind,
    /// Objects of ours.
    pub total: usize,
    /// Objects written by this pass.
    pub written: usize,
}

/// A Service that the kernel refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The Service.
    pub service: ServiceName,
    /// The kernel's or the tool's words.
    pub reason: String,
    /// This pass tried it; one that is not new was refused earlier and has not been tried since.
    pub is_new: bool,
}

/// Whether a pass failed because a tool did, rather than the kernel's own interfaces.
#[must_use]
pub fn is_tool_failure(error: &anyhow::Error) -> bool {
    error.downcast_ref::<RestoreError>().is_some()
}

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod packet_tests;

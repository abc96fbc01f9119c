//! What a pass did, and its recorder.

use super::post_sync::PostSyncResult;
use crate::backend::{Applied, Deviation};
use crate::health::PortTaken;
use crate::model::{IpFamily, NodeFacts, ServiceName, SourceProblem};
use crate::state::{FrontendConflict, OverBound, ReservedClaim, Tracker};
use std::time::Duration;

/// How much a pass looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassKind {
    /// Every Service, against what was found in the kernel.
    Full,
    /// The Services that changed, against the last pass.
    Partial,
}

/// How a pass ended.
#[derive(Debug)]
pub enum PassOutcome {
    /// The kernel is as wanted, but for the Services it refuses.
    Done(Applied),
    /// The kernel is not known to be as wanted; there will be another pass.
    Failed(anyhow::Error),
}

/// One pass over one family.
#[derive(Debug)]
pub struct SyncReport {
    /// The family.
    pub family: IpFamily,
    /// How much it looked at.
    pub kind: PassKind,
    /// How it ended.
    pub outcome: PassOutcome,
    /// How long it took.
    pub elapsed: Duration,
    /// How many Services had changed.
    pub services: usize,
    /// Trigger times (milliseconds since 1970) of the endpoint changes that are now in force.
    pub triggered: Vec<i64>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeSeverity {
    /// Part of the life cycle.
    Normal,
    /// A person should look.
    Warning,
}

/// A report to the owner of a Service or of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The Service it is about; without one it is about our Node.
    pub service: Option<ServiceName>,
    /// How bad it is.
    pub severity: NoticeSeverity,
    /// Why, in one word.
    pub reason: &'static str,
    /// During what, in one word.
    pub action: &'static str,
    /// In a sentence.
    pub note: String,
}

/// Who is told what the loop does: metrics, health, the log and Events.
pub trait Recorder {
    /// A pass over a family was asked for.
    fn queued(&mut self, family: IpFamily);

    /// A pass ended.
    fn passed(&mut self, report: &SyncReport);

    /// What followed from a pass that succeeded.
    fn post_synced(&mut self, family: IpFamily, result: &PostSyncResult);

    /// Health-check node ports could not be opened: another program has them.
    fn taken(&mut self, taken: &[PortTaken]);

    /// The kernel was compared with what was programmed. What drifted is written again by the next pass.
    fn verified(&mut self, family: IpFamily, found: &[Deviation]);

    /// The kernel could not be compared with what was programmed.
    fn unverified(&mut self, family: IpFamily, error: &anyhow::Error);

    /// Services go without a port of the node that another Service has.
    fn conflicts(&mut self, conflicts: &[FrontendConflict]);

    /// Services ask for traffic to addresses that are not for Services.
    fn claims(&mut self, claims: &[ReservedClaim]);

    /// Services ask for more than is programmed of one.
    fn over_bounds(&mut self, over: &[OverBound]);

    /// What of the snapshot is left out or doubtful now.
    fn doubted(&mut self, tracker: &Tracker);

    /// What the source cannot tell now.
    fn problems(&mut self, problems: &[SourceProblem]);

    /// What is known of our node.
    fn node(&mut self, node: &NodeFacts);

    /// Totals of events and what waits: Service events, slice events, Services pending.
    fn seen(&mut self, services: u64, slices: u64, pending: usize);
}

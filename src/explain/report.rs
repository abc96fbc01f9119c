//! All that is known of one Service, put together.

use super::facts::{Decision, Flows, NodeState};
use super::findings::{self, Finding, Severity};
use super::view::ServiceView;
use crate::backend::Difference;
use serde::Serialize;

/// What `explain` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `namespace/name`.
    pub service: String,
    /// What the plan makes of it; `None` when the proxy does not serve it.
    pub plan: Option<ServiceView>,
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// Where the kernel differs from the plan.
    pub differences: Vec<Difference>,
    /// Open flows.
    pub flows: Option<Flows>,
    /// The traced packet.
    pub trace: Vec<Decision>,
    /// The kernel is as it should be.
    pub kernel_is_right: bool,
}

impl Report {
    /// Puts together what the plan and the node say.
    #[must_use]
    pub fn new(service: String, plan: Option<ServiceView>, node: NodeState) -> Report {
        let findings = findings::all(plan.as_ref(), &node);
        let differences = node.families.into_iter().flat_map(|facts| facts.differences).collect();
        Report {
            service,
            kernel_is_right: findings.iter().all(|finding| finding.severity != Severity::Broken),
            plan,
            findings,
            differences,
            flows: node.flows,
            trace: node.decisions,
        }
    }

    /// The exit status: 0 when the kernel is as it should be, 1 when not, 2 for an unknown Service.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        let unknown = |finding: &Finding| finding.code == super::Code::UnknownService;
        match self.findings.iter().any(unknown) {
            true => 2,
            false => u8::from(!self.kernel_is_right),
        }
    }
}

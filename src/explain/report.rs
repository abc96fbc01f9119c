//! All that is known of one Service, put together.

use super::facts::{Decision, Flows, NodeState, ProxyState};
use super::findings::{self, Finding, Severity};
use super::view::ServiceView;
use crate::backend::Difference;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What `explain` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `namespace/name`.
    pub service: String,
    /// How the proxy that was asked is doing; absent where none was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyState>,
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
    /// The kernel is as it should be; `null` when that cannot be found out.
    pub kernel_is_right: Option<bool>,
    /// The weights of endpoints, where the kernel has such.
    #[serde(skip)]
    pub(super) weights: BTreeMap<SocketAddr, u32>,
    /// The kernel was looked at.
    #[serde(skip)]
    pub(super) is_looked_at: bool,
}

pub(super) fn kernel_is_right<'f>(findings: impl IntoIterator<Item = &'f Finding> + Clone) -> Option<bool> {
    let has = |severity| findings.clone().into_iter().any(|finding| finding.severity == severity);
    match (has(Severity::Broken), has(Severity::Unknown)) {
        (true, _) => Some(false),
        (false, true) => None,
        (false, false) => Some(true),
    }
}

impl Report {
    /// Puts together what the plan and the node say.
    #[must_use]
    pub fn new(service: String, plan: Option<ServiceView>, node: NodeState) -> Report {
        let findings = findings::all(plan.as_ref(), &node);
        let differences = node.families.into_iter().flat_map(|facts| facts.differences).collect();
        Report {
            service,
            kernel_is_right: kernel_is_right(&findings),
            is_looked_at: true,
            plan,
            findings,
            differences,
            flows: node.flows,
            proxy: node.proxy,
            trace: node.decisions,
            weights: node.weights,
        }
    }

    /// What the plan alone says.
    #[must_use]
    pub fn of_plan(plan: ServiceView) -> Report {
        let report = Report::new(plan.service.clone(), Some(plan), NodeState::default());
        Report { kernel_is_right: None, is_looked_at: false, ..report }
    }

    /// The exit status: 0 when the kernel is as it should be, 1 when not, 2 for an unknown Service, 3 when that
    /// cannot be found out.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        let has = |severity| self.findings.iter().any(|finding| finding.severity == severity);
        if self.findings.iter().any(|finding| finding.code == super::Code::UnknownService) {
            2
        } else if has(Severity::Broken) {
            1
        } else if has(Severity::Unknown) {
            3
        } else {
            0
        }
    }
}

//! What is wrong with the packet that was asked for: where it ends, and whom it comes from.

use super::facts::NodeState;
use super::findings::{Code, Finding, Severity, finding};
use super::view::ServiceView;
use crate::model::Verdict;

/// What the traced packet shows and nothing else has named: a trace and "nothing is wrong" do not contradict each other.
pub(super) fn trace(view: Option<&ServiceView>, node: &NodeState) -> Vec<Finding> {
    let mut found = Vec::new();
    let differs = node.families.iter().any(|family| !family.differences.is_empty());
    for decision in &node.decisions {
        let at = format!("{}/{}", decision.to, decision.protocol);
        let port = view.and_then(|view| view.port_at(decision.to, &decision.protocol));
        let by = decision.decided_by.as_deref().unwrap_or("a rule");
        found.extend(match (decision.verdict, port) {
            (Verdict::Untouched, Some(_)) if decision.to.ip().is_loopback() => Some(finding(
                (Code::NoFrontend, Severity::Note),
                format!("node ports do not answer on the loopback address of {at}"),
                "Only mode iptables answers there, for IPv4, unless --iptables-localhost-nodeports is off; use an address of \
                 the node.",
            )),
            // What is missing in the kernel is named already.
            (_, Some(_)) if differs => None,
            (Verdict::Untouched, Some(_)) if decision.decided_by.is_some() => Some(finding(
                (Code::TraceStopped, Severity::Problem),
                format!("the traced packet to {at} does not get to the Service's rules: {by}"),
                "Remove the rule of the other program, or have it leave out the Service's addresses.",
            )),
            (Verdict::Untouched, Some(_)) => Some(finding(
                (Code::TraceUntaken, Severity::Broken),
                format!("no rule takes the traced packet to {at}, which the Service should answer at"),
                "See the trace: a rule before the Service's decides, or the Service's rule is missing.",
            )),
            (Verdict::Untouched, None) => Some(finding(
                (Code::NoFrontend, Severity::Problem),
                format!("{at} is no frontend of this Service"),
                "Compare the destination with the frontends above; services lists those of all Services.",
            )),
            (Verdict::Dropped | Verdict::Refused, Some(port)) if port.answers_everywhere() => Some(finding(
                (Code::TraceStopped, Severity::Problem),
                format!("the traced packet to {at} is stopped by {by}"),
                "The Service has endpoints; the rule that the trace marks depends on the client.",
            )),
            _ => None,
        });
    }
    found
}

pub(super) fn other_family(node: &NodeState) -> Option<Finding> {
    let family = node.other_family.as_ref()?;
    Some(finding(
        (Code::ClientOfOtherFamily, Severity::Problem),
        format!("the packet is an {family} one, and the Service has no {family} address"),
        "Give the Service the family (spec.ipFamilies, spec.ipFamilyPolicy), or use an address of a family that it has.",
    ))
}

pub(super) fn client(node: &NodeState) -> Option<Finding> {
    let (client, ranges) = node.excluded_client.as_ref()?;
    Some(finding(
        (Code::ClientOutsideSourceRanges, Severity::Problem),
        format!("client {client} is outside loadBalancerSourceRanges ({})", ranges.join(", ")),
        "Add the client's network to spec.loadBalancerSourceRanges. The address that counts is the one that \
         the node sees.",
    ))
}

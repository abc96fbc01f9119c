//! Why a Service works or does not, in words for the people who ask.
//!
//! Pure: `view` says what the plan makes of a Service, the caller adds what it found on the node
//! (`facts`), `findings` says what is wrong and what to do about it, and `text` prints it. Nothing
//! here reads the kernel, and nothing decides about traffic.

mod answers;
mod facts;
mod findings;
mod kernel;
mod object;
mod packet;
mod report;
mod table;
mod text;
mod view;
mod whole;

pub use answers::{NodePage, Overview, node_page, overview, service, services};
pub use facts::{
    ApiFacts, BridgeFilter, Bridged, Decision, FamilyFacts, Flows, Kind, NodeState, Obstacle, PortFlows,
    ProxyFamily, ProxyState, Tracking, Unrouted,
};
pub use findings::{Code, Finding, Severity};
pub use report::Report;
pub use table::{Columns, Row, Services, problem_table, table};
pub use text::Wide;
pub use view::{
    Contest, ContestedIp, ContestedPort, EndpointView, FamilyView, FrontendView, PortView, ServiceView,
};
pub use whole::{Node, NodeFinding, NodeReport};

#[cfg(test)]
mod tests;

//! `kube-proxy-rs render`: what would be programmed for some manifests, without touching the kernel.

use super::dataplanes::{self, settings};
use super::output::{Answer, complain};
use super::source;
use crate::backend;
use crate::config::{Config, Render};
use crate::model::{IpFamily, NodeFacts};
use crate::plan::{NodePortAddresses, Plan, Scope};
use crate::state::Tracker;
use crate::watch::convert::IssueSeverity;
use crate::watch::manifests::{self, ManifestError};
use anyhow::Result;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// In mode iptables, what would be sent to iptables-restore on a node without rules; several inputs are
/// set apart by comment lines. In mode ipvs, the same and what `ipset`, `ipvsadm` and `ip` would take.
/// The packet counters of nfacct are taken to be missing: whether they are
/// there is the kernel's to say. Nothing depends on the machine where this runs.
pub(super) fn render(config: &Config, asked: &Render) -> Result<Answer> {
    let family = asked.family;
    let (events, problems) = manifests::load(&config.sources.manifests, &source::manifest_options(config))?;
    let is_error = |problem: &&ManifestError| problem.severity == IssueSeverity::Error;
    for problem in &problems {
        let word = if is_error(&problem) { "Error" } else { "Warning" };
        complain(format_args!("{word}: {problem}"));
    }
    let errors = problems.iter().filter(is_error).count();
    let node = NodeFacts { name: config.node_name.as_str().into(), ..NodeFacts::default() };
    let mut tracker = Tracker::new(node, i64::MAX)
        .reserving(dataplanes::reserved(config))
        .limiting(dataplanes::limits(config));
    events.into_iter().for_each(|event| tracker.fold(event));
    let disputes = tracker.take_disputes();
    for conflict in disputes.conflicts {
        complain(format_args!("Error: {conflict}"));
    }
    for over in disputes.over_bounds {
        complain(format_args!("Error: {over}"));
    }
    for claim in disputes.claims {
        complain(format_args!("Warning: {claim}"));
    }
    let node = tracker.snapshot().node.clone();
    let settings = settings(config, family, &node);
    let addresses = node_addresses(config, asked, &node);
    let mode = backend::open(config.mode);
    let is_limited = matches!(settings.node_port_addresses, NodePortAddresses::Within(_));
    if addresses.is_empty() && (is_limited || mode.facts().by_address) {
        complain(format_args!(
            "Warning: no {family} address of Node {} is known: node ports are left out; \
             its Node object or --node-addresses can say some",
            config.node_name
        ));
    }
    let plan =
        Plan::new(&settings, tracker.snapshot(), Scope::All).with_endpoint_count(tracker.endpoints(family));
    let text = mode.render(config, plan, &addresses)?;
    if errors > 0 {
        complain(format_args!("Error: {errors} errors in the manifests; the rules are those of the rest"));
    }
    Ok(Answer { text, status: u8::from(errors > 0) })
}

/// The node's own addresses, as far as they are known here.
fn node_addresses(config: &Config, asked: &Render, node: &NodeFacts) -> BTreeSet<IpAddr> {
    let known = if asked.node_addresses.is_empty() { &*node.addresses } else { &asked.node_addresses };
    let bound = Some(config.bind_address).filter(|address| !address.is_unspecified());
    let of_family = |address: &IpAddr| IpFamily::of(*address) == asked.family;
    known.iter().copied().chain(bound).filter(of_family).collect()
}

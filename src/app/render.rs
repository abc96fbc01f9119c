//! `kube-proxy-rs render`: what would be programmed for some manifests, without touching the kernel.

use super::families::{self, settings};
use super::output::{Answer, complain};
use super::source;
use crate::backend::iptables::{Features, render_inputs};
use crate::backend::ipvs::{INTERFACE, render_text};
use crate::config::{Config, Flavor, Mode};
use crate::kernel::addresses::{InterfaceAddress, interface_addresses, local_addresses};
use crate::kernel::iptables as tools;
use crate::model::{IpFamily, NodeFacts};
use crate::plan::{Plan, Scope};
use crate::state::Tracker;
use crate::watch::convert::Severity;
use crate::watch::manifests::{self, ManifestError};
use anyhow::Result;
use std::net::IpAddr;

/// In mode iptables, what would be sent to iptables-restore on a node without rules; several inputs are
/// set apart by comment lines. In mode ipvs, the same and what `ipset`, `ipvsadm` and `ip` would take.
/// The packet counters of nfacct are taken to be missing: whether they are
/// there is the kernel's to say.
pub(super) fn render(config: &Config, family: IpFamily) -> Result<Answer> {
    let (events, problems) = manifests::load(&config.sources.manifests, &source::manifest_options(config))?;
    let is_error = |problem: &&ManifestError| problem.severity == Severity::Error;
    for problem in &problems {
        let word = if is_error(&problem) { "Error" } else { "Warning" };
        complain(format_args!("{word}: {problem}"));
    }
    let errors = problems.iter().filter(is_error).count();
    let node = NodeFacts { name: config.node_name.as_str().into(), ..NodeFacts::default() };
    let mut tracker = Tracker::new(node, i64::MAX).reserving(families::reserved(config));
    events.into_iter().for_each(|event| tracker.fold(event));
    let disputes = tracker.take_disputes();
    for conflict in disputes.conflicts {
        complain(format_args!("Error: {conflict}"));
    }
    for claim in disputes.claims {
        complain(format_args!("Warning: {claim}"));
    }
    let settings = settings(config, family, &tracker.snapshot().node);
    let plan =
        Plan::new(&settings, tracker.snapshot(), Scope::All).with_endpoint_count(tracker.endpoints(family));
    let text = match config.mode {
        Mode::Iptables => iptables(config, plan)?,
        Mode::Ipvs => ipvs(config, &plan)?,
    };
    if errors > 0 {
        complain(format_args!("Error: {errors} errors in the manifests; the rules are those of the rest"));
    }
    Ok(Answer { text, status: u8::from(errors > 0) })
}

fn iptables(config: &Config, plan: Plan<'_>) -> Result<String> {
    let addresses = local_addresses(plan.settings.family)?;
    let features = Features {
        masquerade_mark: 1 << u32::from(config.iptables.masquerade_bit),
        tree_threshold: usize::try_from(config.iptables.dispatch_tree_threshold)?,
        ..Features::default()
    };
    let flavor = match config.iptables.flavor {
        Flavor::Legacy => tools::Flavor::Legacy,
        Flavor::Auto | Flavor::Nft => tools::Flavor::Nft,
    };
    Ok(join(&render_inputs(&plan.with_local_addresses(&addresses), &features, flavor)))
}

/// Node ports are those of the machine where this runs.
fn ipvs(config: &Config, plan: &Plan<'_>) -> Result<String> {
    let family = plan.settings.family;
    let is_node = |entry: &InterfaceAddress| {
        entry.interface != INTERFACE && !matches!(entry.address, IpAddr::V6(ip) if ip.is_unicast_link_local())
    };
    let addresses = interface_addresses(family)?.into_iter().filter(is_node).map(|entry| entry.address);
    let scheduler = families::scheduler(config)?;
    let features = families::ipvs_features(config, family, scheduler, tools::Version::RANDOM_FULLY);
    Ok(render_text(plan, &features, &addresses.collect()))
}

fn join(inputs: &[String]) -> String {
    match inputs {
        [one] => one.clone(),
        several => {
            let numbered = several.iter().enumerate();
            numbered
                .map(|(index, text)| format!("# input {} of {}\n{text}", index + 1, several.len()))
                .collect()
        }
    }
}

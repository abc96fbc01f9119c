//! `kube-proxy-rs render`: what would be programmed for some manifests, without touching the kernel.

use super::families::{self, settings};
use super::output::{Answer, complain};
use super::source;
use crate::backend::iptables::{Features, render_inputs};
use crate::backend::ipvs::render_text;
use crate::config::{Config, Flavor, Mode, Render};
use crate::kernel::iptables as tools;
use crate::model::{IpFamily, NodeFacts};
use crate::plan::{FamilySettings, NodePortAddresses, Plan, Scope};
use crate::state::Tracker;
use crate::watch::convert::Severity;
use crate::watch::manifests::{self, ManifestError};
use anyhow::Result;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// In mode iptables, what would be sent to iptables-restore on a node without rules; several inputs are
/// set apart by comment lines. In mode ipvs, the same and what `ipset`, `ipvsadm` and `ip` would take.
/// The packet counters of nfacct are taken to be missing: whether they are
/// there is the kernel's to say. Nothing depends on the machine where this runs.
pub(super) fn render(config: &Config, asked: &Render) -> Result<Answer> {
    let family = asked.family;
    let (events, problems) = manifests::load(&config.sources.manifests, &source::manifest_options(config))?;
    let is_error = |problem: &&ManifestError| problem.severity == Severity::Error;
    for problem in &problems {
        let word = if is_error(&problem) { "Error" } else { "Warning" };
        complain(format_args!("{word}: {problem}"));
    }
    let errors = problems.iter().filter(is_error).count();
    let node = NodeFacts { name: config.node_name.as_str().into(), ..NodeFacts::default() };
    let mut tracker =
        Tracker::new(node, i64::MAX).reserving(families::reserved(config)).limiting(families::limits(config));
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
    if addresses.is_empty() && depends_on_addresses(config.mode, &settings) {
        complain(format_args!(
            "Warning: no {family} address of Node {} is known: node ports are left out; \
             its Node object or --node-addresses can say some",
            config.node_name
        ));
    }
    let plan =
        Plan::new(&settings, tracker.snapshot(), Scope::All).with_endpoint_count(tracker.endpoints(family));
    let text = match config.mode {
        Mode::Iptables => iptables(config, plan, addresses)?,
        Mode::Ipvs => ipvs(config, &plan, addresses)?,
    };
    if errors > 0 {
        complain(format_args!("Error: {errors} errors in the manifests; the rules are those of the rest"));
    }
    Ok(Answer { text, status: u8::from(errors > 0), wraps: false })
}

/// The node's own addresses, as far as they are known here.
fn node_addresses(config: &Config, asked: &Render, node: &NodeFacts) -> BTreeSet<IpAddr> {
    let known = if asked.node_addresses.is_empty() { &*node.addresses } else { &asked.node_addresses };
    let bound = Some(config.bind_address).filter(|address| !address.is_unspecified());
    let of_family = |address: &IpAddr| IpFamily::of(*address) == asked.family;
    known.iter().copied().chain(bound).filter(of_family).collect()
}

/// Whether node ports stand on single addresses.
fn depends_on_addresses(mode: Mode, settings: &FamilySettings) -> bool {
    mode == Mode::Ipvs || matches!(settings.node_port_addresses, NodePortAddresses::Within(_))
}

fn iptables(config: &Config, plan: Plan<'_>, mut addresses: BTreeSet<IpAddr>) -> Result<String> {
    addresses.insert(match plan.settings.family {
        IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
        IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
    });
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
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

fn ipvs(config: &Config, plan: &Plan<'_>, addresses: BTreeSet<IpAddr>) -> Result<String> {
    let scheduler = families::scheduler(config)?;
    let features =
        families::ipvs_features(config, plan.settings.family, scheduler, tools::Version::RANDOM_FULLY);
    Ok(render_text(plan, &features, &addresses))
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

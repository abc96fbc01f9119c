//! `kube-proxy-rs render`: the restore input for some manifests, without touching the kernel.

use super::families::{self, NodeIps, settings};
use crate::backend::iptables::{Features, render_inputs};
use crate::config::{Config, Flavor, Mode};
use crate::kernel::addresses::local_addresses;
use crate::kernel::iptables as tools;
use crate::model::{IpFamily, NodeFacts};
use crate::plan::{Plan, Scope};
use crate::state::Tracker;
use crate::watch::manifests::{self, ManifestOptions};
use anyhow::{Result, bail};

/// What would be sent to iptables-restore on a node without rules; several inputs are set apart
/// by comment lines. The packet counters of nfacct are taken to be missing: whether they are
/// there is the kernel's to say.
pub(super) fn render(config: &Config, family: IpFamily) -> Result<String> {
    if config.mode == Mode::Ipvs {
        bail!("render prints the rules of mode iptables; those of mode ipvs depend on the kernel's state");
    }
    let options = ManifestOptions {
        node_name: config.node_name.clone(),
        node_port_range: config.node_ports.range.0..=config.node_ports.range.1,
    };
    let (events, errors) = manifests::load(&config.sources.manifests, &options)?;
    for error in &errors {
        eprintln!("Error: {error}");
    }
    let node = NodeFacts { name: config.node_name.as_str().into(), ..NodeFacts::default() };
    let mut tracker = Tracker::new(node, i64::MAX).reserving(families::reserved(config));
    events.into_iter().for_each(|event| tracker.fold(event));
    let changes = tracker.take_changes();
    for conflict in changes.conflicts {
        eprintln!("Error: {conflict}");
    }
    for claim in changes.claims {
        eprintln!("Warning: {claim}");
    }
    let settings =
        settings(config, family, &tracker.snapshot().node, &NodeIps::of(config, &tracker.snapshot().node));
    let addresses = local_addresses(family)?;
    let plan = Plan::new(&settings, tracker.snapshot(), Scope::All)
        .with_endpoint_count(tracker.endpoints(family))
        .with_local_addresses(&addresses);
    let features = Features {
        masquerade_mark: 1 << u32::from(config.iptables.masquerade_bit),
        tree_threshold: usize::try_from(config.iptables.dispatch_tree_threshold)?,
        ..Features::default()
    };
    let flavor = match config.iptables.flavor {
        Flavor::Legacy => tools::Flavor::Legacy,
        Flavor::Auto | Flavor::Nft => tools::Flavor::Nft,
    };
    let inputs = render_inputs(&plan, &features, flavor);
    if errors.is_empty() {
        return Ok(join(&inputs));
    }
    print!("{}", join(&inputs));
    bail!("{} problems in the manifests; the rules are those of the rest", errors.len())
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

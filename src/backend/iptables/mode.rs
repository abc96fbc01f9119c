//! Mode iptables to the rooms above.

use super::{Features, Iptables, cleanup, inspect, kinds, render_inputs, setup};
use crate::backend::mode::{InspectedNode, Inspection, ModeFacts, Opening, ProxyMode};
use crate::backend::service_metrics::measuring;
use crate::backend::{Dataplane, Difference, KernelObject, Packet, SharedNames, TraceOutcome, usable};
use crate::config::Config;
use crate::kernel::iptables::{Flavor, Place, RuleKind, Tools, Xtables as _};
use crate::metrics::MetricSet;
use crate::model::IpFamily;
use crate::plan::{FamilySettings, Plan};
use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Levels of the tree of networks, and some to spare.
const DEEPEST: usize = 16;

/// Chains of iptables rules.
pub struct IptablesMode;

impl ProxyMode for IptablesMode {
    fn facts(&self) -> ModeFacts {
        ModeFacts {
            metrics: MetricSet::Iptables,
            by_address: false,
            localhost_node_ports: true,
            switches_forwarding_on: false,
            has_virtual_servers: false,
        }
    }

    fn dataplane<'a>(
        &'a self,
        opening: &'a Opening<'a>,
        settings: &'a FamilySettings,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Dataplane>>> {
        Box::pin(async move {
            let (config, family) = (opening.config, settings.family);
            let tools = usable::tools(opening, family).await?;
            let features = Features {
                tree_threshold: usize::try_from(config.iptables.dispatch_tree_threshold)?,
                ..setup::features(config.iptables.masquerade_bit, tools.version())
            };
            let dataplane = Iptables::new(tools, family, features).detecting(config.drift_detection);
            Ok(Box::new(dataplane.measuring(measuring(opening, family))) as Box<dyn Dataplane>)
        })
    }

    fn prepare(&self, _config: &Config, settings: &FamilySettings) -> Result<()> {
        setup::prepare(settings)
    }

    fn render(&self, config: &Config, plan: Plan<'_>, node_addresses: &BTreeSet<IpAddr>) -> Result<String> {
        let loopback: IpAddr = match plan.settings.family {
            IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
            IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let addresses: BTreeSet<IpAddr> = node_addresses.iter().copied().chain([loopback]).collect();
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let features = Features {
            masquerade_mark: 1 << u32::from(config.iptables.masquerade_bit),
            tree_threshold: usize::try_from(config.iptables.dispatch_tree_threshold)?,
            ..Features::default()
        };
        let flavor = usable::flavor(config).unwrap_or(Flavor::Nft);
        Ok(join(&render_inputs(&plan.with_local_addresses(&addresses), &features, flavor)))
    }

    fn rule_kinds(&self, family: IpFamily) -> Vec<RuleKind> {
        kinds::rule_kinds(family)
    }

    fn inspect<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        wanted: &'a [KernelObject],
    ) -> LocalBoxFuture<'a, Result<Inspection>> {
        Box::pin(async move { look_at_rules(node.tools()?, wanted).await })
    }

    fn trace<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        objects: &'a [KernelObject],
        packet: &'a Packet,
    ) -> LocalBoxFuture<'a, Result<Vec<TraceOutcome>>> {
        Box::pin(async move { Ok(inspect::trace(objects, packet, node.addresses)) })
    }

    fn standing(&self) -> SharedNames {
        cleanup::standing()
    }

    fn holds_rules<'a>(&'a self, tools: &'a mut Tools) -> LocalBoxFuture<'a, Result<bool>> {
        Box::pin(async move { cleanup::holds_rules(tools, &SharedNames::default()).await })
    }

    fn remove_rules<'a>(
        &'a self,
        tools: &'a mut Tools,
        standing: &'a SharedNames,
    ) -> LocalBoxFuture<'a, Result<bool>> {
        Box::pin(async move { cleanup::remove_rules(tools, standing).await })
    }
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

async fn look_at_rules(tools: &Tools, wanted: &[KernelObject]) -> Result<Inspection> {
    let mut inspection = Inspection::default();
    for object in wanted {
        let Some(lines) = chain(tools, &object.name).await? else {
            inspection.differences.push(Difference::gone(object));
            continue;
        };
        let (missing, surplus) = inspect::differences(object, &lines);
        inspection.found.push(KernelObject { lines: lines.clone(), ..object.clone() });
        let mut left = Vec::new();
        for rule in missing {
            if !in_tree(tools, (&object.name, &lines), &rule, &mut inspection.found).await? {
                left.push(rule);
            }
        }
        inspection.differences.extend(Difference::of(object, left, surplus));
    }
    Ok(inspection)
}

/// Whether a rule of a long chain stands where a tree of networks has it; notes the chains on the way.
async fn in_tree(
    tools: &Tools,
    (name, lines): (&str, &[String]),
    rule: &str,
    found: &mut Vec<KernelObject>,
) -> Result<bool> {
    let Some((table, _)) = name.split_once(' ') else { return Ok(false) };
    let mut lines = lines.to_vec();
    for _ in 0..DEEPEST {
        let Some(next) = inspect::branch(rule, &lines) else { return Ok(false) };
        let name = format!("{table} {next}");
        let Some(there) = chain(tools, &name).await? else { return Ok(false) };
        lines.clone_from(&there);
        if !found.iter().any(|known| known.name == name) {
            found.push(KernelObject { name, lines: there, is_shared: true });
        }
        let wanted = KernelObject { name: next, lines: vec![rule.to_owned()], is_shared: true };
        if inspect::differences(&wanted, &lines).0.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn chain(tools: &Tools, name: &str) -> Result<Option<Vec<String>>> {
    let (table, chain) = name.split_once(' ').context("a chain without a table")?;
    tools.rules(Place { table, chain }).await
}

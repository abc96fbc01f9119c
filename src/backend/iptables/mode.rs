//! Mode iptables to the rooms above.

use super::chains::{Fixed, JUMPS, TABLES};
use super::names::ChainId;
use super::{Features, Iptables, inspect, kinds, render_inputs, setup};
use crate::backend::mode::{InspectedNode, Inspection, ModeFacts, Opening, ProxyMode};
use crate::backend::own_rules::OwnRules;
use crate::backend::service_metrics::measuring;
use crate::backend::{Dataplane, Difference, KernelObject, Packet, TraceOutcome, rule_differences, usable};
use crate::config::Config;
use crate::kernel::iptables::{Flavor, Place, RuleKind, TRIAL, Tools, Xtables as _};
use crate::metrics::MetricSet;
use crate::model::IpFamily;
use crate::plan::{FamilySettings, Plan};
use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

/// Levels of the tree of networks, and some to spare.
const DEEPEST: usize = 16;
/// The table that holds a chain for each Service port and endpoint.
const LARGE_TABLE: &str = "nat";
/// Up to this many wanted chains of it are read one by one. The other tables are read whole.
const MOST_SINGLE_CHAINS: usize = 12;

/// Chains of iptables rules.
pub struct IptablesMode;

impl ProxyMode for IptablesMode {
    fn facts(&self) -> ModeFacts {
        ModeFacts {
            metrics: MetricSet::Iptables,
            by_address: false,
            localhost_node_ports: true,
            switches_forwarding_on: false,
            writes_iptables: true,
            uses_service_cidrs: false,
            tracking_setting: None,
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
        Box::pin(async move { inspect_rules(node.tools()?, wanted).await })
    }

    fn holds_only_services(&self, object: &str) -> bool {
        inspect::is_ours_alone(object)
    }

    fn trace<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        objects: &'a [KernelObject],
        packet: &'a Packet,
    ) -> LocalBoxFuture<'a, Result<Vec<TraceOutcome>>> {
        Box::pin(async move { Ok(inspect::trace(objects, packet, node.addresses)) })
    }

    /// What a trial left counts, too.
    fn own_rules(&self) -> OwnRules {
        let chains =
            Fixed::all().filter(|chain| !chain.is_shared()).map(|chain| (chain.table(), chain.as_str()));
        OwnRules {
            chains: chains.chain(TABLES.map(|table| (table, TRIAL))).collect(),
            jumps: JUMPS.iter().filter(|jump| !jump.is_shared_with_kubelet()).collect(),
            services: Some(|names| {
                let ids: BTreeSet<ChainId> = names.iter().filter_map(|name| ChainId::parse(name)).collect();
                ids.iter().map(ToString::to_string).collect()
            }),
        }
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

async fn inspect_rules(tools: &Tools, wanted: &[KernelObject]) -> Result<Inspection> {
    let mut chains = Chains::of(tools, wanted).await?;
    let mut inspection = Inspection::default();
    for object in wanted {
        let Some(lines) = chains.get(&object.name).await? else {
            inspection.differences.push(Difference::gone(object));
            continue;
        };
        let (missing, mut surplus) = rule_differences::differences(object, &lines);
        surplus.retain(|rule| !inspect::leads_into_tree(rule));
        inspection.found.push(KernelObject { lines: lines.to_vec(), ..object.clone() });
        let mut left = Vec::new();
        for rule in missing {
            if !in_tree(&mut chains, (&object.name, &lines), &rule, &mut inspection.found).await? {
                left.push(rule);
            }
        }
        inspection.differences.extend(Difference::of(object, left, surplus));
    }
    Ok(inspection)
}

/// Whether a rule of a long chain stands where a tree of networks has it; notes the chains on the way.
async fn in_tree(
    chains: &mut Chains<'_>,
    (name, lines): (&str, &Lines),
    rule: &str,
    found: &mut Vec<KernelObject>,
) -> Result<bool> {
    let Some((table, _)) = name.split_once(' ') else { return Ok(false) };
    let mut lines = lines.clone();
    for _ in 0..DEEPEST {
        let Some(next) = inspect::branch(rule, &lines) else { return Ok(false) };
        let name = format!("{table} {next}");
        let Some(there) = chains.get(&name).await? else { return Ok(false) };
        if chains.noted.insert(name.clone()) {
            found.push(KernelObject { name: name.clone(), lines: there.to_vec(), is_shared: true });
        }
        if chains.effects(&name, &there).contains(&rule_differences::effect(rule)) {
            return Ok(true);
        }
        lines = there;
    }
    Ok(false)
}

/// The rules of a chain.
type Lines = Rc<[String]>;

/// The chains of the kernel, each read once: one by one, or with their whole table where very many are wanted of it. A
/// process for each of thousands takes a minute.
struct Chains<'t> {
    tools: &'t Tools,
    /// The tables that were read as a whole.
    whole: BTreeSet<String>,
    /// By table and chain; `None` for one that is not there.
    known: HashMap<String, Option<Lines>>,
    /// What the rules of a chain do.
    effects: HashMap<String, HashSet<u64>>,
    /// Chains of trees that were noted as found.
    noted: HashSet<String>,
}

impl<'t> Chains<'t> {
    async fn of(tools: &'t Tools, wanted: &[KernelObject]) -> Result<Chains<'t>> {
        let mut by_table: BTreeMap<&str, usize> = BTreeMap::new();
        for (table, _) in wanted.iter().filter_map(|object| object.name.split_once(' ')) {
            *by_table.entry(table).or_default() += 1;
        }
        let (effects, noted) = (HashMap::new(), HashSet::new());
        let mut chains = Chains { tools, whole: BTreeSet::new(), known: HashMap::new(), effects, noted };
        let is_read_whole =
            |(table, count): &(&str, usize)| *table != LARGE_TABLE || *count > MOST_SINGLE_CHAINS;
        for (table, _) in by_table.into_iter().filter(is_read_whole) {
            let found = tools.table(table).await?.into_iter();
            chains.known.extend(found.map(|(chain, lines)| (format!("{table} {chain}"), Some(lines.into()))));
            chains.whole.insert(table.to_owned());
        }
        Ok(chains)
    }

    /// The rules of a chain; `None` where there is none of the name.
    async fn get(&mut self, name: &str) -> Result<Option<Lines>> {
        if let Some(known) = self.known.get(name) {
            return Ok(known.clone());
        }
        let (table, chain) = name.split_once(' ').context("a chain without a table")?;
        if self.whole.contains(table) {
            return Ok(None);
        }
        let lines: Option<Lines> = self.tools.rules(Place { table, chain }).await?.map(Into::into);
        self.known.insert(name.to_owned(), lines.clone());
        Ok(lines)
    }

    fn effects(&mut self, name: &str, lines: &Lines) -> &HashSet<u64> {
        let read = || lines.iter().map(|line| rule_differences::effect(line)).collect();
        self.effects.entry(name.to_owned()).or_insert_with(read)
    }
}

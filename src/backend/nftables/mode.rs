//! Mode nftables to the rooms above.

use super::baseline::Structure;
use super::{Features, Layouts, Nftables, inspect, observe, probe, render, text};
use crate::backend::mode::{
    InspectedNode, Inspection, ModeFacts, OpenConnections, Opening, ProxyMode, Removal, Requirement,
};
use crate::backend::service_metrics::measuring;
use crate::backend::{Dataplane, KernelObject, Packet, StandingObjects, TraceOutcome};
use crate::config::{Config, ServiceMetricsDetail};
use crate::kernel::addresses::{local_addresses, reading_when_changed};
use crate::kernel::iptables::RuleKind;
use crate::kernel::nft::{Nft, Part};
use crate::metrics::MetricSet;
use crate::model::IpFamily;
use crate::plan::{FamilySettings, Plan};
use anyhow::{Context, Result, anyhow};
use futures::future::LocalBoxFuture;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Elements of nf_tables' sets and maps.
pub struct NftablesMode;

impl ProxyMode for NftablesMode {
    fn facts(&self) -> ModeFacts {
        ModeFacts {
            metrics: MetricSet::Nftables,
            by_address: false,
            localhost_node_ports: false,
            switches_forwarding_on: false,
            writes_iptables: false,
            uses_service_cidrs: true,
            tracking_setting: None,
        }
    }

    fn dataplane<'a>(
        &'a self,
        opening: &'a Opening<'a>,
        settings: &'a FamilySettings,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Dataplane>>> {
        Box::pin(async move {
            let kernel = nftables_rs::Nftables::open()?;
            let addresses = Box::new(reading_when_changed(local_addresses));
            let features = Features { owns_table: can_own_table(opening), ..features(opening.config) };
            let dataplane = Nftables::new(kernel, settings.family, features, addresses);
            let dataplane = dataplane
                .detecting(opening.config.drift_detection)
                .counting_with(opening.generations.clone())
                .measuring(measuring(opening, settings.family));
            let Some(metrics) = opening.metrics.cloned() else {
                return Ok(Box::new(dataplane) as Box<dyn Dataplane>);
            };
            let family = settings.family;
            let tell = Box::new(move || metrics.nftables_cleanup_failures(family).inc());
            Ok(Box::new(dataplane.telling_failed_sweeps(tell)) as Box<dyn Dataplane>)
        })
    }

    fn prepare(&self, _config: &Config, _settings: &FamilySettings) -> Result<()> {
        Ok(())
    }

    fn render(&self, config: &Config, plan: Plan<'_>, node_addresses: &BTreeSet<IpAddr>) -> Result<String> {
        let addresses: Vec<IpAddr> = node_addresses.iter().copied().collect();
        let plan = plan.with_local_addresses(&addresses);
        let mut needs = Structure::default();
        plan.services().for_each(|service| needs.need(&render::service(&service, false)));
        let mut layouts = Layouts::new(features(config));
        let node_ports = plan.node_port_ips().unwrap_or_else(|| addresses.clone());
        Ok(text::table(&plan, layouts.get(plan.settings, &needs), node_ports))
    }

    fn rule_kinds(&self, _family: IpFamily) -> Vec<RuleKind> {
        Vec::new()
    }

    fn requirements(&self) -> Vec<Requirement> {
        vec![Requirement {
            name: "nf_tables",
            found: probe::kernel().map_err(|error| format!("{error:#}")),
            remedy: "load the module that is named on the node, or use --mode=iptables",
            is_vital: true,
        }]
    }

    fn extras(&self, config: &Config) -> Vec<Requirement> {
        let found = || probe::owned_table().map_err(|error| format!("{error:#}"));
        let owned_table = || Requirement {
            name: "nf_tables owner",
            found: found(),
            remedy: "the tables are made without an owner; leave out --nftables-own-table, or use a newer kernel",
            is_vital: false,
        };
        config.nftables.own_table.then(owned_table).into_iter().collect()
    }

    fn inspect<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        wanted: &'a [KernelObject],
    ) -> LocalBoxFuture<'a, Result<Inspection>> {
        Box::pin(async move { inspect::inspect(&mut nftables_rs::Nftables::open()?, node.family, wanted) })
    }

    fn holds_only_services(&self, _object: &str) -> bool {
        true
    }

    /// By the rules and elements that are in the kernel.
    fn trace<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        _objects: &'a [KernelObject],
        packet: &'a Packet,
    ) -> LocalBoxFuture<'a, Result<Vec<TraceOutcome>>> {
        Box::pin(async move {
            let mut kernel = nftables_rs::Nftables::open()?;
            inspect::trace(&mut kernel, (node.family, node.addresses), packet)
        })
    }

    fn standing_objects(&self) -> Option<StandingObjects> {
        Some(StandingObjects {
            name: "nftables table",
            found: tables().map_err(|error| format!("{error:#}")),
            effect: "a proxy in mode nftables left it, and its rules are in force beside ours",
            remedy: "stop that proxy; the table is removed once our rules stand",
        })
    }

    /// Connections go on without the table: the kernel remembers how they were translated.
    fn remove_objects(&self, _config: &Config, _connections: OpenConnections) -> Removal {
        let removed = |family| match remove_table(family) {
            Ok(true) => Some(Ok(format!("nftables table {} removed", super::names::table(family)))),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        };
        Removal { outcomes: IpFamily::ALL.into_iter().filter_map(removed).collect(), in_use: 0 }
    }
}

/// The tables that are there, in words. A table has chains as long as it is in use.
fn tables() -> Result<Option<String>> {
    let Some(mut nft) = Nft::open_if_there()? else { return Ok(None) };
    let mut names = Vec::new();
    for family in IpFamily::ALL {
        let mut is_there = false;
        nft.chains(family, super::names::TABLE, &mut |part| is_there = matches!(part, Part::Item(_)))?;
        names.extend(is_there.then(|| super::names::table(family).to_string()));
    }
    Ok((!names.is_empty()).then(|| format!("{} is there", names.join(" and "))))
}

/// Removes the table; says whether there was one.
pub(super) fn remove_table(family: IpFamily) -> Result<bool> {
    let Some(mut nft) = Nft::open_if_there()? else { return Ok(false) };
    nft.delete_table(family, super::names::TABLE)
        .map_err(|error| match owner(family) {
            Some(owner) => anyhow!(owner),
            None => error,
        })
        .with_context(|| format!("removing the nftables table of {family}"))
}

/// Which other process owns the table, in words.
fn owner(family: IpFamily) -> Option<String> {
    let mut kernel = nftables_rs::Nftables::open().ok()?;
    observe::foreign_owner(&mut kernel, super::names::table(family)).ok()?
}

/// Whether tables are to be owned by this process, and the kernel has that.
fn can_own_table(opening: &Opening<'_>) -> bool {
    let tried = || {
        let missing = |error: &anyhow::Error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "--nftables-own-table has no effect");
        };
        probe::owned_table().inspect_err(missing).is_ok()
    };
    let is_wanted = opening.config.nftables.own_table && opening.metrics.is_some();
    is_wanted && tried()
}

fn features(config: &Config) -> Features {
    Features {
        owns_table: false,
        masquerade_mark: 1 << u32::from(config.iptables.masquerade_bit),
        counts: config.service_metrics != ServiceMetricsDetail::Off,
    }
}

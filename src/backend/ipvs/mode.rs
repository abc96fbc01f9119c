//! Mode ipvs to the rooms above.

use super::inspect::{self, Surroundings};
use super::metrics::{Counted, show};
use super::names::INTERFACE;
use super::restore_input::CHAINS;
use super::{Features, Ipvs, Kernel, Removed, cleanup, kinds, render_text, setup};
use crate::backend::mode::{
    InspectedNode, Inspection, ModeFacts, OpenConnections, Opening, ProxyMode, Removal, Requirement,
};
use crate::backend::own_rules::OwnRules;
use crate::backend::service_metrics::measuring;
use crate::backend::{
    Dataplane, Difference, KernelObject, Packet, StandingObjects, TraceOutcome, rule_differences, usable,
};
use crate::config::{Config, DetectLocal};
use crate::kernel::addresses::interface_addresses;
use crate::kernel::ipset::{Ipsets as _, KernelIpsets, SetSpec};
use crate::kernel::iptables::{RuleKind, Tools, Version, Xtables as _};
use crate::kernel::ipvs::{KernelIpvs, Timeouts, VirtualServers as _};
use crate::kernel::links;
use crate::kernel::sysctl::Sysctls;
use crate::metrics::MetricSet;
use crate::model::{Frontend, IpFamily, IpvsScheduler, SetType};
use crate::plan::{FamilySettings, Plan};
use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A setting that is there as long as IPVS is: whether connection tracking, and with it the nat table, knows its connections.
const LOADED_IPVS: &str = "net/ipv4/vs/conntrack";

/// Virtual servers of IPVS.
pub struct IpvsMode;

impl ProxyMode for IpvsMode {
    fn facts(&self) -> ModeFacts {
        ModeFacts {
            metrics: MetricSet::Ipvs,
            by_address: true,
            // IPVS does not take packets from 127.0.0.0/8.
            localhost_node_ports: false,
            switches_forwarding_on: true,
            writes_iptables: true,
            uses_service_cidrs: false,
            tracking_setting: Some(LOADED_IPVS),
        }
    }

    fn probe(&self, config: &Config) -> Result<()> {
        let scheduler = scheduler(config)?;
        setup::check_scheduler(&mut KernelIpvs::open()?, &scheduler)
    }

    fn dataplane<'a>(
        &'a self,
        opening: &'a Opening<'a>,
        settings: &'a FamilySettings,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Dataplane>>> {
        Box::pin(async move {
            let (config, family) = (opening.config, settings.family);
            let tools = usable::tools(opening, family).await?;
            let features = features(config, family, scheduler(config)?, tools.version());
            let mut kernel = Kernel::open()?;
            let Some(metrics) = opening.metrics else {
                return Ok(Box::new(Ipvs::new(tools, kernel, family, features)) as Box<dyn Dataplane>);
            };
            kernel.servers = Box::new(Counted::new(kernel.servers, metrics.clone()));
            let services = usize::try_from(config.ipvs.connection_metrics)?;
            let dataplane = Ipvs::new(tools, kernel, family, features)
                .detecting(config.drift_detection)
                .counting(show(metrics.clone()), services);
            Ok(Box::new(dataplane.measuring(measuring(opening, family))) as Box<dyn Dataplane>)
        })
    }

    fn prepare(&self, config: &Config, _settings: &FamilySettings) -> Result<()> {
        let timeouts = Timeouts {
            tcp: config.ipvs.tcp_timeout,
            tcp_fin: config.ipvs.tcp_fin_timeout,
            udp: config.ipvs.udp_timeout,
        };
        setup::prepare(&mut Kernel::open()?, config.ipvs.strict_arp, &timeouts)
    }

    fn render(&self, config: &Config, plan: Plan<'_>, node_addresses: &BTreeSet<IpAddr>) -> Result<String> {
        let features = features(config, plan.settings.family, scheduler(config)?, Version::RANDOM_FULLY);
        Ok(render_text(&plan, &features, node_addresses))
    }

    fn rule_kinds(&self, family: IpFamily) -> Vec<RuleKind> {
        kinds::rule_kinds(family)
    }

    fn requirements(&self) -> Vec<Requirement> {
        let words = |result: Result<()>, there| result.map(|()| there).map_err(|error| format!("{error:#}"));
        vec![
            Requirement {
                name: "ipvs",
                found: words(KernelIpvs::open().map(drop), "the kernel has IPVS"),
                remedy: "modprobe ip_vs on the node, or use --mode=iptables",
                is_vital: true,
            },
            Requirement {
                name: "ipset",
                found: words(ask_ipset(), "the kernel has ipsets"),
                remedy: "modprobe ip_set on the node",
                is_vital: true,
            },
            Requirement {
                name: "dummy interface",
                found: has_dummy().then_some("there, or its driver is").ok_or_else(|| {
                    "the driver is not loaded; the kernel loads it at the proxy's start if it has it"
                        .to_owned()
                }),
                remedy: "modprobe dummy on the node to be sure",
                is_vital: false,
            },
        ]
    }

    fn inspect<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        wanted: &'a [KernelObject],
    ) -> LocalBoxFuture<'a, Result<Inspection>> {
        Box::pin(async move {
            let (chains, others): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(inspect::is_chain);
            let mut inspection = inspect_servers(node.family, &others)?;
            inspect_chains(node.tools()?, &chains, &mut inspection).await?;
            Ok(inspection)
        })
    }

    fn holds_only_services(&self, object: &str) -> bool {
        !inspect::is_built_in(object)
    }

    /// By our rules in the tables, the sets, and the virtual server.
    fn trace<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        _objects: &'a [KernelObject],
        packet: &'a Packet,
    ) -> LocalBoxFuture<'a, Result<Vec<TraceOutcome>>> {
        Box::pin(async move {
            let at = packet.destination;
            let to = Frontend { address: at.ip(), port: at.port(), protocol: packet.protocol };
            let object = |(name, lines)| KernelObject { name, lines, is_shared: true };
            let chains: Vec<_> = chains(node.tools()?).await?.into_iter().map(object).collect();
            let around = Surroundings::read(&mut Kernel::open()?, to)?;
            Ok(inspect::trace(&chains, &around, packet))
        })
    }

    fn standing_objects(&self) -> Option<StandingObjects> {
        Some(StandingObjects {
            name: "IPVS virtual servers",
            found: virtual_servers().map_err(|error| format!("{error:#}")),
            effect: "a proxy in mode ipvs left them, and packets go to them, not by our rules",
            remedy: "stop that proxy and run kube-proxy-rs --cleanup",
        })
    }

    fn own_rules(&self) -> OwnRules {
        cleanup::own_rules(false)
    }

    fn remove_objects(&self, config: &Config, connections: OpenConnections) -> Removal {
        let mut kernel = match Kernel::of_leftovers() {
            Ok(kernel) => kernel,
            Err(error) => {
                return Removal {
                    outcomes: vec![Err(error).context("removing what IPVS mode left")],
                    in_use: 0,
                };
            }
        };
        let mut removal = Removal::default();
        for family in IpFamily::ALL {
            let features = leftover_features(config, family);
            let connections =
                if keeps_addresses(config, family) { connections } else { OpenConnections::End };
            let removed = kernel.remove_leftovers(family, &features, connections);
            match removed.with_context(|| format!("removing what IPVS mode left of {family}")) {
                Ok(Removed { servers, sets, in_use }) => {
                    removal.in_use += in_use;
                    removal.outcomes.extend((servers + sets > 0).then(|| {
                        Ok(format!(
                            "{servers} virtual servers and {sets} ipsets of IPVS mode ({family}) removed"
                        ))
                    }));
                }
                Err(error) => removal.outcomes.push(Err(error)),
            }
        }
        match kernel.remove_interface() {
            Ok(true) => removal.outcomes.push(Ok(format!("interface {INTERFACE} of IPVS mode removed"))),
            Ok(false) => {}
            Err(error) => removal.outcomes.push(Err(error).context("removing what IPVS mode left")),
        }
        removal
    }
}

/// Whether the addresses of Services may stay on the node after this mode. What the node itself sends to them has them as
/// its source, and answers only come back to that if it is masqueraded, which takes a way to tell it from what pods send.
fn keeps_addresses(config: &Config, family: IpFamily) -> bool {
    match &config.detect_local {
        DetectLocal::ClusterCidr(cidrs) => config.iptables.masquerade_all || cidrs.get(family).is_some(),
        _ => true,
    }
}

/// Distinguishes the virtual servers that IPVS mode left from those of other programs: the sets name them, in either
/// of its ways.
fn leftover_features(config: &Config, family: IpFamily) -> Features {
    let scheduler = IpvsScheduler::as_upstream("rr");
    Features { upstream_compat: false, ..features(config, family, scheduler, Version::RANDOM_FULLY) }
}

/// What IPVS mode does on this node, as configured.
fn features(config: &Config, family: IpFamily, scheduler: IpvsScheduler, tools: Version) -> Features {
    let exclude = config.ipvs.exclude_cidrs.iter().copied();
    Features {
        masquerade_mark: 1 << u32::from(config.iptables.masquerade_bit),
        random_fully: tools >= Version::RANDOM_FULLY,
        scheduler,
        exclude: exclude.filter(|cidr| IpFamily::of_cidr(cidr) == family).collect(),
        upstream_compat: config.ipvs.upstream_compat,
        node_name: config.node_name.as_str().into(),
    }
}

/// The scheduler of Services that ask for none.
fn scheduler(config: &Config) -> Result<IpvsScheduler> {
    let name = &config.ipvs.scheduler;
    if config.ipvs.upstream_compat {
        return Ok(IpvsScheduler::as_upstream(name));
    }
    let known = || format!("{}, sh-port, mh-port", IpvsScheduler::KNOWN.join(", "));
    IpvsScheduler::parse(name).with_context(|| format!("--ipvs-scheduler {name} is none of {}", known()))
}

/// How many virtual servers there are, in words, but for those that only let their last connections end.
fn virtual_servers() -> Result<Option<String>> {
    // Asking over netlink would load IPVS; its settings are there as long as it is.
    if Sysctls::default().read(LOADED_IPVS).is_err() {
        return Ok(None);
    }
    let (mut kernel, mut count) = (KernelIpvs::open()?, 0);
    for (at, _) in kernel.list()? {
        let reals = kernel.real_servers(&at)?;
        let is_draining = !reals.is_empty() && reals.iter().all(|(real, _)| real.weight == 0);
        count += usize::from(!is_draining);
    }
    Ok((count > 0).then(|| format!("{count} are there")))
}

fn has_dummy() -> bool {
    let is_there = |family| {
        let addresses = interface_addresses(family).unwrap_or_default();
        addresses.iter().any(|it| it.interface == INTERFACE)
    };
    links::has_driver("dummy") || IpFamily::ALL.into_iter().any(is_there)
}

/// Asks about a set that does not exist: an answer, whatever it is, proves support.
fn ask_ipset() -> Result<()> {
    let spec = SetSpec { name: "KUBE-CHECK", kind: SetType::Ip, family: IpFamily::V4 };
    KernelIpsets::open()?.count(spec).map(drop)
}

/// All chains of the tables that we have rules in, named `table CHAIN`.
async fn chains(tools: &Tools) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for (table, _) in CHAINS {
        let named = |(chain, lines)| (format!("{table} {chain}"), lines);
        found.extend(tools.table(table).await?.into_iter().map(named));
    }
    Ok(found)
}

async fn inspect_chains(tools: &Tools, wanted: &[KernelObject], inspection: &mut Inspection) -> Result<()> {
    let mut all = chains(tools).await?;
    for object in wanted {
        let Some(lines) = all.remove(&object.name) else {
            inspection.differences.push(Difference::gone(object));
            continue;
        };
        let (missing, surplus) = rule_differences::differences(object, &lines);
        inspection.differences.extend(Difference::of(object, missing, surplus));
        inspection.found.push(KernelObject { lines, ..object.clone() });
    }
    Ok(())
}

fn inspect_servers(family: IpFamily, wanted: &[KernelObject]) -> Result<Inspection> {
    let mut kernel = Kernel::open()?;
    let all = inspect::found(&mut kernel, family, wanted)?;
    let mut inspection = Inspection::default();
    for (object, lines) in wanted.iter().zip(all) {
        let Some(lines) = lines else {
            inspection.differences.push(Difference::gone(object));
            continue;
        };
        let beyond = |all: &[String], other: &[String]| {
            all.iter().filter(|line| !other.contains(line)).cloned().collect::<Vec<_>>()
        };
        let mut surplus = if object.is_shared { Vec::new() } else { beyond(&lines, &object.lines) };
        // Those let their connections end.
        surplus.retain(|line| !line.ends_with(" weight 0"));
        inspection.differences.extend(Difference::of(object, beyond(&object.lines, &lines), surplus));
        inspection.found.push(KernelObject { lines, ..object.clone() });
    }
    Ok(inspection)
}

//! Proxy modes. Below `config`, [`open`] is the one place that tells them apart.

use super::own_rules::OwnRules;
use super::{Dataplane, Difference, KernelObject, Packet, TraceOutcome};
use crate::config::{Config, DriftDetection, Mode, ModeChoice};
use crate::kernel::iptables::{RuleKind, Tools};
use crate::kernel::nft::Monitor;
use crate::kernel::nftables::Generations;
use crate::metrics::{MetricSet, Metrics};
use crate::model::IpFamily;
use crate::plan::{FamilySettings, Plan};
use anyhow::{Result, anyhow, bail};
use futures::future::LocalBoxFuture;
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// The mode that the configuration names.
#[must_use]
pub fn open(mode: Mode) -> &'static dyn ProxyMode {
    match mode {
        Mode::Iptables => &super::iptables::IptablesMode,
        Mode::Ipvs => &super::ipvs::IpvsMode,
        Mode::Nftables => &super::nftables::NftablesMode,
    }
}

/// The mode that `auto` stands for on this node: nftables where the kernel has all that `check` asks it for, else iptables.
#[must_use]
pub fn choose() -> ModeChoice {
    match missing(&open(Mode::Nftables).requirements()) {
        None => ModeChoice {
            mode: Mode::Nftables,
            reason: "the kernel has all that mode nftables needs".to_owned(),
        },
        Some(missing) => {
            ModeChoice { mode: Mode::Iptables, reason: format!("mode nftables cannot run: {missing}") }
        }
    }
}

/// The first thing without which a mode does not start.
fn missing(requirements: &[Requirement]) -> Option<String> {
    let is_missing = |it: &&Requirement| it.is_vital && it.found.is_err();
    let Requirement { name, found, .. } = requirements.iter().find(is_missing)?;
    Some(format!("{name}: {}", found.as_ref().err()?))
}

/// All that a mode does differently from another: its dataplanes, what it asks of a node, and how its objects are
/// looked at and removed.
pub trait ProxyMode: Sync {
    /// What the rooms above have to know.
    fn facts(&self) -> ModeFacts;

    /// Whether the kernel can run this mode at all, whatever the family.
    ///
    /// # Errors
    /// Names what the kernel lacks.
    fn probe(&self, _config: &Config) -> Result<()> {
        missing(&self.requirements()).map_or(Ok(()), |missing| bail!("{missing}"))
    }

    /// The dataplane of a family. Nothing of the node is changed by opening it.
    ///
    /// # Errors
    /// When the family cannot run here; names what is missing.
    fn dataplane<'a>(
        &'a self,
        opening: &'a Opening<'a>,
        settings: &'a FamilySettings,
    ) -> LocalBoxFuture<'a, Result<Box<dyn Dataplane>>>;

    /// Makes the node's settings that a family needs (sysctls, timeouts).
    ///
    /// # Errors
    /// Names the setting that cannot be made.
    fn prepare(&self, config: &Config, settings: &FamilySettings) -> Result<()>;

    /// What `render` prints for a plan, on a node that has these addresses and nothing programmed yet. Nothing depends on
    /// the machine where this runs.
    ///
    /// # Errors
    /// When a setting has a value that this mode does not know.
    fn render(&self, config: &Config, plan: Plan<'_>, node_addresses: &BTreeSet<IpAddr>) -> Result<String>;

    /// The kinds of iptables rules that the mode writes; `check` tries each.
    fn rule_kinds(&self, family: IpFamily) -> Vec<RuleKind>;

    /// What the mode needs of the kernel besides iptables rules, each looked for now.
    fn requirements(&self) -> Vec<Requirement> {
        Vec::new()
    }

    /// What the configuration asks of the kernel that the mode can do without, each looked for now.
    fn extras(&self, _config: &Config) -> Vec<Requirement> {
        Vec::new()
    }

    /// Looks at the kernel for `explain`.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn inspect<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        wanted: &'a [KernelObject],
    ) -> LocalBoxFuture<'a, Result<Inspection>>;

    /// Whether a kernel object, by its name in [`KernelObject`], has in it what Services want and nothing else, once all
    /// Services are counted.
    fn holds_only_services(&self, object: &str) -> bool;

    /// Where a packet ends. `objects` are those that [`ProxyMode::inspect`] found, or, where the kernel could not be read, the
    /// wanted ones.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn trace<'a>(
        &'a self,
        node: &'a InspectedNode<'a>,
        objects: &'a [KernelObject],
        packet: &'a Packet,
    ) -> LocalBoxFuture<'a, Result<Vec<TraceOutcome>>>;

    /// What the kernel has of this mode, ours or kube-proxy's, besides iptables rules, for `check`.
    fn standing_objects(&self) -> Option<StandingObjects> {
        None
    }

    /// The iptables rules that carry this mode's names.
    fn own_rules(&self) -> OwnRules {
        OwnRules::default()
    }

    /// Removes what else this mode, ours or kube-proxy's, left in the kernel; says what it removed, and what went wrong.
    fn remove_objects(&self, _config: &Config, _connections: OpenConnections) -> Removal {
        Removal::default()
    }
}

/// What becomes of the connections that go through what a mode left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenConnections {
    /// They end with it.
    End,
    /// They outlive the mode: what they go through gets no new ones, and stays until they have ended.
    Outlive,
}

/// What was removed of what a mode left.
#[derive(Debug, Default)]
pub struct Removal {
    /// Each thing that was removed, in words, or what went wrong.
    pub outcomes: Vec<Result<String>>,
    /// How many objects stay until the connections through them have ended.
    pub in_use: usize,
}

/// What the rooms above have to know of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeFacts {
    /// The metrics that it shows.
    pub metrics: MetricSet,
    /// Its frontends are single addresses of the node: a Service takes an address with all its ports, and a node port
    /// stands on each address by itself.
    pub by_address: bool,
    /// Node ports can answer on 127.0.0.0/8.
    pub localhost_node_ports: bool,
    /// Switches IPv4 forwarding on by itself.
    pub switches_forwarding_on: bool,
    /// It writes iptables rules, and needs the tools for that.
    pub writes_iptables: bool,
    /// It tells addresses that a Service may get from others.
    pub uses_service_cidrs: bool,
    /// The setting below /proc/sys that must not be 0, or no rule masquerades what the mode sends on.
    pub tracking_setting: Option<&'static str>,
}

/// Something of the kernel that a mode needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// What, in a word or two.
    pub name: &'static str,
    /// What was found, or why it is missing.
    pub found: Result<&'static str, String>,
    /// What to do where it is missing.
    pub remedy: &'static str,
    /// Without it the proxy does not start; otherwise the kernel may still load it then.
    pub is_vital: bool,
}

/// What the kernel has of a mode, whichever proxy made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingObjects {
    /// What kind of object, in a word or two.
    pub name: &'static str,
    /// What was found, `None` for nothing; or why that is not known.
    pub found: Result<Option<String>, String>,
    /// What it does while another mode runs.
    pub effect: &'static str,
    /// What to do about it then.
    pub remedy: &'static str,
}

/// What the dataplanes of both families are opened with.
pub struct Opening<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Where dataplanes that program the kernel count; without, they only read.
    pub metrics: Option<&'a Arc<Metrics>>,
    /// Which transactions of nf_tables were ours, of either family.
    pub generations: Generations,
    monitor: OnceCell<Option<Rc<Monitor>>>,
}

impl<'a> Opening<'a> {
    /// To program the kernel.
    #[must_use]
    pub fn to_run(config: &'a Config, metrics: &'a Arc<Metrics>) -> Self {
        Opening {
            config,
            metrics: Some(metrics),
            generations: Generations::default(),
            monitor: OnceCell::new(),
        }
    }

    /// To inspect what is programmed.
    #[must_use]
    pub fn to_inspect(config: &'a Config) -> Self {
        Opening { config, metrics: None, generations: Generations::default(), monitor: OnceCell::new() }
    }

    /// One for both families, if the kernel is to tell what other programs write to nf_tables. Asked for only where rules
    /// of ours are there: listening costs those who write.
    pub(super) fn monitor(&self) -> Option<Rc<Monitor>> {
        let is_wanted = self.metrics.is_some() && self.config.drift_detection == DriftDetection::Events;
        let open = || {
            let refused = |error: &anyhow::Error| {
                let error = format!("{error:#}");
                tracing::warn!(
                    error,
                    "nf_tables does not tell of changes: rules are listed once in a sync period"
                );
            };
            is_wanted.then(Monitor::open)?.inspect_err(refused).ok()
        };
        self.monitor.get_or_init(open).clone()
    }
}

/// Where `explain` looks.
pub struct InspectedNode<'a> {
    /// The family.
    pub family: IpFamily,
    /// The tools that the proxy uses, or why none work.
    pub tools: Result<&'a Tools, &'a anyhow::Error>,
    /// The node's addresses of the family.
    pub addresses: &'a [IpAddr],
}

impl InspectedNode<'_> {
    /// The tools, where the mode needs them.
    ///
    /// # Errors
    /// Why none work.
    pub fn tools(&self) -> Result<&Tools> {
        self.tools.map_err(|error| anyhow!("{error:#}"))
    }
}

/// What was found of wanted objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// How the kernel differs; empty when it has exactly what it should have.
    pub differences: Vec<Difference>,
    /// The objects with the lines that the kernel has.
    pub found: Vec<KernelObject>,
}

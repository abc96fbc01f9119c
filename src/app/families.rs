//! What holds for each IP family of this node.

use super::ipvs_metrics::{self, Counted};
use super::service_metrics::measuring;
use super::{conntrack, consistency};
use crate::backend::iptables::{self, Iptables};
use crate::backend::ipvs::{self, Ipvs};
use crate::backend::{Dataplane, DriftDetection};
use crate::config::{self, Config, DetectLocal, Flavor, Mode, NodePortAddresses as ConfiguredAddresses};
use crate::kernel::addresses::local_addresses_beside;
use crate::kernel::iptables::{self as tools, Tools, Xtables};
use crate::kernel::ipvs::Timeouts;
use crate::kernel::nft::Monitor;
use crate::kernel::sysctl::Sysctls;
use crate::metrics::Metrics;
use crate::model::{Cidr, IpFamily, IpvsScheduler, NodeFacts, PerFamily, ServiceLimits};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses};
use crate::state::Reserved;
use crate::sync::{FamilySync, Identity};
use anyhow::{Context, Result, bail};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Between two attempts to get the lock of the legacy tables; a tool waits for it, too.
const LOCK_RETRY: Duration = Duration::from_secs(1);

/// What is done if another program has the lock of the legacy tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenLocked {
    /// A proxy has time.
    Wait,
    /// People who ask have not.
    Fail,
}

/// The node's own IPs, and which family counts as the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeIps {
    pub(super) primary: IpFamily,
    pub(super) ips: PerFamily<Option<IpAddr>>,
}

impl NodeIps {
    /// The first address of the Node object decides the family; a specific `--bind-address` goes
    /// before it (kube-proxy).
    pub(super) fn of(config: &Config, node: &NodeFacts) -> Self {
        let first = node.addresses.first().copied();
        let mut found = NodeIps {
            primary: first.map_or(IpFamily::V4, IpFamily::of),
            ips: PerFamily::build(|family| node.address(family)),
        };
        if !config.bind_address.is_unspecified() {
            found.primary = IpFamily::of(config.bind_address);
            *found.ips.get_mut(found.primary) = Some(config.bind_address);
        }
        found
    }

    /// What `--nodeport-addresses=primary` stands for.
    pub(super) fn own_networks(&self) -> Vec<Cidr> {
        let known = IpFamily::ALL.into_iter().filter_map(|family| *self.ips.get(family));
        known.filter(|ip| !ip.is_loopback()).map(Cidr::from).collect()
    }
}

/// The settings of a family, from configuration and node.
pub(super) fn settings(config: &Config, family: IpFamily, node: &NodeFacts) -> FamilySettings {
    let ips = NodeIps::of(config, node);
    let mut settings = FamilySettings::new(family);
    settings.detector = detector(&config.detect_local, family, node);
    settings.masquerade_all = config.iptables.masquerade_all;
    settings.external_ips = config.external_ips.enabled;
    settings.limits = limits(config);
    if let Some(ip) = ips.ips.get(family) {
        settings.node_ip = *ip;
    }
    settings.node_port_addresses = node_port_addresses(config, family, &ips);
    // IPVS does not take packets from 127.0.0.0/8.
    settings.localhost_node_ports = config.iptables.localhost_node_ports
        && config.mode == Mode::Iptables
        && family == IpFamily::V4
        && settings.node_port_addresses.includes_v4_loopback();
    settings
}

/// How much of one Service is programmed.
pub(super) fn limits(config: &Config) -> ServiceLimits {
    ServiceLimits { by_address: config.mode == Mode::Ipvs, ..config.service_limits }
}

/// The addresses that Services should not claim, as far as the configuration tells them.
pub(super) fn reserved(config: &Config) -> Reserved {
    let own = Some(config.bind_address).filter(|address| !address.is_unspecified());
    Reserved {
        node_addresses: own.into_iter().collect(),
        pod_cidrs: config.external_ips.cluster_cidrs.clone(),
        service_cidrs: config.external_ips.service_cidrs.clone(),
        node_cidrs: config.external_ips.node_cidrs.clone(),
        strict: config.external_ips.strict,
        external_ips: config.external_ips.enabled,
        takes_whole_addresses: config.mode == Mode::Ipvs,
    }
}

fn detector(detect: &DetectLocal, family: IpFamily, node: &NodeFacts) -> Option<LocalDetector> {
    match detect {
        DetectLocal::ClusterCidr(cidrs) => cidrs.get(family).map(LocalDetector::Cidr),
        DetectLocal::NodeCidr => {
            let of_family = |cidr: &&Cidr| IpFamily::of_cidr(cidr) == family;
            node.pod_cidrs.iter().find(of_family).copied().map(LocalDetector::Cidr)
        }
        DetectLocal::BridgeInterface(name) => Some(LocalDetector::BridgeInterface(name.clone())),
        DetectLocal::InterfaceNamePrefix(prefix) => Some(LocalDetector::InterfacePrefix(prefix.clone())),
    }
}

fn node_port_addresses(config: &Config, family: IpFamily, ips: &NodeIps) -> NodePortAddresses {
    match &config.node_ports.addresses {
        ConfiguredAddresses::All => NodePortAddresses::All,
        ConfiguredAddresses::Cidrs(cidrs) => NodePortAddresses::of_family(cidrs, family),
        ConfiguredAddresses::Primary => NodePortAddresses::of_family(&ips.own_networks(), family),
    }
}

/// The dataplanes of the families that this node can run, the primary one first.
pub(super) struct Dataplanes {
    pub(super) families: Vec<FamilySync>,
    /// The tools of each.
    pub(super) flavors: Vec<(IpFamily, tools::Flavor)>,
}

impl Dataplanes {
    fn none() -> Self {
        Dataplanes { families: Vec::new(), flavors: Vec::new() }
    }

    fn add(
        &mut self,
        dataplane: impl Dataplane,
        settings: FamilySettings,
        (config, flavor): (&Config, tools::Flavor),
    ) {
        let (family, config) = (settings.family, config.clone());
        self.flavors.push((family, flavor));
        // Those on the interface of IPVS mode are Services'.
        let node_addresses = Box::new(|family| local_addresses_beside(ipvs::INTERFACE, family));
        let family_sync = FamilySync::new(Box::new(dataplane), settings, node_addresses);
        let make_settings = Box::new(move |node: &NodeFacts| self::settings(&config, family, node));
        self.families.push(family_sync.following_node(make_settings));
    }

    /// What is told to those who ask.
    pub(super) fn identity(&self, config: &Config) -> Identity {
        let flavor = self.flavors.first().map(|(_, flavor)| flavor.to_string());
        Identity { mode: config.mode.as_str().to_owned(), flavor: flavor.unwrap_or_default() }
    }
}

/// The iptables dataplanes. The node is prepared for them once it is known that it can run them.
///
/// # Errors
/// If the primary family cannot run, or a setting of the kernel cannot be made; says why.
pub(super) async fn iptables(
    config: &Config,
    node: &NodeFacts,
    metrics: &Arc<Metrics>,
) -> Result<Dataplanes> {
    let usable = usable_families(config, node, WhenLocked::Wait).await?;
    conntrack::set_limits(&config.conntrack)?;
    let monitor = monitor(config, usable.iter().map(|(_, tools)| tools.flavor()));
    let mut planes = Dataplanes::none();
    for (family, tools) in usable {
        let tools = watched(tools, monitor.as_ref());
        let settings = settings(config, family, node);
        iptables::prepare(&settings)?;
        let features = iptables::Features {
            tree_threshold: usize::try_from(config.iptables.dispatch_tree_threshold)?,
            ..iptables::features(config.iptables.masquerade_bit, tools.version())
        };
        let flavor = tools.flavor();
        let mut backend = Iptables::new(tools, family, features).detecting(drift_detection(config));
        if let Some(measuring) = measuring(config, family, metrics) {
            backend = backend.measuring(measuring);
        }
        planes.add(backend, settings, (config, flavor));
    }
    Ok(planes)
}

/// The same, only to be looked at: nothing is set on the node.
pub(super) async fn iptables_to_look_at(config: &Config, node: &NodeFacts) -> Result<Dataplanes> {
    let mut planes = Dataplanes::none();
    for (family, tools) in usable_families(config, node, WhenLocked::Fail).await? {
        let features = iptables::features(config.iptables.masquerade_bit, tools.version());
        let flavor = tools.flavor();
        planes.add(Iptables::new(tools, family, features), settings(config, family, node), (config, flavor));
    }
    Ok(planes)
}

/// The IPVS dataplanes. The node is prepared for them once it is known that it can run them.
///
/// # Errors
/// If the kernel lacks IPVS or a setting of it, or if the primary family cannot run; says why.
pub(super) async fn ipvs(config: &Config, node: &NodeFacts, metrics: &Arc<Metrics>) -> Result<Dataplanes> {
    let families = ipvs_families(config, node, WhenLocked::Wait).await?;
    let monitor = monitor(config, families.iter().map(|family| family.tools.flavor()));
    let mut planes = Dataplanes::none();
    for IpvsFamily { settings, tools, features } in families {
        let tools = watched(tools, monitor.as_ref());
        let mut kernel = ipvs::Kernel::open()?;
        kernel.servers = Box::new(Counted::new(kernel.servers, metrics.clone()));
        let services = usize::try_from(config.ipvs.connection_metrics)?;
        let flavor = tools.flavor();
        let mut backend = Ipvs::new(tools, kernel, settings.family, features)
            .detecting(drift_detection(config))
            .counting(ipvs_metrics::show(metrics.clone()), services);
        if let Some(measuring) = measuring(config, settings.family, metrics) {
            backend = backend.measuring(measuring);
        }
        backend.probe()?;
        planes.add(backend, settings, (config, flavor));
    }
    conntrack::set_limits(&config.conntrack)?;
    let timeouts = Timeouts {
        tcp: config.ipvs.tcp_timeout,
        tcp_fin: config.ipvs.tcp_fin_timeout,
        udp: config.ipvs.udp_timeout,
    };
    ipvs::prepare(&mut ipvs::Kernel::open()?, config.ipvs.strict_arp, &timeouts)?;
    Ok(planes)
}

/// The same, only to be looked at: nothing is set on the node.
pub(super) async fn ipvs_to_look_at(config: &Config, node: &NodeFacts) -> Result<Dataplanes> {
    let mut planes = Dataplanes::none();
    for IpvsFamily { settings, tools, features } in ipvs_families(config, node, WhenLocked::Fail).await? {
        let flavor = tools.flavor();
        let backend = Ipvs::new(tools, ipvs::Kernel::open()?, settings.family, features);
        planes.add(backend, settings, (config, flavor));
    }
    Ok(planes)
}

fn drift_detection(config: &Config) -> DriftDetection {
    match config.drift_detection {
        config::DriftDetection::Events => DriftDetection::Events,
        config::DriftDetection::Poll => DriftDetection::Poll,
        config::DriftDetection::Off => DriftDetection::Off,
    }
}

/// One for all families, if the kernel is to tell what others write to nf_tables and any of our rules are there:
/// listening costs those who write there.
fn monitor(config: &Config, mut flavors: impl Iterator<Item = tools::Flavor>) -> Option<Rc<Monitor>> {
    let is_wanted = config.drift_detection == config::DriftDetection::Events
        && flavors.any(|flavor| flavor == tools::Flavor::Nft);
    let opened = is_wanted.then(Monitor::open)?;
    opened
        .inspect_err(|error| {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                "nf_tables does not tell of changes: rules are listed once in a sync period"
            );
        })
        .ok()
}

fn watched(tools: Tools, monitor: Option<&Rc<Monitor>>) -> Tools {
    match monitor {
        Some(monitor) => tools.with_monitor(monitor.clone()),
        None => tools,
    }
}

/// What an IPVS dataplane of one family is made of.
struct IpvsFamily {
    settings: FamilySettings,
    tools: Tools,
    features: ipvs::Features,
}

async fn ipvs_families(
    config: &Config,
    node: &NodeFacts,
    when_locked: WhenLocked,
) -> Result<Vec<IpvsFamily>> {
    let scheduler = scheduler(config)?;
    let of_family = |(family, tools): (IpFamily, Tools)| {
        let settings = settings(config, family, node);
        let features = ipvs_features(config, family, scheduler.clone(), tools.version());
        IpvsFamily { settings, tools, features }
    };
    Ok(usable_families(config, node, when_locked).await?.into_iter().map(of_family).collect())
}

/// By what the virtual servers that IPVS mode left are told from others: by the sets that name them, in
/// either of its ways.
pub(super) fn leftover_features(config: &Config, family: IpFamily) -> ipvs::Features {
    let (scheduler, version) = (IpvsScheduler::as_upstream("rr"), tools::Version::RANDOM_FULLY);
    ipvs::Features { upstream_compat: false, ..ipvs_features(config, family, scheduler, version) }
}

/// What IPVS mode does on this node, as configured.
pub(super) fn ipvs_features(
    config: &Config,
    family: IpFamily,
    scheduler: IpvsScheduler,
    tools: tools::Version,
) -> ipvs::Features {
    let exclude = config.ipvs.exclude_cidrs.iter().copied();
    ipvs::Features {
        masquerade_mark: 1 << u32::from(config.iptables.masquerade_bit),
        random_fully: tools >= tools::Version::RANDOM_FULLY,
        scheduler,
        exclude: exclude.filter(|cidr| IpFamily::of_cidr(cidr) == family).collect(),
        upstream_compat: config.ipvs.upstream_compat,
        node_name: config.node_name.as_str().into(),
    }
}

/// The scheduler of Services that ask for none.
pub(super) fn scheduler(config: &Config) -> Result<IpvsScheduler> {
    let name = &config.ipvs.scheduler;
    if config.ipvs.upstream_compat {
        return Ok(IpvsScheduler::as_upstream(name));
    }
    let known = || format!("{}, sh-port, mh-port", IpvsScheduler::KNOWN.join(", "));
    IpvsScheduler::parse(name).with_context(|| format!("--ipvs-scheduler {name} is none of {}", known()))
}

/// The families that this node can run, the primary one first, with their tools.
async fn usable_families(
    config: &Config,
    node: &NodeFacts,
    when_locked: WhenLocked,
) -> Result<Vec<(IpFamily, Tools)>> {
    let (ips, mut usable) = (NodeIps::of(config, node), Vec::new());
    for family in [ips.primary, ips.primary.other()] {
        let tools = match when_locked {
            WhenLocked::Wait => usable_tools_in_time(config, family).await,
            WhenLocked::Fail => usable_tools(config, family).await,
        };
        match tools {
            Ok(tools) => {
                tracing::info!(%family, flavor = %tools.flavor(), version = %tools.version(), "using iptables");
                usable.push((family, tools));
            }
            Err(error) if family == ips.primary => {
                return Err(error.context(format!("no support for primary IP family {family}")));
            }
            Err(error) => {
                tracing::warn!(%family, error = format!("{error:#}"), "serving one IP family only");
            }
        }
    }
    consistency::check(config, node, &ips, usable.len() > 1)?;
    Ok(usable)
}

/// Tools of the family that work here. The lock of the legacy tables says nothing about whether they work, so it is
/// waited for.
async fn usable_tools_in_time(config: &Config, family: IpFamily) -> Result<Tools> {
    let mut waits_for = None;
    loop {
        let error = match usable_tools(config, family).await {
            Err(error) => error,
            usable => return usable,
        };
        let Some(held) = error.downcast_ref::<tools::LockHeld>() else { return Err(error) };
        if waits_for.as_ref() != Some(held) {
            tracing::warn!(%family, "waiting: {held}");
            waits_for = Some(held.clone());
        }
        sleep(LOCK_RETRY).await;
    }
}

/// Tools of the family that work here.
pub(super) async fn usable_tools(config: &Config, family: IpFamily) -> Result<Tools> {
    let flavor = match config.iptables.flavor {
        Flavor::Auto => None,
        Flavor::Nft => Some(tools::Flavor::Nft),
        Flavor::Legacy => Some(tools::Flavor::Legacy),
    };
    let found = tools::find(family, flavor).await;
    let tools = match flavor {
        None => found,
        Some(flavor) => found.with_context(|| format!("--iptables-flavor={flavor}")),
    }?;
    if family == IpFamily::V6 && !ipv6_enabled() {
        bail!("IPv6 is switched off on this host");
    }
    tools.check_nat_table().await.with_context(|| format!("iptables for {family} does not work"))?;
    Ok(tools)
}

fn ipv6_enabled() -> bool {
    let disabled = Sysctls::default().read("net/ipv6/conf/all/disable_ipv6");
    disabled.is_ok_and(|value| value.trim() != "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Config {
        let line = crate::config::parse(flags.iter().copied()).unwrap();
        crate::config::resolve(&line, None, "node-0").unwrap().config
    }

    fn node() -> NodeFacts {
        NodeFacts {
            is_known: true,
            addresses: ["10.200.0.11".parse().unwrap(), "fd00:200::11".parse().unwrap()].into(),
            pod_cidrs: ["10.128.0.0/24".parse().unwrap(), "fd00:128::/64".parse().unwrap()].into(),
            ..NodeFacts::default()
        }
    }

    fn settled(flags: &[&str], family: IpFamily) -> FamilySettings {
        let config = config(flags);
        settings(&config, family, &node())
    }

    #[test]
    fn the_bind_address_goes_before_the_nodes() {
        let ips = NodeIps::of(&config(&["--bind-address=fd00::1"]), &node());
        assert_eq!(ips.primary, IpFamily::V6);
        assert_eq!(ips.ips.v6, Some("fd00::1".parse().unwrap()));
        assert_eq!(ips.ips.v4, Some("10.200.0.11".parse().unwrap()));
    }

    #[test]
    fn primary_means_the_nodes_own_addresses() {
        let settings = settled(&["--nodeport-addresses=primary"], IpFamily::V6);
        let only: Cidr = "fd00:200::11/128".parse().unwrap();
        assert_eq!(settings.node_port_addresses, NodePortAddresses::Within(vec![only]));
    }

    #[test]
    fn an_address_given_by_flag_stays_whatever_the_node_says() {
        let config = config(&["--nodeport-addresses=primary", "--bind-address=10.200.0.99"]);
        let mut moved = node();
        moved.addresses = ["10.200.0.12".parse().unwrap(), "fd00:200::12".parse().unwrap()].into();
        let of = |node: &NodeFacts| IpFamily::ALL.map(|family| settings(&config, family, node).node_ip);
        let ips = |texts: [&str; 2]| texts.map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(of(&node()), ips(["10.200.0.99", "fd00:200::11"]));
        assert_eq!(of(&moved), ips(["10.200.0.99", "fd00:200::12"]));
        let only: Cidr = "10.200.0.99/32".parse().unwrap();
        let within = settings(&config, IpFamily::V4, &moved).node_port_addresses;
        assert_eq!(within, NodePortAddresses::Within(vec![only]));
    }

    #[test]
    fn localhost_node_ports_need_ipv4_and_a_loopback_among_the_addresses() {
        assert!(settled(&[], IpFamily::V4).localhost_node_ports);
        assert!(!settled(&[], IpFamily::V6).localhost_node_ports);
        assert!(!settled(&["--nodeport-addresses=10.0.0.0/8"], IpFamily::V4).localhost_node_ports);
        assert!(!settled(&["--iptables-localhost-nodeports=false"], IpFamily::V4).localhost_node_ports);
        assert!(!settled(&["--proxy-mode=ipvs"], IpFamily::V4).localhost_node_ports);
    }

    #[test]
    fn external_ips_can_be_switched_off() {
        assert!(settled(&[], IpFamily::V4).external_ips);
        assert!(!settled(&["--feature-gates=AllowServiceExternalIPs=false"], IpFamily::V4).external_ips);
    }

    #[test]
    fn each_family_is_detected_by_its_own_network() {
        let flags = ["--detect-local-mode=NodeCIDR"];
        let cidr = |text: &str| Some(LocalDetector::Cidr(text.parse().unwrap()));
        assert_eq!(settled(&flags, IpFamily::V4).detector, cidr("10.128.0.0/24"));
        assert_eq!(settled(&flags, IpFamily::V6).detector, cidr("fd00:128::/64"));
        assert_eq!(settled(&["--cluster-cidr=10.0.0.0/8"], IpFamily::V6).detector, None);
    }
}

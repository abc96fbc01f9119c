//! The dataplanes of this node's IP families, and what their plans are made of.

use super::{conntrack, consistency};
use crate::backend::{self, Dataplane, Opening};
use crate::config::{Config, DetectLocal, NodePortAddressesSetting};
use crate::kernel::addresses::{node_addresses, reading_when_changed};
use crate::kernel::iptables::Flavor;
use crate::metrics::Metrics;
use crate::model::{Cidr, IpFamily, NodeFacts, PerFamily, ServiceLimits, Snapshot};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses};
use crate::state::Reserved;
use crate::sync::{FamilySync, Identity};
use anyhow::Result;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

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
    settings.service_cidrs = service_cidrs(config, family, std::iter::empty());
    if let Some(ip) = ips.ips.get(family) {
        settings.node_ip = *ip;
    }
    settings.node_port_addresses = node_port_addresses(config, family, &ips);
    settings.localhost_node_ports = config.iptables.localhost_node_ports
        && backend::open(config.mode).facts().localhost_node_ports
        && family == IpFamily::V4
        && settings.node_port_addresses.includes_v4_loopback();
    settings
}

/// How much of one Service is programmed.
pub(super) fn limits(config: &Config) -> ServiceLimits {
    ServiceLimits { by_address: backend::open(config.mode).facts().by_address, ..config.service_limits }
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
        takes_whole_addresses: backend::open(config.mode).facts().by_address,
    }
}

/// The configured networks of cluster IPs, and those that the source told of.
fn service_cidrs(config: &Config, family: IpFamily, told: impl Iterator<Item = Cidr>) -> Vec<Cidr> {
    let all = config.external_ips.service_cidrs.iter().copied().chain(told);
    let of_family: BTreeSet<Cidr> = all.filter(|cidr| IpFamily::of_cidr(cidr) == family).collect();
    of_family.into_iter().collect()
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
        NodePortAddressesSetting::All => NodePortAddresses::All,
        NodePortAddressesSetting::Cidrs(cidrs) => NodePortAddresses::of_family(cidrs, family),
        NodePortAddressesSetting::Primary => NodePortAddresses::of_family(&ips.own_networks(), family),
    }
}

/// The dataplanes of the families that this node can run, the primary one first.
pub(super) struct Dataplanes {
    pub(super) families: Vec<FamilySync>,
    /// The flavour of the iptables tools of each family that writes with them.
    pub(super) flavors: Vec<(IpFamily, Flavor)>,
}

impl Dataplanes {
    /// Opens them to program the kernel. The node is prepared for them once it is known that it can run them.
    ///
    /// # Errors
    /// If the kernel lacks what the mode needs, if the primary family cannot run, or if a setting of the kernel cannot
    /// be made; says why.
    pub(super) async fn open(config: &Config, node: &NodeFacts, metrics: &Arc<Metrics>) -> Result<Self> {
        let mode = backend::open(config.mode);
        mode.probe(config)?;
        let usable = usable_families(config, node, &Opening::to_run(config, metrics)).await?;
        conntrack::set_limits(&config.conntrack)?;
        usable.iter().try_for_each(|(settings, _)| mode.prepare(config, settings))?;
        Ok(Dataplanes::new(config, usable))
    }

    /// The same, only to be looked at: nothing is set on the node.
    ///
    /// # Errors
    /// If the primary family cannot run; says why.
    pub(super) async fn open_to_inspect(config: &Config, node: &NodeFacts) -> Result<Self> {
        Ok(Dataplanes::new(config, usable_families(config, node, &Opening::to_inspect(config)).await?))
    }

    fn new(config: &Config, usable: Vec<UsableFamily>) -> Self {
        let flavors = usable.iter().filter_map(|(settings, it)| Some((settings.family, it.flavor()?)));
        let flavors = flavors.collect();
        let family_sync = |(settings, dataplane): UsableFamily| {
            let (family, config) = (settings.family, config.clone());
            let make_settings = Box::new(move |snapshot: &Snapshot| {
                let told = snapshot.service_cidrs.iter().copied();
                let settings = self::settings(&config, family, &snapshot.node);
                FamilySettings { service_cidrs: service_cidrs(&config, family, told), ..settings }
            });
            FamilySync::new(dataplane, settings, Box::new(reading_when_changed(node_addresses)))
                .following(make_settings)
        };
        Dataplanes { families: usable.into_iter().map(family_sync).collect(), flavors }
    }

    /// What is told to those who ask.
    pub(super) fn identity(&self, config: &Config) -> Identity {
        let flavor = self.flavors.first().map(|(_, flavor)| flavor.to_string());
        Identity { mode: config.mode.as_str().to_owned(), flavor: flavor.unwrap_or_default() }
    }
}

type UsableFamily = (FamilySettings, Box<dyn Dataplane>);

/// The families that this node can run, the primary one first.
async fn usable_families(
    config: &Config,
    node: &NodeFacts,
    opening: &Opening<'_>,
) -> Result<Vec<UsableFamily>> {
    let (mode, ips, mut usable) = (backend::open(config.mode), NodeIps::of(config, node), Vec::new());
    for family in [ips.primary, ips.primary.other()] {
        let settings = settings(config, family, node);
        match mode.dataplane(opening, &settings).await {
            Ok(dataplane) => usable.push((settings, dataplane)),
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

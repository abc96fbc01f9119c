//! What holds for each IP family of this node: settled once, before the first rule.

use crate::backend::iptables::{self, Iptables};
use crate::config::{Config, DetectLocal, Flavor, NodePortAddresses as ConfiguredAddresses};
use crate::kernel::iptables::{self as tools, Tools, Xtables};
use crate::kernel::sysctl::Sysctls;
use crate::model::{Cidr, IpFamily, NodeFacts, PerFamily};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses};
use crate::sync::FamilySync;
use anyhow::{Context, Result, bail};
use std::net::IpAddr;

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
}

/// The settings of a family, from configuration and node.
pub(super) fn settings(config: &Config, family: IpFamily, node: &NodeFacts, ips: &NodeIps) -> FamilySettings {
    let mut settings = FamilySettings::new(family);
    settings.detector = detector(&config.detect_local, family, node);
    settings.masquerade_all = config.iptables.masquerade_all;
    if let Some(ip) = ips.ips.get(family) {
        settings.node_ip = *ip;
    }
    settings.node_port_addresses = node_port_addresses(config, family, ips);
    settings.localhost_node_ports = config.iptables.localhost_node_ports
        && family == IpFamily::V4
        && settings.node_port_addresses.includes_v4_loopback();
    settings
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
        ConfiguredAddresses::Primary => {
            let known = IpFamily::ALL.into_iter().filter_map(|family| *ips.ips.get(family));
            let cidrs: Vec<Cidr> = known.filter(|ip| !ip.is_loopback()).map(Cidr::from).collect();
            NodePortAddresses::of_family(&cidrs, family)
        }
    }
}

/// The dataplanes of all families that this node can run.
///
/// # Errors
/// If the primary family cannot run; says why.
pub(super) async fn iptables(config: &Config, node: &NodeFacts) -> Result<Vec<FamilySync<Iptables<Tools>>>> {
    let ips = NodeIps::of(config, node);
    let mut families = Vec::new();
    for family in [ips.primary, ips.primary.other()] {
        match usable_tools(config, family).await {
            Ok(tools) => {
                tracing::info!(%family, flavor = %tools.flavor(), version = %tools.version(), "using iptables");
                let settings = settings(config, family, node, &ips);
                let features = iptables::Features {
                    tree_threshold: usize::try_from(config.iptables.dispatch_tree_threshold)?,
                    ..iptables::features(&settings, config.iptables.masquerade_bit, tools.version())?
                };
                families.push(FamilySync::new(Iptables::new(tools, features), settings));
            }
            Err(error) if family == ips.primary => {
                return Err(error.context(format!("no support for primary IP family {family}")));
            }
            Err(error) => {
                tracing::warn!(%family, error = format!("{error:#}"), "serving one IP family only");
            }
        }
    }
    Ok(families)
}

/// Tools of the family that work here.
pub(super) async fn usable_tools(config: &Config, family: IpFamily) -> Result<Tools> {
    let flavor = match config.iptables.flavor {
        Flavor::Auto => None,
        Flavor::Nft => Some(tools::Flavor::Nft),
        Flavor::Legacy => Some(tools::Flavor::Legacy),
    };
    let tools = tools::find(family, flavor).await?;
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
            addresses: ["10.200.0.11".parse().unwrap(), "fd00:200::11".parse().unwrap()].into(),
            pod_cidrs: ["10.128.0.0/24".parse().unwrap(), "fd00:128::/64".parse().unwrap()].into(),
            ..NodeFacts::default()
        }
    }

    fn settled(flags: &[&str], family: IpFamily) -> FamilySettings {
        let config = config(flags);
        settings(&config, family, &node(), &NodeIps::of(&config, &node()))
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
    fn localhost_node_ports_need_ipv4_and_a_loopback_among_the_addresses() {
        assert!(settled(&[], IpFamily::V4).localhost_node_ports);
        assert!(!settled(&[], IpFamily::V6).localhost_node_ports);
        assert!(!settled(&["--nodeport-addresses=10.0.0.0/8"], IpFamily::V4).localhost_node_ports);
        assert!(!settled(&["--iptables-localhost-nodeports=false"], IpFamily::V4).localhost_node_ports);
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

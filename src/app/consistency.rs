//! Settings that do not fit the IP families of this node: said at start, most of them harmless.

use super::dataplanes::NodeIps;
use crate::config::{Config, DetectLocal, NodePortAddressesSetting};
use crate::model::{Cidr, IpFamily, NodeFacts};
use anyhow::{Result, bail};
use std::net::SocketAddr;

/// Something about the configuration that is probably not meant so.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Doubt {
    /// In a sentence, with the setting's name.
    text: String,
    /// Rules made with this setting would be wrong.
    is_fatal: bool,
}

/// Says what is doubtful about the configuration.
///
/// # Errors
/// When rules made with it would be wrong.
pub(super) fn check(config: &Config, node: &NodeFacts, ips: &NodeIps, is_dual_stack: bool) -> Result<()> {
    let doubts = doubts(config, node, ips, is_dual_stack).into_iter();
    let (fatal, harmless): (Vec<_>, Vec<_>) = doubts.partition(|doubt| doubt.is_fatal);
    for doubt in harmless {
        tracing::warn!("{}", doubt.text);
    }
    match fatal.into_iter().next() {
        Some(doubt) => bail!("{}", doubt.text),
        None => Ok(()),
    }
}

/// All doubts (kube-proxy's, with kube-proxy's idea of which are fatal).
fn doubts(config: &Config, node: &NodeFacts, ips: &NodeIps, is_dual_stack: bool) -> Vec<Doubt> {
    let mut doubts: Vec<Doubt> = node_ports(config, node, ips).into_iter().collect();
    doubts.extend(wrong_networks(config, node, ips.primary, is_dual_stack));
    if !is_dual_stack {
        doubts.extend(unreachable_servers(config, ips.primary));
    }
    doubts
}

fn harmless(text: String) -> Doubt {
    Doubt { text, is_fatal: false }
}

fn cluster_cidrs(config: &Config) -> Vec<Cidr> {
    match &config.detect_local {
        DetectLocal::ClusterCidr(cidrs) => {
            IpFamily::ALL.into_iter().filter_map(|it| *cidrs.get(it)).collect()
        }
        _ => Vec::new(),
    }
}

fn has(cidrs: &[Cidr], family: IpFamily) -> bool {
    cidrs.iter().any(|cidr| IpFamily::of_cidr(cidr) == family)
}

/// None that could serve the primary family, though there are some.
fn only_other(cidrs: &[Cidr], primary: IpFamily) -> bool {
    !cidrs.is_empty() && !has(cidrs, primary)
}

/// Node ports that answer where the operator does not expect it.
fn node_ports(config: &Config, node: &NodeFacts, ips: &NodeIps) -> Option<Doubt> {
    let (primary, other) = (ips.primary, ips.primary.other());
    let limits = match &config.node_ports.addresses {
        NodePortAddressesSetting::All => {
            let text = "nodePortAddresses (--nodeport-addresses) is not set: node ports answer on all addresses \
                        of this node; primary limits them to its own IPs";
            return Some(harmless(text.to_owned()));
        }
        NodePortAddressesSetting::Primary => ips.own_networks(),
        NodePortAddressesSetting::Cidrs(cidrs) => cidrs.clone(),
    };
    let open = |family| format!("so node ports answer on all {family} addresses of this node");
    if !has(&limits, primary) {
        let text =
            format!("nodePortAddresses has no network of the primary family {primary}, {}", open(primary));
        return Some(harmless(text));
    }
    let settings = [&cluster_cidrs(config), &config.ipvs.exclude_cidrs, &node.pod_cidrs.to_vec()];
    let looks_dual_stack = settings.into_iter().any(|cidrs| has(cidrs, primary) && has(cidrs, other));
    (looks_dual_stack && !has(&limits, other)).then(|| {
        let text = format!(
            "the cluster looks dual-stack, but nodePortAddresses has no {other} network, {}",
            open(other)
        );
        harmless(text)
    })
}

/// Networks that are all of the family which is not the primary one.
fn wrong_networks(config: &Config, node: &NodeFacts, primary: IpFamily, is_dual_stack: bool) -> Vec<Doubt> {
    let serves = if is_dual_stack { "has the primary family" } else { "serves only" };
    let text = |setting| {
        format!("this node {serves} {primary}, but {setting} has networks of {} only", primary.other())
    };
    let mut doubts = Vec::new();
    if only_other(&cluster_cidrs(config), primary) {
        doubts.push(Doubt { text: text("clusterCIDR (--cluster-cidr)"), is_fatal: !is_dual_stack });
    }
    if only_other(&node.pod_cidrs, primary) {
        let is_fatal = config.detect_local == DetectLocal::NodeCidr;
        doubts.push(Doubt { text: text("spec.podCIDRs of our Node"), is_fatal });
    }
    if !is_dual_stack && only_other(&config.ipvs.exclude_cidrs, primary) {
        doubts.push(harmless(text("ipvs.excludeCIDRs (--ipvs-exclude-cidrs)")));
    }
    doubts
}

/// Servers on addresses of a family that this node does not serve.
fn unreachable_servers(config: &Config, primary: IpFamily) -> Vec<Doubt> {
    let is_strange =
        |address: &SocketAddr| !address.ip().is_unspecified() && IpFamily::of(address.ip()) != primary;
    [("healthzBindAddress", config.healthz), ("metricsBindAddress", config.metrics)]
        .into_iter()
        .filter_map(|(setting, address)| Some((setting, address.filter(is_strange)?)))
        .map(|(setting, address)| {
            harmless(format!("this node serves only {primary}, but {setting} is {address}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITED: &str = "--nodeport-addresses=10.0.0.0/8";

    fn found(flags: &[&str], pod_cidrs: &[&str], is_dual_stack: bool) -> Vec<(String, bool)> {
        let line = crate::config::parse(flags.iter().copied()).unwrap();
        let config = crate::config::resolve(&line, None, "node-0").unwrap().config;
        let node = NodeFacts {
            is_known: true,
            addresses: ["10.200.0.11".parse().unwrap()].into(),
            pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..NodeFacts::default()
        };
        let doubts = doubts(&config, &node, &NodeIps::of(&config, &node), is_dual_stack);
        doubts.into_iter().map(|doubt| (doubt.text, doubt.is_fatal)).collect()
    }

    fn only(flags: &[&str], pod_cidrs: &[&str], is_dual_stack: bool) -> (String, bool) {
        let mut found = found(flags, pod_cidrs, is_dual_stack);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn settings_of_one_family_on_a_node_of_that_family_raise_no_doubt() {
        let flags = [LIMITED, "--cluster-cidr=10.128.0.0/14"];
        assert_eq!(found(&flags, &["10.128.0.0/24"], false), []);
        assert_eq!(found(&["--nodeport-addresses=primary"], &["10.128.0.0/24"], false), []);
    }

    #[test]
    fn node_ports_that_answer_everywhere_are_said() {
        assert!(only(&[], &[], true).0.contains("primary limits them"));
        let (text, is_fatal) = only(&["--nodeport-addresses=fd00::/8"], &[], true);
        assert!(text.contains("no network of the primary family IPv4") && !is_fatal, "{text}");
    }

    #[test]
    fn limits_of_one_family_in_a_cluster_of_two_are_said() {
        let both = "--cluster-cidr=10.128.0.0/14,fd00:128::/48";
        assert!(only(&[LIMITED, both], &[], true).0.contains("no IPv6 network"));
        assert!(only(&[LIMITED], &["10.128.0.0/24", "fd00:128::/64"], true).0.contains("no IPv6 network"));
        assert_eq!(found(&["--nodeport-addresses=10.0.0.0/8,fd00::/8", both], &[], true), []);
    }

    #[test]
    fn a_cluster_network_of_the_other_family_is_fatal_where_only_one_is_served() {
        let flags = [LIMITED, "--cluster-cidr=fd00:128::/48"];
        let (text, is_fatal) = only(&flags, &[], true);
        assert!(text.contains("clusterCIDR") && !is_fatal, "{text}");
        assert!(only(&flags, &[], false).1);
    }

    #[test]
    fn pod_networks_of_the_other_family_are_fatal_where_rules_are_made_of_them() {
        let pods = ["fd00:128::/64"];
        assert!(!only(&[LIMITED], &pods, true).1);
        assert!(only(&[LIMITED, "--detect-local-mode=NodeCIDR"], &pods, true).1);
    }

    #[test]
    fn servers_on_addresses_of_the_family_that_is_not_served_are_said() {
        let flags = [LIMITED, "--healthz-bind-address=[::]:10256", "--metrics-bind-address=[::1]:10249"];
        assert_eq!(found(&flags, &[], true), []);
        assert!(only(&flags, &[], false).0.contains("metricsBindAddress is [::1]:10249"));
        let excluded = [LIMITED, "--proxy-mode=ipvs", "--ipvs-exclude-cidrs=fd00:9::/64"];
        assert!(only(&excluded, &[], false).0.contains("excludeCIDRs"));
        assert_eq!(found(&excluded, &[], true), []);
    }
}

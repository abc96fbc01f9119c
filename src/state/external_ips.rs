//! External addresses that no Service should claim: whoever may write one would draw traffic to
//! himself that others mean for the node, for a pod or for another Service.

use crate::model::{Cidr, NodeFacts, Service, ServiceName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

/// What is known of the cluster's addresses beside Node and Services, and what follows from a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Addresses of this node, in addition to its Node object's.
    pub node_addresses: Vec<IpAddr>,
    /// The cluster's pod networks, in addition to this node's own.
    pub pod_cidrs: Vec<Cidr>,
    /// The networks that cluster IPs are given out from.
    pub service_cidrs: Vec<Cidr>,
    /// A claim is refused, not only reported.
    pub strict: bool,
}

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOwner {
    /// In 127.0.0.0/8, or ::1.
    Loopback,
    /// This node's.
    Node,
    /// The cluster IP of a Service.
    ClusterIp,
    /// In a network that cluster IPs are given out from.
    ServiceNetwork,
    /// In a pod network.
    PodNetwork,
}

/// A Service that asks for traffic to an address which is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalIpClaim {
    /// The Service.
    pub service: ServiceName,
    /// Where it says so: `spec.externalIPs` or `status.loadBalancer.ingress`.
    pub field: &'static str,
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub owner: AddressOwner,
    /// The Service goes without the address.
    pub refused: bool,
}

impl ExternalIpClaim {
    /// What is wrong, without the Service's name.
    #[must_use]
    pub fn complaint(&self) -> String {
        let whose = match self.owner {
            AddressOwner::Loopback => "a loopback address",
            AddressOwner::Node => "this node's own address",
            AddressOwner::ClusterIp => "a Service's cluster IP",
            AddressOwner::ServiceNetwork => "within the Service network",
            AddressOwner::PodNetwork => "within the pod network",
        };
        let outcome = if self.refused { "; it is not used" } else { "" };
        format!("{}: {} is {whose}{outcome}", self.field, self.address)
    }
}

impl fmt::Display for ExternalIpClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.complaint())
    }
}

/// All cluster IPs, and who asks for which external address.
#[derive(Debug, Default)]
pub(super) struct ExternalIps {
    pub(super) reserved: Reserved,
    /// How many Services have a cluster IP.
    cluster_ips: HashMap<IpAddr, u32>,
    askers: BTreeMap<IpAddr, BTreeSet<ServiceName>>,
    /// The claims that stand. All have been told.
    known: BTreeMap<ServiceName, Vec<ExternalIpClaim>>,
}

/// The external addresses of a Service, with their fields.
fn asked(service: &Service) -> impl Iterator<Item = (&'static str, IpAddr)> + '_ {
    service.external.iter().flat_map(|external| {
        let external_ips = external.external_ips.iter().map(|ip| ("spec.externalIPs", *ip));
        let balancers = external.load_balancer_ips.iter();
        external_ips.chain(balancers.map(|ip| ("status.loadBalancer.ingress", *ip)))
    })
}

fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    [service.cluster_ips.v4, service.cluster_ips.v6].into_iter().flatten()
}

impl ExternalIps {
    /// Puts a new state of a Service in the place of the old one. Returns the Services whose claims
    /// are to be judged again.
    pub(super) fn replace(&mut self, old: Option<&Service>, new: Option<&Service>) -> BTreeSet<ServiceName> {
        let mut affected = BTreeSet::new();
        if let Some(service) = old {
            for ip in cluster_ips(service) {
                let count = self.cluster_ips.entry(ip).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.cluster_ips.remove(&ip);
                }
            }
            for (_, ip) in asked(service) {
                let Some(askers) = self.askers.get_mut(&ip) else { continue };
                askers.remove(&service.name);
                if askers.is_empty() {
                    self.askers.remove(&ip);
                }
            }
        }
        if let Some(service) = new {
            cluster_ips(service).for_each(|ip| *self.cluster_ips.entry(ip).or_default() += 1);
            for (_, ip) in asked(service) {
                self.askers.entry(ip).or_default().insert(service.name.clone());
            }
        }
        for service in [old, new].into_iter().flatten() {
            let askers = cluster_ips(service).filter_map(|ip| self.askers.get(&ip));
            affected.extend(askers.flatten().cloned());
            if service.external.is_some() {
                affected.insert(service.name.clone());
            }
        }
        affected
    }

    /// The claims that stand, in the order of Services.
    pub(super) fn standing(&self) -> impl Iterator<Item = &ExternalIpClaim> {
        self.known.values().flatten()
    }

    /// The claims of one Service.
    pub(super) fn of(&self, name: &ServiceName) -> &[ExternalIpClaim] {
        self.known.get(name).map_or(&[], Vec::as_slice)
    }

    /// Every Service that asks for an external address.
    pub(super) fn all_askers(&self) -> BTreeSet<ServiceName> {
        self.askers.values().flatten().cloned().collect()
    }

    /// Judges a Service; `None` means that nothing changed since it was last judged.
    pub(super) fn judge(
        &mut self,
        name: &ServiceName,
        service: Option<&Service>,
        node: &NodeFacts,
    ) -> Option<Vec<ExternalIpClaim>> {
        let claims: Vec<ExternalIpClaim> =
            service.map_or_else(Vec::new, |service| self.claims(service, node));
        let known = self.known.get(name).map_or(&[][..], Vec::as_slice);
        if known == claims {
            return None;
        }
        match claims.is_empty() {
            true => self.known.remove(name),
            false => self.known.insert(name.clone(), claims.clone()),
        };
        Some(claims)
    }

    fn claims(&self, service: &Service, node: &NodeFacts) -> Vec<ExternalIpClaim> {
        let claim = |(field, address)| {
            Some(ExternalIpClaim {
                service: service.name.clone(),
                field,
                address,
                owner: self.owner(address, node)?,
                refused: self.reserved.strict,
            })
        };
        asked(service).filter_map(claim).collect()
    }

    fn owner(&self, address: IpAddr, node: &NodeFacts) -> Option<AddressOwner> {
        let within = |cidrs: &[Cidr]| cidrs.iter().any(|cidr| cidr.contains(&address));
        if address.is_loopback() {
            Some(AddressOwner::Loopback)
        } else if node.addresses.contains(&address) || self.reserved.node_addresses.contains(&address) {
            Some(AddressOwner::Node)
        } else if self.cluster_ips.contains_key(&address) {
            Some(AddressOwner::ClusterIp)
        } else if within(&self.reserved.service_cidrs) {
            Some(AddressOwner::ServiceNetwork)
        } else if within(&self.reserved.pod_cidrs) || within(&node.pod_cidrs) {
            Some(AddressOwner::PodNetwork)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{External, IpFamily, PerFamily, WatchEvent};
    use crate::state::{Disputes, Tracker};
    use rstest::rstest;
    use std::sync::Arc;

    fn service(name: &str, cluster_ip: [u8; 4], external_ips: &[&str], balancers: &[&str]) -> WatchEvent {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let external = External {
            external_ips: addresses(external_ips),
            load_balancer_ips: addresses(balancers),
            ..External::default()
        };
        WatchEvent::Service(Box::new(Service {
            name: ServiceName::new("shop", name),
            created: None,
            cluster_ips: PerFamily { v4: Some(cluster_ip.into()), v6: None },
            internal_traffic_policy: Default::default(),
            affinity_seconds: None,
            ipvs_scheduler: None,
            ports: [].into(),
            external: Some(Box::new(external)).filter(|it| **it != External::default()),
        }))
    }

    fn node(address: &str) -> WatchEvent {
        WatchEvent::Node(Arc::new(NodeFacts {
            addresses: [address.parse().unwrap()].into(),
            pod_cidrs: ["10.128.1.0/24".parse().unwrap()].into(),
            ..NodeFacts::default()
        }))
    }

    fn tracker(strict: bool) -> Tracker {
        Tracker::default().reserving(Reserved {
            node_addresses: vec!["192.0.2.99".parse().unwrap()],
            pod_cidrs: vec!["10.128.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            strict,
        })
    }

    fn texts(disputes: &Disputes) -> Vec<String> {
        disputes.claims.iter().map(ToString::to_string).collect()
    }

    fn refused(tracker: &Tracker, name: &str) -> Vec<String> {
        let record = &tracker.snapshot().services[&ServiceName::new("shop", name)];
        record.refused_external_ips.iter().map(ToString::to_string).collect()
    }

    #[rstest]
    #[case("127.0.0.2", Some("a loopback address"))]
    #[case("::1", Some("a loopback address"))]
    #[case("192.0.2.1", Some("this node's own address"))]
    #[case("192.0.2.99", Some("this node's own address"))]
    #[case("10.96.0.1", Some("a Service's cluster IP"))]
    #[case("10.96.7.7", Some("within the Service network"))]
    #[case("10.128.9.9", Some("within the pod network"))]
    #[case("10.128.1.9", Some("within the pod network"))]
    #[case("198.51.100.1", None)]
    fn an_external_address_that_is_somebody_elses_is_named(
        #[case] address: &str,
        #[case] whose: Option<&str>,
    ) {
        for (external_ips, balancers, field) in
            [(&[address][..], &[][..], "spec.externalIPs"), (&[], &[address], "status.loadBalancer.ingress")]
        {
            let mut tracker = tracker(false);
            tracker.fold(node("192.0.2.1"));
            tracker.fold(service("web", [10, 96, 0, 1], external_ips, balancers));
            let wanted: Vec<String> = whose
                .iter()
                .map(|whose| format!("Service shop/web: {field}: {address} is {whose}"))
                .collect();
            assert_eq!(texts(&tracker.take_disputes()), wanted);
            assert!(refused(&tracker, "web").is_empty(), "reported only");
        }
    }

    #[test]
    fn strictness_refuses_the_address_and_leaves_the_others() {
        let mut tracker = tracker(true);
        tracker.fold(service("web", [10, 96, 0, 1], &["10.128.0.9", "198.51.100.1"], &[]));
        let text = "Service shop/web: spec.externalIPs: 10.128.0.9 is within the pod network; it is not used";
        assert_eq!(texts(&tracker.take_disputes()), [text]);
        assert_eq!(refused(&tracker, "web"), ["10.128.0.9"]);
    }

    #[test]
    fn a_cluster_ip_given_out_later_makes_the_claim_and_its_end_unmakes_it() {
        let mut tracker = tracker(true);
        tracker.fold(service("thief", [10, 96, 0, 1], &["172.30.0.7"], &[]));
        assert!(tracker.take_disputes().claims.is_empty());
        tracker.fold(service("bank", [172, 30, 0, 7], &[], &[]));
        let changes = tracker.take_changes(IpFamily::V4);
        let names: Vec<&str> = changes.services.iter().map(ServiceName::as_str).collect();
        assert_eq!((names, tracker.take_disputes().claims.len()), (vec!["shop/bank", "shop/thief"], 1));
        assert_eq!(refused(&tracker, "thief"), ["172.30.0.7"]);

        tracker.fold(WatchEvent::ServiceGone(ServiceName::new("shop", "bank")));
        let thief = ServiceName::new("shop", "thief");
        assert!(tracker.take_changes(IpFamily::V4).services.contains(&thief), "it gets its address back");
        assert!(refused(&tracker, "thief").is_empty());
    }

    #[test]
    fn a_node_that_gets_the_address_makes_the_claim() {
        let mut tracker = tracker(true);
        tracker.fold(service("web", [10, 96, 0, 1], &[], &["192.0.2.1"]));
        assert!(tracker.take_disputes().claims.is_empty());
        tracker.fold(node("192.0.2.1"));
        assert_eq!(refused(&tracker, "web"), ["192.0.2.1"]);
    }

    #[test]
    fn the_same_claim_is_told_once() {
        let mut tracker = tracker(false);
        tracker.fold(service("web", [10, 96, 0, 1], &["10.128.0.9"], &[]));
        assert_eq!(tracker.take_disputes().claims.len(), 1);
        tracker.fold(service("web", [10, 96, 0, 2], &["10.128.0.9"], &[]));
        tracker.fold(node("192.0.2.1"));
        assert!(tracker.take_disputes().claims.is_empty());
    }
}

//! How much of one Service is programmed at most: a user who may write one must not stop the node's other Services.

use super::{IpFamily, PerFamily, Service, ServiceRecord};
use std::fmt;

/// Rules of a Service port besides those of its addresses, source ranges and endpoints, at most.
const FIXED_RULES: usize = 12;
/// In IPVS mode, where an endpoint stands once for each address, this many addresses count as one.
const ADDRESSES: usize = 10;

/// Bounds of one Service. What lies over them is left out and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Endpoints of a family, each counted once per port.
    pub endpoints: usize,
    /// Ports.
    pub ports: usize,
    /// External and load-balancer IPs.
    pub external_ips: usize,
    /// Source ranges of a family.
    pub source_ranges: usize,
    /// Rules, besides those of endpoints.
    pub rules: usize,
    /// An endpoint and a source range stand once for each address (IPVS).
    pub by_address: bool,
}

impl ServiceLimits {
    /// Without any.
    pub const NONE: ServiceLimits = ServiceLimits {
        endpoints: usize::MAX,
        ports: usize::MAX,
        external_ips: usize::MAX,
        source_ranges: usize::MAX,
        rules: usize::MAX,
        by_address: false,
    };

    /// Leaves out of a Service what is over the bounds: the last of each list. Says what it was.
    pub fn cut(&self, service: &mut Service) -> Vec<Excess> {
        let mut found = Vec::new();
        let mut cut = |bound, excess: Option<(usize, usize)>| {
            found.extend(excess.map(|(wanted, most)| Excess { bound, wanted, most }));
        };
        cut(Bound::ExternalIps, self.cut_external_ips(service));
        cut(Bound::SourceRanges, self.cut_source_ranges(service));
        cut(Bound::Ports, keep(&mut service.ports, self.ports));
        cut(Bound::Rules, self.cut_rules(service));
        found
    }

    /// Load-balancer IPs count first: not every user may write those.
    fn cut_external_ips(&self, service: &mut Service) -> Option<(usize, usize)> {
        let external = service.external.as_deref_mut()?;
        let wanted = external.load_balancer_ips.len() + external.external_ips.len();
        keep(&mut external.load_balancer_ips, self.external_ips);
        let left = self.external_ips - external.load_balancer_ips.len();
        keep(&mut external.external_ips, left);
        (wanted > self.external_ips).then_some((wanted, self.external_ips))
    }

    /// By family: a family that is left without a range would be open to all.
    fn cut_source_ranges(&self, service: &mut Service) -> Option<(usize, usize)> {
        let external = service.external.as_deref_mut()?;
        let most = self.source_ranges.max(1);
        let mut counts = PerFamily { v4: 0_usize, v6: 0 };
        let mut kept = Vec::new();
        for range in &external.source_ranges {
            let count = counts.get_mut(IpFamily::of_cidr(range));
            *count += 1;
            if *count <= most {
                kept.push(*range);
            }
        }
        let wanted = counts.v4.max(counts.v6);
        if wanted <= most {
            return None;
        }
        external.source_ranges = kept.into();
        Some((wanted, most))
    }

    /// All ports have the same addresses and source ranges, so it is ports that are left out.
    fn cut_rules(&self, service: &mut Service) -> Option<(usize, usize)> {
        let of_port = self.rules_of_port(service);
        let wanted = of_port.saturating_mul(service.ports.len());
        if wanted <= self.rules {
            return None;
        }
        keep(&mut service.ports, (self.rules / of_port).max(1)).map(|_| (wanted, self.rules))
    }

    /// Rules, or entries of sets and virtual servers, of a port besides those of endpoints, at most.
    fn rules_of_port(&self, service: &Service) -> usize {
        let external = service.external.as_deref();
        let (ips, balancers, ranges) = external.map_or((0, 0, 0), |it| {
            (it.external_ips.len(), it.load_balancer_ips.len(), it.source_ranges.len())
        });
        let ranges = match balancers {
            0 => 0,
            balancers if self.by_address => ranges * balancers,
            _ => ranges,
        };
        FIXED_RULES + 2 * ips + 5 * balancers + ranges
    }

    /// How many endpoints each port of a Service has at most, if its slices have too many for all to be used.
    #[must_use]
    pub fn share(&self, record: &ServiceRecord, family: IpFamily) -> Option<usize> {
        let service = record.service.as_deref()?;
        let times = self.times(service);
        if endpoints(record, family).saturating_mul(times) <= self.endpoints {
            return None;
        }
        Some((self.endpoints / times / service.ports.len().max(1)).max(1))
    }

    /// What is to be said if they have.
    #[must_use]
    pub fn too_many_endpoints(&self, record: &ServiceRecord) -> Option<Excess> {
        let of_family = |family: &IpFamily| self.share(record, *family);
        let family = IpFamily::ALL.into_iter().find(|family| of_family(family).is_some())?;
        let share = self.share(record, family)?;
        let bound = Bound::Endpoints { share };
        Some(Excess { bound, wanted: endpoints(record, family), most: self.endpoints })
    }

    /// How often an endpoint counts for a port.
    fn times(&self, service: &Service) -> usize {
        if !self.by_address {
            return 1;
        }
        let external = service.external.as_deref();
        // With the cluster IP and the node port.
        let addresses =
            2 + external.map_or(0, |external| external.external_ips.len() + external.load_balancer_ips.len());
        addresses.div_ceil(ADDRESSES)
    }
}

/// How many endpoints a record's slices have, once per port.
fn endpoints(record: &ServiceRecord, family: IpFamily) -> usize {
    let of_family = record.slices.iter().filter(|slice| slice.family == family);
    of_family.map(|slice| slice.endpoints.len() * slice.ports.len()).sum()
}

/// Keeps the first of a list; if it was longer, says how long and what the bound is.
fn keep<T>(list: &mut Box<[T]>, most: usize) -> Option<(usize, usize)> {
    let wanted = list.len();
    if wanted <= most {
        return None;
    }
    let mut all = std::mem::take(list).into_vec();
    all.truncate(most);
    *list = all.into();
    Some((wanted, most))
}

/// What there can be too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Endpoints.
    Endpoints {
        /// How many each port keeps.
        share: usize,
    },
    /// Ports.
    Ports,
    /// External and load-balancer IPs.
    ExternalIps,
    /// Source ranges.
    SourceRanges,
    /// Rules.
    Rules,
}

/// Something of a Service that is over a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Which bound.
    pub bound: Bound,
    /// How much the Service asks for.
    pub wanted: usize,
    /// The bound.
    pub most: usize,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Excess { bound, wanted, most } = self;
        let (what, flag) = match bound {
            Bound::Endpoints { .. } => ("endpoints of its slices, counted once per port", "endpoints"),
            Bound::Ports => ("ports in spec.ports", "ports"),
            Bound::ExternalIps => {
                ("addresses in status.loadBalancer.ingress and spec.externalIPs", "external-ips")
            }
            Bound::SourceRanges => ("ranges in spec.loadBalancerSourceRanges", "source-ranges"),
            Bound::Rules => ("rules for its ports, addresses and source ranges", "rules"),
        };
        write!(f, "{wanted} {what}, over --max-service-{flag}={most}; ")?;
        match bound {
            Bound::Endpoints { share } => write!(f, "each port has {share} of them"),
            Bound::SourceRanges => f.write_str("traffic from the last ones is dropped"),
            Bound::Ports | Bound::Rules => f.write_str("its last ports are not used"),
            Bound::ExternalIps => f.write_str("the last ones are not used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Cidr, EndpointFacts, EndpointSlice, External, Protocol, ServiceName, ServicePort, SliceEndpoint,
        SlicePort,
    };
    use std::net::IpAddr;

    const LIMITS: ServiceLimits = ServiceLimits {
        endpoints: 12,
        ports: 4,
        external_ips: 3,
        source_ranges: 2,
        rules: 1000,
        by_address: false,
    };

    fn service(ports: u16, external: External) -> Service {
        let port = |number| ServicePort {
            name: format!("p{number}").into(),
            protocol: Protocol::Tcp,
            port: number,
            node_port: 0,
        };
        Service {
            name: ServiceName::new("shop", "web"),
            created: None,
            cluster_ips: PerFamily { v4: Some([10, 96, 0, 1].into()), v6: None },
            internal_traffic_policy: Default::default(),
            affinity_seconds: None,
            ipvs_scheduler: None,
            ports: (1..=ports).map(port).collect(),
            external: Some(Box::new(external)),
        }
    }

    fn ips(range: std::ops::Range<u8>) -> Box<[IpAddr]> {
        range.map(|last| IpAddr::from([192, 0, 2, last])).collect()
    }

    fn said(found: &[Excess]) -> Vec<String> {
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_within_the_bounds_stays_as_it_is() {
        let ranges: Vec<Cidr> = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.0/24", "2001:db8:1::/48"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let full = External {
            external_ips: ips(0..2),
            load_balancer_ips: ips(2..3),
            source_ranges: ranges.into(),
            ..External::default()
        };
        let mut service = service(4, full);
        let before = service.clone();
        assert_eq!((LIMITS.cut(&mut service), &service), (vec![], &before));
    }

    #[test]
    fn the_last_of_each_list_are_left_out() {
        let mut service = service(
            6,
            External { external_ips: ips(0..3), load_balancer_ips: ips(3..5), ..External::default() },
        );
        let found = LIMITS.cut(&mut service);
        let external = service.external.as_ref().unwrap();
        assert_eq!((&external.external_ips, &external.load_balancer_ips), (&ips(0..1), &ips(3..5)));
        assert_eq!(service.ports.last().unwrap().port, 4);
        let wanted = [
            "5 addresses in status.loadBalancer.ingress and spec.externalIPs, over --max-service-external-ips=3; the \
             last ones are not used",
            "6 ports in spec.ports, over --max-service-ports=4; its last ports are not used",
        ];
        assert_eq!(said(&found), wanted);
    }

    #[test]
    fn no_family_loses_its_last_source_range() {
        let texts = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"];
        let source_ranges = texts.iter().map(|text| text.parse().unwrap()).collect();
        let mut service = service(1, External { source_ranges, ..External::default() });
        let found = ServiceLimits { source_ranges: 0, ..LIMITS }.cut(&mut service);
        let kept: Vec<String> =
            service.external.unwrap().source_ranges.iter().map(ToString::to_string).collect();
        assert_eq!(kept, ["192.0.2.0/24", "2001:db8::/32"]);
        let text = "3 ranges in spec.loadBalancerSourceRanges, over --max-service-source-ranges=1; traffic from the \
                    last ones is dropped";
        assert_eq!(said(&found), [text]);
    }

    #[test]
    fn so_many_ports_stay_as_the_bound_of_rules_allows_and_one_at_least() {
        let external =
            || External { external_ips: ips(0..2), load_balancer_ips: ips(2..3), ..External::default() };
        for (rules, ports) in [(84, 4), (83, 3), (42, 2), (20, 1), (0, 1)] {
            let mut service = service(4, external());
            let found = ServiceLimits { rules, ..LIMITS }.cut(&mut service);
            assert_eq!((service.ports.len(), found.len()), (ports, usize::from(ports < 4)), "{rules}");
        }
    }

    fn record(service: Service, endpoints: u8) -> ServiceRecord {
        let endpoint = |last| SliceEndpoint {
            address: [10, 128, 0, last].into(),
            facts: EndpointFacts::new(true, true, false, false),
            hints: 0,
        };
        let port =
            |it: &ServicePort| SlicePort { name: it.name.clone(), protocol: it.protocol, port: it.port };
        let slice = EndpointSlice {
            name: "shop/web-1".into(),
            service: service.name.clone(),
            family: IpFamily::V4,
            ports: service.ports.iter().map(port).collect(),
            endpoints: (0..endpoints).map(endpoint).collect(),
            hints: [].into(),
            refused: 0,
            triggered: None,
        };
        ServiceRecord { service: Some(Box::new(service)), slices: vec![slice], ..ServiceRecord::default() }
    }

    #[test]
    fn ports_share_the_endpoints_that_may_be_used() {
        for (ports, endpoints, share) in [(1, 12, None), (1, 13, Some(12)), (3, 4, None), (3, 5, Some(4))] {
            let record = record(service(ports, External::default()), endpoints);
            assert_eq!(LIMITS.share(&record, IpFamily::V4), share);
            assert_eq!(LIMITS.share(&record, IpFamily::V6), None);
            assert_eq!(LIMITS.too_many_endpoints(&record).is_some(), share.is_some());
        }
        let many = External { external_ips: ips(0..9), ..External::default() };
        let by_address = ServiceLimits { by_address: true, ..LIMITS };
        assert_eq!(by_address.share(&record(service(1, many), 7), IpFamily::V4), Some(6));
        let text = "13 endpoints of its slices, counted once per port, over --max-service-endpoints=12; each port has \
                    12 of them";
        let found = LIMITS.too_many_endpoints(&record(service(1, External::default()), 13));
        assert_eq!(found.unwrap().to_string(), text);
    }
}

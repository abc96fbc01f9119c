//! Random objects from a fixed seed: the same seed gives the same sequence on every machine.

use crate::model::{
    EndpointFacts, EndpointSlice, External, Hints, IpFamily, PerFamily, Protocol, Service, ServiceName,
    ServicePort, SliceEndpoint, SlicePort, TrafficPolicy, WatchEvent,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many different Services there can be.
const SERVICES: u64 = 12;

/// A source of random changes to a small cluster.
#[derive(Clone, Debug)]
pub struct Generator(u64);

impl Generator {
    /// A generator of its own sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Generator(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound` (xorshift64*).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn byte(&mut self, bound: u64) -> u8 {
        u8::try_from(self.below(bound.min(256))).unwrap_or_default()
    }

    fn policy(&mut self) -> TrafficPolicy {
        if self.chance(30) { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
    }

    /// The next change.
    pub fn event(&mut self) -> WatchEvent {
        let number = self.below(SERVICES);
        let name = ServiceName::new("ns", &format!("svc-{number}"));
        match self.below(10) {
            0 => WatchEvent::ServiceGone(name),
            1..4 => WatchEvent::Service(Box::new(self.service(name, number))),
            4 => WatchEvent::SliceGone(self.slice_name(number)),
            _ => WatchEvent::Slice(Box::new(self.slice(name, number))),
        }
    }

    fn service(&mut self, name: ServiceName, number: u64) -> Service {
        let byte = u8::try_from(number).unwrap_or_default();
        let ports = (0..1 + self.below(2)).map(|index| {
            let node_port = if self.chance(40) { 30000 + u16::from(self.byte(15)) } else { 0 };
            ServicePort {
                name: format!("p{index}").into(),
                protocol: if self.chance(70) { Protocol::Tcp } else { Protocol::Udp },
                port: 80 + u16::try_from(index).unwrap_or_default(),
                node_port,
            }
        });
        Service {
            ports: ports.collect(),
            name,
            created: Some(i64::try_from(self.below(5)).unwrap_or_default()),
            cluster_ips: PerFamily {
                v4: Some(IpAddr::V4(Ipv4Addr::new(10, 96, 0, byte + 1))),
                v6: self.chance(50).then(|| v6(0x96, byte)),
            },
            internal_traffic_policy: self.policy(),
            affinity_seconds: self.chance(20).then_some(10800),
            ipvs_scheduler: None,
            external: self.chance(50).then(|| Box::new(self.external(byte))),
        }
    }

    fn external(&mut self, byte: u8) -> External {
        let v4 = |net: u8| IpAddr::V4(Ipv4Addr::new(net, 51, 100, byte + 1));
        let ranges = ["203.0.113.0/24", "10.0.0.0/8", "fd00:1::/64", "0.0.0.0/0"];
        let range = ranges[usize::from(self.byte(4))].parse().ok();
        External {
            external_ips: (0..self.below(2)).map(|_| v4(198)).chain(Some(v6(0x198, byte))).collect(),
            load_balancer_ips: (0..self.below(2)).map(|_| v4(192)).chain(Some(v6(0x192, byte))).collect(),
            source_ranges: if self.chance(40) { range.into_iter().collect() } else { [].into() },
            traffic_policy: self.policy(),
            health_check_node_port: if self.chance(20) { 31000 + u16::from(byte) } else { 0 },
        }
    }

    fn slice_name(&mut self, number: u64) -> crate::model::SliceName {
        format!("ns/svc-{number}-{}", self.below(3)).into()
    }

    fn slice(&mut self, service: ServiceName, number: u64) -> EndpointSlice {
        let name = self.slice_name(number);
        // A slice never changes its family: that is part of its name's last digit.
        let family = if name.ends_with('2') { IpFamily::V6 } else { IpFamily::V4 };
        let port = |index: u16| SlicePort {
            name: format!("p{index}").into(),
            protocol: Protocol::Tcp,
            port: 8080 + index,
        };
        let zones = |names: &[&str]| Hints {
            zones: names.iter().map(|name| (*name).into()).collect(),
            ..Hints::default()
        };
        EndpointSlice {
            name,
            service,
            family,
            ports: (0..1 + u16::from(self.byte(2))).map(port).collect(),
            endpoints: (0..self.below(4)).map(|_| self.endpoint(family)).collect(),
            hints: [Hints::default(), zones(&["z0"]), zones(&["z1"])].into(),
            refused: 0,
            triggered: None,
        }
    }

    fn endpoint(&mut self, family: IpFamily) -> SliceEndpoint {
        let (ready, serving, terminating) = match self.below(10) {
            0 => (false, false, false),
            1 => (false, true, true),
            2 => (false, false, true),
            _ => (true, true, false),
        };
        let byte = self.byte(20);
        SliceEndpoint {
            address: match family {
                IpFamily::V4 => IpAddr::V4(Ipv4Addr::new(10, 128, 0, byte)),
                IpFamily::V6 => v6(0x128, byte),
            },
            facts: EndpointFacts::new(ready, serving, terminating, self.chance(40)),
            hints: u16::from(self.byte(3)),
        }
    }
}

fn v6(net: u16, byte: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, u16::from(byte) + 1))
}

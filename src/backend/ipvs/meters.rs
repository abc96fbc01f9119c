//! What a Service carried, from the statistics of its virtual servers and their real servers.

use super::render::RenderContext;
use crate::backend::counters::{CounterSeries, Counters, Detail, Measured, Series};
use crate::kernel::ipvs::VirtualServers;
use crate::model::{Counts, Frontend};
use crate::plan::{PortPlan, ServicePlan};
use anyhow::Result;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// One of the kernel's statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Statistics {
    /// Of a virtual server.
    Server(Frontend),
    /// Of a real server of it.
    Real(Frontend, SocketAddr),
}

impl Statistics {
    /// Whose they are: a virtual server's, or a real server's of it.
    pub(super) fn server(&self) -> (Frontend, Option<SocketAddr>) {
        match self {
            Statistics::Server(at) => (*at, None),
            Statistics::Real(at, real) => (*at, Some(*real)),
        }
    }
}

/// The series of a Service, with the statistics that count them.
pub(super) fn meters(
    service: &ServicePlan<'_>,
    context: &RenderContext<'_>,
    detail: Detail,
) -> Vec<CounterSeries<Statistics>> {
    service.ports.iter().flat_map(|port| port_meters(port, context, detail)).collect()
}

fn port_meters(
    port: &PortPlan,
    context: &RenderContext<'_>,
    detail: Detail,
) -> Vec<CounterSeries<Statistics>> {
    let meter = |of, adds| CounterSeries {
        series: Series { port: port.name.clone(), of },
        adds,
        subtracts: Vec::new(),
    };
    let (frontends, protocol) = (&port.frontends, port.name.protocol);
    let at = |address: &IpAddr| Frontend { address: *address, port: frontends.port, protocol };
    let cluster_ip: Vec<Frontend> = frontends.cluster_ip.iter().map(at).collect();
    let mut external: Vec<Frontend> =
        frontends.external_ips.iter().chain(&frontends.load_balancer_ips).map(at).collect();
    if let Some(port) = frontends.node_port {
        external.extend(context.node_port_ips.iter().map(|ip| Frontend { address: *ip, port, protocol }));
    }
    external.sort_unstable();
    external.dedup();
    let servers = |frontends: &[Frontend]| frontends.iter().copied().map(Statistics::Server).collect();
    let mut meters = vec![meter(Measured::ClusterIp, servers(&cluster_ip))];
    if !external.is_empty() {
        meters.push(meter(Measured::External, servers(&external)));
    }
    if detail == Detail::Endpoints {
        external.extend(cluster_ip);
        meters.extend(port.targets.iter().map(|target| {
            let real = |at: &Frontend| Statistics::Real(*at, target.address);
            meter(Measured::Endpoint(target.address), external.iter().map(real).collect())
        }));
    }
    meters
}

/// What virtual servers and their real servers have counted, each virtual server asked once.
pub(super) struct ServerCounters<'k> {
    servers: &'k mut dyn VirtualServers,
    reals: HashMap<Frontend, HashMap<SocketAddr, Counts>>,
    questions: usize,
}

impl<'k> ServerCounters<'k> {
    pub(super) fn new(servers: &'k mut dyn VirtualServers) -> Self {
        ServerCounters { servers, reals: HashMap::new(), questions: 0 }
    }
}

impl Counters<Statistics> for ServerCounters<'_> {
    fn read(&mut self, of: &Statistics) -> Result<Counts> {
        match of {
            Statistics::Server(at) => {
                self.questions += 1;
                Ok(self.servers.counts(at)?.unwrap_or_default())
            }
            Statistics::Real(at, address) => {
                if !self.reals.contains_key(at) {
                    self.questions += 1;
                    self.reals.insert(*at, self.servers.real_counts(at)?.into_iter().collect());
                }
                let counts = self.reals.get(at).and_then(|reals| reals.get(address));
                Ok(counts.copied().unwrap_or_default())
            }
        }
    }

    fn questions(&self) -> usize {
        self.questions
    }
}

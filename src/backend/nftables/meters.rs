//! What a Service carried, from the counters of elements that packets match once they are translated.
//!
//! The rules that match them are in chains of type nat, which see the first packet of each connection only, so an element's
//! packets are connections. Bytes are not counted anywhere.

use super::element::{self, Content, Destination, ElementId, Endpoint, Key};
use super::names::{SetId, table};
use super::render;
use crate::backend::counters::{CounterSeries, Counters, Detail, Measured, Series};
use crate::kernel::nftables::Ruleset;
use crate::model::{Counts, IpFamily};
use crate::plan::{PortPlan, ServicePlan};
use anyhow::Result;
use nftables_rs::ListedElement;
use std::net::SocketAddr;

/// Elements that are read in the time that other modes take for one question: each takes the kernel some 5 µs.
const ELEMENTS_A_QUESTION: usize = 20;

/// The series of a Service, with the elements that count them.
pub(super) fn meters(service: &ServicePlan<'_>, detail: Detail) -> Vec<CounterSeries<ElementId>> {
    let elements = render::service(service, true);
    let of_port = |(index, port): (u16, &PortPlan)| {
        let counting = elements.members.iter().filter(|member| member.port == index);
        let counting: Vec<ElementId> = counting.map(|member| member.id).filter(is_counted).collect();
        port_meters(port, &counting, detail)
    };
    (0..).zip(&service.ports).flat_map(of_port).collect()
}

pub(super) fn is_counted(id: &ElementId) -> bool {
    matches!(id.set, SetId::Counted(_))
}

fn port_meters(port: &PortPlan, counting: &[ElementId], detail: Detail) -> Vec<CounterSeries<ElementId>> {
    let series = |of, counts: &dyn Fn(Destination, Endpoint) -> bool| {
        let counts = |id: &&ElementId| matches!(id.key, Key::Endpoint(at, endpoint) if counts(at, endpoint));
        CounterSeries {
            series: Series { port: port.name.clone(), of },
            adds: counting.iter().filter(counts).copied().collect(),
            subtracts: Vec::new(),
        }
    };
    let cluster_ip = port.frontends.cluster_ip;
    let is_internal =
        |at: Destination| matches!(at, Destination::Service { address, .. } if Some(address) == cluster_ip);
    let mut meters = vec![series(Measured::ClusterIp, &|at, _| is_internal(at))];
    if port.frontends.externally_accessible() {
        meters.push(series(Measured::External, &|at, _| !is_internal(at)));
    }
    if detail == Detail::Endpoints {
        meters.extend(port.targets.iter().map(|target| {
            let address: SocketAddr = target.address;
            series(Measured::Endpoint(address), &|_, endpoint| endpoint == Endpoint::from(address))
        }));
    }
    meters
}

/// What elements have counted, each read by itself.
pub(super) struct ElementCounters<'k, K> {
    kernel: &'k mut K,
    family: IpFamily,
    asked: usize,
}

impl<'k, K: Ruleset> ElementCounters<'k, K> {
    pub(super) fn new(kernel: &'k mut K, family: IpFamily) -> Self {
        ElementCounters { kernel, family, asked: 0 }
    }
}

impl<K: Ruleset> Counters<ElementId> for ElementCounters<'_, K> {
    fn read(&mut self, id: &ElementId) -> Result<Counts> {
        self.asked += 1;
        let mut connections = 0;
        let (table, set) = (table(self.family), id.set.name());
        let mut read = |listed: ListedElement<'_>| {
            connections = listed.counter.map_or(0, |counted| counted.packets);
        };
        element::with_wire(id, &Content::default(), |key| self.kernel.element(table, &set, key, &mut read))?;
        Ok(Counts { connections, traffic: None })
    }

    fn questions(&self) -> usize {
        self.asked / ELEMENTS_A_QUESTION
    }
}

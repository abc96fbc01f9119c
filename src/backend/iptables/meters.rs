//! What a Service carried, from the counters of the rules in its own chains.
//!
//! The nat table sees the first packet of each connection only, so a rule's packets are connections.
//! Bytes are not counted anywhere. The rules that lead to a Service are left out of this: they stand
//! among those of all others, and are rewritten with them.

use super::names::{ChainId, ChainKind, PortHash};
use super::parts;
use crate::backend::counters::{CounterSeries, Counters, Detail, Measured, Series};
use crate::kernel::iptables::{CountedRule, Flavor, Xtables};
use crate::kernel::nft::Part;
use crate::model::{Counts, TrafficPolicy};
use crate::plan::{PortPlan, ServicePlan};
use anyhow::{Result, ensure};
use std::collections::HashMap;

/// The series of a Service, with the chains that count them.
pub(super) fn meters(service: &ServicePlan<'_>, detail: Detail) -> Vec<CounterSeries<ChainId>> {
    service.ports.iter().flat_map(|port| port_meters(port, detail)).collect()
}

fn port_meters(port: &PortPlan, detail: Detail) -> Vec<CounterSeries<ChainId>> {
    let hash = PortHash::of(&port.name);
    let chain = |kind| ChainId::of_port(kind, &hash);
    let series = |of| Series { port: port.name.clone(), of };
    let lists = [(TrafficPolicy::Cluster, ChainKind::Svc), (TrafficPolicy::Local, ChainKind::Svl)];
    let balanced = lists.into_iter().flat_map(|(policy, kind)| {
        let endpoints = port.list(policy).count();
        match parts::count(endpoints) {
            Some(count) => parts::chains(&port.name, policy, count).collect(),
            None if endpoints > 0 => vec![chain(kind)],
            None => Vec::new(),
        }
    });
    let balanced: Vec<ChainId> = balanced.collect();
    let is_external = port.has_endpoints && port.frontends.externally_accessible();
    let external: Vec<ChainId> = is_external.then(|| chain(ChainKind::Ext)).into_iter().collect();
    // All traffic is balanced, and what came from elsewhere has passed its own chain before.
    let cluster_ip =
        CounterSeries { series: series(Measured::ClusterIp), adds: balanced, subtracts: external.clone() };
    let mut meters = vec![cluster_ip];
    if is_external {
        meters.push(CounterSeries {
            series: series(Measured::External),
            adds: external,
            subtracts: Vec::new(),
        });
    }
    if detail == Detail::Endpoints {
        meters.extend(port.targets.iter().map(|target| CounterSeries {
            series: series(Measured::Endpoint(target.address)),
            adds: vec![ChainId::of_endpoint(&port.name, &target.text)],
            subtracts: Vec::new(),
        }));
    }
    meters
}

/// Whether what a rule of a chain counts are connections that the chain passed on to an endpoint.
fn passes_on(kind: ChainKind, rule: &CountedRule<'_>) -> bool {
    let next = rule.jumps_to.and_then(ChainId::parse).map(|chain| chain.kind());
    match kind {
        ChainKind::Svc | ChainKind::Svl => next == Some(ChainKind::Sep),
        ChainKind::Ext => matches!(next, Some(ChainKind::Svc | ChainKind::Svl)),
        ChainKind::Sep => rule.jumps_to.is_none(),
        ChainKind::Fw => false,
    }
}

/// What chains have passed on, each read once.
pub(super) struct ChainCounters<'t, X> {
    tools: &'t mut X,
    known: HashMap<ChainId, u64>,
    questions: usize,
}

impl<'t, X: Xtables> ChainCounters<'t, X> {
    pub(super) fn new(tools: &'t mut X) -> Self {
        ChainCounters { tools, known: HashMap::new(), questions: 0 }
    }

    /// Reads one chain, or the whole table.
    fn ask(&mut self, chain: Option<&str>) -> Result<()> {
        self.questions += 1;
        let mut counts: HashMap<ChainId, u64> = HashMap::new();
        let was_read = self.tools.counted_rules("nat", chain, &mut |part| match part {
            Part::Start => counts.clear(),
            Part::Item(rule) => {
                if let Some(chain) = ChainId::parse(rule.chain).filter(|it| passes_on(it.kind(), &rule)) {
                    *counts.entry(chain).or_default() += rule.packets;
                }
            }
        })?;
        self.known.extend(counts);
        ensure!(was_read, "the legacy nat table is too large to be read");
        Ok(())
    }
}

impl<X: Xtables> Counters<ChainId> for ChainCounters<'_, X> {
    fn read(&mut self, chain: &ChainId) -> Result<Counts> {
        match self.tools.flavor() {
            // It comes only as a whole.
            Flavor::Legacy if self.questions == 0 => self.ask(None)?,
            Flavor::Nft if !self.known.contains_key(chain) => {
                self.ask(Some(&chain.to_string()))?;
                self.known.entry(*chain).or_default();
            }
            _ => {}
        }
        let connections = self.known.get(chain).copied().unwrap_or_default();
        Ok(Counts { connections, traffic: None })
    }

    fn questions(&self) -> usize {
        self.questions
    }
}

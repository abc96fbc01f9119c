//! A cluster in memory and a backend that follows it, for what counts or times the program's own
//! work: nothing runs but that.

use super::sink::{ElementSink, Sink};
use crate::backend::iptables::{Features, Iptables};
use crate::backend::nftables::{self, Nftables};
use crate::backend::{Applied, Dataplane};
use crate::model::{
    EndpointFacts, EndpointSlice, IpFamily, NodeFacts, PerFamily, Protocol, Service, ServiceName,
    ServicePort, SliceEndpoint, SlicePort, TrafficPolicy, WatchEvent,
};
use crate::plan::{FamilySettings, Plan, Scope};
use crate::state::{ChangedObjects, Tracker};
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr};

/// Endpoints of a Service that is served.
pub const ENDPOINTS: u32 = 5;

/// A cluster and the backend that follows it.
#[derive(Debug)]
pub struct Cluster<B = Iptables<Sink>> {
    tracker: Tracker,
    settings: FamilySettings,
    /// The backend; its tools count.
    pub backend: B,
}

impl Cluster {
    /// That many Services in mode iptables, synced. Every hundredth has no endpoints, which takes rules in other chains.
    ///
    /// # Errors
    /// As the backend's.
    pub async fn of(services: u32) -> Result<Cluster> {
        let features = Features { tree_threshold: 100, ..Features::default() };
        Cluster::followed_by(Iptables::new(Sink::default(), IpFamily::V4, features), services).await
    }
}

impl Cluster<Nftables<ElementSink>> {
    /// The same in mode nftables.
    ///
    /// # Errors
    /// As the backend's.
    pub async fn of_elements(services: u32) -> Result<Self> {
        let features = nftables::Features { masquerade_mark: 0x4000, ..nftables::Features::default() };
        let addresses = Box::new(|_| Ok(vec![IpAddr::from([192, 0, 2, 1])]));
        let backend = Nftables::new(ElementSink::default(), IpFamily::V4, features, addresses);
        Cluster::followed_by(backend, services).await
    }
}

impl<B: Dataplane> Cluster<B> {
    async fn followed_by(backend: B, services: u32) -> Result<Self> {
        let mut tracker = Tracker::new(NodeFacts::default(), 0);
        for number in 0..services {
            tracker.fold(service(number));
            tracker.fold(slice(number, if number % 100 == 7 { 0 } else { ENDPOINTS }));
        }
        tracker.take_changes(IpFamily::V4);
        let mut cluster = Cluster { tracker, settings: FamilySettings::new(IpFamily::V4), backend };
        cluster.sync(None).await?;
        Ok(cluster)
    }

    /// Folds an event in; returns what changed for the next pass.
    pub fn fold(&mut self, event: WatchEvent) -> ChangedObjects {
        self.tracker.fold(event);
        self.tracker.take_changes(IpFamily::V4)
    }

    /// The plan of what changed, or of everything.
    #[must_use]
    pub fn plan<'a>(&'a self, changes: Option<&'a ChangedObjects>) -> Plan<'a> {
        plan(&self.settings, &self.tracker, changes)
    }

    /// One pass over what changed, or over everything.
    ///
    /// # Errors
    /// As the backend's.
    pub async fn sync(&mut self, changes: Option<&ChangedObjects>) -> Result<Applied> {
        let plan = plan(&self.settings, &self.tracker, changes);
        self.backend.sync(&plan).await
    }
}

fn plan<'a>(
    settings: &'a FamilySettings,
    tracker: &'a Tracker,
    changes: Option<&'a ChangedObjects>,
) -> Plan<'a> {
    let scope = changes.map_or(Scope::All, |changes| Scope::Only(&changes.services));
    Plan::new(settings, tracker.snapshot(), scope).with_endpoint_count(tracker.endpoints(IpFamily::V4))
}

/// The name of a Service, by number.
#[must_use]
pub fn name(number: u32) -> ServiceName {
    ServiceName::new("load", &format!("s-{number:06}"))
}

/// The event of a Service, by number.
#[must_use]
pub fn service(number: u32) -> WatchEvent {
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    // Spread as the API server spreads them: in no order.
    let low = number.wrapping_mul(2_654_435_761) >> 12;
    WatchEvent::Service(Box::new(Service {
        name: name(number),
        created: None,
        cluster_ips: PerFamily { v4: Some(IpAddr::V4(Ipv4Addr::from(0x0a60_0000 | low))), v6: None },
        internal_traffic_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        ipvs_scheduler: None,
        ports: [port].into(),
        external: None,
    }))
}

/// The event of a Service's slice with `endpoints` endpoints.
#[must_use]
pub fn slice(number: u32, endpoints: u32) -> WatchEvent {
    let endpoint = |index| SliceEndpoint {
        address: IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + number * 8 + index)),
        facts: EndpointFacts::new(true, true, false, false),
        hints: 0,
    };
    WatchEvent::Slice(Box::new(EndpointSlice {
        name: format!("load/s-{number:06}-x").into(),
        service: name(number),
        family: IpFamily::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..endpoints).map(endpoint).collect(),
        hints: [].into(),
        refused: 0,
        triggered: None,
    }))
}

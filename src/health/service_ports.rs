//! Health-check node ports: one small server per Service that load balancers ask whether this node
//! has endpoints of it.

use super::{Clock, ProxyHealth};
use crate::http::{self, Reply, Routes, Site, Slots};
use crate::model::{IpFamily, ServiceName};
use crate::plan::{Plan, Scope};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

/// The servers of one IP family.
pub struct ServicePorts {
    health: Arc<ProxyHealth>,
    clock: Clock,
    slots: Arc<Slots>,
    /// What each Service asks for.
    wanted: BTreeMap<ServiceName, Wanted>,
    /// Where the servers listen.
    addresses: Vec<IpAddr>,
    open: BTreeMap<ServiceName, Server>,
    /// Ports that could not be opened the last time.
    taken: BTreeSet<PortTaken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    port: u16,
    local_endpoints: usize,
}

struct Server {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    listeners: JoinSet<()>,
}

/// A port that could not be listened on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortTaken {
    /// Whose port.
    pub service: ServiceName,
    /// The port.
    pub port: u16,
    /// The system's words, with the address.
    pub reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: BodyService<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct BodyService<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl ServicePorts {
    /// No servers yet.
    #[must_use]
    pub fn new(health: Arc<ProxyHealth>, clock: Clock, slots: Arc<Slots>) -> Self {
        ServicePorts {
            health,
            clock,
            slots,
            wanted: BTreeMap::new(),
            addresses: Vec::new(),
            open: BTreeMap::new(),
            taken: BTreeSet::new(),
        }
    }

    /// Takes over what a plan says that is in force now: opens and closes ports, and sets counts.
    /// A Service that the kernel refuses has no endpoints here, whatever the plan says. Returns
    /// the ports that another process turned out to hold.
    pub async fn update(&mut self, plan: &Plan<'_>, refused: &BTreeSet<ServiceName>) -> Vec<PortTaken> {
        self.fold(plan, refused);
        let addresses = addresses(plan);
        if addresses != self.addresses {
            self.close_all().await;
            self.addresses = addresses;
        }
        self.close_unwanted().await;
        self.retry()
    }

    /// Whether a port that is wanted is not open.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.open.len() < self.wanted.len()
    }

    /// Tries once more to open the ports that are not. Returns those that could not be opened, if
    /// it was not the same the last time: every cause is reported once.
    pub fn retry(&mut self) -> Vec<PortTaken> {
        let mut taken = BTreeSet::new();
        for (service, wanted) in &self.wanted {
            if let Some(server) = self.open.get(service) {
                server.local_endpoints.store(wanted.local_endpoints, Ordering::Relaxed);
                continue;
            }
            match self.listen(service, *wanted) {
                Ok(server) => {
                    tracing::info!(%service, port = wanted.port, "health-check node port open");
                    self.open.insert(service.clone(), server);
                }
                Err(reason) => {
                    taken.insert(PortTaken { service: service.clone(), port: wanted.port, reason });
                }
            }
        }
        let new = taken.difference(&self.taken).cloned().collect();
        self.taken = taken;
        new
    }

    fn fold(&mut self, plan: &Plan<'_>, refused: &BTreeSet<ServiceName>) {
        if matches!(plan.scope(), Scope::All) {
            self.wanted.clear();
        }
        for name in plan.names_in_scope() {
            match plan.health_check_node_port(name) {
                Some(port) => {
                    let reached = if refused.contains(name) { 0 } else { plan.local_endpoints(name) };
                    let wanted = Wanted { port, local_endpoints: reached };
                    self.wanted.insert(name.clone(), wanted);
                }
                None => {
                    self.wanted.remove(name);
                }
            }
        }
    }

    async fn close_unwanted(&mut self) {
        let unwanted = |service: &ServiceName, server: &Server| {
            self.wanted.get(service).is_none_or(|wanted| wanted.port != server.port)
        };
        let mut closing: Vec<_> =
            self.open.extract_if(.., |service, server| unwanted(service, server)).collect();
        for (service, server) in &mut closing {
            // Waits until the sockets are closed: another Service may want the port right now.
            server.listeners.shutdown().await;
            tracing::info!(%service, port = server.port, "health-check node port closed");
        }
    }

    async fn close_all(&mut self) {
        for server in self.open.values_mut() {
            server.listeners.shutdown().await;
        }
        self.open.clear();
    }

    fn listen(&self, service: &ServiceName, wanted: Wanted) -> Result<Server, String> {
        let local_endpoints = Arc::new(AtomicUsize::new(wanted.local_endpoints));
        let routes = self.routes(service.clone(), Arc::clone(&local_endpoints));
        let sockets = self.addresses.iter().map(|address| {
            let address = SocketAddr::new(*address, wanted.port);
            let cannot = |why: &dyn Display| format!("cannot listen on {address}: {why}");
            let permit = self.slots.listener().map_err(|why| cannot(&why))?;
            let socket = http::bind_exclusive(address).map_err(|error| cannot(&error))?;
            Ok((socket, permit))
        });
        let sockets = sockets.collect::<Result<Vec<_>, String>>()?;
        let mut listeners = JoinSet::new();
        for (socket, permit) in sockets {
            let site = Site::of(Arc::clone(&routes), &self.slots);
            listeners.spawn(async move {
                let _permit = permit;
                match http::serve(socket, site).await {}
            });
        }
        Ok(Server { port: wanted.port, local_endpoints, listeners })
    }

    /// Any method and any path gets the same answer (kube-proxy).
    fn routes(&self, service: ServiceName, local_endpoints: Arc<AtomicUsize>) -> Routes {
        let (health, clock) = (Arc::clone(&self.health), Arc::clone(&self.clock));
        Arc::new(move |_| {
            answer(&service, local_endpoints.load(Ordering::Relaxed), health.is_healthy(clock()))
        })
    }
}

/// One wildcard, or each of the addresses on which node ports answer.
fn addresses(plan: &Plan<'_>) -> Vec<IpAddr> {
    plan.node_port_ips().unwrap_or_else(|| match plan.family() {
        IpFamily::V4 => vec![Ipv4Addr::UNSPECIFIED.into()],
        IpFamily::V6 => vec![Ipv6Addr::UNSPECIFIED.into()],
    })
}

fn answer(service: &ServiceName, local_endpoints: usize, service_proxy_healthy: bool) -> Reply {
    let status = if local_endpoints > 0 && service_proxy_healthy { 200 } else { 503 };
    let body = Body {
        service: BodyService { namespace: service.namespace(), name: service.name() },
        local_endpoints,
        service_proxy_healthy,
    };
    match tab_indented(&body) {
        Ok(text) => {
            let mut reply = Reply::json(status, text);
            reply.headers.push(("X-Load-Balancing-Endpoint-Weight", local_endpoints.to_string()));
            reply
        }
        Err(error) => Reply::text(500, error.to_string()),
    }
}

fn tab_indented(body: &Body<'_>) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    body.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Now;
    use crate::http::SlotLimits;
    use crate::model::{
        EndpointFacts, EndpointSlice, External, PerFamily, Protocol, Service, ServicePort, ServiceRecord,
        SliceEndpoint, SlicePort, Snapshot, TrafficPolicy,
    };
    use crate::plan::{FamilySettings, NodePortAddresses};
    use std::time::{Duration, Instant, SystemTime};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    fn name(of: &str) -> ServiceName {
        ServiceName::new("shop", of)
    }

    fn record(of: &str, port: u16, endpoints: &[(u8, EndpointFacts)]) -> ServiceRecord {
        let endpoint = |(last, facts): &(u8, EndpointFacts)| SliceEndpoint {
            address: [10, 128, 0, *last].into(),
            facts: *facts,
            hints: 0,
        };
        let slice = |number: u16| EndpointSlice {
            name: format!("shop/{of}-{number}").into(),
            service: name(of),
            family: IpFamily::V4,
            ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: number }].into(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            hints: Box::default(),
            refused: 0,
            triggered: None,
        };
        let external = External {
            traffic_policy: TrafficPolicy::Local,
            health_check_node_port: port,
            ..External::default()
        };
        let service = Service {
            name: name(of),
            created: None,
            cluster_ips: PerFamily { v4: Some([10, 96, 0, 1].into()), v6: None },
            internal_traffic_policy: TrafficPolicy::Cluster,
            affinity_seconds: None,
            ipvs_scheduler: None,
            ports: [ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }].into(),
            external: Some(Box::new(external)),
        };
        ServiceRecord {
            service: Some(Box::new(service)),
            slices: vec![slice(80), slice(81)],
            ..ServiceRecord::default()
        }
    }

    fn local() -> EndpointFacts {
        EndpointFacts::new(true, true, false, true)
    }

    struct Setup {
        ports: ServicePorts,
        health: Arc<ProxyHealth>,
        settings: FamilySettings,
        start: Instant,
        refused: BTreeSet<ServiceName>,
    }

    impl Setup {
        fn new() -> Setup {
            let health = Arc::new(ProxyHealth::new(Duration::from_secs(30)));
            let start = Instant::now();
            let now = Now { steady: start + Duration::from_secs(100), wall: SystemTime::UNIX_EPOCH };
            let slots = Slots::new(SlotLimits::within(1024));
            let ports = ServicePorts::new(Arc::clone(&health), Arc::new(move || now), slots);
            let mut settings = FamilySettings::new(IpFamily::V4);
            settings.node_port_addresses = NodePortAddresses::Within(vec!["127.0.0.0/8".parse().unwrap()]);
            Setup { ports, health, settings, start, refused: BTreeSet::new() }
        }

        async fn update(&mut self, records: &[ServiceRecord]) -> Vec<PortTaken> {
            let named = records.iter().map(|it| (it.service.as_ref().unwrap().name.clone(), it.clone()));
            let snapshot = Snapshot { services: named.collect(), ..Snapshot::default() };
            let here = [IpAddr::from([127, 0, 0, 1])];
            let plan = Plan::new(&self.settings, &snapshot, Scope::All).with_local_addresses(&here);
            self.ports.update(&plan, &self.refused).await
        }
    }

    /// A port that no socket holds at the moment.
    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    async fn ask(port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.write_all(b"PUT /any/path HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    #[tokio::test]
    async fn the_answer_follows_the_endpoints_of_this_node() {
        let (mut setup, port) = (Setup::new(), free_port().await);
        let away = EndpointFacts::new(true, true, false, false);
        let terminating = EndpointFacts::new(false, true, true, true);
        let two = [(1, local()), (2, local()), (3, away), (4, terminating)];
        assert_eq!(setup.update(&[record("web", port, &two)]).await, []);
        let text = ask(port).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        for header in [
            "Content-Type: application/json\r\n",
            "X-Content-Type-Options: nosniff\r\n",
            "X-Load-Balancing-Endpoint-Weight: 2\r\n",
        ] {
            assert!(text.contains(header), "{header} in {text}");
        }
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
                    \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert!(text.ends_with(&format!("\r\n\r\n{body}")), "{text}");

        setup.update(&[record("web", port, &two[2..])]).await;
        let text = ask(port).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("X-Load-Balancing-Endpoint-Weight: 0\r\n"), "{text}");
    }

    #[tokio::test]
    async fn a_service_that_the_kernel_refuses_has_no_endpoints_here() {
        let (mut setup, port) = (Setup::new(), free_port().await);
        setup.refused.insert(name("web"));
        setup.update(&[record("web", port, &[(1, local())])]).await;
        let text = ask(port).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("\"localEndpoints\": 0"), "{text}");
        setup.refused.clear();
        setup.update(&[record("web", port, &[(1, local())])]).await;
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn an_unhealthy_proxy_answers_503_and_says_so() {
        let (mut setup, port) = (Setup::new(), free_port().await);
        let at_start = Now { steady: setup.start, wall: SystemTime::UNIX_EPOCH };
        setup.health.updated(IpFamily::V4, at_start);
        setup.health.queued(IpFamily::V4, at_start);
        setup.update(&[record("web", port, &[(1, local())])]).await;
        let text = ask(port).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("\"serviceProxyHealthy\": false"), "{text}");
    }

    #[tokio::test]
    async fn ports_open_and_close_with_their_services_and_can_change_hands() {
        let (mut setup, first, second) = (Setup::new(), free_port().await, free_port().await);
        setup.update(&[record("a", first, &[(1, local())])]).await;
        assert!(ask(first).await.is_some());
        let taken = setup.update(&[record("a", second, &[]), record("b", first, &[(1, local())])]).await;
        assert_eq!(taken, []);
        assert!(ask(first).await.unwrap().contains("\"name\": \"b\""));
        assert!(ask(second).await.unwrap().contains("\"name\": \"a\""));
        setup.update(&[]).await;
        assert_eq!((ask(first).await, ask(second).await), (None, None));
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_service_and_tried_again() {
        let mut setup = Setup::new();
        let squatter = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = squatter.local_addr().unwrap().port();
        let taken = setup.update(&[record("web", port, &[(1, local())])]).await;
        assert_eq!(taken.len(), 1);
        assert_eq!((&taken[0].service, taken[0].port), (&name("web"), port));
        assert!(taken[0].reason.contains("in use"), "{}", taken[0].reason);
        assert!(setup.ports.is_incomplete());
        assert_eq!(setup.ports.retry(), [], "nothing new to tell");
        drop(squatter);
        assert_eq!(setup.ports.retry(), []);
        assert!(!setup.ports.is_incomplete());
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn without_descriptors_a_port_stays_closed_and_its_service_is_named() {
        let (mut setup, first, second) = (Setup::new(), free_port().await, free_port().await);
        setup.ports.slots = Slots::new(SlotLimits { listeners: 1, ..SlotLimits::within(1024) });
        let records = [record("a", first, &[(1, local())]), record("b", second, &[])];
        let taken = setup.update(&records).await;
        assert_eq!((taken.len(), &taken[0].service), (1, &name("b")));
        assert!(taken[0].reason.contains("file descriptors"), "{}", taken[0].reason);
        assert!(ask(first).await.is_some());
        setup.update(&records[1..]).await;
        assert!(ask(second).await.is_some(), "there is room now");
    }

    #[tokio::test]
    async fn a_taken_port_is_told_again_when_the_cause_changes_or_comes_back() {
        let mut setup = Setup::new();
        let squatters = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let [first, second] = squatters.each_ref().map(|it| it.local_addr().unwrap().port());
        let ports = |taken: Vec<PortTaken>| taken.iter().map(|it| it.port).collect::<Vec<u16>>();
        let nothing: Vec<u16> = Vec::new();
        assert_eq!(ports(setup.update(&[record("web", first, &[])]).await), [first]);
        assert_eq!(ports(setup.update(&[record("web", second, &[])]).await), [second]);
        assert_eq!(ports(setup.update(&[record("web", second, &[])]).await), nothing);
        assert_eq!(ports(setup.update(&[]).await), nothing);
        assert_eq!(ports(setup.update(&[record("web", second, &[])]).await), [second]);
    }
}

//! Services that ask for what is another's: the API server's own address, and an external address and port
//! that another Service has.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{Place, TARGET_PORT};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, metrics, wait_until};
use kube_proxy_rs::testing::stub_api::{Resource, StubApi};
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;
use serde_json::{Value, json};

use crate::BINARY;
use crate::explain::{codes, explain};

const SYNC: Duration = Duration::from_secs(120);

/// What tells one Service of these tests from another.
#[derive(Clone, Copy)]
pub(crate) struct Asking {
    name: &'static str,
    /// The last number of its cluster IP.
    last: u8,
    /// The day of its creation.
    day: u8,
    port: u16,
    external_ips: &'static [&'static str],
    balancers: &'static [&'static str],
    endpoint: Place,
}

impl Asking {
    pub(crate) const PLAIN: Asking = Asking {
        name: "plain",
        last: 41,
        day: 1,
        port: 80,
        external_ips: &[],
        balancers: &[],
        endpoint: Place::Local1,
    };

    fn objects(self) -> [Value; 2] {
        let cluster_ip = format!("10.96.0.{}", self.last);
        let ingress: Vec<_> = self.balancers.iter().map(|ip| json!({"ip": ip})).collect();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": self.name, "namespace": "shop",
                "creationTimestamp": format!("2026-01-{:02}T00:00:00Z", self.day),
            },
            "spec": {
                "type": "LoadBalancer", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": self.port, "protocol": "TCP"}],
                "externalIPs": self.external_ips,
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": self.name, "namespace": "shop", "labels": {"kubernetes.io/service-name": self.name}},
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET_PORT}],
            "endpoints": [{"addresses": [self.endpoint.address(IpFamily::V4)]}],
        });
        [service, slice]
    }

    pub(crate) fn put(self, server: &StubApi) {
        self.objects().into_iter().for_each(|object| _ = server.put(object));
    }

    fn cluster_ip(self) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, self.last], self.port))
    }
}

/// A node whose API server is on another machine, and the program on it.
pub(crate) struct Ground {
    // Dropped in this order: the program first.
    proxy: Proxy,
    pub(crate) server: Arc<StubApi>,
    pub(crate) lab: Lab,
    flavor: Flavor,
    flags: &'static [&'static str],
}

impl Ground {
    pub(crate) fn new(flavor: Flavor, flags: &'static [&'static str], services: &[Asking]) -> Ground {
        let lab = Lab::create().unwrap();
        let elsewhere = || StubApi::start_on_a_thread_at([10, 200, 0, 12].into());
        let server = lab.namespace(Place::Remote1).run(elsewhere).unwrap().unwrap();
        let objects: Vec<Value> = services.iter().flat_map(|service| service.objects()).collect();
        let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags };
        let proxy = launch.start_watching(&server, &objects).unwrap();
        let ground = Ground { proxy, server, lab, flavor, flags };
        services.iter().for_each(|service| ground.expect_served(*service));
        ground
    }

    fn start_again(&mut self) {
        self.proxy.kill().unwrap();
        let launch =
            Launch { binary: BINARY, namespace: self.lab.node(), flavor: self.flavor, flags: self.flags };
        launch.start_again(&mut self.proxy).unwrap();
    }

    pub(crate) fn wait(&self, what: &str, condition: impl FnMut() -> bool) {
        wait_until(what, SYNC, condition)
            .unwrap_or_else(|error| panic!("{error}; the program's log:\n{}", self.proxy.log_tail()));
    }

    /// Who answers a client.
    pub(crate) fn answers(&self, client: Place, at: SocketAddr) -> String {
        let client = self.lab.client(client, IpFamily::V4).patience(Duration::from_secs(2));
        match client.ask(Protocol::Tcp, at) {
            Answer::Answered { pod, .. } => pod,
            other => format!("{other:?}"),
        }
    }

    /// The API server's own Service leads to it, wherever else it is reached.
    fn expect_api_service(&self) {
        let at = self.server.address();
        let of_api = json!({"name": "kubernetes", "namespace": "default"});
        self.server.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": of_api,
            "spec": {
                "type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
                "ports": [{"name": "https", "port": 443, "targetPort": at.port(), "protocol": "TCP"}],
            },
        }));
        self.server.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "ports": [{"name": "https", "protocol": "TCP", "port": at.port()}],
            "endpoints": [{"addresses": [at.ip().to_string()]}],
        }));
        let connect = || {
            let cluster_ip = SocketAddr::from(([10, 96, 0, 1], 443));
            TcpStream::connect_timeout(&cluster_ip, Duration::from_secs(2)).is_ok()
        };
        self.wait("the API server answers at its cluster IP", || {
            self.lab.namespace(Place::LocalClient).run(connect).unwrap()
        });
    }

    /// The node itself reaches a Service: the program has heard of it.
    pub(crate) fn expect_served(&self, service: Asking) {
        let client = self.lab.client(Place::Node, IpFamily::V4).patience(Duration::from_secs(2));
        self.wait(&format!("{} is served", service.name), || {
            matches!(client.ask(Protocol::Tcp, service.cluster_ip()), Answer::Answered { .. })
        });
    }

    /// The program hears of a new Service.
    fn expect_served_anew(&self, name: &'static str, last: u8) {
        let service = Asking { name, last, ..Asking::PLAIN };
        service.put(&self.server);
        self.expect_served(service);
    }

    /// In IPVS mode an address that leads to a Service is the node's own, with all ports.
    pub(crate) fn expect_whole_address_kept(&self) {
        let other =
            Asking { name: "other", last: 44, port: 81, external_ips: &[API_SERVER], ..Asking::PLAIN };
        other.put(&self.server);
        self.expect_served(other);
        let complaint = format!(
            "spec.externalIPs: {API_SERVER} port 81/tcp is at the address where this node reaches the API server, and \
             in this mode a Service takes all ports of an address; this Service is programmed without it"
        );
        self.expect_told(other.name, ("ExternalIPRefused", &complaint, "api-server-address"));
        self.server.disconnect();
        self.expect_served_anew("last", 45);
    }

    /// The complaint is in the log, in an Event on the Service, in `status` and in `explain`.
    pub(crate) fn expect_told(&self, service: &str, (reason, complaint, code): (&str, &str, &str)) {
        self.wait("the log tells", || self.proxy.log().contains(complaint));
        let is_told = |event: &Value| {
            event["reason"] == reason
                && event["regarding"]["name"] == service
                && event["note"].as_str().is_some_and(|note| note.contains(complaint))
        };
        self.wait("an Event tells", || self.server.events().iter().any(is_told));
        let socket = self.proxy.control_socket();
        let status = || {
            let mut command = self.lab.node().command(BINARY);
            let output = command.args(["status", "--control-socket"]).arg(&socket).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        self.wait("status tells", || status().contains(&format!("shop/{service}: {complaint}")));
        let name = format!("shop/{service}");
        let (report, _) = explain(self.lab.node(), &[&name, "--control-socket", socket.to_str().unwrap()]);
        assert!(codes(&report).contains(code), "{report:#}");
    }
}

/// The API server's address, from where the program sees it.
const API_SERVER: &str = "10.200.0.12";

#[rstest]
#[case::nft(Flavor::Nft, &[])]
#[case::legacy(Flavor::Legacy, &[])]
#[case::strict(Flavor::Nft, &["--strict-external-ips"])]
fn a_service_does_not_get_the_address_at_which_the_api_server_is_reached(
    #[case] flavor: Flavor,
    #[case] flags: &'static [&'static str],
) {
    let ground = expect_api_server_kept(flavor, flags);
    let other = Asking { name: "other", last: 44, port: 81, external_ips: &[API_SERVER], ..Asking::PLAIN };
    other.put(&ground.server);
    ground.expect_served(other);
    if flags.is_empty() {
        // The other ports of the address are as free as any.
        let at = SocketAddr::new(API_SERVER.parse().unwrap(), other.port);
        ground.wait("another port leads to the Service", || {
            ground.answers(Place::LocalClient, at) == "local-1"
        });
    } else {
        let complaint = format!(
            "spec.externalIPs: {API_SERVER} is the address of an endpoint of Service default/kubernetes; this Service is programmed without it"
        );
        ground.expect_told(other.name, ("ExternalIPRefused", &complaint, "external-ip-refused"));
    }
    ground.server.disconnect();
    ground.expect_served_anew("last", 45);
}

/// The program would never hear again that the Service is gone: neither over a new connection nor after a
/// restart.
pub(crate) fn expect_api_server_kept(flavor: Flavor, flags: &'static [&'static str]) -> Ground {
    let mut ground = Ground::new(flavor, flags, &[]);
    let port = ground.server.address().port();
    let thief = Asking { name: "thief", last: 42, port, external_ips: &[API_SERVER], ..Asking::PLAIN };
    thief.put(&ground.server);
    ground.expect_served(thief);
    let complaint = format!(
        "spec.externalIPs: {API_SERVER} port {port}/tcp is where this node reaches the API server; this Service is programmed without it"
    );
    ground.expect_told(thief.name, ("ExternalIPRefused", &complaint, "api-server-address"));

    ground.expect_api_service();
    ground.server.disconnect();
    ground.expect_served_anew("next", 41);
    ground.start_again();
    ground.expect_served_anew("late", 43);
    ground
}

/// An address of no machine.
const SHARED: [u8; 4] = [203, 0, 113, 9];

/// By name the younger one comes first.
const YOUNG: Asking = Asking {
    name: "a-young",
    last: 51,
    day: 2,
    external_ips: &["203.0.113.9"],
    endpoint: Place::Local2,
    ..Asking::PLAIN
};
const OLD: Asking = Asking { name: "b-old", last: 52, balancers: &["203.0.113.9"], ..Asking::PLAIN };

#[rstest]
#[case::nft(Flavor::Nft, &[])]
#[case::legacy(Flavor::Legacy, &[])]
#[case::strict(Flavor::Nft, &["--strict-external-ips"])]
fn of_two_services_with_one_external_address_and_port_the_older_one_has_it(
    #[case] flavor: Flavor,
    #[case] flags: &'static [&'static str],
) {
    expect_older_one_served(flavor, flags);
}

pub(crate) fn expect_older_one_served(flavor: Flavor, flags: &'static [&'static str]) {
    // The same address is another's on another port, and asked for twice in that one.
    let neighbour = Asking {
        name: "neighbour",
        last: 53,
        day: 3,
        port: 81,
        external_ips: &["203.0.113.9"],
        balancers: &["203.0.113.9"],
        endpoint: Place::Remote1,
    };
    let ground = Ground::new(flavor, flags, &[YOUNG, OLD, neighbour]);
    let answers = |port: u16| ground.answers(Place::Outside, SocketAddr::from((SHARED, port)));
    ground.wait("the neighbour answers, too", || answers(81) == "remote-1");
    assert_eq!(answers(80), "local-1");
    let complaint = "spec.externalIPs: 203.0.113.9 port 80/tcp belongs to Service shop/b-old \
                     (status.loadBalancer.ingress); this Service is programmed without it";
    ground.expect_told(YOUNG.name, ("ExternalIPConflict", complaint, "address-taken"));
    let gauge = "kubeproxy_rs_contested_addresses 1\n";
    ground.wait("the metric counts it", || metrics(ground.lab.node()).is_ok_and(|text| text.contains(gauge)));
    assert!(!ground.proxy.log().contains("neighbour"), "{}", ground.proxy.log_tail());

    ground.server.delete(Resource::Services, "shop/b-old");
    ground.wait("the younger one has it now", || answers(80) == "local-2");
    OLD.put(&ground.server);
    ground.wait("the older one has it back", || answers(80) == "local-1");
}

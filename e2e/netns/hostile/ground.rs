//! A node with the program on it, a hostile neighbour, and what an attack costs meanwhile.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::lone_node;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{NODE_NAME, Place, node_object};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, http_get, save, status_kb, wait_until};
use kube_proxy_rs::testing::stub_api::{StubApi, load_service, load_slice};
use serde_json::{Value, json};

use crate::BINARY;
use crate::running::Running;

const SYNC: Duration = Duration::from_secs(60);
/// The health port.
pub(crate) const HEALTH: u16 = 10256;
/// The first of the health-check node ports.
pub(crate) const FIRST_HEALTH_CHECK: u16 = 31_000;
/// Addresses that the neighbour has of each family.
pub(crate) const NEIGHBOUR_ADDRESSES: u8 = 100;

/// The node and its neighbour. What is dropped first stands first.
pub(crate) struct Ground {
    pub(crate) proxy: Running,
    pub(crate) server: Arc<StubApi>,
    pub(crate) folder: Folder,
    pub(crate) neighbour: Namespace,
    pub(crate) node: Namespace,
}

/// What differs from an ordinary start.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// Put before the program: `prlimit …`.
    pub(crate) through: &'a [&'a str],
    pub(crate) flags: &'a [&'a str],
    pub(crate) objects: Vec<Value>,
}

impl Ground {
    /// Starts the program on a node and waits for its first sync.
    pub(crate) fn new(start: Start<'_>) -> Ground {
        let (node, neighbour) = (lone_node().unwrap(), Namespace::create("neighbour").unwrap());
        wire(&node, &neighbour);
        let folder = Folder::create().unwrap();
        let server = node.run(StubApi::start_on_a_thread).unwrap().unwrap();
        server.put(node_object());
        start.objects.into_iter().for_each(|object| _ = server.put(object));
        put_canary(&server, 0);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut words: Vec<&str> = start.through.to_vec();
        words.push(BINARY);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--kubeconfig").arg(server.kubeconfig(folder.path()).unwrap());
        command.args(["--hostname-override", NODE_NAME, "--iptables-flavor", "nft", "-v", "2"]);
        command.arg("--control-socket").arg(folder.path().join("control.sock"));
        command.args(start.flags).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let proxy = node.run(|| Running::start(&mut command)).unwrap();
        let ground = Ground { proxy, server, folder, neighbour, node };
        ground.wait_for_canary(0, SYNC);
        ground
    }

    /// The node's address at a port.
    pub(crate) fn at(family: IpFamily, port: u16) -> SocketAddr {
        SocketAddr::new(Place::Node.address(family), port)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// One GET from the node or from its neighbour; the whole answer.
    pub(crate) fn get(&self, from: &Namespace, address: SocketAddr, path: &str) -> String {
        http_get(from, address, path).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// What the program uses now: descriptors, and kB of memory of its own.
    pub(crate) fn uses(&self) -> Use {
        let open = fs::read_dir(format!("/proc/{}/fd", self.proxy.id())).unwrap().count();
        Use { descriptors: open, memory_kb: status_kb(self.proxy.id(), "RssAnon").unwrap() }
    }

    fn wait_for_canary(&self, round: u8, limit: Duration) {
        let address = format!("10.128.9.{}:8080", round + 1);
        let arrived = wait_until("a change is in the kernel", limit, || {
            save(Flavor::Nft, &self.node, false).is_ok_and(|rules| rules.contains(&address))
        });
        arrived.unwrap_or_else(|error| panic!("{error:#}; the log ends:\n{}", tail(&self.log())));
    }

    /// How long until a change at the API server is in the kernel.
    pub(crate) fn sync_latency(&self, round: u8) -> Duration {
        let changed = Instant::now();
        put_canary(&self.server, round);
        self.wait_for_canary(round, SYNC);
        changed.elapsed()
    }

    /// How long the kubelet would wait for the answer to a probe, one after the other.
    pub(crate) fn probe_latencies(&self, count: usize) -> Vec<Duration> {
        let probe = |number: usize| {
            let (family, path) = match number % 4 {
                0 => (IpFamily::V4, "/livez"),
                1 => (IpFamily::V4, "/healthz"),
                2 => (IpFamily::V6, "/livez"),
                _ => (IpFamily::V6, "/healthz"),
            };
            let asked = Instant::now();
            let answer = self.get(&self.node, Ground::at(family, HEALTH), path);
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{path}: {answer:?}");
            asked.elapsed()
        };
        let mut latencies: Vec<Duration> = (0..count).map(probe).collect();
        latencies.sort();
        latencies
    }
}

/// What the program uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    pub(crate) descriptors: usize,
    pub(crate) memory_kb: u64,
}

/// A Service that changes with each round.
fn put_canary(server: &StubApi, round: u8) {
    let mut slice = load_slice(60_000, 1, "elsewhere");
    slice["endpoints"][0]["addresses"] = json!([format!("10.128.9.{}", round + 1)]);
    server.put(load_service(60_000));
    server.put(slice);
}

/// Services with a health-check node port each, and one endpoint on the node.
pub(crate) fn health_checked(count: u16) -> Vec<Value> {
    let objects = |number: u16| {
        let (name, address) = (format!("hc-{number}"), format!("10.96.8.{}", number + 1));
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "load", "name": name},
            "spec": {
                "type": "LoadBalancer", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
                "externalTrafficPolicy": "Local", "healthCheckNodePort": FIRST_HEALTH_CHECK + number,
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": FIRST_HEALTH_CHECK + 500 + number}],
            },
        });
        let mut slice = load_slice(u32::from(50_000 + number), 1, NODE_NAME);
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(name);
        [service, slice]
    };
    (0..count).flat_map(objects).collect()
}

/// A link between the two; the neighbour has many addresses, and every IPv6 one is in a network of its own.
fn wire(node: &Namespace, neighbour: &Namespace) {
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {peer}
         addr add 10.200.0.11/24 dev eth0
         addr add fd00:200::11/64 dev eth0 nodad
         link set eth0 up
         route add fd00:300::/32 dev eth0",
        peer = neighbour.name()
    ))
    .unwrap();
    let addresses: String = (0..NEIGHBOUR_ADDRESSES)
        .map(|number| {
            let (v4, v6) = (neighbour_address(IpFamily::V4, number), neighbour_address(IpFamily::V6, number));
            format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n")
        })
        .collect();
    neighbour.ip(&format!("link set eth0 up\n{addresses}route add fd00:200::/64 dev eth0")).unwrap();
}

/// One of the neighbour's addresses.
pub(crate) fn neighbour_address(family: IpFamily, number: u8) -> IpAddr {
    match family {
        IpFamily::V4 => [10, 200, 0, 100 + number].into(),
        IpFamily::V6 => [0xfd00, 0x300, 0, u16::from(number), 0, 0, 0, 1].into(),
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

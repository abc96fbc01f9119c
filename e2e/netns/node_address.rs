//! The Node object gets another address while the program runs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{PacketCase, Place, node_object};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, http_get, wait_until};
use kube_proxy_rs::testing::stub_api::StubApi;
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;
use serde_json::{Value, json};

use crate::BINARY;
use crate::explain::{codes, explain};
use crate::health::service;

/// Emulated machines are slow.
const SYNC: Duration = Duration::from_secs(180);

fn first(family: IpFamily) -> IpAddr {
    Place::Node.address(family)
}

/// The second address of the node in a family.
fn second(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => [10, 200, 0, 21].into(),
        IpFamily::V6 => [0xfd00, 0x200, 0, 0, 0, 0, 0, 0x21].into(),
    }
}

fn node_with(address: fn(IpFamily) -> IpAddr) -> Value {
    let address = |family| json!({"type": "InternalIP", "address": address(family)});
    let mut node = node_object();
    node["status"]["addresses"] = json!(IpFamily::ALL.map(address));
    node
}

#[rstest]
#[case::nft(Flavor::Nft)]
#[case::legacy(Flavor::Legacy)]
fn node_ports_and_health_checks_move_to_the_new_primary_address(#[case] flavor: Flavor) {
    expect_move(flavor, &["--nodeport-addresses=primary"]);
}

/// In both families, as clients outside see it, and as the program says.
pub(crate) fn expect_move(flavor: Flavor, flags: &[&str]) {
    let lab = Lab::create().unwrap();
    lab.node()
        .ip("addr add 10.200.0.21/24 dev eth0
             addr add fd00:200::21/64 dev eth0 nodad")
        .unwrap();
    let case = service(&[Place::Local1]);
    let server = lab.node().run(StubApi::start_on_a_thread).unwrap().unwrap();
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags };
    let proxy = launch.start_watching(&server, &case.objects()).unwrap();
    let moving = Moving { lab: &lab, proxy: &proxy, case };
    moving.expect_on(first, second);
    server.put(node_with(second));
    moving.expect_on(second, first);
    let said = "former_addresses=\"[10.200.0.11, fd00:200::11]\"";
    assert!(proxy.log().contains(said), "{}", proxy.log_tail());

    // The object names an address that no interface has.
    server.put(node_with(|family| Place::Remote2.address(family)));
    let is_nowhere = || codes(&moving.explain().0).contains("node-port-without-address");
    wait_until("explain says that the node port answers nowhere", SYNC, is_nowhere).unwrap();
    assert!(proxy.log().contains("node ports answer on NO address"), "{}", proxy.log_tail());
}

struct Moving<'a> {
    lab: &'a Lab,
    proxy: &'a Proxy,
    case: PacketCase,
}

impl Moving<'_> {
    /// Node port and health check answer on one address of the node, and not on the other.
    fn expect_on(&self, here: fn(IpFamily) -> IpAddr, gone: fn(IpFamily) -> IpAddr) {
        for family in IpFamily::ALL {
            let has_moved =
                || self.answers(here(family)) == (true, true) && self.answers(gone(family)) == (false, false);
            wait_until("node port and health check answer on the Node's address only", SYNC, has_moved)
                .unwrap_or_else(|error| panic!("{family}: {error}: {}", self.proxy.log_tail()));
        }
        let (status, (report, code)) = (self.status(), self.explain());
        assert_eq!(code, 0, "the kernel is as it should be: {report:#}");
        let frontends = report["plan"]["families"].to_string();
        for family in IpFamily::ALL {
            let (here, gone) = (here(family).to_string(), gone(family).to_string());
            assert!(status.contains(&format!("Node ports {family} on {here}\n")), "{status}");
            assert!(frontends.contains(&here) && !frontends.contains(&gone), "{report:#}");
        }
    }

    /// Whether a client outside gets an answer of the node port, and of the health check.
    fn answers(&self, address: IpAddr) -> (bool, bool) {
        let client = self.lab.client(Place::Outside, IpFamily::of(address));
        let traffic = client.ask(Protocol::Tcp, SocketAddr::new(address, self.case.node_port()));
        let health_check = SocketAddr::new(address, self.case.node_port() + 1000);
        let health = http_get(self.lab.namespace(Place::Outside), health_check, "/");
        (
            matches!(traffic, Answer::Answered { .. }),
            health.is_ok_and(|answer| answer.contains("\"localEndpoints\": 1")),
        )
    }

    fn status(&self) -> String {
        let mut command = self.lab.node().command(BINARY);
        command.args(["status", "--control-socket"]).arg(self.proxy.control_socket());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    fn explain(&self) -> (Value, i32) {
        let service = format!("packets/{}", self.case.service_name());
        let socket = self.proxy.control_socket();
        explain(self.lab.node(), &[&service, "--control-socket", socket.to_str().unwrap()])
    }
}

//! Node ports on localhost take `net.ipv4.conf.all.route_localnet`, which alone would let every
//! neighbour on the link talk to what listens on the node's loopback address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{EndpointState, Place, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Launch};
use kube_proxy_rs::testing::traffic::{Answer, PodServers};
use rstest::rstest;

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);

/// A port on the node's loopback address.
fn on_localhost(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn answered_by(answer: &Answer, name: &str) -> bool {
    matches!(answer, Answer::Answered { pod, .. } if pod == name)
}

#[rstest]
fn a_neighbour_cannot_reach_the_nodes_loopback_address_and_node_ports_answer_there(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let lab = Lab::create().unwrap();
    // A neighbour who sends 127.0.0.0/8 to the node, and takes answers from there.
    let neighbour = lab.namespace(Place::Outside);
    neighbour.set_sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap();
    neighbour.ip("addr del 127.0.0.1/8 dev lo\nroute add 127.0.0.0/8 via 10.200.0.11").unwrap();
    let secret = on_localhost(7777);
    let mut servers = PodServers::builder();
    servers.listen("secret", lab.node(), secret).unwrap();
    let _servers = servers.start().unwrap();
    let from_outside = lab.client(Place::Outside, IpFamily::V4).patience(Duration::from_secs(2));
    let from_node = lab.client(Place::Node, IpFamily::V4);
    let protocols = [Protocol::Tcp, Protocol::Udp];

    lab.node().set_sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap();
    for protocol in protocols {
        let answer = from_outside.ask(protocol, secret);
        assert!(answered_by(&answer, "secret"), "without our rules the way is open: {answer:?}");
    }
    lab.node().set_sysctl("net/ipv4/conf/all/route_localnet", "0").unwrap();

    let mut case = cases().into_iter().find(|case| case.shape.exposed && !case.shape.external_local).unwrap();
    case.shape.endpoints = vec![(Place::Local1, EndpointState::Ready)];
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags: &[] };
    let mut proxy = launch.start(&case.objects()).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    let setting = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet").unwrap();
    assert_eq!(lab.node().run(setting).unwrap().trim(), "1", "node ports on localhost need it");

    for protocol in protocols {
        assert_eq!(from_outside.ask(protocol, secret), Answer::Silence, "{protocol} from a neighbour");
        let answer = from_node.ask(protocol, secret);
        assert!(answered_by(&answer, "secret"), "{protocol} from the node itself: {answer:?}");
    }
    let answer = from_node.ask(Protocol::Tcp, on_localhost(case.node_port()));
    assert!(answered_by(&answer, Place::Local1.name()), "to a node port on localhost: {answer:?}");
    let by_address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), 7777);
    assert_eq!(from_outside.ask(Protocol::Tcp, by_address), Answer::Silence, "any address of the network");
}

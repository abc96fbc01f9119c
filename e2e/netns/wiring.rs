//! The lab itself, without any rules.

use std::net::SocketAddr;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{Place, TARGET_PORT};
use kube_proxy_rs::testing::traffic::Answer;

#[test]
fn every_place_reaches_every_pod_by_its_own_address() {
    let lab = Lab::create().unwrap();
    for family in IpFamily::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for from in [Place::LocalClient, Place::Remote1, Place::Node, Place::Outside] {
                for pod in Place::SERVERS {
                    let destination = SocketAddr::new(pod.address(family), TARGET_PORT);
                    let answer = lab.client(from, family).ask(protocol, destination);
                    let Answer::Answered { pod: name, source } = answer else {
                        panic!("{protocol} from {} to {destination}: {answer:?}", from.name())
                    };
                    assert_eq!(name, pod.name());
                    assert!(from == Place::Node || source == from.address(family), "{source}");
                }
            }
        }
    }
}

#[test]
fn a_port_without_a_server_is_refused() {
    let lab = Lab::create().unwrap();
    let destination = SocketAddr::new(Place::Local1.address(IpFamily::V4), 9);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let answer = lab.client(Place::Outside, IpFamily::V4).ask(protocol, destination);
        assert_eq!(answer, Answer::Refused);
    }
}

//! One Service that the kernel will not take, among a thousand.

use kube_proxy_rs::testing::stub_api::StubApi;

use super::wait_for_markers;
use super::{BTreeMap, Lab, Place, Protocol, at, counts, launch, servers, service, service_of};
use crate::refusal::expect_named;
use crate::resilience::thousand_services;

/// IPVS takes no real server at the broadcast address of a network that the node is on.
const BROADCAST: [u8; 4] = [10, 200, 0, 255];

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_service_that_the_kernel_refuses_is_named_and_left_out_and_all_others_work() {
    let lab = Lab::create().unwrap();
    let node = lab.node();
    let mut objects = thousand_services();
    objects.extend(service("web", "10.96.9.1", None, &[Place::Local1]));
    objects.extend(service_of("bad", ("10.96.9.9", Protocol::Tcp), None, &[BROADCAST.into()]));
    let server = node.run(StubApi::start_on_a_thread).unwrap().unwrap();
    let mut proxy = launch(node, &["--proxy-mode=ipvs"]).start_watching(&server, &objects).unwrap();
    wait_for_markers(&mut proxy, node);
    expect_named(node, (&proxy, &server), "packets/bad");
    assert_eq!(counts(&lab, at("10.96.9.1"), 4), BTreeMap::from([("local-1".to_owned(), 4)]));
    let listed = servers(node);
    let of = |start: &str| listed.iter().filter(|line| line.starts_with(start)).count();
    assert!(of("-A -t 10.") >= 1001, "{}", of("-A -t 10."));
    assert_eq!(of("-A -t 10.96.9.9:80 "), 0);
}

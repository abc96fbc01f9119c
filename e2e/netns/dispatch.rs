//! The two forms in which `KUBE-SERVICES` leads to the Services, and the way between them.

use std::thread;
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{PacketCase, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, save};
use rstest::rstest;

use crate::BINARY;
use crate::requests::{Requests, StopOnDrop};
use crate::resilience::exposed_case;

const SYNC: Duration = Duration::from_secs(120);
/// More rules than one case has, fewer than all have.
const FLAGS: &[&str] = &["--iptables-dispatch-tree-threshold=14", "--iptables-min-sync-period=0s"];

#[rstest]
fn no_request_is_lost_while_the_tree_comes_and_goes(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    let lab = Lab::create().unwrap();
    let few = exposed_case();
    let base = few.objects();
    let many: Vec<_> =
        cases().iter().filter(|case| case.flags.is_empty()).flat_map(PacketCase::objects).collect();
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags: FLAGS };
    let mut proxy = launch.start(&base).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    let requests = Requests::default();
    let lost = thread::scope(|scope| {
        let lost = scope.spawn(|| requests.ask_until_done(&lab, &few, family));
        let stop = StopOnDrop(&requests);
        for round in 0..6 {
            let grows = round % 2 == 0;
            proxy.apply(if grows { &many } else { &base }).unwrap();
            proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
            let rules = save(flavor, lab.node(), family == IpFamily::V6).unwrap();
            assert_eq!(rules.contains("-j KUBE-SVC-AAAA"), grows, "{rules}");
            requests.wait_for(10);
        }
        drop(stop);
        lost.join().unwrap()
    });
    assert!(lost.is_empty(), "{} requests lost: {:?}", lost.len(), lost[0]);
}

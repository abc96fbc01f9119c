//! A process in another network namespace changes virtual servers all the time. The kernel counts through those
//! of all namespaces when it lists, and so leaves some of ours out.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kube_proxy_rs::kernel::ipvs::{KernelIpvs, VirtualServers};
use kube_proxy_rs::model::{Frontend, IpFamily, IpvsScheduler, ServerOperation, VirtualServer};
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::proxy::Proxy;
use serde_json::Value;

use crate::explain::{codes, explain};
use crate::ipvs::{
    LIMIT, Namespace, Place, Protocol, launch, servers, service, wait_for_markers, wait_until,
};

/// Enough for the kernel to list them in several pieces.
const SERVICES: usize = 250;
/// Services that are asked about.
const ASKED: usize = 20;
/// Every look is a thorough one.
const FLAGS: [&str; 3] = ["--proxy-mode=ipvs", "--ipvs-sync-period=2s", "--ipvs-min-sync-period=50ms"];
/// Looks that have to find one thing each.
const LOOKS: usize = 3;
/// Services that go while the program is away.
const GONE: usize = 50;
/// What the program says when a family has had a pass. At a start IPv6 is the second one.
const SYNCED_V4: &str = "\"synced\" family=\"IPv4\"";
const SYNCED_V6: &str = "\"synced\" family=\"IPv6\"";

fn cluster_ip(index: usize) -> String {
    format!("10.96.9.{}", index + 1)
}

/// All of them but the first few.
fn services(gone: usize) -> Vec<Value> {
    let one = |index| service(&format!("web-{index}"), &cluster_ip(index), None, &[Place::Local1]);
    (gone..SERVICES).flat_map(one).collect()
}

/// Adds and removes virtual servers until told to end; how often.
fn churn(namespace: &Namespace, ends: &AtomicBool) -> usize {
    let at = |last| Frontend { address: [192, 0, 2, last].into(), port: 80, protocol: Protocol::Tcp };
    let with = || VirtualServer { scheduler: IpvsScheduler::as_upstream("rr"), affinity_seconds: None };
    let adds: Vec<_> = (0..=u8::MAX).map(|last| ServerOperation::Add(at(last), with())).collect();
    let removals: Vec<_> = (0..=u8::MAX).map(|last| ServerOperation::Remove(at(last))).collect();
    let rounds = namespace.run(|| {
        let mut ipvs = KernelIpvs::open().unwrap();
        let mut rounds = 0;
        while !ends.load(Ordering::Relaxed) {
            assert_eq!(ipvs.run(&adds).unwrap(), []);
            assert_eq!(ipvs.run(&removals).unwrap(), []);
            rounds += 1;
        }
        rounds
    });
    rounds.unwrap()
}

/// Ends the churn also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether the kernel now leaves out some of a node's virtual servers that rest.
fn are_hidden(node: &Namespace) -> bool {
    let listed = node.run(|| KernelIpvs::open().unwrap().list().unwrap()).unwrap();
    let ours: BTreeSet<_> = listed.into_iter().filter(|(at, _)| at.family() == IpFamily::V4).collect();
    ours.len() < SERVICES
}

/// Deletes a virtual server and waits until that, and nothing else, is named and mended; so a look at all has been
/// taken meanwhile.
fn expect_one_found(node: &Namespace, proxy: &Proxy, address: &str) {
    // At rest: what is deleted during a pass may be mended unnamed.
    proxy.pause(LIMIT).unwrap();
    let before = proxy.log().len();
    node.output("ipvsadm", &["-D", "-t", &format!("{address}:80")]).unwrap();
    let log = || proxy.log()[before..].to_owned();
    proxy.resume().unwrap();
    let named = format!("virtual server {address}:80/tcp is gone");
    let is_mended = || log().rsplit_once(&named).is_some_and(|(_, after)| after.contains(SYNCED_V4));
    let waited = wait_until("it is named and mended", LIMIT, is_mended);
    let log = log();
    assert!(waited.is_ok(), "{log}");
    let of_others = |line: &&str| line.contains("changed by another program") && !line.contains(address);
    assert_eq!(log.lines().filter(of_others).collect::<Vec<_>>(), [""; 0]);
    assert!(!log.contains("sync failed"), "{log}");
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn virtual_servers_of_other_namespaces_hide_none_of_ours() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let neighbour = Namespace::create("neighbour").unwrap();
    let launch = launch(&node, &FLAGS);
    let mut proxy = launch.start(&services(0)).unwrap();
    wait_for_markers(&mut proxy, &node);
    assert!(!are_hidden(&node));
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let churning = scope.spawn(|| churn(&neighbour, &ends));
        let at_last = Ends(&ends);
        wait_until("the kernel leaves out some of ours", LIMIT, || are_hidden(&node)).unwrap();
        let socket = proxy.control_socket();
        for index in 0..ASKED {
            let name = format!("packets/web-{index}");
            let (report, status) = explain(&node, &["--control-socket", socket.to_str().unwrap(), &name]);
            assert_eq!((codes(&report), status), ([].into(), 0), "{report:#}");
        }
        (0..LOOKS).for_each(|index| expect_one_found(&node, &proxy, &cluster_ip(SERVICES - 1 - index)));

        proxy.terminate().unwrap();
        let before = proxy.log().len();
        proxy.rewrite(&services(GONE)).unwrap();
        launch.start_again(&mut proxy).unwrap();
        let is_synced = || proxy.log()[before..].contains(SYNCED_V6);
        wait_until("it has taken over what there is", LIMIT, is_synced).unwrap();
        expect_one_found(&node, &proxy, &cluster_ip(SERVICES - 1));
        assert!(!proxy.log()[before..].contains("sync failed"), "{}", proxy.log());
        drop(at_last);
        assert!(churning.join().unwrap() > 1);
    });
    let left: BTreeSet<String> = servers(&node);
    let is_there = |index| left.iter().any(|line| line.contains(&format!("-t {}:80 ", cluster_ip(index))));
    let there: Vec<usize> = (0..SERVICES).filter(|index| is_there(*index)).collect();
    assert_eq!(there, (GONE..SERVICES).collect::<Vec<_>>());
}

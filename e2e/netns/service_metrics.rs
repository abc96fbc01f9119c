//! What Services carried, as the kernel counted it.

use std::net::SocketAddr;
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::{Lab, give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::{PacketCase, Place, SERVICE_PORT};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, metric_sum, metrics, wait_until};
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;

use crate::BINARY;
use crate::resilience::exposed_case;

const LIMIT: Duration = Duration::from_secs(120);
const SERVICE_TOTAL: &str = "kubeproxy_rs_service_connections_total";
const DROPPED: &str = "kubeproxy_rs_service_metrics_dropped_series";
const ENDPOINT_TOTAL: &str = "kubeproxy_rs_endpoint_connections_total";

/// Sends `requests` requests, one after the other; all must be answered.
fn ask(lab: &Lab, from: Place, to: SocketAddr, requests: usize) {
    let family = if to.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 };
    for answer in lab.client(from, family).ask_many(Protocol::Tcp, to, requests) {
        assert!(matches!(answer, Answer::Answered { .. }), "{to}: {answer:?}");
    }
}

/// The series of a Service and a family with all of these labels, added up.
fn sum(text: &str, name: &str, (case, family): (&PacketCase, IpFamily), label: &str) -> f64 {
    let service = format!("service=\"{}\"", case.service_name());
    let family = format!("ip_family=\"{family}\"");
    let wanted = [service.as_str(), family.as_str(), label];
    let lines = text.lines().filter(|line| wanted.iter().all(|part| line.contains(part)));
    metric_sum(&lines.collect::<Vec<_>>().join("\n"), name)
}

fn frontend(text: &str, of: (&PacketCase, IpFamily), kind: &str) -> f64 {
    sum(text, SERVICE_TOTAL, of, &format!("frontend=\"{kind}\""))
}

/// Waits until the connections to the cluster IP and from outside are these, and the endpoints got all.
fn wait_until_counted(lab: &Lab, of: (&PacketCase, IpFamily), wanted: [f64; 2]) {
    let counted = || {
        let text = metrics(lab.node()).unwrap_or_default();
        let frontends = ["cluster_ip", "external"].map(|kind| frontend(&text, of, kind));
        (frontends, sum(&text, ENDPOINT_TOTAL, of, "endpoint="))
    };
    let is_counted = || counted() == (wanted, wanted.iter().sum());
    let waited = wait_until("all connections are counted", LIMIT, is_counted);
    assert!(waited.is_ok(), "{:?} instead of {wanted:?}", counted());
}

#[rstest]
fn every_connection_is_counted_once_and_stays_counted_when_chains_are_rewritten(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let flags = ["--service-metrics=endpoints", "--iptables-min-sync-period=0s"];
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags: &flags };
    let mut proxy = launch.start(&case.objects()).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, LIMIT).unwrap();
    let cluster_ip = SocketAddr::new(case.cluster_ip(family), SERVICE_PORT);
    let external_ip = SocketAddr::new(case.external_ip(family), SERVICE_PORT);
    ask(&lab, Place::LocalClient, cluster_ip, 7);
    ask(&lab, Place::Outside, external_ip, 5);
    wait_until_counted(&lab, (&case, family), [7.0, 5.0]);
    // Affinity is part of the rules that count, so all of them are rewritten, long before the next
    // round of reading is over.
    for (affinity, inside) in [("ClientIP", 9.0), ("None", 11.0), ("ClientIP", 13.0)] {
        let mut objects = case.objects();
        objects[0]["spec"]["sessionAffinity"] = affinity.into();
        ask(&lab, Place::LocalClient, cluster_ip, 2);
        proxy.apply(&objects).unwrap();
        proxy.wait_for_sync(lab.node(), flavor, LIMIT).unwrap();
        let text = metrics(lab.node()).unwrap();
        assert_eq!(frontend(&text, (&case, family), "cluster_ip"), inside, "read before it was written");
    }
    ask(&lab, Place::Outside, external_ip, 3);
    wait_until_counted(&lab, (&case, family), [13.0, 8.0]);
}

#[test]
fn beyond_the_limit_series_are_dropped_and_said_to_be() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let flags = ["--service-metrics=endpoints", "--service-metrics-limit=1"];
    let launch = Launch { binary: BINARY, namespace: &node, flavor: Flavor::Nft, flags: &flags };
    let mut proxy = launch.start(&exposed_case().objects()).unwrap();
    proxy.wait_for_sync(&node, Flavor::Nft, LIMIT).unwrap();
    // The rules are in force a moment before their series appear.
    let mut text = String::new();
    let is_told = || {
        text = metrics(&node).unwrap_or_default();
        let dropped = text.lines().filter(|line| line.starts_with(DROPPED) && !line.ends_with(" 0"));
        dropped.count() == 2
    };
    wait_until("both families have told what they drop", LIMIT, is_told).unwrap();
    // In each family, the Service of the marker that has no endpoint takes the one place there is.
    assert_eq!(text.lines().filter(|line| line.starts_with(SERVICE_TOTAL)).count(), 2, "{text}");
    assert!(!text.contains(ENDPOINT_TOTAL), "{text}");
    assert!(metric_sum(&text, DROPPED) > 4.0, "{text}");
}

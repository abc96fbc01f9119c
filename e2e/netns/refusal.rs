//! One Service that the kernel will not take, among a thousand.

use std::net::SocketAddr;
use std::time::Duration;

use kube_proxy_rs::testing::lab::lone_node;
use kube_proxy_rs::testing::proxy::{Flavor, Launch, http_get, metrics, save, wait_until};

use crate::BINARY;
use crate::resilience::thousand_services;

/// Jumps to a chain on a netfilter hook are refused, so a hook with the name of an endpoint's
/// chain makes the kernel refuse the Service of that endpoint, and no other.
#[test]
fn a_service_that_the_kernel_refuses_is_named_and_left_out_and_all_others_work() {
    let node = lone_node().unwrap();
    let objects = thousand_services();
    let launch = || Launch { binary: BINARY, namespace: &node, flavor: Flavor::Nft, flags: &[] };
    let mut proxy = launch().start(&objects).unwrap();
    proxy.wait_for_sync(&node, Flavor::Nft, Duration::from_secs(60)).unwrap();
    let rules = save(Flavor::Nft, &node, false).unwrap();
    let service = "bulk/bulk-500";
    let balancing = jump_target(&rules, &format!("\"{service}:main cluster IP\""));
    let endpoint = jump_target(&rules, &format!("-A {balancing} "));
    proxy.kill().unwrap();
    node.output("nft", &["flush", "ruleset"]).unwrap();
    node.output("nft", &["add", "table", "ip", "nat"]).unwrap();
    let hook = "{ type nat hook prerouting priority 50; }";
    node.output("nft", &["add", "chain", "ip", "nat", endpoint, hook]).unwrap();

    launch().start_again(&mut proxy).unwrap();
    let named = || {
        let log = proxy.log_tail();
        log.lines().any(|line| line.contains("refused and left out") && line.contains(service))
    };
    wait_until("the refused Service is named", Duration::from_secs(60), named).unwrap();
    let gauge = "kubeproxy_rs_refused_services{ip_family=\"IPv4\"} 1";
    wait_until("the metric counts it", Duration::from_secs(60), || {
        metrics(&node).is_ok_and(|text| text.contains(gauge))
    })
    .unwrap();
    let health = SocketAddr::from(([127, 0, 0, 1], 10256));
    let detail = http_get(&node, health, "/readyz").unwrap();
    assert!(detail.contains(&format!("\"service\": \"{service}\"")), "{detail}");
    assert!(http_get(&node, health, "/healthz").unwrap().contains("\"healthy\":true"));
    let status = http_get(&node, SocketAddr::from(([127, 0, 0, 1], 10249)), "/statusz").unwrap();
    assert!(status.contains(service), "{status}");
    let after = save(Flavor::Nft, &node, false).unwrap();
    let frontends = |rules: &str| rules.lines().filter(|line| line.contains("cluster IP\"")).count();
    assert_eq!(frontends(&only(&after, service)), 0);
    assert_eq!(frontends(&after), frontends(&rules) - frontends(&only(&rules, service)));
}

/// Where the first rule with these words jumps to.
fn jump_target<'a>(rules: &'a str, words: &str) -> &'a str {
    let rule = rules.lines().find(|line| line.contains(words) && line.contains("-j KUBE-S")).unwrap();
    rule.rsplit_once("-j ").unwrap().1.trim()
}

/// The rules that name a Service.
fn only(rules: &str, service: &str) -> String {
    let name = format!("\"{service}:");
    rules.lines().filter(|line| line.contains(&name)).map(|line| format!("{line}\n")).collect()
}

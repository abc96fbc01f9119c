//! One Service that the kernel, or its tool, will not take, among a thousand.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kube_proxy_rs::testing::lab::lone_node;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::NODE_NAME;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, Proxy, http_get, metrics, save, wait_until};
use kube_proxy_rs::testing::stub_api::StubApi;
use rstest::rstest;
use serde_json::Value;

use crate::BINARY;
use crate::resilience::thousand_services;

const SERVICE: &str = "bulk/bulk-500";
const SYNC: Duration = Duration::from_secs(120);

/// Jumps to a chain on a netfilter hook are refused, so a hook with the name of an endpoint's
/// chain makes the kernel refuse the Service of that endpoint, and no other.
#[test]
fn a_service_that_the_kernel_refuses_is_named_and_left_out_and_all_others_work() {
    let (node, flavor) = (lone_node().unwrap(), Flavor::Nft);
    let launch = || Launch { binary: BINARY, namespace: &node, flavor, flags: &[] };
    let server = node.run(StubApi::start_on_a_thread).unwrap().unwrap();
    let mut proxy = launch().start_watching(&server, &thousand_services()).unwrap();
    proxy.wait_for_sync(&node, flavor, SYNC).unwrap();
    let rules = save(flavor, &node, false).unwrap();
    let balancing = jump_target(&rules, &format!("\"{SERVICE}:main cluster IP\""));
    let endpoint = jump_target(&rules, &format!("-A {balancing} "));
    proxy.kill().unwrap();
    node.output("nft", &["flush", "ruleset"]).unwrap();
    node.output("nft", &["add", "table", "ip", "nat"]).unwrap();
    let hook = "{ type nat hook prerouting priority 50; }";
    node.output("nft", &["add", "chain", "ip", "nat", endpoint, hook]).unwrap();

    launch().start_again(&mut proxy).unwrap();
    expect_left_out((&node, flavor), (&proxy, &server), &rules);
}

/// The legacy tables have nothing that makes the kernel refuse the rules of one Service only, so here
/// the tool does, in its own words; the rules of the Service are there from before.
#[rstest]
fn a_service_that_the_legacy_tool_refuses_is_named_and_left_out_and_all_others_work(
    #[values("", ".*cluster IP.* -j KUBE-SVC-")] rules_refused: &str,
) {
    let (node, flavor) = (lone_node().unwrap(), Flavor::Legacy);
    let launch = |binary| Launch { binary, namespace: &node, flavor, flags: &[] };
    let server = node.run(StubApi::start_on_a_thread).unwrap().unwrap();
    let mut proxy = launch(BINARY).start_watching(&server, &thousand_services()).unwrap();
    proxy.wait_for_sync(&node, flavor, SYNC).unwrap();
    let rules = save(flavor, &node, false).unwrap();
    proxy.kill().unwrap();
    // What is in place is not written again.
    node.output("iptables-legacy", &["-t", "nat", "-F"]).unwrap();

    let folder = Folder::create().unwrap();
    let tools = folder.path().display();
    let script = |name: &str, text: &str| {
        folder.write(name, &format!("#!/bin/sh\n{text}\n")).unwrap();
        let path = folder.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let tool = "iptables-legacy-restore";
    let real = node.output("sh", &["-c", &format!("command -v {tool}")]).unwrap();
    script(
        tool,
        &format!(
            "input=$(mktemp -p {tools}); cat > $input\n\
             line=$(grep -n '{SERVICE}:{rules_refused}' $input | head -n 1 | cut -d: -f1)\n\
             if [ -n \"$line\" ]; then echo \"{tool}: line $line failed\" >&2; exit 1; fi\n\
             exec {} \"$@\" < $input",
            real.trim()
        ),
    );
    let binary = script("start", &format!("PATH={tools}:$PATH exec {BINARY} \"$@\""));
    launch(&binary).start_again(&mut proxy).unwrap();
    expect_left_out((&node, flavor), (&proxy, &server), &rules);
}

/// It is named, and the kernel has all rules that it had before but for those of the one Service.
fn expect_left_out((node, flavor): (&Namespace, Flavor), (proxy, server): (&Proxy, &StubApi), rules: &str) {
    expect_named(node, (proxy, server), SERVICE);
    let after = save(flavor, node, false).unwrap();
    let frontends = |rules: &str| rules.lines().filter(|line| line.contains("cluster IP\"")).count();
    assert_eq!(frontends(&only(&after, SERVICE)), 0);
    assert_eq!(frontends(&after), frontends(rules) - frontends(&only(rules, SERVICE)));
}

/// A refused Service is named in the log, in Events on itself and on our Node, in the metrics, in the
/// health detail and on the page of the metrics server, and by `status`.
pub(crate) fn expect_named(node: &Namespace, (proxy, server): (&Proxy, &StubApi), service: &str) {
    let named = || {
        let log = proxy.log_tail();
        log.lines().any(|line| line.contains("refused and left out") && line.contains(service))
    };
    wait_until("the refused Service is named", SYNC, named)
        .unwrap_or_else(|error| panic!("{error}: {}", proxy.log_tail()));
    wait_until("Events tell of it", SYNC, || has_events_about(service, &server.events()))
        .unwrap_or_else(|error| panic!("{error}: {:#?}", server.events()));
    let gauge = "kubeproxy_rs_refused_services{ip_family=\"IPv4\"} 1";
    wait_until("the metric counts it", SYNC, || metrics(node).is_ok_and(|text| text.contains(gauge)))
        .unwrap();
    let [health, detailed] = [10256, 10249].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let detail = http_get(node, detailed, "/readyz").unwrap();
    assert!(detail.contains(&format!("\"service\": \"{service}\"")), "{detail}");
    assert!(http_get(node, health, "/healthz").unwrap().contains("\"healthy\":true"));
    assert!(http_get(node, health, "/status").unwrap().contains("\r\n\r\ndegraded\n"));
    let status = http_get(node, detailed, "/statusz").unwrap();
    assert!(status.contains(service), "{status}");
    let mut ask = node.command(BINARY);
    let told = ask.args(["status", "--control-socket"]).arg(proxy.control_socket()).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains(&format!("refused: {service}: ")), "{told}");
}

/// One Event is on the Service, where its owner looks, and one on our Node that names it.
fn has_events_about(service: &str, events: &[Value]) -> bool {
    let refusals = || events.iter().filter(|event| event["reason"] == "FailedToProgramService");
    let on_service = |event: &Value| {
        let regarding = &event["regarding"];
        let text = |field: &str| regarding[field].as_str().unwrap_or_default();
        regarding["kind"] == "Service" && service == format!("{}/{}", text("namespace"), text("name"))
    };
    let on_node = |event: &Value| {
        let regarding = &event["regarding"];
        regarding["kind"] == "Node"
            && regarding["name"] == NODE_NAME
            && event["note"].as_str().is_some_and(|note| note.contains(service))
    };
    refusals().any(on_service) && refusals().any(on_node)
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

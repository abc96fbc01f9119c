//! What a real Prometheus makes of our metrics.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Duration;

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::cases;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, Proxy, http_get, metrics, wait_until};

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);
const PROMETHEUS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

fn program(node: &Namespace) -> Proxy {
    give_idle_uplink(node).unwrap();
    let launch = Launch {
        binary: BINARY,
        namespace: node,
        flavor: Flavor::Nft,
        flags: &["--service-metrics=endpoints"],
    };
    let mut proxy = launch.start(&cases()[0].objects()).unwrap();
    proxy.wait_for_sync(node, Flavor::Nft, SYNC).unwrap();
    proxy
}

#[test]
fn promtool_has_nothing_to_say_but_about_names_that_are_kube_proxys() {
    let node = lone_node().unwrap();
    let _proxy = program(&node);
    let answer = metrics(&node).unwrap();
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    let mut promtool = node.command("promtool");
    let mut child = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is part of the package prometheus");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    // Gauges should not end in _total, says promtool; but kube-proxy's do, and dashboards ask for them.
    let said = String::from_utf8_lossy(&said).into_owned();
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| !line.contains("non-counter metrics should not have \"_total\" suffix"))
        .collect();
    assert_eq!(complaints, Vec::<&str>::new());
}

/// Killed on drop.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn prometheus(node: &Namespace, folder: &Folder) -> Server {
    let config = "global: {scrape_interval: 1s}\n\
                  scrape_configs:\n\
                  - job_name: kube-proxy\n  static_configs: [{targets: ['127.0.0.1:10249']}]\n";
    folder.write("prometheus.yml", config).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let child = node
        .command("prometheus")
        .arg(format!("--config.file={}", path("prometheus.yml")))
        .arg(format!("--storage.tsdb.path={}", path("data")))
        .arg(format!("--web.listen-address={PROMETHEUS}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is a Debian package");
    Server(child)
}

#[test]
fn a_prometheus_scrapes_us_and_finds_what_dashboards_ask_for() {
    let node = lone_node().unwrap();
    let _proxy = program(&node);
    let folder = Folder::create().unwrap();
    let _server = prometheus(&node, &folder);
    let finds = |query: &str| {
        let path = format!("/api/v1/query?query={query}");
        http_get(&node, PROMETHEUS, &path).is_ok_and(|answer| answer.contains("\"__name__\""))
    };
    let wait = |query: &str| {
        wait_until(&format!("Prometheus has {query}"), SYNC, || finds(query)).unwrap();
    };
    wait("up==1");
    for query in [
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_iptables_total",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "process_resident_memory_bytes",
        "kubernetes_build_info",
    ] {
        wait(query);
    }
}

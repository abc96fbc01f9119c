//! How it starts and ends: what it leaves alone until it knows that it can run, and what it takes away when it goes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{NODE_NAME, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, Proxy, save, wait_until};
use nix::sys::signal::{Signal, kill};
use rstest::rstest;

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);

fn node() -> Namespace {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    node
}

fn launch<'a>(node: &'a Namespace, flags: &'a [&'a str]) -> Launch<'a> {
    Launch { binary: BINARY, namespace: node, flavor: Flavor::Nft, flags }
}

fn started(node: &Namespace, flags: &[&str]) -> Proxy {
    let mut proxy = launch(node, flags).start(&cases()[0].objects()).unwrap();
    proxy.wait_for_sync(node, Flavor::Nft, SYNC).unwrap();
    proxy
}

/// What a start may change on a node: settings, rules, tables, sets and interfaces.
fn state(node: &Namespace) -> BTreeMap<String, String> {
    fn read(folder: &Path, into: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_counter = path.ends_with("nf_conntrack_count");
            if path.is_dir() {
                read(&path, into);
            } else if let Some(value) = fs::read_to_string(&path).ok().filter(|_| !is_counter) {
                into.insert(path.display().to_string(), value);
            }
        }
    }
    let mut found = BTreeMap::new();
    for folder in ["netfilter", "ipv4/conf/all", "ipv6/conf/all", "ipv4/vs"] {
        node.run(|| read(&Path::new("/proc/sys/net").join(folder), &mut found)).unwrap();
    }
    for (program, arguments) in [
        ("nft", &["list", "tables"][..]),
        ("cat", &["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]),
        ("ipset", &["save"]),
        ("ip", &["-o", "link", "show"]),
    ] {
        found.insert(program.to_owned(), node.output(program, arguments).unwrap());
    }
    found
}

/// Runs the program until it ends by itself.
fn run(node: &Namespace, path: &str, arguments: &[&str]) -> Output {
    let mut command = node.command("timeout");
    command.args(["60", "env", path, BINARY, "--hostname-override", NODE_NAME]).args(arguments);
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

#[rstest]
#[case::missing_kubeconfig(PATH, &["--kubeconfig=/nowhere/kubeconfig"], "/nowhere/kubeconfig")]
#[case::bad_kubeconfig(PATH, &["--kubeconfig=/etc/hostname"], "/etc/hostname")]
#[case::bad_master(PATH, &["--master=http://"], "http://")]
#[case::nobody_to_ask(PATH, &[], "service account")]
#[case::missing_manifests(PATH, &["--manifests=/nowhere/manifests"], "/nowhere/manifests")]
#[case::no_tools("PATH=/nowhere", &["MANIFESTS"], "install the package iptables")]
#[case::no_pod_networks(PATH, &["MANIFESTS", "--detect-local-mode=NodeCIDR"], "spec.podCIDRs")]
#[case::other_family(PATH, &["MANIFESTS", "--cluster-cidr=fd00:128::/48"], "clusterCIDR")]
#[case::no_such_scheduler(PATH, &["MANIFESTS", "--proxy-mode=ipvs", "--ipvs-scheduler=dice"], "dice")]
fn a_start_that_fails_changes_nothing(#[case] path: &str, #[case] flags: &[&str], #[case] word: &str) {
    let node = node();
    node.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let folder = Folder::create().unwrap();
    folder.write("services.yaml", "apiVersion: v1\nkind: List\nitems: []\n").unwrap();
    let manifests = format!("--manifests={}", folder.path().display());
    let socket = folder.path().join("run/control.sock");
    let socket_flag = format!("--control-socket={}", socket.display());
    let mut arguments: Vec<&str> =
        flags.iter().map(|flag| if *flag == "MANIFESTS" { manifests.as_str() } else { flag }).collect();
    arguments.extend(["--conntrack-udp-timeout=77s", &socket_flag]);
    let before = state(&node);
    let output = run(&node, path, &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains(word), "{}", stderr(&output));
    let after = state(&node);
    let changed: Vec<_> = after.iter().filter(|(name, value)| before.get(*name) != Some(value)).collect();
    assert!(changed.is_empty(), "{changed:?}\n{}", stderr(&output));
    assert!(!socket.exists());
}

#[rstest]
#[case(Signal::SIGTERM)]
#[case(Signal::SIGINT)]
#[case(Signal::SIGQUIT)]
fn it_ends_by_a_signal_and_leaves_the_rules_and_no_socket(#[case] signal: Signal) {
    let node = node();
    let mut proxy = started(&node, &[]);
    assert!(proxy.control_socket().exists());
    proxy.end_by(signal).unwrap();
    assert!(proxy.log_tail().contains(&format!("signal=\"{signal}\"")), "{}", proxy.log_tail());
    assert!(!proxy.control_socket().exists());
    assert!(save(Flavor::Nft, &node, false).unwrap().contains("KUBE-SERVICES"));
}

#[test]
fn no_socket_stays_after_an_error_and_what_a_killed_one_left_is_replaced() {
    let node = node();
    let folder = Folder::create().unwrap();
    let config = |text: &str| {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        folder.write("config", &format!("{head}{text}")).unwrap();
    };
    config("");
    let flag = format!("--config={}", folder.path().join("config").display());
    let mut proxy = started(&node, &[&flag]);
    proxy.kill().unwrap();
    assert!(proxy.control_socket().exists(), "nobody could take it away");
    launch(&node, &[&flag]).start_again(&mut proxy).unwrap();
    let answers = || {
        let socket = proxy.control_socket();
        node.output(BINARY, &["status", "--control-socket", socket.to_str().unwrap()]).is_ok()
    };
    wait_until("it answers", SYNC, answers).unwrap();
    config("conntrack: {min: 7}\n");
    wait_until("it ends", SYNC, || !proxy.is_running()).unwrap();
    assert!(proxy.log_tail().contains("conntrack.min"), "{}", proxy.log_tail());
    assert!(!proxy.control_socket().exists());
}

#[test]
fn signals_that_mean_something_else_are_named_and_change_nothing() {
    let node = node();
    let mut proxy = started(&node, &[]);
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGPIPE] {
        kill(proxy.pid(), signal).unwrap();
        let named = || signal == Signal::SIGPIPE || proxy.log().contains(&format!("signal=\"{signal}\""));
        wait_until("it is named", SYNC, named).unwrap();
    }
    proxy.apply(&cases()[1].objects()).unwrap();
    proxy.wait_for_sync(&node, Flavor::Nft, SYNC).unwrap();
}

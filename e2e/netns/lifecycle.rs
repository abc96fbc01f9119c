//! How it starts and ends: what it leaves alone until it knows that it can run, and what it takes away when it goes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

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
#[case::no_source(PATH, &[], "give --kubeconfig or --master")]
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
    assert!(proxy.control_socket().exists(), "a killed process removes nothing");
    launch(&node, &[&flag]).start_again(&mut proxy).unwrap();
    let answers = || {
        let socket = proxy.control_socket();
        node.output(BINARY, &["status", "--control-socket", socket.to_str().unwrap()]).is_ok()
    };
    wait_until("it answers", SYNC, answers).unwrap();
    fs::remove_file(folder.path().join("config")).unwrap();
    wait_until("the lost file is named", SYNC, || proxy.log().contains("cannot be read any more")).unwrap();
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

/// Runs a second program in another container, as far as mounts and processes go, until it ends.
fn in_another_container(node: &Namespace, arguments: &[&str]) -> Output {
    let mut command = node.command("timeout");
    let container = ["60", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    command.args(container).arg(BINARY).args(arguments);
    command.output().unwrap()
}

#[test]
fn a_second_one_says_who_is_there_and_ends_without_having_changed_anything() {
    let node = node();
    let mut first = started(&node, &[]);
    let manifests = format!("--manifests={}", first.manifests()[0].display());
    let second = [&manifests, "--control-socket=", "--conntrack-udp-timeout=77s"];
    let before = state(&node);
    let rules = crate::saved::rules(&node, Flavor::Nft, false);
    for (in_sight, output) in
        [(true, run(&node, PATH, &second)), (false, in_another_container(&node, &second))]
    {
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let error = said.lines().find(|line| line.starts_with("Error: ")).unwrap();
        let who = if in_sight { format!("pid {}", first.pid()) } else { "another container".to_owned() };
        for words in ["another kube-proxy-rs", &who, "mode iptables", "stop that one first"] {
            assert!(error.contains(words), "{words} in {error}");
        }
    }
    assert_eq!(state(&node), before);
    assert_eq!(crate::saved::rules(&node, Flavor::Nft, false), rules);
    assert!(first.is_running() && !first.log().contains("another program"), "{}", first.log_tail());
}

#[test]
fn one_that_is_about_to_end_is_waited_for_and_a_killed_one_leaves_no_lock() {
    let node = node();
    let mut first = started(&node, &[]);
    let mut second = launch(&node, &[]).start_on(first.manifests()).unwrap();
    wait_until("it waits", SYNC, || second.log().contains("waiting for it to end")).unwrap();
    first.kill().unwrap();
    let takes_over = || answers(&node, second.control_socket());
    wait_until("the second one takes over", SYNC, takes_over).unwrap();
    assert!(second.is_running());
    second.kill().unwrap();
    let begin = Instant::now();
    let third = launch(&node, &[]).start_on(first.manifests()).unwrap();
    wait_until("the third one starts at once", SYNC, || answers(&node, third.control_socket())).unwrap();
    assert!(!third.log().contains("another kube-proxy-rs"), "{:?}: {}", begin.elapsed(), third.log());
}

fn answers(node: &Namespace, socket: PathBuf) -> bool {
    node.output(BINARY, &["status", "--control-socket", socket.to_str().unwrap()]).is_ok()
}

#[test]
fn commands_that_only_ask_or_clean_up_need_no_lock() {
    let node = node();
    let first = started(&node, &[]);
    let manifests = first.manifests()[0].to_str().unwrap().to_owned();
    let begin = Instant::now();
    for arguments in [
        &["render", "--manifests", &manifests][..],
        &["explain", "packets/none", "--manifests", &manifests],
        &["services", "--manifests", &manifests],
        &["check", "--manifests", &manifests],
        &["--init-only", "--manifests", &manifests],
        &["--cleanup"],
    ] {
        let said = stderr(&run(&node, PATH, arguments));
        assert!(!said.contains("another kube-proxy-rs programs"), "{arguments:?}: {said}");
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
}

/// A process without rights cannot keep the proxy from starting.
#[test]
fn a_lock_of_a_process_without_rights_is_no_lock() {
    let node = node();
    let bind = r#"socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un("\0kube-proxy-rs")) or die;
        listen(S, 5); sleep 600"#;
    let mut command = node.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-MSocket", "-e", bind]);
    let mut squatter = crate::running::Running::start(&mut command);
    let bound = || node.output("grep", &["@kube-proxy-rs", "/proc/net/unix"]).is_ok();
    wait_until("it is bound", SYNC, bound).unwrap();
    let proxy = started(&node, &[]);
    assert!(proxy.log().contains("no proxy"), "{}", proxy.log());
    assert!(!squatter.has_ended());
}

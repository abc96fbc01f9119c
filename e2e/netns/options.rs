//! Kinds of rules that the tools refuse: the rules do without what is only counted or optional, and `check` names all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::{Lab, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::Place;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, Proxy, metric_sum, metrics, save, wait_until};
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;
use serde_json::Value;

use crate::BINARY;
use crate::health::service;

const SYNC: Duration = Duration::from_secs(120);

/// The real tools of a flavour, but for what they refuse.
struct Tools {
    folder: Folder,
    /// Starts the program with them.
    program: String,
}

impl Tools {
    fn of(flavor: Flavor, node: &Namespace) -> Tools {
        let folder = Folder::create().unwrap();
        let path = folder.path().display().to_string();
        for family in ["iptables", "ip6tables"] {
            let tool = format!("{family}-{flavor}-restore");
            let real = node.output("sh", &["-c", &format!("command -v {tool}")]).unwrap();
            let text = format!(
                "input=$(mktemp -p {path}); cat > $input; exec 3< $input\n\
                 line=$(grep -n -F -f {path}/refused $input | head -n 1 | cut -d: -f1); rm $input\n\
                 [ -z \"$line\" ] || {{ echo \"{tool}: Couldn't load match\nError occurred at line: $line\" >&2; exit 2; }}\n\
                 exec {} \"$@\" <&3",
                real.trim()
            );
            script(&folder, &tool, &text);
        }
        let program = script(&folder, "start", &format!("PATH={path}:$PATH exec {BINARY} \"$@\""));
        let tools = Tools { folder, program };
        tools.refuse("");
        tools
    }

    /// Inputs with one of these words, one a line, are refused from now on.
    fn refuse(&self, words: &str) {
        self.folder.write("refused", words).unwrap();
    }
}

fn script(folder: &Folder, name: &str, text: &str) -> String {
    folder.write(name, &format!("#!/bin/sh\n{text}\n")).unwrap();
    let path = folder.path().join(name);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A node port is served in both families, and no rule has the option.
fn expect_served_without(option: &str, (lab, proxy, flavor): (&Lab, &Proxy, Flavor)) {
    let case = service(&[Place::Local1]);
    for family in IpFamily::ALL {
        let to = std::net::SocketAddr::new(Place::Node.address(family), case.node_port());
        let is_served = || {
            let rules = save(flavor, lab.node(), family == IpFamily::V6).unwrap();
            let client = lab.client(Place::Outside, family);
            !rules.contains(option) && matches!(client.ask(Protocol::Tcp, to), Answer::Answered { .. })
        };
        wait_until("the node port is served without the option", SYNC, is_served)
            .unwrap_or_else(|error| panic!("{family}: {error}: {}", proxy.log_tail()));
    }
    let told = || {
        let log = proxy.log();
        log.lines()
            .filter(|line| line.contains("rules are written without this option") && line.contains(option))
            .count()
    };
    wait_until("it is told once in each family", SYNC, || told() == 2)
        .unwrap_or_else(|error| panic!("{error}: {}", proxy.log_tail()));
    let log = proxy.log();
    assert!(!log.contains("refused and left out"), "no Service is suspected: {}", proxy.log_tail());
    assert!(!save(flavor, lab.node(), false).unwrap().contains("TRIAL"));
}

#[rstest]
fn what_only_counts_or_is_optional_is_left_out_from_the_start(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[values("nfacct", "--random-fully")] option: &str,
) {
    expect_left_out(flavor, option, &[]);
}

pub(crate) fn expect_left_out(flavor: Flavor, option: &str, flags: &[&str]) {
    let lab = Lab::create().unwrap();
    let tools = Tools::of(flavor, lab.node());
    tools.refuse(option);
    let launch = Launch { binary: &tools.program, namespace: lab.node(), flavor, flags };
    let proxy = launch.start(&service(&[Place::Local1]).objects()).unwrap();
    expect_served_without(option, (&lab, &proxy, flavor));
    let failures = metric_sum(
        &metrics(lab.node()).unwrap(),
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    );
    assert!(failures < 1.0, "no sync failed: {}", proxy.log_tail());
}

/// All rules are written again, after a flush; by then the tool has changed.
#[rstest]
fn what_is_refused_later_is_left_out_before_a_service_is_suspected(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[values("nfacct", "--random-fully")] option: &str,
) {
    let lab = Lab::create().unwrap();
    let tools = Tools::of(flavor, lab.node());
    let launch = Launch { binary: &tools.program, namespace: lab.node(), flavor, flags: &[] };
    let mut proxy = launch.start(&service(&[Place::Local1]).objects()).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    let has_option = save(flavor, lab.node(), false).unwrap().contains(option);
    assert!(has_option, "the kernel of the tests knows it");
    tools.refuse(option);
    for family in ["iptables", "ip6tables"] {
        for table in ["nat", "filter"] {
            lab.node().output(&format!("{family}-{flavor}"), &["-t", table, "-F"]).unwrap();
        }
    }
    expect_served_without(option, (&lab, &proxy, flavor));
}

/// What `check` says of the tools of a family.
fn checked(node: &Namespace, tools: &Tools, flags: &[&str]) -> (String, String) {
    // No proxy of this machine is asked.
    let socket = tools.folder.path().join("control.sock");
    let mut command = node.command(&tools.program);
    command.args(["check", "-o", "json", "--control-socket"]).arg(socket).args(flags);
    let output = command.output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = found["findings"].as_array().unwrap();
    let iptables = findings.iter().find(|it| it["check"] == "iptables (IPv4)").unwrap();
    let text = |field: &str| iptables[field].as_str().unwrap().to_owned();
    (text("severity"), text("message"))
}

#[rstest]
#[case::refusals("-j REJECT", "broken", "REJECT, without which Services without endpoints are not served")]
#[case::affinity(
    "-m recent",
    "problem",
    "recent, without which Services with session affinity are not served"
)]
#[case::counters("-m nfacct", "problem", "nfacct, which are written without it")]
#[case::nothing("no such words", "ok", "all kinds of rule work")]
fn check_tries_every_kind_of_rule_for_real_and_leaves_nothing_behind(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[case] refused: &str,
    #[case] level: &str,
    #[case] said: &str,
) {
    let node = lone_node().unwrap();
    let tools = Tools::of(flavor, &node);
    tools.refuse(refused);
    let (found, message) = checked(&node, &tools, &["--iptables-flavor", flavor.as_str()]);
    assert!(found == level && message.contains(said), "{found}: {message}");
    for v6 in [false, true] {
        assert!(!save(flavor, &node, v6).unwrap().contains("TRIAL"));
    }
    assert!(!node.output("nfacct", &["list"]).unwrap_or_default().contains("TRIAL"));
    assert_eq!(node.output("ipset", &["list", "-n"]).unwrap(), "");
}

/// Where the kernel lacks `ip_vs`, it does not know the match of that name, which the tool does.
#[test]
fn what_only_the_kernel_refuses_is_found() {
    let (node, other) = (lone_node().unwrap(), lone_node().unwrap());
    let rule = ["-A", "OUTPUT", "-m", "ipvs", "--vport", "80", "-j", "ACCEPT"];
    let is_taken = other.output("iptables-nft", &rule).is_ok();
    let tools = Tools::of(Flavor::Nft, &node);
    let (level, message) = checked(&node, &tools, &["--mode", "ipvs", "--iptables-flavor", "nft"]);
    match is_taken {
        true => assert_eq!(level, "ok", "{message}"),
        false => {
            assert!(level == "problem" && message.contains("with ipvs, without which"), "{level}: {message}")
        }
    }
    assert_eq!(node.output("ipset", &["list", "-n"]).unwrap(), "");
}

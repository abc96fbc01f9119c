//! Broken nodes and healthy ones, and what `explain --all` says of each: the true cause, and nothing beside it.
//!
//! A node is set up once for a mode, and the program, which would mend what is broken, is gone by then. Each row then acts
//! on the kernel, is asked about, and is undone.

mod broken;
mod healthy;
mod objects;

use std::collections::BTreeSet;
use std::time::Duration;

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{CLUSTER_CIDR, NODE_NAME, to_manifest};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, wait_until};
use kube_proxy_rs::testing::thorough::thorough;
use rstest::rstest;
use serde_json::Value;

use crate::BINARY;
use crate::explain::explain;
use crate::shapes::assert_documented;

const SYNC: Duration = Duration::from_secs(120);

/// A mode with the tools that it writes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    IptablesNft,
    IptablesLegacy,
    Nftables,
    Ipvs,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::IptablesNft | Mode::IptablesLegacy => "iptables",
            Mode::Nftables => "nftables",
            Mode::Ipvs => "ipvs",
        }
    }

    fn flavor(self) -> Flavor {
        if self == Mode::IptablesLegacy { Flavor::Legacy } else { Flavor::Nft }
    }
}

/// A node as a program has left it that ran until just now.
struct Node {
    namespace: Namespace,
    mode: Mode,
    folder: Folder,
}

impl Node {
    fn programmed(mode: Mode) -> Node {
        let namespace = lone_node().unwrap();
        give_idle_uplink(&namespace).unwrap();
        let folder = Folder::create().unwrap();
        folder.write("objects.yaml", &to_manifest(&objects::all())).unwrap();
        let node = Node { namespace, mode, folder };
        node.program();
        // With this, a row can be undone.
        let none = ":PREROUTING ACCEPT\n:OUTPUT ACCEPT";
        let empty = format!(
            "*raw\n{none}\nCOMMIT\n*mangle\n{none}\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n\
             *nat\n{none}\n:INPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n\
             *filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
        );
        node.folder.write("empty", &empty).unwrap();
        node.shell("$IPT-save | cat $DIR/empty - > $DIR/4; $IP6T-save | cat $DIR/empty - > $DIR/6");
        node
    }

    /// Lets the program write its rules, and ends it.
    fn program(&self) {
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let flavor = self.mode.flavor();
        let launch = Launch { binary: BINARY, namespace: &self.namespace, flavor, flags: &flags };
        let mut proxy = launch.start_on(&[self.folder.path().join("objects.yaml")]).unwrap();
        let stands = || !proxy.is_running() || self.is_whole();
        wait_until("the rules of the last Service are in force", SYNC, stands).unwrap();
        assert!(proxy.is_running(), "{}", proxy.log_tail());
        proxy.kill().unwrap();
    }

    fn flags(&self) -> Vec<String> {
        let mode = format!("--proxy-mode={}", self.mode.name());
        [mode.as_str(), "--max-service-source-ranges=3", "--nodeport-addresses=10.200.0.0/16,fd00:200::/64"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Both families have the Service that comes last.
    fn is_whole(&self) -> bool {
        let listing = match self.mode {
            Mode::Nftables => {
                "for f in ip ip6; do nft list set $f kube-proxy cluster-ips; nft list chain $f kube-proxy nat-prerouting; done"
            }
            Mode::Ipvs => "ip -o address show kube-ipvs0",
            _ => "$IPT-save -t nat; $IP6T-save -t nat",
        };
        let text = self.try_shell(listing).unwrap_or_default();
        let leads = self.mode != Mode::Nftables || text.matches("jump services").count() == 2;
        leads && objects::LAST.iter().all(|address| text.contains(address))
    }

    fn try_shell(&self, commands: &str) -> anyhow::Result<String> {
        let flavor = self.mode.flavor();
        let folder = self.folder.path().display();
        let names = format!("DIR={folder} IPT=iptables-{flavor} IP6T=ip6tables-{flavor}");
        self.namespace.output("sh", &["-c", &format!("{names}\n{commands}")])
    }

    fn shell(&self, commands: &str) -> String {
        self.try_shell(commands).unwrap_or_else(|error| panic!("{error:#}\n{commands}"))
    }

    fn restore(&self) {
        self.shell("$IPT-restore < $DIR/4 && $IP6T-restore < $DIR/6");
    }

    /// What `explain` says, and its exit status.
    fn explain(&self, about: &[&str]) -> (Value, i32) {
        let manifests = self.folder.path().join("objects.yaml").display().to_string();
        let flags = self.flags();
        let mut arguments = vec!["--manifests", &manifests, "--hostname-override", NODE_NAME];
        arguments.extend(["--cluster-cidr", CLUSTER_CIDR, "--iptables-flavor", self.mode.flavor().as_str()]);
        arguments.extend(flags.iter().map(String::as_str));
        arguments.extend(about);
        explain(&self.namespace, &arguments)
    }
}

/// What a report names, but for what is wrong with the Services that are meant to be broken.
fn beside_the_services(report: &Value) -> BTreeSet<&str> {
    let is_of_node = |it: &&Value| !objects::CAUSES.iter().any(|(cause, _)| it["code"] == *cause);
    let of_node = report["findings"].as_array().unwrap().iter().filter(is_of_node);
    of_node.map(|it| it["code"].as_str().unwrap()).collect()
}

/// What a report says of the node, in lines.
fn messages(report: &Value) -> String {
    let found = beside_the_services(report);
    let all = report["findings"].as_array().unwrap().iter();
    let of_node = all.filter(|it| found.contains(it["code"].as_str().unwrap()));
    of_node.map(|it| format!("\n    {}: {}", it["severity"], it["message"])).collect()
}

#[rstest]
fn the_cause_is_named_and_no_other_one(
    #[values(Mode::IptablesNft, Mode::IptablesLegacy, Mode::Nftables)] mode: Mode,
) {
    try_all_rows(mode);
}

/// Breaks a node in all ways that a mode has, and asks.
pub(crate) fn try_all_rows(mode: Mode) {
    let node = Node::programmed(mode);
    let mut failures = Vec::new();
    let (report, status) = node.explain(&["--all"]);
    assert_eq!((beside_the_services(&report), status), (BTreeSet::new(), 0), "{report:#}");
    failures.extend(objects::complaints(&report));
    for command in ["services", "check"] {
        let manifests = node.folder.path().join("objects.yaml");
        let output = node
            .namespace
            .command(BINARY)
            .args([command, "-o", "json", "--manifests"])
            .arg(manifests)
            .output();
        assert_documented(&serde_json::from_slice(&output.unwrap().stdout).unwrap());
    }
    // An emulated machine takes half a minute for each.
    let is_ipvs = mode == Mode::Ipvs;
    let step = if is_ipvs { thorough(10, 1) } else { 1 };
    for row in broken::ROWS.iter().filter(|row| (row.modes)(mode)).step_by(step) {
        node.shell(row.act);
        let (report, status) = node.explain(&["--all"]);
        let (found, wanted) = (beside_the_services(&report), row.causes.iter().copied().collect());
        if found != wanted || status != row.status {
            failures.push(format!("{mode:?}: {}: {found:?}, {status}: {}", row.name, messages(&report)));
        }
        failures.extend(objects::complaints(&report));
        node.shell(row.undo);
        if row.harms_table {
            node.program();
        } else {
            node.restore();
        }
    }
    for row in healthy::ROWS.iter().filter(|row| !is_ipvs || thorough(false, row.in_ipvs)) {
        node.shell(row.rules);
        let (report, status) = node.explain(&["--all"]);
        let found = beside_the_services(&report);
        let is_alarm = |it: &&Value| it["severity"] != "note" && found.contains(it["code"].as_str().unwrap());
        let has_alarm = report["findings"].as_array().unwrap().iter().any(|it| is_alarm(&it));
        let is_iptables = matches!(mode, Mode::IptablesNft | Mode::IptablesLegacy);
        let of_nat = if is_iptables { row.iptables_notes } else { &[] };
        let notes: BTreeSet<&str> = row.notes.iter().chain(of_nat).copied().collect();
        if status != 0 || has_alarm || found != notes {
            failures.push(format!("{mode:?}: {}: {found:?}, {status}: {}", row.name, messages(&report)));
        }
        node.shell(row.undo);
        node.restore();
    }
    assert!(failures.is_empty(), "{} rows failed\n{}", failures.len(), failures.join("\n"));
}

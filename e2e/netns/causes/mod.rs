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
use rstest::rstest;
use serde_json::Value;

use crate::BINARY;
use crate::explain::explain;

const SYNC: Duration = Duration::from_secs(120);

/// A mode with the tools that it writes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::IptablesNft | Mode::IptablesLegacy => "iptables",
            Mode::Nftables => "nftables",
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
        namespace.ip("link add pods type bridge\nlink set pods up").unwrap();
        let folder = Folder::create().unwrap();
        folder.write("objects.yaml", &to_manifest(&objects::all())).unwrap();
        let node = Node { namespace, mode, folder };
        let flags = node.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let flavor = mode.flavor();
        let launch = Launch { binary: BINARY, namespace: &node.namespace, flavor, flags: &flags };
        let mut proxy = launch.start_on(&[node.folder.path().join("objects.yaml")]).unwrap();
        let stands = || !proxy.is_running() || node.has_last_service();
        wait_until("the rules of the last Service are in force", SYNC, stands).unwrap();
        assert!(proxy.is_running(), "{}", proxy.log_tail());
        proxy.kill().unwrap();
        // With these, a row can be undone.
        node.shell(
            "$IPT-save > $DIR/4; $IP6T-save > $DIR/6; nft list tables | grep -q kube-proxy || exit 0
             nft list table ip kube-proxy > $DIR/nft; nft list table ip6 kube-proxy >> $DIR/nft",
        );
        node
    }

    fn flags(&self) -> Vec<String> {
        let mode = format!("--proxy-mode={}", self.mode.name());
        [mode.as_str(), "--max-service-source-ranges=3", "--nodeport-addresses=10.200.0.0/16,fd00:200::/64"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Both families have the Service that comes last.
    fn has_last_service(&self) -> bool {
        let listing = match self.mode {
            Mode::Nftables => {
                "nft list set ip kube-proxy cluster-ips; nft list set ip6 kube-proxy cluster-ips"
            }
            _ => "$IPT-save -t nat; $IP6T-save -t nat",
        };
        let text = self.try_shell(listing).unwrap_or_default();
        objects::LAST.iter().all(|address| text.contains(address))
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
        self.shell(
            "$IPT-restore < $DIR/4 && $IP6T-restore < $DIR/6 || exit 1
             [ -e $DIR/nft ] || exit 0
             (echo 'delete table ip kube-proxy'; echo 'delete table ip6 kube-proxy'; cat $DIR/nft) > $DIR/all
             nft list tables | grep -q 'ip kube-proxy' && nft -f $DIR/all || nft -f $DIR/nft",
        );
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

#[rstest]
fn the_cause_is_named_and_no_other_one(
    #[values(Mode::IptablesNft, Mode::IptablesLegacy, Mode::Nftables)] mode: Mode,
) {
    let node = Node::programmed(mode);
    let mut failures = Vec::new();
    let (report, status) = node.explain(&["--all"]);
    assert_eq!((beside_the_services(&report), status), (BTreeSet::new(), 0), "{report:#}");
    failures.extend(objects::complaints(&report));
    for row in broken::ROWS.iter().filter(|row| (row.modes)(mode)) {
        node.shell(row.act);
        let (report, status) = node.explain(&["--all"]);
        let (found, wanted) = (beside_the_services(&report), row.causes.iter().copied().collect());
        if found != wanted || status != row.status {
            let (all, differences) = (&report["findings"], &report["differences"]);
            failures.push(format!("{mode:?}: {}: {found:?}, {status}: {all:#} {differences:#}", row.name));
        }
        failures.extend(objects::complaints(&report));
        node.shell(row.undo);
        node.restore();
    }
    for row in healthy::ROWS {
        node.shell(row.rules);
        let (report, status) = node.explain(&["--all"]);
        let found = beside_the_services(&report);
        let is_alarm = |it: &&Value| it["severity"] != "note" && found.contains(it["code"].as_str().unwrap());
        let alarms: Vec<&Value> = report["findings"].as_array().unwrap().iter().filter(is_alarm).collect();
        let notes: BTreeSet<&str> = row.notes.iter().copied().collect();
        if status != 0 || !alarms.is_empty() || found != notes {
            failures.push(format!("{mode:?}: {}: {found:?}, {status}: {:#}", row.name, report["findings"]));
        }
        node.shell(row.undo);
        node.restore();
    }
    assert!(failures.is_empty(), "{} rows failed\n{}", failures.len(), failures.join("\n"));
}

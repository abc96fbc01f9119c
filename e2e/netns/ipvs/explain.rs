//! `explain`, `services` and `status` of a node in IPVS mode, whole and broken.

use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::{CLUSTER_CIDR, NODE_NAME};
use serde_json::Value;

use super::{BINARY, BTreeSet, Flavor, LIMIT, Namespace, Place, launch, service, wait_for_markers};
use crate::explain::{codes, explain};

/// Only the first look is a thorough one; later ones do not compare the entries of sets.
const FLAGS: [&str; 2] = ["--proxy-mode=ipvs", "--ipvs-sync-period=1h"];
/// The packet that is traced.
const PACKET: [&str; 4] = ["--client", "10.200.0.99", "--to", "10.96.9.1:80"];

/// A command of another program, and what is found after it and all before it.
struct Damage {
    command: &'static str,
    codes: &'static [&'static str],
    /// The kernel objects that are not as they should be.
    differing: &'static [&'static str],
    /// What becomes of the packet, and words of what decides.
    decisions: &'static [(&'static str, &'static str)],
}

const SERVER: &str = "virtual server 10.96.9.1:80/tcp";

/// Each makes it worse.
const DAMAGES: [Damage; 5] = [
    Damage {
        command: "ipvsadm -d -t 10.96.9.1:80 -r 10.128.0.5:8080",
        codes: &["kernel-object-missing"],
        differing: &[SERVER],
        decisions: &[("served", "10.96.9.1:80/tcp: real server 10.128.1.5:8080")],
    },
    Damage {
        command: "ipvsadm -a -t 10.96.9.1:80 -r 192.0.2.9:9 -m",
        codes: &["kernel-object-missing", "kernel-state-stale"],
        differing: &[SERVER],
        decisions: &[("served", "real server 10.128.1.5:8080"), ("served", "real server 192.0.2.9:9")],
    },
    Damage {
        command: "ipvsadm -D -t 10.96.9.1:80",
        codes: &["kernel-object-missing"],
        differing: &[SERVER],
        decisions: &[("untouched", "")],
    },
    Damage {
        command: "ipset del KUBE-CLUSTER-IP 10.96.9.1,tcp:80",
        codes: &["kernel-object-missing"],
        differing: &[SERVER, "set KUBE-CLUSTER-IP"],
        decisions: &[("refused", "filter KUBE-IPVS-FILTER")],
    },
    Damage {
        command: "ip address delete 10.96.9.1/32 dev kube-ipvs0",
        codes: &["kernel-object-missing"],
        differing: &[SERVER, "kube-ipvs0", "set KUBE-CLUSTER-IP"],
        decisions: &[("untouched", "")],
    },
];

impl Damage {
    fn expect_in(&self, report: &Value) {
        let Damage { command, codes: named, differing, decisions } = self;
        assert_eq!(codes(report), named.iter().copied().collect(), "{command}: {report:#}");
        let differences = report["differences"].as_array().unwrap().iter();
        let objects: BTreeSet<_> = differences.map(|it| it["object"].as_str().unwrap()).collect();
        assert_eq!(objects, differing.iter().copied().collect(), "{command}: {report:#}");
        let trace = report["trace"].as_array().unwrap();
        assert_eq!(trace.len(), decisions.len(), "{command}: {report:#}");
        for (found, (fate, words)) in trace.iter().zip(*decisions) {
            let decided_by = found["decidedBy"].as_str().unwrap_or_default();
            assert!(found["verdict"] == *fate && decided_by.contains(words), "{command}: {found:#}");
        }
    }
}

fn ask(node: &Namespace, command: &str, socket: &str) -> Value {
    let arguments = [command, "-o", "json", "--control-socket", socket];
    serde_json::from_str(&node.output(BINARY, &arguments).unwrap()).unwrap()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn the_cause_is_named_and_no_other_one() {
    crate::causes::try_all_rows(crate::causes::Mode::Ipvs);
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_trace_past_foreign_rules_ends_where_the_packet_does() {
    crate::foreign::trace_past_foreign_rules("ipvs", Flavor::Nft);
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn what_is_wrong_with_the_kernel_is_named() {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let mut objects = service("web", "10.96.9.1", None, &[Place::Local1, Place::Remote1]);
    objects.extend(service("lonely", "10.96.9.2", None, &[]));
    let mut proxy = launch(&node, &FLAGS).start(&objects).unwrap();
    wait_for_markers(&mut proxy, &node);
    let socket = proxy.control_socket().to_str().unwrap().to_owned();
    let daemon = ["--control-socket", &socket, "packets/web"];
    let (report, status) = explain(&node, &daemon);
    assert_eq!((codes(&report), status), ([].into(), 0), "{report:#}");
    let (report, status) = explain(&node, &["--control-socket", &socket, "packets/lonely"]);
    assert_eq!((codes(&report), status), (["no-endpoints"].into(), 0), "{report:#}");
    let services = ask(&node, "services", &socket);
    let state = |name: &str| services["items"].as_array().unwrap().iter().find(|it| it["name"] == name);
    assert_eq!(state("web").unwrap()["state"], "serving", "{services:#}");
    assert_eq!(state("lonely").unwrap()["state"], "refusing", "{services:#}");
    assert_eq!(ask(&node, "status", &socket)["mode"], "ipvs");

    // As many entries as before: only a thorough look would find it, and mend it.
    proxy.pause(LIMIT).unwrap();
    node.output("ipset", &["del", "KUBE-CLUSTER-IP", "10.96.9.1,tcp:80"]).unwrap();
    node.output("ipset", &["add", "KUBE-CLUSTER-IP", "192.0.2.9,tcp:9"]).unwrap();
    proxy.resume().unwrap();
    let (report, status) = explain(&node, &daemon);
    assert_eq!((codes(&report), status), (["kernel-object-missing"].into(), 1), "{report:#}");

    // From here on no proxy mends anything, and `explain` reads the manifests.
    proxy.kill().unwrap();
    node.output("ipset", &["add", "KUBE-CLUSTER-IP", "10.96.9.1,tcp:80"]).unwrap();
    let manifests = proxy.manifests()[0].to_str().unwrap();
    let flags = ["--manifests", manifests, "--hostname-override", NODE_NAME, "--cluster-cidr", CLUSTER_CIDR];
    let flags = [&flags[..], &["--proxy-mode=ipvs", "packets/web"], &PACKET].concat();
    let (report, status) = explain(&node, &flags);
    assert_eq!((codes(&report), status), ([].into(), 0), "{report:#}");
    for damage in DAMAGES {
        node.output("sh", &["-ec", damage.command]).unwrap();
        let (report, status) = explain(&node, &flags);
        assert_eq!(status, 1, "{}: {report:#}", damage.command);
        damage.expect_in(&report);
    }
}

//! Taking over a node from kube-proxy, and giving it back.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::{Lab, give_idle_uplink, lone_node};
use kube_proxy_rs::testing::packets::Place;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, http_get, save, wait_until};
use rstest::rstest;

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);
/// TCP, on a node port and a cluster IP.
const TCP: &str = "node-port-cluster-policy";
/// UDP; its endpoints' port is made the one that the lab's servers have.
const UDP: &str = "multi-port-three-protocols";
/// A Service that is not there any more.
const GONE: &str = "cluster-ip-three-endpoints";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(fixture(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn on_lab_ports(text: &str) -> String {
    text.replace("5353", "8080")
}

/// The rules kube-proxy left for all three Services: those of the first, and what the other two have
/// in the nat table beside the fixed chains.
fn left_rules() -> String {
    let own = |line: &&str| {
        [":KUBE-SVC-", ":KUBE-SEP-", "-A KUBE-SVC-", "-A KUBE-SEP-", "-A KUBE-SERVICES -d"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let mut text = read(&format!("expected/iptables/{TCP}.v4.rules"));
    for name in [UDP, GONE] {
        let rules = on_lab_ports(&read(&format!("expected/iptables/{name}.v4.rules")));
        let (_, nat) = rules.split_once("*nat").unwrap();
        let lines: Vec<&str> = nat.lines().filter(own).collect();
        let nat_end = text.rfind("COMMIT").unwrap();
        text.insert_str(nat_end, &format!("{}\n", lines.join("\n")));
    }
    // Accounting objects belong to the kernel, not to a rule file.
    let mut words = text.replace(" -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts", "");
    words = words.replace(" -m nfacct --nfacct-name  localhost_nps_accepted_pkts", "");
    words
}

/// Declared chains, in order; a chain that stood twice would show twice.
fn chains(saved: &str) -> Vec<&str> {
    saved.lines().filter(|line| line.starts_with(':')).filter_map(|line| line.split(' ').next()).collect()
}

#[rstest]
fn open_connections_outlive_the_change_from_kube_proxy_and_back(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let lab = Lab::create().unwrap();
    let folder = Folder::create().unwrap();
    folder.write("left.rules", &left_rules()).unwrap();
    folder.write("udp.yaml", &on_lab_ports(&read(&format!("{UDP}.yaml")))).unwrap();
    let restore = format!("iptables-{}-restore", flavor.as_str());
    let left = folder.path().join("left.rules");
    lab.node().output(&restore, &[left.to_str().unwrap()]).unwrap();

    let node_port = SocketAddr::new(Place::Node.address(IpFamily::V4), 30080);
    let cluster_ip: SocketAddr = "10.96.1.6:80".parse().unwrap();
    let mut held = vec![
        lab.client(Place::LocalClient, IpFamily::V4).open(cluster_ip).unwrap(),
        lab.client(Place::Outside, IpFamily::V4).open(node_port).unwrap(),
        lab.client(Place::Node, IpFamily::V4).open(cluster_ip).unwrap(),
    ];
    let dns: SocketAddr = "10.96.1.4:53".parse().unwrap();
    let client: IpAddr = Place::LocalClient.address(IpFamily::V4);
    let stream = lab.namespace(Place::LocalClient).run(|| UdpSocket::bind((client, 0)).unwrap()).unwrap();
    stream.connect(dns).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let ask = || -> String {
        stream.send(b"?").unwrap();
        let mut line = [0; 128];
        let length = stream.recv(&mut line).expect("the UDP stream must go on");
        String::from_utf8_lossy(&line[..length]).into_owned()
    };
    let answered_by = ask();

    let manifests = [fixture(&format!("{TCP}.yaml")), folder.path().join("udp.yaml"), fixture("nodes.yaml")];
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags: &[] };
    let mut proxy = launch.start_on(&manifests).unwrap();
    wait_until("the Service that is gone has left no chain", SYNC, || {
        assert_eq!(ask(), answered_by, "the stream stays with its endpoint");
        let saved = save(flavor, lab.node(), false).unwrap();
        !saved.contains("shop/web") && saved.contains("shop/multi:dns")
    })
    .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
    for connection in &mut held {
        connection.ping().expect("an open connection must outlive the change");
    }
    assert_eq!(ask(), answered_by);
    let saved = save(flavor, lab.node(), false).unwrap();
    let (_, nat) = saved.split_once("*nat").unwrap();
    let nat = nat.split("COMMIT").next().unwrap();
    let mut names = chains(nat);
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "a chain stands twice:\n{nat}");
    assert_eq!(nat.matches("-A PREROUTING").count(), 1, "one jump, not two:\n{nat}");

    proxy.terminate().unwrap();
    lab.node().output(&restore, &[left.to_str().unwrap()]).expect("kube-proxy's rules replace ours");
    for connection in &mut held {
        connection.ping().expect("an open connection must outlive the change back");
    }
    assert_eq!(ask(), answered_by);
}

#[rstest]
fn a_proxy_that_writes_its_rules_again_each_time_is_told_of_once_and_makes_the_node_not_ready(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let node = lone_node().unwrap();
    give_idle_uplink(&node).unwrap();
    let folder = Folder::create().unwrap();
    folder.write("theirs.rules", &left_rules()).unwrap();
    let theirs = folder.path().join("theirs.rules");
    let manifests = [fixture(&format!("{TCP}.yaml")), fixture("nodes.yaml")];
    // Every look is a thorough one.
    let launch = Launch { binary: BINARY, namespace: &node, flavor, flags: &["--iptables-sync-period=2s"] };
    let proxy = launch.start_on(&manifests).unwrap();
    let of_gone = || save(flavor, &node, false).unwrap().contains("shop/web");
    let ready = || http_get(&node, SocketAddr::from(([127, 0, 0, 1], 10249)), "/readyz").unwrap_or_default();
    wait_until("it is ready", SYNC, || ready().starts_with("HTTP/1.1 200")).unwrap();
    for _ in 0..5 {
        let restore = format!("iptables-{flavor}-restore");
        node.output(&restore, &["-w", "30", "--noflush", theirs.to_str().unwrap()]).unwrap();
        assert!(of_gone());
        wait_until("our rules are back", SYNC, || !of_gone())
            .unwrap_or_else(|error| panic!("{error}: {}", proxy.log_tail()));
    }
    let told = ready();
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("another program"), "{told}");
    let socket = proxy.control_socket();
    let status = ["status", "--control-socket", socket.to_str().unwrap()];
    let status = node.command(BINARY).args(status).output().unwrap();
    assert_eq!(status.status.code(), Some(1));
    let status = String::from_utf8_lossy(&status.stdout);
    assert!(status.contains("DEGRADED") && status.contains("stop the other"), "{status}");
    // What has happened so far stays known, also when the other program is gone.
    let who =
        if flavor == Flavor::Nft { "the process is iptables-" } else { "which program does it is not known" };
    // Lines of the status are broken where they are long.
    let words = status.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("other programs have changed our rules") && words.contains(who), "{status}");
    let (report, _) =
        crate::explain::explain(&node, &["--all", "--control-socket", socket.to_str().unwrap()]);
    assert!(crate::explain::codes(&report).contains("repeated-drift"), "{report:#}");
    let log = proxy.log();
    let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(lines("is another service proxy, such as kube-proxy"), 1, "{log}");
    let after = log.split("is another service proxy, such as").nth(1).unwrap();
    assert!(!after.contains("changed by another program"), "{log}");
}

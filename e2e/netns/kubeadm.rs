//! A kubeadm cluster's ConfigMap and DaemonSet with our program in the place of kube-proxy's.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{NODE_NAME, PacketCase, cases, node_object};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, http_get, save, wait_until};
use kube_proxy_rs::testing::stub_api::StubApi;
use rstest::rstest;

use crate::BINARY;
use crate::packets::send_all;
use crate::running::Running;

/// Emulated machines are slow.
const SYNC: Duration = Duration::from_secs(180);
/// What kubeadm writes, every field of it.
const CONFIG: &str = include_str!("../image/kubeadm.conf");
/// Mounts the ConfigMap `$1` where the DaemonSet has it, and becomes the DaemonSet's command with the
/// program `$2`, with a `/run` of its own. `ip netns exec` has made a mount namespace of its own.
const CONTAINER: &str = r#"
    set -eu
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /var/lib
    mkdir /var/lib/kube-proxy
    mount --bind "$1" /var/lib/kube-proxy
    exec "$2" --config=/var/lib/kube-proxy/config.conf --hostname-override="$NODE_NAME"
"#;

/// The program on a lab's node, its ConfigMap, and the API server that it watches.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) case: PacketCase,
    program: Running,
    config_map: Folder,
    _server: Arc<StubApi>,
}

impl Cluster {
    /// A cluster with one Service, whose ConfigMap has this `mode`.
    pub(crate) fn start(mode: &str) -> Self {
        let lab = Lab::create().unwrap();
        let name = "the_cluster_ip_keeps_the_source_inside_the_cluster_only";
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let server = lab.node().run(StubApi::start_on_a_thread).unwrap().unwrap();
        case.objects().into_iter().chain([node_object()]).for_each(|object| _ = server.put(object));
        let config_map = Folder::create().unwrap();
        let config = CONFIG.replace("\nmode: \"\"\n", &format!("\nmode: \"{mode}\"\n"));
        assert!(config.contains(&format!("\nmode: \"{mode}\"\n")), "kubeadm's file has another mode now");
        config_map.write("config.conf", &config).unwrap();
        let kubeconfig = server.kubeconfig(config_map.path()).unwrap();
        fs::rename(kubeconfig, config_map.path().join("kubeconfig.conf")).unwrap();
        let program = run_container(lab.node(), &config_map);
        Cluster { lab, case, program, config_map, _server: server }
    }

    /// Waits for something that the program is to bring about.
    pub(crate) fn wait_until(&mut self, what: &str, condition: impl Fn(&Lab) -> bool) {
        let Cluster { lab, program, .. } = self;
        let mut ended = false;
        let waited = wait_until(what, SYNC, || {
            ended = program.has_ended();
            ended || condition(lab)
        });
        assert!(waited.is_ok() && !ended, "waited until {what}; the log:\n{}", self.log());
    }

    /// Real requests go through, the log names the mode and complains about nothing in the ConfigMap.
    pub(crate) fn assert_it_works_as(&self, mode: &str) {
        for family in IpFamily::ALL {
            let failures = send_all(&self.lab, std::slice::from_ref(&self.case), family);
            assert!(failures.is_empty(), "packets went astray:\n{}", failures.join("\n"));
        }
        let metrics: SocketAddr = "127.0.0.1:10249".parse().unwrap();
        let answer = http_get(self.lab.node(), metrics, "/proxyMode").unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n\r\n{mode}")),
            "{answer}"
        );
        let log = self.log();
        assert!(!["unknown", "duplicate", "no effect"].iter().any(|word| log.contains(word)), "{log}");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.config_map.path().join("log")).unwrap()
    }
}

fn run_container(node: &Namespace, config_map: &Folder) -> Running {
    let log = File::create(config_map.path().join("log")).unwrap();
    let mut command = node.command("sh");
    command.args(["-c", CONTAINER, "sh"]).arg(config_map.path()).arg(BINARY);
    command.env("NODE_NAME", NODE_NAME).stdout(log.try_clone().unwrap()).stderr(log);
    Running::start(&mut command)
}

#[rstest]
#[case("")]
#[case("iptables")]
fn kubeadms_unchanged_config_map_programs_rules_in_mode(#[case] mode: &str) {
    let mut cluster = Cluster::start(mode);
    let [v4, v6] = IpFamily::ALL.map(|family| cluster.case.cluster_ip(family));
    let rules = [
        (false, format!("-A KUBE-SERVICES -d {v4}/32 -p tcp")),
        (true, format!("-A KUBE-SERVICES -d {v6}/128 -p tcp")),
    ];
    cluster.wait_until("rules for the Service are there", |lab| {
        rules.iter().all(|(is_v6, rule)| {
            let saved = save(Flavor::Nft, lab.node(), *is_v6).unwrap_or_default();
            saved.lines().any(|line| line.starts_with(rule) && line.contains("--dport 80 -j KUBE-SVC-"))
        })
    });
    cluster.assert_it_works_as("iptables");
}

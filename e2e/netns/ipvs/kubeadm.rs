//! A kubeadm cluster's ConfigMap that says `mode: ipvs`.

use super::{IpFamily, lines};
use crate::kubeadm::Cluster;

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn kubeadms_unchanged_config_map_programs_virtual_servers() {
    let mut cluster = Cluster::start("ipvs");
    let servers = IpFamily::ALL.map(|family| match cluster.case.cluster_ip(family) {
        ip if ip.is_ipv4() => format!("TCP {ip}:80 rr"),
        ip => format!("TCP [{ip}]:80 rr"),
    });
    cluster.wait_until("the Service has its virtual servers", |lab| {
        let there = lines(lab.node(), "ipvsadm", &["-Ln"]);
        servers.iter().all(|server| there.contains(server))
            && there.iter().any(|line| line.starts_with("-> 10.128.0.5:8080 Masq"))
    });
    cluster.assert_it_works_as("ipvs");
}

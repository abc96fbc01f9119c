//! What a neighbour on the network learns of a proxy in trouble, from all ports that it reaches.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::proxy::wait_until;
use serde_json::{Value, json};

use super::ground::{Ground, HEALTH, Start};

const SYNC: Duration = Duration::from_secs(60);
const METRICS: u16 = 10_249;
/// Every path of either server, and some that are none.
const PATHS: &[&str] = &[
    "/",
    "/healthz",
    "/livez",
    "/readyz",
    "/status",
    "/statusz",
    "/metrics",
    "/configz",
    "/flagz",
    "/v1/status",
    "/readyz?verbose",
    "/status/../metrics",
    "//readyz",
    "/%72eadyz",
    "/readyz%00",
    "/metrics/slis",
    "/proxyMode",
];

/// A Service whose every claim is refused, and a slice with an endpoint that is.
fn suspicious() -> Vec<Value> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "secret", "name": "plan"},
        "spec": {
            "clusterIP": "10.96.7.77", "clusterIPs": ["10.96.7.77"], "ipFamilies": ["IPv4"],
            "externalIPs": ["127.0.0.99", "10.200.0.11"], "ports": [{"name": "p", "port": 4711}],
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "secret", "name": "plan-x", "labels": {"kubernetes.io/service-name": "plan"}},
        "ports": [{"name": "p", "port": 4712}],
        "endpoints": [{"addresses": ["169.254.169.254"], "conditions": {"ready": true}}],
    });
    vec![service, slice]
}

fn names(text: &str) -> bool {
    ["secret", "plan", "127.0.0.99", "10.96", "169.254", "KUBE-", "4711", "cni0"]
        .iter()
        .any(|word| text.contains(word))
}

#[test]
fn a_neighbour_gets_a_word_and_the_node_the_detail() {
    let flags = &["--strict-external-ips"];
    let ground = Ground::new(Start { flags, objects: suspicious(), ..Start::default() });
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
    let detail = || ground.get(&ground.node, local, "/readyz");
    wait_until("the detail names the Service", SYNC, || detail().contains("secret/plan")).unwrap();
    assert!(ground.get(&ground.node, local, "/status").contains("secret/plan"));
    // The node knows of the drift, and the neighbour must not learn of it.
    ground.node.output("iptables-nft", &["-t", "nat", "-F", "KUBE-MARK-MASQ"]).unwrap();
    wait_until("the drift is found", SYNC, || detail().contains("KUBE-MARK-MASQ")).unwrap();
    for family in IpFamily::ALL {
        for path in PATHS {
            let told = ground.get(&ground.neighbour, Ground::at(family, HEALTH), path);
            assert!(told.starts_with("HTTP/1.1 ") && !names(&told), "{path}: {told}");
            assert!(told.len() < 600, "{path}: {told}");
            let told = ground.get(&ground.neighbour, Ground::at(family, METRICS), path);
            assert!(told.contains("refused"), "the metrics server: {told}");
        }
        let word = |path: &str| ground.get(&ground.neighbour, Ground::at(family, HEALTH), path);
        assert!(word("/readyz").ends_with("\r\n\r\nready\n"), "{}", word("/readyz"));
        assert!(word("/status").contains("\r\n\r\nhealthy\n"), "{}", word("/status"));
    }
}

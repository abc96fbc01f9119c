//! A user of one namespace makes a Service with thousands of endpoints.

use std::time::{Duration, Instant};

use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::cases;
use kube_proxy_rs::testing::proxy::{Flavor, Launch, save, wait_until};
use serde_json::{Value, json};

use crate::BINARY;
use crate::manifests::is_served;

const ENDPOINTS: usize = 6000;
const SYNC: Duration = Duration::from_secs(120);
/// Other Services wait a second or two; the rest is room for noise.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// The tools are quadratic: in one input this took longer the more endpoints there were, and everything else waited for it.
#[test]
fn others_do_not_wait_for_a_service_with_thousands_of_endpoints() {
    let lab = Lab::create().unwrap();
    let launch = Launch {
        binary: BINARY,
        namespace: lab.node(),
        flavor: Flavor::Nft,
        flags: &["--iptables-min-sync-period=0s"],
    };
    let (first, other) = (cases().remove(0), cases().remove(1));
    let mut objects = first.objects();
    let mut proxy = launch.start(&objects).unwrap();
    proxy.wait_for_sync(lab.node(), Flavor::Nft, SYNC).unwrap();

    objects.extend(large());
    proxy.apply(&objects).unwrap();
    wait_until("the large Service is begun", SYNC, || chains(&lab) > 500).unwrap();
    objects.extend(other.objects());
    let start = Instant::now();
    proxy.apply(&objects).unwrap();
    wait_until("another Service is served", SYNC, || is_served(&lab, &other)).unwrap();
    let waited = start.elapsed();
    assert!(waited < LONGEST_WAIT, "{waited:?}; {}", proxy.log_tail());

    wait_until("the large Service is programmed", SYNC, || {
        let rules = save(Flavor::Nft, lab.node(), false).unwrap();
        rules.contains("-d 10.96.200.200/32") && rules.matches("--to-destination 10.99.").count() == ENDPOINTS
    })
    .unwrap_or_else(|error| panic!("{error}; {}", proxy.log_tail()));
}

fn chains(lab: &Lab) -> usize {
    save(Flavor::Nft, lab.node(), false).unwrap().matches("\n:KUBE-SEP-").count()
}

fn large() -> Vec<Value> {
    let name = json!({ "name": "large", "namespace": "default" });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": name,
        "spec": {
            "clusterIP": "10.96.200.200", "clusterIPs": ["10.96.200.200"], "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    });
    let slice = |number: usize| {
        let address = |index: usize| format!("10.99.{}.{}", number, index);
        let endpoints: Vec<_> =
            (0..ENDPOINTS / 24).map(|index| json!({ "addresses": [address(index)] })).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("large-{number}"), "namespace": "default",
                "labels": { "kubernetes.io/service-name": "large" },
            },
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints,
        })
    };
    std::iter::once(service).chain((0..24).map(slice)).collect()
}

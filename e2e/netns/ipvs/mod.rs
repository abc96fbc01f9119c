//! IPVS mode on a real kernel: `make test-ipvs` runs these, in a virtual machine where the host's
//! kernel has no `ip_vs`.

mod alone;
mod claims;
mod deviations;
mod drain;
mod explain;
mod fixtures;
mod handing_back;
mod harm;
mod kubeadm;
mod legacy;
mod manifests;
mod node_address;
mod options;
mod packets;
mod refusal;
mod sabotage;
mod schedulers;
mod sctp;
mod sequences;
mod statistics;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kube_proxy_rs::kernel::addresses::interface_addresses;
use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::Place;
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, save};
use kube_proxy_rs::testing::traffic::{Answer, HeldConnection};
use serde_json::{Value, json};

use crate::BINARY;

/// Emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(180);

/// What a tool says of the kernel's state, line by line, sorted.
fn lines(node: &Namespace, tool: &str, arguments: &[&str]) -> BTreeSet<String> {
    let text = node.output(tool, arguments).unwrap_or_default();
    text.lines().map(strip).filter(|line| !line.is_empty()).collect()
}

/// A line without what is the kernel's own choice.
fn strip(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "bucketsize" | "initval" => _ = words.next(),
            word => kept.push(word),
        }
    }
    kept.join(" ")
}

/// The virtual servers of a node, in the words of `ipvsadm -Sn`, which leaves some out while those of other
/// namespaces come or go: what it says twice running.
fn servers(node: &Namespace) -> BTreeSet<String> {
    let mut before = None;
    for _ in 0..20 {
        let now = lines(node, "ipvsadm", &["-Sn"]);
        if before.as_ref() == Some(&now) {
            return now;
        }
        before = Some(now);
    }
    panic!("the virtual servers are different each time: {before:#?}")
}

/// Addresses of `kube-ipvs0` in `ip -o address`.
fn addresses(text: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("inet"));
        let (family, address) = (words.next()?.to_owned(), words.next()?);
        (!address.starts_with("fe80:")).then(|| format!("{family} {address}"))
    };
    text.lines().filter_map(line).collect()
}

/// Our chains of an `iptables-save`, and every rule that jumps to one, in order.
fn rules(text: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut found: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(declared) = line.strip_prefix(":KUBE-") {
            let chain = declared.split(' ').next().unwrap_or_default();
            found.entry((table.clone(), format!("KUBE-{chain}"))).or_default();
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            found.entry((table.clone(), chain.to_owned())).or_default().push(rule.to_owned());
        }
    }
    found
}

/// Everything of IPVS mode in a node's kernel, to compare.
fn state(node: &Namespace, flavor: Flavor) -> BTreeSet<String> {
    let mut found = servers(node);
    found.extend(lines(node, "ipset", &["save"]));
    found.extend(addresses(&node.output("ip", &["-o", "address", "show", "kube-ipvs0"]).unwrap_or_default()));
    for v6 in [false, true] {
        let rules = rules(&save(flavor, node, v6).unwrap_or_default());
        found.extend(rules.iter().map(|(place, rules)| format!("IPv6: {v6} {place:?} {rules:?}")));
    }
    found
}

/// How to start the program on a node, with its usual tools.
fn launch<'a>(node: &'a Namespace, flags: &'a [&'a str]) -> Launch<'a> {
    Launch { binary: BINARY, namespace: node, flavor: Flavor::Nft, flags }
}

/// Looks at a condition once a second until it holds: a look may start several tools, and the
/// program that is to make it true needs the processors, too.
fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain until {what}");
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Waits until the manifests are in force, in both families: until the addresses of their marker
/// Services are there, which come after all virtual servers.
pub(crate) fn wait_for_markers(proxy: &mut Proxy, node: &Namespace) {
    let markers: BTreeSet<IpAddr> = proxy.marker_addresses().iter().map(|it| it.parse().unwrap()).collect();
    let waited = wait_until("the marker Services are programmed", LIMIT, || {
        let addresses = |family| node.run(|| interface_addresses(family)).unwrap().unwrap();
        let there: BTreeSet<IpAddr> =
            IpFamily::ALL.into_iter().flat_map(addresses).map(|entry| entry.address).collect();
        !proxy.is_running() || markers.is_subset(&there)
    });
    assert!(waited.is_ok() && proxy.is_running(), "the program's log:\n{}", proxy.log_tail());
}

/// A Service `packets/NAME` with these endpoints and, maybe, a scheduler.
fn service(name: &str, cluster_ip: &str, scheduler: Option<&str>, endpoints: &[Place]) -> Vec<Value> {
    let addresses: Vec<IpAddr> = endpoints.iter().map(|place| place.address(IpFamily::V4)).collect();
    service_of(name, (cluster_ip, Protocol::Tcp), scheduler, &addresses)
}

/// The same for endpoints that are not among the usual ones.
fn service_of(
    name: &str,
    (cluster_ip, protocol): (&str, Protocol),
    scheduler: Option<&str>,
    endpoints: &[IpAddr],
) -> Vec<Value> {
    let annotations = scheduler.map(|it| json!({"kube-proxy-rs.io/ipvs-scheduler": it}));
    let endpoints: Vec<_> = endpoints.iter().map(|address| json!({"addresses": [address]})).collect();
    let protocol = protocol.as_str().to_uppercase();
    let port = |number: u16| json!([{"name": "main", "port": number, "protocol": protocol}]);
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "packets", "annotations": annotations},
            "spec": {
                "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
                "ipFamilies": ["IPv4"], "ports": port(80),
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-1"), "namespace": "packets",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": port(8080),
        }),
    ]
}

fn at(cluster_ip: &str) -> SocketAddr {
    SocketAddr::new(cluster_ip.parse().unwrap(), 80)
}

/// How many of `requests` requests each pod answered; all must be answered.
fn counts(lab: &Lab, to: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in lab.client(Place::LocalClient, IpFamily::V4).ask_many(Protocol::Tcp, to, requests) {
        let Answer::Answered { pod, .. } = answer else { panic!("{to}: {answer:?}") };
        *counts.entry(pod).or_default() += 1;
    }
    counts
}

/// The pod at the other end.
fn pod(connection: &mut HeldConnection) -> String {
    connection.ping().unwrap().split_whitespace().next().unwrap_or_default().to_owned()
}

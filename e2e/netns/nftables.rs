//! Mode nftables: the packet table, sent for real and traced by `explain`.

use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{Packet, PacketCase, Target, Verdict, cases_by_flags};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, wait_until};
use rstest::rstest;

use crate::BINARY;

/// Node ports answer on all addresses in the packet table, on the node's own in this mode.
const EVERYWHERE: &str = "--nodeport-addresses=0.0.0.0/0,::/0";

fn launch<'a>(node: &'a Namespace, flags: &'a [&'a str]) -> Launch<'a> {
    Launch { binary: BINARY, namespace: node, flavor: Flavor::Nft, flags }
}

/// Waits until the objects of the manifests are in the kernel, and rules that lead to them.
fn wait_for_markers(proxy: &mut Proxy, node: &Namespace) {
    let addresses = proxy.marker_addresses();
    let listed = |arguments: [&str; 5]| node.output("nft", &arguments).unwrap_or_default();
    let stands = || {
        let sets = ["ip", "ip6"].map(|it| listed(["list", "set", it, "kube-proxy", "cluster-ips"])).concat();
        let leads = |it: &str| {
            listed(["list", "chain", it, "kube-proxy", "nat-prerouting"]).contains("jump services")
        };
        addresses.iter().all(|address| sets.contains(address)) && leads("ip") && leads("ip6")
    };
    let waited = wait_until("the elements of the manifests are in force", Duration::from_secs(120), || {
        !proxy.is_running() || stands()
    });
    assert!(proxy.is_running(), "the program has exited; its log:\n{}", proxy.log_tail());
    waited.unwrap_or_else(|error| panic!("{error:#}; the program's log:\n{}", proxy.log_tail()));
}

/// No node port answers on loopback addresses.
fn verdict(packet: &Packet) -> Verdict {
    match packet.to {
        Target::NodePortOnLocalhost => Verdict::Untouched,
        _ => packet.verdict.clone(),
    }
}

fn as_in_this_mode(mut case: PacketCase) -> PacketCase {
    for packet in &mut case.packets {
        packet.verdict = verdict(packet);
    }
    case
}

#[rstest]
fn every_packet_goes_where_the_table_says_and_explain_knows_it(
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    let lab = Lab::create().unwrap();
    let mut failures = Vec::new();
    // The program is restarted for each set of flags, over the elements that it left before.
    for (flags, cases) in cases_by_flags() {
        let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
        let mut flags: Vec<_> = flags.iter().copied().chain(["--proxy-mode=nftables"]).collect();
        flags.retain(|flag| !flag.starts_with("--iptables-localhost-nodeports"));
        if !flags.iter().any(|flag| flag.starts_with("--nodeport-addresses")) {
            flags.push(EVERYWHERE);
        }
        let mut proxy = launch(lab.node(), &flags).start(&objects).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        let cases: Vec<PacketCase> = cases.into_iter().map(as_in_this_mode).collect();
        let socket = proxy.control_socket();
        let told = |_: &PacketCase, packet: &Packet| verdict(packet);
        // Before packets are sent: afterwards, it would say of a client with affinity which endpoint it has.
        failures.extend(crate::explain::trace_all((lab.node(), &socket), &cases, family, &told));
        failures.extend(crate::packets::send_all(&lab, &cases, family));
        proxy.terminate().unwrap();
    }
    let count = failures.len();
    assert!(failures.is_empty(), "{count} packets went astray:\n{}", failures.join("\n"));
}

//! The packet table, sent for real and traced by `explain`.

use kube_proxy_rs::testing::packets::{Packet, PacketCase, cases_by_flags};
use rstest::rstest;

use super::{IpFamily, Lab, launch, wait_for_markers};

/// Packets that go another way than the table says, and why. Each is in
/// `docs/dataplane-ipvs.md`.
const KNOWN_DIFFERENCES: [(&str, &str); 4] = [
    // The kernel has no virtual servers on 127.0.0.0/8.
    ("the_node_reaches_its_own_node_ports", "NodePortOnLocalhost"),
    // A virtual server has one list of real servers: clients on the node get the local ones, too.
    ("the_external_local_policy_serves_locally_and_keeps_the_source", "never served by [\"remote-1\"]"),
    ("local_pods_are_told_by_their_interfaces", "never served by [\"remote-1\"]"),
    // A client's affinity lives until its last connection is forgotten, two minutes after its end.
    ("client_affinity_expires_after_its_timeout", "long after the timeout"),
];

fn with_one_packet(mut case: PacketCase) -> PacketCase {
    case.packets.retain(|packet| packet.families.contains(&IpFamily::V6));
    case.packets.truncate(1);
    case
}

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn every_packet_goes_where_the_table_says_and_explain_knows_it(
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    let lab = Lab::create().unwrap();
    let mut failures = Vec::new();
    for (flags, cases) in cases_by_flags() {
        let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
        let flags: Vec<_> = flags.iter().copied().chain(["--proxy-mode=ipvs"]).collect();
        let mut proxy = launch(lab.node(), &flags).start(&objects).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        let mut astray = crate::packets::send_all(&lab, &cases, family);
        astray.retain(|failure| {
            !KNOWN_DIFFERENCES.iter().any(|(case, what)| failure.contains(case) && failure.contains(what))
        });
        failures.extend(astray);
        let socket = proxy.control_socket();
        let verdict = |case: &PacketCase, packet: &Packet| case.verdict_in_ipvs(packet);
        // Asking takes a second here: of IPv6, whose rules are of the same form, one packet a case.
        let asked: Vec<PacketCase> = match family {
            IpFamily::V4 => cases,
            IpFamily::V6 => cases.into_iter().map(with_one_packet).collect(),
        };
        failures.extend(crate::explain::trace_all((lab.node(), &socket), &asked, family, &verdict));
        proxy.terminate().unwrap();
    }
    let count = failures.len();
    assert!(failures.is_empty(), "{count} packets went astray:\n{}", failures.join("\n"));
}

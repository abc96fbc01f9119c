//! SCTP, which most development machines lack.

use kube_proxy_rs::testing::packets::{
    EndpointState, Packet, PacketCase, ServedBy, Shape, Share, Source, TARGET_PORT, Target, Verdict,
};
use kube_proxy_rs::testing::traffic::PodServers;
use rstest::rstest;

use super::{IpFamily, Lab, Place, Protocol, SocketAddr, launch, wait_for_markers};

#[rstest]
#[ignore = "needs ip_vs; make test-ipvs"]
fn sctp_is_balanced_like_tcp(
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
    #[values("ipvs", "nftables")] mode: &str,
) {
    let lab = Lab::create().unwrap();
    let mut servers = PodServers::builder();
    for place in Place::SERVERS {
        let at = SocketAddr::new(place.address(family), TARGET_PORT);
        servers.listen_sctp(place.name(), lab.namespace(place), at).unwrap();
    }
    let _servers = servers.start().unwrap();
    let cases = [to_everybody(), to_the_local_ones()];
    let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
    let flags = [&*format!("--proxy-mode={mode}"), "--nodeport-addresses=0.0.0.0/0,::/0"];
    let mut proxy = launch(lab.node(), &flags).start(&objects).unwrap();
    match mode {
        "ipvs" => wait_for_markers(&mut proxy, lab.node()),
        _ => crate::nftables::wait_for_markers(&mut proxy, lab.node()),
    }
    let failures = crate::packets::send_all(&lab, &cases, family);
    assert!(failures.is_empty(), "packets went astray:\n{}", failures.join("\n"));
}

/// Mode nftables on another kernel than most tests run on, an older one as a rule.
#[rstest]
#[ignore = "needs the virtual machine's kernel; make test-ipvs"]
fn mode_nftables_sends_every_packet_where_the_table_says(
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    crate::nftables::send_the_packet_table(family);
}

fn to_everybody() -> PacketCase {
    use Place::{Local1, LocalClient, Node, Outside, Remote1};
    let all = [Local1, Remote1];
    let packets = vec![
        served(LocalClient, Target::ClusterIp, &all, Source::Kept),
        served(Node, Target::ClusterIp, &all, Source::Masqueraded),
        served(Outside, Target::NodePort, &all, Source::Masqueraded),
        served(Outside, Target::ExternalIp, &all, Source::Masqueraded),
        served(Outside, Target::LoadBalancerIp, &all, Source::Masqueraded),
    ];
    case("sctp_to_all_endpoints", 1, shape(&all, false), packets)
}

fn to_the_local_ones() -> PacketCase {
    use Place::{Local1, Local2, Outside, Remote1};
    let packets = vec![
        served(Outside, Target::NodePort, &[Local1, Local2], Source::Kept),
        served(Outside, Target::LoadBalancerIp, &[Local1, Local2], Source::Kept),
    ];
    case("sctp_under_the_external_local_policy", 2, shape(&[Local1, Local2, Remote1], true), packets)
}

fn case(name: &'static str, index: u8, shape: Shape, packets: Vec<Packet>) -> PacketCase {
    PacketCase { name, flags: &[], shape, packets, index }
}

fn shape(endpoints: &[Place], external_local: bool) -> Shape {
    Shape {
        protocol: Protocol::Sctp,
        endpoints: endpoints.iter().map(|place| (*place, EndpointState::Ready)).collect(),
        exposed: true,
        external_local,
        internal_local: false,
        affinity_seconds: None,
        source_ranges: Vec::new(),
    }
}

fn served(from: Place, to: Target, by: &[Place], source: Source) -> Packet {
    let verdict = Verdict::Served(ServedBy { by: by.to_vec(), source, share: Share::Some });
    Packet { from, to, families: &IpFamily::ALL, verdict }
}

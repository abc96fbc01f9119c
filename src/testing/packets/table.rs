//! The table itself, by topic.

use super::{EndpointState, Packet, PacketCase, Place, ServedBy, Shape, Share, Source, Target, Verdict};
use crate::model::Verdict::{Dropped, Refused, Untouched};
use crate::model::{IpFamily, Protocol};
use EndpointState::{NotReady, Ready, Stopped, Terminating};
use Place::{Local1, Local2, LocalClient, Node, Outside, OutsideFriend, Remote1, Remote2};
use Source::{Kept, Masqueraded};
use Target::{ClusterIp, ExternalIp, LoadBalancerIp, NodePort, NodePortOnLocalhost, NodePortOnPodSide};
use std::collections::BTreeMap;

const BOTH: &[IpFamily] = &IpFamily::ALL;
const ONLY_V4: &[IpFamily] = &[IpFamily::V4];
const ONLY_V6: &[IpFamily] = &[IpFamily::V6];
const ALL_PODS: [Place; 4] = [Local1, Local2, Remote1, Remote2];

/// Every packet case there is.
#[must_use]
pub fn cases() -> Vec<PacketCase> {
    let topics = [
        balancing(),
        node_ports(),
        no_endpoints(),
        external_policy(),
        internal_policy(),
        source_ranges(),
        affinity(),
        endpoint_states(),
        flags(),
    ];
    let mut cases: Vec<PacketCase> = topics.into_iter().flatten().collect();
    for (case, index) in cases.iter_mut().zip(1..) {
        case.index = index;
    }
    cases
}

/// The cases by the flags that they need besides the usual ones: one program serves each group.
#[must_use]
pub fn cases_by_flags() -> BTreeMap<&'static [&'static str], Vec<PacketCase>> {
    let mut groups: BTreeMap<_, Vec<PacketCase>> = BTreeMap::new();
    for case in cases() {
        groups.entry(case.flags).or_default().push(case);
    }
    groups
}

fn balancing() -> Vec<PacketCase> {
    vec![
        case("requests_spread_evenly_over_all_endpoints", &ALL_PODS).send(
            LocalClient,
            ClusterIp,
            evenly(&ALL_PODS, Kept),
        ),
        case("two_endpoints_get_half_each", &[Local1, Remote1]).send(
            LocalClient,
            ClusterIp,
            evenly(&[Local1, Remote1], Kept),
        ),
        case("the_cluster_ip_keeps_the_source_inside_the_cluster_only", &[Local1, Remote1])
            .send(LocalClient, ClusterIp, served(&[Local1, Remote1], Kept))
            .send(Node, ClusterIp, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, ClusterIp, served(&[Local1, Remote1], Masqueraded)),
        case("an_endpoint_reaches_itself_through_the_service", &[Local1])
            .exposed()
            .send(Local1, ClusterIp, served(&[Local1], Masqueraded))
            .send(Local1, NodePort, served(&[Local1], Masqueraded))
            .send(Local1, LoadBalancerIp, served(&[Local1], Masqueraded)),
        case("udp_is_balanced_like_tcp", &[Local1, Local2, Remote1])
            .udp()
            .exposed()
            .send(LocalClient, ClusterIp, evenly(&[Local1, Local2, Remote1], Kept))
            .send(Node, ClusterIp, served(&[Local1, Local2, Remote1], Masqueraded))
            .send(Outside, NodePort, served(&[Local1, Local2, Remote1], Masqueraded))
            .send(Outside, ExternalIp, served(&[Local1, Local2, Remote1], Masqueraded))
            .send(Outside, LoadBalancerIp, served(&[Local1, Local2, Remote1], Masqueraded)),
    ]
}

fn node_ports() -> Vec<PacketCase> {
    vec![
        case("every_external_destination_reaches_all_endpoints_masqueraded", &[Local1, Remote1])
            .exposed()
            .send(Outside, NodePort, evenly(&[Local1, Remote1], Masqueraded))
            .send(Outside, NodePortOnPodSide, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, ExternalIp, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, LoadBalancerIp, served(&[Local1, Remote1], Masqueraded))
            .send(LocalClient, NodePort, served(&[Local1, Remote1], Masqueraded))
            .send(LocalClient, ExternalIp, served(&[Local1, Remote1], Masqueraded))
            .send(LocalClient, LoadBalancerIp, served(&[Local1, Remote1], Masqueraded)),
        case("the_node_reaches_its_own_node_ports", &[Local1, Remote1])
            .exposed()
            .send(Node, NodePort, served(&[Local1, Remote1], Masqueraded))
            .send(Node, NodePortOnPodSide, served(&[Local1, Remote1], Masqueraded))
            .send(Node, ExternalIp, served(&[Local1, Remote1], Masqueraded))
            .send(Node, LoadBalancerIp, served(&[Local1, Remote1], Masqueraded))
            .send_in(ONLY_V4, Node, NodePortOnLocalhost, served(&[Local1, Remote1], Masqueraded))
            .send_in(ONLY_V6, Node, NodePortOnLocalhost, Untouched),
    ]
}

fn no_endpoints() -> Vec<PacketCase> {
    let everywhere = |case: PacketCase| {
        case.exposed()
            .send(LocalClient, ClusterIp, Refused)
            .send(Node, ClusterIp, Refused)
            .send(Outside, NodePort, Refused)
            .send(Node, NodePort, Refused)
            .send(Outside, ExternalIp, Refused)
            .send(Outside, LoadBalancerIp, Refused)
            .send(LocalClient, LoadBalancerIp, Refused)
    };
    vec![
        everywhere(case("without_endpoints_every_destination_refuses_at_once", &[])),
        everywhere(case("without_endpoints_udp_is_refused_too", &[]).udp()),
        everywhere(case("endpoints_that_are_not_ready_are_as_good_as_none", &[]).with(Local1, NotReady)),
        case("without_endpoints_the_internal_local_policy_refuses", &[]).internal_local().send(
            LocalClient,
            ClusterIp,
            Refused,
        ),
        case("without_endpoints_the_external_local_policy_refuses", &[])
            .exposed()
            .external_local()
            .send(Outside, NodePort, Refused)
            .send(Outside, LoadBalancerIp, Refused),
    ]
}

fn external_policy() -> Vec<PacketCase> {
    vec![
        case("the_external_local_policy_serves_locally_and_keeps_the_source", &[Local1, Local2, Remote1])
            .exposed()
            .external_local()
            .send(Outside, NodePort, evenly(&[Local1, Local2], Kept))
            .send(Outside, ExternalIp, served(&[Local1, Local2], Kept))
            .send(Outside, LoadBalancerIp, served(&[Local1, Local2], Kept))
            .send(LocalClient, LoadBalancerIp, served(&[Local1, Local2, Remote1], Kept))
            .send(LocalClient, NodePort, served(&[Local1, Local2, Remote1], Kept))
            .send(Node, LoadBalancerIp, served(&[Local1, Local2, Remote1], Masqueraded))
            .send(Node, NodePort, served(&[Local1, Local2, Remote1], Masqueraded))
            .send(LocalClient, ClusterIp, served(&[Local1, Local2, Remote1], Kept)),
        case("the_external_local_policy_without_local_endpoints_drops_outside_traffic", &[Remote1, Remote2])
            .exposed()
            .external_local()
            .send(Outside, NodePort, Dropped)
            .send(Outside, ExternalIp, Dropped)
            .send(Outside, LoadBalancerIp, Dropped)
            .send(LocalClient, LoadBalancerIp, served(&[Remote1, Remote2], Kept))
            .send(Node, NodePort, served(&[Remote1, Remote2], Masqueraded))
            .send(LocalClient, ClusterIp, served(&[Remote1, Remote2], Kept)),
        case("the_external_local_policy_holds_for_udp", &[Local1, Remote1])
            .udp()
            .exposed()
            .external_local()
            .send(Outside, NodePort, served(&[Local1], Kept))
            .send(Outside, LoadBalancerIp, served(&[Local1], Kept)),
    ]
}

fn internal_policy() -> Vec<PacketCase> {
    vec![
        case("the_internal_local_policy_serves_locally", &[Local1, Local2, Remote1])
            .exposed()
            .internal_local()
            .send(LocalClient, ClusterIp, evenly(&[Local1, Local2], Kept))
            .send(Node, ClusterIp, served(&[Local1, Local2], Masqueraded))
            .send(Outside, NodePort, served(&[Local1, Local2, Remote1], Masqueraded))
            .send(LocalClient, LoadBalancerIp, served(&[Local1, Local2, Remote1], Masqueraded)),
        case("the_internal_local_policy_without_local_endpoints_drops", &[Remote1])
            .exposed()
            .internal_local()
            .send(LocalClient, ClusterIp, Dropped)
            .send(Node, ClusterIp, Dropped)
            .send(Outside, NodePort, served(&[Remote1], Masqueraded)),
        case("both_local_policies_serve_only_local_endpoints", &[Local1, Remote1])
            .exposed()
            .internal_local()
            .external_local()
            .send(LocalClient, ClusterIp, served(&[Local1], Kept))
            .send(Outside, LoadBalancerIp, served(&[Local1], Kept)),
    ]
}

fn source_ranges() -> Vec<PacketCase> {
    vec![
        case("source_ranges_guard_the_load_balancer_ip_and_nothing_else", &[Local1, Remote1])
            .exposed()
            .allow(OutsideFriend)
            .send(OutsideFriend, LoadBalancerIp, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, LoadBalancerIp, Dropped)
            .send(LocalClient, LoadBalancerIp, Dropped)
            .send(Node, LoadBalancerIp, Dropped)
            .send(Outside, ExternalIp, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, NodePort, served(&[Local1, Remote1], Masqueraded))
            .send(LocalClient, ClusterIp, served(&[Local1, Remote1], Kept)),
        case("source_ranges_that_hold_the_node_let_the_node_in", &[Local1, Remote1])
            .exposed()
            .allow(Node)
            .send(Node, LoadBalancerIp, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, LoadBalancerIp, Dropped),
        case("source_ranges_with_the_external_local_policy_keep_the_source", &[Local1, Remote1])
            .exposed()
            .external_local()
            .allow(OutsideFriend)
            .send(OutsideFriend, LoadBalancerIp, served(&[Local1], Kept))
            .send(Outside, LoadBalancerIp, Dropped),
    ]
}

fn affinity() -> Vec<PacketCase> {
    let sticky = |share| Verdict::Served(ServedBy { by: ALL_PODS.to_vec(), source: Kept, share });
    vec![
        case("client_affinity_keeps_a_client_on_its_endpoint", &ALL_PODS).affinity(600).send(
            LocalClient,
            ClusterIp,
            sticky(Share::Sticky),
        ),
        case("client_affinity_expires_after_its_timeout", &ALL_PODS).affinity(2).send(
            LocalClient,
            ClusterIp,
            sticky(Share::StickyUntilTimeout),
        ),
        case("client_affinity_holds_on_node_ports", &ALL_PODS).exposed().affinity(600).send(
            Outside,
            NodePort,
            Verdict::Served(ServedBy { by: ALL_PODS.to_vec(), source: Masqueraded, share: Share::Sticky }),
        ),
    ]
}

fn endpoint_states() -> Vec<PacketCase> {
    vec![
        case("terminating_endpoints_are_left_out_while_one_is_ready", &[Remote1])
            .with(Local1, Terminating)
            .with(Local2, NotReady)
            .send(LocalClient, ClusterIp, served(&[Remote1], Kept)),
        case("terminating_endpoints_serve_when_none_is_ready", &[])
            .exposed()
            .with(Local1, Terminating)
            .with(Remote1, Terminating)
            .with(Local2, Stopped)
            .with(Remote2, NotReady)
            .send(LocalClient, ClusterIp, served(&[Local1, Remote1], Kept))
            .send(Outside, NodePort, served(&[Local1, Remote1], Masqueraded)),
        case("endpoints_that_stopped_serving_are_no_fallback", &[]).with(Local1, Stopped).send(
            LocalClient,
            ClusterIp,
            Refused,
        ),
        case("the_external_local_policy_falls_back_to_local_terminating_endpoints", &[Remote1])
            .exposed()
            .external_local()
            .with(Local1, Terminating)
            .send(Outside, NodePort, served(&[Local1], Kept))
            .send(Outside, LoadBalancerIp, served(&[Local1], Kept))
            .send(LocalClient, ClusterIp, served(&[Remote1], Kept)),
    ]
}

fn flags() -> Vec<PacketCase> {
    vec![
        case("masquerade_all_masquerades_cluster_ips_too", &[Local1, Remote1])
            .flags(&["--masquerade-all"])
            .send(LocalClient, ClusterIp, served(&[Local1, Remote1], Masqueraded)),
        case("node_ports_answer_on_the_chosen_addresses_only", &[Local1, Remote1])
            .exposed()
            .flags(&["--nodeport-addresses=10.200.0.0/24,fd00:200::/64"])
            .send(Outside, NodePort, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, NodePortOnPodSide, Untouched)
            .send(Node, NodePortOnLocalhost, Untouched),
        case("localhost_node_ports_can_be_switched_off", &[Local1, Remote1])
            .exposed()
            .flags(&["--iptables-localhost-nodeports=false"])
            .send(Outside, NodePort, served(&[Local1, Remote1], Masqueraded))
            .send(Node, NodePortOnLocalhost, Untouched),
        case("local_pods_are_told_by_their_interfaces", &[Local1, Remote1])
            .exposed()
            .external_local()
            .flags(&[
                "--detect-local-mode=InterfaceNamePrefix",
                "--pod-interface-name-prefix=veth",
                "--cluster-cidr=",
            ])
            .send(LocalClient, LoadBalancerIp, served(&[Local1, Remote1], Kept))
            .send(LocalClient, ClusterIp, served(&[Local1, Remote1], Kept))
            .send(Outside, ClusterIp, served(&[Local1, Remote1], Masqueraded))
            .send(Outside, LoadBalancerIp, served(&[Local1], Kept)),
    ]
}

fn served(by: &[Place], source: Source) -> Verdict<ServedBy> {
    Verdict::Served(ServedBy { by: by.to_vec(), source, share: Share::Some })
}

fn evenly(by: &[Place], source: Source) -> Verdict<ServedBy> {
    Verdict::Served(ServedBy { by: by.to_vec(), source, share: Share::Even })
}

/// A case whose Service has these ready endpoints and nothing but a cluster IP.
fn case(name: &'static str, ready: &[Place]) -> PacketCase {
    let shape = Shape {
        protocol: Protocol::Tcp,
        endpoints: ready.iter().map(|place| (*place, Ready)).collect(),
        exposed: false,
        external_local: false,
        internal_local: false,
        affinity_seconds: None,
        source_ranges: Vec::new(),
    };
    PacketCase { name, flags: &[], shape, packets: Vec::new(), index: 0 }
}

impl PacketCase {
    fn udp(mut self) -> Self {
        self.shape.protocol = Protocol::Udp;
        self
    }

    fn exposed(mut self) -> Self {
        self.shape.exposed = true;
        self
    }

    fn external_local(mut self) -> Self {
        self.shape.external_local = true;
        self
    }

    fn internal_local(mut self) -> Self {
        self.shape.internal_local = true;
        self
    }

    fn affinity(mut self, seconds: u32) -> Self {
        self.shape.affinity_seconds = Some(seconds);
        self
    }

    fn allow(mut self, place: Place) -> Self {
        self.shape.source_ranges.push(place);
        self
    }

    fn with(mut self, place: Place, state: EndpointState) -> Self {
        self.shape.endpoints.push((place, state));
        self
    }

    fn flags(mut self, flags: &'static [&'static str]) -> Self {
        self.flags = flags;
        self
    }

    fn send(self, from: Place, to: Target, verdict: Verdict<ServedBy>) -> Self {
        self.send_in(BOTH, from, to, verdict)
    }

    fn send_in(
        mut self,
        families: &'static [IpFamily],
        from: Place,
        to: Target,
        verdict: Verdict<ServedBy>,
    ) -> Self {
        self.packets.push(Packet { from, to, families, verdict });
        self
    }
}

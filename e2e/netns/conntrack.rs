//! UDP flows that must not outlive what they were led to, and those that must.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::flows;
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{EndpointState, PacketCase, Place, SERVICE_PORT, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, metric_sum, metrics, wait_until};
use serde_json::{Value, json};

use crate::BINARY;

const SYNC: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(10);
const DELETED: &str = "kubeproxy_conntrack_reconciler_deleted_entries_total";
const RUNS: &str = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count";

/// A UDP socket that stays open, and with it its flow.
struct HeldFlow(UdpSocket);

impl HeldFlow {
    fn open(lab: &Lab, from: Place, family: IpFamily, to: SocketAddr) -> HeldFlow {
        let open = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(SocketAddr::new(from.address(family), 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(socket)
        };
        HeldFlow(lab.namespace(from).run(open).unwrap().unwrap())
    }

    /// The pod that answers, if any does.
    fn answered_by(&self) -> io::Result<String> {
        self.0.send(b"?")?;
        let mut line = [0; 128];
        let length = self.0.recv(&mut line)?;
        let text = String::from_utf8_lossy(&line[..length]).into_owned();
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }
}

/// A UDP Service with a node port and these endpoints.
fn service(endpoints: &[Place]) -> PacketCase {
    let name = "every_external_destination_reaches_all_endpoints_masqueraded";
    let mut case = cases().into_iter().find(|case| case.name == name).unwrap();
    case.shape.protocol = Protocol::Udp;
    case.shape.endpoints = endpoints.iter().map(|place| (*place, EndpointState::Ready)).collect();
    case
}

fn start(lab: &Lab, objects: &[Value]) -> Proxy {
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor: Flavor::Nft, flags: &[] };
    let mut proxy = launch.start(objects).unwrap();
    proxy.wait_for_sync(lab.node(), Flavor::Nft, SYNC).unwrap();
    proxy
}

fn cluster_ip(case: &PacketCase, family: IpFamily) -> SocketAddr {
    SocketAddr::new(case.cluster_ip(family), SERVICE_PORT)
}

#[test]
fn a_flow_moves_on_when_its_endpoint_goes() {
    let lab = Lab::create().unwrap();
    let both = [Place::Local1, Place::Local2];
    let case = service(&both);
    let mut proxy = start(&lab, &case.objects());
    let flows = IpFamily::ALL.map(|family| {
        let flow = HeldFlow::open(&lab, Place::LocalClient, family, cluster_ip(&case, family));
        let first = flow.answered_by().unwrap();
        assert_eq!(flow.answered_by().unwrap(), first, "a flow stays where it is");
        (flow, first)
    });
    for (flow, first) in flows {
        let stays = both.into_iter().find(|place| place.name() != first).unwrap();
        proxy.apply(&service(&[stays]).objects()).unwrap();
        wait_until("the flow has moved", SOON, || flow.answered_by().is_ok_and(|pod| pod == stays.name()))
            .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
        proxy.apply(&case.objects()).unwrap();
        proxy.wait_for_sync(lab.node(), Flavor::Nft, SYNC).unwrap();
    }
    assert!(metric_sum(&metrics(lab.node()).unwrap(), DELETED) >= 2.0);
}

#[test]
fn flows_end_when_a_service_is_scaled_to_zero() {
    let lab = Lab::create().unwrap();
    let case = service(&[Place::Local1]);
    let mut proxy = start(&lab, &case.objects());
    let node_port = SocketAddr::new(Place::Node.address(IpFamily::V4), case.node_port());
    let flows = [
        HeldFlow::open(&lab, Place::LocalClient, IpFamily::V4, cluster_ip(&case, IpFamily::V4)),
        HeldFlow::open(&lab, Place::LocalClient, IpFamily::V6, cluster_ip(&case, IpFamily::V6)),
        HeldFlow::open(&lab, Place::Outside, IpFamily::V4, node_port),
    ];
    for flow in &flows {
        flow.answered_by().unwrap();
    }
    proxy.apply(&service(&[]).objects()).unwrap();
    for flow in &flows {
        wait_until("the flow is refused", SOON, || flow.answered_by().is_err())
            .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
    }
}

#[test]
fn flows_to_the_old_node_port_end_when_it_changes_and_those_to_the_cluster_ip_stay() {
    let lab = Lab::create().unwrap();
    let case = service(&[Place::Local1]);
    let mut proxy = start(&lab, &case.objects());
    let node_port = |number| SocketAddr::new(Place::Node.address(IpFamily::V4), number);
    let old = HeldFlow::open(&lab, Place::Outside, IpFamily::V4, node_port(case.node_port()));
    let inside = HeldFlow::open(&lab, Place::LocalClient, IpFamily::V4, cluster_ip(&case, IpFamily::V4));
    old.answered_by().unwrap();
    inside.answered_by().unwrap();

    let changed = case.node_port() + 500;
    let mut objects = case.objects();
    objects[0]["spec"]["ports"][0]["nodePort"] = json!(changed);
    proxy.apply(&objects).unwrap();
    wait_until("the old node port is closed", SOON, || old.answered_by().is_err())
        .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
    let new = HeldFlow::open(&lab, Place::Outside, IpFamily::V4, node_port(changed));
    wait_until("the new node port answers", SOON, || new.answered_by().is_ok()).unwrap();
    inside.answered_by().unwrap();
    // The proxy counts what it deleted once the whole cleanup is done: an answer may come before.
    let deleted = || metric_sum(&metrics(lab.node()).unwrap(), DELETED);
    wait_until("the deleted flow is counted", SOON, || deleted() > 0.5).unwrap();
    assert!(deleted() < 1.5, "only the one flow, not {}", deleted());
}

#[test]
fn flows_to_the_old_target_port_end_when_it_changes() {
    let lab = Lab::create().unwrap();
    let case = service(&[Place::Local1]);
    let mut proxy = start(&lab, &case.objects());
    let flow = HeldFlow::open(&lab, Place::LocalClient, IpFamily::V4, cluster_ip(&case, IpFamily::V4));
    flow.answered_by().unwrap();
    let mut objects = case.objects();
    for slice in &mut objects[1..] {
        // Nothing listens there, so an answer can only come by way of the old port.
        slice["ports"][0]["port"] = json!(9);
    }
    proxy.apply(&objects).unwrap();
    wait_until("the old target port gets no more", SOON, || flow.answered_by().is_err())
        .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
}

#[test]
fn a_restart_deletes_no_good_flow() {
    let lab = Lab::create().unwrap();
    let case = service(&[Place::Local1, Place::Local2]);
    let mut proxy = start(&lab, &case.objects());
    let flow = HeldFlow::open(&lab, Place::LocalClient, IpFamily::V4, cluster_ip(&case, IpFamily::V4));
    let first = flow.answered_by().unwrap();
    proxy.terminate().unwrap();
    proxy.apply(&case.objects()).unwrap();
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor: Flavor::Nft, flags: &[] };
    launch.start_again(&mut proxy).unwrap();
    proxy.wait_for_sync(lab.node(), Flavor::Nft, SYNC).unwrap();
    wait_until("flows have been looked at", SOON, || metric_sum(&metrics(lab.node()).unwrap(), RUNS) >= 2.0)
        .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
    assert_eq!(flow.answered_by().unwrap(), first);
    assert!(metric_sum(&metrics(lab.node()).unwrap(), DELETED) < 0.5);
}

/// Other people's flows, fewer than the least limit that a proxy sets (131,072 for all namespaces), and what
/// each of them would take at the least if it were held.
const FOREIGN: u32 = 100_000;
const BYTES_OF_A_FLOW: u64 = 40;

#[test]
fn other_peoples_flows_are_not_held_in_memory_and_stay_where_a_stale_one_goes() {
    let peak_kb = |foreign: u32| {
        let lab = Lab::create().unwrap();
        let both = [Place::Local1, Place::Local2];
        let case = service(&both);
        lab.node().run(|| flows::track().and_then(|()| flows::add(foreign))).unwrap().unwrap();
        let mut proxy = start(&lab, &case.objects());
        let flow = HeldFlow::open(&lab, Place::LocalClient, IpFamily::V4, cluster_ip(&case, IpFamily::V4));
        let first = flow.answered_by().unwrap();
        let stays = both.into_iter().find(|place| place.name() != first).unwrap();
        proxy.apply(&service(&[stays]).objects()).unwrap();
        wait_until("the flow has moved", SOON, || flow.answered_by().is_ok_and(|pod| pod == stays.name()))
            .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
        let left = lab.node().run(flows::count).unwrap().unwrap();
        assert!(left >= foreign, "{left} of {foreign} flows are left");
        proxy.status_kb("VmHWM").unwrap()
    };
    let (without, with) = (peak_kb(0), peak_kb(FOREIGN));
    let held = u64::from(FOREIGN) * BYTES_OF_A_FLOW / 1024;
    assert!(with < without + held / 2, "{with} kB with them, {without} kB without");
}

//! From mode ipvs, kube-proxy's or ours, to mode nftables and back, with connections open through both and requests all the
//! while.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

use kube_proxy_rs::testing::packets::{PacketCase, SERVICE_PORT};
use serde_json::Value;

use super::{
    BINARY, Duration, Flavor, HeldConnection, IpAddr, IpFamily, LIMIT, Lab, Launch, Namespace, Place,
    Protocol, Proxy, SocketAddr, at, launch, lines, save, servers, service_of, thread, wait_for_markers,
    wait_until,
};
use crate::explain::explain;
use crate::peer::KubeProxy;
use crate::requests::{Requests, StopOnDrop};
use crate::resilience::exposed_case;

/// Of the Service that is asked by UDP.
const DNS: &str = "10.96.9.8";
const NODE_PORTS: &str = "--nodeport-addresses=10.200.0.0/16,fd00:200::/64";
/// An end of TCP is remembered for two minutes; what is idle by UDP is not, so that the test does not wait for it.
const IPVS: &[&str] = &["--proxy-mode=ipvs", NODE_PORTS, "--ipvs-udp-timeout=60s"];
const AS_KUBE_PROXY: &[&str] = &["--proxy-mode=ipvs", NODE_PORTS, "--ipvs-upstream-compat"];
const NFTABLES: &[&str] = &["--proxy-mode=nftables", NODE_PORTS];
/// Some load, not all that an emulated machine can take.
const PAUSE: Duration = Duration::from_millis(200);
/// The kernel remembers a closed connection for two minutes.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// What ran on the node before.
enum Former {
    /// The program in kube-proxy's ways, which the fixtures hold to be the same state.
    InItsWays(Proxy),
    /// kube-proxy itself, as the variable PEER names it.
    KubeProxy(KubeProxy),
}

impl Former {
    fn start(lab: &Lab, objects: &[Value]) -> Former {
        let flags = ["--proxy-mode=ipvs", NODE_PORTS];
        let is_ready = || [false, true].into_iter().all(|v6| has_last_rules(lab.node(), v6));
        if let Some(program) = KubeProxy::start(lab, &flags, objects, is_ready) {
            return Former::KubeProxy(program);
        }
        let mut proxy = launch(lab.node(), AS_KUBE_PROXY).start(objects).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        Former::InItsWays(proxy)
    }

    fn end(self) {
        match self {
            Former::InItsWays(mut proxy) => proxy.terminate().unwrap(),
            Former::KubeProxy(program) => drop(program),
        }
    }
}

/// Connections that stay open through all changes, each with the endpoint that it has had from the start.
#[derive(Default)]
struct Open {
    tcp: Vec<(HeldConnection, String)>,
    /// Asked all the time: what is idle may get another endpoint.
    udp: Arc<Mutex<Vec<(UdpSocket, String)>>>,
}

impl Open {
    /// Opens some more, by every way to the Services.
    fn more(&mut self, lab: &Lab, case: &PacketCase) {
        let node_port = SocketAddr::new(Place::Node.address(IpFamily::V4), case.node_port());
        let cluster_ip = |family| SocketAddr::new(case.cluster_ip(family), SERVICE_PORT);
        let (v4, v6) = (IpFamily::V4, IpFamily::V6);
        for (from, family, to) in [
            (Place::LocalClient, v4, cluster_ip(v4)),
            (Place::LocalClient, v6, cluster_ip(v6)),
            (Place::Node, v4, cluster_ip(v4)),
            (Place::Node, v6, cluster_ip(v6)),
            (Place::Outside, v4, node_port),
        ] {
            // It ends with a reset, which IPVS forgets in seconds.
            let port = 40_000 + u16::try_from(self.tcp.len()).unwrap();
            let mut held = lab.client(from, family).open_from(port, to).unwrap();
            let pod = super::pod(&mut held);
            self.tcp.push((held, pod));
        }
        let client: IpAddr = Place::LocalClient.address(IpFamily::V4);
        let bind = || UdpSocket::bind((client, 0)).unwrap();
        let socket = lab.namespace(Place::LocalClient).run(bind).unwrap();
        socket.connect(at(DNS)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let pod = answer(&socket).expect("the Service answers by UDP");
        self.udp.lock().unwrap().push((socket, pod));
    }

    /// Each TCP connection is still answered, by the endpoint that it has had from the start.
    fn assert_alive(&mut self, when: &str) {
        for (index, (connection, pod)) in self.tcp.iter_mut().enumerate() {
            let said =
                connection.ping().unwrap_or_else(|error| panic!("{when}: connection {index}: {error:#}"));
            assert_eq!(said.split(' ').next(), Some(&**pod), "{when}: connection {index}");
        }
    }
}

/// Asks all streams until the requests are done; returns what came instead of the answer of a stream's endpoint.
fn ask_streams(
    streams: &Mutex<Vec<(UdpSocket, String)>>,
    requests: &Requests,
) -> Vec<(String, Option<String>)> {
    let mut wrong = Vec::new();
    while !requests.are_done() {
        for (socket, pod) in &*streams.lock().unwrap() {
            let came = answer(socket);
            if came.as_ref() != Some(pod) {
                wrong.push((pod.clone(), came));
            }
        }
        thread::sleep(PAUSE);
    }
    wrong
}

fn answer(socket: &UdpSocket) -> Option<String> {
    socket.send(b"?").ok()?;
    let mut line = [0; 128];
    let length = socket.recv(&mut line).ok()?;
    Some(String::from_utf8_lossy(&line[..length]).split(' ').next()?.to_owned())
}

/// What kube-proxy writes at the end of a pass, behind virtual servers, addresses and sets.
fn has_last_rules(node: &Namespace, v6: bool) -> bool {
    let set = if v6 { "KUBE-6-CLUSTER-IP" } else { "KUBE-CLUSTER-IP" };
    save(Flavor::Nft, node, v6).unwrap().contains(&format!("--match-set {set} dst,dst -j ACCEPT"))
}

fn has_table(node: &Namespace) -> bool {
    node.output("nft", &["list", "tables"]).unwrap().contains("kube-proxy")
}

fn has_rules(node: &Namespace) -> bool {
    [false, true].into_iter().any(|v6| save(Flavor::Nft, node, v6).unwrap().contains("KUBE-IPVS"))
}

fn has_interface(node: &Namespace) -> bool {
    node.output("ip", &["-o", "link", "show"]).unwrap().contains("kube-ipvs0")
}

/// What runs in force now is as it should be, by its own account.
fn assert_healthy(node: &Namespace, proxy: &Proxy, case: &PacketCase) {
    let socket = proxy.control_socket();
    let about = ["--control-socket", socket.to_str().unwrap()];
    let name = format!("packets/{}", case.service_name());
    let (report, status) = explain(node, &[&[&*name], &about[..]].concat());
    assert!(status == 0 && report["kernelIsRight"] == true, "{report:#}\n{}", proxy.log_tail());
    let status = node.command(BINARY).arg("status").args(about).output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
}

/// Stops one mode and starts the next one on the same objects, until it is in force.
fn change(proxy: &mut Proxy, to: Launch<'_>, objects: &[Value]) {
    proxy.terminate().unwrap();
    proxy.apply(objects).unwrap();
    to.start_again(proxy).unwrap();
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn connections_outlive_the_change_from_ipvs_to_nftables_and_back() {
    let lab = Lab::create().unwrap();
    let (node, case) = (lab.node(), exposed_case());
    let endpoints = [Place::Local1, Place::Remote1].map(|place| place.address(IpFamily::V4));
    let objects = [case.objects(), service_of("dns", (DNS, Protocol::Udp), None, &endpoints)].concat();
    let former = Former::start(&lab, &objects);
    let (mut open, requests) = (Open::default(), Requests::default());
    let streams = Arc::clone(&open.udp);
    open.more(&lab, &case);
    let (lost, wrong, mut proxy) = thread::scope(|scope| {
        let asking = [Place::LocalClient, Place::Node].map(|from| {
            let (requests, lab, case) = (&requests, &lab, &case);
            scope.spawn(move || requests.ask_from_until_done(lab, (from, IpFamily::V4), case, PAUSE))
        });
        let streaming = scope.spawn(|| ask_streams(&streams, &requests));
        let stop = StopOnDrop(&requests);
        requests.wait_for(10);
        former.end();
        let mut proxy = launch(node, NFTABLES).start(&objects).unwrap();
        crate::nftables::wait_for_markers(&mut proxy, node);
        wait_until("no rule of mode ipvs is left", LIMIT, || !has_rules(node)).unwrap();
        wait_until("virtual servers in use are drained", LIMIT, || {
            proxy.log().contains("until the connections through them have ended")
        })
        .unwrap_or_else(|error| panic!("{error}: {}", proxy.log_tail()));
        requests.wait_for(10);
        open.assert_alive("after the change to nftables");
        let there = servers(node);
        let takes_new = there.iter().filter(|it| it.starts_with("-a") && !it.ends_with("-w 0"));
        assert_eq!(takes_new.count(), 0, "{there:#?}");
        assert_healthy(node, &proxy, &case);
        open.more(&lab, &case);

        change(&mut proxy, launch(node, IPVS), &objects);
        wait_for_markers(&mut proxy, node);
        wait_until("the nftables table is gone", LIMIT, || !has_table(node)).unwrap();
        requests.wait_for(10);
        open.assert_alive("after the change to ipvs");
        assert_healthy(node, &proxy, &case);
        open.more(&lab, &case);
        drop(stop);
        (asking.map(|it| it.join().unwrap()).concat(), streaming.join().unwrap(), proxy)
    });
    assert!(lost.is_empty() && wrong.is_empty(), "{lost:?} {wrong:?}; its log:\n{}", proxy.log_tail());

    change(&mut proxy, launch(node, NFTABLES), &objects);
    crate::nftables::wait_for_markers(&mut proxy, node);
    wait_until("no rule of mode ipvs is left", LIMIT, || !has_rules(node)).unwrap();
    open.assert_alive("after the second change to nftables");
    open.udp.lock().unwrap().clear();
    drop(open);
    wait_until("nothing of mode ipvs is left", FORGOTTEN, || !has_interface(node))
        .unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", servers(node), proxy.log_tail()));
    assert!(servers(node).is_empty() && lines(node, "ipset", &["save"]).is_empty());
    assert_healthy(node, &proxy, &case);
}

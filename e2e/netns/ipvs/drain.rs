//! Endpoints that go while they have connections.

use std::fs;
use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use kube_proxy_rs::kernel::ipvs::{KernelIpvs, VirtualServers as _};
use kube_proxy_rs::model::Frontend;
use kube_proxy_rs::testing::packets::TARGET_PORT;
use kube_proxy_rs::testing::traffic::{Client, PodServers};

use super::{
    Answer, BTreeSet, Duration, IpAddr, IpFamily, Lab, Namespace, Place, Protocol, SocketAddr, at, counts,
    launch, pod, service, service_of, wait_for_markers, wait_until,
};

/// The kernel remembers a closed connection for two minutes.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// Endpoints of the rolling update.
const ENDPOINTS: u8 = 20;

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn connections_outlive_their_endpoint_and_our_restart() {
    const IP: &str = "10.96.9.1";
    let lab = Lab::create().unwrap();
    let node = lab.node();
    let flags = ["--proxy-mode=ipvs"];
    let launch = launch(node, &flags);
    let objects = |endpoints: &[Place]| service("web", IP, None, endpoints);
    let mut proxy = launch.start(&objects(&[Place::Local1])).unwrap();
    wait_for_markers(&mut proxy, node);
    let mut held = lab.client(Place::LocalClient, IpFamily::V4).open(at(IP)).unwrap();
    assert_eq!(pod(&mut held), "local-1");

    proxy.apply(&objects(&[Place::Remote1])).unwrap();
    wait_for_markers(&mut proxy, node);
    let real = |place: Place| format!("-r {}:8080", place.address(IpFamily::V4));
    let weight = |place: Place| {
        let listed = node.output("ipvsadm", &["-Sn"]).unwrap();
        let line = listed.lines().find(|line| line.contains(&real(place)) && line.contains(IP))?.to_owned();
        Some(line.rsplit(' ').next()?.to_owned())
    };
    assert_eq!(weight(Place::Local1).as_deref(), Some("0"), "it is drained");
    assert_eq!(pod(&mut held), "local-1", "and goes on serving its connection");
    let new = counts(&lab, at(IP), 8);
    assert_eq!(new.keys().collect::<Vec<_>>(), ["remote-1"], "but gets no new one");

    proxy.terminate().unwrap();
    assert_eq!(pod(&mut held), "local-1");
    launch.start_again(&mut proxy).unwrap();
    proxy.apply(&objects(&[Place::Remote1])).unwrap();
    wait_for_markers(&mut proxy, node);
    assert_eq!(pod(&mut held), "local-1", "a restart changes nothing");
    assert_eq!(weight(Place::Local1).as_deref(), Some("0"));

    drop(held);
    wait_until("the drained endpoint is gone", FORGOTTEN, || weight(Place::Local1).is_none()).unwrap();
    assert_eq!(weight(Place::Remote1).as_deref(), Some("1"));
}

/// Pods elsewhere, each called by its address: as many old ones as new ones.
struct Fleet {
    _servers: PodServers,
    old: Vec<IpAddr>,
    new: Vec<IpAddr>,
}

impl Fleet {
    fn start(lab: &Lab) -> Fleet {
        let remote = lab.namespace(Place::Remote1);
        let mut servers = PodServers::builder();
        let mut batch = |from: u8| -> Vec<IpAddr> {
            let ips: Vec<IpAddr> = (from..from + ENDPOINTS).map(|last| [10, 128, 1, last].into()).collect();
            for ip in &ips {
                remote.ip(&format!("addr add {ip}/32 dev lo")).unwrap();
                servers.listen(&ip.to_string(), remote, SocketAddr::new(*ip, TARGET_PORT)).unwrap();
            }
            ips
        };
        let (old, new) = (batch(100), batch(200));
        Fleet { old, new, _servers: servers.start().unwrap() }
    }

    /// The endpoints after the first `replaced` have been replaced.
    fn after(&self, replaced: usize) -> Vec<IpAddr> {
        [&self.new[..replaced], &self.old[replaced..]].concat()
    }
}

/// Ends the load also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends requests until told to stop; returns what went wrong, first of all those that were
/// answered by an endpoint that was being drained when they were sent.
fn send_requests(
    client: Client<'_>,
    to: SocketAddr,
    drained: &Mutex<BTreeSet<String>>,
    stop: &AtomicBool,
) -> Vec<Answer> {
    let mut wrong = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let before = drained.lock().unwrap().clone();
        let is_wrong = |answer: &Answer| match answer {
            Answer::Answered { pod, .. } => before.contains(pod),
            _ => true,
        };
        wrong.extend(client.ask_many(Protocol::Tcp, to, 4).into_iter().filter(is_wrong));
        // Some load, not all that an emulated machine can take.
        std::thread::sleep(Duration::from_millis(100));
    }
    wrong
}

/// The real servers of a virtual server: address and weight.
fn real_servers(node: &Namespace, to: SocketAddr) -> BTreeSet<(IpAddr, u32)> {
    let at = Frontend { address: to.ip(), port: to.port(), protocol: Protocol::Tcp };
    let listed = node.run(|| KernelIpvs::open()?.real_servers(&at)).unwrap().unwrap();
    listed.into_iter().map(|(real, _)| (real.address.ip(), real.weight)).collect()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_rolling_update_under_load_cuts_nobody_off_also_across_a_restart() {
    const IP: &str = "10.96.9.5";
    let lab = Lab::create().unwrap();
    let (node, fleet) = (lab.node(), Fleet::start(&lab));
    let flags = ["--proxy-mode=ipvs", "--ipvs-min-sync-period=0s"];
    let launch = launch(node, &flags);
    let objects = |replaced| service_of("web", (IP, Protocol::Tcp), None, &fleet.after(replaced));
    let mut proxy = launch.start(&objects(0)).unwrap();
    wait_for_markers(&mut proxy, node);
    let client = lab.client(Place::LocalClient, IpFamily::V4).patience(Duration::from_secs(30));
    let mut held: Vec<_> = (0..2 * ENDPOINTS).map(|_| client.open(at(IP)).unwrap()).collect();
    let pods: Vec<String> = held.iter_mut().map(pod).collect();
    assert_eq!(pods.iter().collect::<BTreeSet<_>>().len(), usize::from(ENDPOINTS), "each has two");

    let (drained, stop) = (Mutex::default(), AtomicBool::new(false));
    let wrong = std::thread::scope(|scope| {
        let load = scope.spawn(|| send_requests(client, at(IP), &drained, &stop));
        let stopping = Stop(&stop);
        for step in 0..usize::from(ENDPOINTS) {
            if step == usize::from(ENDPOINTS / 2) {
                proxy.terminate().unwrap();
                proxy.apply(&objects(step + 1)).unwrap();
                launch.start_again(&mut proxy).unwrap();
            } else {
                proxy.apply(&objects(step + 1)).unwrap();
            }
            wait_for_markers(&mut proxy, node);
            drained.lock().unwrap().insert(fleet.old[step].to_string());
            let now: Vec<String> = held.iter_mut().map(pod).collect();
            assert_eq!(now, pods, "after step {step} every connection is where it was");
        }
        assert_eq!(real_servers(node, at(IP)).len(), 2 * usize::from(ENDPOINTS), "all are being drained");
        drop(stopping);
        load.join().unwrap()
    });
    assert_eq!(wrong, [], "requests that failed or went to an endpoint that was being drained");

    drop(held);
    let left: BTreeSet<_> = fleet.new.iter().map(|ip| (*ip, 1)).collect();
    wait_until("the old endpoints are gone", FORGOTTEN, || real_servers(node, at(IP)) == left)
        .unwrap_or_else(|error| panic!("{error}: {:?}", real_servers(node, at(IP))));
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_udp_client_is_not_left_with_an_endpoint_that_is_gone() {
    const IP: &str = "10.96.9.6";
    let lab = Lab::create().unwrap();
    let objects = |place: Place| service_of("dns", (IP, Protocol::Udp), None, &[place.address(IpFamily::V4)]);
    let flags = ["--proxy-mode=ipvs"];
    let mut proxy = launch(lab.node(), &flags).start(&objects(Place::Local1)).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    // The same socket all the time, as resolvers do.
    let open = || UdpSocket::bind((Place::LocalClient.address(IpFamily::V4), 0));
    let socket = lab.namespace(Place::LocalClient).run(open).unwrap().unwrap();
    socket.connect(at(IP)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let ask = || -> Option<String> {
        socket.send(b"?").ok()?;
        let mut line = [0; 128];
        let length = socket.recv(&mut line).ok()?;
        Some(String::from_utf8_lossy(&line[..length]).split(' ').next()?.to_owned())
    };
    assert_eq!(ask().as_deref(), Some("local-1"));
    proxy.apply(&objects(Place::Remote1)).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    // The packet that finds its endpoint gone may be lost with it, but not those that follow.
    wait_until("the other endpoint answers", super::LIMIT, || ask().as_deref() == Some("remote-1")).unwrap();
}

/// TCP segments that a namespace has sent again.
fn retransmissions(namespace: &Namespace) -> u64 {
    let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    columns.find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_client_port_that_is_used_again_meets_no_dead_pod_and_does_not_wait() {
    const IP: &str = "10.96.9.7";
    let lab = Lab::create().unwrap();
    let objects = |place: Place| service("web", IP, None, &[place]);
    let flags = ["--proxy-mode=ipvs"];
    let mut proxy = launch(lab.node(), &flags).start(&objects(Place::Local1)).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    let client = lab.client(Place::LocalClient, IpFamily::V4).patience(Duration::from_secs(30));
    let mut waits = Vec::new();
    // Once is enough: a slow machine sends a SYN again on its own now and then.
    for attempt in 0..5 {
        let port = 40_000 + attempt;
        proxy.apply(&objects(Place::Local1)).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        let mut first = client.open_from(port, at(IP)).unwrap();
        assert_eq!(pod(&mut first), "local-1");
        drop(first);
        proxy.apply(&objects(Place::Remote1)).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        let before = retransmissions(lab.namespace(Place::LocalClient));
        let mut second = client.open_from(port, at(IP)).unwrap();
        assert_eq!(pod(&mut second), "remote-1");
        waits.push(retransmissions(lab.namespace(Place::LocalClient)) - before);
        if waits.contains(&0) {
            return;
        }
    }
    panic!("SYNs that had to be sent again: {waits:?}");
}

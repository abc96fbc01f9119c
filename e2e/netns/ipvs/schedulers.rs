//! Who gets which connection.

use kube_proxy_rs::testing::traffic::Client;

use super::{Answer, BTreeSet, IpAddr, IpFamily, Lab, Place, Protocol, SocketAddr};
use super::{at, counts, json, launch, pod, servers, service, wait_for_markers};

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn schedulers_share_as_their_names_say_and_may_differ_by_service() {
    const RR: &str = "10.96.9.1";
    const LC: &str = "10.96.9.2";
    const SH: &str = "10.96.9.3";
    const MH: &str = "10.96.9.4";
    let lab = Lab::create().unwrap();
    let mut objects = service("rr", RR, None, &Place::SERVERS);
    for (name, ip) in [("lc", LC), ("sh", SH), ("mh", MH)] {
        objects.extend(service(name, ip, Some(name), &Place::SERVERS));
    }
    let flags = ["--proxy-mode=ipvs"];
    let mut proxy = launch(lab.node(), &flags).start(&objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());

    let even = counts(&lab, at(RR), 40);
    assert!(even.len() == 4 && even.values().all(|count| *count == 10), "rr: {even:?}");
    for ip in [SH, MH] {
        assert_eq!(counts(&lab, at(ip), 12).len(), 1, "{ip} keeps a client on its endpoint");
    }
    let client = lab.client(Place::LocalClient, IpFamily::V4);
    let mut held: Vec<_> = (0..4).map(|_| client.open(at(LC)).unwrap()).collect();
    let pods: BTreeSet<String> = held.iter_mut().map(pod).collect();
    assert_eq!(pods.len(), 4, "lc takes the idle endpoint each time");
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn another_scheduler_or_affinity_cuts_no_connection_off() {
    const IP: &str = "10.96.9.9";
    let lab = Lab::create().unwrap();
    let mut objects = service("web", IP, None, &Place::SERVERS);
    let flags = ["--proxy-mode=ipvs"];
    let mut proxy = launch(lab.node(), &flags).start(&objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    let client = lab.client(Place::LocalClient, IpFamily::V4);
    let mut held: Vec<_> = (0..4).map(|_| client.open(at(IP)).unwrap()).collect();
    let pods: Vec<String> = held.iter_mut().map(pod).collect();
    objects[0]["metadata"]["annotations"] = json!({"kube-proxy-rs.io/ipvs-scheduler": "sh-port"});
    objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    objects[0]["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 77}});
    proxy.apply(&objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    let wanted = format!("-A -t {IP}:80 -s sh -p 77 -b sh-fallback,sh-port");
    let there = servers(lab.node());
    assert!(there.contains(&wanted), "{there:#?}");
    assert_eq!(held.iter_mut().map(pod).collect::<Vec<_>>(), pods);
}

/// Which pod each of these clients is served by.
fn pods_of(lab: &Lab, clients: &[IpAddr], to: SocketAddr) -> Vec<String> {
    let outside = lab.namespace(Place::Outside);
    let ask = |ip: &IpAddr| match Client::new(outside, Some(*ip)).ask(Protocol::Tcp, to) {
        Answer::Answered { pod, .. } => pod,
        other => panic!("{ip}: {other:?}"),
    };
    clients.iter().map(ask).collect()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn mh_moves_few_clients_when_an_endpoint_goes() {
    const IP: &str = "10.96.9.8";
    let lab = Lab::create().unwrap();
    let clients: Vec<IpAddr> = (100..140).map(|last| [10, 200, 0, last].into()).collect();
    for ip in &clients {
        lab.namespace(Place::Outside).ip(&format!("addr add {ip}/24 dev lan")).unwrap();
    }
    let objects = |endpoints: &[Place]| service("mh", IP, Some("mh"), endpoints);
    let flags = ["--proxy-mode=ipvs"];
    let mut proxy = launch(lab.node(), &flags).start(&objects(&Place::SERVERS)).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    let before = pods_of(&lab, &clients, at(IP));
    assert_eq!(before, pods_of(&lab, &clients, at(IP)), "a client stays where it is");
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 4, "every endpoint has clients: {before:?}");

    let gone = Place::Remote2;
    proxy.apply(&objects(&[Place::Local1, Place::Local2, Place::Remote1])).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    let after = pods_of(&lab, &clients, at(IP));
    let stayed = before.iter().zip(&after).filter(|(before, _)| *before != gone.name());
    let (moved, all) = stayed.fold((0, 0), |(moved, all), (a, b)| (moved + u32::from(a != b), all + 1));
    assert!(!after.iter().any(|pod| pod == gone.name()), "{after:?}");
    // Hashing modulo the number of endpoints would move three in four.
    assert!(moved * 4 <= all, "{moved} of {all} clients were moved for no reason");
}

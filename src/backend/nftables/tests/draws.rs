//! Whom the kernel draws: packets through the rules, counted at the endpoints.

use super::*;
use crate::backend::counters::recorder::{connections, recording};
use crate::backend::counters::{Detail, Measuring};
use crate::model::Protocol;
use crate::testing::cluster;
use std::net::UdpSocket;

const DRAWS: usize = 20_000;
/// Packets sent before they are counted: as many as fit into the buffer of one socket.
const AT_ONCE: usize = 200;
/// No endpoints, in order, may have this much more or less than their share together.
const TOLERANCE: f64 = 0.03;

/// Sends a datagram in each of many flows; says how many each endpoint got.
fn draw(service: IpAddr, endpoints: &[UdpSocket]) -> Vec<usize> {
    let mut counts = vec![0; endpoints.len()];
    let mut datagram = [0];
    for first in (0..DRAWS).step_by(AT_ONCE) {
        for number in first..first + AT_ONCE {
            let port = u16::try_from(10_000 + number).unwrap();
            UdpSocket::bind(("127.0.0.1", port)).unwrap().send_to(&datagram, (service, 80)).unwrap();
        }
        for (count, endpoint) in counts.iter_mut().zip(endpoints) {
            while endpoint.recv(&mut datagram).is_ok() {
                *count += 1;
            }
        }
    }
    counts
}

/// The largest difference between what endpoints got, added up in their order, and the same with equal shares.
fn largest_deviation(counts: &[usize]) -> f64 {
    let (sum, len) = (counts.iter().sum::<usize>() as f64, counts.len() as f64);
    let mut got = 0.0;
    let deviations = counts.iter().enumerate().map(|(index, count)| {
        got += *count as f64;
        (got / sum - (index + 1) as f64 / len).abs()
    });
    deviations.fold(0.0, f64::max)
}

/// How far counts are from equal shares, in standard deviations of what chance makes of equal shares.
fn surprise(counts: &[usize]) -> f64 {
    let freedom = counts.len() as f64 - 1.0;
    let expected = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let squares: f64 = counts.iter().map(|count| (*count as f64 - expected).powi(2) / expected).sum();
    (squares - freedom) / (2.0 * freedom.max(1.0)).sqrt()
}

/// Has one Service of this namespace served; gives its address and its endpoints.
async fn serve(
    endpoints: u32,
    features: Features,
    measuring: Option<Measuring>,
) -> (Nftables<nftables_rs::Nftables>, IpAddr, Vec<UdpSocket>) {
    run("ip route add local 10.96.0.0/12 dev lo; ip route add local 10.244.0.0/16 dev lo");
    let WatchEvent::Service(mut service) = cluster::service(0) else { unreachable!() };
    service.ports[0].protocol = Protocol::Udp;
    let WatchEvent::Slice(mut slice) = cluster::slice(0, endpoints) else { unreachable!() };
    slice.ports[0].protocol = Protocol::Udp;
    let at: IpAddr = service.cluster_ips.v4.unwrap();
    let sockets = slice.endpoints.iter().map(|endpoint| {
        let socket = UdpSocket::bind((endpoint.address, 8080)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let sockets: Vec<UdpSocket> = sockets.collect();
    let (mut tracker, settings) = pass::start(IpFamily::V4);
    tracker.fold(WatchEvent::Service(service));
    tracker.fold(WatchEvent::Slice(slice));
    let kernel = nftables_rs::Nftables::open().unwrap();
    let backend = Nftables::new(kernel, IpFamily::V4, features, Box::new(addresses));
    let mut backend = backend.measuring(measuring);
    pass::run(&mut tracker, &settings, &mut backend).await.unwrap();
    (backend, at, sockets)
}

#[test]
fn each_connection_is_counted_once_where_it_went() {
    live(async || {
        let (measuring, sums) = recording(Detail::Endpoints, 100);
        let features = Features { counts: true, ..Features::default() };
        let (mut backend, at, sockets) = serve(3, features, Some(measuring)).await;
        let counts = draw(at, &sockets);
        assert_eq!(backend.verify(VerifyDepth::Thorough).await.unwrap(), []);
        assert_eq!(connections(&sums, "ClusterIp"), DRAWS as u64);
        for (index, count) in counts.iter().enumerate() {
            assert_eq!(connections(&sums, &format!("10.244.0.{index}:8080")), *count as u64);
        }
        // Switched off, nothing of it stays.
        let mut table = table_of(IpFamily::V4);
        assert!(table.contains_key("set counted-endpoints") && table.contains_key("chain nat-input"));
        let (tracker, settings) = pass::start(IpFamily::V4);
        let kernel = nftables_rs::Nftables::open().unwrap();
        let mut next = Nftables::new(kernel, IpFamily::V4, Features::default(), Box::new(addresses));
        pass::run(&mut { tracker }, &settings, &mut next).await.unwrap();
        table = table_of(IpFamily::V4);
        assert!(table.keys().all(|name| !name.contains("count") && name != "chain nat-input"), "{table:?}");
    });
}

/// Each number of endpoints in a namespace of its own: all flows of one fit into the table of connections.
#[test]
fn endpoints_are_drawn_evenly_whatever_their_number() {
    let numbers = thorough(vec![1, 3, 9, 33], (1..=40).chain([100, 250, 1000]).collect());
    for number in numbers {
        live(async move || {
            let (_backend, at, sockets) = serve(number, Features::default(), None).await;
            let counts = draw(at, &sockets);
            assert_eq!(counts.iter().sum::<usize>(), DRAWS, "{number} endpoints: {counts:?}");
            let (deviation, surprise) = (largest_deviation(&counts), surprise(&counts));
            println!("{number} endpoints: deviation {:.2} %, surprise {surprise:.1}", deviation * 100.0);
            assert!(deviation < TOLERANCE && surprise < 8.0, "{number} endpoints: {counts:?}");
        });
    }
}

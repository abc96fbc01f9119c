//! What Services carried, as IPVS counts it.

use kube_proxy_rs::testing::proxy::{metric_sum, metrics};

use super::{BTreeMap, LIMIT, Lab, Place, at, counts, launch, service, wait_for_markers, wait_until};

/// The samples of the Service's series by name, with these words in their labels.
fn sum(lab: &Lab, name: &str, words: &[&str]) -> f64 {
    let text = metrics(lab.node()).unwrap_or_default();
    let lines = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    metric_sum(&lines.collect::<Vec<_>>().join("\n"), name)
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn connections_packets_and_bytes_are_counted_by_service_and_endpoint() {
    const IP: &str = "10.96.9.20";
    let lab = Lab::create().unwrap();
    let mut objects = service("web", IP, None, &Place::SERVERS);
    let flags = ["--proxy-mode=ipvs", "--service-metrics=endpoints"];
    let mut proxy = launch(lab.node(), &flags).start(&objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    let shares: BTreeMap<String, usize> = counts(&lab, at(IP), 20);
    assert!(shares.values().all(|count| *count == 5), "{shares:?}");

    let web = "service=\"web\"";
    let connections = || sum(&lab, "kubeproxy_rs_service_connections_total", &[web, "\"cluster_ip\""]);
    let waited = wait_until("all connections are counted", LIMIT, || connections() >= 20.0);
    assert!(waited.is_ok() && connections() == 20.0, "{}", connections());
    for place in Place::SERVERS {
        let endpoint = format!("endpoint=\"{}:8080\"", place.address(super::IpFamily::V4));
        let of = |name, direction| sum(&lab, name, &[web, &endpoint, direction]);
        let all = || of("kubeproxy_rs_endpoint_connections_total", web) == 5.0;
        wait_until("the endpoint's connections are counted", LIMIT, all).unwrap();
        // A request and its answer: handshake, data and end, both ways.
        let directions = ["direction=\"in\"", "direction=\"out\""];
        let is_carried = |direction| {
            let packets = of("kubeproxy_rs_endpoint_packets_total", direction);
            packets >= 15.0 && of("kubeproxy_rs_endpoint_bytes_total", direction) > 40.0 * packets
        };
        let carried = || directions.into_iter().all(is_carried);
        wait_until("packets and bytes both ways are counted", LIMIT, carried).unwrap();
    }

    // An endpoint that is gone has no series, and what the Service carried stays.
    objects[1]["endpoints"].as_array_mut().unwrap().truncate(1);
    proxy.apply(&objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    let of_web =
        |line: &&str| line.starts_with("kubeproxy_rs_endpoint_connections_total") && line.contains(web);
    let series = || metrics(lab.node()).unwrap_or_default().lines().filter(of_web).count();
    wait_until("only the endpoint that is left has a series", LIMIT, || series() == 1).unwrap();
    counts(&lab, at(IP), 4);
    let waited = wait_until("the rest is counted, too", LIMIT, || connections() >= 24.0);
    assert!(waited.is_ok() && connections() == 24.0, "{}", connections());
}

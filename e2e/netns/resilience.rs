//! What must survive: restarts, kills, flushes by hand, other people's rules.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use kube_proxy_rs::model::{IpFamily, PerFamily, Protocol};
use kube_proxy_rs::testing::lab::{Lab, lone_node};
use kube_proxy_rs::testing::packets::{PacketCase, Place, SERVICE_PORT, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, metric_sum, metrics, save, wait_until};
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;
use serde_json::{Value, json};

use crate::BINARY;
use crate::requests::{Requests, StopOnDrop};
use crate::saved::rules;

/// Services; enough for a kill to land while they are being programmed, even on a busy machine.
const KILLED_AMONG: u16 = 4000;
const SYNC: Duration = Duration::from_secs(120);
/// Above a thousand endpoints stale chains are swept only once a sync period.
const QUICK_SWEEP: &[&str] = &["--iptables-sync-period=10s"];

/// A Service of the packet table whose every destination is served by two endpoints.
pub(crate) fn exposed_case() -> PacketCase {
    let name = "every_external_destination_reaches_all_endpoints_masqueraded";
    cases().into_iter().find(|case| case.name == name).unwrap()
}

fn cluster_ip(case: &PacketCase, family: IpFamily) -> SocketAddr {
    SocketAddr::new(case.cluster_ip(family), SERVICE_PORT)
}

fn start(lab: &Lab, flavor: Flavor, objects: &[Value]) -> Proxy {
    let mut proxy = launch(lab, flavor).start(objects).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    proxy
}

fn launch(lab: &Lab, flavor: Flavor) -> Launch<'_> {
    Launch { binary: BINARY, namespace: lab.node(), flavor, flags: QUICK_SWEEP }
}

/// Whether a request is answered within a second.
fn is_served(lab: &Lab, case: &PacketCase, family: IpFamily) -> bool {
    let client = lab.client(Place::LocalClient, family).patience(Duration::from_secs(1));
    matches!(client.ask(Protocol::Tcp, cluster_ip(case, family)), Answer::Answered { .. })
}

#[rstest]
fn a_flush_by_hand_is_healed_within_ten_seconds(#[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor) {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    // With the default period, so that it is not the periodic sync that heals.
    let usual = Launch { flags: &[], ..launch(&lab, flavor) };
    let mut proxy = usual.start(&case.objects()).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    for (family, tool) in [(IpFamily::V4, "iptables"), (IpFamily::V6, "ip6tables")] {
        assert!(is_served(&lab, &case, family));
        lab.node().output(&format!("{tool}-{}", flavor.as_str()), &["-t", "nat", "-F"]).unwrap();
        assert!(!is_served(&lab, &case, family));
        wait_until("the flush is healed", Duration::from_secs(10), || is_served(&lab, &case, family))
            .unwrap_or_else(|error| panic!("{error}; its log:\n{}", proxy.log_tail()));
    }
}

#[rstest]
fn rules_go_on_working_after_sigterm_and_open_connections_outlive_a_restart(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let mut proxy = start(&lab, flavor, &case.objects());
    let mut held: Vec<_> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| [(Place::LocalClient, family), (Place::Node, family)])
        .map(|(place, family)| lab.client(place, family).open(cluster_ip(&case, family)).unwrap())
        .collect();
    let node_port = SocketAddr::new(Place::Node.address(IpFamily::V4), case.node_port());
    held.push(lab.client(Place::Outside, IpFamily::V4).open(node_port).unwrap());

    proxy.terminate().unwrap();
    for family in IpFamily::ALL {
        let answer = lab.client(Place::LocalClient, family).ask(Protocol::Tcp, cluster_ip(&case, family));
        let rules = || save(flavor, lab.node(), family == IpFamily::V6).unwrap();
        assert!(matches!(answer, Answer::Answered { .. }), "{family} without it: {answer:?}\n{}", rules());
    }
    // Another Service tells when the restarted program has synced.
    proxy.apply(&case.objects()).unwrap();
    launch(&lab, flavor).start_again(&mut proxy).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    for connection in &mut held {
        connection.ping().expect("an open connection must outlive the restart");
    }
}

#[rstest]
fn what_went_away_while_the_program_was_down_is_removed_at_its_return(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let lab = Lab::create().unwrap();
    let (stays, goes) = (exposed_case(), cases().remove(0));
    let mut proxy = start(&lab, flavor, &[stays.objects(), goes.objects()].concat());
    let text_of_gone = format!("packets/{}:main", goes.service_name());
    assert!(save(flavor, lab.node(), false).unwrap().contains(&text_of_gone));
    proxy.terminate().unwrap();
    proxy.apply(&stays.objects()).unwrap();
    launch(&lab, flavor).start_again(&mut proxy).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    wait_until("the stale chains are gone", Duration::from_secs(10), || {
        [false, true].into_iter().all(|v6| !save(flavor, lab.node(), v6).unwrap().contains(&text_of_gone))
    })
    .unwrap();
    assert!(is_served(&lab, &stays, IpFamily::V4));
}

#[rstest]
fn rules_and_chains_of_others_are_left_alone(#[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor) {
    let lab = Lab::create().unwrap();
    let tool = format!("iptables-{}", flavor.as_str());
    let foreign: [&[&str]; 6] = [
        &["-t", "nat", "-N", "SOMEONE-ELSE"],
        &["-t", "nat", "-A", "SOMEONE-ELSE", "-d", "198.18.0.1/32", "-j", "RETURN"],
        &["-t", "nat", "-A", "PREROUTING", "-j", "SOMEONE-ELSE"],
        &["-N", "KUBE-ROUTER-NETPOL"],
        &["-A", "FORWARD", "-d", "198.18.0.2/32", "-j", "ACCEPT"],
        &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"],
    ];
    for arguments in foreign {
        lab.node().output(&tool, arguments).unwrap();
    }
    let case = exposed_case();
    let mut proxy = start(&lab, flavor, &case.objects());
    proxy.apply(&[]).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
    proxy.terminate().unwrap();
    let saved = save(flavor, lab.node(), false).unwrap();
    for expected in [
        "-A SOMEONE-ELSE -d 198.18.0.1/32 -j RETURN",
        "-A PREROUTING -j SOMEONE-ELSE",
        ":KUBE-ROUTER-NETPOL",
        "-A FORWARD -d 198.18.0.2/32 -j ACCEPT",
        ":KUBE-IPTABLES-HINT",
    ] {
        assert!(saved.contains(expected), "{expected} is gone:\n{saved}");
    }
}

#[rstest]
fn traffic_follows_the_manifests(#[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor) {
    let lab = Lab::create().unwrap();
    let mut case = exposed_case();
    let mut proxy = start(&lab, flavor, &case.objects());
    for endpoints in [&[Place::Local2, Place::Remote1][..], &[Place::Remote2], &[]] {
        let state = kube_proxy_rs::testing::packets::EndpointState::Ready;
        case.shape.endpoints = endpoints.iter().map(|place| (*place, state)).collect();
        proxy.apply(&case.objects()).unwrap();
        proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
        for family in IpFamily::ALL {
            let client = lab.client(Place::LocalClient, family);
            for answer in client.ask_many(Protocol::Tcp, cluster_ip(&case, family), 16) {
                match answer {
                    Answer::Answered { pod, .. } => {
                        assert!(endpoints.iter().any(|place| place.name() == pod), "{pod}");
                    }
                    Answer::Refused => assert!(endpoints.is_empty()),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[rstest]
fn one_changed_endpoint_among_a_thousand_services_writes_a_handful_of_rules(
    #[values(Flavor::Nft)] flavor: Flavor,
) {
    let lab = Lab::create().unwrap();
    let mut case = exposed_case();
    let proxy = start(&lab, flavor, &[case.objects(), thousand_services()].concat());
    let metric = |name: &str| {
        let text = metrics(lab.node()).unwrap();
        metric_sum(&text, &format!("kubeproxy_sync_proxy_rules_iptables_{name}"))
    };
    assert!(metric("total") > 4000.0, "{} rules in all", metric("total"));
    case.shape.endpoints.pop();
    proxy.rewrite(&[case.objects(), thousand_services()].concat()).unwrap();
    let gone = format!("--to-destination {}:", Place::Remote1.address(IpFamily::V4));
    wait_until("the endpoint is gone", SYNC, || !save(flavor, lab.node(), false).unwrap().contains(&gone))
        .unwrap();
    assert!(metric("last") < 20.0, "{} rules written", metric("last"));
    assert!(metric("restore_failures_total").abs() < f64::EPSILON);
}

/// Waits until more than `before` of the thousand Services have their chain; a legacy sync shows
/// only when it is over, so there just for a second. Returns how many have.
fn middle_of_sync(lab: &Lab, flavor: Flavor, before: usize) -> usize {
    let (count, limit): (&dyn Fn() -> String, _) = match flavor {
        Flavor::Nft => (&|| lab.node().output("nft", &["list", "chains", "ip"]).unwrap(), 120),
        Flavor::Legacy => (&|| save(flavor, lab.node(), false).unwrap(), 1),
    };
    let deadline = Instant::now() + Duration::from_secs(limit);
    loop {
        // The Service that is always there and the marker have chains, too.
        let programmed = count().matches(" KUBE-SVC-").count().saturating_sub(2);
        if programmed > before || Instant::now() > deadline {
            return programmed;
        }
    }
}

/// Killed again and again while it programs thousands of Services, the program comes back to the
/// same rules as one that was never disturbed, and a Service that was there throughout never
/// misses a request.
#[rstest]
fn a_kill_in_the_middle_of_a_large_sync_loses_nothing(#[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor) {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let mut proxy = start(&lab, flavor, &case.objects());
    let requests = PerFamily { v4: Requests::default(), v6: Requests::default() };
    let lost = thread::scope(|scope| {
        let (lab, case) = (&lab, &case);
        // Even a failure in here must end the loops, or the scope would wait for them for ever.
        let stop = IpFamily::ALL.map(|family| StopOnDrop(requests.get(family)));
        let loops = IpFamily::ALL.map(|family| {
            let requests = requests.get(family);
            scope.spawn(move || requests.ask_until_done(lab, case, family))
        });
        proxy.apply(&[case.objects(), bulk_services(KILLED_AMONG)].concat()).unwrap();
        let mut killed_at = Vec::new();
        for _ in 0..3 {
            let programmed = middle_of_sync(lab, flavor, killed_at.last().copied().unwrap_or(0));
            proxy.kill().unwrap();
            killed_at.push(programmed);
            launch(lab, flavor).start_again(&mut proxy).unwrap();
        }
        // The legacy tables change all at once, so there is no middle to be seen.
        let in_the_middle =
            killed_at.iter().any(|programmed| (1..usize::from(KILLED_AMONG)).contains(programmed));
        assert!(flavor == Flavor::Legacy || in_the_middle, "killed with {killed_at:?} Services programmed");
        proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap();
        IpFamily::ALL.into_iter().for_each(|family| requests.get(family).wait_for(10));
        drop(stop);
        loops.map(|thread| thread.join().unwrap())
    });
    for lost in lost {
        assert!(lost.is_empty(), "{} requests lost: {:?}", lost.len(), lost[0]);
    }
    let twin_node = lone_node().unwrap();
    let twin = Launch { namespace: &twin_node, ..launch(&lab, flavor) };
    let _undisturbed = twin.start_on(proxy.manifests()).unwrap();
    wait_until("the rules equal those of an undisturbed program", SYNC, || {
        [false, true].into_iter().all(|v6| rules(lab.node(), flavor, v6) == rules(&twin_node, flavor, v6))
    })
    .unwrap();
}

/// A thousand Services of one IPv4 endpoint each.
pub(crate) fn thousand_services() -> Vec<Value> {
    bulk_services(1000)
}

/// `count` Services of one endpoint each.
pub(crate) fn bulk_services(count: u16) -> Vec<Value> {
    (0..count)
        .flat_map(|number| {
            let (name, high, low) = (format!("bulk-{number}"), number / 250, number % 250 + 1);
            let meta = |name: &str| {
                json!({"name": name, "namespace": "bulk",
                "labels": {"kubernetes.io/service-name": name}})
            };
            [
                json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(&name), "spec": {
                    "type": "ClusterIP", "clusterIP": format!("10.97.{high}.{low}"),
                    "ports": [{"name": "main", "port": 80, "protocol": "TCP"}]}}),
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": meta(&name), "addressType": "IPv4",
                    "endpoints": [{"addresses": [format!("10.128.{}.{low}", 10 + high)]}],
                    "ports": [{"name": "main", "port": 8080, "protocol": "TCP"}]}),
            ]
        })
        .collect()
}

//! Mode nftables: the packet table, sent for real and traced by `explain`.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{
    Packet, PacketCase, Place, SERVICE_PORT, ServedBy, Target, Verdict, cases, cases_by_flags,
};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy, save, wait_until};
use kube_proxy_rs::testing::thorough::thorough;
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;
use serde_json::Value;

use crate::BINARY;
use crate::peer::KubeProxy;
use crate::requests::{Requests, StopOnDrop};
use crate::resilience::{bulk_services, exposed_case};
use crate::sabotage::drift;

/// For what takes a few seconds, or far longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Node ports answer on all addresses in the packet table, on the node's own in this mode.
const EVERYWHERE: &str = "--nodeport-addresses=0.0.0.0/0,::/0";

fn launch<'a>(node: &'a Namespace, flags: &'a [&'a str]) -> Launch<'a> {
    Launch { binary: BINARY, namespace: node, flavor: Flavor::Nft, flags }
}

/// Waits until the objects of the manifests are in the kernel, and rules that lead to them.
pub(crate) fn wait_for_markers(proxy: &mut Proxy, node: &Namespace) {
    let addresses = proxy.marker_addresses();
    let listed = |arguments: [&str; 5]| node.output("nft", &arguments).unwrap_or_default();
    let stands = || {
        let sets = ["ip", "ip6"].map(|it| listed(["list", "set", it, "kube-proxy", "cluster-ips"])).concat();
        let leads = |it: &str| {
            listed(["list", "chain", it, "kube-proxy", "nat-prerouting"]).contains("jump services")
        };
        addresses.iter().all(|address| sets.contains(address)) && leads("ip") && leads("ip6")
    };
    let waited = wait_until("the elements of the manifests are in force", Duration::from_secs(120), || {
        !proxy.is_running() || stands()
    });
    assert!(proxy.is_running(), "the program has exited; its log:\n{}", proxy.log_tail());
    waited.unwrap_or_else(|error| panic!("{error:#}; the program's log:\n{}", proxy.log_tail()));
}

/// No node port answers on loopback addresses.
fn verdict(packet: &Packet) -> Verdict<ServedBy> {
    match packet.to {
        Target::NodePortOnLocalhost => Verdict::Untouched,
        _ => packet.verdict.clone(),
    }
}

fn as_in_this_mode(mut case: PacketCase) -> PacketCase {
    for packet in &mut case.packets {
        packet.verdict = verdict(packet);
    }
    case
}

#[rstest]
fn every_packet_goes_where_the_table_says_and_explain_knows_it(
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
) {
    send_the_packet_table(family);
}

/// Sends the packet table, and has `explain` trace it.
pub(crate) fn send_the_packet_table(family: IpFamily) {
    let lab = Lab::create().unwrap();
    let mut failures = Vec::new();
    // The program is restarted for each set of flags, over the elements that it left before.
    for (flags, cases) in cases_by_flags() {
        let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
        let mut flags: Vec<_> = flags.iter().copied().chain(["--proxy-mode=nftables"]).collect();
        flags.retain(|flag| !flag.starts_with("--iptables-localhost-nodeports"));
        if !flags.iter().any(|flag| flag.starts_with("--nodeport-addresses")) {
            flags.push(EVERYWHERE);
        }
        let mut proxy = launch(lab.node(), &flags).start(&objects).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        let cases: Vec<PacketCase> = cases.into_iter().map(as_in_this_mode).collect();
        let socket = proxy.control_socket();
        let told = |_: &PacketCase, packet: &Packet| verdict(packet);
        // Before packets are sent: afterwards, it would say of a client with affinity which endpoint it has.
        failures.extend(crate::explain::trace_all((lab.node(), &socket), &cases, family, &told));
        failures.extend(crate::packets::send_all(&lab, &cases, family));
        proxy.terminate().unwrap();
    }
    let count = failures.len();
    assert!(failures.is_empty(), "{count} packets went astray:\n{}", failures.join("\n"));
}

fn start(lab: &Lab, objects: &[Value]) -> Proxy {
    let mut proxy = launch(lab.node(), MODE).start(objects).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    proxy
}

const MODE: &[&str] = &["--proxy-mode=nftables"];

fn is_served(lab: &Lab, case: &PacketCase, family: IpFamily) -> bool {
    let client = lab.client(Place::LocalClient, family).patience(Duration::from_secs(1));
    let at = SocketAddr::new(case.cluster_ip(family), SERVICE_PORT);
    matches!(client.ask(Protocol::Tcp, at), Answer::Answered { .. })
}

/// The lab's first IPv6 packet may be lost while link-local addresses are tentative.
fn wait_until_served(lab: &Lab, case: &PacketCase) {
    let served = || IpFamily::ALL.into_iter().all(|family| is_served(lab, case, family));
    wait_until("both families are served", PATIENCE, served).unwrap();
}

#[test]
fn a_flush_is_healed_and_what_another_process_changes_is_mended() {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let proxy = start(&lab, &case.objects());
    let destination = format!("{} . tcp . {SERVICE_PORT}", case.cluster_ip(IpFamily::V4));
    let harms = [
        "flush ruleset".to_owned(),
        "delete table ip kube-proxy".to_owned(),
        "flush chain ip kube-proxy services".to_owned(),
        "insert rule ip kube-proxy nat-prerouting drop".to_owned(),
        "flush map ip kube-proxy service-endpoints".to_owned(),
        format!("delete element ip kube-proxy services-2 {{ {destination} }}"),
        format!("add element ip kube-proxy services-8 {{ {destination} }}"),
        format!("add element ip kube-proxy firewall-services {{ {destination} }}"),
    ];
    for harm in std::iter::repeat_n(&harms, thorough(1, 25)).flatten() {
        assert!(is_served(&lab, &case, IpFamily::V4), "before {harm}");
        let drifts = || drift(lab.node());
        let before = drifts();
        lab.node().output("nft", &[harm]).unwrap();
        wait_until("it is named", PATIENCE, || drifts() > before)
            .unwrap_or_else(|error| panic!("{harm}: {error}; its log:\n{}", proxy.log_tail()));
        wait_until("it is healed", PATIENCE, || is_served(&lab, &case, IpFamily::V4))
            .unwrap_or_else(|error| panic!("{harm}: {error}; its log:\n{}", proxy.log_tail()));
    }
}

#[test]
fn open_connections_outlive_a_restart_and_what_went_away_meanwhile_is_removed() {
    let lab = Lab::create().unwrap();
    let (stays, goes) = (exposed_case(), cases().remove(0));
    let mut proxy = start(&lab, &[stays.objects(), goes.objects()].concat());
    let at = |family| SocketAddr::new(stays.cluster_ip(family), SERVICE_PORT);
    let mut held: Vec<_> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| [(Place::LocalClient, family), (Place::Node, family)])
        .map(|(place, family)| lab.client(place, family).open(at(family)).unwrap())
        .collect();
    proxy.terminate().unwrap();
    assert!(is_served(&lab, &stays, IpFamily::V4) && is_served(&lab, &stays, IpFamily::V6));
    proxy.apply(&stays.objects()).unwrap();
    launch(lab.node(), MODE).start_again(&mut proxy).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    for connection in &mut held {
        connection.ping().expect("it outlives the restart");
    }
    let listed = || lab.node().output("nft", &["list", "table", "ip", "kube-proxy"]).unwrap();
    let gone = format!("packets/{}", goes.service_name());
    wait_until("what went away is gone", PATIENCE, || !listed().contains(&gone)).unwrap();
    proxy.terminate().unwrap();
    let cleanup = lab.node().output(BINARY, &["--cleanup"]);
    assert!(cleanup.is_ok(), "{cleanup:?}");
    assert!(!lab.node().output("nft", &["list", "tables"]).unwrap().contains("kube-proxy"));
}

#[rstest]
fn connections_outlive_the_change_from_iptables_mode_and_back(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let iptables_mode = || Launch { binary: BINARY, namespace: lab.node(), flavor, flags: &[] };
    let mut proxy = iptables_mode().start(&case.objects()).unwrap();
    proxy.wait_for_sync(lab.node(), flavor, PATIENCE).unwrap();
    let at = SocketAddr::new(case.cluster_ip(IpFamily::V4), SERVICE_PORT);
    let mut held = lab.client(Place::LocalClient, IpFamily::V4).open(at).unwrap();
    let has_rules = || {
        let saved = [false, true].map(|v6| save(flavor, lab.node(), v6).unwrap());
        saved.iter().any(|saved| saved.contains("KUBE-SVC-") || saved.contains("KUBE-SERVICES"))
    };
    let has_table = || lab.node().output("nft", &["list", "tables"]).unwrap().contains("kube-proxy");
    let requests = Requests::default();
    let lost = thread::scope(|scope| {
        let asking = scope.spawn(|| requests.ask_until_done(&lab, &case, IpFamily::V4));
        let stop = StopOnDrop(&requests);
        requests.wait_for(10);
        proxy.terminate().unwrap();
        launch(lab.node(), MODE).start_again(&mut proxy).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        wait_until("no rule of iptables mode is left", PATIENCE, || !has_rules()).unwrap();
        requests.wait_for(10);
        proxy.terminate().unwrap();
        iptables_mode().start_again(&mut proxy).unwrap();
        wait_until("the nftables table is gone", PATIENCE, || has_rules() && !has_table()).unwrap();
        requests.wait_for(10);
        drop(stop);
        asking.join().unwrap()
    });
    assert!(lost.is_empty(), "{lost:?}; its log:\n{}", proxy.log_tail());
    held.ping().expect("an open connection outlives both changes");
}

/// On the way back kube-proxy deletes the table before its own rules stand, so that new connections wait for these.
#[rstest]
#[ignore = "needs kube-proxy: PEER=/path/to/kube-proxy"]
fn connections_outlive_the_change_from_kube_proxy_and_back(#[values("iptables", "nftables")] mode: &str) {
    let (lab, case) = (Lab::create().unwrap(), exposed_case());
    let flag = format!("--proxy-mode={mode}");
    let is_ready = || IpFamily::ALL.into_iter().all(|family| is_served(&lab, &case, family));
    let kube_proxy = || {
        KubeProxy::start(&lab, &[&flag], &case.objects(), is_ready).expect("PEER names kube-proxy's binary")
    };
    let theirs = kube_proxy();
    let at = |family| SocketAddr::new(case.cluster_ip(family), SERVICE_PORT);
    let open = |from, family| lab.client(from, family).open(at(family)).unwrap();
    let mut held: Vec<_> = [Place::LocalClient, Place::Node]
        .into_iter()
        .flat_map(|from| IpFamily::ALL.map(|family| open(from, family)))
        .collect();
    let requests = Requests::default();
    let (mut proxy, lost) = thread::scope(|scope| {
        let (lab, case, requests) = (&lab, &case, &requests);
        let ask = |family| scope.spawn(move || requests.ask_until_done(lab, case, family));
        let asking = IpFamily::ALL.map(ask);
        let stop = StopOnDrop(requests);
        requests.wait_for(10);
        drop(theirs);
        let mut proxy = launch(lab.node(), MODE).start(&case.objects()).unwrap();
        wait_for_markers(&mut proxy, lab.node());
        let is_clean = || {
            let saved = [false, true].map(|v6| save(Flavor::Nft, lab.node(), v6).unwrap());
            !saved.concat().contains("KUBE-S")
        };
        wait_until("no rule of kube-proxy is left", PATIENCE, is_clean).unwrap();
        requests.wait_for(100);
        drop(stop);
        (proxy, asking.map(|asking| asking.join().unwrap()).concat())
    });
    assert!(lost.is_empty(), "{lost:?}; its log:\n{}", proxy.log_tail());
    proxy.terminate().unwrap();
    let _theirs = kube_proxy();
    for connection in &mut held {
        connection.ping().expect("an open connection outlives both changes");
    }
}

/// The kernel takes `owner` with `persist` since 6.9; `check` says so of an older one.
#[test]
fn an_owned_table_outlives_a_flush_and_a_restart_and_its_owner_is_named() {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let owning = ["--proxy-mode=nftables", "--nftables-own-table"];
    let checked = lab.node().output(BINARY, &[&["check"], &owning[..]].concat());
    let checked = checked.unwrap_or_else(|error| format!("{error:#}"));
    assert!(checked.contains("nf_tables owner"), "{checked}");
    if checked.contains("Linux 6.9") {
        return;
    }
    let mut proxy = launch(lab.node(), &owning).start(&case.objects()).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    wait_until_served(&lab, &case);
    lab.node().output("nft", &["flush", "ruleset"]).unwrap();
    assert!(is_served(&lab, &case, IpFamily::V4) && is_served(&lab, &case, IpFamily::V6));
    let socket = proxy.control_socket();
    let about = [
        format!("packets/{}", case.service_name()),
        "--control-socket".to_owned(),
        socket.display().to_string(),
    ];
    let (report, _) = crate::explain::explain(lab.node(), &about.each_ref().map(String::as_str));
    assert_eq!(report["kernelIsRight"], true, "another process may read it: {report}");
    let refused = format!("{:#}", lab.node().output(BINARY, &["--cleanup"]).unwrap_err());
    let words = "the nftables table ip kube-proxy is owned by another process (kube-proxy-rs, netlink port ";
    assert!(refused.contains(words), "{refused}");
    proxy.terminate().unwrap();
    assert!(is_served(&lab, &case, IpFamily::V4), "the table outlives its owner");
    launch(lab.node(), &owning).start_again(&mut proxy).unwrap();
    let is_owned = || {
        lab.node()
            .output("nft", &["add", "table", "ip", "kube-proxy"])
            .is_err_and(|error| format!("{error:#}").contains("not permitted"))
    };
    wait_until("the next process owns it", PATIENCE, is_owned).unwrap();
    proxy.terminate().unwrap();
    lab.node().output(BINARY, &["--cleanup"]).unwrap();
    assert!(!lab.node().output("nft", &["list", "tables"]).unwrap().contains("kube-proxy"));
}

/// As the manifests run it, and without any tool to be found.
#[test]
fn it_needs_net_admin_and_no_tool() {
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("confined");
    let script = format!(
        "#!/bin/sh\nexec setpriv --no-new-privs --inh-caps=-all,+net_admin --bounding-set=-all,+net_admin \
         /usr/bin/env PATH=/nonexistent {BINARY} \"$@\"\n"
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let binary = program.to_str().unwrap();
    let mut proxy = Launch { binary, ..launch(lab.node(), MODE) }.start(&case.objects()).unwrap();
    wait_for_markers(&mut proxy, lab.node());
    wait_until_served(&lab, &case);
    let log = proxy.log_tail();
    assert!(log.lines().all(|line| !line.starts_with('E') && !line.contains("cannot remove")), "{log}");
}

/// How many Services are in the kernel, besides the one that is asked for.
fn services_there(node: &Namespace) -> usize {
    let listed = node.output("nft", &["list", "set", "ip", "kube-proxy", "cluster-ips"]);
    listed.unwrap_or_default().matches("\"bulk/").count()
}

/// Waits until their number has changed, or long enough; gives it.
fn middle_of_sync(node: &Namespace, before: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = services_there(node);
        if found != before || Instant::now() > deadline {
            return found;
        }
    }
}

#[test]
fn a_kill_at_any_moment_leaves_no_service_without_its_endpoints() {
    let many: u16 = thorough(2000, 5000);
    let lab = Lab::create().unwrap();
    let case = exposed_case();
    let mut proxy = start(&lab, &case.objects());
    let requests = Requests::default();
    let mut killed_at = Vec::new();
    let lost = thread::scope(|scope| {
        let asking = scope.spawn(|| requests.ask_until_done(&lab, &case, IpFamily::V4));
        let stop = StopOnDrop(&requests);
        requests.wait_for(10);
        for round in 0..thorough(3, 50) {
            // They come in several rounds, and go in one.
            let bulk = if round % 5 == 4 { Vec::new() } else { bulk_services(many) };
            let before = services_there(lab.node());
            proxy.apply(&[case.objects(), bulk].concat()).unwrap();
            killed_at.push(middle_of_sync(lab.node(), before));
            proxy.kill().unwrap();
            launch(lab.node(), MODE).start_again(&mut proxy).unwrap();
        }
        wait_for_markers(&mut proxy, lab.node());
        requests.wait_for(10);
        drop(stop);
        asking.join().unwrap()
    });
    assert!(lost.is_empty(), "killed at {killed_at:?}: {lost:?}; its log:\n{}", proxy.log_tail());
    assert!(killed_at.iter().any(|at| (1..usize::from(many)).contains(at)), "killed at {killed_at:?}");
}

//! What another program does to our objects, and we do not do to its own.

use kube_proxy_rs::testing::lab::lone_node;

use super::sabotage::is_told_and_over;
use super::{BTreeSet, Flavor, LIMIT, Lab, Launch, Namespace, Place, launch, lines, servers, service, state};
use super::{wait_for_markers, wait_until};

/// Deletes a set; the rules that name it have to go first.
const DESTROY: &str = "iptables-nft -t nat -F KUBE-SERVICES
     iptables-nft -t filter -F KUBE-IPVS-FILTER
     ipset destroy KUBE-CLUSTER-IP";

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn state_is_mended_and_what_is_foreign_stays_also_at_cleanup() {
    let lab = Lab::create().unwrap();
    let node = lab.node();
    let foreign = ["-A", "-t", "192.0.2.77:443", "-s", "wrr"];
    node.output("ipvsadm", &foreign).unwrap();
    let flags = ["--proxy-mode=ipvs"];
    let launch = launch(node, &flags);
    let objects = service("web", "10.96.9.1", None, &[Place::Local1, Place::Remote1]);
    let mut proxy = launch.start(&objects).unwrap();
    wait_for_markers(&mut proxy, node);
    let good = state(node, Flavor::Nft);
    for (harm, reported) in [
        ("ipvsadm -D -t 10.96.9.1:80", "virtual server 10.96.9.1:80/tcp is gone"),
        ("ipvsadm -E -t 10.96.9.1:80 -s lc", "virtual server 10.96.9.1:80/tcp was changed"),
        ("ipvsadm -d -t 10.96.9.1:80 -r 10.128.0.5:8080", "real servers of 10.96.9.1:80/tcp were changed"),
        ("ip link delete kube-ipvs0", "kube-ipvs0 has 0 addresses"),
        ("ipset flush KUBE-CLUSTER-IP", "ipset KUBE-CLUSTER-IP has 0 entries"),
        ("iptables-nft -t nat -F KUBE-SERVICES", "chain KUBE-SERVICES of table nat"),
        (DESTROY, "chain KUBE-IPVS-FILTER of table filter"),
    ] {
        // At rest: what is done during a look or a pass may be mended unnamed.
        proxy.pause(LIMIT).unwrap();
        let before = proxy.log().len();
        node.output("sh", &["-ec", harm]).unwrap();
        proxy.resume().unwrap();
        let told = BTreeSet::from([reported.to_owned()]);
        let is_over = || is_told_and_over(&proxy.log()[before..], &told);
        let over = wait_until("it is told and mended", LIMIT, is_over);
        assert!(over.is_ok(), "{harm}: not reported as {reported:?}:\n{}", &proxy.log()[before..]);
        let mended = wait_until("it is mended", LIMIT, || state(node, Flavor::Nft) == good);
        assert!(mended.is_ok(), "{harm}: {:#?}\n{}", state(node, Flavor::Nft), &proxy.log()[before..]);
    }
    proxy.terminate().unwrap();
    let flags = ["--cleanup"];
    let mut cleanup = Launch { flags: &flags, ..launch }.start(&objects).unwrap();
    wait_until("the cleanup has ended", LIMIT, || !cleanup.is_running()).unwrap();
    assert_eq!(servers(node), BTreeSet::from([foreign.join(" ")]));
    assert!(lines(node, "ipset", &["save"]).is_empty(), "{}", cleanup.log_tail());
    assert!(node.output("ip", &["link", "show", "kube-ipvs0"]).is_err());
}

/// The program's log once it has ended, which it must do by itself.
pub(super) fn last_words(node: &Namespace, flags: &[&str]) -> String {
    let mut proxy = launch(node, flags).start(&[]).unwrap();
    // To name the available schedulers, the program tries each, which may load its module.
    let ended = wait_until("the program has ended", 2 * LIMIT, || !proxy.is_running());
    assert!(ended.is_ok(), "{flags:?}: it runs on; its log:\n{}", proxy.log_tail());
    proxy.log_tail()
}

#[test]
#[ignore = "needs ip_vs; make test-ipvs"]
fn a_scheduler_that_the_kernel_lacks_ends_the_start_and_those_it_has_are_named() {
    let node = lone_node().unwrap();
    // In kube-proxy's ways any name is taken to the kernel.
    let flags = ["--proxy-mode=ipvs", "--ipvs-upstream-compat", "--ipvs-scheduler=nonesuch"];
    let words = last_words(&node, &flags);
    let wanted = "the kernel has no IPVS scheduler nonesuch (module ip_vs_nonesuch); it has: rr, ";
    assert!(words.contains(wanted), "{words}");
    assert!(lines(&node, "ipvsadm", &["-Sn"]).is_empty(), "nothing stays behind");

    let words = last_words(&node, &["--proxy-mode=ipvs", "--ipvs-scheduler=nonesuch"]);
    assert!(words.contains("nonesuch is none of rr, "), "{words}");
}

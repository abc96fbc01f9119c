//! Manifests with mistakes: nothing of them goes out of force, whatever happens to the program meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{PacketCase, Place, SERVICE_PORT, cases, to_manifest};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, Proxy, http_get, wait_until};
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;

use crate::BINARY;
use crate::requests::{Requests, StopOnDrop};
use crate::resilience::exposed_case;

const SYNC: Duration = Duration::from_secs(60);
/// The health port, inside the node's namespace.
const METRICS: &str = "127.0.0.1:10249";

#[rstest]
fn a_restart_on_a_broken_manifest_removes_nothing_of_it(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
) {
    let lab = Lab::create().unwrap();
    nothing_is_lost(&lab, Launch { binary: BINARY, namespace: lab.node(), flavor, flags: &[] });
}

/// A node with a manifest that breaks, beside one that changes, across two restarts.
pub(crate) fn nothing_is_lost(lab: &Lab, launch: Launch<'_>) {
    let (shop, before, after) = (exposed_case(), cases().remove(0), cases().remove(1));
    let folder = Folder::create().unwrap();
    folder.write("shop.yaml", &to_manifest(&shop.objects())).unwrap();
    folder.write("other.yaml", &to_manifest(&before.objects())).unwrap();
    let mut proxy = launch.start_on(&[folder.path()]).unwrap();
    until_served(lab, &mut proxy, &[&shop, &before]);

    let requests = Requests::default();
    let lost = thread::scope(|scope| {
        let families = IpFamily::ALL.map(|family| {
            let (requests, shop) = (&requests, &shop);
            scope.spawn(move || requests.ask_until_done(lab, shop, family))
        });
        let stop = StopOnDrop(&requests);
        proxy.kill().unwrap();
        folder.write("shop.yaml", "kind: [\n").unwrap();
        folder.write("other.yaml", &to_manifest(&after.objects())).unwrap();
        launch.start_again(&mut proxy).unwrap();
        until_served(lab, &mut proxy, &[&shop, &after]);
        until_ready_says(
            lab,
            "shop.yaml: cannot be read: document 1: line 1: ",
            "what it said last stays in force",
        );
        assert!(!is_served(lab, &before), "the file that can be read is followed");
        assert!(proxy.log().contains("what it said last stays in force"), "{}", proxy.log());
        requests.wait_for(50);

        // A process that knows nothing of an earlier one leaves its rules as they are.
        proxy.kill().unwrap();
        fs::remove_dir_all(proxy.control_socket().with_file_name("manifests")).unwrap();
        launch.start_again(&mut proxy).unwrap();
        until_ready_says(lab, "shop.yaml: cannot be read: ", "all stays as an earlier process left it");
        requests.wait_for(50);
        assert!(is_served(lab, &after), "{}", proxy.log_tail());

        folder.write("shop.yaml", &to_manifest(&shop.objects())).unwrap();
        until_ready_says(lab, "\"ready\": true", "\"sourceProblems\": []");
        requests.wait_for(50);
        drop(stop);
        families.map(|family| family.join().unwrap()).concat()
    });
    assert!(lost.is_empty(), "{} requests were lost: {:?}; {}", lost.len(), lost[0], proxy.log_tail());
    fs::remove_file(folder.path().join("shop.yaml")).unwrap();
    wait_until("a file that is gone takes its Service along", SYNC, || !is_served(lab, &shop)).unwrap();
}

fn until_served(lab: &Lab, proxy: &mut Proxy, cases: &[&PacketCase]) {
    wait_until("every Service is served", SYNC, || {
        !proxy.is_running() || cases.iter().all(|case| is_served(lab, case))
    })
    .unwrap_or_else(|error| panic!("{error}; {}", proxy.log_tail()));
    assert!(proxy.is_running(), "{}", proxy.log_tail());
}

fn until_ready_says(lab: &Lab, one: &str, other: &str) {
    let answer = || http_get(lab.node(), METRICS.parse().unwrap(), "/readyz").unwrap_or_default();
    let says = || Some(answer()).is_some_and(|text| text.contains(one) && text.contains(other));
    wait_until("/readyz says so", SYNC, says).unwrap_or_else(|error| panic!("{error}; {}", answer()));
}

/// Whether requests in both families are answered, each within a second.
pub(crate) fn is_served(lab: &Lab, case: &PacketCase) -> bool {
    IpFamily::ALL.into_iter().all(|family| {
        let client = lab.client(Place::LocalClient, family).patience(Duration::from_secs(1));
        let answer = client.ask(Protocol::Tcp, SocketAddr::new(case.cluster_ip(family), SERVICE_PORT));
        matches!(answer, Answer::Answered { .. })
    })
}

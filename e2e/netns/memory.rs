//! What the program takes of the node's memory. A debug build is measured, so the program's own
//! text does not count; what it allocates does.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, save, status_kb, wait_until};
use kube_proxy_rs::testing::stub_api::StubApi;
use rstest::rstest;
use serde_json::{Value, json};

use crate::BINARY;
use crate::running::Running;

const SERVICES: u32 = 2000;
const ENDPOINTS: u32 = 5;
const SYNC: Duration = Duration::from_secs(120);
/// A fifth of what 10,000 Services may take, on top of what the program takes without any.
const ANONYMOUS_KB: u64 = 9_000;
const PEAK_KB: u64 = 12_000;

fn status(running: &Running, field: &str) -> u64 {
    status_kb(running.id(), field).unwrap()
}

/// An API server in the calling thread's namespace, with our Node.
pub(crate) fn serve() -> Arc<StubApi> {
    let server = StubApi::start_on_a_thread().unwrap();
    server.put(our_node());
    server
}

pub(crate) fn our_node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

pub(crate) fn start(server: &StubApi, flavor: Flavor, folder: &Folder) -> Running {
    let mut command = Command::new(BINARY);
    command.arg("--kubeconfig").arg(server.kubeconfig(folder.path()).unwrap());
    command.args(["--hostname-override", "node", "--iptables-flavor", flavor.as_str()]);
    command.arg("--control-socket").arg(folder.path().join("control.sock"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Running::start(&mut command)
}

#[rstest]
fn two_thousand_services_take_little_memory(#[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor) {
    let namespace = Namespace::create("memory").unwrap();
    let folder = Folder::create().unwrap();
    let started = namespace.run(|| {
        let server = serve();
        server.fill(SERVICES, ENDPOINTS, "elsewhere");
        let running = start(&server, flavor, &folder);
        (server, running)
    });
    let (_server, running) = started.unwrap();
    let wanted = (SERVICES * ENDPOINTS) as usize;
    // Most of it is given back after the first sync.
    let mut text = 0;
    wait_until("every endpoint is in the kernel", SYNC, || {
        text = status(&running, "RssFile").max(text);
        save(flavor, &namespace, false).is_ok_and(|rules| {
            rules.matches("-j DNAT").count() == wanted && rules.contains("-A KUBE-SERVICES -d")
        })
    })
    .unwrap();
    let anonymous = status(&running, "RssAnon");
    let peak = status(&running, "VmHWM").saturating_sub(text);
    assert!(anonymous < ANONYMOUS_KB, "{anonymous} kB after the first sync");
    assert!(peak < PEAK_KB, "{peak} kB at the most, {anonymous} kB after the first sync");
}

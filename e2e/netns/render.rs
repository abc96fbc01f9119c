//! `render` says what a node would program, whatever the machine that it runs on.

use std::path::Path;

use kube_proxy_rs::testing::netns::Namespace;
use rstest::rstest;

use crate::BINARY;

/// Machines that could be taken for the node, or for its Services.
const ADDRESSES: &str = "link add some type bridge
    addr add 10.200.0.5/24 dev some
    addr add 10.96.0.1/12 dev some
    addr add 192.168.7.1/16 dev some
    addr add fd00:200::5/64 dev some nodad
    addr add fd00:96::1/112 dev some nodad
    link set some up";

fn rendered(machine: &Namespace, mode: &str, flags: &[&str]) -> String {
    let mut command = machine.command(BINARY);
    command.args(["render", "--mode", mode, "--hostname-override", "node-0"]);
    for manifest in ["node-port-cluster-policy", "dual-stack", "nodes"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures");
        command.arg("--manifests").arg(folder.join(manifest).with_extension("yaml"));
    }
    let output = command.args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[rstest]
fn every_machine_prints_the_same(
    #[values("iptables", "ipvs")] mode: &str,
    #[values("ipv4", "ipv6")] family: &str,
    #[values("--nodeport-addresses=10.200.0.0/24,fd00:200::/64", "--nodeport-addresses=primary")] which: &str,
) {
    let (bare, other) = (Namespace::create("bare").unwrap(), Namespace::create("other").unwrap());
    other.ip(ADDRESSES).unwrap();
    let text = rendered(&bare, mode, &["--family", family, which]);
    assert_eq!(text, rendered(&other, mode, &["--family", family, which]));
    let own = if family == "ipv4" { "10.200.0.11" } else { "fd00:200::11" };
    assert!(text.contains(own), "the Node object's address: {text}");

    let others = "--node-addresses=10.200.0.99,fd00:200::99";
    let text = rendered(&bare, mode, &["--family", family, which, others]);
    let (theirs, is_primary) = (own.replace("11", "99"), which.ends_with("primary"));
    assert_eq!((text.contains(&theirs), text.contains(own)), (!is_primary, false), "{text}");
}

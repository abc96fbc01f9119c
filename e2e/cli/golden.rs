//! What `render` prints for every fixture, to the letter. `make golden` rewrites the files from
//! what is printed now; the diff is then reviewed like code.

use super::{program, repository, stderr, stdout};
use rstest::rstest;
use std::fs;
use std::path::PathBuf;

#[rstest]
fn rendered_input(
    #[files("e2e/fixtures/*.yaml")]
    #[exclude("nodes.yaml")]
    fixture: PathBuf,
    #[values("ipv4", "ipv6")] family: &str,
) {
    let name = fixture.file_stem().unwrap().to_str().unwrap();
    let nodes = fixture.with_file_name("nodes.yaml");
    let text = fs::read_to_string(&fixture).unwrap();
    let extra = text.lines().next().and_then(|line| line.strip_prefix("# extra flags: "));
    let mut command = program(&["render", "--mode", "iptables", "--family", family]);
    command.args(["--hostname-override", "node-0", "--cluster-cidr", "10.128.0.0/16,fd00:128::/32"]);
    // Flags given twice count the last time, as on kube-proxy's command line.
    command.args(extra.unwrap_or_default().split_whitespace());
    command.arg("--manifests").arg(&fixture).arg("--manifests").arg(&nodes);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));

    let golden = repository().join(format!("src/backend/iptables/golden/{name}.{family}.rules"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, stdout(&output)).unwrap();
    }
    assert_eq!(stdout(&output), fs::read_to_string(&golden).unwrap(), "{}", golden.display());
}

#[rstest]
fn rendered_in_mode_ipvs(
    #[values(
        "cluster-ip-three-endpoints",
        "dual-stack",
        "external-ips-local-policy",
        "internal-policy-local-no-local-endpoints",
        "load-balancer-local-policy",
        "node-port-cluster-policy",
        "session-affinity-default"
    )]
    name: &str,
    #[values("ipv4", "ipv6")] family: &str,
) {
    let mut command = program(&["render", "--mode", "ipvs", "--family", family]);
    command.args(["--hostname-override", "node-0", "--cluster-cidr", "10.128.0.0/16,fd00:128::/32"]);
    command.args(["--ipvs-scheduler", "sh-port"]);
    for manifest in [name, "nodes"] {
        command.arg("--manifests").arg(repository().join(format!("e2e/fixtures/{manifest}.yaml")));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let golden = repository().join(format!("src/backend/ipvs/golden/{name}.{family}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, stdout(&output)).unwrap();
    }
    assert_eq!(stdout(&output), fs::read_to_string(&golden).unwrap(), "{}", golden.display());
}

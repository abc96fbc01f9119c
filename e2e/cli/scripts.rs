//! What the Makefile calls besides cargo.

use super::{repository, stderr, stdout};
use rstest::rstest;
use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn script(name: &str, arguments: &[&str]) -> Output {
    Command::new(repository().join("scripts").join(name)).args(arguments).output().unwrap()
}

#[test]
fn a_command_that_goes_on_talking_may_take_as_long_as_it_likes() {
    let talk = "for word in one two three four; do echo $word; sleep 1; done; printf five; exit 7";
    let output = script("unless-silent.sh", &["3", "sh", "-c", talk]);
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("one\ntwo\nthree\nfour\nfive", Some(7)));
}

#[test]
fn a_command_that_falls_silent_is_ended() {
    let started = Instant::now();
    let output = script("unless-silent.sh", &["1", "sh", "-c", "echo one; exec sleep 300"]);
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("one\n", Some(124)));
    assert!(stderr(&output).contains("nothing was said for 1 s; giving up: sh"), "{}", stderr(&output));
    assert!(started.elapsed() < Duration::from_secs(100));
}

#[rstest]
#[case::demo(&["demo"], &["build-essential", "iproute2", "iptables"])]
#[case::vm(
    &["vm"],
    &["build-essential", "busybox-static", "cpio", "iproute2", "ipset", "iptables", "ipvsadm", "kmod", "qemu-system-x86"]
)]
fn what_is_for_looking_at_needs_nothing_that_only_tests_need(
    #[case] purpose: &[&str],
    #[case] packages: &[&str],
) {
    let output = script("deps.sh", &[&["--list"], purpose].concat());
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), packages);
}

/// A package from crates.io with the features that a build of ours gives it.
fn built_on(package: &str) -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(repository()).args(["tree", "--locked", "--offline", "--prefix", "none"]);
    command.args(["--edges", "normal,build", "--format", "{p} [{f}]", "--package", package]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = stdout(&output);
    let others = lines.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.contains(" (/"));
    others.map(str::to_owned).collect()
}

/// Else the next `cargo run` builds everything again, and the next `make demo`, too.
#[test]
fn the_demo_is_built_on_what_the_program_is_built_on() {
    assert_eq!(built_on("demo"), built_on("kube-proxy-rs"));
}

/// The plugin of kubectl, with a kubectl that says what it is asked and knows a pod on `node-0` only.
#[test]
fn the_plugin_of_kubectl_runs_the_program_in_the_pod_of_the_node() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let kubectl = folder.path().join("kubectl");
    let fake = "#!/bin/sh\ncase \"$*\" in\n*exec*) echo \"$*\" ;;\n*name=node-9*|*nodeName=node-9*) exit 1 ;;\n\
                *name=kube-proxy-rs*) printf pod-0 ;;\nesac\n";
    std::fs::write(&kubectl, fake).unwrap();
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let run = |arguments: &[&str]| {
        let script = repository().join("scripts/kubectl-proxy_rs");
        Command::new(script).args(arguments).env("PATH", &path).output().unwrap()
    };
    let output = run(&["node-0", "explain", "shop/web"]);
    assert_eq!(stdout(&output), "--namespace kube-system exec pod-0 -- kube-proxy-rs explain shop/web\n");
    let missing = run(&["node-9", "status"]);
    assert_eq!(missing.status.code(), Some(3));
    assert!(stderr(&missing).contains("no running pod of kube-proxy-rs on node node-9"));
    assert_eq!(run(&["node-0"]).status.code(), Some(3));
}

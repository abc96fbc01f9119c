//! `check` on whatever node the tests run: each question gets an answer, and the exit status is
//! theirs.

use super::{program, stderr, stdout};
use serde_json::Value;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;

/// The level of a check in JSON.
fn level<'a>(found: &'a Value, check: &str) -> &'a str {
    let findings = found["findings"].as_array().unwrap();
    findings.iter().find(|it| it["check"] == check).unwrap()["severity"].as_str().unwrap()
}

#[test]
fn every_question_gets_a_line_and_the_exit_status_is_the_worst_of_them() {
    let output = program(&["check", "--mode", "iptables"]).output().unwrap();
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 10, "{text}{}", stderr(&output));
    let (verdict, findings) = lines.split_last().unwrap();
    assert!(
        findings.iter().all(|line| ["ok ", "problem ", "broken "].iter().any(|it| line.starts_with(it))),
        "{text}"
    );
    let failed = findings.iter().any(|line| line.starts_with("broken"));
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{text}");
    assert_eq!(verdict.starts_with("this node is not fit"), failed, "{text}");
}

#[test]
fn a_taken_port_is_a_failure_in_json_and_in_the_exit_status() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = program(&["check", "-o", "json", "--metrics-bind-address", &address]).output().unwrap();
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((level(&found, "metrics port"), &found["fit"]), ("broken", &false.into()));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn node_ports_of_manifests_are_looked_up() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("service.yaml");
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{type: NodePort, clusterIP: 10.96.0.9, ports: [{{port: 80, nodePort: {port}}}]}}\n"
    );
    std::fs::write(&manifest, service).unwrap();
    let mut command = program(&["check", "--service-node-port-range", "1-65535", "--manifests"]);
    let output = command.arg(&manifest).output().unwrap();
    let wanted = format!("{port}/tcp of shop/web");
    assert!(stdout(&output).contains(&wanted), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn without_root_it_says_what_it_could_not_see() {
    let mut command = program(&["check"]);
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    let text = stdout(&output);
    assert!(text.contains("run this check as root"), "{text}{}", stderr(&output));
    assert!(text.contains("permissions") && text.contains("no CAP_NET_ADMIN"), "{text}");
}

//! Whatever is wrong gets one clear line, and the right exit status or the rest goes on.

use super::{BINARY, program, program_alone, stderr, stdout};
use rstest::rstest;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Ports that no other program uses.
/// Nowhere, and no socket: there may be a proxy that has its own at the usual places.
const SERVERS: &[&str] = &[
    "--healthz-bind-address",
    "127.0.0.1:1",
    "--metrics-bind-address",
    "127.0.0.1:1",
    "--control-socket",
    "",
];

const GOOD: &str = "
apiVersion: v1
kind: Service
metadata: {name: good, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}
";

/// A Service with one thing wrong with it.
fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
}

fn render(folder: &Path) -> Output {
    let mut command =
        program(&["render", "--mode", "iptables", "--family", "ipv4", "--hostname-override", "n"]);
    command.arg("--manifests").arg(folder).output().unwrap()
}

#[rstest]
#[case::broken_yaml("a: [b\n", &["bad.yaml", "line 1"])]
#[case::bad_ip(&service("bad", "{clusterIP: 10.96.0.300, ports: [{port: 80}]}"), &["bad.yaml", "Service shop/bad", "spec.clusterIP", "10.96.0.300"])]
#[case::port_zero(&service("bad", "{clusterIP: 10.96.0.8, ports: [{port: 0}]}"), &["Service shop/bad", "spec.ports[0].port"])]
#[case::long_name(&service(&"n".repeat(300), "{clusterIP: 10.96.0.8, ports: [{port: 80}]}"), &["metadata.name"])]
fn a_bad_manifest_is_named_and_the_good_ones_are_programmed(#[case] bad: &str, #[case] words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bad.yaml"), bad).unwrap();
    fs::write(folder.path().join("good.yaml"), GOOD).unwrap();
    let output = render(folder.path());
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for word in words {
        assert!(said.contains(word), "{word} is missing from: {said}");
    }
    assert!(stdout(&output).contains("shop/good has no endpoints"));
    assert!(!stdout(&output).contains("shop/bad"));
}

#[rstest]
#[case::node_port_outside_the_range(
    "{type: NodePort, clusterIP: 10.96.0.8, ports: [{port: 80, nodePort: 40000}]}",
    &["Warning: ", "Service shop/doubtful: spec.ports[0].nodePort: 40000 is outside"],
    "--dport 40000 "
)]
#[case::external_ip_of_the_other_family(
    "{clusterIP: 10.96.0.8, externalIPs: ['fd00::1', 198.51.100.7], ports: [{port: 80}]}",
    &["Warning: ", "Service shop/doubtful: spec.externalIPs[0]: fd00::1 is an IPv6 address"],
    "-d 198.51.100.7 "
)]
fn what_is_doubtful_is_named_and_used_as_far_as_it_goes(
    #[case] spec: &str,
    #[case] words: &[&str],
    #[case] rule: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), service("doubtful", spec)).unwrap();
    let output = render(folder.path());
    let said = stderr(&output);
    assert!(output.status.success() && words.iter().all(|word| said.contains(word)), "{said}");
    assert!(stdout(&output).contains(rule), "{}", stdout(&output));
}

#[test]
fn of_two_claimants_of_a_node_port_the_second_by_name_goes_without() {
    let folder = tempfile::tempdir().unwrap();
    for (name, ip) in [("first", "10.96.0.7"), ("second", "10.96.0.8")] {
        let spec = format!(
            "{{type: NodePort, clusterIP: {ip}, ports: [{{name: a, port: 80, nodePort: 30080}}, {{name: b, port: 81, nodePort: 300{}}}]}}",
            &ip[ip.len() - 1..].repeat(2)
        );
        fs::write(folder.path().join(format!("{name}.yaml")), service(name, &spec)).unwrap();
    }
    let output = render(folder.path());
    let said = stderr(&output);
    assert!(
        said.contains("Service shop/second: spec.ports[].nodePort: 30080/tcp belongs to Service shop/first"),
        "{said}"
    );
    let rules = stdout(&output);
    assert_eq!(rules.matches("--dport 30080 ").count(), 1);
    assert!(rules.contains("--dport 30077 ") && rules.contains("--dport 30088 "), "the other ports work");
}

#[rstest]
#[case::missing_kubeconfig(&["--kubeconfig", "/nowhere/kubeconfig"], "/nowhere/kubeconfig")]
#[case::missing_manifests(&["--manifests", "/nowhere/services"], "/nowhere/services")]
#[case::missing_config(&["--config", "/nowhere/config.conf"], "/nowhere/config.conf")]
#[case::unknown_flag(&["--no-such-flag"], "--no-such-flag")]
#[case::unknown_mode(&["--mode", "quantum"], "quantum")]
#[case::bad_cidr(&["--cluster-cidr", "10.0.0.0/99"], "10.0.0.0/99")]
fn what_cannot_start_says_why_and_exits_with_1(#[case] arguments: &[&str], #[case] word: &str) {
    let output = program(arguments).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("Error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains(word), "{said}");
}

#[rstest]
#[case::no_proxy(&["status", "--control-socket", "/nowhere/control.sock"], "no process answers on /nowhere/control.sock")]
#[case::nothing_to_ask(&["services", "--control-socket", ""], "--control-socket is empty")]
#[case::no_target(&["explain", "a/b/c/d", "--control-socket", "/nowhere/control.sock"], "NAMESPACE/NAME")]
#[case::no_such_flag(&["explain", "--no-such-flag"], "--no-such-flag")]
#[case::dead_api_server(&["services", "--master", "http://127.0.0.1:1"], "Connection refused")]
#[case::no_such_form(&["status", "-o", "xml"], "jsonpath=TEMPLATE")]
fn a_question_that_cannot_be_answered_says_why_and_exits_with_3(
    #[case] arguments: &[&str],
    #[case] word: &str,
) {
    let output = program(arguments).env_remove("KUBERNETES_SERVICE_HOST").output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(word), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn the_last_line_of_a_log_in_json_is_json() {
    let arguments = ["--logging-format=json", "--kubeconfig", "/nowhere/kubeconfig"];
    let output = program(&[&arguments[..], SERVERS].concat()).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let last = lines.last().unwrap();
    assert_eq!(last["msg"], "the program ends");
    assert!(last["err"].as_str().is_some_and(|error| error.contains("/nowhere/kubeconfig")), "{last}");
}

#[test]
fn a_mistyped_word_is_answered_with_the_right_one_and_a_command_shows_its_own_flags() {
    let mistyped = program(&["expalin", "shop/web"]).output().unwrap();
    assert!(stderr(&mistyped).contains("explain"), "{}", stderr(&mistyped));
    let help = stdout(&program(&["explain", "--help"]).output().unwrap());
    assert!(help.contains("--client") && help.contains("--kubeconfig"), "{help}");
    assert!(!help.contains("--masquerade-all") && help.lines().count() < 60, "{help}");
}

/// A manifest folder, so that the program gets as far as looking for iptables.
fn some_manifests() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("good.yaml"), GOOD).unwrap();
    folder
}

#[test]
fn without_iptables_it_says_what_to_install() {
    let folder = some_manifests();
    let mut command = program_alone(None, BINARY, SERVERS);
    let output = command.arg("--manifests").arg(folder.path()).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("install the package iptables"), "{}", stderr(&output));
}

#[test]
fn without_root_it_says_what_it_needs() {
    use std::os::unix::fs::PermissionsExt;
    let folder = some_manifests();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build folder may be closed to other users; a copy is not.
    let copy = folder.path().join("kube-proxy-rs");
    fs::copy(BINARY, &copy).unwrap();
    let mut command = program_alone(Some("65534"), copy.to_str().unwrap(), SERVERS);
    let output = command.arg("--manifests").arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("needs root or CAP_NET_ADMIN"), "{}", stderr(&output));
}

/// A running program whose log is read, and which ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program and waits for a line that holds all the words.
fn until_it_says(arguments: &[&str], words: &[&str]) -> (Running, String) {
    until_says(program_alone(None, BINARY, &[arguments, SERVERS].concat()), words)
}

fn until_says(mut command: Command, words: &[&str]) -> (Running, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let running = Running(child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut said = Vec::new();
    while let Ok(line) = receiver.recv_timeout(Duration::from_secs(20)) {
        if words.iter().all(|word| line.contains(word)) {
            return (running, line);
        }
        said.push(line);
    }
    panic!("no line with {words:?} in: {}", said.join("\n"));
}

#[test]
fn an_unreachable_api_server_is_named_and_waited_for() {
    // A port that was just free: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let (mut running, _) = until_it_says(&["--master", &url], &["services", &url, "Connection refused"]);
    assert!(running.0.try_wait().unwrap().is_none(), "it goes on trying");
}

#[test]
fn a_proxy_of_the_environment_is_used_unless_it_cannot_be() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = format!("http://127.0.0.1:{port}");
    let server = "http://192.0.2.1:6443";
    let start = || program_alone(None, BINARY, &[&["--master", server], SERVERS].concat());
    let mut command = start();
    command.env("HTTP_PROXY", &proxy).env_remove("NO_PROXY").env_remove("no_proxy");
    let _ = until_says(command, &["services", server, &format!("the proxy {proxy}/"), "Connection refused"]);
    let mut command = start();
    command.env("HTTP_PROXY", "ftp://me:secret@proxy").env_remove("NO_PROXY").env_remove("no_proxy");
    let (_, line) = until_says(command, &["Error: ", "HTTP_PROXY", "http://, https:// or socks5://"]);
    assert!(!line.contains("secret"), "{line}");
}

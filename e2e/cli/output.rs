//! What every command does when its answer cannot be written: stdout on a full disk, stdout whose
//! reader went away, and stderr that takes nothing.

use super::{program, repository, stderr, stdout};
use rstest::rstest;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// As a shell reports a tool that SIGPIPE ends.
const READER_LEFT: i32 = 141;

/// The answer of a proxy with one Service.
const ONE_SERVICE: &str = r#"{"items":[{"namespace":"shop","name":"lonely","frontends":["10.96.0.9:80/tcp"],"used":0,
    "unused":0,"reasons":{},"draining":0,"state":"refusing","problems":[{"code":"no-endpoints","severity":"problem",
    "message":"no endpoints","advice":"compare spec.selector"}]}]}"#;

/// A folder with everything that commands ask for.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        fs::write(place.path("bad.yaml"), "a: [b\n").unwrap();
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        fs::write(place.path("config.yaml"), head).unwrap();
        place.serve();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Answers on a control socket as a proxy without Services would, until the test ends.
    fn serve(&self) {
        let listener = UnixListener::bind(self.path("control.sock")).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap_or_default();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let body = match request.split(' ').nth(1).unwrap_or_default() {
                    "/v1/status.txt" => "State      healthy\n",
                    path if path.starts_with("/v1/services") => ONE_SERVICE,
                    path if path.starts_with("/v1/service?") => "null",
                    _ => "{}",
                };
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
            }
        });
    }

    fn command(&self, arguments: &str) -> Command {
        let manifest = repository().join("e2e/fixtures/cluster-ip-three-endpoints.yaml");
        let arguments = arguments
            .replace("MANIFEST", manifest.to_str().unwrap())
            .replace("FOLDER", self.folder.path().to_str().unwrap());
        let mut command = program(&arguments.split_whitespace().collect::<Vec<_>>());
        command.env_remove("KUBERNETES_SERVICE_HOST");
        command
    }
}

/// Commands that print, with the exit status after the answer is written; that of `check` depends on the machine.
const COMMANDS: &[(&str, Option<i32>)] = &[
    ("--help", Some(0)),
    ("--version", Some(0)),
    ("--version=raw", Some(0)),
    ("render --help", Some(0)),
    ("render --manifests MANIFEST", Some(0)),
    ("render --mode ipvs --ipvs-scheduler rr --manifests MANIFEST", Some(0)),
    ("render --manifests MANIFEST --manifests FOLDER/bad.yaml", Some(1)),
    ("check", None),
    ("check --output json", None),
    ("config check FOLDER/config.yaml", Some(0)),
    ("explain shop/web --control-socket FOLDER/control.sock", Some(2)),
    ("explain shop/web --output json --control-socket FOLDER/control.sock", Some(2)),
    ("services --control-socket FOLDER/control.sock", Some(0)),
    ("services --output wide --control-socket FOLDER/control.sock", Some(0)),
    ("services --output json --control-socket FOLDER/control.sock", Some(0)),
    ("services --output yaml --control-socket FOLDER/control.sock", Some(0)),
    ("services shop/lonely --output name --control-socket FOLDER/control.sock", Some(0)),
    ("services --output jsonpath={.items[*].name} --control-socket FOLDER/control.sock", Some(0)),
    ("services --problems --control-socket FOLDER/control.sock", Some(1)),
    ("explain 10.96.0.9:81 --control-socket FOLDER/control.sock", Some(2)),
    ("bug-report --help", Some(0)),
    ("version", Some(0)),
    ("completion bash", Some(0)),
    ("status --control-socket FOLDER/control.sock", Some(0)),
    ("status --output json --control-socket FOLDER/control.sock", Some(0)),
];

#[test]
fn every_command_of_the_help_is_in_the_table() {
    let help = stdout(&program(&["--help"]).output().unwrap());
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        assert!(COMMANDS.iter().any(|(line, _)| line.starts_with(name)), "{name} is not in the table");
    }
}

#[test]
fn an_answer_that_is_read_ends_with_its_own_status() {
    let place = Place::new();
    for (arguments, status) in COMMANDS {
        let output = place.command(arguments).output().unwrap();
        let code = output.status.code();
        assert!(
            status.is_none_or(|status| code == Some(status)),
            "{arguments}: {code:?} {}",
            stderr(&output)
        );
        assert!(!output.stdout.is_empty(), "{arguments}: {}", stderr(&output));
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let place = Place::new();
    for (arguments, _) in COMMANDS {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = place.command(arguments).stdout(full).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        let wanted = "Error: writing the answer to stdout: No space left on device";
        assert!(said.lines().last().is_some_and(|line| line.starts_with(wanted)), "{arguments}: {said}");
    }
}

#[test]
fn a_reader_that_left_ends_a_command_quietly() {
    let place = Place::new();
    for (arguments, _) in COMMANDS {
        let before = stderr(&place.command(arguments).output().unwrap());
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(READER_LEFT), "{arguments}: {}", stderr(&output));
        // A check of the node is never quite the same twice.
        if !arguments.starts_with("check") {
            assert_eq!(stderr(&output), before, "{arguments}");
        }
    }
}

/// Complaints of each kind.
#[rstest]
#[case::flag("--no-such-flag", 1)]
#[case::settings("--iptables-masquerade-bit=77", 1)]
#[case::file("--config=/nowhere/config.conf", 1)]
#[case::bad_manifest("render --manifests FOLDER/bad.yaml --manifests MANIFEST", 1)]
#[case::warning("config check FOLDER/config.yaml --vmodule=a=1", 0)]
#[case::log_line("render --manifests MANIFEST --vmodule=a=1 -v=1", 0)]
fn a_complaint_that_gets_nowhere_changes_nothing(#[case] arguments: &str, #[case] status: i32) {
    let place = Place::new();
    let whole = place.command(arguments).output().unwrap();
    assert_eq!(whole.status.code(), Some(status), "{}", stderr(&whole));
    assert!(!whole.stderr.is_empty());
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for sink in [Stdio::from(full), Stdio::from(gone)] {
        let output = place.command(arguments).stderr(sink).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments}");
        assert_eq!(output.stdout, whole.stdout, "{arguments}");
    }
}

#[rstest]
#[case(b"--config=\xff")]
#[case(b"\xffexplain")]
#[case(b"--\xff")]
fn an_argument_that_is_not_text_is_an_error(#[case] argument: &[u8]) {
    let mut command = program(&["-v=2"]);
    let output = command.arg(std::ffi::OsStr::from_bytes(argument)).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("Error: argument 2 is not text in UTF-8: "), "{said}");
}

/// Runs `--write-config-to` where files cannot grow, as on a full disk.
fn write_without_space(path: &Path) -> std::process::Output {
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" --write-config-to \"$1\"";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_kube-proxy-rs")).arg(path).output().unwrap()
}

#[test]
fn a_configuration_that_cannot_be_written_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    for before in [None, Some("before")] {
        if let Some(text) = before {
            fs::write(&path, text).unwrap();
        }
        let output = write_without_space(&path);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("Error: writing {}: ", path.display())), "{said}");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), usize::from(before.is_some()), "litter");
    }
}

#[test]
fn a_written_configuration_is_read_again_and_may_go_to_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let written = program(&["--proxy-mode=ipvs", "--write-config-to"]).arg(&path).output().unwrap();
    assert!(written.status.success(), "{}", stderr(&written));
    let checked = program(&["config", "check"]).arg(&path).output().unwrap();
    assert!(stdout(&checked).contains("mode: \"ipvs\"  # file\n"), "{}", stderr(&checked));
    let printed = program(&["--proxy-mode=ipvs", "--write-config-to=/dev/stdout"]).output().unwrap();
    assert_eq!(stdout(&printed), fs::read_to_string(&path).unwrap());
}

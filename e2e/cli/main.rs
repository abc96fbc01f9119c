//! The program from the command line: what `render` prints, and one clear line and the right exit
//! status for whatever is wrong. Needs no root, except for the tests that take root away.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests start programs")]

mod check;
mod golden;
mod mistakes;
mod output;
mod scripts;

use std::path::Path;
use std::process::{Command, Output};

/// The program.
const BINARY: &str = env!("CARGO_BIN_EXE_kube-proxy-rs");

/// The program, with these arguments.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments);
    command
}

/// The same in a network namespace of its own, where root can make one: there is one proxy in each, and there may be
/// one already in that of the machine.
fn program_alone(user: Option<&str>, program: &str, arguments: &[&str]) -> Command {
    if !nix::unistd::geteuid().is_root() {
        let mut command = Command::new(program);
        command.args(arguments);
        return command;
    }
    let mut command = Command::new("/usr/bin/unshare");
    command.arg("--net");
    user.into_iter().for_each(|user| _ = command.args(["--setuid", user, "--setgid", user]));
    // The test that has no ip in PATH does not need the loopback.
    command.args(["/bin/sh", "-c", r#"ip link set lo up 2>/dev/null; exec "$0" "$@""#, program]);
    command.args(arguments);
    command
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

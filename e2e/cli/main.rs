//! The program from the command line: what `render` prints, and one clear line and the right exit
//! status for whatever is wrong. Needs no root, except for the tests that take root away.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests start programs")]

mod check;
mod golden;
mod mistakes;
mod output;

use std::path::Path;
use std::process::{Command, Output};

/// The program, with these arguments.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
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

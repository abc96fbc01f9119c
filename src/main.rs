//! The program; see the library for everything it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    kube_proxy_rs::app::main(std::env::args_os().skip(1))
}

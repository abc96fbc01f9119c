//! Writes the manual page and the shells' completions, from what `--help` says: manual FOLDER.

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use std::error::Error;
use std::fs;
use std::path::PathBuf;

/// What `--help` does not say.
const FILES: [(&str, &str); 4] = [
    ("/etc/kube-proxy-rs/config.conf", "KubeProxyConfiguration that the package's unit reads"),
    (
        "/etc/kube-proxy-rs/kubeconfig.conf",
        "kubeconfig that this configuration names; not part of the package",
    ),
    ("/etc/default/kube-proxy-rs", "further flags for the unit"),
    ("/run/kube-proxy-rs/control.sock", "where explain, services and status ask the proxy of this node"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("usage: manual FOLDER")?.into();
    fs::create_dir_all(&folder)?;
    let mut command = kube_proxy_rs::config::command();
    command.build();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command.clone(), "kube-proxy-rs", &folder)?;
    }
    fs::write(folder.join("kube-proxy-rs.8"), page(command)?)?;
    Ok(())
}

fn page(command: Command) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut commands = Roff::default();
    commands.control("SH", ["COMMANDS"]);
    for verb in command.get_subcommands() {
        describe(&mut commands, verb, "");
    }
    let title = format!("kube-proxy-rs {}", kube_proxy_rs::config::BUILD.version);
    let man = Man::new(command).section("8").source(title).manual("Kubernetes on this node");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    commands.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    files().to_writer(&mut page)?;
    Ok(page)
}

/// A command with its own arguments; the flags of all commands are under OPTIONS.
fn describe(page: &mut Roff, verb: &Command, before: &str) {
    let name = format!("{before}{}", verb.get_name());
    let nested: Vec<_> = verb.get_subcommands().collect();
    if nested.is_empty() {
        let places =
            verb.get_positionals().map(|arg| italic(format!(" {}", arg.get_id().as_str().to_uppercase())));
        let line: Vec<_> = std::iter::once(bold(&name)).chain(places).collect();
        page.control("TP", []).text(line);
        page.text([roman(verb.get_about().map(ToString::to_string).unwrap_or_default())]);
    }
    nested.into_iter().for_each(|inner| describe(page, inner, &format!("{name} ")));
}

fn files() -> Roff {
    let mut page = Roff::default();
    page.control("SH", ["FILES"]);
    for (path, what) in FILES {
        page.control("TP", []).text([italic(path)]).text([roman(what)]);
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("iptables"), roman("(8), "), bold("ipvsadm"), roman("(8), "), bold("nft"), roman("(8)")]);
    page
}

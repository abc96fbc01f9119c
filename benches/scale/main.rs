//! `make bench-scale`: the real program against a stub API server, or a real one, and the real kernel, in
//! a network namespace of its own. Prints a table, and the same as one line of JSON.
#![allow(clippy::disallowed_methods, reason = "a measurement runs programs and looks at the clock")]

mod goals;
mod kernel;
mod process;
mod run;
mod settings;
mod source;

use anyhow::Result;
use kube_proxy_rs::testing::flows;
use kube_proxy_rs::testing::netns::Namespace;
use run::{Figures, Program};
use serde_json::json;
use settings::Settings;
use source::Source;
use std::process::ExitCode;

/// Our Node, and the one that the endpoints are on.
const NODE: &str = "bench-node";
const ELSEWHERE: &str = "other-node";

fn main() -> ExitCode {
    match Settings::parse(std::env::args().skip(1)).and_then(|settings| measure(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(settings: &Settings) -> Result<()> {
    let mut columns = vec![("kube-proxy-rs", figures(settings, &Program::ours(settings))?)];
    if let Some(peer) = &settings.peer {
        columns.push(("peer", figures(settings, &Program::peer(settings, peer))?));
    }
    print_table(settings, &columns);
    let figures: serde_json::Map<_, _> =
        columns.iter().map(|(name, figures)| ((*name).to_owned(), figures.to_json())).collect();
    let setup = json!({
        "services": settings.services, "endpoints": settings.endpoints, "flavor": settings.dataplane.as_str(),
        "apiserver": if settings.apiserver.is_some() { "real" } else { "stub" },
    });
    let goals: serde_json::Map<_, _> =
        goals::of(settings).map(|(name, value)| (name.to_owned(), value.into())).collect();
    println!("{}", json!({"setup": setup, "goals": goals, "figures": figures}));
    Ok(())
}

/// One program in a namespace of its own; what runs there runs on one thread and its children.
fn figures(settings: &Settings, program: &Program) -> Result<Figures> {
    let namespace = Namespace::create("scale")?;
    let source = Source::fill(settings, &namespace)?;
    namespace.run(|| {
        kernel::route_everything_here()?;
        if settings.flows > 0 {
            flows::track()?;
            flows::add(settings.flows)?;
        }
        run::run(settings, program, &source)
    })?
}

fn print_table(settings: &Settings, columns: &[(&str, Figures)]) {
    let Settings { services, endpoints, .. } = settings;
    print!("{:<58}", format!("{services} Services x {endpoints} endpoints, {}", settings.dataplane.as_str()));
    columns.iter().for_each(|(name, _)| print!("{name:>16}"));
    println!("{:>16}", "goal, at most");
    for (row, what) in Figures::ROWS.iter().enumerate() {
        print!("{what:<58}");
        columns.iter().for_each(|(_, figures)| print!("{:>16}", figures.cell(row)));
        let goal = goals::of(settings).find(|(name, _)| name == what);
        println!("{:>16}", goal.map_or(String::new(), |(_, value)| value.to_string()));
    }
}

//! `make bench-scale`: the real program against a stub API server and the real kernel, in a network
//! namespace of its own. Prints a table, and the same as one line of JSON.
#![allow(clippy::disallowed_methods, reason = "a measurement runs programs and looks at the clock")]

mod goals;
mod kernel;
mod process;
mod run;
mod settings;

use anyhow::Result;
use kube_proxy_rs::testing::flows;
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::stub_api::{StubApi, load_service, load_slice};
use run::{Figures, Program};
use serde_json::json;
use settings::Settings;
use std::process::ExitCode;
use std::sync::Arc;

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
    });
    let goals: serde_json::Map<_, _> =
        goals::of(settings).map(|(name, value)| (name.to_owned(), value.into())).collect();
    println!("{}", json!({"setup": setup, "goals": goals, "figures": figures}));
    Ok(())
}

/// One program in a namespace of its own; what runs there runs on one thread and its children.
fn figures(settings: &Settings, program: &Program) -> Result<Figures> {
    let namespace = Namespace::create("scale")?;
    namespace.run(|| {
        kernel::route_everything_here()?;
        if settings.flows > 0 {
            flows::track()?;
            flows::add(settings.flows)?;
        }
        let server = serve(settings)?;
        run::run(settings, program, &server)
    })?
}

/// Starts the API server on a thread of its own and fills it.
fn serve(settings: &Settings) -> Result<Arc<StubApi>> {
    let server = StubApi::start_on_a_thread()?;
    server.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }));
    for number in 0..settings.services {
        server.put(load_service(number));
        server.put(load_slice(number, settings.endpoints, ELSEWHERE));
    }
    Ok(server)
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

//! What is aimed at, where something is (`docs/performance.md`).

use crate::settings::{Dataplane, Settings};

/// Which runs a goal is for.
struct Run {
    services: u32,
    endpoints: u32,
    dataplane: Option<Dataplane>,
}

const fn run(services: u32, endpoints: u32, dataplane: Option<Dataplane>) -> Run {
    Run { services, endpoints, dataplane }
}

const NFT: Option<Dataplane> = Some(Dataplane::Nft);
const LEGACY: Option<Dataplane> = Some(Dataplane::Legacy);

const IPVS: Option<Dataplane> = Some(Dataplane::Ipvs);

/// By run, the figure's name in `Figures::ROWS` and the most that it should be.
const GOALS: [(Run, &str, f64); 21] = [
    (run(1_000, 5, NFT), "lone change, from API event to kernel, p50, ms", 40.0),
    (run(1_000, 5, NFT), "lone change, p99, ms", 100.0),
    (run(1_000, 5, None), "memory after the storm, MB", 12.0),
    // In the emulated machine.
    (run(1_000, 5, IPVS), "first sync, s", 8.0),
    (run(1_000, 5, IPVS), "lone change, from API event to kernel, p50, ms", 300.0),
    (run(1_000, 5, IPVS), "lone change, rules or servers sent", 3.0),
    (run(10_000, 5, NFT), "first sync, s", 5.0),
    (run(10_000, 5, LEGACY), "first sync, s", 2.0),
    (run(10_000, 5, NFT), "lone change, from API event to kernel, p50, ms", 100.0),
    (run(10_000, 5, LEGACY), "lone change, from API event to kernel, p50, ms", 700.0),
    (run(10_000, 5, None), "lone change, own CPU time, ms", 2.0),
    (run(10_000, 5, None), "memory after first sync, MB", 30.0),
    (run(10_000, 5, None), "memory after the storm, MB", 30.0),
    (run(10_000, 5, None), "peak memory until then, MB", 45.0),
    (run(10_000, 5, NFT), "peak memory of the largest child in all, MB", 25.0),
    (run(10_000, 5, None), "idle: CPU, % of a core", 0.1),
    (run(10_000, 5, None), "new connection to a random Service, p50, us", 30.0),
    (run(5_000, 50, NFT), "first sync, s", 60.0),
    (run(5_000, 50, NFT), "memory after the storm, MB", 100.0),
    (run(5_000, 50, NFT), "peak memory in all, MB", 100.0),
    (run(44_000, 1, None), "lone change, from API event to kernel, p50, ms", 300.0),
];

/// The goals of a run: the figure's name and the most that it should be.
pub(crate) fn of(settings: &Settings) -> impl Iterator<Item = (&'static str, f64)> {
    let is_for = |run: &Run| {
        (run.services, run.endpoints) == (settings.services, settings.endpoints)
            && run.dataplane.is_none_or(|dataplane| dataplane == settings.dataplane)
    };
    GOALS.iter().filter(move |(run, ..)| is_for(run)).map(|(_, name, value)| (*name, *value))
}

//! Drives one target, named by the environment variable `FUZZ_TARGET`, with libFuzzer. With
//! `FUZZ_SEEDS=FOLDER` it writes every target's first inputs there instead, prints the targets and exits.
//! (A program of its own for that would have the whole of kube-proxy-rs built once more.)

#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn named() -> fn(&[u8]) {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match fuzz::TARGETS.iter().find(|(target, _)| *target == name) {
        Some((_, target)) => *target,
        None => {
            eprintln!(
                "FUZZ_TARGET={name:?} is none of {:?}",
                fuzz::TARGETS.iter().map(|it| it.0).collect::<Vec<_>>()
            );
            std::process::exit(2);
        }
    }
}

fn seeds() {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS") else { return };
    let status =
        fuzz::seeds::write(folder.as_ref()).map_err(|error| eprintln!("cannot write seeds: {error}"));
    std::process::exit(i32::from(status.is_err()));
}

libfuzzer_sys::fuzz_target!(init: seeds(), |bytes: &[u8]| TARGET.get_or_init(named)(bytes));

//! Drives one target, named by the environment variable `FUZZ_TARGET`, with libFuzzer.

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

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.get_or_init(named)(bytes));

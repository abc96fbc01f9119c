//! `make bench`, first part: how long the program's own steps take (criterion).
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on may as well panic")]

mod cases;

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;

fn steps(criterion: &mut Criterion) {
    for services in [100, 1_000, 10_000] {
        let mut cluster = cases::cluster(services);
        for (name, case) in cases::CASES {
            criterion.bench_function(&format!("{name}/{services}"), |bencher| {
                case(&mut cluster, &mut |work| bencher.iter(work));
            });
        }
    }
}

criterion_group! {
    name = group;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = steps
}
criterion_main!(group);

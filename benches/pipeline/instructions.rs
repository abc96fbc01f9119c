//! `make bench`, second part: how many instructions the program's own steps take, which, unlike time,
//! is the same on every machine and at any load.
//!
//! Without arguments it runs itself in valgrind, each case often and not at all: the difference is
//! what the case takes. With a case and two numbers it is what runs there.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on may as well panic")]
#![allow(clippy::disallowed_methods, reason = "a measurement runs programs")]

mod cases;

use std::process::Command;

/// Clusters that are compared.
const SERVICES: [u32; 2] = [400, 4_000];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    match arguments.as_slice() {
        [case, services, times] => run(case, services.parse().unwrap(), times.parse().unwrap()),
        _ => count_all(),
    }
}

fn run(wanted: &str, services: u32, times: u32) {
    let mut cluster = cases::cluster(services);
    for (_, case) in cases::CASES.iter().filter(|(name, _)| *name == wanted) {
        case(&mut cluster, &mut |work| (0..times).for_each(|_| work()));
    }
}

fn count_all() {
    println!("{:<34}{:>16}{:>16}", "instructions", SERVICES[0], SERVICES[1]);
    for (name, _) in cases::CASES {
        print!("{name:<34}");
        for services in SERVICES {
            // What differs from run to run must not show where a case takes little.
            let times = if name.ends_with("all") || name.ends_with("sync") { 2 } else { 1000 };
            let taken = count(name, services, times).saturating_sub(count(name, services, 0));
            let taken = taken / u64::from(times);
            print!("{taken:>16}");
        }
        println!();
    }
}

/// Instructions of a whole run.
fn count(case: &str, services: u32, times: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args([case, &services.to_string(), &times.to_string()])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}");
    let total = words.lines().find_map(|line| line.split_once(" refs:"));
    let digits: String = total.unwrap().1.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

//! What a process and its children take, read from /proc while they run.

use anyhow::{Context as _, Result};
pub(crate) use kube_proxy_rs::testing::proxy::status_kb;
use nix::sys::time::TimeValLike as _;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the children's memory is read. Their peak is a high-water mark, so only what a child
/// takes in its last two milliseconds can be missed.
const POLL: Duration = Duration::from_millis(2);

/// User and system time of a process so far, without its children's.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))?;
    Ok(Duration::from_nanos(clock_gettime(clock)?.num_nanoseconds().cast_unsigned()))
}

/// User and system time of all children that have ended so far, to a hundredth of a second.
pub(crate) fn children_cpu_time(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the program has exited")?;
    let (_, fields) = text.rsplit_once(')').context("/proc/PID/stat has an unknown form")?;
    // Fields 16 and 17 of proc(5); the first after the name is number 3.
    let ticks = fields.split_whitespace().skip(13).take(2).map(str::parse::<u32>);
    Ok(f64::from(ticks.sum::<Result<u32, _>>()?) / 100.0)
}

/// Watches the children of a process for the one that takes the most memory.
pub(crate) struct ChildWatch {
    peak_kb: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ChildWatch {
    /// Watches the children of `parent` until this is dropped.
    pub(crate) fn start(parent: u32) -> ChildWatch {
        let (peak_kb, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (peak_kb, done) = (peak_kb.clone(), done.clone());
            move || {
                while !done.load(Ordering::Relaxed) {
                    for child in children(parent) {
                        peak_kb.fetch_max(child_peak(child), Ordering::Relaxed);
                    }
                    thread::sleep(POLL);
                }
            }
        });
        ChildWatch { peak_kb, done, thread: Some(thread) }
    }

    /// The most that any child has taken so far, in kB.
    pub(crate) fn peak_kb(&self) -> u64 {
        self.peak_kb.load(Ordering::Relaxed)
    }
}

impl Drop for ChildWatch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The children of all threads of a process.
fn children(parent: u32) -> BTreeSet<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids =
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
    pids.collect()
}

/// The high-water mark of a child that runs a program of its own; between fork and exec it still
/// shares its parent's memory.
fn child_peak(child: u32) -> u64 {
    let is_tool =
        |name: &String| ["iptables", "ip6tables", "xtables", "nft"].iter().any(|tool| name.starts_with(tool));
    match fs::read_to_string(format!("/proc/{child}/comm")) {
        Ok(name) if is_tool(&name) => status_kb(child, "VmHWM").unwrap_or_default(),
        _ => 0,
    }
}

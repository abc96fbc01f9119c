//! Network namespaces that live as long as a test. They need root.

use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread that stays in it.
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// A new, empty one, with its loopback up.
    pub fn new() -> Namespace {
        let (jobs, work) = channel::<Job>();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("this test needs root: it makes a network namespace");
            work.iter().for_each(|job| job());
        });
        let namespace = Namespace { jobs: Some(jobs), thread: Some(thread) };
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs a function on its thread. Threads that this starts are in the namespace, too.
    pub fn run<T: Send + 'static>(&self, function: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, answer) = channel();
        let job = move || {
            let _ = result.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(function)));
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).expect("the namespace's thread runs");
        match answer.recv().expect("the namespace's thread runs") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a shell script in it, which must succeed; returns what it prints.
    pub fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || sh(&script))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Runs a shell script in the calling thread's namespace.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh starts");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("output is text")
}

/// Whether nft is installed; without it, what it would check is left out.
pub fn has_nft() -> bool {
    let found = Command::new("nft").arg("--version").output().is_ok();
    if !found {
        eprintln!("nft is not installed: what it says of the ruleset is LEFT OUT");
    }
    found
}

//! Live tests run in a network namespace of their own, on a thread of their own.

use std::process::Command;

/// Runs `test` in a new, empty network namespace. Needs root; there is no silent skip.
pub(crate) fn in_fresh_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("this test needs root: it makes a network namespace");
            run("ip link set lo up");
            test()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs a shell script in the calling thread's namespace; it must succeed.
pub(crate) fn run(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().expect("sh starts");
    assert!(status.success(), "{script}: {status}");
}

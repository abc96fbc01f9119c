//! Network namespaces for tests: made by `ip netns`, gone when the guard is dropped.
//!
//! Code runs inside a namespace on a thread of its own, because `setns` moves the calling thread
//! only. A socket belongs to the namespace it was opened in and may then be used from any thread.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

/// Every namespace of ours is called `kprs-<pid>-<number>-<label>`.
const PREFIX: &str = "kprs-";

/// Numbers the namespaces of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace of our own, deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with `lo` up, reverse-path filters off and no waiting for duplicate
    /// IPv6 addresses. `label` says in `ip netns list` what it stands for.
    ///
    /// # Errors
    ///
    /// When the process may not make namespaces or `ip` is missing.
    pub fn create(label: &str) -> Result<Namespace> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
        run_ip(&["netns", "add", &name], "")
            .with_context(|| format!("cannot make network namespace {name}: this needs root and iproute2"))?;
        let namespace = Namespace { name };
        for (key, value) in [
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            namespace.set_sysctl(key, value)?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` commands inside, one a line.
    ///
    /// # Errors
    ///
    /// When `ip` refuses one of them; the rest is not run then.
    pub fn ip(&self, commands: &str) -> Result<()> {
        run_ip(&["-n", &self.name, "-batch", "-"], commands)
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Sets a network sysctl inside; `key` is its path below `/proc/sys`.
    ///
    /// # Errors
    ///
    /// When the kernel has no such key or refuses the value.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| fs::write(&path, value))?.with_context(|| format!("cannot set {key} to {value}"))
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    ///
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    ///
    /// When the namespace is gone or the process lacks the privilege.
    pub fn enter(&self) -> Result<()> {
        let path = format!("/run/netns/{}", self.name);
        let file = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program inside and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it cannot be started or fails; the error carries its standard error.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        let output = command.args(arguments).output().with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run_ip(&["netns", "delete", &self.name], "") {
            eprintln!("namespace {} stays behind: {error:#}", self.name);
        }
    }
}

/// Deletes what test processes that were killed have left behind.
///
/// # Errors
///
/// When `ip netns` cannot be run.
pub fn sweep_leftovers() -> Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            // Another run of the tests may sweep at the same time.
            run_ip(&["netns", "delete", &name], "")
                .or_else(|error| if entry.path().exists() { Err(error) } else { Ok(()) })?;
        }
    }
    Ok(())
}

/// Runs `ip` with `input` on its standard input.
fn run_ip(arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A closed pipe only means that ip has given up; its own words follow below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

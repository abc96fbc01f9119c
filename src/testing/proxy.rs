//! The real program, started in a namespace, and the manifests it reads.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use crate::kernel::iptables::Flavor;
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::netns::Namespace;
use super::packets::{CLUSTER_CIDR, NODE_NAME, marker_objects, node_object, to_manifest};
use super::stub_api::StubApi;

/// Where the program's metrics are, inside its namespace.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// The manifest in a program's folder.
const OBJECTS: &str = "objects.yaml";
/// Its log, beside it.
const LOG: &str = "log";
/// Where people ask it, beside it: the file system is shared, unlike the network.
const CONTROL: &str = "control.sock";
/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(50);

/// Numbers the folders of this process.
static NEXT_FOLDER: AtomicU32 = AtomicU32::new(0);
/// Numbers the contents of manifests, so that the rules of one are not taken for those of another.
static NEXT_GENERATION: AtomicU32 = AtomicU32::new(0);

/// The next number for a manifest's content.
fn next_generation() -> u8 {
    u8::try_from(NEXT_GENERATION.fetch_add(1, Ordering::Relaxed) % 250).unwrap_or(0) + 1
}

/// What `iptables-save` of a flavour prints in a namespace; `ip6tables-save` when `v6`.
///
/// # Errors
///
/// When the tool is missing or fails.
pub fn save(flavor: Flavor, namespace: &Namespace, v6: bool) -> Result<String> {
    let six = if v6 { "6" } else { "" };
    namespace.output(&format!("ip{six}tables-{flavor}-save"), &[])
}

/// A field of `/proc/PID/status`, in kB.
///
/// # Errors
/// When there is no such process or field.
pub fn status_kb(pid: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the program has exited")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let line = line.with_context(|| format!("no {field} in /proc/{pid}/status"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Polls `condition` until it holds.
///
/// # Errors
///
/// When it does not within `limit`; the error names `what` was waited for.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain until {what}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// A folder of our own below the system's temporary one, deleted on drop.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// When the file system refuses.
    pub fn create() -> Result<Folder> {
        let number = NEXT_FOLDER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kube-proxy-rs-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Folder { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file so that a reader sees the old text or the new one, never a part.
    ///
    /// # Errors
    ///
    /// When the file system refuses.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let fresh = self.path.join(format!(".{name}.fresh"));
        fs::write(&fresh, text)?;
        fs::rename(&fresh, self.path.join(name)).with_context(|| format!("cannot write {name}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// How to start the program under test.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The program.
    pub binary: &'a str,
    /// Where it runs.
    pub namespace: &'a Namespace,
    /// The iptables tools it is told to use.
    pub flavor: Flavor,
    /// Flags besides the usual ones; a `--cluster-cidr` here replaces the usual one.
    pub flags: &'a [&'a str],
}

impl Launch<'_> {
    /// Starts the program on a manifest that holds `objects` and can be changed later.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(self, objects: &[Value]) -> Result<Proxy> {
        let folder = Folder::create()?;
        let generation = next_generation();
        folder.write(OBJECTS, &manifest(objects, generation))?;
        let source = Source::Manifests(vec![folder.path().join(OBJECTS)]);
        let child = self.spawn(&source, folder.path())?;
        Ok(Proxy { child, source, generation, folder })
    }

    /// Starts the program on what an API server has, and gives that `objects` and our Node before.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_watching(self, server: &StubApi, objects: &[Value]) -> Result<Proxy> {
        let folder = Folder::create()?;
        let generation = next_generation();
        let markers = marker_objects(generation).into_iter().chain([node_object()]);
        objects.iter().cloned().chain(markers).for_each(|object| _ = server.put(object));
        let source = Source::ApiServer { kubeconfig: server.kubeconfig(folder.path())? };
        let child = self.spawn(&source, folder.path())?;
        Ok(Proxy { child, source, generation, folder })
    }

    /// Starts the program on manifests that are there already.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_on(self, manifests: &[impl AsRef<Path>]) -> Result<Proxy> {
        let folder = Folder::create()?;
        let source = Source::Manifests(manifests.iter().map(|path| path.as_ref().to_owned()).collect());
        let child = self.spawn(&source, folder.path())?;
        Ok(Proxy { child, source, generation: 0, folder })
    }

    /// Starts the program again on the same objects, after it was stopped or killed.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_again(self, proxy: &mut Proxy) -> Result<()> {
        proxy.child = self.spawn(&proxy.source, proxy.folder.path())?;
        Ok(())
    }

    fn spawn(self, source: &Source, folder: &Path) -> Result<Child> {
        let log = File::options().create(true).append(true).open(folder.join(LOG))?;
        let mut command = self.namespace.command(self.binary);
        match source {
            Source::Manifests(paths) => {
                paths.iter().for_each(|path| _ = command.arg("--manifests").arg(path));
            }
            Source::ApiServer { kubeconfig } => _ = command.arg("--kubeconfig").arg(kubeconfig),
        }
        command
            .args(["--hostname-override", NODE_NAME, "--iptables-flavor", self.flavor.as_str()])
            .args(["--metrics-bind-address", "127.0.0.1:10249"])
            .arg("--control-socket")
            .arg(folder.join(CONTROL))
            .args(["--healthz-bind-address", "127.0.0.1:10256", "-v", "2"]);
        if !self.flags.iter().any(|flag| flag.starts_with("--cluster-cidr")) {
            command.args(["--cluster-cidr", CLUSTER_CIDR]);
        }
        command.args(self.flags).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("cannot start {}", self.binary))
    }
}

/// Where a program has its objects from.
#[derive(Debug)]
enum Source {
    Manifests(Vec<PathBuf>),
    ApiServer { kubeconfig: PathBuf },
}

/// A running `kube-proxy-rs` and where it has its objects from; killed on drop.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    source: Source,
    generation: u8,
    folder: Folder,
}

impl Proxy {
    /// Puts other objects into the manifests.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn apply(&mut self, objects: &[Value]) -> Result<()> {
        self.generation = next_generation();
        self.rewrite(objects)
    }

    /// Changes the objects and nothing else: `wait_for_sync` cannot tell when this is in force.
    ///
    /// # Errors
    ///
    /// When the file cannot be written, or the program reads from an API server.
    pub fn rewrite(&self, objects: &[Value]) -> Result<()> {
        if matches!(self.source, Source::ApiServer { .. }) {
            bail!("the program watches an API server: put the objects there");
        }
        self.folder.write(OBJECTS, &manifest(objects, self.generation))
    }

    /// Waits until the rules of the manifests' present content are in the kernel: until its two
    /// marker Services are, in both families.
    ///
    /// # Errors
    ///
    /// When that takes longer than `limit` or the program has exited; the error has its log.
    pub fn wait_for_sync(&mut self, namespace: &Namespace, flavor: Flavor, limit: Duration) -> Result<()> {
        let markers = ["marker", "idle"].map(|name| format!("packets/{name}-{}:main", self.generation));
        let mut exited = false;
        let waited = wait_until("the rules of the manifests are in force", limit, || {
            exited = !self.is_running();
            exited
                || [false, true].into_iter().all(|v6| {
                    save(flavor, namespace, v6)
                        .is_ok_and(|text| markers.iter().all(|marker| text.contains(marker)))
                })
        });
        if exited {
            bail!("the program has exited; its log:\n{}", self.log_tail());
        }
        waited.with_context(|| format!("the program's log:\n{}", self.log_tail()))
    }

    /// The addresses of the marker Services of the manifests' present content.
    #[must_use]
    pub fn marker_addresses(&self) -> Vec<String> {
        let markers = marker_objects(self.generation);
        let ips = markers.iter().filter_map(|marker| marker["spec"]["clusterIPs"].as_array()).flatten();
        ips.filter_map(|ip| Some(ip.as_str()?.parse::<std::net::IpAddr>().ok()?.to_string())).collect()
    }

    /// Where people ask it.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.folder.path().join(CONTROL)
    }

    /// A field of its `/proc/PID/status`, in kB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn status_kb(&self, field: &str) -> Result<u64> {
        status_kb(self.child.id(), field)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Whether it has not exited yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The manifests it reads.
    #[must_use]
    pub fn manifests(&self) -> &[PathBuf] {
        match &self.source {
            Source::Manifests(paths) => paths,
            Source::ApiServer { .. } => &[],
        }
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    ///
    /// When it is still there after a minute.
    pub fn terminate(&mut self) -> Result<()> {
        self.end_by(Signal::SIGTERM)
    }

    /// Sends it a signal and waits until it has ended.
    ///
    /// # Errors
    ///
    /// When it is still there after a minute.
    pub fn end_by(&mut self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).context("cannot signal it")?;
        wait_until("the program has stopped", Duration::from_secs(60), || !self.is_running())
    }

    /// Kills it on the spot.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop).context("cannot wait for the killed program")
    }

    /// Stops it while it waits for something to happen, never in the middle of a look or a pass.
    ///
    /// # Errors
    ///
    /// When it is not found waiting within `limit`.
    pub fn pause(&self, limit: Duration) -> Result<()> {
        let pid = self.pid();
        wait_until("the program is stopped at rest", limit, || {
            kill(pid, Signal::SIGSTOP).is_ok() && (self.is_at_rest() || kill(pid, Signal::SIGCONT).is_err())
        })
    }

    /// Lets it go on after `pause`.
    ///
    /// # Errors
    ///
    /// When it has gone.
    pub fn resume(&self) -> Result<()> {
        kill(self.pid(), Signal::SIGCONT).context("cannot signal it")
    }

    /// Whether its main thread has stopped while it waited for events, and not for a tool of its own.
    fn is_at_rest(&self) -> bool {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/task/{pid}/{name}", pid = self.child.id());
            fs::read_to_string(path).unwrap_or_default()
        };
        let stopped = || read("stat").rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"));
        let waits = [
            libc::SYS_epoll_pwait,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait,
        ];
        wait_until("it has stopped", Duration::from_secs(10), stopped).is_ok()
            && waits.iter().any(|call| read("syscall").starts_with(&format!("{call} ")))
            && !self.has_children()
    }

    /// Whether a tool runs that any of its threads has started.
    fn has_children(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return false };
        let children = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("children")));
        children.flatten().any(|children| !children.trim().is_empty())
    }

    /// All that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    /// What it has logged last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail only when it has gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn manifest(objects: &[Value], generation: u8) -> String {
    to_manifest(objects) + &to_manifest(&marker_objects(generation))
}

/// The body of `/metrics` of the program in a namespace.
///
/// # Errors
///
/// When nothing answers there.
pub fn metrics(namespace: &Namespace) -> Result<String> {
    http_get(namespace, METRICS, "/metrics")
}

/// The sum of all samples of one metric in a text exposition.
#[must_use]
pub fn metric_sum(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// One plain HTTP GET from inside a namespace; returns head and body.
///
/// # Errors
///
/// When the connection fails.
pub fn http_get(namespace: &Namespace, address: SocketAddr, path: &str) -> Result<String> {
    let limit = Duration::from_secs(20);
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&address, limit))??;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

//! One program, measured from its start to its rest.

use crate::kernel::Stamps;
use crate::process::{ChildWatch, children_cpu_time, cpu_time, status_kb};
use crate::settings::{Dataplane, Settings};
use crate::source::Source;
use crate::{ELSEWHERE, NODE, kernel};
use anyhow::{Context as _, Result, ensure};
use kube_proxy_rs::testing::generate::Generator;
use kube_proxy_rs::testing::proxy::Folder;
use kube_proxy_rs::testing::stub_api::{load_address, load_slice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

const METRICS: &str = "127.0.0.1:10249";
/// How many passes there were.
const SYNCS: &str = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
/// How often virtual and real servers were changed.
const OPERATIONS: &str = "kubeproxy_ipvs_operations_total";
/// The first sync of the reference can take this long.
const PATIENCE: Duration = Duration::from_secs(1800);
/// A storm is over when nothing has changed for so long.
const CALM: Duration = Duration::from_secs(4);
/// A storm is lost when the wrong state lasts so long.
const STORM_PATIENCE: Duration = Duration::from_secs(60);
/// Longer than the usual minimum between two syncs.
const BETWEEN_LONE: Duration = Duration::from_millis(1300);

/// How to start a program.
pub(crate) struct Program {
    binary: String,
    flags: Vec<String>,
    /// It takes whichever tools it finds under the plain names.
    finds_tools: bool,
}

impl Program {
    pub(crate) fn ours(settings: &Settings) -> Program {
        let mut flags = vec!["--proxy-mode".to_owned(), settings.dataplane.mode().to_owned()];
        if let flavor @ (Dataplane::Nft | Dataplane::Legacy) = settings.dataplane {
            flags.extend(["--iptables-flavor".to_owned(), flavor.as_str().to_owned()]);
        }
        flags.extend(settings.flags.iter().cloned());
        Program { binary: settings.binary.clone(), flags, finds_tools: false }
    }

    pub(crate) fn peer(settings: &Settings, binary: &str) -> Program {
        let mode = settings.dataplane.mode();
        // kube-proxy exits where it cannot write nf_conntrack_max: in every network namespace but the first.
        let flags = ["--proxy-mode", mode, "--conntrack-max-per-core=0", "--conntrack-min=0"];
        let flags = flags.map(str::to_owned).to_vec();
        Program { binary: binary.to_owned(), flags, finds_tools: true }
    }

    fn start(&self, dataplane: Dataplane, source: &Source) -> Result<Running> {
        let folder = Folder::create()?;
        let kubeconfig = source.kubeconfig(folder.path())?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(&self.binary);
        command.arg("--kubeconfig").arg(kubeconfig).args(["--hostname-override", NODE]);
        command.args(["--cluster-cidr", "10.244.0.0/14", "--metrics-bind-address", METRICS]);
        command.args(["--healthz-bind-address", "127.0.0.1:10256"]).args(&self.flags);
        if self.finds_tools {
            command.env("PATH", tools(dataplane, folder.path())?);
        }
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.binary))?;
        Ok(Running { child, folder })
    }
}

/// A search path on which the plain names of the tools are those of one flavour.
fn tools(dataplane: Dataplane, folder: &Path) -> Result<String> {
    let flavor = if dataplane == Dataplane::Legacy { "legacy" } else { "nft" };
    let target = format!("/usr/sbin/xtables-{flavor}-multi");
    for family in ["ip", "ip6"] {
        for what in ["", "-restore", "-save"] {
            symlink(&target, folder.join(format!("{family}tables{what}")))?;
        }
    }
    Ok(format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default()))
}

/// A running program; killed when dropped.
struct Running {
    child: Child,
    folder: Folder,
}

impl Running {
    /// The end of its log.
    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Asks it to end, and waits until it has.
    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of it, row by row.
pub(crate) struct Figures([f64; Figures::ROWS.len()]);

impl Figures {
    pub(crate) const ROWS: [&str; 26] = [
        "new connection past no rules at all, p50, us",
        "first sync, s",
        "memory after first sync, MB",
        "peak memory until then, MB",
        "peak memory of the largest child, MB",
        "own CPU time until then, s",
        "CPU time of the children until then, s",
        "received from the API server until then, MB",
        "rules in the nat table, virtual servers, or elements",
        "lone change, from API event to kernel, p50, ms",
        "lone change, p99, ms",
        "lone change, rules or servers sent",
        "lone change, own CPU time, ms",
        "storm of changes: own CPU time per change, ms",
        "storm of changes: received per change, kB",
        "storm of changes: syncs",
        "storm of changes: from its end to the last rule, s",
        "memory after the storm, MB",
        "peak memory in all, MB",
        "peak memory of the largest child in all, MB",
        "idle: CPU, % of a core",
        "new connection to a random Service, p50, us",
        "new connection to a random Service, p99, us",
        "restart over what is in place, s",
        "restart: transactions",
        "restart: peak memory until then, MB",
    ];

    pub(crate) fn cell(&self, row: usize) -> String {
        let value = self.0[row];
        if value.is_nan() {
            return "-".to_owned();
        }
        if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
    }

    pub(crate) fn to_json(&self) -> Value {
        let cells = Self::ROWS.iter().zip(self.0);
        Value::Object(cells.map(|(name, value)| ((*name).to_owned(), json!(value))).collect())
    }
}

/// Measures one program.
pub(crate) fn run(settings: &Settings, program: &Program, source: &Source) -> Result<Figures> {
    let direct = connect_median(std::iter::repeat_n(kernel::direct(), settings.connections as usize))?;
    let (start, received) = (Instant::now(), source.received());
    let running = program.start(settings.dataplane, source)?;
    let mut measuring = Measuring {
        settings,
        source,
        stamps: Stamps::open(settings.dataplane)?,
        pid: running.child.id(),
        children: ChildWatch::start(running.child.id()),
        values: vec![direct],
        random: Generator::new(1),
        fewer: BTreeSet::new(),
        received,
    };
    measuring.all(start).with_context(|| running.log_tail())?;
    running.stop()?;
    let before = measuring.stamps.now()?;
    let start = Instant::now();
    let running = program.start(settings.dataplane, source)?;
    measuring.pid = running.child.id();
    measuring.restart(start, before).with_context(|| running.log_tail())?;
    let values = measuring.values.try_into().map_err(|values| anyhow::anyhow!("rows: {values:?}"))?;
    Ok(Figures(values))
}

/// In microseconds.
fn connect_median(destinations: impl Iterator<Item = SocketAddrV4>) -> Result<f64> {
    let times = kernel::connect_times(&kernel::listen()?, destinations)?;
    let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    Ok(percentile(&times, 50))
}

struct Measuring<'a> {
    settings: &'a Settings,
    source: &'a Source,
    stamps: Stamps,
    pid: u32,
    children: ChildWatch,
    values: Vec<f64>,
    random: Generator,
    /// Services that the storm left an endpoint short.
    fewer: BTreeSet<u32>,
    /// Bytes from the API server before the start.
    received: f64,
}

/// The state of the kernel's tables, and since when it has been this one.
struct Rest {
    stamp: u64,
    since: Instant,
}

impl Measuring<'_> {
    fn all(&mut self, start: Instant) -> Result<()> {
        self.first_sync(start)?;
        self.lone_changes()?;
        self.storm()?;
        self.idle()?;
        self.connections()
    }

    /// The endpoints that there are by now.
    fn wanted(&self) -> usize {
        self.settings.services as usize * self.settings.endpoints as usize - self.fewer.len()
    }

    /// Waits for the first sync since the start: until it is reported, and all is in the kernel.
    fn synced(&self, start: Instant) -> Result<Duration> {
        loop {
            ensure!(start.elapsed() < PATIENCE, "no sync within {PATIENCE:?}");
            // Each look costs the program a page of metrics, so long syncs are looked at less often.
            thread::sleep((start.elapsed() / 100).max(Duration::from_millis(5)));
            status_kb(self.pid, "VmRSS")?;
            if metric(SYNCS) == 0.0 {
                continue;
            }
            let elapsed = start.elapsed();
            if kernel::count(self.settings.dataplane)?.1 == self.wanted() {
                return Ok(elapsed);
            }
        }
    }

    /// A new process finds what the last one left. Only nf_tables counts transactions.
    fn restart(&mut self, start: Instant, before: u64) -> Result<()> {
        let elapsed = self.synced(start)?;
        let transactions = match self.settings.dataplane {
            Dataplane::Nft | Dataplane::Nftables => (self.stamps.now()? - before) as f64,
            Dataplane::Legacy | Dataplane::Ipvs => f64::NAN,
        };
        self.values.extend([elapsed.as_secs_f64(), transactions, self.megabytes("VmHWM")?]);
        Ok(())
    }

    fn first_sync(&mut self, start: Instant) -> Result<()> {
        let elapsed = self.synced(start)?;
        self.values.extend([elapsed.as_secs_f64(), self.megabytes("VmRSS")?, self.megabytes("VmHWM")?]);
        self.values.push(self.children.peak_kb() as f64 / 1024.0);
        self.values.extend([cpu_time(self.pid)?.as_secs_f64(), children_cpu_time(self.pid)?]);
        self.values.push((self.source.received() - self.received) / 1e6);
        self.values.push(kernel::count(self.settings.dataplane)?.0 as f64);
        Ok(())
    }

    fn megabytes(&self, field: &str) -> Result<f64> {
        Ok(status_kb(self.pid, field)? as f64 / 1024.0)
    }

    /// Takes an endpoint from a random Service, or gives it back.
    fn change(&mut self, number: u32, fewer: bool) -> Result<()> {
        let mut slice = load_slice(number, self.settings.endpoints, ELSEWHERE);
        if fewer && let Some(endpoints) = slice["endpoints"].as_array_mut() {
            endpoints.pop();
        }
        self.source.replace(slice)
    }

    fn pick(&mut self) -> u32 {
        u32::try_from(self.random.below(self.settings.services.into())).unwrap_or_default()
    }

    fn lone_changes(&mut self) -> Result<()> {
        let rest = self.rest()?;
        self.settle(rest)?;
        let (before, operations) = (cpu_time(self.pid)?, metric(OPERATIONS));
        let mut times = Vec::new();
        for _ in 0..self.settings.lone.div_ceil(2) {
            let number = self.pick();
            for fewer in [true, false] {
                thread::sleep(BETWEEN_LONE);
                let address = load_address(number);
                let stamp = self.stamps.of(address)?;
                let start = Instant::now();
                self.change(number, fewer)?;
                self.source.finish()?;
                while self.stamps.of(address)? == stamp {
                    ensure!(start.elapsed() < Duration::from_secs(60), "a change did not arrive");
                    thread::sleep(Duration::from_micros(100));
                }
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        thread::sleep(BETWEEN_LONE);
        times.sort_by(f64::total_cmp);
        let spent = (cpu_time(self.pid)? - before).as_secs_f64() * 1e3 / times.len() as f64;
        self.values.extend([percentile(&times, 50), percentile(&times, 99)]);
        self.values.push(match self.settings.dataplane {
            Dataplane::Ipvs => (metric(OPERATIONS) - operations) / times.len() as f64,
            // `e2e/limits` counts them.
            Dataplane::Nftables => f64::NAN,
            Dataplane::Nft | Dataplane::Legacy => {
                metric("kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"}")
            }
        });
        self.values.push(spent);
        Ok(())
    }

    fn storm(&mut self) -> Result<()> {
        let (before, syncs_before) = (cpu_time(self.pid)?, metric(SYNCS));
        let received = self.source.received();
        let start = Instant::now();
        for number in 0..self.settings.storm {
            let service = self.pick();
            if !self.fewer.remove(&service) {
                self.fewer.insert(service);
            }
            self.change(service, self.fewer.contains(&service))?;
            let due = start + Duration::from_secs_f64(f64::from(number) / f64::from(self.settings.rate));
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        self.source.finish()?;
        let end = Instant::now();
        let mut rest = self.rest()?;
        loop {
            rest = self.settle(rest)?;
            let (found, wanted) = (kernel::count(self.settings.dataplane)?.1, self.wanted());
            if found == wanted {
                break;
            }
            ensure!(
                rest.since.elapsed() < STORM_PATIENCE,
                "{found} endpoints in the kernel after the storm, not {wanted}"
            );
        }
        let lag = rest.since.saturating_duration_since(end);
        let spent = (cpu_time(self.pid)? - before).as_secs_f64() * 1e3 / f64::from(self.settings.storm);
        let received = (self.source.received() - received) / 1e3 / f64::from(self.settings.storm);
        self.values.extend([spent, received, metric(SYNCS) - syncs_before, lag.as_secs_f64()]);
        self.values.extend([self.megabytes("VmRSS")?, self.megabytes("VmHWM")?]);
        self.values.push(self.children.peak_kb() as f64 / 1024.0);
        Ok(())
    }

    fn rest(&mut self) -> Result<Rest> {
        Ok(Rest { stamp: self.stamps.now()?, since: Instant::now() })
    }

    /// Watches for a while, and until the kernel has not changed for so long; when it last did.
    fn settle(&mut self, mut rest: Rest) -> Result<Rest> {
        let begun = Instant::now();
        while begun.max(rest.since).elapsed() < CALM {
            thread::sleep(Duration::from_millis(20));
            let now = self.rest()?;
            if now.stamp != rest.stamp {
                rest = now;
            }
            ensure!(begun.elapsed() < PATIENCE, "the kernel is never at rest");
        }
        Ok(rest)
    }

    fn idle(&mut self) -> Result<()> {
        let before = cpu_time(self.pid)?;
        let watched = Duration::from_secs(self.settings.idle_seconds);
        thread::sleep(watched);
        let spent = cpu_time(self.pid)? - before;
        self.values.push(spent.as_secs_f64() / watched.as_secs_f64() * 100.0);
        Ok(())
    }

    fn connections(&mut self) -> Result<()> {
        let picks: Vec<u32> = (0..self.settings.connections).map(|_| self.pick()).collect();
        let empty = |number: &u32| self.settings.endpoints == 1 && self.fewer.contains(number);
        let served = picks.into_iter().filter(|number| !empty(number));
        let addresses: Vec<_> = served.map(|number| SocketAddrV4::new(load_address(number), 80)).collect();
        let listener = kernel::listen()?;
        kernel::connect_times(&listener, addresses.iter().copied().take(200))?;
        let times = kernel::connect_times(&listener, addresses.into_iter())?;
        let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        self.values.extend([percentile(&times, 50), percentile(&times, 99)]);
        Ok(())
    }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// The sum of the series of `/metrics` that begin so; 0 where there is none.
fn metric(name: &str) -> f64 {
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().unwrap_or_default();
    let series = text.lines().filter(|line| line.starts_with(name));
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

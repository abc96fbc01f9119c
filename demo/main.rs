//! `make demo`: a throw-away node in network namespaces, the real program on it, real requests
//! through it. Everything it makes is gone when it ends, also after Ctrl-C.
#![allow(clippy::disallowed_methods, reason = "a demonstration may look at the clock")]

mod paint;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube_proxy_rs::config::Mode;
use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::Place;
use kube_proxy_rs::testing::proxy::{Flavor, Folder, Launch, Proxy, metric_sum, metrics, save};
use kube_proxy_rs::testing::traffic::{Answer, Client};
use paint::Paint;
use tokio::signal::unix::{SignalKind, signal};

/// The file inside the watched folder.
const MANIFEST: &str = "shop.yaml";
/// Requests per picture.
const REQUESTS: usize = 90;
/// Long, for machines that are emulated.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let Some(binary) = std::env::args().nth(1) else {
        eprintln!("usage: demo PATH-OF-KUBE-PROXY-RS (or simply: make demo)");
        return ExitCode::from(2);
    };
    let name = std::env::args().nth(2).unwrap_or_else(|| "iptables".to_owned());
    let Some(mode) = Mode::named(&name) else {
        eprintln!("MODE={name}: it is one of {}", Mode::ALL.map(Mode::as_str).join(", "));
        return ExitCode::from(2);
    };
    match show(binary, mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demonstration on a thread of its own, so that signals are seen meanwhile: whatever
/// ends it, its guards clean up.
fn show(binary: String, mode: Mode) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let show = thread::spawn({
        let interrupted = Arc::clone(&interrupted);
        move || Demo { paint: Paint::for_stdout(), interrupted, mode }.run(&binary)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while !show.is_finished() {
            tokio::select! {
                _ = interrupt.recv() => interrupted.store(true, Ordering::Relaxed),
                _ = terminate.recv() => interrupted.store(true, Ordering::Relaxed),
                _ = look.tick() => {}
            }
        }
        anyhow::Ok(())
    })?;
    match show.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

struct Demo {
    paint: Paint,
    interrupted: Arc<AtomicBool>,
    mode: Mode,
}

impl Demo {
    fn run(&self, binary: &str) -> Result<()> {
        self.paint.title("kube-proxy-rs: a node, five pods and an outside client, in network namespaces");
        let started = Instant::now();
        let lab = Lab::create()?;
        let folder = Folder::create()?;
        folder.write(MANIFEST, &example("shop.yaml")?)?;
        self.paint.say(&format!("built them in {}", seconds(started.elapsed())));

        self.paint.title("1. The shop opens: kube-proxy-rs --manifests examples/shop.yaml");
        let started = Instant::now();
        let mode = format!("--proxy-mode={}", self.mode.as_str());
        let launch = Launch { binary, namespace: lab.node(), flavor: Flavor::Nft, flags: &[&mode] };
        let mut proxy = launch.start_on(&[folder.path()])?;
        self.wait_for(&lab, &mut proxy, "local-1")?;
        self.paint.say(&format!(
            "first answer through the cluster IP {} after its start",
            seconds(started.elapsed())
        ));
        self.pictures(&lab)?;
        self.checkout(&lab)?;

        self.paint.title("2. A moment later: local-2 goes, remote-2 comes, checkout gets a pod");
        let changed = Instant::now();
        folder.write(MANIFEST, &example("shop-later.yaml")?)?;
        self.wait_for(&lab, &mut proxy, "remote-2")?;
        let after = seconds(changed.elapsed());
        self.paint.say(&format!("remote-2 answered {after} after examples/shop-later.yaml was in place"));
        self.pictures(&lab)?;
        self.checkout(&lab)?;

        self.kernel(&lab)?;

        self.paint.title("4. What it says of itself: /metrics");
        self.sync_times(&lab)?;
        drop(proxy);
        drop(lab);
        self.paint.title("Everything is cleaned up again.");
        Ok(())
    }

    /// What is programmed.
    fn kernel(&self, lab: &Lab) -> Result<()> {
        match self.mode {
            Mode::Iptables => {
                self.paint.title("3. What is in the kernel: iptables-save | grep shop/web:http");
                let saved = save(Flavor::Nft, lab.node(), false)?;
                saved
                    .lines()
                    .filter(|line| line.contains("shop/web:http"))
                    .for_each(|line| self.paint.code(line));
            }
            Mode::Ipvs => {
                self.paint.title("3. What is in the kernel: ipvsadm -Ln");
                lab.node().output("ipvsadm", &["-Ln"])?.lines().for_each(|line| self.paint.code(line));
            }
            Mode::Nftables => {
                self.paint.title("3. What is in the kernel: nft list map ip kube-proxy service-endpoints");
                let listed =
                    lab.node().output("nft", &["list", "map", "ip", "kube-proxy", "service-endpoints"])?;
                listed.lines().for_each(|line| self.paint.code(line));
            }
        }
        Ok(())
    }

    /// The spread over the endpoints for every way in.
    fn pictures(&self, lab: &Lab) -> Result<()> {
        let v4 = |address: [u8; 4], port| SocketAddr::new(IpAddr::from(address), port);
        let v6 = SocketAddr::new(IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10]), 80);
        for (who, what, destination) in [
            (Place::LocalClient, "cluster IP", v4([10, 96, 0, 10], 80)),
            (Place::Outside, "node port", v4([10, 200, 0, 11], 30080)),
            (Place::Outside, "load-balancer IP", v4([203, 0, 113, 10], 80)),
            (Place::LocalClient, "cluster IP", v6),
        ] {
            let client = self.client(lab, who, destination)?;
            let answers = client.ask_many(Protocol::Tcp, destination, REQUESTS);
            self.paint.spread(&format!("{} to {what} {destination}", who.name()), &answers);
        }
        Ok(())
    }

    fn checkout(&self, lab: &Lab) -> Result<()> {
        let destination = SocketAddr::new(IpAddr::from([10, 96, 0, 11]), 80);
        let client = self.client(lab, Place::LocalClient, destination)?;
        let started = Instant::now();
        let outcome = match client.ask(Protocol::Tcp, destination) {
            Answer::Answered { pod, .. } => format!("answered by {pod}"),
            Answer::Refused => "refused, because it has no endpoints".to_owned(),
            Answer::Silence => "not answered".to_owned(),
            Answer::Failed(why) => why,
        };
        let elapsed = seconds(started.elapsed());
        self.paint.say(&format!("client to checkout's cluster IP {destination}: {outcome}, in {elapsed}"));
        Ok(())
    }

    /// Asks the shop's cluster IP until this pod has answered, in both families.
    fn wait_for(&self, lab: &Lab, proxy: &mut Proxy, pod: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let addresses = [IpAddr::from([10, 96, 0, 10]), IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10])];
        for address in addresses {
            let destination = SocketAddr::new(address, 80);
            let client =
                self.client(lab, Place::LocalClient, destination)?.patience(Duration::from_millis(300));
            let came = |answer: Answer| matches!(answer, Answer::Answered { pod: name, .. } if name == pod);
            while !client.ask_many(Protocol::Tcp, destination, 4).into_iter().any(came) {
                self.stop_if_interrupted()?;
                if !proxy.is_running() || Instant::now() > deadline {
                    bail!("{pod} has not answered; the program's log:\n{}", proxy.log_tail());
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn client<'a>(&self, lab: &'a Lab, who: Place, to: SocketAddr) -> Result<Client<'a>> {
        self.stop_if_interrupted()?;
        Ok(lab.client(who, IpFamily::of(to.ip())))
    }

    fn stop_if_interrupted(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted; everything is cleaned up");
        }
        Ok(())
    }

    fn sync_times(&self, lab: &Lab) -> Result<()> {
        let text = metrics(lab.node())?;
        let lines = text.lines().filter(|line| {
            line.starts_with("kubeproxy_sync_proxy_rules_duration_seconds_")
                && (line.contains("_sum") || line.contains("_count"))
        });
        lines.for_each(|line| self.paint.code(line));
        let name = "kubeproxy_sync_proxy_rules_duration_seconds";
        let count = metric_sum(&text, &format!("{name}_count"));
        if count > 0.0 {
            let mean = metric_sum(&text, &format!("{name}_sum")) / count;
            self.paint
                .say(&format!("{count} passes over both families, {:.0} ms each on average", mean * 1000.0));
        }
        Ok(())
    }
}

fn example(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn seconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1000.0;
    if milliseconds < 1000.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{:.2} s", milliseconds / 1000.0)
    }
}

//! Being a service proxy: sources, loop and servers, and their end.

use super::control_socket::Asked;
use super::dataplanes::{self, Dataplanes};
use super::readiness_taint::ReadinessTaint;
use super::reload::Watched;
use super::servers::{self, Facts, Observed};
use super::sole::Sole;
use super::source::{self, Feed, Source};
use super::{conntrack, control_socket, signals, supervisor};
use crate::backend::{self, cleanup};
use crate::config::{CommandLine, Config, DetectLocal, Effective, Mode};
use crate::health::{Clock, Now, ProxyHealth, ServicePorts};
use crate::http::{SlotLimits, Slots};
use crate::kernel::iptables::Flavor;
use crate::kernel::nfacct::Nfacct;
use crate::kernel::{memory, process};
use crate::metrics::Metrics;
use crate::model::{IpFamily, NodeFacts, ObjectKind, PerFamily, WatchEvent};
use crate::state::Tracker;
use crate::sync::{MetricsRecorder, Periods, PostSync, Query, Runner, since_1970};
use anyhow::{Error, Result, anyhow, bail};
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// Events on their way from a source to the loop; a full channel makes the source wait.
const CHANNEL: usize = 1024;
/// How long to wait for our Node object and its addresses before going on without (kube-proxy).
const NODE_WAIT: Duration = Duration::from_secs(30);
/// How long to wait for the Node's pod networks where rules depend on them (kube-proxy).
const POD_CIDR_WAIT: Duration = Duration::from_secs(330);
/// A full sync for good measure comes at least this often (kube-proxy).
const FULL_SYNC_PERIOD: Duration = Duration::from_secs(3600);
/// What a process may have at least, unless it was made to have less.
const FEW_DESCRIPTORS: u64 = 1024;

/// Runs until a signal or a reason to be restarted.
pub(super) async fn run(config: Config, line: CommandLine, effective: Effective) -> Result<ExitCode> {
    let signalled = signals::until_end()?;
    let left = tokio::select! {
        code = serve(config, line, effective) => code,
        signal = signalled => Ok(leave(signal)),
    };
    supervisor::leaving();
    left
}

fn leave(signal: &str) -> ExitCode {
    tracing::info!(signal, "leaving; the rules stay and go on working");
    ExitCode::SUCCESS
}

#[expect(clippy::disallowed_methods, reason = "the program's one clock")]
pub(super) fn clock() -> Clock {
    Arc::new(|| Now { steady: Instant::now(), wall: SystemTime::now() })
}

/// First all that can be wrong is looked at, then we make sure that we are alone, and then others see and hear of us.
/// The node itself is changed last, once it is known what runs here.
async fn serve(config: Config, line: CommandLine, effective: Effective) -> Result<ExitCode> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_name,
        mode = config.mode.as_str(),
        "starting"
    );
    let clock = clock();
    let started = clock().wall;
    let metrics = Arc::new(metrics(config.mode)?);
    let configz = effective.to_configz().map_err(anyhow::Error::msg)?;
    let (sender, events) = mpsc::channel(CHANNEL);
    let opened = source::open(&config, &metrics, &sender).await?;
    let sole = Sole::claim().await?;
    set_oom_score(config.oom_score_adj);
    let health = Arc::new(ProxyHealth::new(config.sync.period));
    let slots = slots();
    let mut post_sync = post_sync(&health, &metrics, &clock, &slots);
    let (asker, queries) = mpsc::channel(control_socket::QUERIES);
    let asked = Asked {
        queries: asker,
        health: health.clone(),
        clock: clock.clone(),
        started,
        configz: configz.as_str().into(),
        metrics: metrics.clone(),
    };
    let control = control_socket::serve(&config, asked.clone());
    let facts = Facts { pages: asked.pages(), configz, flags: line.values.clone(), started, slots };
    let watched = Watched::new(line, effective);
    let observed = Observed { health: health.clone(), metrics: metrics.clone(), clock: clock.clone() };
    let Feed { source, events: notices, client } = source::start(opened, &config, sender, &observed)?;
    let taint = readiness_taint(&config, client, post_sync.working());
    let supervised = supervisor::report(health.clone(), clock.clone());
    let servers = servers::serve(&config, facts, observed, notices.clone());
    let records = MetricsRecorder::new(metrics.clone(), health.clone(), clock.clone())
        .telling(Box::new(move |notice| notices.tell(notice)));
    let tracker = tracker(&config, started);
    let program = Program { config: &config, tracker, events, queries, records, post_sync, metrics };
    tokio::select! {
        ended = program.run() => {
            ended?;
            Err(why_it_ended(source).await)
        }
        never = control => match never {},
        never = sole.describe(&config, started) => match never {},
        failed = servers => failed.map(|()| ExitCode::FAILURE),
        never = taint => match never {},
        never = supervised => match never {},
        changed = watched.ask_for_restart() => {
            bail!("the configuration file changed ({}); a restart puts it in force, the rules stay", changed.join(", "));
        }
    }
}

fn tracker(config: &Config, started: SystemTime) -> Tracker {
    let started = i64::try_from(since_1970(started).as_millis()).unwrap_or(i64::MAX);
    let is_known = !config.sources.manifests.is_empty();
    let node = NodeFacts { name: config.node_name.as_str().into(), is_known, ..NodeFacts::default() };
    Tracker::new(node, started).reserving(dataplanes::reserved(config)).limiting(dataplanes::limits(config))
}

/// Without a source there is nothing to do.
async fn why_it_ended(source: Source) -> Error {
    match source.await {
        Ok(Err(error)) => error,
        Err(error) => Error::new(error).context("the source of objects ended"),
        Ok(Ok(())) => anyhow!("the source of objects ended"),
    }
}

/// Takes the readiness taint away when its time has come, if there is one. Never ends.
fn readiness_taint(
    config: &Config,
    client: Option<kube::Client>,
    working: oneshot::Receiver<()>,
) -> impl Future<Output = Infallible> + use<> {
    let taint = client.zip(config.node_readiness_taint.clone());
    let node = config.node_name.clone();
    async move {
        match taint {
            Some((client, key)) => ReadinessTaint { client, node, key }.remove_when(working).await,
            None => std::future::pending().await,
        }
    }
}

/// Gives back code that will not run again: that of the start, before the first sync takes its memory, and that of the first sync.
fn give_back_code() {
    if let Err(error) = memory::give_back_code() {
        tracing::debug!(error = format!("{error:#}"), "cannot give back memory that only the start needed");
    }
}

fn set_oom_score(score: i32) {
    if let Err(error) = process::set_oom_score_adj(score) {
        tracing::debug!(
            error = format!("{error:#}"),
            "cannot set oom_score_adj; the kernel may end the proxy early when memory runs out"
        );
    }
}

/// What the servers may use of our file descriptors, after their number was raised.
fn slots() -> Arc<Slots> {
    let descriptors = process::raise_descriptor_limit().unwrap_or_else(|error| {
        tracing::warn!(
            error = format!("{error:#}"),
            "cannot raise the limit of open files; fewer connections at a time are served"
        );
        FEW_DESCRIPTORS
    });
    Slots::new(SlotLimits::within(descriptors))
}

fn metrics(mode: Mode) -> Result<Metrics> {
    let shown = backend::open(mode).facts().metrics;
    let metrics = Metrics::new(shown, crate::config::BUILD, Box::new(|| process::read().ok()))?;
    if Nfacct::probe().is_ok() {
        metrics.register_accounting(&(Arc::new(accounted) as _))?;
    }
    Ok(metrics)
}

/// What follows from rules being in force.
fn post_sync(
    health: &Arc<ProxyHealth>,
    metrics: &Arc<Metrics>,
    clock: &Clock,
    slots: &Arc<Slots>,
) -> PostSync {
    let ports = PerFamily::build(|_| ServicePorts::new(health.clone(), clock.clone(), slots.clone()));
    let post_sync = PostSync::default().with_service_ports(ports);
    match conntrack::reconciler(metrics.clone()) {
        Some(reconciler) => post_sync.with_conntrack(reconciler),
        None => post_sync,
    }
}

/// The loop's parts, before it is known which dataplanes this node can run.
struct Program<'a> {
    config: &'a Config,
    tracker: Tracker,
    events: mpsc::Receiver<WatchEvent>,
    queries: mpsc::Receiver<Query>,
    records: MetricsRecorder,
    post_sync: PostSync,
    metrics: Arc<Metrics>,
}

impl Program<'_> {
    /// Programs the kernel until the source of objects is gone.
    async fn run(mut self) -> Result<()> {
        if !await_node(self.config, &mut self.tracker, &mut self.events).await? {
            return Ok(());
        }
        let node = self.tracker.snapshot().node.clone();
        let planes = Dataplanes::open(self.config, &node, &self.metrics).await?;
        give_back_code();
        self.drive(planes).await
    }

    /// The loop, on whichever dataplane.
    async fn drive(self, planes: Dataplanes) -> Result<()> {
        let Program { config, tracker, mut events, queries, records, mut post_sync, .. } = self;
        let identity = planes.identity(config);
        let afterwards = after_first_sync(config, planes.flavors, post_sync.standing());
        let periods =
            Periods { sync: config.sync.period, min: config.sync.min_period, full: FULL_SYNC_PERIOD };
        let mut runner = Runner::new(tracker, planes.families, periods, records)
            .followed_by(post_sync)
            .answering(identity, queries);
        tokio::select! { () = runner.run(&mut events) => Ok(()), never = afterwards => match never {} }
    }
}

/// What is done once, when our rules stand, and when the last connection that was open then has ended. Never ends, so that
/// it can run beside the loop.
async fn after_first_sync(
    config: &Config,
    flavors: Vec<(IpFamily, Flavor)>,
    standing: oneshot::Receiver<()>,
) -> Infallible {
    if standing.await.is_ok() {
        let is_in_use = cleanup::after_first_sync(config, flavors).await;
        give_back_code();
        if is_in_use {
            cleanup::once_connections_end(config).await;
        }
    }
    std::future::pending().await
}

/// Folds events until what is needed of our Node is known, or will not be. `false` when the source
/// is gone.
async fn await_node(
    config: &Config,
    tracker: &mut Tracker,
    events: &mut mpsc::Receiver<WatchEvent>,
) -> Result<bool> {
    let needs_pod_cidrs = config.detect_local == DetectLocal::NodeCidr;
    let patience = match (config.sources.manifests.is_empty(), needs_pod_cidrs) {
        (false, _) => Duration::ZERO,
        (true, false) => NODE_WAIT,
        (true, true) => POD_CIDR_WAIT,
    };
    let mut deadline = None;
    loop {
        let node = &tracker.snapshot().node;
        let waits_for_pod_cidrs = needs_pod_cidrs && node.pod_cidrs.is_empty();
        if !(node.addresses.is_empty() || waits_for_pod_cidrs) {
            return Ok(true);
        }
        if tracker.has_listed(ObjectKind::Node) {
            let patience_ends = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + patience);
            match tokio::time::timeout_at(patience_ends, events.recv()).await {
                Ok(Some(event)) => tracker.fold(event),
                Ok(None) => return Ok(false),
                Err(_) => return node_is_missing(config, node, needs_pod_cidrs),
            }
        } else {
            match events.recv().await {
                Some(event) => tracker.fold(event),
                None => return Ok(false),
            }
        }
    }
}

fn node_is_missing(config: &Config, node: &NodeFacts, needs_pod_cidrs: bool) -> Result<bool> {
    let name = &config.node_name;
    if needs_pod_cidrs {
        bail!("--detect-local-mode=NodeCIDR needs spec.podCIDRs of Node {name}, which are not there");
    }
    if node.addresses.is_empty() {
        let hint = "its own addresses are unknown; --bind-address can give one, --hostname-override its name";
        tracing::warn!(node = %name, hint, "there is no Node object with an address");
    }
    Ok(true)
}

fn accounted(counter: &str) -> Option<u64> {
    Nfacct::probe().ok()?.get(counter).ok()?.map(|counter| counter.packets)
}

/// The privileged part of the start: sysctls and counters.
pub(super) async fn init_only(config: Config) -> Result<ExitCode> {
    let metrics = Arc::new(metrics(config.mode)?);
    Dataplanes::open(&config, &NodeFacts::default(), &metrics).await?;
    Ok(ExitCode::SUCCESS)
}

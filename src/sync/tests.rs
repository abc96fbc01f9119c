//! The loop, on paused time and an in-memory iptables.

use super::*;
use crate::backend::Deviation;
use crate::backend::iptables::{Features, Iptables};
use crate::health::PortTaken;
use crate::kernel::fake::iptables::FakeXtables;
use crate::kernel::iptables::Flavor;
use crate::model::{Cidr, IpFamily, NodeFacts, ObjectKind, Snapshot, SourceProblem, WatchEvent};
use crate::plan::{FamilySettings, LocalDetector, NodePortAddresses};
use crate::state::{FrontendConflict, OverBound, ReservedClaim, Tracker};
use crate::testing::cluster;
use crate::testing::generate::Generator;
use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// Remembers what it is told, with the time since the start.
#[derive(Clone)]
struct Diary {
    start: Instant,
    entries: Rc<RefCell<Vec<(Duration, String)>>>,
}

impl Diary {
    fn new() -> Self {
        Diary { start: Instant::now(), entries: Rc::default() }
    }

    fn note(&self, entry: String) {
        self.entries.borrow_mut().push((self.start.elapsed(), entry));
    }

    /// When entries that begin so were made, in milliseconds.
    fn times(&self, prefix: &str) -> Vec<u128> {
        let entries = self.entries.borrow();
        let matching = entries.iter().filter(|(_, entry)| entry.starts_with(prefix));
        matching.map(|(time, _)| time.as_millis()).collect()
    }
}

impl Recorder for Diary {
    fn queued(&mut self, _: IpFamily) {
        self.note("queued".to_owned());
    }

    fn passed(&mut self, report: &SyncReport) {
        let outcome = match &report.outcome {
            PassOutcome::Done(_) => "done",
            PassOutcome::Failed(_) => "failed",
        };
        self.note(format!("{outcome} {:?} {}", report.kind, report.services));
    }

    fn post_synced(&mut self, _: IpFamily, result: &PostSyncResult) {
        if *result != PostSyncResult::default() {
            self.note(format!("post-sync: {result:?}"));
        }
    }

    fn taken(&mut self, taken: &[PortTaken]) {
        if !taken.is_empty() {
            self.note(format!("taken: {taken:?}"));
        }
    }

    fn verified(&mut self, _: IpFamily, found: &[Deviation]) {
        if !found.is_empty() {
            self.note(format!("drifted: {found:?}"));
        }
    }

    fn unverified(&mut self, _: IpFamily, error: &anyhow::Error) {
        self.note(format!("unverified: {error}"));
    }

    fn conflicts(&mut self, conflicts: &[FrontendConflict]) {
        conflicts.iter().for_each(|conflict| self.note(format!("conflict: {conflict}")));
    }

    fn over_bounds(&mut self, over: &[OverBound]) {
        over.iter().for_each(|it| self.note(format!("over: {it}")));
    }

    fn claims(&mut self, claims: &[ReservedClaim]) {
        claims.iter().for_each(|claim| self.note(format!("claim: {claim}")));
    }

    fn doubted(&mut self, tracker: &Tracker) {
        let count = tracker.refused_endpoints().count();
        if count > 0 {
            self.note(format!("doubted: {count}"));
        }
    }

    fn problems(&mut self, _: &[SourceProblem]) {}

    fn node(&mut self, _: &NodeFacts) {}

    fn seen(&mut self, _: u64, _: u64, _: usize) {}
}

fn runner(tools: FakeXtables, diary: &Diary) -> Runner<Diary> {
    let backend = Iptables::new(tools, IpFamily::V4, Features::default());
    let settings = FamilySettings::new(IpFamily::V4);
    runner_of(FamilySync::new(Box::new(backend), settings, Box::new(|_| Ok(Vec::new()))), diary)
}

fn runner_of(family: FamilySync, diary: &Diary) -> Runner<Diary> {
    let periods = Periods {
        sync: Duration::from_secs(30),
        min: Duration::from_secs(1),
        full: Duration::from_secs(3600),
    };
    Runner::new(Tracker::default(), vec![family], periods, diary.clone())
}

impl<R> Runner<R> {
    /// The in-memory tools of the only family.
    pub(super) fn tools(&mut self) -> &mut FakeXtables {
        let dataplane: &mut dyn Any = self.dataplane();
        dataplane.downcast_mut::<Iptables<FakeXtables>>().unwrap().tools()
    }
}

/// Runs the loop while `script` feeds it, and until the script ends.
async fn play(
    tools: FakeXtables,
    script: impl AsyncFnOnce(mpsc::Sender<WatchEvent>),
) -> (Diary, Runner<Diary>) {
    let diary = Diary::new();
    let mut runner = runner(tools, &diary);
    let (sender, mut events) = mpsc::channel(1024);
    tokio::join!(runner.run(&mut events), script(sender));
    (diary, runner)
}

async fn send(sender: &mpsc::Sender<WatchEvent>, event: WatchEvent) {
    sender.send(event).await.unwrap();
}

async fn complete(sender: &mpsc::Sender<WatchEvent>) {
    send(sender, WatchEvent::Listed(ObjectKind::Service)).await;
    send(sender, WatchEvent::Listed(ObjectKind::EndpointSlice)).await;
}

/// A change that is one for sure.
async fn change(sender: &mpsc::Sender<WatchEvent>, zone: &str) {
    let node = NodeFacts { zone: Some(zone.into()), ..NodeFacts::default() };
    send(sender, WatchEvent::Node(Arc::new(node))).await;
}

async fn change_services(sender: &mpsc::Sender<WatchEvent>, generator: &mut Generator, count: usize) {
    for _ in 0..count {
        send(sender, generator.event()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_programmed_before_the_first_full_picture() {
    let (diary, mut runner) = play(FakeXtables::default(), async |sender| {
        send(&sender, WatchEvent::Listed(ObjectKind::Service)).await;
        change_services(&sender, &mut Generator::new(1), 20).await;
        sleep(Duration::from_secs(7200)).await;
    })
    .await;
    assert!(diary.entries.borrow().is_empty());
    assert_eq!(runner.tools().tables, FakeXtables::default().tables);
}

#[tokio::test(start_paused = true)]
async fn services_work_once_all_was_synced_and_found_so_in_the_kernel() {
    let mut post_sync = PostSync::default();
    let mut working = post_sync.working();
    let mut runner = runner(FakeXtables::default(), &Diary::new()).followed_by(post_sync);
    let (sender, mut events) = mpsc::channel(1024);
    let script = async move {
        sleep(Duration::from_secs(11)).await;
        assert!(working.try_recv().is_err(), "checked, but nothing was synced");
        complete(&sender).await;
        sleep(Duration::from_millis(1)).await;
        assert!(working.try_recv().is_err(), "synced, but not checked");
        sleep(Duration::from_secs(5)).await;
        assert!(working.try_recv().is_ok());
    };
    tokio::join!(runner.run(&mut events), script);
}

#[tokio::test(start_paused = true)]
async fn the_first_pass_comes_at_once_even_for_an_empty_cluster() {
    let (diary, ..) = play(FakeXtables::default(), async |sender| {
        complete(&sender).await;
        sleep(Duration::from_millis(1)).await;
    })
    .await;
    assert_eq!(diary.times("done Full"), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_first_change_is_served_at_once_and_later_ones_together_after_the_minimum_period() {
    let (diary, ..) = play(FakeXtables::default(), async |sender| {
        complete(&sender).await;
        sleep(Duration::from_secs(10)).await;
        change(&sender, "a").await;
        sleep(Duration::from_millis(100)).await;
        for zone in ["b", "c", "d", "e"] {
            change(&sender, zone).await;
            sleep(Duration::from_millis(200)).await;
        }
        sleep(Duration::from_secs(5)).await;
    })
    .await;
    assert_eq!(diary.times("done"), [0, 10_000, 11_000]);
}

#[tokio::test(start_paused = true)]
async fn changes_of_services_are_partial_passes_and_identical_replays_are_none() {
    let mut generator = Generator::new(4);
    let (diary, ..) = play(FakeXtables::default(), async |sender| {
        complete(&sender).await;
        sleep(Duration::from_secs(2)).await;
        let event = loop {
            let event = generator.event();
            if matches!(event, WatchEvent::Service(_)) {
                break event;
            }
        };
        send(&sender, event.clone()).await;
        sleep(Duration::from_secs(2)).await;
        send(&sender, event).await;
        sleep(Duration::from_secs(60)).await;
    })
    .await;
    assert_eq!(diary.times("done").len(), 2);
    assert_eq!(diary.times("done Partial"), [2000]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_ever_more_slowly_and_nothing_pending_is_lost() {
    let mut tools = FakeXtables::default();
    tools.failures = 2 * 8;
    let (diary, mut runner) = play(tools, async |sender| {
        complete(&sender).await;
        change_services(&sender, &mut Generator::new(9), 60).await;
        sleep(Duration::from_secs(300)).await;
    })
    .await;
    assert_eq!(
        diary.times("failed"),
        [0, 1000, 3000, 7000, 15_000, 31_000, 61_000, 91_000],
        "doubling up to the sync period"
    );
    assert_eq!(diary.times("done Full"), [121_000]);
    assert!(runner.tools().tables["nat"].len() > 12, "the changes made before the failures are in force");
}

#[tokio::test(start_paused = true)]
async fn a_failed_partial_pass_is_followed_by_a_full_one() {
    let diary = Diary::new();
    let mut runner = runner(FakeXtables::default(), &diary);
    let (sender, mut events) = mpsc::channel(1024);
    complete(&sender).await;
    let mut generator = Generator::new(2);
    for failures in [0, 2, 0] {
        runner.tools().failures = failures;
        change_services(&sender, &mut generator, 40).await;
        let pause = tokio::time::timeout(Duration::from_millis(1500), runner.run(&mut events));
        assert!(pause.await.is_err());
    }
    assert_eq!(diary.times("failed Partial").len(), 1);
    assert_eq!(diary.times("done Full").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refused_service_is_tried_again_ever_more_seldom_until_it_is_taken() {
    let diary = Diary::new();
    let mut tools = FakeXtables::default();
    tools.refused = vec!["ns/svc-".to_owned()];
    let mut runner = runner(tools, &diary);
    let (sender, mut events) = mpsc::channel(1024);
    complete(&sender).await;
    change_services(&sender, &mut Generator::new(11), 80).await;
    assert!(tokio::time::timeout(Duration::from_secs(215), runner.run(&mut events)).await.is_err());
    assert_eq!(diary.times("done Full"), [0, 30_000, 90_000, 210_000], "30 s, 60 s, 120 s apart");
    runner.tools().refused.clear();
    assert!(tokio::time::timeout(Duration::from_secs(3000), runner.run(&mut events)).await.is_err());
    assert_eq!(diary.times("done Full")[4..], [450_000]);
    let rules = runner.tools().tables["nat"].values().flatten().filter(|rule| rule.contains("ns/svc-"));
    assert!(rules.count() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_takes_several_passes_gets_them_at_once() {
    let (diary, _) = play(FakeXtables::default(), async |sender| {
        sender.send(cluster::service(1)).await.unwrap();
        sender.send(cluster::slice(1, 4500)).await.unwrap();
        complete(&sender).await;
        sleep(Duration::from_secs(5)).await;
    })
    .await;
    assert_eq!((diary.times("done Full"), diary.times("done Partial")), (vec![0], vec![0; 4]));
}

#[tokio::test(start_paused = true)]
async fn a_flush_from_outside_is_noticed_within_seconds_and_mended_at_once() {
    let diary = Diary::new();
    let mut runner = runner(FakeXtables::default(), &diary);
    let (sender, mut events) = mpsc::channel(1024);
    complete(&sender).await;
    change_services(&sender, &mut Generator::new(5), 60).await;
    assert!(tokio::time::timeout(Duration::from_secs(10), runner.run(&mut events)).await.is_err());
    let good = runner.tools().tables.clone();
    runner.tools().flush("nat");
    assert!(tokio::time::timeout(Duration::from_secs(3), runner.run(&mut events)).await.is_err());
    assert_eq!(diary.times("drifted").len(), 1);
    assert_eq!(runner.tools().tables, good);
}

#[tokio::test(start_paused = true)]
async fn a_rule_in_anothers_place_stands_for_a_sync_period_at_the_most() {
    let diary = Diary::new();
    let mut runner = runner(FakeXtables::new(Flavor::Legacy), &diary);
    let (sender, mut events) = mpsc::channel(1024);
    complete(&sender).await;
    assert!(tokio::time::timeout(Duration::from_secs(60), runner.run(&mut events)).await.is_err());
    let good = runner.tools().tables.clone();
    // As many rules as before: only a thorough look shows it.
    for later in [1, 7, 29, 30] {
        assert!(tokio::time::timeout(Duration::from_secs(later), runner.run(&mut events)).await.is_err());
        let nat = runner.tools().tables.get_mut("nat").unwrap();
        nat.get_mut("KUBE-POSTROUTING").unwrap()[0] = "-j RETURN".to_owned();
        let before = diary.times("drifted").len();
        assert!(tokio::time::timeout(Duration::from_secs(30), runner.run(&mut events)).await.is_err());
        assert_eq!(diary.times("drifted").len(), before + 1);
        assert_eq!(runner.tools().tables, good);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_address_of_the_node_gets_node_ports_where_they_depend_on_addresses() {
    let addresses = Rc::new(RefCell::new(vec!["10.0.0.1".parse().unwrap()]));
    let known = Rc::clone(&addresses);
    let settings = FamilySettings {
        node_port_addresses: NodePortAddresses::Within(vec!["10.0.0.0/8".parse().unwrap()]),
        ..FamilySettings::new(IpFamily::V4)
    };
    let backend = Iptables::new(FakeXtables::default(), IpFamily::V4, Features::default());
    let read = Box::new(move |_| Ok(known.borrow().clone()));
    let diary = Diary::new();
    let mut runner = runner_of(FamilySync::new(Box::new(backend), settings, read), &diary);
    let (sender, mut events) = mpsc::channel(16);
    complete(&sender).await;
    for (new, passes) in [("10.0.0.2", 1), ("192.168.0.1", 2), ("10.0.0.3", 3)] {
        assert!(tokio::time::timeout(Duration::from_secs(60), runner.run(&mut events)).await.is_err());
        assert_eq!(diary.times("done").len(), passes);
        addresses.borrow_mut().push(new.parse().unwrap());
    }
    let rules = runner.tools().rules("nat", "KUBE-SERVICES").join("\n");
    let there =
        ["10.0.0.1", "10.0.0.2", "192.168.0.1", "10.0.0.3"].map(|ip| rules.contains(&format!("-d {ip} ")));
    assert_eq!(there, [true, true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_loop_writes_nothing_for_an_hour_and_then_once_for_good_measure() {
    let (diary, mut runner) = play(FakeXtables::default(), async |sender| {
        complete(&sender).await;
        sleep(Duration::from_secs(3700)).await;
    })
    .await;
    assert_eq!(diary.times("done").len(), 2);
    assert_eq!(runner.tools().inputs.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_loop_ends_with_its_source_and_leaves_the_rules() {
    let (_, mut runner) = play(FakeXtables::default(), async |sender| {
        complete(&sender).await;
        sleep(Duration::from_secs(1)).await;
    })
    .await;
    assert!(!runner.tools().rules("nat", "KUBE-POSTROUTING").is_empty());
}

/// Node ports on the node's primary address, and local pods told by their network.
fn by_node(Snapshot { node, .. }: &Snapshot) -> FamilySettings {
    let own: Vec<Cidr> = node.address(IpFamily::V4).map(Cidr::from).into_iter().collect();
    FamilySettings {
        node_port_addresses: NodePortAddresses::Within(own),
        detector: node.pod_cidrs.first().copied().map(LocalDetector::Cidr),
        ..FamilySettings::new(IpFamily::V4)
    }
}

#[tokio::test(start_paused = true)]
async fn what_rules_depend_on_of_our_node_is_followed_without_a_restart() {
    let diary = Diary::new();
    let backend = Iptables::new(FakeXtables::default(), IpFamily::V4, Features::default());
    let addresses = Box::new(|_| Ok(["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap()).to_vec()));
    let settings = FamilySettings::new(IpFamily::V4);
    let family = FamilySync::new(Box::new(backend), settings, addresses).following(Box::new(by_node));
    let mut runner = runner_of(family, &diary);
    let (sender, mut events) = mpsc::channel(16);
    let node = |address: &str, pods: &str| {
        let (addresses, pod_cidrs) = ([address.parse().unwrap()].into(), [pods.parse().unwrap()].into());
        WatchEvent::Node(Arc::new(NodeFacts { addresses, pod_cidrs, ..NodeFacts::default() }))
    };
    send(&sender, crate::testing::cluster::service(0)).await;
    send(&sender, crate::testing::cluster::slice(0, 2)).await;
    complete(&sender).await;
    for (address, pods) in
        [("10.0.0.1", "10.1.0.0/24"), ("10.0.0.2", "10.1.0.0/24"), ("10.0.0.2", "10.9.0.0/24")]
    {
        send(&sender, node(address, pods)).await;
        assert!(tokio::time::timeout(Duration::from_secs(5), runner.run(&mut events)).await.is_err());
        let nat = runner.tools().tables["nat"].values().flatten().cloned().collect::<Vec<_>>();
        let node_ports = nat.iter().filter(|rule| rule.ends_with("-j KUBE-NODEPORTS"));
        assert!(node_ports.clone().all(|rule| rule.contains(&format!("-d {address} "))), "{nat:#?}");
        assert_eq!(node_ports.count(), 1);
        assert!(nat.iter().any(|rule| rule.contains(&format!("! -s {pods} -j KUBE-MARK-MASQ"))), "{nat:#?}");
    }
    assert_eq!((diary.times("done Full").len(), diary.times("drifted").len()), (3, 0));
}

/// What is in the tables when the loop begins is an earlier process's.
#[tokio::test(start_paused = true)]
async fn an_earlier_process_s_rules_stay_while_nobody_knows_what_the_source_had() {
    let problem = |hides_objects, stands| {
        let (source, reason) = ("shop.yaml".to_owned(), "document 1: line 2: no".to_owned());
        WatchEvent::Problems([SourceProblem { source, reason, hides_objects, stands }].into())
    };
    let (_, mut earlier) = play(FakeXtables::default(), async |sender| {
        complete(&sender).await;
        change_services(&sender, &mut Generator::new(11), 80).await;
        sleep(Duration::from_secs(5)).await;
    })
    .await;
    let left = earlier.tools().clone();
    let (diary, ..) = play(left.clone(), async |sender| {
        send(&sender, problem(true, false)).await;
        complete(&sender).await;
        sleep(Duration::from_secs(120)).await;
        send(&sender, WatchEvent::Problems([].into())).await;
        sleep(Duration::from_secs(2)).await;
    })
    .await;
    assert_eq!(diary.times("failed Full"), [0, 1000, 3000, 7000, 15_000, 31_000, 61_000, 91_000]);
    assert_eq!(diary.times("done Full"), [120_000], "at once when it can be read again");

    // Where it is known, or only one object is in doubt, or nothing was there, there is nothing to wait for.
    for (tools, event) in [
        (left.clone(), problem(true, true)),
        (left.clone(), problem(false, false)),
        (FakeXtables::default(), problem(true, false)),
    ] {
        let (diary, ..) = play(tools, async |sender| {
            send(&sender, event).await;
            complete(&sender).await;
            sleep(Duration::from_secs(1)).await;
        })
        .await;
        assert_eq!(diary.times("done Full"), [0]);
    }

    // Nor later on, when all that is in the kernel is our own.
    let (diary, mut runner) = play(FakeXtables::default(), async |sender| {
        complete(&sender).await;
        change_services(&sender, &mut Generator::new(11), 80).await;
        sleep(Duration::from_secs(5)).await;
        send(&sender, problem(true, false)).await;
        change(&sender, "a").await;
        sleep(Duration::from_secs(4000)).await;
    })
    .await;
    assert_eq!(diary.times("failed"), [0; 0]);
    assert!(runner.tools().tables["nat"].len() > 12);
}

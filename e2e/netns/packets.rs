//! The packet table, sent for real.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{
    Flow, Packet, PacketCase, Place, ServedBy, Share, Source, Verdict, cases_by_flags, pod_side_address,
};
use kube_proxy_rs::testing::proxy::{Flavor, Launch};
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;

use crate::BINARY;

/// How long silence must last to count as dropped.
const DROPPED: Duration = Duration::from_secs(1);
/// Cases whose packets are sent side by side.
const PARALLEL: usize = 4;

#[rstest]
fn every_packet_goes_where_the_table_says(
    #[values(Flavor::Nft, Flavor::Legacy)] flavor: Flavor,
    #[values(IpFamily::V4, IpFamily::V6)] family: IpFamily,
    #[values("--iptables-dispatch-tree-threshold=100000", "--iptables-dispatch-tree-threshold=0")] form: &str,
) {
    let lab = Lab::create().unwrap();
    let mut failures = Vec::new();
    // The program is restarted for each set of flags, over the rules it left before: what is
    // stale then must not get in the way of the next cases.
    for (flags, cases) in cases_by_flags() {
        let objects: Vec<_> = cases.iter().flat_map(PacketCase::objects).collect();
        let flags = [flags, &[form]].concat();
        let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags: &flags };
        let mut proxy = launch.start(&objects).unwrap();
        proxy.wait_for_sync(lab.node(), flavor, Duration::from_secs(120)).unwrap();
        failures.extend(send_all(&lab, &cases, family));
        proxy.terminate().unwrap();
    }
    let count = failures.len();
    assert!(failures.is_empty(), "{count} packets went astray:\n{}", failures.join("\n"));
}

/// Sends every packet of every case, several cases side by side, and says which went wrong.
pub(crate) fn send_all(lab: &Lab, cases: &[PacketCase], family: IpFamily) -> Vec<String> {
    let queue = Mutex::new(cases.iter());
    let next = || queue.lock().unwrap().next();
    let work = || {
        let mut failures = Vec::new();
        while let Some(case) = next() {
            failures.extend(send_case(lab, case, family));
        }
        failures
    };
    thread::scope(|scope| {
        let workers: [_; PARALLEL] = std::array::from_fn(|_| scope.spawn(work));
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn send_case(lab: &Lab, case: &PacketCase, family: IpFamily) -> Vec<String> {
    let packets = case.packets.iter().filter(|packet| packet.families.contains(&family));
    packets
        .filter_map(|packet| {
            let complaint = send(lab, case, packet, family).err()?;
            Some(format!("  {}: {} -> {:?}: {complaint}", case.name, packet.from.name(), packet.to))
        })
        .collect()
}

fn send(lab: &Lab, case: &PacketCase, packet: &Packet, family: IpFamily) -> Result<(), String> {
    let flow = case.flow(packet, family);
    let client = lab.client(packet.from, family);
    match &packet.verdict {
        Verdict::Served(ServedBy { by, source, share }) => {
            let probe = Probe {
                flow,
                by,
                source: *source,
                ask: &|count| client.ask_many(flow.protocol, flow.destination, count),
            };
            probe.check(*share, case.shape.affinity_seconds)
        }
        Verdict::Refused | Verdict::Untouched => {
            let mut elapsed = Duration::MAX;
            // A refusal that comes late by rule comes late each time; on a busy machine, now and then.
            for _ in 0..3 {
                let started = Instant::now();
                let answers = client.ask_many(flow.protocol, flow.destination, 2);
                elapsed = elapsed.min(started.elapsed());
                if answers.iter().any(|answer| *answer != Answer::Refused) {
                    return Err(format!("not refused: {answers:?}"));
                }
                if elapsed <= quick(family) {
                    return Ok(());
                }
            }
            Err(format!("refused only after {elapsed:?}"))
        }
        Verdict::Dropped => {
            let answers = client.patience(DROPPED).ask_many(flow.protocol, flow.destination, 2);
            match answers.iter().find(|answer| **answer != Answer::Silence) {
                Some(answer) => Err(format!("not dropped: {answer:?}")),
                None => Ok(()),
            }
        }
    }
}

/// A refusal must not come later than this. IPv4: before a client's first retransmission, at one
/// second. IPv6: before its second; when both ends are in one kernel, the first refusal meets the
/// socket still locked by `connect` and counts as a hint only (as with any `-j REJECT`).
fn quick(family: IpFamily) -> Duration {
    match family {
        IpFamily::V4 => Duration::from_millis(900),
        IpFamily::V6 => Duration::from_millis(2500),
    }
}

/// Requests that must be served, and how.
struct Probe<'a> {
    flow: Flow,
    by: &'a [Place],
    source: Source,
    ask: &'a dyn Fn(usize) -> Vec<Answer>,
}

impl Probe<'_> {
    fn check(&self, share: Share, affinity_seconds: Option<u32>) -> Result<(), String> {
        match share {
            Share::Some => self.check_all_seen(),
            Share::Even => self.check_even(),
            Share::Sticky => self.sticky_pod().map(drop),
            Share::StickyUntilTimeout => self.check_expiry(affinity_seconds.unwrap_or_default()),
        }
    }

    /// The pods that answered `count` requests; an error when one is not meant to or saw the
    /// wrong source address.
    fn pods(&self, count: usize) -> Result<Vec<String>, String> {
        let names = (self.ask)(count).into_iter().map(|answer| {
            let Answer::Answered { pod, source } = answer else { return Err(format!("{answer:?}")) };
            if !self.by.iter().any(|place| place.name() == pod) {
                return Err(format!("served by {pod}"));
            }
            let ok = match self.source {
                Source::Kept => source == self.flow.source,
                Source::Masqueraded => is_node_address(source),
            };
            if ok { Ok(pod) } else { Err(format!("{pod} saw {source}, not {:?}", self.source)) }
        });
        names.collect()
    }

    /// Asks until every endpoint has answered; with this many tries the chance that an even
    /// spread leaves one of four out is below one in 10^19.
    fn check_all_seen(&self) -> Result<(), String> {
        let mut missing: Vec<_> = self.by.iter().map(|place| place.name()).collect();
        for _ in 0..20 {
            let seen = self.pods(8)?;
            missing.retain(|name| !seen.iter().any(|pod| pod == name));
            if missing.is_empty() {
                return Ok(());
            }
        }
        Err(format!("never served by {missing:?}"))
    }

    /// Every endpoint's share within five standard deviations of the mean.
    fn check_even(&self) -> Result<(), String> {
        let total = 100 * self.by.len();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for pod in self.pods(total)? {
            *counts.entry(pod).or_default() += 1;
        }
        let share = 1.0 / f64::from(u32::try_from(self.by.len()).unwrap());
        let mean = 100.0;
        let slack = 5.0 * (mean * (1.0 - share)).sqrt();
        let even = |place: &Place| {
            let count = counts.get(place.name()).copied().unwrap_or(0);
            (f64::from(count) - mean).abs() <= slack
        };
        if self.by.iter().all(even) { Ok(()) } else { Err(format!("uneven: {counts:?}")) }
    }

    fn sticky_pod(&self) -> Result<String, String> {
        let mut pods = self.pods(12)?;
        pods.sort();
        pods.dedup();
        if pods.len() == 1 { Ok(pods.remove(0)) } else { Err(format!("served by several: {pods:?}")) }
    }

    /// Waits out the timeout and asks again, until another endpoint comes up; fifteen misses in
    /// a row happen once in 10^9 runs.
    fn check_expiry(&self, seconds: u32) -> Result<(), String> {
        let first = self.sticky_pod()?;
        for _ in 0..15 {
            // The kernel's own clock is what is tested here; nothing announces its passing.
            thread::sleep(Duration::from_secs(u64::from(seconds)) + Duration::from_millis(300));
            if self.pods(1)? != [first.clone()] {
                return Ok(());
            }
        }
        Err(format!("still on {first} long after the timeout"))
    }
}

fn is_node_address(address: IpAddr) -> bool {
    let family = IpFamily::of(address);
    [Place::Node.address(family), pod_side_address(family)].contains(&address)
}

//! Deletes stale flows, on a thread of its own.

use super::stale::{Ledger, Suspect, Update};
use crate::kernel::addresses::local_addresses;
use crate::kernel::conntrack::{Conntrack, Destination, Flow, Part};
use crate::model::{IpFamily, PerFamily, Protocol};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Up to this many frontends are looked up one by one, with the kernel sifting; for more of them one
/// walk over all flows of a protocol is cheaper.
const FEW: usize = 16;
/// Stale flows that are held before they are deleted.
const ROUND: usize = 4096;

/// What one run did.
#[derive(Debug)]
pub struct Reconciled {
    /// The family.
    pub family: IpFamily,
    /// How long it took.
    pub elapsed: Duration,
    /// Flows deleted, or why there was no end to it.
    pub deleted: Result<u64>,
}

/// Told of every run.
type Report = Box<dyn FnMut(&Reconciled) + Send>;

/// The sender to the thread. The thread ends when this is dropped.
#[derive(Clone, Debug)]
pub struct Reconciler {
    updates: mpsc::Sender<Update>,
}

impl Reconciler {
    /// Starts the thread, in the calling thread's network namespace.
    ///
    /// # Errors
    /// If connection tracking cannot be reached, or no thread be started.
    pub fn start(report: Report) -> Result<Reconciler> {
        let conntrack = Conntrack::open()?;
        let (updates, incoming) = mpsc::channel();
        let worker = Worker { conntrack, by_filter: false, ledgers: PerFamily::default(), report };
        std::thread::Builder::new()
            .name("conntrack".to_owned())
            .spawn(move || worker.run(&incoming))
            .context("starting the conntrack thread")?;
        Ok(Reconciler { updates })
    }

    /// Hands over what a successful pass put in force. Never waits.
    pub fn update(&self, update: Update) {
        // The thread ends only when we do.
        let _ = self.updates.send(update);
    }
}

struct Worker {
    conntrack: Conntrack,
    by_filter: bool,
    ledgers: PerFamily<Ledger>,
    report: Report,
}

impl Worker {
    fn run(mut self, incoming: &mpsc::Receiver<Update>) {
        // Here and not at the start: the kernel looks through the whole table for the answer.
        self.by_filter = self.conntrack.deletes_by_filter();
        while let Ok(update) = incoming.recv() {
            self.fold(update);
            // What waits behind it is newer: no flow is judged by what is out of date already.
            while let Ok(update) = incoming.try_recv() {
                self.fold(update);
            }
            for family in IpFamily::ALL {
                self.reconcile(family);
            }
        }
    }

    fn fold(&mut self, update: Update) {
        self.ledgers.get_mut(update.family).fold(update);
    }

    #[expect(clippy::disallowed_methods, reason = "a thread of its own, where nothing waits for time")]
    fn reconcile(&mut self, family: IpFamily) {
        let suspects = self.ledgers.get_mut(family).take_suspects();
        if suspects.is_empty() {
            return;
        }
        let start = Instant::now();
        let deleted = self.delete_stale(family, &suspects);
        if deleted.is_err() {
            self.ledgers.get_mut(family).put_back(&suspects);
        }
        (self.report)(&Reconciled { family, elapsed: start.elapsed(), deleted });
    }

    fn delete_stale(&mut self, family: IpFamily, suspects: &[Suspect]) -> Result<u64> {
        let local = local_addresses(family)?;
        let ledger = self.ledgers.get(family);
        let mut deleted = 0;
        if suspects.len() > FEW {
            let by_destination: HashMap<_, _> =
                suspects.iter().map(|suspect| (suspect.to, suspect)).collect();
            let stale = |flow: &Flow| {
                let [exact, port] = Destination::of(flow);
                let found = by_destination.get(&exact).or_else(|| by_destination.get(&port));
                found.is_some_and(|suspect| ledger.is_stale(suspect, flow, &local))
            };
            for protocol in [Protocol::Udp, Protocol::Sctp] {
                if suspects.iter().any(|suspect| suspect.to.protocol == protocol) {
                    let all = Destination { protocol, address: None, port: None };
                    deleted += sweep(&mut self.conntrack, family, &all, stale)?;
                }
            }
            return Ok(deleted);
        }
        for suspect in suspects {
            let stale = |flow: &Flow| ledger.is_stale(suspect, flow, &local);
            // Where no endpoint serves any more, the kernel can delete all flows in one request.
            let v4 = suspect.to.address.is_some_and(|address| address.is_ipv4());
            let whole = self.by_filter && v4 && suspect.serving.is_empty();
            deleted += match whole {
                true => clear(&mut self.conntrack, family, suspect, stale)?,
                false => sweep(&mut self.conntrack, family, &suspect.to, stale)?,
            };
        }
        Ok(deleted)
    }
}

/// Deletes the stale flows to a destination, some thousands at a time, so that the table is never
/// held as a whole.
fn sweep(
    conntrack: &mut Conntrack,
    family: IpFamily,
    to: &Destination,
    is_stale: impl Fn(&Flow) -> bool,
) -> Result<u64> {
    let mut deleted = 0;
    loop {
        let mut found = Vec::new();
        let listed = conntrack.list(family, to, &mut |part| match part {
            Part::Start => found.clear(),
            Part::Item(flow) if found.len() < ROUND && is_stale(&flow) => found.push(flow),
            Part::Item(_) => {}
        });
        // A list that never held still is still a list of flows (kube-proxy deletes those, too).
        conntrack.delete(&found)?;
        deleted += u64::try_from(found.len()).unwrap_or_default();
        listed?;
        if found.len() < ROUND {
            return Ok(deleted);
        }
    }
}

/// Deletes all flows to a frontend that no endpoint serves any more; counts the translated ones.
fn clear(
    conntrack: &mut Conntrack,
    family: IpFamily,
    suspect: &Suspect,
    is_stale: impl Fn(&Flow) -> bool,
) -> Result<u64> {
    let mut count = 0;
    conntrack.list(family, &suspect.to, &mut |part| match part {
        Part::Start => count = 0,
        Part::Item(flow) => count += u64::from(is_stale(&flow)),
    })?;
    if count > 0 {
        conntrack.delete_to(&suspect.to)?;
    }
    Ok(count)
}

//! Requests sent one after the other while something else goes on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{PacketCase, Place, SERVICE_PORT};
use kube_proxy_rs::testing::proxy::wait_until;
use kube_proxy_rs::testing::traffic::Answer;

/// What a loop of requests and the test beside it tell each other.
#[derive(Default)]
pub(crate) struct Requests {
    done: AtomicBool,
    asked: AtomicUsize,
}

/// Ends the loop, also where the test beside it fails.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a Requests);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

impl Requests {
    /// Asks the cluster IP from a pod of the node until told to stop; returns what came instead of answers.
    pub(crate) fn ask_until_done(&self, lab: &Lab, case: &PacketCase, family: IpFamily) -> Vec<Answer> {
        self.ask_from_until_done(lab, (Place::LocalClient, family), case, Duration::ZERO)
    }

    /// The same from another place, with pauses.
    pub(crate) fn ask_from_until_done(
        &self,
        lab: &Lab,
        (from, family): (Place, IpFamily),
        case: &PacketCase,
        pause: Duration,
    ) -> Vec<Answer> {
        let client = lab.client(from, family);
        let cluster_ip = SocketAddr::new(case.cluster_ip(family), SERVICE_PORT);
        let mut lost = Vec::new();
        while !self.done.load(Ordering::Relaxed) {
            let answer = client.ask(Protocol::Tcp, cluster_ip);
            if !matches!(answer, Answer::Answered { .. }) {
                lost.push(answer);
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
            thread::sleep(pause);
        }
        lost
    }

    /// Whether the loop has been told to stop.
    pub(crate) fn are_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until `count` more requests came to their end.
    pub(crate) fn wait_for(&self, count: usize) {
        let wanted = self.asked.load(Ordering::Relaxed) + count;
        wait_until("requests are made", Duration::from_secs(60), || {
            self.asked.load(Ordering::Relaxed) >= wanted
        })
        .unwrap();
    }
}

//! What all servers together may have of the process's file descriptors.
//!
//! Every new connection gets a slot; when there are none left, the oldest connection is closed for it. A server that
//! answers at once loses nothing by that: a client that has sent its request has its reply within milliseconds, and what
//! is old only holds a slot. The node's own connections have slots apart, so that no neighbour takes those of the
//! kubelet's probes. A peer that connects faster than it can be answered is refused, which costs next to nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::yield_now;
use tokio::time::Instant;

/// A connection of the same peer that is younger makes no room for another one of it.
const YOUNG: Duration = Duration::from_millis(100);
/// Connections that may be about to end before the next one is accepted.
const MOST_ENDING: usize = 32;
/// What tools, the API server, the kernel and files need.
const RESERVE: u64 = 128;

/// How many connections and listening sockets there may be at a time, over all servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimits {
    /// From the node's own addresses.
    pub node: usize,
    /// From all other addresses.
    pub others: usize,
    /// From one of these other addresses, at one port.
    pub peer: usize,
    /// Sockets that listen for health-check node ports.
    pub listeners: usize,
}

impl SlotLimits {
    /// Of this many file descriptors: a quarter for connections, and no more than are of use; a reserve for other
    /// purposes; the rest for listening.
    #[must_use]
    pub fn within(descriptors: u64) -> Self {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (node, others) = (count(descriptors / 20).clamp(8, 64), count(descriptors / 5).clamp(16, 256));
        let listeners = count(descriptors.saturating_sub(RESERVE)).saturating_sub(node + others);
        SlotLimits { node, others, peer: 8, listeners: listeners.min(Semaphore::MAX_PERMITS) }
    }
}

/// The connections and listening sockets of all servers.
#[derive(Debug)]
pub struct Slots {
    limits: SlotLimits,
    table: Mutex<Table>,
    listeners: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// The oldest comes first.
    open: BTreeMap<u64, Open>,
    /// Connections that make room and have not ended yet.
    ending: usize,
}

#[derive(Debug)]
struct Open {
    port: u16,
    peer: Peer,
    since: Instant,
    /// Dropped to close the connection.
    _closer: oneshot::Sender<()>,
}

/// On whose account a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// The node itself.
    Node,
    /// An IPv4 address, or an IPv6 network of 64 bits, which one neighbour may have all of.
    Other(IpAddr),
}

impl Peer {
    /// The kernel takes no packet from outside that bears an address of the node's, and a connection from the node to
    /// one of its addresses comes from that same address.
    fn of(local: IpAddr, peer: IpAddr) -> Self {
        let (local, peer) = (local.to_canonical(), peer.to_canonical());
        if peer.is_loopback() || peer == local {
            return Peer::Node;
        }
        Peer::Other(match peer {
            IpAddr::V4(_) => peer,
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        })
    }
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// There is room.
    Taken,
    /// There is room once this connection is closed.
    InPlaceOf(u64),
    /// Its peer has as many as it may have, all of them new.
    Refused,
}

impl Table {
    fn judge(&self, limits: &SlotLimits, (port, peer): (u16, Peer), now: Instant) -> Verdict {
        let is_node = peer == Peer::Node;
        let of_peer = |open: &Open| open.peer == peer && open.port == port;
        if let Some((oldest, open)) = self.oldest_beyond(limits.peer, of_peer).filter(|_| !is_node) {
            let is_young = now.duration_since(open.since) < YOUNG;
            return if is_young { Verdict::Refused } else { Verdict::InPlaceOf(oldest) };
        }
        let limit = if is_node { limits.node } else { limits.others };
        let oldest = self.oldest_beyond(limit, |open| (open.peer == Peer::Node) == is_node);
        oldest.map_or(Verdict::Taken, |(oldest, _)| Verdict::InPlaceOf(oldest))
    }

    /// The oldest of certain connections, if there is no room for one more of them.
    fn oldest_beyond(&self, limit: usize, counts: impl Fn(&Open) -> bool) -> Option<(u64, &Open)> {
        let mut counted = self.open.iter().filter(|(_, open)| counts(open));
        let (number, oldest) = counted.next()?;
        (counted.count() + 1 >= limit).then_some((*number, oldest))
    }
}

impl Slots {
    /// No connections yet.
    #[must_use]
    pub fn new(limits: SlotLimits) -> Arc<Self> {
        let listeners = Arc::new(Semaphore::new(limits.listeners));
        Arc::new(Slots { limits, table: Mutex::default(), listeners })
    }

    /// The right to have one more socket that listens, as long as the permit is there.
    ///
    /// # Errors
    /// When there are as many as there may be; says what helps.
    pub fn listener(&self) -> Result<OwnedSemaphorePermit, String> {
        Arc::clone(&self.listeners).try_acquire_owned().map_err(|_| {
            let limit = self.limits.listeners;
            format!("{limit} sockets listen already, and more would need more file descriptors: raise their limit (ulimit -n)")
        })
    }

    /// Takes a slot for a connection to `local` from `peer`; an older connection is closed if there is no other way.
    /// `None` if the peer gets none.
    pub(super) fn take(self: &Arc<Self>, local: SocketAddr, peer: SocketAddr) -> Option<Slot> {
        let (port, peer, now) = (local.port(), Peer::of(local.ip(), peer.ip()), Instant::now());
        let mut table = self.table();
        match table.judge(&self.limits, (port, peer), now) {
            Verdict::Taken => {}
            Verdict::InPlaceOf(oldest) => {
                table.open.remove(&oldest);
                table.ending += 1;
            }
            Verdict::Refused => return None,
        }
        let number = table.next;
        table.next += 1;
        let (closer, closed) = oneshot::channel();
        table.open.insert(number, Open { port, peer, since: now, _closer: closer });
        Some(Slot { slots: Arc::clone(self), number, closed })
    }

    /// Lets connections end that make room, if they are many: until then they have their descriptors.
    pub(super) async fn let_end(&self) {
        while self.table().ending > MOST_ENDING {
            yield_now().await;
        }
    }

    /// How many connections are open.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.table().open.len()
    }

    /// Plain data, which no panic leaves half written.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of one connection, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    closed: oneshot::Receiver<()>,
}

impl Slot {
    /// Waits until the connection has to make room for another one.
    pub(super) async fn closed(&mut self) {
        // The sender never sends: it is dropped.
        let _ = (&mut self.closed).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        if table.open.remove(&self.number).is_none() {
            table.ending = table.ending.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use rstest::rstest;

    const LIMITS: SlotLimits = SlotLimits { node: 2, others: 4, peer: 2, listeners: 1 };

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What became of a connection.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fate {
        Open,
        Closed,
        Refused,
    }
    use Fate::{Closed, Open, Refused};

    fn fate(slot: &mut Option<Slot>) -> Fate {
        match slot.as_mut().map(|slot| slot.closed.try_recv()) {
            None => Refused,
            Some(Err(oneshot::error::TryRecvError::Empty)) => Open,
            Some(_) => Closed,
        }
    }

    /// What becomes of connections from these peers to port 10256 of 192.0.2.1, one in `pace`.
    async fn fates(peers: &str, pace: Duration) -> Vec<Fate> {
        let (slots, mut open) = (Slots::new(LIMITS), Vec::new());
        for peer in peers.split(' ') {
            open.push(slots.take(address("192.0.2.1:10256"), format!("{peer}:1").parse().unwrap()));
            tokio::time::advance(pace).await;
        }
        open.iter_mut().map(fate).collect()
    }

    #[rstest]
    #[case::a_peer_closes_its_own("10.0.0.1 10.0.0.2 10.0.0.2 10.0.0.2 10.0.0.2", &[Open, Closed, Closed, Open, Open])]
    #[case::many_peers_close_the_oldest("10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5", &[Closed, Open, Open, Open, Open])]
    #[case::the_node_has_its_own("127.0.0.1 192.0.2.1 10.0.0.1 10.0.0.1 10.0.0.1", &[Open, Open, Closed, Open, Open])]
    #[case::even_the_node_has_no_more("127.0.0.1 192.0.2.1 127.0.0.2", &[Closed, Open, Open])]
    #[case::mapped_addresses_are_the_same("[::ffff:10.0.0.1] 10.0.0.1 10.0.0.1", &[Closed, Open, Open])]
    #[case::an_ipv6_network_is_one_peer("[2001:db8::1] [2001:db8::2] [2001:db8:0:1::1] [2001:db8::3]", &[Closed, Open, Open, Open])]
    #[tokio::test(start_paused = true)]
    async fn who_has_to_make_room(#[case] peers: &str, #[case] wanted: &[Fate]) {
        assert_eq!(fates(peers, YOUNG).await, wanted);
    }

    #[rstest]
    #[case::a_peer_is_refused("10.0.0.1 10.0.0.1 10.0.0.1 10.0.0.2", &[Open, Open, Refused, Open])]
    #[case::many_peers_are_not("10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5", &[Closed, Open, Open, Open, Open])]
    #[case::nor_is_the_node("127.0.0.1 192.0.2.1 127.0.0.2", &[Closed, Open, Open])]
    #[tokio::test(start_paused = true)]
    async fn who_connects_faster_than_it_is_answered(#[case] peers: &str, #[case] wanted: &[Fate]) {
        assert_eq!(fates(peers, Duration::ZERO).await, wanted);
    }

    #[tokio::test]
    async fn a_peer_has_its_share_of_every_port_and_a_slot_is_free_again_after_use() {
        let slots = Slots::new(LIMITS);
        let take = |local: &str| slots.take(address(local), address("10.0.0.1:1"));
        let mut open = [take("192.0.2.1:10256"), take("192.0.2.1:10256"), take("192.0.2.1:30000")];
        drop(take("192.0.2.1:30000"));
        assert_eq!((open.each_mut().map(fate), slots.open()), ([Open; 3], 3));
        drop(open);
        assert_eq!((slots.open(), slots.table().ending), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_make_room_end_before_many_more_are_taken() {
        let slots = Slots::new(LIMITS);
        let mut open: Vec<_> = Vec::new();
        for number in 0..MOST_ENDING + 5 {
            open.push(slots.take(address("192.0.2.1:10256"), format!("10.0.0.{number}:1").parse().unwrap()));
        }
        assert_eq!(slots.table().ending, MOST_ENDING + 1);
        assert_eq!(slots.let_end().now_or_never(), None);
        open.clear();
        assert_eq!(slots.let_end().now_or_never(), Some(()));
    }

    #[test]
    fn no_limit_of_descriptors_is_used_up() {
        for descriptors in [256, 1024, 4096, 1 << 20, u64::MAX] {
            let SlotLimits { node, others, listeners, .. } = SlotLimits::within(descriptors);
            let used = u64::try_from(node + others + listeners).unwrap();
            assert!(used <= descriptors - RESERVE && node >= 8 && others >= 16, "{descriptors}: {used}");
        }
        assert_eq!(SlotLimits::within(0).listeners, 0);
    }

    #[test]
    fn a_socket_that_listens_no_more_leaves_its_place_to_another() {
        let slots = Slots::new(LIMITS);
        let first = slots.listener().unwrap();
        assert!(slots.listener().unwrap_err().contains("1 sockets listen already"));
        drop(first);
        assert!(slots.listener().is_ok());
    }
}

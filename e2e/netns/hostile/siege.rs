//! Connections, as many as a neighbour can hold or make.

use std::collections::VecDeque;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kube_proxy_rs::kernel::process::raise_descriptor_limit;
use kube_proxy_rs::testing::netns::Namespace;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// Connections held at a time; the oldest are let go.
const HELD: usize = 4000;
/// A neighbour that holds connections opens this many, then pauses.
const AT_ONCE: usize = 50;
const PAUSE: Duration = Duration::from_millis(50);
/// How long a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is done with the connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// They are held, and nothing is sent.
    Silent,
    /// They are held, and the request never ends.
    HalfHead,
    /// They are held; the peer repeats its request and never reads a reply.
    Reader,
    /// They are made as fast as it goes.
    Flood,
}

impl Way {
    fn says(self) -> String {
        match self {
            Way::Silent | Way::Flood => String::new(),
            Way::HalfHead => format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}", "x".repeat(8000)),
            Way::Reader => "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100),
        }
    }
}

/// Goes on until it is dropped.
pub(crate) struct Siege {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Siege {
    /// Begins to connect from each of these addresses to each target, in turn.
    pub(crate) fn lay(from: &Namespace, way: Way, sources: &[IpAddr], targets: &[SocketAddr]) -> Siege {
        raise_descriptor_limit().unwrap();
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut pairs = Vec::new();
        for source in sources {
            let family = |target: &&SocketAddr| target.is_ipv4() == source.is_ipv4();
            pairs.extend(targets.iter().filter(family).map(|target| (*source, *target)));
        }
        let (until, count, name) = (stop.clone(), made.clone(), from.name().to_owned());
        let thread = thread::spawn(move || {
            let namespace = File::open(format!("/run/netns/{name}")).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(besiege(way, pairs, &until, &count));
        });
        Siege { stop, made, thread: Some(thread) }
    }

    /// How many connections have been made so far.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed, and the test sees that no connections were made.
            let _ = thread.join();
        }
    }
}

async fn besiege(way: Way, pairs: Vec<(IpAddr, SocketAddr)>, stop: &AtomicBool, made: &AtomicU64) {
    let (mut held, says) = (VecDeque::new(), way.says());
    for (number, (source, target)) in pairs.iter().cycle().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(Ok(mut stream)) = tokio::time::timeout(PATIENCE, connect(*source, *target)).await else {
            continue;
        };
        made.fetch_add(1, Ordering::Relaxed);
        if matches!(way, Way::Flood) {
            continue;
        }
        // It may have been closed already.
        let _ = tokio::time::timeout(Duration::from_millis(10), stream.write_all(says.as_bytes())).await;
        held.push_back(stream);
        held.drain(..held.len().saturating_sub(HELD));
        if number % AT_ONCE == 0 {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn connect(source: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // The kernel then picks the port when it knows the other end: there are more than 64,000 connections.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind((source, 0).into())?;
    socket.set_recv_buffer_size(4096)?;
    socket.set_zero_linger()?;
    socket.connect(target).await
}

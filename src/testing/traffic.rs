//! Real requests between namespaces: servers that name themselves and their client, and clients
//! that tell an answer from a refusal from silence.
//!
//! A server greets every TCP connection, and answers every UDP datagram, with one line: its pod's
//! name and the client's address as it sees it. What a TCP client then sends is answered with the
//! same line again, so that a connection can be held open and tried later.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::stream::{self, StreamExt as _};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

use super::netns::Namespace;
use crate::model::Protocol;

/// Long enough for a busy or an emulated machine to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many requests of one batch are in flight together.
const IN_FLIGHT: usize = 16;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A pod answered.
    Answered {
        /// Its name.
        pod: String,
        /// The client's address as the pod saw it.
        source: IpAddr,
    },
    /// The network or the server refused.
    Refused,
    /// Nothing came back in time.
    Silence,
    /// Anything else.
    Failed(String),
}

/// A client in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    namespace: &'a Namespace,
    source: Option<IpAddr>,
    patience: Duration,
}

impl<'a> Client<'a> {
    /// A client that binds to `source`, or leaves the choice to the kernel.
    #[must_use]
    pub fn new(namespace: &'a Namespace, source: Option<IpAddr>) -> Self {
        Client { namespace, source, patience: PATIENCE }
    }

    /// Waits no longer than this for an answer.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends one request.
    #[must_use]
    pub fn ask(&self, protocol: Protocol, destination: SocketAddr) -> Answer {
        self.ask_many(protocol, destination, 1).pop().unwrap_or(Answer::Failed("no answer".into()))
    }

    /// Sends `count` requests, each from a port of its own, and returns what became of each.
    #[must_use]
    pub fn ask_many(&self, protocol: Protocol, destination: SocketAddr, count: usize) -> Vec<Answer> {
        let requests = async || {
            stream::iter(0..count)
                .map(|_| self.request(protocol, destination))
                .buffer_unordered(IN_FLIGHT)
                .collect::<Vec<_>>()
                .await
        };
        let answers = self.namespace.run(|| Ok(runtime()?.block_on(requests())));
        match answers {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) | Err(error) => vec![Answer::Failed(format!("{error:#}"))],
        }
    }

    /// Opens a TCP connection and keeps it.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub fn open(&self, destination: SocketAddr) -> Result<HeldConnection> {
        let stream = self.namespace.run(|| TcpStream::connect_timeout(&destination, self.patience))??;
        stream.set_read_timeout(Some(self.patience))?;
        let mut connection = HeldConnection { stream };
        connection.read_line().context("no greeting")?;
        Ok(connection)
    }

    /// Opens a TCP connection from a port of one's choice, which can be used again as soon as the
    /// connection is dropped: it ends with a reset.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub fn open_from(&self, port: u16, destination: SocketAddr) -> Result<HeldConnection> {
        let any = if destination.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
        let local = SocketAddr::new(self.source.unwrap_or(any), port);
        let connect = async || -> io::Result<TcpStream> {
            let socket = stream_socket(Protocol::Tcp, destination)?;
            socket.set_zero_linger()?;
            socket.bind(local)?;
            socket.connect(destination).await?.into_std()
        };
        let open = || -> Result<TcpStream> {
            let connected = async { tokio::time::timeout(self.patience, connect()).await };
            Ok(runtime()?.block_on(connected).context("no connection in time")??)
        };
        let stream = self.namespace.run(open)??;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(self.patience))?;
        let mut connection = HeldConnection { stream };
        connection.read_line().context("no greeting")?;
        Ok(connection)
    }

    async fn request(&self, protocol: Protocol, destination: SocketAddr) -> Answer {
        let exchange = async {
            match protocol {
                Protocol::Tcp | Protocol::Sctp => self.ask_stream(protocol, destination).await,
                Protocol::Udp => self.ask_udp(destination).await,
            }
        };
        match tokio::time::timeout(self.patience, exchange).await {
            Err(_) => Answer::Silence,
            Ok(Ok(line)) => parse_line(&line),
            Ok(Err(error)) => classify(&error),
        }
    }

    async fn ask_stream(&self, protocol: Protocol, destination: SocketAddr) -> io::Result<String> {
        let socket = stream_socket(protocol, destination)?;
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let mut stream = socket.connect(destination).await?;
        let mut line = vec![0; 128];
        let length = stream.read(&mut line).await?;
        Ok(String::from_utf8_lossy(&line[..length]).into_owned())
    }

    async fn ask_udp(&self, destination: SocketAddr) -> io::Result<String> {
        let any = if destination.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
        let socket = tokio::net::UdpSocket::bind(SocketAddr::new(self.source.unwrap_or(any), 0)).await?;
        socket.connect(destination).await?;
        match socket.send(b"?").await {
            // A rule stopped the node's own packet. Whether with a refusal shows next.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => drop(other?),
        }
        let mut line = vec![0; 128];
        let length = socket.recv(&mut line).await?;
        Ok(String::from_utf8_lossy(&line[..length]).into_owned())
    }
}

/// A socket for TCP or, in its one-to-one style, which works the same, for SCTP.
fn stream_socket(protocol: Protocol, peer: SocketAddr) -> io::Result<TcpSocket> {
    match (protocol, peer) {
        (Protocol::Sctp, _) => Ok(TcpSocket::from_std_stream(sctp_socket(peer)?.into())),
        (_, SocketAddr::V4(_)) => TcpSocket::new_v4(),
        (_, SocketAddr::V6(_)) => TcpSocket::new_v6(),
    }
}

/// A non-blocking SCTP socket of an address's family.
fn sctp_socket(of: SocketAddr) -> io::Result<OwnedFd> {
    let family = if of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(family, SockType::Stream, flags, SockProtocol::Sctp)?)
}

fn classify(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Answer::Refused,
        _ => Answer::Failed(error.to_string()),
    }
}

fn parse_line(line: &str) -> Answer {
    let parsed = line.trim().split_once(' ').and_then(|(pod, source)| {
        Some(Answer::Answered { pod: pod.to_owned(), source: source.parse().ok()? })
    });
    parsed.unwrap_or_else(|| Answer::Failed(format!("strange answer {line:?}")))
}

/// A TCP connection that stays open.
#[derive(Debug)]
pub struct HeldConnection {
    stream: TcpStream,
}

impl HeldConnection {
    /// Sends something and waits for the pod's line.
    ///
    /// # Errors
    ///
    /// When the connection is broken or the pod stays silent.
    pub fn ping(&mut self) -> Result<String> {
        self.stream.write_all(b"ping\n").context("cannot send")?;
        self.read_line()
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = [0; 128];
        let length = self.stream.read(&mut line).context("cannot receive")?;
        anyhow::ensure!(length > 0, "the connection was closed");
        Ok(String::from_utf8_lossy(&line[..length]).trim().to_owned())
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// Sockets opened, servers not yet started.
#[derive(Debug, Default)]
pub struct PodServersBuilder {
    tcp: Vec<(String, TcpListener)>,
    udp: Vec<(String, UdpSocket)>,
}

impl PodServersBuilder {
    /// Opens a TCP and a UDP socket inside `namespace` for the pod called `name`.
    ///
    /// # Errors
    ///
    /// When the address is not there or the port taken.
    pub fn listen(&mut self, name: &str, namespace: &Namespace, address: SocketAddr) -> Result<()> {
        let open = || -> io::Result<_> { Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?)) };
        let (tcp, udp) =
            namespace.run(open)?.with_context(|| format!("{name} cannot listen on {address}"))?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        self.tcp.push((name.to_owned(), tcp));
        self.udp.push((name.to_owned(), udp));
        Ok(())
    }

    /// Opens an SCTP socket besides; many kernels lack the protocol.
    ///
    /// # Errors
    ///
    /// When the kernel has no SCTP, the address is not there or the port taken.
    pub fn listen_sctp(&mut self, name: &str, namespace: &Namespace, address: SocketAddr) -> Result<()> {
        let open = || -> io::Result<TcpListener> {
            let socket = sctp_socket(address)?;
            socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
            socket::listen(&socket, Backlog::MAXCONN)?;
            Ok(socket.into())
        };
        let listener =
            namespace.run(open)?.with_context(|| format!("{name} cannot listen on {address} by SCTP"))?;
        self.tcp.push((name.to_owned(), listener));
        Ok(())
    }

    /// Starts serving, all on one thread.
    ///
    /// # Errors
    ///
    /// When the thread or its runtime cannot be made.
    pub fn start(self) -> Result<PodServers> {
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime()?;
        let serve = move || {
            runtime.block_on(async {
                for (name, listener) in self.tcp {
                    tokio::spawn(serve_tcp(name, listener));
                }
                for (name, socket) in self.udp {
                    tokio::spawn(serve_udp(name, socket));
                }
                // Either way it is time to go: asked to, or the owner is gone.
                let _ = stopped.await;
            });
        };
        let thread = thread::Builder::new().name("pods".into()).spawn(serve)?;
        Ok(PodServers { stop: Some(stop), thread: Some(thread) })
    }
}

/// The servers of all pods; they stop on drop.
#[derive(Debug)]
pub struct PodServers {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl PodServers {
    /// Starts with no sockets.
    #[must_use]
    pub fn builder() -> PodServersBuilder {
        PodServersBuilder::default()
    }
}

impl Drop for PodServers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has printed itself already.
            let _ = thread.join();
        }
    }
}

async fn serve_tcp(name: String, listener: TcpListener) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, client) = listener.accept().await?;
        tokio::spawn(greet(stream, format!("{name} {}\n", client.ip().to_canonical())));
    }
}

async fn greet(mut stream: tokio::net::TcpStream, line: String) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    let mut buffer = [0; 128];
    while stream.read(&mut buffer).await? > 0 {
        stream.write_all(line.as_bytes()).await?;
    }
    Ok(())
}

async fn serve_udp(name: String, socket: UdpSocket) -> io::Result<()> {
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let mut buffer = [0; 128];
    loop {
        let (_, client) = socket.recv_from(&mut buffer).await?;
        socket.send_to(format!("{name} {}\n", client.ip().to_canonical()).as_bytes(), client).await?;
    }
}

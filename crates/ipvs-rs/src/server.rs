//! The objects of IPVS, in Rust's words.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::BitOr;
use std::time::Duration;

/// The address family of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The transport protocol of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// Another IP protocol number; the kernel keeps such an entry but balances nothing for it.
    Other(u16),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Tcp => f.write_str("tcp"),
            Protocol::Udp => f.write_str("udp"),
            Protocol::Sctp => f.write_str("sctp"),
            Protocol::Other(number) => write!(f, "{number}"),
        }
    }
}

/// What makes a virtual server itself: no two have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Traffic to this address and port. Port 0 stands for all ports of a persistent server.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// Virtual address.
        address: IpAddr,
        /// Virtual port.
        port: u16,
    },
    /// Traffic that the firewall has marked.
    Fwmark {
        /// Family of the traffic.
        family: Family,
        /// The mark; not 0.
        mark: u32,
    },
}

impl Key {
    /// The key of a virtual server with an address and port.
    #[must_use]
    pub fn address(protocol: Protocol, socket: SocketAddr) -> Key {
        Key::Address { protocol, address: socket.ip(), port: socket.port() }
    }

    /// The key of a virtual server that takes marked traffic.
    #[must_use]
    pub fn fwmark(family: Family, mark: u32) -> Key {
        Key::Fwmark { family, mark }
    }

    /// The family of the virtual server.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Key::Address { address, .. } => Family::of(*address),
            Key::Fwmark { family, .. } => *family,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Address { protocol, address, port } => {
                write!(f, "{}/{protocol}", SocketAddr::new(*address, *port))
            }
            Key::Fwmark { family, mark } => write!(f, "fwmark {mark} ({family})"),
        }
    }
}

/// The name of a scheduler. The kernel loads the module `ip_vs_<name>` when it is first used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scheduler(Cow<'static, str>);

impl Scheduler {
    /// `rr`: each real server in turn.
    pub const ROUND_ROBIN: Scheduler = Scheduler(Cow::Borrowed("rr"));
    /// `wrr`: in turn, by weight.
    pub const WEIGHTED_ROUND_ROBIN: Scheduler = Scheduler(Cow::Borrowed("wrr"));
    /// `lc`: the one with the fewest connections.
    pub const LEAST_CONNECTION: Scheduler = Scheduler(Cow::Borrowed("lc"));
    /// `wlc`: fewest connections, by weight; what `ipvsadm` takes if told nothing.
    pub const WEIGHTED_LEAST_CONNECTION: Scheduler = Scheduler(Cow::Borrowed("wlc"));
    /// `sh`: by a hash of the source address.
    pub const SOURCE_HASH: Scheduler = Scheduler(Cow::Borrowed("sh"));
    /// `mh`: by consistent (Maglev) hashing.
    pub const MAGLEV_HASH: Scheduler = Scheduler(Cow::Borrowed("mh"));

    /// A scheduler by name. The kernel refuses names of more than 15 bytes and unknown ones.
    #[must_use]
    pub fn named(name: impl Into<Cow<'static, str>>) -> Scheduler {
        Scheduler(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Switches whose meaning is the scheduler's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SchedulerFlags(u32);

impl SchedulerFlags {
    /// None.
    pub const NONE: SchedulerFlags = SchedulerFlags(0);
    /// The first; `sh` and `mh`: fall back to another real server if the chosen one has weight 0.
    pub const FIRST: SchedulerFlags = SchedulerFlags(0x08);
    /// The second; `sh` and `mh`: hash the source port as well.
    pub const SECOND: SchedulerFlags = SchedulerFlags(0x10);
    /// The third; no scheduler of the kernel uses it.
    pub const THIRD: SchedulerFlags = SchedulerFlags(0x20);

    /// The kernel's bits, as `IP_VS_SVC_F_SCHED*` has them; other bits are dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> SchedulerFlags {
        SchedulerFlags(bits & 0x38)
    }

    /// The kernel's bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `flags` are set.
    #[must_use]
    pub const fn contains(self, flags: SchedulerFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for SchedulerFlags {
    type Output = SchedulerFlags;

    fn bitor(self, other: SchedulerFlags) -> SchedulerFlags {
        SchedulerFlags(self.0 | other.0)
    }
}

/// How many clients share one persistence entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Netmask {
    /// Of an IPv4 virtual server.
    V4(Ipv4Addr),
    /// Prefix length, 1 to 128, of an IPv6 virtual server.
    V6(u32),
}

impl Netmask {
    /// Every client address by itself.
    #[must_use]
    pub fn host(family: Family) -> Netmask {
        match family {
            Family::V4 => Netmask::V4(Ipv4Addr::BROADCAST),
            Family::V6 => Netmask::V6(128),
        }
    }
}

/// Sends a client back to the real server it had last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// For how long after the client's last connection ended.
    pub timeout: Duration,
    /// Which clients count as one.
    pub netmask: Netmask,
    /// A persistence engine of the kernel, such as `sip`.
    pub engine: Option<Box<str>>,
}

impl Persistence {
    /// Persistence for each client address.
    #[must_use]
    pub fn new(family: Family, timeout: Duration) -> Persistence {
        Persistence { timeout, netmask: Netmask::host(family), engine: None }
    }
}

/// A virtual server as one configures it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VirtualServer {
    /// What it answers to.
    pub key: Key,
    /// How it chooses real servers.
    pub scheduler: Scheduler,
    /// Switches of that scheduler.
    pub scheduler_flags: SchedulerFlags,
    /// Whether clients return to the same real server.
    pub persistence: Option<Persistence>,
    /// One-packet scheduling: every UDP datagram is a connection of its own.
    pub one_packet: bool,
}

impl VirtualServer {
    /// A virtual server without persistence or other specialities.
    #[must_use]
    pub fn new(key: Key, scheduler: Scheduler) -> VirtualServer {
        VirtualServer {
            key,
            scheduler,
            scheduler_flags: SchedulerFlags::NONE,
            persistence: None,
            one_packet: false,
        }
    }
}

/// How packets are wrapped on their way to a tunnelled real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation.
    Gue {
        /// The real server's UDP port.
        port: u16,
        /// Checksum switches (`IP_VS_TUNNEL_ENCAP_FLAG_*`).
        flags: u16,
    },
    /// Generic routing encapsulation.
    Gre {
        /// Checksum switches (`IP_VS_TUNNEL_ENCAP_FLAG_*`).
        flags: u16,
    },
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forward {
    /// Rewritten to the real server's address (NAT).
    Masquerade,
    /// Delivered on this machine.
    Local,
    /// Wrapped and sent to it.
    Tunnel(Tunnel),
    /// Sent to it unchanged, on a shared network.
    DirectRoute,
    /// Sent past all real servers, to the original destination.
    Bypass,
    /// A number this crate does not know, seen when listing.
    Other(u32),
}

/// A real server as one configures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealServer {
    /// Its address and port, which are its key within the virtual server.
    pub address: SocketAddr,
    /// How packets reach it.
    pub forward: Forward,
    /// Its share; 0 lets existing connections finish and sends no new ones.
    pub weight: u32,
    /// No new connections above this many; 0 means no limit.
    pub upper_threshold: u32,
    /// New ones again below this many; 0 means three quarters of the upper one.
    pub lower_threshold: u32,
}

impl RealServer {
    /// A masqueraded real server of weight 1 without thresholds.
    #[must_use]
    pub fn new(address: SocketAddr) -> RealServer {
        RealServer {
            address,
            forward: Forward::Masquerade,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }
}

/// What was counted since the start or the last reset, and recent rates. The kernel brings them up to
/// date every two seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients, as far as they pass here.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients, as far as they pass here.
    pub bytes_out: u64,
    /// Connections per second.
    pub connection_rate: u64,
    /// Packets per second from clients.
    pub packet_rate_in: u64,
    /// Packets per second to clients.
    pub packet_rate_out: u64,
    /// Bytes per second from clients.
    pub byte_rate_in: u64,
    /// Bytes per second to clients.
    pub byte_rate_out: u64,
}

/// A virtual server as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedVirtualServer {
    /// Its configuration.
    pub server: VirtualServer,
    /// Its counters.
    pub stats: Stats,
}

/// A real server as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedRealServer {
    /// Its configuration.
    pub server: RealServer,
    /// Connections in an active state (for TCP: established).
    pub active_connections: u32,
    /// Connections in any other state, such as those that wait for their time to run out.
    pub inactive_connections: u32,
    /// Persistence entries that point to it.
    pub persistent_connections: u32,
    /// Its counters.
    pub stats: Stats,
}

/// How long idle connections are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: Duration,
    /// TCP connections after a FIN.
    pub tcp_fin: Duration,
    /// UDP.
    pub udp: Duration,
}

/// New timeouts; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeoutChange {
    /// Established TCP connections.
    pub tcp: Option<Duration>,
    /// TCP connections after a FIN.
    pub tcp_fin: Option<Duration>,
    /// UDP.
    pub udp: Option<Duration>,
}

/// What the kernel says of its IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Major, minor and patch version.
    pub version: (u8, u8, u8),
    /// Buckets of the connection table.
    pub connection_table_size: u32,
}

//! IPVS: virtual servers and their real servers, through `ipvs-rs`.

use crate::model::{
    Counts, Frontend, IpvsScheduler, Protocol, RealServer, ServerOperation, Traffic, VirtualServer,
};
use anyhow::{Context, Result};
pub use ipvs_rs::Reason;
use ipvs_rs::{
    Family, Forward, Ipvs, Key, ListedVirtualServer, Operation as Sent, Persistence, Scheduler,
    SchedulerFlags, TableEntry, TimeoutChange,
};
use std::net::SocketAddr;
use std::time::Duration;

/// A virtual server as it is there. `None` stands for switches that are none of ours: another forwarding
/// method, one-packet scheduling, a persistence engine.
pub type Listed = (Frontend, Option<VirtualServer>);

/// Real servers of one virtual server, with how many connections each still has.
pub type Connections = Vec<(RealServer, u32)>;

/// The kernel's "no" to one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The virtual server concerned.
    pub frontend: Frontend,
    /// What was to be done: a [`ServerOperation::kind`].
    pub operation: &'static str,
    /// Why not.
    pub reason: Reason,
    /// What was asked and why not.
    pub message: String,
}

impl Refused {
    /// Whether the object to be removed or changed is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.reason, Reason::NoSuchVirtualServer | Reason::NoSuchRealServer)
    }
}

/// How long idle connections are remembered; zero leaves a value as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: Duration,
    /// TCP connections after a FIN.
    pub tcp_fin: Duration,
    /// UDP.
    pub udp: Duration,
}

/// What a backend asks of the kernel's IPVS.
pub trait VirtualServers {
    /// All virtual servers with an address, in no particular order. Perhaps not all of them, and some twice, if
    /// any come or go meanwhile, in whatever network namespace: the kernel counts through those of all. What
    /// is not listed may still be [found](VirtualServers::find).
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn list(&mut self) -> Result<Vec<Listed>>;

    /// One virtual server, if there is one there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn find(&mut self, frontend: &Frontend) -> Result<Option<Listed>>;

    /// The real servers of one virtual server; none if there is no such virtual server.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn real_servers(&mut self, frontend: &Frontend) -> Result<Connections>;

    /// Visits virtual servers with their real servers, at a fraction of the cost of asking for each. Perhaps
    /// not all of them, if any come or go meanwhile or another network namespace has some, too: what is not
    /// visited has to be asked for.
    fn survey(&mut self, visit: &mut dyn FnMut(Frontend, &[RealServer]));

    /// What one virtual server has counted; `None` if there is no such virtual server.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn counts(&mut self, frontend: &Frontend) -> Result<Option<Counts>>;

    /// What each real server of one virtual server has counted for it; none if there is no such
    /// virtual server.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn real_counts(&mut self, frontend: &Frontend) -> Result<Vec<(SocketAddr, Counts)>>;

    /// Carries changes out, in order and past refusals, which it returns.
    ///
    /// # Errors
    /// When the exchange with the kernel failed; then it is unknown how far it came.
    fn run(&mut self, operations: &[ServerOperation]) -> Result<Vec<Refused>>;

    /// Sets timeouts.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()>;
}

/// The kernel's IPVS in the calling thread's network namespace.
#[derive(Debug)]
pub struct KernelIpvs {
    ipvs: Ipvs,
}

/// Whether the kernel has IPVS now; asking it over netlink would load it.
#[must_use]
pub fn is_loaded() -> bool {
    std::path::Path::new("/proc/sys/net/ipv4/vs").exists()
}

impl KernelIpvs {
    /// Opens a handle; the kernel loads `ip_vs` if it can.
    ///
    /// # Errors
    /// When there is no IPVS, or on lack of permission.
    pub fn open() -> Result<KernelIpvs> {
        let ipvs = Ipvs::open().context("IPVS mode needs the kernel module ip_vs")?;
        Ok(KernelIpvs { ipvs })
    }
}

impl VirtualServers for KernelIpvs {
    fn list(&mut self) -> Result<Vec<Listed>> {
        Ok(self.ipvs.list_virtual_servers()?.iter().filter_map(listed).collect())
    }

    fn find(&mut self, frontend: &Frontend) -> Result<Option<Listed>> {
        Ok(self.ipvs.find_virtual_server(&key(frontend))?.as_ref().and_then(listed))
    }

    fn real_servers(&mut self, frontend: &Frontend) -> Result<Connections> {
        let listed = self.ipvs.list_real_servers(&key(frontend))?;
        let entry = |it: ipvs_rs::ListedRealServer| {
            let real = RealServer { address: it.server.address, weight: it.server.weight };
            (real, it.active_connections.saturating_add(it.inactive_connections))
        };
        Ok(listed.into_iter().map(entry).collect())
    }

    fn survey(&mut self, visit: &mut dyn FnMut(Frontend, &[RealServer])) {
        let mut reals = Vec::new();
        let mut take = |key: Key, entries: &[TableEntry]| {
            let Some(at) = frontend(&key) else { return };
            reals.clear();
            reals.extend(entries.iter().map(|it| RealServer { address: it.address, weight: it.weight }));
            visit(at, &reals);
        };
        if let Err(error) = ipvs_rs::visit_table(&mut take) {
            tracing::debug!(%error, "the table of virtual servers cannot be read; each is asked for by itself");
        }
    }

    fn counts(&mut self, frontend: &Frontend) -> Result<Option<Counts>> {
        Ok(self.ipvs.find_virtual_server(&key(frontend))?.map(|listed| counts(&listed.stats)))
    }

    fn real_counts(&mut self, frontend: &Frontend) -> Result<Vec<(SocketAddr, Counts)>> {
        let listed = self.ipvs.list_real_servers(&key(frontend))?;
        Ok(listed.into_iter().map(|it| (it.server.address, counts(&it.stats))).collect())
    }

    fn run(&mut self, operations: &[ServerOperation]) -> Result<Vec<Refused>> {
        let mut batch = self.ipvs.batch();
        for operation in operations {
            match operation {
                ServerOperation::Add(at, with) => batch.add_virtual_server(&virtual_server(at, with)),
                ServerOperation::Update(at, with) => batch.update_virtual_server(&virtual_server(at, with)),
                ServerOperation::Remove(at) => batch.remove_virtual_server(&key(at)),
                ServerOperation::AddReal(at, real) => batch.add_real_server(&key(at), &real_server(real)),
                ServerOperation::UpdateReal(at, real) => {
                    batch.update_real_server(&key(at), &real_server(real))
                }
                ServerOperation::RemoveReal(at, address) => batch.remove_real_server(&key(at), *address),
            }
        }
        let refused = self.ipvs.run(&mut batch).context("changing IPVS virtual servers")?;
        Ok(refused.iter().filter_map(describe).collect())
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let some = |duration: Duration| (!duration.is_zero()).then_some(duration);
        let change = TimeoutChange {
            tcp: some(timeouts.tcp),
            tcp_fin: some(timeouts.tcp_fin),
            udp: some(timeouts.udp),
        };
        Ok(self.ipvs.set_timeouts(&change)?)
    }
}

fn counts(stats: &ipvs_rs::Stats) -> Counts {
    let traffic = Traffic {
        packets_in: stats.packets_in,
        packets_out: stats.packets_out,
        bytes_in: stats.bytes_in,
        bytes_out: stats.bytes_out,
    };
    Counts { connections: stats.connections, traffic: Some(traffic) }
}

fn describe(refused: &ipvs_rs::Refused) -> Option<Refused> {
    let (key, operation) = match &refused.operation {
        Sent::AddVirtualServer(key) => (key, "add_virtual"),
        Sent::UpdateVirtualServer(key) => (key, "update_virtual"),
        Sent::RemoveVirtualServer(key) => (key, "remove_virtual"),
        Sent::AddRealServer(key, _) => (key, "add_real"),
        Sent::UpdateRealServer(key, _) => (key, "update_real"),
        Sent::RemoveRealServer(key, _) => (key, "remove_real"),
        _ => return None,
    };
    let (reason, message) = (refused.reason(), refused.to_string());
    Some(Refused { frontend: frontend(key)?, operation, reason, message })
}

fn listed(found: &ListedVirtualServer) -> Option<Listed> {
    Some((frontend(&found.server.key)?, switches(&found.server)))
}

fn key(frontend: &Frontend) -> Key {
    let protocol = match frontend.protocol {
        Protocol::Tcp => ipvs_rs::Protocol::Tcp,
        Protocol::Udp => ipvs_rs::Protocol::Udp,
        Protocol::Sctp => ipvs_rs::Protocol::Sctp,
    };
    Key::address(protocol, SocketAddr::new(frontend.address, frontend.port))
}

/// The reverse of `key`; firewall marks and other protocols are none of ours.
fn frontend(key: &Key) -> Option<Frontend> {
    let Key::Address { protocol, address, port } = *key else { return None };
    let protocol = match protocol {
        ipvs_rs::Protocol::Tcp => Protocol::Tcp,
        ipvs_rs::Protocol::Udp => Protocol::Udp,
        ipvs_rs::Protocol::Sctp => Protocol::Sctp,
        ipvs_rs::Protocol::Other(_) => return None,
    };
    Some(Frontend { address, port, protocol })
}

fn virtual_server(at: &Frontend, with: &VirtualServer) -> ipvs_rs::VirtualServer {
    let scheduler = Scheduler::named(with.scheduler.name.to_string());
    let mut server = ipvs_rs::VirtualServer::new(key(at), scheduler);
    if with.scheduler.fallback {
        server.scheduler_flags = server.scheduler_flags | SchedulerFlags::FIRST;
    }
    if with.scheduler.by_port {
        server.scheduler_flags = server.scheduler_flags | SchedulerFlags::SECOND;
    }
    let timeout = with.affinity_seconds.map(|seconds| Duration::from_secs(seconds.into()));
    server.persistence = timeout.map(|timeout| Persistence::new(Family::of(at.address), timeout));
    server
}

/// The reverse of `virtual_server`.
fn switches(server: &ipvs_rs::VirtualServer) -> Option<VirtualServer> {
    let flags = server.scheduler_flags;
    let scheduler = IpvsScheduler {
        name: server.scheduler.as_str().into(),
        fallback: flags.contains(SchedulerFlags::FIRST),
        by_port: flags.contains(SchedulerFlags::SECOND),
    };
    let seconds = |it: &Persistence| u32::try_from(it.timeout.as_secs()).unwrap_or(u32::MAX);
    let affinity_seconds = server.persistence.as_ref().map(seconds);
    let ours = VirtualServer { scheduler, affinity_seconds };
    (virtual_server(&frontend(&server.key)?, &ours) == *server).then_some(ours)
}

fn real_server(real: &RealServer) -> ipvs_rs::RealServer {
    let mut server = ipvs_rs::RealServer::new(real.address);
    (server.weight, server.forward) = (real.weight, Forward::Masquerade);
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_program_is_recognised_when_it_is_listed() {
        for (text, affinity_seconds) in [("rr", None), ("sh-port", Some(10800)), ("mh", Some(5))] {
            for address in ["10.96.0.1:80", "[fd00:96::1]:80"] {
                let socket: SocketAddr = address.parse().unwrap();
                let at = Frontend { address: socket.ip(), port: socket.port(), protocol: Protocol::Sctp };
                let scheduler = IpvsScheduler::parse(text).unwrap();
                let ours = VirtualServer { scheduler, affinity_seconds };
                let sent = virtual_server(&at, &ours);
                assert_eq!(frontend(&sent.key), Some(at));
                assert_eq!(switches(&sent), Some(ours));
            }
        }
    }

    #[test]
    fn switches_that_we_never_set_are_not_taken_for_ours() {
        let at = Frontend { address: [10, 96, 0, 1].into(), port: 53, protocol: Protocol::Udp };
        let scheduler = IpvsScheduler::parse("rr").unwrap();
        let mut server = virtual_server(&at, &VirtualServer { scheduler, affinity_seconds: None });
        server.one_packet = true;
        assert_eq!(switches(&server), None);
        server.key = Key::fwmark(Family::V4, 7);
        assert_eq!(frontend(&server.key), None);
    }
}

//! What went wrong, with which object.

use crate::server::Key;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no IPVS: the module `ip_vs` is not loaded and could not be.
    #[error("the kernel has no IPVS (module ip_vs is not loaded)")]
    Unavailable,
    /// The kernel refused the operation.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The exchange with the kernel failed; whether the operation was carried out is unknown.
    #[error("IPVS: {0}")]
    Netlink(#[from] netlink::Error),
}

impl Error {
    /// Why the kernel refused, if it was the kernel that refused.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Error::Refused(refused) => Some(refused.reason()),
            _ => None,
        }
    }

    /// Gives a failure of the netlink layer its operation.
    pub(crate) fn of(operation: Operation, error: netlink::Error) -> Error {
        match error {
            netlink::Error::Refused(refusal) => Refused::new(operation, refusal).into(),
            other => Error::Netlink(other),
        }
    }
}

/// What was asked of the kernel, and of which object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Add a virtual server.
    AddVirtualServer(Key),
    /// Change a virtual server.
    UpdateVirtualServer(Key),
    /// Remove a virtual server and its real servers.
    RemoveVirtualServer(Key),
    /// Look up one virtual server.
    FindVirtualServer(Key),
    /// List all virtual servers.
    ListVirtualServers,
    /// Add a real server to a virtual server.
    AddRealServer(Key, SocketAddr),
    /// Change a real server.
    UpdateRealServer(Key, SocketAddr),
    /// Remove a real server.
    RemoveRealServer(Key, SocketAddr),
    /// List the real servers of a virtual server.
    ListRealServers(Key),
    /// Reset the counters of a virtual server.
    ResetCounters(Key),
    /// Reset all counters.
    ResetAllCounters,
    /// Remove all virtual servers.
    Flush,
    /// Read the timeouts.
    ReadTimeouts,
    /// Change the timeouts.
    SetTimeouts,
    /// Read version and table size.
    ReadInfo,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::AddVirtualServer(key) => write!(f, "add virtual server {key}"),
            Operation::UpdateVirtualServer(key) => write!(f, "change virtual server {key}"),
            Operation::RemoveVirtualServer(key) => write!(f, "remove virtual server {key}"),
            Operation::FindVirtualServer(key) => write!(f, "find virtual server {key}"),
            Operation::ListVirtualServers => f.write_str("list virtual servers"),
            Operation::AddRealServer(key, real) => write!(f, "add real server {real} to {key}"),
            Operation::UpdateRealServer(key, real) => write!(f, "change real server {real} of {key}"),
            Operation::RemoveRealServer(key, real) => write!(f, "remove real server {real} from {key}"),
            Operation::ListRealServers(key) => write!(f, "list real servers of {key}"),
            Operation::ResetCounters(key) => write!(f, "reset counters of {key}"),
            Operation::ResetAllCounters => f.write_str("reset all counters"),
            Operation::Flush => f.write_str("remove all virtual servers"),
            Operation::ReadTimeouts => f.write_str("read timeouts"),
            Operation::SetTimeouts => f.write_str("set timeouts"),
            Operation::ReadInfo => f.write_str("read version"),
        }
    }
}

/// Why the kernel refused, read from its error number in the light of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The object to add is there already.
    Exists,
    /// There is no such virtual server.
    NoSuchVirtualServer,
    /// The virtual server has no such real server.
    NoSuchRealServer,
    /// The kernel has no such scheduler or persistence engine, and no module for it.
    NoSuchScheduler,
    /// The values make no sense to the kernel.
    Invalid,
    /// `CAP_NET_ADMIN` is missing.
    NotPermitted,
    /// Something else; see the error number.
    Other,
}

/// The kernel's "no" to one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// What was asked.
    pub operation: Operation,
    /// The kernel's error number, positive.
    pub errno: i32,
    /// The kernel's explanation, where it gave one.
    pub message: Option<Box<str>>,
}

impl Refused {
    pub(crate) fn new(operation: Operation, refusal: netlink::Refusal) -> Refused {
        Refused { operation, errno: refusal.errno, message: refusal.message }
    }

    /// Why, as far as the error number tells.
    #[must_use]
    pub fn reason(&self) -> Reason {
        use Operation::{AddVirtualServer, RemoveRealServer, UpdateRealServer, UpdateVirtualServer};
        match (self.errno, self.operation) {
            (libc::EEXIST, _) => Reason::Exists,
            (libc::ESRCH, _) => Reason::NoSuchVirtualServer,
            (libc::ENOENT, AddVirtualServer(_) | UpdateVirtualServer(_)) => Reason::NoSuchScheduler,
            (libc::ENOENT, UpdateRealServer(..) | RemoveRealServer(..)) => Reason::NoSuchRealServer,
            (libc::EINVAL | libc::ERANGE, _) => Reason::Invalid,
            (libc::EPERM | libc::EACCES, _) => Reason::NotPermitted,
            _ => Reason::Other,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: ", self.operation)?;
        match self.reason() {
            Reason::Exists => f.write_str("it exists")?,
            Reason::NoSuchVirtualServer => f.write_str("no such virtual server")?,
            Reason::NoSuchRealServer => f.write_str("no such real server")?,
            Reason::NoSuchScheduler => f.write_str("no such scheduler or persistence engine")?,
            _ => write!(f, "{}", io::Error::from_raw_os_error(self.errno))?,
        }
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

//! A client for IPVS, the layer-4 load balancer in the Linux kernel.
//!
//! A [`VirtualServer`] is an address, port and protocol (or a firewall mark) that clients connect to;
//! its scheduler hands each connection to one of its [`RealServer`]s. The kernel calls them service
//! and destination. This crate speaks to the kernel directly, over generic netlink: no `ipvsadm`, no C
//! library.
//!
//! ```no_run
//! use ipvs_rs::{Ipvs, Key, Protocol, RealServer, Scheduler, VirtualServer};
//!
//! # fn main() -> Result<(), ipvs_rs::Error> {
//! let mut ipvs = Ipvs::open()?;
//! let key = Key::address(Protocol::Tcp, "192.0.2.1:80".parse().unwrap());
//! ipvs.add_virtual_server(&VirtualServer::new(key, Scheduler::ROUND_ROBIN))?;
//! ipvs.add_real_server(&key, &RealServer::new("10.0.0.7:8080".parse().unwrap()))?;
//! for listed in ipvs.list_virtual_servers()? {
//!     println!("{} {} {:?}", listed.server.key, listed.server.scheduler, listed.stats);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Many changes are best made through a [`Batch`]: one system call carries up to 128 of them, and
//! each refusal names its object.
//!
//! # What to know
//!
//! - Everything blocks; the kernel answers at once. An [`Ipvs`] works in the network namespace of the
//!   thread that opened it.
//! - Reading needs `CAP_NET_ADMIN` as writing does.
//! - Opening makes the kernel load `ip_vs` if it can; a scheduler `x` needs the module `ip_vs_x`.
//! - Times are whole seconds in the kernel; fractions of a [`Duration`](std::time::Duration) are cut.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod batch;
mod client;
mod error;
mod read;
#[cfg(test)]
mod recorded;
mod server;
mod table;
mod wire;
mod write;

pub use batch::Batch;
pub use client::Ipvs;
pub use error::{Error, Operation, Reason, Refused};
/// Why an exchange with the kernel failed; see [`Error::Netlink`].
pub use netlink::Error as NetlinkError;
pub use server::{
    Family, Forward, Info, Key, ListedRealServer, ListedVirtualServer, Netmask, Persistence, Protocol,
    RealServer, Scheduler, SchedulerFlags, Stats, TimeoutChange, Timeouts, Tunnel, VirtualServer,
};
pub use table::{TableEntry, visit_table};

#[doc(hidden)]
pub mod fuzzing {
    //! Entry points for fuzzers; not part of the interface.

    /// Feeds bytes to every parser, as if the kernel had sent them.
    pub fn parse_anything(bytes: &[u8]) {
        crate::read::parse_anything(bytes);
        crate::table::parse_anything(bytes);
    }
}

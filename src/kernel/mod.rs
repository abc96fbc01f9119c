//! Thin hands on the node: the only room that runs a command, opens a netlink socket or writes
//! under /proc.
//!
//! A handle does one thing to the kernel and says what came of it. It decides nothing: which chain,
//! which counter or which value is wanted is settled before it is called. Netlink calls, and reads and writes under
//! /proc, block the calling thread and are short; tools run as children that are awaited. The kernel answers for the
//! network namespace of the calling thread (which is why /proc is read through `thread-self`).
#![allow(clippy::disallowed_methods, reason = "the one room that runs programs")]

pub mod addresses;
pub mod conntrack;
pub mod cpus;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod links;
pub mod logs;
pub mod memory;
pub mod netns_lock;
pub mod nfacct;
mod nfnetlink;
pub mod nft;
pub mod nftables;
pub mod not_loaded;
pub mod process;
pub mod sockets;
pub mod sysctl;
pub mod terminal;
pub mod xtables_entries;
pub mod xtables_info;

#[cfg(test)]
pub(crate) mod fresh_netns;

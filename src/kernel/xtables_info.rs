//! How big a table of legacy iptables is, without running the tool.
//!
//! Asking the kernel for a table's size *makes* the table, with its hooks, in a network namespace that
//! had none, as long as the table's module is there (seen on 6.18). A look must not do that, so the
//! list of existing tables is read first.
#![allow(unsafe_code)] // No crate wraps these two socket options; see the one block below.

use crate::model::IpFamily;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

/// The size of one legacy table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Rules, plus one policy entry per built-in chain, two (head and tail) per other chain, and the end mark.
    pub entries: u32,
    /// Bytes of all entries.
    pub size: u32,
}

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
pub(super) const NAME_LEN: usize = 32;

/// `struct ipt_getinfo`, the same for both families.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GetInfo {
    name: [u8; NAME_LEN],
    valid_hooks: libc::c_uint,
    hook_entry: [libc::c_uint; 5],
    underflow: [libc::c_uint; 5],
    entries: libc::c_uint,
    size: libc::c_uint,
}

/// The size of a legacy table, or `None` if the namespace does not have the table.
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or if the kernel fails otherwise.
pub fn num_entries(family: IpFamily, table: &str) -> Result<Option<TableSize>> {
    let info = existing_info(family, table)?;
    Ok(info.map(|info| TableSize { entries: info.entries, size: info.size }))
}

/// Whether a legacy table has no rules and only built-in chains, or the namespace does not have the table.
///
/// # Errors
/// As [`num_entries`].
pub(super) fn is_empty(family: IpFamily, table: &str) -> Result<bool> {
    // Each built-in chain has its policy, and the table its end mark.
    let only_built_in = |info: GetInfo| info.entries == info.valid_hooks.count_ones() + 1;
    Ok(existing_info(family, table)?.is_none_or(only_built_in))
}

/// How much the entries of a table take, and where its built-in chains begin, by hook number.
pub(super) struct TableLayout {
    pub(super) size: u32,
    pub(super) hooks: [Option<u32>; 5],
}

/// The layout of a legacy table, or `None` if the namespace does not have the table.
pub(super) fn table_layout(family: IpFamily, table: &str) -> Result<Option<TableLayout>> {
    let Some(info) = existing_info(family, table)? else { return Ok(None) };
    let begins = |hook: usize| (info.valid_hooks & (1 << hook) != 0).then(|| info.hook_entry[hook]);
    Ok(Some(TableLayout { size: info.size, hooks: std::array::from_fn(begins) }))
}

fn existing_info(family: IpFamily, table: &str) -> Result<Option<GetInfo>> {
    let describe = || format!("cannot read the size of legacy {family} table {table}");
    if !exists(family, table).with_context(describe)? {
        return Ok(None);
    }
    match get_info(family, table) {
        Ok(info) => Ok(Some(info)),
        // The table or its module went away since, or the family is off.
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EAFNOSUPPORT) => Ok(None),
        Err(errno) => Err(errno).with_context(describe),
    }
}

/// A socket for the options of a family, and their level.
pub(super) fn open(family: IpFamily) -> nix::Result<(OwnedFd, libc::c_int)> {
    let (domain, level) = match family {
        IpFamily::V4 => (AddressFamily::Inet, libc::SOL_IP),
        IpFamily::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    Ok((socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?, level))
}

/// Whether the calling thread's namespace has this table already.
fn exists(family: IpFamily, table: &str) -> io::Result<bool> {
    // `/proc/net` would be the namespace of the process's first thread.
    let path = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().any(|name| name == table)),
        // Legacy iptables is not loaded at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn get_info(family: IpFamily, table: &str) -> nix::Result<GetInfo> {
    let mut info = GetInfo::default();
    // The name is zero-terminated, so it may use all bytes but the last.
    let name = info.name[..NAME_LEN - 1].get_mut(..table.len()).ok_or(Errno::ENAMETOOLONG)?;
    name.copy_from_slice(table.as_bytes());
    let (socket, level) = open(family)?;
    let mut len = libc::socklen_t::try_from(size_of::<GetInfo>()).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the descriptor is open for the whole call; `info` is a C struct of integers for which any
    // bytes are valid, writable for the `len` bytes announced, and `len` is a writable socklen_t. Neither
    // pointer is kept by the kernel after the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, (&raw mut info).cast(), &raw mut len)
    };
    Errno::result(result).map(|_| info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    #[test]
    fn looking_at_a_missing_table_does_not_make_it() {
        in_fresh_netns(|| {
            for family in IpFamily::ALL {
                assert_eq!(num_entries(family, "nat").unwrap(), None);
                assert!(!exists(family, "nat").unwrap());
            }
        });
    }

    #[test]
    fn asking_the_kernel_directly_would_make_the_table() {
        in_fresh_netns(|| {
            assert!(get_info(IpFamily::V4, "nat").is_ok());
            assert!(exists(IpFamily::V4, "nat").unwrap());
            assert_eq!(get_info(IpFamily::V4, "no-such-table").err(), Some(Errno::ENOENT));
        });
    }

    #[test]
    fn entries_count_rules_chains_policies_and_the_end_mark() {
        in_fresh_netns(|| {
            for (family, tool) in [(IpFamily::V4, "iptables-legacy"), (IpFamily::V6, "ip6tables-legacy")] {
                run(&format!("{tool} -w -t nat -L -n > /dev/null"));
                let empty = num_entries(family, "nat").unwrap().unwrap();
                assert_eq!(empty.entries, 4 + 1, "four built-in chains and the end mark");
                assert!(is_empty(family, "nat").unwrap() && is_empty(family, "filter").unwrap());
                run(&format!("{tool} -w -t nat -N A; {tool} -w -t nat -A A -j RETURN"));
                let filled = num_entries(family, "nat").unwrap().unwrap();
                assert_eq!(filled.entries, empty.entries + 3, "head, rule and tail of the chain");
                assert!(filled.size > empty.size && !is_empty(family, "nat").unwrap());
            }
        });
    }
}

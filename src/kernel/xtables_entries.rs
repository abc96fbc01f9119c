//! Reading the rules of a legacy table: not what they say, but where they lead and what they count.
//!
//! The kernel hands out a table only as a whole, so for the length of a reading its entries are in
//! memory. The tool would hold them as well, and parse them.
#![allow(unsafe_code)] // No crate wraps this socket option; see the one block below.

use super::iptables::CountedRule;
use super::xtables_info::{NAME_LEN, open, table_layout};
use crate::model::IpFamily;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::AsRawFd;

/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_get_entries`: name, size, and padding up to the entries, which are 8-aligned.
const REQUEST_LEN: usize = 40;
/// A table is in our memory while it is read, so larger ones are not: this is about 6,000 rules.
const MOST_BYTES: u32 = 2 << 20;
/// How often a table may change between asking for its size and for its entries.
const ATTEMPTS: usize = 5;
/// Built-in chains by hook number.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// `struct xt_entry_target`: size, name, revision.
const TARGET_LEN: usize = 32;
/// `struct xt_counters`, the end of an entry's head: packets, then bytes.
const COUNTERS_LEN: usize = 16;

/// How a family lays its entries out.
#[derive(Clone, Copy)]
struct Layout {
    /// Length of addresses, interfaces, protocol and flags.
    matched: usize,
    /// Length of the whole head of an entry.
    head: usize,
}

impl Layout {
    fn of(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Layout { matched: 84, head: 112 },
            IpFamily::V6 => Layout { matched: 136, head: 168 },
        }
    }
}

/// Visits the rules of a table, chain by chain, in order; a table that is not there has none.
/// `false` if it is larger than [`MOST_BYTES`]: then nothing is read.
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or if the kernel fails otherwise.
pub fn rules(family: IpFamily, table: &str, visit: &mut dyn FnMut(CountedRule<'_>)) -> Result<bool> {
    let describe = || format!("cannot read legacy {family} table {table}");
    for _ in 0..ATTEMPTS {
        let Some(layout) = table_layout(family, table).with_context(describe)? else { return Ok(true) };
        if layout.size > MOST_BYTES {
            return Ok(false);
        }
        match read(family, table, layout.size) {
            Ok(blob) => {
                let table =
                    Table { layout: Layout::of(family), blob: &blob[REQUEST_LEN..], hooks: layout.hooks };
                return table.visit(visit).with_context(describe).map(|()| true);
            }
            // It has another size by now.
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno).with_context(describe),
        }
    }
    bail!("{}: another program changed it at every attempt", describe())
}

/// The request with the entries behind it.
fn read(family: IpFamily, table: &str, size: u32) -> nix::Result<Vec<u8>> {
    let len = usize::try_from(size).map_err(|_| Errno::EOVERFLOW)?.saturating_add(REQUEST_LEN);
    let mut blob = vec![0_u8; len];
    blob.get_mut(..table.len().min(NAME_LEN - 1)).ok_or(Errno::EINVAL)?.copy_from_slice(table.as_bytes());
    blob[NAME_LEN..NAME_LEN + 4].copy_from_slice(&size.to_ne_bytes());
    let (socket, level) = open(family)?;
    let mut len = libc::socklen_t::try_from(len).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the descriptor is open for the whole call; `blob` is writable for the `len` bytes
    // announced, any bytes are valid in it, and `len` is a writable socklen_t. Neither pointer is kept
    // by the kernel after the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, GET_ENTRIES, blob.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(result).map(|_| blob)
}

/// The entries of a table.
struct Table<'a> {
    layout: Layout,
    blob: &'a [u8],
    /// Where built-in chains begin, by name.
    hooks: [Option<u32>; HOOKS.len()],
}

/// One entry, in its parts.
struct Entry<'a> {
    packets: u64,
    target: &'a [u8],
    next: u32,
}

impl<'a> Table<'a> {
    fn number<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.blob.get(at..at.saturating_add(N)).and_then(|bytes| bytes.try_into().ok());
        bytes.context("an entry goes beyond the end")
    }

    fn entry(&self, at: u32) -> Result<Entry<'a>> {
        let start = usize::try_from(at)?;
        let offset = |at| Ok::<_, anyhow::Error>(usize::from(u16::from_ne_bytes(self.number(at)?)));
        let (target, next) =
            (offset(start + self.layout.matched + 4)?, offset(start + self.layout.matched + 6)?);
        if target < self.layout.head || next < target + TARGET_LEN + 4 {
            bail!("an entry with impossible offsets");
        }
        let bytes = self.blob.get(start + target..start + next);
        Ok(Entry {
            packets: u64::from_ne_bytes(self.number(start + self.layout.head - COUNTERS_LEN)?),
            target: bytes.context("an entry with impossible offsets")?,
            next: at.checked_add(u32::try_from(next)?).context("a table beyond 4 GiB")?,
        })
    }

    /// Where each chain begins: its name by the position of its first rule.
    fn chains(&self) -> Result<HashMap<u32, &'a str>> {
        let mut chains: HashMap<u32, &'a str> = HashMap::new();
        for (name, start) in HOOKS.into_iter().zip(self.hooks) {
            chains.extend(start.map(|start| (start, name)));
        }
        let mut at = 0;
        while usize::try_from(at)? < self.blob.len() {
            let entry = self.entry(at)?;
            if let Some(name) = entry.opens() {
                chains.insert(entry.next, name);
            }
            at = entry.next;
        }
        Ok(chains)
    }

    /// The last entry of each chain is its policy, or the return from it.
    fn visit(&self, visit: &mut dyn FnMut(CountedRule<'_>)) -> Result<()> {
        let chains = self.chains()?;
        let (mut at, mut chain) = (0, "");
        let mut pending: Option<CountedRule<'_>> = None;
        while usize::try_from(at)? < self.blob.len() {
            let entry = self.entry(at)?;
            if let Some(name) = chains.get(&at) {
                (chain, pending) = (name, None);
            }
            if entry.opens().is_some() {
                (chain, pending) = ("", None);
            } else if !chain.is_empty() {
                let (jumps_to, packets) = (entry.jumps_to(&chains), entry.packets);
                if let Some(rule) = pending.replace(CountedRule { chain, jumps_to, packets }) {
                    visit(rule);
                }
            }
            at = entry.next;
        }
        Ok(())
    }
}

impl<'a> Entry<'a> {
    /// The chain that begins behind it.
    fn opens(&self) -> Option<&'a str> {
        (text(&self.target[2..TARGET_LEN - 1]) == Some("ERROR"))
            .then(|| text(&self.target[TARGET_LEN..]))
            .flatten()
    }

    fn jumps_to(&self, chains: &HashMap<u32, &'a str>) -> Option<&'a str> {
        let is_standard = self.target[2] == 0;
        let verdict = self.target[TARGET_LEN..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        // A negative one is no position.
        let position = verdict.filter(|at| is_standard && *at <= i32::MAX as u32);
        position.and_then(|at| chains.get(&at).copied())
    }
}

/// Zero-terminated text.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    fn list(family: IpFamily) -> Vec<(String, Option<String>)> {
        let mut found = Vec::new();
        rules(family, "nat", &mut |rule| {
            found.push((rule.chain.to_owned(), rule.jumps_to.map(str::to_owned)));
        })
        .unwrap();
        found
    }

    #[test]
    fn rules_are_told_with_their_chains_and_where_they_lead() {
        in_fresh_netns(|| {
            for (family, tool) in [(IpFamily::V4, "iptables-legacy"), (IpFamily::V6, "ip6tables-legacy")] {
                let t = format!("{tool} -w -t nat");
                run(&format!(
                    "{t} -N A; {t} -N B; {t} -N EMPTY
                     {t} -A A -p tcp -m comment --comment x -m statistic --mode random --probability 0.5 -j B
                     {t} -A A -j MARK --set-mark 1
                     {t} -A A -m comment --comment counted
                     {t} -A B -m recent --name r --rcheck --seconds 5 --reap -j RETURN
                     {t} -A OUTPUT -j A"
                ));
                let found = list(family);
                let found: Vec<_> = found.iter().map(|(chain, to)| (chain.as_str(), to.as_deref())).collect();
                let expected =
                    [("OUTPUT", Some("A")), ("A", Some("B")), ("A", None), ("A", None), ("B", None)];
                assert_eq!(found, expected, "{family}");
            }
        });
    }

    #[test]
    fn rules_of_both_families_tell_what_they_have_counted() {
        in_fresh_netns(|| {
            run("ip link set lo up");
            for (family, tool, to) in [
                (IpFamily::V4, "iptables-legacy", "127.0.0.1:9"),
                (IpFamily::V6, "ip6tables-legacy", "[::1]:9"),
            ] {
                let t = format!("{tool} -w -t nat -A");
                // Connections are tracked as soon as there is a rule that needs it.
                run(&format!(
                    "{t} POSTROUTING -p tcp -j MASQUERADE
                     {t} OUTPUT -p tcp -j ACCEPT
                     {t} OUTPUT -p udp -j ACCEPT"
                ));
                for _ in 0..3 {
                    let here = if family == IpFamily::V4 { "127.0.0.1:0" } else { "[::1]:0" };
                    std::net::UdpSocket::bind(here).unwrap().send_to(b"x", to).unwrap();
                }
                let mut counts = Vec::new();
                let mut visit =
                    |rule: CountedRule<'_>| counts.extend((rule.chain == "OUTPUT").then_some(rule.packets));
                rules(family, "nat", &mut visit).unwrap();
                assert_eq!(counts, [0, 3], "{family}");
            }
        });
    }

    #[test]
    fn a_missing_table_has_no_rules_and_is_not_made() {
        in_fresh_netns(|| {
            assert_eq!(list(IpFamily::V4), []);
            assert_eq!(super::super::xtables_info::num_entries(IpFamily::V4, "nat").unwrap(), None);
        });
    }
}

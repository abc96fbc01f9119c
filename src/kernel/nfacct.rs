//! Netfilter accounting: named packet counters that rules refer to.
//!
//! Counters belong to the network namespace. Those of our rules outlive us on purpose, and are never deleted.

use super::nfnetlink::{self, HEADER_LEN};
use anyhow::{Context, Result, bail};
use netlink::{Malformed, Message, MsgBuf, Protocol, Socket};

const SUBSYSTEM: u16 = 7 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 3;
const NAME: u16 = 1;
const PACKETS: u16 = 2;
const BYTES: u16 = 3;
/// The kernel's `NFACCT_NAME_MAX` without the terminating zero.
const NAME_MAX: usize = 31;
/// `NLM_F_CREATE`; without `NLM_F_REPLACE` the kernel leaves an existing counter alone.
const CREATE: u16 = 0x400;

/// What a counter has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A handle on the accounting subsystem in the calling thread's network namespace.
#[derive(Debug)]
pub struct Nfacct {
    socket: Socket,
    request: MsgBuf,
}

impl Nfacct {
    /// Opens the handle and asks for some name: an answer, or "no such counter", proves support.
    ///
    /// # Errors
    /// If the kernel has no accounting, or on lack of permission.
    pub fn probe() -> Result<Nfacct> {
        let socket = Socket::open(Protocol::Netfilter).context("cannot reach netfilter accounting")?;
        let mut nfacct = Nfacct { socket, request: MsgBuf::new() };
        nfacct.get("IMayExist").context("netfilter accounting is not usable")?;
        Ok(nfacct)
    }

    fn begin(&mut self, kind: u16, flags: u16, name: &str) {
        self.request.clear();
        nfnetlink::begin(&mut self.request, kind, flags, 0);
        self.request.string(NAME, name);
    }

    /// Makes the counter unless it exists.
    ///
    /// # Errors
    /// If it can neither be found nor made. Losing the race against another maker (`EBUSY`) is an error
    /// as well; the next call finds the counter.
    pub fn ensure(&mut self, name: &str) -> Result<()> {
        if name.is_empty() || name.len() > NAME_MAX {
            bail!("counter name {name:?} must have 1 to {NAME_MAX} characters");
        }
        if self.get(name)?.is_some() {
            return Ok(());
        }
        self.begin(NEW, CREATE, name);
        self.socket
            .request(&mut self.request, &mut |_| Ok(()))
            .with_context(|| format!("cannot make counter {name}"))
    }

    /// Deletes a counter.
    ///
    /// # Errors
    /// If there is none, or a rule names it.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        self.begin(DELETE, 0, name);
        self.socket
            .request(&mut self.request, &mut |_| Ok(()))
            .with_context(|| format!("cannot delete counter {name}"))
    }

    /// The counter's value, or `None` if there is no such counter.
    ///
    /// # Errors
    /// If the kernel refuses for any other reason.
    pub fn get(&mut self, name: &str) -> Result<Option<Counter>> {
        self.begin(GET, 0, name);
        let mut counter = None;
        let answer = self.socket.request(&mut self.request, &mut |reply| {
            if reply.kind == NEW {
                counter = Some(parse_counter(&reply)?);
            }
            Ok(())
        });
        match answer {
            Ok(()) => Ok(counter),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read counter {name}")),
        }
    }
}

fn parse_counter(message: &Message<'_>) -> Result<Counter, Malformed> {
    let mut counter = Counter::default();
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            PACKETS => counter.packets = attribute.be64()?,
            BYTES => counter.bytes = attribute.be64()?,
            _ => {}
        }
    }
    Ok(counter)
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(message: &Message<'_>) {
    let _ = parse_counter(message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    #[test]
    fn a_counter_is_made_once_and_counts() {
        in_fresh_netns(|| {
            let mut nfacct = Nfacct::probe().unwrap();
            let name = "ct_state_invalid_dropped_pkts";
            assert_eq!(nfacct.get(name).unwrap(), None);
            nfacct.ensure(name).unwrap();
            assert_eq!(nfacct.get(name).unwrap(), Some(Counter::default()));
            run(&format!("iptables-nft -A OUTPUT -p udp -m nfacct --nfacct-name {name}"));
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            nfacct.ensure(name).unwrap();
            assert_eq!(nfacct.get(name).unwrap(), Some(Counter { packets: 1, bytes: 20 + 8 + 1 }));
            assert!(nfacct.remove(name).is_err(), "a rule names it");
            run("iptables-nft -F OUTPUT");
            nfacct.remove(name).unwrap();
            assert_eq!(nfacct.get(name).unwrap(), None);
        });
    }

    #[test]
    fn a_name_the_kernel_would_cut_is_refused() {
        in_fresh_netns(|| {
            let mut nfacct = Nfacct::probe().unwrap();
            nfacct.ensure(&"x".repeat(31)).unwrap();
            assert!(nfacct.ensure(&"x".repeat(32)).is_err());
            assert!(nfacct.ensure("").is_err());
        });
    }
}

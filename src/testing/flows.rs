//! Connection tracking full of other people's flows.

use anyhow::{Context as _, Result, ensure};
use netlink::{MsgBuf, Protocol, Socket};
use std::process::Command;

/// `IPCTNL_MSG_CT_NEW` of `NFNL_SUBSYS_CTNETLINK`.
const NEW: u16 = 1 << 8;
const CREATE: u16 = 0x400 | 0x200;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const TIMEOUT: u16 = 7;
/// The families' numbers in a netfilter header, and UDP's.
const V4_HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];
const UDP: u8 = 17;
const AT_ONCE: u32 = 1_000;
/// Seconds that a flow lives; longer than any test.
const LIFE: u32 = 3_600;

/// Makes the kernel track the flows of this thread's network namespace, as it does on every node on which
/// flows have been tracked: a foreign rule asks for the state of connections.
///
/// # Errors
/// When the tool fails.
pub fn track() -> Result<()> {
    for tool in ["iptables-nft", "ip6tables-nft"] {
        let rule = "-w -t raw -A OUTPUT -m conntrack --ctstate INVALID -j ACCEPT";
        let status = Command::new(tool).args(rule.split(' ')).status().with_context(|| tool.to_owned())?;
        ensure!(status.success(), "{tool} {rule}: {status}");
    }
    Ok(())
}

/// Adds `count` foreign UDP flows to this thread's network namespace, each from a client of its own.
///
/// # Errors
/// When the kernel refuses one, because there may be no more of them (`net.netfilter.nf_conntrack_max`) or
/// else.
pub fn add(count: u32) -> Result<()> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut request = MsgBuf::new();
    for first in (0..count).step_by(AT_ONCE as usize) {
        request.clear();
        for number in first..count.min(first + AT_ONCE) {
            let client = (0xC612_0000 + (number >> 8)).to_be_bytes();
            let port = 1024 + u16::from(number.to_be_bytes()[3]);
            let server = [192, 0, 2, 1];
            request.begin(NEW, CREATE);
            request.header(&V4_HEADER);
            request.nest(ORIGINAL, |buf| write_direction(buf, (client, port), (server, 53)));
            request.nest(REPLY, |buf| write_direction(buf, (server, 53), (client, port)));
            request.be32(TIMEOUT, LIFE);
        }
        let refused = socket.batch(&mut request)?;
        let first = refused.first().map(|refused| refused.refusal.to_string());
        ensure!(first.is_none(), "cannot add flow: {}", first.unwrap_or_default());
    }
    Ok(())
}

fn write_direction(buf: &mut MsgBuf, from: ([u8; 4], u16), to: ([u8; 4], u16)) {
    buf.nest(1, |buf| {
        buf.bytes(1, &from.0);
        buf.bytes(2, &to.0);
    });
    buf.nest(2, |buf| {
        buf.u8(1, UDP);
        buf.be16(2, from.1);
        buf.be16(3, to.1);
    });
}

/// How many flows are tracked in this thread's network namespace.
///
/// # Errors
/// When the kernel does not track.
pub fn count() -> Result<u32> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    Ok(std::fs::read_to_string(path).context(path)?.trim().parse()?)
}

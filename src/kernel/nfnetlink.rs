//! What the messages of all of netfilter's netlink families have in common.

use crate::model::IpFamily;
use netlink::MsgBuf;

/// `struct nfgenmsg`: family, version, resource id.
pub(super) const HEADER_LEN: usize = 4;

/// A family's number.
pub(super) fn number(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => libc::AF_INET as u8,
        IpFamily::V6 => libc::AF_INET6 as u8,
    }
}

/// Begins a message about a family; 0 for none or all.
pub(super) fn begin(buf: &mut MsgBuf, kind: u16, flags: u16, family: u8) {
    buf.begin(kind, flags);
    buf.header(&[family, 0, 0, 0]);
}

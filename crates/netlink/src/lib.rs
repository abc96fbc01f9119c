//! A small netlink layer: write messages, send them, read what the kernel answers.
//!
//! [`MsgBuf`] writes requests into one reusable buffer, [`Socket`] sends them and matches the
//! answers by sequence number, [`Messages`] and [`Attributes`] read what came back without ever
//! trusting a length. [`family_id`] finds a generic-netlink family. That is all: what to ask, and
//! what an answer means, is the caller's business, and so is the choice of thread. Every call here
//! blocks.
//!
//! ```no_run
//! use netlink::{MsgBuf, Protocol, Socket};
//!
//! # fn main() -> Result<(), netlink::Error> {
//! let mut socket = Socket::open(Protocol::Generic)?;
//! let ipvs = netlink::family_id(&mut socket, "IPVS")?;
//! let mut request = MsgBuf::new();
//! request.begin(ipvs, 0);
//! request.header(&netlink::generic_header(17, 1)); // IPVS_CMD_FLUSH
//! socket.request(&mut request, &mut |_reply| Ok(()))?;
//! # Ok(())
//! # }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod error;
mod generic;
mod notices;
mod read;
mod socket;
mod write;

pub use error::{Error, Malformed, Refusal};
pub use generic::{GENERIC_HEADER_LEN, family_id, generic_header};
pub use notices::Notices;
pub use read::{Attribute, Attributes, Message, Messages};
pub use socket::{Part, Protocol, Refused, Socket};
pub use write::{List, MsgBuf};

/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// Rounds up to netlink's alignment of four bytes.
const fn align(len: usize) -> usize {
    (len + 3) & !3
}

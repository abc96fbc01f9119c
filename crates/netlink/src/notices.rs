//! What the kernel tells unasked.

use crate::socket::io_error;
use crate::{Error, Protocol};
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags};
use std::os::fd::AsRawFd;

/// A socket of the calling thread's network namespace that learns that something has changed, not what.
#[derive(Debug)]
pub struct Notices {
    socket: netlink_sys::Socket,
}

impl Notices {
    /// Listens to one multicast group from now on.
    ///
    /// # Errors
    /// If the kernel lacks the protocol or the group, or refuses the socket.
    pub fn of(protocol: Protocol, group: u32) -> Result<Notices, Error> {
        let mut socket = netlink_sys::Socket::new(protocol.number()).map_err(io_error("open socket"))?;
        socket.bind_auto().map_err(io_error("bind socket"))?;
        socket.add_membership(group).map_err(io_error("join a group"))?;
        Ok(Notices { socket })
    }

    /// Whether anything was told since the last call, or so much that some of it is lost. Does not
    /// wait.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn any(&mut self) -> Result<bool, Error> {
        let mut told = false;
        // What does not fit is thrown away by the kernel.
        let mut first_bytes = [0; 16];
        loop {
            match socket::recv(self.socket.as_raw_fd(), &mut first_bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS) => told = true,
                Err(Errno::EAGAIN) => return Ok(told),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Io { doing: "receive", source: errno.into() }),
            }
        }
    }
}

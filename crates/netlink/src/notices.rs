//! What the kernel tells unasked.

use crate::socket::io_error;
use crate::{Error, Malformed, Message, Messages, Protocol};
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, sockopt};
use std::os::fd::AsRawFd;

/// Longer than any datagram that the kernel sends to a multicast group.
const RECEIVE_LEN: usize = 32 * 1024;

/// A socket of the calling thread's network namespace that learns of changes as they are made.
#[derive(Debug)]
pub struct Notices {
    socket: netlink_sys::Socket,
    /// Made when messages are read for the first time.
    receive: Vec<u8>,
}

impl Notices {
    /// Listens to one multicast group from now on.
    ///
    /// # Errors
    /// If the kernel lacks the protocol or the group, or refuses the socket.
    pub fn of(protocol: Protocol, group: u32) -> Result<Notices, Error> {
        let mut socket = netlink_sys::Socket::new(protocol.number()).map_err(io_error("open socket"))?;
        socket.bind_auto().map_err(io_error("bind socket"))?;
        // Only the kernel may send.
        socket.connect(&netlink_sys::SocketAddr::new(0, 0)).map_err(io_error("connect to the kernel"))?;
        socket.add_membership(group).map_err(io_error("join a group"))?;
        Ok(Notices { socket, receive: Vec::new() })
    }

    /// Lets this many bytes wait, the kernel's own bookkeeping included; without the right to do so
    /// (`CAP_NET_ADMIN`), as many as the system allows. They take memory only while they wait.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn let_wait(&self, bytes: usize) -> Result<(), Error> {
        let set = socket::setsockopt(&self.socket, sockopt::RcvBufForce, &bytes)
            .or_else(|_| socket::setsockopt(&self.socket, sockopt::RcvBuf, &bytes));
        set.map_err(|errno| Error::Io { doing: "set the receive buffer", source: errno.into() })
    }

    /// Whether any notice came since the last call, or too many, so that some are lost. Does not
    /// wait.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn any(&mut self) -> Result<bool, Error> {
        let mut told = false;
        // The kernel throws away what does not fit.
        let mut first_bytes = [0; 16];
        loop {
            match self.receive_into(&mut first_bytes) {
                Ok(Some(_)) | Err(Error::Overrun) => told = true,
                Ok(None) => return Ok(told),
                Err(error) => return Err(error),
            }
        }
    }

    /// Visits the notices since the last call, in order. Does not wait.
    ///
    /// # Errors
    /// [`Error::Overrun`] if some of it is lost, once all the rest has been visited; what `visit`
    /// returns first; if the socket fails.
    pub fn read(&mut self, visit: &mut dyn FnMut(Message<'_>) -> Result<(), Malformed>) -> Result<(), Error> {
        let mut buffer = std::mem::take(&mut self.receive);
        buffer.resize(RECEIVE_LEN, 0);
        let mut outcome = Ok(());
        loop {
            match self.receive_into(&mut buffer) {
                Ok(Some(len)) if outcome.is_ok() => outcome = visit_all(&buffer[..len], visit),
                Ok(Some(_)) => {}
                Err(Error::Overrun) => outcome = outcome.and(Err(Error::Overrun)),
                Ok(None) => break,
                Err(error) => return Err(error),
            }
        }
        self.receive = buffer;
        outcome
    }

    /// One datagram, or as much of it as fits; `None` if none waits.
    fn receive_into(&self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        loop {
            match socket::recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::ENOBUFS) => return Err(Error::Overrun),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Io { doing: "receive", source: errno.into() }),
            }
        }
    }
}

fn visit_all(bytes: &[u8], visit: &mut dyn FnMut(Message<'_>) -> Result<(), Malformed>) -> Result<(), Error> {
    for message in Messages::new(bytes) {
        visit(message?)?;
    }
    Ok(())
}

//! A blocking netlink socket that knows requests, batches and dumps.

use crate::read::word;
use crate::{Attributes, Error, HEADER_LEN, Malformed, Message, Messages, MsgBuf, Refusal, align};
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

/// Dumps come in pieces of at most 32 KiB; single answers are smaller.
const RECEIVE_LEN: usize = 64 * 1024;
/// What one `send` of a batch may hold: fits the default send buffer, and if every request is
/// refused the refusals fit the default receive buffer.
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_MESSAGES: usize = 128;
const DUMP_ATTEMPTS: u32 = 10;
/// The kernel answers from within `send`, so this only ends what would otherwise hang for ever.
const TIME_LIMIT_SECONDS: i64 = 30;

/// What a send buffer must hold besides the datagram.
const HEADROOM: usize = 4096;

/// Around the requests of one netfilter transaction.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENERATION: u16 = 1;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_REQUEST: u16 = 0x01;
const F_ACK: u16 = 0x04;
const F_DUMP_INTR: u16 = 0x10;
const F_DUMP: u16 = 0x300;
const F_CAPPED: u16 = 0x100;
const F_ACK_TLVS: u16 = 0x200;
const ERROR_ATTR_MESSAGE: u16 = 1;
const ERROR_ATTR_OFFSET: u16 = 2;

/// Netlink protocols (bus numbers) this project speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes.
    Route,
    /// nf_tables, conntrack, ipset, accounting.
    Netfilter,
    /// Families found by name, such as IPVS.
    Generic,
}

impl Protocol {
    pub(crate) fn number(self) -> isize {
        match self {
            Protocol::Route => 0,
            Protocol::Netfilter => 12,
            Protocol::Generic => 16,
        }
    }
}

/// What a dump hands out.
#[derive(Debug)]
pub enum Part<T> {
    /// The list begins. Comes again when the list changed while it was read: forget what came before.
    Start,
    /// One entry.
    Item(T),
}

/// A request of a batch that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which message of the batch, counted from zero.
    pub index: usize,
    /// The kernel's reason.
    pub refusal: Refusal,
}

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct Socket {
    socket: netlink_sys::Socket,
    receive: Box<[u8]>,
    seq: u32,
    port: u32,
}

pub(crate) fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, source }
}

/// Turns what the kernel thinks of our receiving into our errors.
fn receive_error(errno: Errno) -> Error {
    match errno {
        Errno::ENOBUFS => Error::Overrun,
        Errno::EAGAIN => Error::Timeout,
        errno => Error::Io { doing: "receive", source: errno.into() },
    }
}

impl Socket {
    /// Opens a socket, connected to the kernel so that no other process can answer in its place.
    ///
    /// # Errors
    /// If the kernel lacks the protocol or refuses the socket.
    pub fn open(protocol: Protocol) -> Result<Socket, Error> {
        let mut socket = netlink_sys::Socket::new(protocol.number()).map_err(io_error("open socket"))?;
        let port = socket.bind_auto().map_err(io_error("bind socket"))?.port_number();
        socket.connect(&netlink_sys::SocketAddr::new(0, 0)).map_err(io_error("connect to the kernel"))?;
        // Both only make errors more readable; kernels before 4.12 lack them.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(TIME_LIMIT_SECONDS))
            .map_err(|errno| Error::Io { doing: "set the time limit", source: errno.into() })?;
        Ok(Socket { socket, receive: vec![0; RECEIVE_LEN].into_boxed_slice(), seq: 0, port })
    }

    /// The port, by which the kernel tells sockets of a protocol in one network namespace apart.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends one request and waits for its acknowledgement; `visit` sees what comes before it.
    ///
    /// # Errors
    /// [`Error::Refused`] if the kernel refuses; what `visit` returns; any failure of the exchange.
    pub fn request(
        &mut self,
        request: &mut MsgBuf,
        visit: &mut dyn FnMut(Message<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        debug_assert_eq!(request.messages(), 1);
        let seq = self.send(request, F_ACK)?;
        let mut visited = Ok(());
        let ended = self.answers(seq, &mut |message| {
            if visited.is_ok() {
                visited = visit(message);
            }
        })?;
        ended.result?;
        visited
    }

    /// Asks for a list and streams it through `visit`, in pieces of one fixed buffer.
    ///
    /// A list that changes while it is read is started over, announced by [`Part::Start`]. After the
    /// first error of `visit` the rest is read and thrown away, so that the socket stays usable.
    ///
    /// # Errors
    /// As [`request`](Socket::request), and [`Error::Interrupted`] if the list never held still.
    pub fn dump(
        &mut self,
        request: &mut MsgBuf,
        visit: &mut dyn FnMut(Part<Message<'_>>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        debug_assert_eq!(request.messages(), 1);
        for _ in 0..DUMP_ATTEMPTS {
            let seq = self.send(request, F_DUMP)?;
            let mut visited = visit(Part::Start);
            let ended = self.answers(seq, &mut |message| {
                if visited.is_ok() {
                    visited = visit(Part::Item(message));
                }
            })?;
            match ended.result {
                // A signal, or a subsystem's way of saying that its list changed.
                Err(refusal) if refusal.errno == libc::EINTR => continue,
                Err(refusal) => return Err(refusal.into()),
                Ok(()) if ended.interrupted => continue,
                Ok(()) => return visited,
            }
        }
        Err(Error::Interrupted { attempts: DUMP_ATTEMPTS })
    }

    /// Sends many independent requests in few system calls and returns those that were refused.
    ///
    /// The kernel carries out all of them, in order, also past a refusal. Only the last request of
    /// each `send` is acknowledged: the kernel reports every refusal, and silence is consent.
    ///
    /// # Errors
    /// Only if the exchange itself fails; then it is unknown how far the kernel came.
    pub fn batch(&mut self, requests: &mut MsgBuf) -> Result<Vec<Refused>, Error> {
        let bytes = requests.sendable().ok_or(Error::TooLong)?;
        let mut refused = Vec::new();
        let (mut start, mut sent) = (0, 0);
        while start < bytes.len() {
            let (end, count) = chunk(&bytes[start..]);
            let piece = &mut bytes[start..start + end];
            let first = self.number(piece, F_REQUEST, Some(F_ACK));
            self.transmit(&[IoSlice::new(piece)])?;
            self.acknowledgements(first, count, count - 1, &mut |index, outcome| {
                let refusal = |refusal| Refused { index: sent + index, refusal };
                refused.extend(outcome.err().map(refusal));
                Ok(())
            })?;
            start += end;
            sent += count;
        }
        Ok(refused)
    }

    /// Carries out the requests of one transaction of a netfilter subsystem (10 for nf_tables): all or none.
    /// Returns those that were refused; if there are any, none was carried out.
    ///
    /// With a `generation`, the kernel carries out nothing unless it is the current one. All is sent at once; the
    /// send buffer grows with it. Without requests, it waits for transactions that are under way, and tells whether
    /// the generation is the current one then.
    ///
    /// # Errors
    /// [`Error::Refused`] if the kernel refuses the transaction as a whole: with `ERESTART` because its generation
    /// is another one, with `ENOMEM` for want of memory. Any failure of the exchange.
    pub fn transaction(
        &mut self,
        subsystem: u8,
        generation: Option<u32>,
        requests: &mut MsgBuf,
    ) -> Result<Vec<Refused>, Error> {
        let last = requests.messages();
        let bytes = requests.sendable().ok_or(Error::TooLong)?;
        let mut begin = batch_end(BATCH_BEGIN, subsystem);
        if let Some(generation) = generation {
            begin.be32(BATCH_GENERATION, generation);
        }
        let mut end = batch_end(BATCH_END, subsystem);
        let begin = begin.sendable().ok_or(Error::TooLong)?;
        let end = end.sendable().ok_or(Error::TooLong)?;

        let first = self.number(begin, F_REQUEST, None);
        self.number(bytes, F_REQUEST, Some(F_ACK));
        self.number(end, F_REQUEST, None);
        self.transmit(&[IoSlice::new(begin), IoSlice::new(bytes), IoSlice::new(end)])?;
        let mut refused = Vec::new();
        if last == 0 {
            self.refusal_of_empty(first)?;
            return Ok(refused);
        }
        self.acknowledgements(first, last + 1, last, &mut |index, outcome| {
            match (index.checked_sub(1), outcome) {
                (_, Ok(())) => {}
                (Some(index), Err(refusal)) => refused.push(Refused { index, refusal }),
                (None, Err(refusal)) => return Err(refusal.into()),
            }
            Ok(())
        })?;
        Ok(refused)
    }

    /// Nothing acknowledges a transaction without requests. The kernel answers from within `send`, so what it refused
    /// is there already.
    fn refusal_of_empty(&mut self, begin: u32) -> Result<(), Error> {
        loop {
            let len = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Err(Error::Timeout) => return Ok(()),
                received => received?,
            };
            for message in Messages::new(&self.receive[..len]) {
                let message = message?;
                if message.kind == NLMSG_ERROR && message.seq == begin {
                    acknowledgement(&message)??;
                }
            }
        }
    }

    /// Lets this many bytes of answers wait, the kernel's own bookkeeping included; without the right to do so
    /// (`CAP_NET_ADMIN`), as many as the system allows. They take memory only while they wait.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn let_wait(&self, bytes: usize) -> Result<(), Error> {
        let set = socket::setsockopt(&self.socket, sockopt::RcvBufForce, &bytes)
            .or_else(|_| socket::setsockopt(&self.socket, sockopt::RcvBuf, &bytes));
        set.map_err(|errno| Error::Io { doing: "set the receive buffer", source: errno.into() })
    }

    /// Reads the answers to `count` requests numbered from `first`, until the one at index `last` is
    /// answered.
    fn acknowledgements(
        &mut self,
        first: u32,
        count: usize,
        last: usize,
        take: &mut dyn FnMut(usize, Result<(), Refusal>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            let len = self.receive(MsgFlags::empty())?;
            for message in Messages::new(&self.receive[..len]) {
                let message = message?;
                // Numbers may wrap around; the distance stays right.
                let index = usize::try_from(message.seq.wrapping_sub(first)).unwrap_or(usize::MAX);
                if message.kind != NLMSG_ERROR || index >= count {
                    continue;
                }
                take(index, acknowledgement(&message)?)?;
                if index == last {
                    return Ok(());
                }
            }
        }
    }

    /// Numbers and sends a buffer of one message; returns its number.
    fn send(&mut self, request: &mut MsgBuf, flags: u16) -> Result<u32, Error> {
        let bytes = request.sendable().ok_or(Error::TooLong)?;
        let seq = self.number(bytes, F_REQUEST | flags, None);
        self.transmit(&[IoSlice::new(bytes)])?;
        Ok(seq)
    }

    /// Gives each message the next number and `flags`, the last one `last` as well.
    fn number(&mut self, bytes: &mut [u8], flags: u16, last: Option<u16>) -> u32 {
        let first = self.seq.wrapping_add(1);
        let mut start = 0;
        while start + HEADER_LEN <= bytes.len() {
            let len = message_len(&bytes[start..]);
            let is_last = start + len >= bytes.len();
            let extra = if is_last { last.unwrap_or(0) } else { 0 };
            let old = u16::from_ne_bytes([bytes[start + 6], bytes[start + 7]]);
            bytes[start + 6..start + 8].copy_from_slice(&(old | flags | extra).to_ne_bytes());
            self.seq = self.seq.wrapping_add(1);
            bytes[start + 8..start + 12].copy_from_slice(&self.seq.to_ne_bytes());
            start += len;
        }
        first
    }

    /// One `send`; netlink takes a datagram whole or not at all.
    fn transmit(&self, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        let fd = self.socket.as_raw_fd();
        let mut may_grow = true;
        loop {
            match socket::sendmsg::<()>(fd, parts, &[], MsgFlags::empty(), None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EMSGSIZE) if may_grow => {
                    self.grow_send_buffer(parts.iter().map(|part| part.len()).sum())?;
                    may_grow = false;
                }
                Err(errno) => return Err(Error::Io { doing: "send", source: errno.into() }),
            }
        }
    }

    /// Makes room for a datagram of `len` bytes; without `CAP_NET_ADMIN`, as far as the system allows.
    fn grow_send_buffer(&self, len: usize) -> Result<(), Error> {
        let len = len + HEADROOM;
        socket::setsockopt(&self.socket, sockopt::SndBufForce, &len)
            .or_else(|_| socket::setsockopt(&self.socket, sockopt::SndBuf, &len))
            .map_err(|errno| Error::Io { doing: "grow the send buffer", source: errno.into() })
    }

    /// One datagram into the buffer; returns its length.
    fn receive(&mut self, flags: MsgFlags) -> Result<usize, Error> {
        loop {
            match socket::recv(self.socket.as_raw_fd(), &mut self.receive, MsgFlags::MSG_TRUNC | flags) {
                Ok(len) if len > self.receive.len() => {
                    return Err(Malformed("datagram longer than the buffer").into());
                }
                Ok(len) => return Ok(len),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(receive_error(errno)),
            }
        }
    }

    /// Hands the answers to request `seq` to `visit` until the acknowledgement or the end of a dump.
    /// Left-overs of earlier, failed exchanges are skipped.
    fn answers(&mut self, seq: u32, visit: &mut dyn FnMut(Message<'_>)) -> Result<Ended, Error> {
        let mut interrupted = false;
        loop {
            let len = self.receive(MsgFlags::empty())?;
            for message in Messages::new(&self.receive[..len]) {
                let message = message?;
                if message.seq != seq {
                    continue;
                }
                interrupted |= message.flags & F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => return Ok(Ended { interrupted, result: acknowledgement(&message)? }),
                    NLMSG_DONE => return Ok(Ended { interrupted, result: end_of_dump(&message) }),
                    _ => visit(message),
                }
            }
        }
    }
}

/// One end of a transaction: `nfgenmsg` without a family, with the subsystem.
fn batch_end(kind: u16, subsystem: u8) -> MsgBuf {
    let mut end = MsgBuf::new();
    end.begin(kind, 0);
    end.header(&[0, 0, 0, subsystem]);
    end
}

/// How a request ended.
struct Ended {
    interrupted: bool,
    result: Result<(), Refusal>,
}

/// Length of the first message of our own, well-formed `bytes`.
fn message_len(bytes: &[u8]) -> usize {
    usize::try_from(word(bytes, 0)).map_or(bytes.len(), align).clamp(HEADER_LEN, bytes.len())
}

/// How many bytes and messages of `bytes` go into one `send`; at least one message.
fn chunk(bytes: &[u8]) -> (usize, usize) {
    let (mut end, mut count) = (0, 0);
    while end < bytes.len() && count < BATCH_MESSAGES {
        let len = message_len(&bytes[end..]);
        if count > 0 && end + len > BATCH_BYTES {
            break;
        }
        end += len;
        count += 1;
    }
    (end, count)
}

/// Reads the error number that starts the payload; the kernel sends it negative.
fn errno(payload: &[u8]) -> Option<i32> {
    let bytes = payload.get(..4)?.try_into().ok()?;
    Some(i32::from_ne_bytes(bytes).saturating_neg())
}

/// Reads an acknowledgement: consent, or a refusal with the kernel's explanation.
fn acknowledgement(message: &Message<'_>) -> Result<Result<(), Refusal>, Malformed> {
    let errno = errno(message.payload).ok_or(Malformed("truncated acknowledgement"))?;
    if errno == 0 {
        return Ok(Ok(()));
    }
    let mut refusal = Refusal { errno, message: None, offset: None };
    if message.flags & F_ACK_TLVS != 0 {
        explain(message, &mut refusal);
    }
    Ok(Err(refusal))
}

/// Adds the extended acknowledgement. It follows the request's header, or the whole request where the
/// kernel did not cap it. A malformed explanation is no reason to lose the error number.
fn explain(message: &Message<'_>, refusal: &mut Refusal) {
    let Some(echo) = message.payload.get(4..4 + HEADER_LEN) else { return };
    let echoed = if message.flags & F_CAPPED == 0 { usize::try_from(word(echo, 0)).ok() } else { None };
    let at = 4_usize.saturating_add(echoed.unwrap_or(HEADER_LEN).min(message.payload.len()));
    let explanation = message.payload.get(align(at)..).unwrap_or_default();
    for attribute in Attributes::new(explanation).flatten() {
        match attribute.kind {
            ERROR_ATTR_MESSAGE => refusal.message = attribute.string().ok().map(Into::into),
            ERROR_ATTR_OFFSET => refusal.offset = attribute.u32().ok(),
            _ => {}
        }
    }
}

/// The end of a dump carries an error number as well, where the kernel bothers.
fn end_of_dump(message: &Message<'_>) -> Result<(), Refusal> {
    match errno(message.payload) {
        None | Some(0) => Ok(()),
        // Positive numbers are lengths some subsystems leave there.
        Some(errno) if errno < 0 => Ok(()),
        Some(errno) => Err(Refusal { errno, message: None, offset: None }),
    }
}

#[cfg(test)]
mod tests;

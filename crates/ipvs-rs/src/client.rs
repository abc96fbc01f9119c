//! The handle.

use crate::batch::Batch;
use crate::error::{Error, Operation, Refused};
use crate::server::{
    Info, Key, ListedRealServer, ListedVirtualServer, RealServer, TimeoutChange, Timeouts, VirtualServer,
};
use crate::wire::command;
use crate::{read, write};
use netlink::{Malformed, Message, MsgBuf, Part, Socket};
use std::net::SocketAddr;

/// A handle on the IPVS of one network namespace.
#[derive(Debug)]
pub struct Ipvs {
    socket: Socket,
    family_id: u16,
    request: MsgBuf,
}

impl Ipvs {
    /// Opens a handle on the IPVS of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the kernel has no IPVS and could not load it.
    pub fn open() -> Result<Ipvs, Error> {
        let mut socket = Socket::open(netlink::Protocol::Generic)?;
        match netlink::family_id(&mut socket, "IPVS") {
            Ok(family_id) => Ok(Ipvs { socket, family_id, request: MsgBuf::new() }),
            Err(error) if error.errno() == Some(libc::ENOENT) => Err(Error::Unavailable),
            Err(error) => Err(error.into()),
        }
    }

    /// Version and table size.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn info(&mut self) -> Result<Info, Error> {
        self.begin(command::GET_INFO);
        self.ask(Operation::ReadInfo, &mut |reply| read::info(reply).map(Some))
    }

    /// The timeouts of idle connections.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        self.begin(command::GET_CONFIG);
        self.ask(Operation::ReadTimeouts, &mut |reply| read::timeouts(reply).map(Some))
    }

    /// Changes timeouts; what is `None` or below one second stays as it is.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn set_timeouts(&mut self, change: &TimeoutChange) -> Result<(), Error> {
        self.begin(command::SET_CONFIG);
        write::timeouts(&mut self.request, change);
        self.tell(Operation::SetTimeouts)
    }

    /// All virtual servers, with their counters, in no particular order.
    ///
    /// The kernel hands out its table in pieces, finds the next piece by counting, counts entries of all
    /// network namespaces, and does not tell when the table changed meanwhile. While another process adds or
    /// removes virtual servers, in whatever namespace, an entry can therefore be missing or come twice.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn list_virtual_servers(&mut self) -> Result<Vec<ListedVirtualServer>, Error> {
        self.begin(command::GET_SERVICE);
        self.list(Operation::ListVirtualServers, &mut |message| read::virtual_server(message))
    }

    /// One virtual server, if there is one with this key.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn find_virtual_server(&mut self, key: &Key) -> Result<Option<ListedVirtualServer>, Error> {
        self.begin(command::GET_SERVICE);
        write::key(&mut self.request, key);
        match self.ask(Operation::FindVirtualServer(*key), &mut |reply| read::virtual_server(reply)) {
            Ok(listed) => Ok(Some(listed)),
            Err(Error::Refused(refused)) if refused.errno == libc::ESRCH => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The real servers of one virtual server; none if there is no such virtual server.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn list_real_servers(&mut self, key: &Key) -> Result<Vec<ListedRealServer>, Error> {
        self.begin(command::GET_DEST);
        write::key(&mut self.request, key);
        let family = key.family();
        self.list(Operation::ListRealServers(*key), &mut |message| read::real_server(message, family))
    }

    /// Adds a virtual server.
    ///
    /// # Errors
    /// [`Reason::Exists`](crate::Reason::Exists) if there is one with this key;
    /// [`Reason::NoSuchScheduler`](crate::Reason::NoSuchScheduler).
    pub fn add_virtual_server(&mut self, server: &VirtualServer) -> Result<(), Error> {
        self.one(|batch| batch.add_virtual_server(server))
    }

    /// Gives a virtual server a new scheduler, new flags and new persistence; its real servers and
    /// connections stay.
    ///
    /// # Errors
    /// [`Reason::NoSuchVirtualServer`](crate::Reason::NoSuchVirtualServer) if there is none;
    /// [`Reason::NoSuchScheduler`](crate::Reason::NoSuchScheduler).
    pub fn update_virtual_server(&mut self, server: &VirtualServer) -> Result<(), Error> {
        self.one(|batch| batch.update_virtual_server(server))
    }

    /// Removes a virtual server and its real servers.
    ///
    /// # Errors
    /// [`Reason::NoSuchVirtualServer`](crate::Reason::NoSuchVirtualServer) if there is none.
    pub fn remove_virtual_server(&mut self, key: &Key) -> Result<(), Error> {
        self.one(|batch| batch.remove_virtual_server(key))
    }

    /// Adds a real server to a virtual server.
    ///
    /// # Errors
    /// [`Reason::Exists`](crate::Reason::Exists) if the virtual server has it;
    /// [`Reason::NoSuchVirtualServer`](crate::Reason::NoSuchVirtualServer).
    pub fn add_real_server(&mut self, key: &Key, server: &RealServer) -> Result<(), Error> {
        self.one(|batch| batch.add_real_server(key, server))
    }

    /// Gives a real server a new forwarding method, weight and thresholds.
    ///
    /// # Errors
    /// [`Reason::NoSuchRealServer`](crate::Reason::NoSuchRealServer);
    /// [`Reason::NoSuchVirtualServer`](crate::Reason::NoSuchVirtualServer).
    pub fn update_real_server(&mut self, key: &Key, server: &RealServer) -> Result<(), Error> {
        self.one(|batch| batch.update_real_server(key, server))
    }

    /// Removes a real server.
    ///
    /// # Errors
    /// [`Reason::NoSuchRealServer`](crate::Reason::NoSuchRealServer);
    /// [`Reason::NoSuchVirtualServer`](crate::Reason::NoSuchVirtualServer).
    pub fn remove_real_server(&mut self, key: &Key, address: SocketAddr) -> Result<(), Error> {
        self.one(|batch| batch.remove_real_server(key, address))
    }

    /// Removes all virtual servers, those of other programs included.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.begin(command::FLUSH);
        self.tell(Operation::Flush)
    }

    /// Resets the counters of one virtual server and its real servers.
    ///
    /// # Errors
    /// [`Reason::NoSuchVirtualServer`](crate::Reason::NoSuchVirtualServer) if there is none.
    pub fn reset_counters(&mut self, key: &Key) -> Result<(), Error> {
        self.one(|batch| batch.reset_counters(key))
    }

    /// Resets all counters.
    ///
    /// # Errors
    /// If the kernel refuses or the exchange fails.
    pub fn reset_all_counters(&mut self) -> Result<(), Error> {
        self.begin(command::ZERO);
        self.tell(Operation::ResetAllCounters)
    }

    /// An empty list of changes for [`run`](Ipvs::run).
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.family_id)
    }

    /// Carries out a batch, in order and past refusals, which it returns. The batch may be run again.
    ///
    /// # Errors
    /// Only if the exchange itself fails; then it is unknown how far the kernel came.
    pub fn run(&mut self, batch: &mut Batch) -> Result<Vec<Refused>, Error> {
        let refused = self.socket.batch(&mut batch.requests)?;
        Ok(refused.into_iter().filter_map(|refused| batch.refused(refused)).collect())
    }

    fn begin(&mut self, command: u8) {
        self.request.clear();
        write::begin(&mut self.request, self.family_id, command);
    }

    /// Carries out a batch of one.
    fn one(&mut self, fill: impl FnOnce(&mut Batch)) -> Result<(), Error> {
        let mut batch = self.batch();
        fill(&mut batch);
        match self.run(&mut batch)?.pop() {
            Some(refused) => Err(refused.into()),
            None => Ok(()),
        }
    }

    /// Sends the prepared request, which has no other answer than yes or no.
    fn tell(&mut self, operation: Operation) -> Result<(), Error> {
        self.socket.request(&mut self.request, &mut |_| Ok(())).map_err(|error| Error::of(operation, error))
    }

    /// Sends the prepared request and reads its one answer.
    fn ask<T>(
        &mut self,
        operation: Operation,
        parse: &mut dyn FnMut(&Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<T, Error> {
        let mut answer = None;
        self.socket
            .request(&mut self.request, &mut |reply| {
                answer = parse(&reply)?;
                Ok(())
            })
            .map_err(|error| Error::of(operation, error))?;
        answer.ok_or(Error::Netlink(Malformed("answer without its object").into()))
    }

    /// Sends the prepared request and reads a list.
    fn list<T>(
        &mut self,
        operation: Operation,
        parse: &mut dyn FnMut(&Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, Error> {
        let mut entries = Vec::new();
        self.socket
            .dump(&mut self.request, &mut |part| {
                match part {
                    Part::Start => entries.clear(),
                    Part::Item(message) => entries.extend(parse(&message)?),
                }
                Ok(())
            })
            .map_err(|error| Error::of(operation, error))?;
        Ok(entries)
    }
}

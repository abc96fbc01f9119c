//! Many changes at once.

use crate::error::{Operation, Refused};
use crate::server::{Key, RealServer, VirtualServer};
use crate::wire::command;
use crate::write;
use netlink::MsgBuf;
use std::net::SocketAddr;

/// A list of changes, to be carried out in order by [`crate::Ipvs::run`].
///
/// A refused change does not stop those after it.
#[derive(Debug)]
pub struct Batch {
    pub(crate) requests: MsgBuf,
    family_id: u16,
    operations: Vec<Operation>,
}

impl Batch {
    pub(crate) fn new(family_id: u16) -> Batch {
        Batch { requests: MsgBuf::new(), family_id, operations: Vec::new() }
    }

    /// How many changes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Forgets all changes, keeps the memory.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.operations.clear();
    }

    /// Adds a virtual server.
    pub fn add_virtual_server(&mut self, server: &VirtualServer) {
        self.begin(command::NEW_SERVICE, Operation::AddVirtualServer(server.key));
        write::virtual_server(&mut self.requests, server);
    }

    /// Gives a virtual server a new scheduler, new flags and new persistence.
    pub fn update_virtual_server(&mut self, server: &VirtualServer) {
        self.begin(command::SET_SERVICE, Operation::UpdateVirtualServer(server.key));
        write::virtual_server(&mut self.requests, server);
    }

    /// Removes a virtual server and its real servers.
    pub fn remove_virtual_server(&mut self, key: &Key) {
        self.begin(command::DEL_SERVICE, Operation::RemoveVirtualServer(*key));
        write::key(&mut self.requests, key);
    }

    /// Adds a real server to a virtual server.
    pub fn add_real_server(&mut self, key: &Key, server: &RealServer) {
        self.begin(command::NEW_DEST, Operation::AddRealServer(*key, server.address));
        write::key(&mut self.requests, key);
        write::real_server(&mut self.requests, server);
    }

    /// Gives a real server a new forwarding method, weight and thresholds.
    pub fn update_real_server(&mut self, key: &Key, server: &RealServer) {
        self.begin(command::SET_DEST, Operation::UpdateRealServer(*key, server.address));
        write::key(&mut self.requests, key);
        write::real_server(&mut self.requests, server);
    }

    /// Removes a real server; its connections are cut when their next packet comes.
    pub fn remove_real_server(&mut self, key: &Key, address: SocketAddr) {
        self.begin(command::DEL_DEST, Operation::RemoveRealServer(*key, address));
        write::key(&mut self.requests, key);
        write::real_address(&mut self.requests, address);
    }

    /// Resets the counters of a virtual server and its real servers.
    pub fn reset_counters(&mut self, key: &Key) {
        self.begin(command::ZERO, Operation::ResetCounters(*key));
        write::key(&mut self.requests, key);
    }

    fn begin(&mut self, command: u8, operation: Operation) {
        self.operations.push(operation);
        write::begin(&mut self.requests, self.family_id, command);
    }

    /// Names the object of a refusal.
    pub(crate) fn refused(&self, refused: netlink::Refused) -> Option<Refused> {
        let operation = self.operations.get(refused.index)?;
        Some(Refused::new(*operation, refused.refusal))
    }
}

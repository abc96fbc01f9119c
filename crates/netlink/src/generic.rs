//! Generic netlink: the fixed header, and finding a family by name.

use crate::{Error, Malformed, MsgBuf, Socket};

/// Length of `struct genlmsghdr`.
pub const GENERIC_HEADER_LEN: usize = 4;

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const ATTR_FAMILY_ID: u16 = 1;
const ATTR_FAMILY_NAME: u16 = 2;

/// The `genlmsghdr` of a command.
#[must_use]
pub fn generic_header(command: u8, version: u8) -> [u8; GENERIC_HEADER_LEN] {
    [command, version, 0, 0]
}

/// The message type of a generic-netlink family.
///
/// The kernel loads a module that names the family as its alias, if it may. Ids change when a module
/// is loaded again: look them up again on a new socket.
///
/// # Errors
/// [`Error::Refused`] with `ENOENT` if the kernel has no such family, which mostly means that its
/// module is not loaded.
pub fn family_id(socket: &mut Socket, name: &str) -> Result<u16, Error> {
    let mut request = MsgBuf::new();
    request.begin(CONTROLLER, 0);
    request.header(&generic_header(GET_FAMILY, 1));
    request.string(ATTR_FAMILY_NAME, name);
    let mut id = None;
    socket.request(&mut request, &mut |reply| {
        for attribute in reply.attributes(GENERIC_HEADER_LEN)? {
            let attribute = attribute?;
            if attribute.kind == ATTR_FAMILY_ID {
                id = Some(attribute.u16()?);
            }
        }
        Ok(())
    })?;
    id.ok_or(Error::Malformed(Malformed("family without an id")))
}

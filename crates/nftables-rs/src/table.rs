//! Tables.

use crate::numbers::flags;
use crate::user_data::write_comment;
use crate::wire::table;
use netlink::MsgBuf;
use std::fmt;

/// Which packets a table sees (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ipv4 = 2,
    /// ARP.
    Arp = 3,
    /// One network device's, before or after all else.
    Netdev = 5,
    /// Bridged.
    Bridge = 7,
    /// IPv6.
    Ipv6 = 10,
}

impl Family {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The family with this number.
    #[must_use]
    pub fn of(number: u8) -> Option<Family> {
        use Family::{Arp, Bridge, Inet, Ipv4, Ipv6, Netdev};
        [Inet, Ipv4, Arp, Netdev, Bridge, Ipv6].into_iter().find(|family| family.number() == number)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Ipv4 => "ip",
            Family::Arp => "arp",
            Family::Netdev => "netdev",
            Family::Bridge => "bridge",
            Family::Ipv6 => "ip6",
        })
    }
}

/// Names a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName<'a> {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

impl<'a> TableName<'a> {
    /// The table of this family and name.
    #[must_use]
    pub const fn new(family: Family, name: &'a str) -> TableName<'a> {
        TableName { family, name }
    }
}

impl fmt::Display for TableName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

flags! {
    /// What is special about a table.
    TableFlags {
        /// Its chains see no packets.
        DORMANT = 1;
        /// Only the socket that made it may change it, and it goes when that socket is closed. The flag cannot be given
        /// to a table that is there without it, nor taken away. Linux 5.12.
        OWNER = 2;
        /// An owned table outlives its owner's socket: it then has this flag alone, and the socket that adds it again,
        /// with both flags, owns it. Linux 6.9.
        PERSIST = 4;
    }
}

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    /// Its name.
    pub name: TableName<'a>,
    /// What is special about it.
    pub flags: TableFlags,
    /// A comment; cut to 128 bytes.
    pub comment: Option<&'a str>,
}

impl<'a> Table<'a> {
    /// A plain table.
    #[must_use]
    pub const fn new(name: TableName<'a>) -> Table<'a> {
        Table { name, flags: TableFlags::NONE, comment: None }
    }

    pub(crate) fn write(&self, buf: &mut MsgBuf) {
        buf.string(table::NAME, self.name.name);
        buf.be32(table::FLAGS, self.flags.0);
        write_comment(buf, table::USER_DATA, self.comment);
    }
}

/// A table, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedTable<'a> {
    /// The table.
    pub table: Table<'a>,
    /// The kernel's number for it.
    pub handle: u64,
    /// How many chains, sets and other objects it has.
    pub uses: u32,
    /// The netlink port of the socket that owns it.
    pub owner: Option<u32>,
}

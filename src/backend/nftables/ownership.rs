//! Whose the table is, and what has to be done to make it ours.
//!
//! With the flags *owner* and *persist* (both since Linux 6.9) only the socket that made a table can change it, and the table outlives
//! the socket: it then has *persist* alone and no owner, until a socket adds it again with both flags. The kernel neither gives
//! these flags to a table that is there nor takes them away (`nf_tables_updtable`), so a table of other flags is replaced.

use nftables_rs::{TableFlags, TableName};

/// The flags of a table that is owned.
pub(super) const OWNED: TableFlags = TableFlags(TableFlags::OWNER.0 | TableFlags::PERSIST.0);

/// How a table that is there stands to the one that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the wanted one.
    Fit,
    /// Its owner is gone: the next process that adds it owns it.
    Orphan,
    /// It has other flags.
    Unfit,
    /// Another socket owns it, the one of this port: nothing can be done.
    OfAnother(u32),
}

impl Standing {
    /// Of a table with these flags and this owner, to a socket that wants it with other flags.
    pub(super) fn of(flags: TableFlags, owner: Option<u32>, (wanted, port): (TableFlags, u32)) -> Standing {
        match owner {
            Some(owner) if owner != port => Standing::OfAnother(owner),
            _ if flags == wanted => Standing::Fit,
            _ if wanted == OWNED && flags == TableFlags::PERSIST => Standing::Orphan,
            _ => Standing::Unfit,
        }
    }
}

/// Why a table cannot be changed, and what helps.
pub(super) fn refusal(table: TableName<'_>, owner: u32, program: Option<&str>) -> String {
    let program = program.map(|name| format!("{name}, ")).unwrap_or_default();
    format!(
        "the nftables table {table} is owned by another process ({program}netlink port {owner}), and no other one can change \
         or delete it: stop that process first"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use nftables_rs::Family;

    const DORMANT: TableFlags = TableFlags::DORMANT;

    #[test]
    fn a_table_is_adopted_replaced_or_left_to_its_owner() {
        let plain = |flags, owner| Standing::of(flags, owner, (TableFlags::NONE, 7));
        assert_eq!(plain(TableFlags::NONE, None), Standing::Fit);
        assert_eq!(plain(DORMANT, None), Standing::Unfit, "its chains see no packets");
        assert_eq!(plain(TableFlags::PERSIST, None), Standing::Unfit, "kube-proxy could not add it");
        assert_eq!(plain(OWNED, Some(8)), Standing::OfAnother(8));
        let owned = |flags, owner| Standing::of(flags, owner, (OWNED, 7));
        assert_eq!(owned(OWNED, Some(7)), Standing::Fit);
        assert_eq!(owned(OWNED, Some(8)), Standing::OfAnother(8));
        assert_eq!(owned(TableFlags::OWNER, Some(8)), Standing::OfAnother(8));
        assert_eq!(owned(TableFlags::PERSIST, None), Standing::Orphan);
        assert_eq!(owned(TableFlags::PERSIST | DORMANT, None), Standing::Unfit);
        assert_eq!(
            owned(TableFlags::NONE, None),
            Standing::Unfit,
            "kube-proxy's, or ours without the option"
        );
    }

    #[test]
    fn the_owner_is_named() {
        let table = TableName::new(Family::Ipv6, "kube-proxy");
        assert_eq!(
            refusal(table, 4711, Some("kube-proxy-rs")),
            "the nftables table ip6 kube-proxy is owned by another process (kube-proxy-rs, netlink port 4711), and no other one \
             can change or delete it: stop that process first"
        );
        assert!(refusal(table, 4711, None).contains("another process (netlink port 4711)"));
    }
}

//! Whether the kernel has what the table is made of, without changing anything.

use super::Features;
use super::apply::write_rules;
use super::layout::{Layout, Settings};
use super::names::{Class, PROBE_TABLE, SetId, table};
use super::ownership::OWNED;
use crate::model::IpFamily;
use crate::plan::FamilySettings;
use anyhow::{Context, Result, bail};
use nftables_rs::{Batch, Element, Error, Operation, Refused, Table, TableName};

/// Tries the whole structure, in a transaction that the kernel refuses in the end: it deletes a table that does not exist.
///
/// # Errors
/// Names what the kernel does not have.
pub(super) fn kernel() -> Result<&'static str> {
    let mut nft = nftables_rs::Nftables::open()?;
    let mut names_elements = true;
    nft.generation().context("the kernel has no nf_tables, or this process may not use it")?;
    let all = Features { masquerade_mark: 1, counts: true, owns_table: false };
    for family in IpFamily::ALL {
        let smallest = Class::of(2).unwrap_or(Class::USUAL);
        let settings = Settings::new(&FamilySettings::new(family), &all, (smallest, vec![60]));
        let mut layout = Layout::new(settings);
        layout.table = TableName { name: PROBE_TABLE, ..table(family) };
        let mut batch = Batch::new();
        batch.add_table(&Table::new(layout.table));
        layout.sets.iter().for_each(|id| layout.with_set(*id, |set| batch.add_set(set)));
        write_rules(&mut batch, &layout);
        // No address has three bytes.
        let wrong = batch.elements();
        batch.add_elements(layout.table, &*SetId::ClusterIps.name()).push(&Element::new(&[0; 3]));
        batch.delete_table(TableName { name: NEVER, ..layout.table });
        let refused = match nft.commit(&mut batch, None) {
            Err(Error::Refused(refused)) => refused,
            Err(error) => return Err(error).context("trying nf_tables"),
            Ok(()) => bail!("the nf_tables table {NEVER} was there"),
        };
        let is_wrong = |it: &&Refused| it.element == Some(wrong);
        names_elements &= refused.iter().any(|it| is_wrong(&it));
        let is_unnamed = |it: &&Refused| it.operation == Some(Operation::AddElements) && it.element.is_none();
        let is_meant =
            |it: &&Refused| it.operation == Some(Operation::DeleteTable) || is_wrong(it) || is_unnamed(it);
        if let Some(first) = refused.iter().find(|it| !is_meant(it)) {
            bail!("the kernel lacks something of nf_tables ({family}): {first}");
        }
    }
    Ok(match names_elements {
        true => "has all that rules and sets are made of",
        false => {
            "has all that rules and sets are made of; it does not say which element it refuses, as before Linux 5.19 (5.15.165 in \
             that series): a Service that it refuses is found by writing ever fewer at once"
        }
    })
}

/// Whether a table can be owned and outlive its owner, tried in a transaction that the kernel refuses in the end.
///
/// # Errors
/// If it cannot; says since when kernels can.
pub(super) fn owned_table() -> Result<&'static str> {
    let mut nft = nftables_rs::Nftables::open()?;
    let name = TableName { name: PROBE_TABLE, ..table(IpFamily::V4) };
    let mut batch = Batch::new();
    batch.add_table(&Table { flags: OWNED, ..Table::new(name) });
    batch.delete_table(TableName { name: NEVER, ..name });
    let refused = match nft.commit(&mut batch, None) {
        Err(Error::Refused(refused)) => refused,
        Err(error) => return Err(error).context("trying nf_tables"),
        Ok(()) => bail!("the nf_tables table {NEVER} was there"),
    };
    match refused.iter().find(|it| it.operation == Some(Operation::AddTable)) {
        None => Ok("the kernel lets a process own the tables"),
        Some(refused) if refused.errno == libc::EOPNOTSUPP => {
            bail!(
                "the kernel has no tables that are owned and outlive their owner (owner, persist: Linux 6.9)"
            )
        }
        Some(refused) => bail!("{refused}"),
    }
}

/// No table has this name.
const NEVER: &str = "kube-proxy-rs-is-never-there";

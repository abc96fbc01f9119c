//! Whether the kernel has what the table is made of, without changing anything.

use super::apply::write_rules;
use super::layout::{Layout, Settings};
use super::names::{Class, PROBE_TABLE, table};
use crate::model::IpFamily;
use crate::plan::FamilySettings;
use anyhow::{Context, Result, bail};
use nftables_rs::{Batch, Error, Operation, Table, TableName};

/// Tries the whole structure, in a transaction that the kernel refuses in the end: it deletes a table that does not exist.
///
/// # Errors
/// Names what the kernel does not have.
pub(super) fn kernel() -> Result<()> {
    let mut nft = nftables_rs::Nftables::open()?;
    nft.generation().context("the kernel has no nf_tables, or this process may not use it")?;
    for family in IpFamily::ALL {
        let smallest = Class::of(2).unwrap_or(Class::USUAL);
        let settings = Settings::new(&FamilySettings::new(family), (1, &[]), (smallest, vec![60]));
        let mut layout = Layout::new(settings);
        layout.table = TableName { name: PROBE_TABLE, ..table(family) };
        let mut batch = Batch::new();
        batch.add_table(&Table::new(layout.table));
        layout.sets().for_each(|id| layout.with_set(id, |set| batch.add_set(set)));
        write_rules(&mut batch, &layout);
        batch.delete_table(TableName { name: NEVER, ..layout.table });
        let refused = match nft.commit(&mut batch, None) {
            Err(Error::Refused(refused)) => refused,
            Err(error) => return Err(error).context("trying nf_tables"),
            Ok(()) => bail!("the nf_tables table {NEVER} was there"),
        };
        let missing: Vec<String> = refused
            .iter()
            .filter(|it| it.operation != Some(Operation::DeleteTable))
            .map(ToString::to_string)
            .collect();
        if let Some(first) = missing.first() {
            bail!("the kernel lacks something of nf_tables ({family}): {first}");
        }
    }
    Ok(())
}

/// No table has this name.
const NEVER: &str = "kube-proxy-rs-is-never-there";

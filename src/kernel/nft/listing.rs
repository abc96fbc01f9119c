//! Tables of nf_tables as the tool `nft` prints them, for people.

use anyhow::{Context, Result, bail};
use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// A tool that has not come back by then is taken to hang.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of one table that are read.
const MOST_TEXT: usize = 8 << 20;

/// A table (`inet firewalld`) as `nft` prints it, with priorities as numbers. `None` where the tool is not installed.
///
/// # Errors
/// The tool's words.
pub async fn list_table(table: &str) -> Result<Option<String>> {
    let run = command(table).output();
    let output =
        match timeout(LIMIT, run).await.with_context(|| format!("nft did not come back within {LIMIT:?}"))? {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            output => output.context("cannot run nft")?,
        };
    if !output.status.success() {
        bail!("nft list table {table}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    if output.stdout.len() > MOST_TEXT {
        bail!("nft list table {table}: it has more than {MOST_TEXT} bytes");
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn command(table: &str) -> Command {
    let mut command = Command::new("nft");
    command.args(["-y", "list", "table"]).args(table.split(' ')).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The same for tests on a thread with a network namespace of its own.
#[cfg(test)]
pub(super) fn blocking(table: &str) -> String {
    let output = command(table).into_std().output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

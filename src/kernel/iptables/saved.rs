//! What iptables-save prints of a table, line by line: the whole of a large one is in the tool's
//! memory and never in ours.

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use std::borrow::Cow;
use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// A tool that has not printed all by then is taken to hang.
const LIMIT: Duration = Duration::from_secs(600);
/// As much as a pipe holds, unless the user has very many.
const READ_AT_ONCE: i32 = 64 << 10;
/// The tool writes 4 KiB at a time. To wake up for each of them would cost more than what is done with it.
const PAUSE: Duration = Duration::from_millis(1);

/// Runs the tool and hands its lines on. It does not take the tools' lock.
///
/// # Errors
/// When it cannot be run, or fails: what was handed on is not all then.
pub(super) async fn print(program: &'static str, table: &str, take: &mut dyn FnMut(&str)) -> Result<()> {
    let mut child = Command::new(program)
        .args(["-t", table])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let output = child.stdout.take().context("no pipe from the tool")?;
    let holds_much = fcntl(&output, FcntlArg::F_GETPIPE_SZ).is_ok_and(|size| size >= READ_AT_ONCE);
    let pause = if holds_much { PAUSE } else { Duration::ZERO };
    let output = BufReader::with_capacity(usize::try_from(READ_AT_ONCE)?, output);
    timeout(LIMIT, lines(output, pause, take))
        .await
        .with_context(|| format!("{program} did not come back within {LIMIT:?}"))?
        .with_context(|| format!("cannot read from {program}"))?;
    let status = child.wait().await.with_context(|| format!("waiting for {program}"))?;
    if !status.success() {
        bail!("{program} -t {table} failed: {status}");
    }
    Ok(())
}

/// Foreign comments may be in any encoding; most are in UTF-8, which is checked fast.
async fn lines(
    mut output: BufReader<impl AsyncRead + Unpin>,
    pause: Duration,
    take: &mut dyn FnMut(&str),
) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        if output.buffer().is_empty() && !pause.is_zero() {
            sleep(pause).await;
        }
        if output.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let text = str::from_utf8(&line).map_or_else(|_| String::from_utf8_lossy(&line), Cow::Borrowed);
        take(text.strip_suffix('\n').unwrap_or(&text));
        line.clear();
    }
}

/// The name of the chain that a line declares, unless it is built in.
pub(super) fn declared_chain(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix(':')?.split(' ');
    // Built-in chains have a policy where user-defined ones have a dash.
    words.next().filter(|_| words.next() == Some("-"))
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(text: &str) {
    let _ = text.lines().filter_map(declared_chain).count();
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(saved: &[u8]) -> Vec<String> {
        let mut read = Vec::new();
        lines(BufReader::new(saved), PAUSE, &mut |line| read.push(line.to_owned())).await.unwrap();
        read
    }

    #[tokio::test]
    async fn a_comment_in_another_encoding_is_no_error() {
        let read = read(b"-A A -m comment --comment \"\xe9t\xe9\" -j B\nlast").await;
        assert!(read[0].ends_with(" -j B"), "{}", read[0]);
        assert_eq!(read[1], "last");
    }

    #[test]
    fn chains_are_declared_in_lines_of_their_own() {
        assert_eq!(declared_chain(":KUBE-SERVICES - [0:0]"), Some("KUBE-SERVICES"));
        for line in [":PREROUTING ACCEPT [0:0]", "*nat", "-A A -j B", "COMMIT", "# a comment", ""] {
            assert_eq!(declared_chain(line), None, "{line}");
        }
    }
}

//! What iptables-save prints of a legacy table, line by line: the whole of a large one is in the tool's
//! memory and never in ours.

use super::Said;
use crate::kernel::nft::ChainUse;
use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use std::borrow::Cow;
use std::collections::BTreeMap;
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

/// Others' comments may be in any encoding; most are in the one that is checked fast.
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

/// How often chains that are not built in are used: rules in them, and jumps to them.
#[derive(Debug, Default)]
pub(super) struct Uses(BTreeMap<String, u32>);

impl Uses {
    pub(super) fn take(&mut self, line: &str) {
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split(' ');
            // Built-in chains have a policy where others have a dash.
            if let (Some(name), Some("-")) = (words.next(), words.next()) {
                self.0.insert(name.to_owned(), 0);
            }
        } else if let Some(rule) = Said::parse(line) {
            for name in [Some(rule.chain), rule.jumps_to].into_iter().flatten() {
                if let Some(uses) = self.0.get_mut(name) {
                    *uses += 1;
                }
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = ChainUse<'_>> {
        self.0.iter().map(|(name, uses)| ChainUse { name, is_base: false, uses: *uses })
    }
}

impl<'a> Said<'a> {
    /// The rule in a line of an input or a listing.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        let rule = line.strip_prefix("-A ")?;
        let (chain, says) = rule.split_once(' ').unwrap_or((rule, ""));
        // Matches, comments among them, come before the target. The first rule option has no space before it.
        let target = says.rsplit_once("-j ").map(|(_, rest)| rest);
        let jumps_to = target.and_then(|target| target.split_whitespace().next());
        Some(Said { chain, says, jumps_to })
    }
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(text: &str) {
    let mut uses = Uses::default();
    text.lines().for_each(|line| uses.take(line));
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
    async fn uses_are_rules_in_a_chain_and_jumps_to_it() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
                     -A PREROUTING -m comment --comment \"x -j y\" -j KUBE-SERVICES\n\
                     -A KUBE-SERVICES -d 10.0.0.1/32 -j KUBE-SVC-A\n-A KUBE-SVC-A -j MARK --set-xmark 0x1/0x1\nCOMMIT\n";
        let mut uses = Uses::default();
        read(saved.as_bytes()).await.iter().for_each(|line| uses.take(line));
        let uses: Vec<_> = uses.iter().map(|chain| (chain.name.to_owned(), chain.uses)).collect();
        assert_eq!(uses, [("KUBE-SERVICES".to_owned(), 2), ("KUBE-SVC-A".to_owned(), 2)]);
    }

    #[tokio::test]
    async fn a_comment_in_another_encoding_is_no_error() {
        let read = read(b"-A A -m comment --comment \"\xe9t\xe9\" -j B\nlast").await;
        assert_eq!(Said::parse(&read[0]).and_then(|rule| rule.jumps_to), Some("B"));
        assert_eq!(read[1], "last");
    }

    #[test]
    fn a_rule_is_what_stands_behind_its_chain() {
        let rule = Said::parse("-A A -s 192.0.2.1/32 -m comment --comment \"-j C\" -j B --x y").unwrap();
        assert_eq!(rule.says, "-s 192.0.2.1/32 -m comment --comment \"-j C\" -j B --x y");
        assert_eq!((rule.chain, rule.jumps_to), ("A", Some("B")));
        assert_eq!(Said::parse("-A A -j B").unwrap().jumps_to, Some("B"));
        for without_target in ["-A A -m comment --comment x", "-A A"] {
            assert_eq!(
                Said::parse(without_target).map(|rule| (rule.chain, rule.jumps_to)),
                Some(("A", None))
            );
        }
        for line in ["*nat", ":A - [0:0]", "COMMIT", "# a comment", ""] {
            assert_eq!(Said::parse(line), None, "{line}");
        }
    }
}

//! The real programs.

use super::find::Programs;
use super::lock::LockHeld;
use super::saved;
use super::trial::Named;
use super::{
    CountedRule, Flavor, Place, RestoreError, RuleKind, Stamp, Trial, Version, Xtables, trial_inputs,
};
use crate::kernel::nfacct::Nfacct;
use crate::kernel::nft::{Concerns, Heard, Monitor, Nft, Part, Subscription};
use crate::kernel::{xtables_entries, xtables_info};
use crate::model::{IpFamily, excerpt};
use anyhow::{Context, Result, bail};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::{ExitStatus, Output, Stdio};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, timeout};

/// How long the tools wait for each other's lock, in seconds (kube-proxy).
const LOCK_WAIT: &str = "-w 5";
/// A tool that has not come back by then is taken to hang.
const RULE_LIMIT: Duration = Duration::from_secs(60);
/// Longer than any input takes that we make, even in a table of a million rules.
const RESTORE_LIMIT: Duration = Duration::from_secs(120);
/// A restore that takes longer is logged.
const LONG_RESTORE: Duration = Duration::from_secs(30);
/// The most of a tool's complaints that is kept.
const MOST_WORDS: u64 = 4096;
/// "Not there" to `-C` and `-D`, "is there already" to `-N`.
const EXIT_ABSENT: i32 = 1;

/// The iptables tools of one family and flavour.
#[derive(Debug)]
pub struct Tools {
    family: IpFamily,
    flavor: Flavor,
    version: Version,
    programs: Programs,
    /// Opened when it is first needed: there are many small questions.
    nft: Option<Nft>,
    /// Hears of what is written to nf_tables.
    monitor: Option<Rc<Monitor>>,
    /// What other programs write to our family.
    subscription: Option<Subscription>,
}

impl Tools {
    pub(super) fn new(family: IpFamily, flavor: Flavor, version: Version, programs: Programs) -> Self {
        Tools { family, flavor, version, programs, nft: None, monitor: None, subscription: None }
    }

    /// The same tools, which can tell what other programs write.
    #[must_use]
    pub fn with_monitor(mut self, monitor: Rc<Monitor>) -> Self {
        self.monitor = Some(monitor);
        self
    }

    /// Asks nf_tables. After a failure the next question goes through a new handle.
    fn ask_nft<T>(&mut self, ask: impl FnOnce(&mut Nft) -> Result<T>) -> Result<T> {
        let mut nft = match self.nft.take() {
            Some(nft) => nft,
            None => Nft::open()?,
        };
        let answer = ask(&mut nft)?;
        self.nft = Some(nft);
        Ok(answer)
    }

    /// Runs the rule tool. Blocks a thread of its own: that is how the iptables crate works.
    async fn rule(&self, table: &str, command: &str) -> Result<Output> {
        let program = self.programs.rules;
        // Its own `--wait` has no limit, so ours goes in front of the command.
        let tool = iptables::IPTables { cmd: program, has_check: true, has_wait: false, is_numeric: false };
        let (table, command) = (table.to_owned(), format!("{LOCK_WAIT} {command}"));
        let run = tokio::task::spawn_blocking(move || {
            tool.execute(&table, &command).map_err(|error| anyhow::anyhow!("{error}"))
        });
        let output = timeout(RULE_LIMIT, run)
            .await
            .with_context(|| format!("{program} did not come back within {RULE_LIMIT:?}"))?;
        output?.with_context(|| format!("cannot run {program}"))
    }

    /// The rules of one chain, without `-A CHAIN`; a policy other than ACCEPT is the last of them.
    /// `None` if there is no such chain. For people who look: it may be slow where tables are large.
    ///
    /// # Errors
    /// The tool's words.
    pub async fn rules(&self, place: Place<'_>) -> Result<Option<Vec<String>>> {
        let output = self.rule(place.table, &format!("-S {}", place.chain)).await?;
        match output.status.code() {
            Some(0) => Ok(chains(&String::from_utf8_lossy(&output.stdout)).remove(place.chain)),
            Some(EXIT_ABSENT) => Ok(None),
            _ => {
                bail!(
                    "{}: {} in table {}: {}",
                    self.programs.rules,
                    place.chain,
                    place.table,
                    words(&output)
                );
            }
        }
    }

    /// All chains of a table with their rules, as [`Tools::rules`] has them.
    ///
    /// # Errors
    /// The tool's words.
    pub async fn table(&self, table: &str) -> Result<BTreeMap<String, Vec<String>>> {
        let output = self.rule(table, "-S").await?;
        if !output.status.success() {
            bail!("{}: table {table}: {}", self.programs.rules, words(&output));
        }
        Ok(chains(&String::from_utf8_lossy(&output.stdout)))
    }

    /// The same of a table that may not be there; it is not made by looking.
    ///
    /// # Errors
    /// When the tool fails.
    pub async fn table_in_use(&self, table: &str) -> Result<BTreeMap<String, Vec<String>>> {
        if self.flavor == Flavor::Legacy && xtables_info::is_empty(self.family, table)? {
            return Ok(BTreeMap::new());
        }
        self.table(table).await
    }

    /// Runs the rule tool for a question or an idempotent act: whether it says yes.
    async fn ask(&self, place: Place<'_>, command: &str) -> Result<bool> {
        let output = self.rule(place.table, command).await?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(EXIT_ABSENT) => Ok(false),
            _ => bail!("{}: {command} in table {}: {}", self.programs.rules, place.table, words(&output)),
        }
    }

    /// A legacy table that is not there is not made, and for an empty one no tool is run.
    async fn print(&self, table: &str, take: &mut dyn FnMut(&str)) -> Result<()> {
        if self.flavor == Flavor::Legacy && xtables_info::is_empty(self.family, table)? {
            return Ok(());
        }
        saved::print(self.programs.save, table, take).await
    }

    fn unable(&self, message: impl ToString) -> RestoreError {
        RestoreError::Unable { tool: self.programs.restore, message: message.to_string() }
    }

    fn restore_command(&self) -> Command {
        let mut command = Command::new(self.programs.restore);
        if self.version >= Version::RANDOM_FULLY {
            command.args(LOCK_WAIT.split(' '));
        }
        command
            .args(["--noflush", "--counters"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Feeds a restore with an input. Returns what it has to say to one that it takes.
    async fn send(
        &self,
        mut command: Command,
        pieces: &mut dyn Iterator<Item = String>,
    ) -> Result<String, RestoreError> {
        let child = command.spawn().map_err(|error| self.unable(error))?;
        let pid = child.id();
        let has_changes = Cell::new(false);
        let (tool, start) = (self.programs.restore, Instant::now());
        let mut pieces = pieces.inspect(|piece| {
            tracing::trace!(tool, rules = piece.as_str(), "rules for iptables-restore");
            has_changes.set(has_changes.get() || changes_anything(piece));
        });
        let feeding = timeout(RESTORE_LIMIT, self.feed(child, &mut pieces));
        let fed = match &self.monitor {
            Some(monitor) => {
                let has_written = |fed: &Result<io::Result<(ExitStatus, String)>, _>| {
                    has_changes.get() && matches!(fed, Ok(Ok((status, _))) if status.success())
                };
                monitor.follow((pid, self.programs.restore), feeding, has_written).await
            }
            None => feeding.await,
        };
        let (status, message) = fed
            .map_err(|_| RestoreError::TimedOut { tool, after: RESTORE_LIMIT })?
            .map_err(|error| self.unable(error))?;
        if start.elapsed() >= LONG_RESTORE {
            tracing::warn!(
                tool,
                seconds = start.elapsed().as_secs(),
                "iptables-restore took long for one input"
            );
        }
        if status.success() {
            return Ok(message.replace('\n', "; "));
        }
        let (line, message) = (line_at_fault(&message), said(&message));
        match (status.code(), line) {
            (Some(EXIT_RESOURCE) | None, None) => Err(self.unable(format!("{status}: {message}"))),
            (_, line) => Err(RestoreError::Refused { tool, line, message }),
        }
    }

    async fn feed(
        &self,
        mut child: Child,
        pieces: &mut dyn Iterator<Item = String>,
    ) -> io::Result<(ExitStatus, String)> {
        let (input, output) = (child.stdin.take(), child.stderr.take());
        let mut complaints = Vec::new();
        let read = async {
            match output {
                Some(output) => {
                    let mut output = output.take(MOST_WORDS);
                    output.read_to_end(&mut complaints).await?;
                    // Whatever is beyond the limit must still be read, or the tool blocks.
                    tokio::io::copy(&mut output.into_inner(), &mut tokio::io::sink()).await
                }
                None => Ok(0),
            }
        };
        // Both ends at once: the tool may complain before it has read everything.
        let (written, read) = tokio::join!(write_all(input, pieces), read);
        read?;
        let status = child.wait().await?;
        // A broken pipe means that the tool gave up reading; its status and words say why.
        if let Err(error) = written
            && (status.success() || error.kind() != io::ErrorKind::BrokenPipe)
        {
            return Err(error);
        }
        Ok((status, String::from_utf8_lossy(&complaints).trim().to_owned()))
    }
}

/// Whether a piece of an input adds or deletes anything. To declare a chain that is empty may change nothing.
fn changes_anything(piece: &str) -> bool {
    piece.starts_with('-') || piece.contains("\n-")
}

/// An input that inserts rules, table by table.
fn insertions(rules: &[(Place<'_>, &str)]) -> String {
    let mut text = String::new();
    let tables: BTreeSet<&str> = rules.iter().map(|(place, _)| place.table).collect();
    for table in tables {
        text.push_str(&format!("*{table}\n"));
        for (place, arguments) in rules.iter().filter(|(place, _)| place.table == table) {
            text.push_str(&format!("-I {} {arguments}\n", place.chain));
        }
        text.push_str("COMMIT\n");
    }
    text
}

async fn write_all(input: Option<ChildStdin>, pieces: &mut dyn Iterator<Item = String>) -> io::Result<()> {
    let Some(mut input) = input else { return Ok(()) };
    for piece in pieces {
        input.write_all(piece.as_bytes()).await?;
    }
    input.shutdown().await
}

/// The rules by chain in what `-S` prints.
fn chains(text: &str) -> BTreeMap<String, Vec<String>> {
    let (mut chains, mut policies) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("-A"), Some(chain), Some(rule)) => {
                chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
            }
            (Some(kind @ ("-N" | "-P")), Some(chain), policy) => {
                chains.entry(chain.to_owned()).or_default();
                if let Some(policy) = policy.filter(|policy| kind == "-P" && *policy != "ACCEPT") {
                    policies
                        .push((chain, format!("-m comment --comment \"the chain's policy\" -j {policy}")));
                }
            }
            _ => {}
        }
    }
    for (chain, rule) in policies {
        chains.entry(chain.to_owned()).or_default().push(rule);
    }
    chains
}

/// A tool's complaint, on one line.
pub(super) fn words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    if text.trim().is_empty() { output.status.to_string() } else { said(&text) }
}

/// The same of any text. If another program holds the lock, our words name it.
fn said(text: &str) -> String {
    LockHeld::said(text).map_or_else(|| excerpt(text), |held| held.to_string())
}

/// The input line that a complaint names: "line 7 failed", "line: 7", "line 7: …".
fn line_at_fault(complaint: &str) -> Option<usize> {
    let (_, rest) = complaint.split_once("line")?;
    let digits: String =
        rest.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Exit status of iptables for lack of resources or of the lock. The nft flavour has it, too, for
/// what the kernel refuses, but then it names the line.
const EXIT_RESOURCE: i32 = 4;

impl Xtables for Tools {
    fn flavor(&self) -> Flavor {
        self.flavor
    }

    fn version(&self) -> Version {
        self.version
    }

    async fn check_nat_table(&self) -> Result<()> {
        let output = self.rule("nat", "-S POSTROUTING").await?;
        if output.status.success() {
            return Ok(());
        }
        let cannot = format!("{} cannot read the nat table", self.programs.rules);
        match LockHeld::said(&String::from_utf8_lossy(&output.stderr)) {
            Some(held) => Err(anyhow::Error::new(held).context(cannot)),
            None => bail!("{cannot}: {}", words(&output)),
        }
    }

    fn stamp(&mut self) -> Result<Stamp> {
        match self.flavor {
            Flavor::Nft => self.ask_nft(Nft::generation).map(Stamp::Generation),
            Flavor::Legacy => {
                let size = |table| xtables_info::num_entries(self.family, table);
                Ok(Stamp::Sizes([size("mangle")?, size("nat")?, size("filter")?]))
            }
        }
    }

    fn has_counter(&mut self, name: &str) -> bool {
        let found = Nfacct::probe().and_then(|mut counters| counters.get(name));
        found.is_ok_and(|counter| counter.is_some())
    }

    fn ensure_counter(&mut self, name: &str) -> bool {
        match Nfacct::probe().and_then(|mut counters| counters.ensure(name)) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(
                    counter = name,
                    error = format!("{error:#}"),
                    "the kernel has no such nfacct counter; its metric is left out"
                );
                false
            }
        }
    }

    async fn chains(&mut self, table: &str, visit: &mut dyn FnMut(Part<&str>)) -> Result<()> {
        match self.flavor {
            Flavor::Nft => {
                let family = self.family;
                self.ask_nft(|nft| nft.chains(family, table, visit))
            }
            Flavor::Legacy => {
                visit(Part::Start);
                let mut take = |line: &str| {
                    saved::declared_chain(line).into_iter().for_each(|name| visit(Part::Item(name)));
                };
                self.print(table, &mut take).await
            }
        }
    }

    fn counted_rules(
        &mut self,
        table: &str,
        chain: Option<&str>,
        visit: &mut dyn FnMut(Part<CountedRule<'_>>),
    ) -> Result<bool> {
        match self.flavor {
            Flavor::Nft => {
                let family = self.family;
                self.ask_nft(|nft| nft.rules(family, table, chain, visit)).map(|()| true)
            }
            Flavor::Legacy => {
                visit(Part::Start);
                xtables_entries::rules(self.family, table, &mut |rule| {
                    if chain.is_none_or(|chain| chain == rule.chain) {
                        visit(Part::Item(rule));
                    }
                })
            }
        }
    }

    async fn list(&mut self, table: &str, chain: Option<&str>, visit: &mut dyn FnMut(&str)) -> Result<()> {
        let Some(chain) = chain else { return self.print(table, visit).await };
        let output = self.rule(table, &format!("-S {chain}")).await?;
        match output.status.code() {
            Some(0) => String::from_utf8_lossy(&output.stdout).lines().for_each(visit),
            Some(EXIT_ABSENT) => {}
            _ => bail!("{}: {chain} in table {table}: {}", self.programs.rules, words(&output)),
        }
        Ok(())
    }

    fn listen(&mut self, concerns: Concerns) -> Result<bool> {
        let monitor = self.monitor.as_ref().filter(|_| self.flavor == Flavor::Nft);
        self.subscription = monitor.map(|monitor| monitor.subscribe(self.family, concerns));
        Ok(self.subscription.is_some())
    }

    fn hear(&mut self) -> Heard {
        self.subscription.as_ref().map(Subscription::hear).unwrap_or_default()
    }

    async fn restore(&mut self, pieces: &mut dyn Iterator<Item = String>) -> Result<(), RestoreError> {
        self.send(self.restore_command(), pieces).await.map(drop)
    }

    async fn try_rules(&mut self, kinds: &[RuleKind], trial: Trial) -> Result<(), RestoreError> {
        let [write, delete] = trial_inputs(kinds);
        let mut command = self.restore_command();
        if trial == Trial::Read {
            command.arg("--test");
            let message = self.send(command, &mut std::iter::once(write)).await?;
            // A kernel that lacks a match makes the tools warn and go on.
            return match message.contains("missing kernel module") {
                true => {
                    let (tool, message) = (self.programs.restore, excerpt(&message));
                    Err(RestoreError::Refused { tool, line: None, message })
                }
                false => Ok(()),
            };
        }
        let tool = self.programs.restore;
        let named = Named::by(kinds, self.family);
        let refused = |error| RestoreError::Refused { tool, line: None, message: format!("{error:#}") };
        let _named = named.map_err(refused)?;
        let written = self.send(command, &mut std::iter::once(write)).await;
        // Of several tables, the first may have been written although the next was refused.
        let deleted = self.send(self.restore_command(), &mut std::iter::once(delete)).await;
        written.and(deleted).map(drop)
    }

    async fn ensure_chain(&mut self, place: Place<'_>) -> Result<()> {
        self.ask(place, &format!("-N {}", place.chain)).await.map(drop)
    }

    async fn insert_rules(&mut self, rules: &[(Place<'_>, &str)]) -> Result<()> {
        Ok(self.restore(&mut std::iter::once(insertions(rules))).await?)
    }

    async fn delete_rule(&mut self, place: Place<'_>, arguments: &str) -> Result<bool> {
        let output = self.rule(place.table, &format!("-D {} {arguments}", place.chain)).await?;
        let said = words(&output);
        // What the nft and the legacy flavour say of a target that is not there.
        let no_target = said.contains("does not exist") || said.contains("Couldn't load target");
        match output.status.code() {
            Some(0) => Ok(true),
            Some(EXIT_ABSENT) => Ok(false),
            _ if no_target => Ok(false),
            _ => bail!(
                "{}: cannot delete from {} of {}: {said}",
                self.programs.rules,
                place.chain,
                place.table
            ),
        }
    }
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(text: &str) {
    let _ = line_at_fault(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_at_fault_is_found_in_either_flavours_words() {
        assert_eq!(line_at_fault("iptables-restore: line 7 failed"), Some(7));
        assert_eq!(line_at_fault("Error occurred at line: 12\nTry `iptables-restore -h'"), Some(12));
        assert_eq!(
            line_at_fault(
                "iptables-nft-restore v1.8.9 (nf_tables): \nline 3: CHAIN_ADD failed (File exists)"
            ),
            Some(3)
        );
        assert_eq!(line_at_fault("Permission denied (you must be root)"), None);
    }
}

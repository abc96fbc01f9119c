//! Sending inputs to iptables-restore: what is refused is sent once more, and what takes effect is counted.

use super::slow::tell_if_slow;
use crate::kernel::iptables::{RestoreError, Xtables};

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restored {
    /// Runs of the tool, those that failed included.
    pub(super) calls: usize,
    /// Rules written to the nat table.
    pub(super) nat_rules: usize,
    /// Rules written to the filter table.
    pub(super) filter_rules: usize,
}

impl Restored {
    /// Sends an input; a second time if it is refused, because another writer can get in between (nft has no lock).
    /// `about` says what the input is about, for the log.
    pub(super) async fn send<P: Iterator<Item = String>>(
        &mut self,
        tools: &mut impl Xtables,
        input: impl Fn() -> P,
        about: impl Fn() -> String,
    ) -> Result<(), RestoreError> {
        match self.send_once(tools, input(), &about).await {
            Err(error @ (RestoreError::Refused { .. } | RestoreError::Unable { .. })) => {
                tracing::debug!(%error, input = about(), "iptables-restore failed; the input is sent once more");
                self.send_once(tools, input(), &about).await
            }
            sent => sent,
        }
    }

    /// Sends an input, in pieces.
    pub(super) async fn send_once(
        &mut self,
        tools: &mut impl Xtables,
        pieces: impl Iterator<Item = String>,
        about: impl Fn() -> String,
    ) -> Result<(), RestoreError> {
        self.calls += 1;
        let mut count = RuleCount::default();
        let mut counted = pieces.inspect(|piece| count.add(piece));
        tell_if_slow(tools.restore(&mut counted), about).await?;
        self.nat_rules += count.nat;
        self.filter_rules += count.filter;
        Ok(())
    }
}

/// Counts the rules of an input.
#[derive(Default)]
struct RuleCount {
    table: String,
    nat: usize,
    filter: usize,
}

impl RuleCount {
    /// Adds a piece; lines are whole.
    fn add(&mut self, piece: &str) {
        for line in piece.lines() {
            if let Some(table) = line.strip_prefix('*') {
                table.clone_into(&mut self.table);
            }
            let rules = usize::from(line.starts_with("-A "));
            match self.table.as_str() {
                "nat" => self.nat += rules,
                "filter" => self.filter += rules,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::iptables::FakeXtables;

    #[tokio::test]
    async fn rules_are_counted_by_table_across_pieces() {
        let pieces = [
            "*filter\n:A - [0:0]\n-A A -j DROP\n",
            "COMMIT\n*nat\n:B - [0:0]\n-A B -j RETURN\n",
            "-A B -j DROP\nCOMMIT\n",
        ];
        let (mut tools, mut restored) = (FakeXtables::default(), Restored::default());
        let input = || pieces.iter().map(|piece| (*piece).to_owned());
        restored.send(&mut tools, input, String::new).await.unwrap();
        assert_eq!((restored.calls, restored.filter_rules, restored.nat_rules), (1, 1, 2));
    }
}

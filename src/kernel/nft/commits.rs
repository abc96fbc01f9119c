//! Who changed what: nf_tables tells of every transaction that takes effect.

use super::rules::{NEW_RULE, read_rule};
use super::{CHAIN_NAME, CHAIN_TABLE, GENERATION_ID, HEADER_LEN, NEW_GENERATION, SUBSYSTEM, nfnetlink};
use crate::model::IpFamily;
use anyhow::{Context, Result};
use netlink::{Error, Malformed, Message, Notices, Protocol};

/// The multicast group of nf_tables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GENERATION_PROCESS: u16 = 3;
/// What may wait to be read: some 5,000 rules. It takes kernel memory only while it waits.
const MOST_WAITING: usize = 4 << 20;

/// What the kernel tells of a transaction, piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// A rule was put into a chain.
    RuleAdded {
        /// The chain's table.
        table: &'a str,
        /// The chain.
        chain: &'a str,
    },
    /// A rule was taken out of a chain. One in another's place is a deletion and an addition.
    RuleDeleted {
        /// The chain's table.
        table: &'a str,
        /// The chain.
        chain: &'a str,
        /// The chain that the rule jumped or went to.
        jumps_to: Option<&'a str>,
    },
    /// A chain was deleted.
    ChainDeleted {
        /// The chain's table.
        table: &'a str,
        /// The chain.
        chain: &'a str,
    },
    /// All that was told since the last one of these has taken effect together.
    Committed {
        /// The generation that it made.
        generation: u32,
        /// The name of the process that did it, up to 15 characters of its own choice.
        by: &'a str,
    },
}

/// Hears of the transactions of one family in the network namespace of the thread that opened it.
/// Of the other families it only hears that there were some.
#[derive(Debug)]
pub struct Commits {
    family: IpFamily,
    notices: Notices,
}

impl Commits {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or without `CAP_NET_ADMIN`.
    pub fn of(family: IpFamily) -> Result<Commits> {
        let listening = || "listening to changes of nf_tables";
        let notices = Notices::of(Protocol::Netfilter, GROUP).with_context(listening)?;
        notices.let_wait(MOST_WAITING).with_context(listening)?;
        Ok(Commits { family, notices })
    }

    /// Visits what was told since the last call. `false` if some of it was lost: more was changed than
    /// could wait, or it was not understood.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn visit(&mut self, visit: &mut dyn FnMut(Told<'_>)) -> Result<bool> {
        let family = self.family;
        let read = self.notices.read(&mut |message| {
            if let Some(told) = parse(&message, family)? {
                visit(told);
            }
            Ok(())
        });
        match read {
            Ok(()) => Ok(true),
            Err(Error::Overrun | Error::Malformed(_)) => Ok(false),
            Err(error) => Err(error).context("listening to changes of nf_tables"),
        }
    }
}

/// `None` for what is of no interest, and for other families.
fn parse<'a>(message: &Message<'a>, family: IpFamily) -> Result<Option<Told<'a>>, Malformed> {
    if message.kind == NEW_GENERATION {
        return committed(message).map(Some);
    }
    if message.payload.first() != Some(&nfnetlink::number(family)) {
        return Ok(None);
    }
    Ok(match message.kind {
        NEW_RULE => {
            let (table, rule) = read_rule(message)?;
            Some(Told::RuleAdded { table, chain: rule.chain })
        }
        DELETE_RULE => {
            let (table, rule) = read_rule(message)?;
            Some(Told::RuleDeleted { table, chain: rule.chain, jumps_to: rule.jumps_to })
        }
        DELETE_CHAIN => {
            let (table, chain) = deleted_chain(message)?;
            Some(Told::ChainDeleted { table, chain })
        }
        _ => None,
    })
}

fn committed<'a>(message: &Message<'a>) -> Result<Told<'a>, Malformed> {
    let (mut generation, mut by) = (0, "");
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            GENERATION_ID => generation = attribute.be32()?,
            // A name that is no text is none.
            GENERATION_PROCESS => by = attribute.string().unwrap_or_default(),
            _ => {}
        }
    }
    Ok(Told::Committed { generation, by })
}

fn deleted_chain<'a>(message: &Message<'a>) -> Result<(&'a str, &'a str), Malformed> {
    let (mut table, mut chain) = ("", "");
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            CHAIN_TABLE => table = attribute.string()?,
            CHAIN_NAME => chain = attribute.string()?,
            _ => {}
        }
    }
    Ok((table, chain))
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(message: &Message<'_>) {
    let _ = parse(message, IpFamily::V4);
}

#[cfg(test)]
mod tests {
    use super::super::Nft;
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};
    use std::fmt::Write as _;

    /// One line for each piece; `None` if something was lost.
    fn heard(commits: &mut Commits) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        let is_whole = commits
            .visit(&mut |told| {
                lines.push(match told {
                    Told::RuleAdded { table, chain } => format!("add {table} {chain}"),
                    Told::RuleDeleted { table, chain, jumps_to } => {
                        format!("delete {table} {chain} {}", jumps_to.unwrap_or("-"))
                    }
                    Told::ChainDeleted { table, chain } => format!("chain {table} {chain}"),
                    Told::Committed { by, .. } => format!("by {by}"),
                });
            })
            .unwrap();
        is_whole.then_some(lines)
    }

    #[test]
    fn what_is_done_to_rules_and_chains_is_heard_with_who_did_it() {
        in_fresh_netns(|| {
            run("iptables-nft -t nat -N A; iptables-nft -t nat -N B; ip6tables-nft -t nat -N A");
            let mut commits = Commits::of(IpFamily::V4).unwrap();
            assert_eq!(heard(&mut commits).unwrap(), Vec::<String>::new());
            run("iptables-nft -t nat -A A -s 192.0.2.1 -m comment --comment x -j B");
            assert_eq!(heard(&mut commits).unwrap(), ["add nat A", "by iptables-nft"]);
            run("iptables-nft -t nat -R A 1 -j RETURN");
            assert_eq!(heard(&mut commits).unwrap(), ["delete nat A B", "add nat A", "by iptables-nft"]);
            run("iptables-nft -t nat -F A; iptables-nft -t nat -X A");
            let expected = ["delete nat A -", "by iptables-nft", "chain nat A", "by iptables-nft"];
            assert_eq!(heard(&mut commits).unwrap(), expected);
            run("ip6tables-nft -t nat -A A -j RETURN");
            assert_eq!(
                heard(&mut commits).unwrap(),
                ["by ip6tables-nft"],
                "the other family's rules are not"
            );
            run("nft flush ruleset");
            assert_eq!(heard(&mut commits).unwrap(), ["chain nat B", "by nft"]);
        });
    }

    #[test]
    fn the_last_commit_heard_makes_the_present_generation() {
        in_fresh_netns(|| {
            let mut commits = Commits::of(IpFamily::V4).unwrap();
            run("iptables-nft -t nat -N A; ip6tables-nft -t filter -N B");
            let (mut last, mut count) = (0, 0);
            commits
                .visit(&mut |told| {
                    if let Told::Committed { generation, .. } = told {
                        (last, count) = (generation, count + 1);
                    }
                })
                .unwrap();
            assert_eq!(last, Nft::open().unwrap().generation().unwrap());
            assert!(count >= 2);
        });
    }

    #[test]
    fn too_much_at_once_is_lost_and_said_to_be_and_then_listening_goes_on() {
        in_fresh_netns(|| {
            let mut rules = String::from("add table ip nat\nadd chain ip nat A\n");
            for number in 0..60_000 {
                writeln!(rules, "add rule ip nat A ip saddr 192.0.2.1 meta mark {number} counter").unwrap();
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, rules).unwrap();
            let mut commits = Commits::of(IpFamily::V4).unwrap();
            run(&format!("nft -f {}", file.path().display()));
            assert_eq!(heard(&mut commits), None);
            run("nft add rule ip nat A drop");
            assert_eq!(heard(&mut commits).unwrap(), ["add nat A", "by nft"]);
        });
    }
}

//! Who changed what: nf_tables tells of every transaction that takes effect.

use super::rules::{NEW_RULE, read_rule};
use super::{GENERATION_ID, HEADER_LEN, NEW_CHAIN, NEW_GENERATION, SUBSYSTEM, nfnetlink, read_chain};
use crate::model::IpFamily;
use anyhow::{Context, Result};
use netlink::{Error, Malformed, Message, Notices, Protocol};

/// The multicast group of nf_tables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GENERATION_PROCESS: u16 = 3;
/// `NLM_F_CREATE` and `NLM_F_EXCL`, as whoever did it asked for it.
const CREATED: u16 = 0x600;
/// What may wait to be read: some 5,000 rules. It takes kernel memory only while it waits.
const MOST_WAITING: usize = 4 << 20;

/// A rule: its number, and what it says. A deletion and an addition of the same one are what zeroing
/// its counters looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleMark {
    /// The kernel's number for it.
    pub handle: u64,
    /// A hash of all that it says; counters do not count.
    pub content: u64,
}

/// What the kernel tells of a transaction, piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// A rule was put into a chain.
    RuleAdded {
        /// The chain's table.
        table: &'a str,
        /// The chain.
        chain: &'a str,
        /// Which rule.
        rule: RuleMark,
    },
    /// A rule was taken out of a chain. One in another's place is a deletion and an addition.
    RuleDeleted {
        /// The chain's table.
        table: &'a str,
        /// The chain.
        chain: &'a str,
        /// Which rule.
        rule: RuleMark,
        /// The chain that the rule jumped or went to.
        jumps_to: Option<&'a str>,
    },
    /// A chain that was there before was given this name, or something else of it was changed.
    ChainAltered {
        /// The chain's table.
        table: &'a str,
        /// The chain, as it is called now.
        chain: &'a str,
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
            let (table, rule, handle) = read_rule(message)?;
            let mark = RuleMark { handle, content: rule.content };
            Some(Told::RuleAdded { table, chain: rule.chain, rule: mark })
        }
        DELETE_RULE => {
            let (table, rule, handle) = read_rule(message)?;
            let mark = RuleMark { handle, content: rule.content };
            Some(Told::RuleDeleted { table, chain: rule.chain, rule: mark, jumps_to: rule.jumps_to })
        }
        // Kernels before 5.17 do not say whether it is new.
        NEW_CHAIN if message.flags & CREATED == 0 => {
            let chain = read_chain(message)?;
            (!chain.is_base).then_some(Told::ChainAltered { table: chain.table, chain: chain.name })
        }
        DELETE_CHAIN => {
            let chain = read_chain(message)?;
            Some(Told::ChainDeleted { table: chain.table, chain: chain.name })
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
                    Told::RuleAdded { table, chain, .. } => format!("add {table} {chain}"),
                    Told::RuleDeleted { table, chain, jumps_to, .. } => {
                        format!("delete {table} {chain} {}", jumps_to.unwrap_or("-"))
                    }
                    Told::ChainAltered { table, chain } => format!("now {table} {chain}"),
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
            run("iptables-nft -t nat -N C; iptables-nft -t nat -A C -j B; iptables-nft -t nat -E C D");
            let expected =
                ["by iptables-nft", "add nat C", "by iptables-nft", "now nat D", "by iptables-nft"];
            assert_eq!(heard(&mut commits).unwrap(), expected);
            run("nft rename chain ip nat D E; nft add chain ip nat F");
            assert_eq!(heard(&mut commits).unwrap(), ["now nat E", "by nft", "by nft"]);
            run("ip6tables-nft -t nat -A A -j RETURN");
            assert_eq!(
                heard(&mut commits).unwrap(),
                ["by ip6tables-nft"],
                "the other family's rules are not"
            );
            run("nft flush ruleset");
            let gone = ["delete nat E B", "chain nat B", "chain nat E", "chain nat F", "by nft"];
            assert_eq!(heard(&mut commits).unwrap(), gone);
        });
    }

    #[test]
    fn a_rule_whose_counters_are_zeroed_is_the_same_and_one_that_moves_is_not() {
        in_fresh_netns(|| {
            run("iptables-nft -t filter -N A; iptables-nft -t filter -A A -j RETURN -c 7 420
                 iptables-nft -t filter -A A -j ACCEPT");
            let mut commits = Commits::of(IpFamily::V4).unwrap();
            let mut is_same = || {
                let (mut deleted, mut added) = (None, None);
                commits
                    .visit(&mut |told| match told {
                        Told::RuleDeleted { rule, .. } => deleted = Some(rule),
                        Told::RuleAdded { rule, .. } => added = Some(rule),
                        _ => {}
                    })
                    .unwrap();
                deleted.unwrap() == added.unwrap()
            };
            run("iptables-nft -t filter -Z A");
            assert!(is_same());
            run("iptables-nft -t filter -D A 1; iptables-nft -t filter -A A -j RETURN");
            assert!(!is_same());
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

//! Reading rules of nf_tables: not what they say, but whether it is still the same, and what they count.

use super::{HEADER_LEN, Nft, Part, SUBSYSTEM, nfnetlink};
use crate::kernel::iptables::CountedRule;
use crate::model::IpFamily;
use anyhow::{Context, Result};
use netlink::{Attribute, Malformed, Message};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

pub(super) const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_PACKETS: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;

impl Nft {
    /// Streams the rules of one table, or of one of its chains, through `visit`, in constant
    /// memory: chain by chain, in order. What is missing has no rules. [`Part::Start`] comes first,
    /// and again when the ruleset changed meanwhile: then forget what was seen.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, on lack of permission, or if the ruleset never held still.
    pub fn rules(
        &mut self,
        family: IpFamily,
        table: &str,
        chain: Option<&str>,
        visit: &mut dyn FnMut(Part<CountedRule<'_>>),
    ) -> Result<()> {
        self.begin(GET_RULE, nfnetlink::number(family));
        self.request.string(RULE_TABLE, table);
        if let Some(chain) = chain {
            self.request.string(RULE_CHAIN, chain);
        }
        let dumped = self.socket.dump(&mut self.request, &mut |part| {
            match part {
                Part::Start => visit(Part::Start),
                Part::Item(message) => {
                    // Kernels before 5.x do not filter, so it is done here, too.
                    if let Some((of, rule)) = parse_rule(&message, family)?
                        && of == table
                        && chain.is_none_or(|chain| chain == rule.chain)
                    {
                        visit(Part::Item(rule));
                    }
                }
            }
            Ok(())
        });
        match dumped {
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                visit(Part::Start);
                Ok(())
            }
            other => {
                other.with_context(|| format!("cannot list the {family} rules of nf_tables table {table}"))
            }
        }
    }
}

/// A rule with its table; `None` if it belongs to another family.
fn parse_rule<'a>(
    message: &Message<'a>,
    family: IpFamily,
) -> Result<Option<(&'a str, CountedRule<'a>)>, Malformed> {
    if message.kind != NEW_RULE || message.payload.first() != Some(&nfnetlink::number(family)) {
        return Ok(None);
    }
    let (table, chain) = read_place(message)?;
    let mut rule = CountedRule { chain, jumps_to: None, packets: 0 };
    for_each_expression(message, &mut |name, data| {
        match name {
            "counter" => rule.packets = counted_packets(data)?,
            "immediate" => rule.jumps_to = verdict_chain(data)?.or(rule.jumps_to),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Some((table, rule)))
}

/// The table and the chain that a rule stands in.
pub(super) fn read_place<'a>(message: &Message<'a>) -> Result<(&'a str, &'a str), Malformed> {
    let (mut table, mut chain) = ("", "");
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            RULE_TABLE => table = attribute.string()?,
            RULE_CHAIN => chain = attribute.string()?,
            _ => {}
        }
    }
    Ok((table, chain))
}

/// A rule: its number, and what it says. A deletion and an addition of the same one are what zeroing
/// its counters looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuleMark {
    handle: u64,
    /// A hash of all that it says; counters do not count.
    content: u64,
}

/// Which rule a message is about.
pub(super) fn read_mark(message: &Message<'_>) -> Result<RuleMark, Malformed> {
    let mut handle = 0;
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        if attribute.kind == RULE_HANDLE {
            handle = attribute.be64()?;
        }
    }
    let mut hasher = DefaultHasher::new();
    for_each_expression(message, &mut |name, data| {
        if name != "counter" {
            (name, data.value).hash(&mut hasher);
        }
        Ok(())
    })?;
    Ok(RuleMark { handle, content: hasher.finish() })
}

/// Visits the expressions of a rule, by name.
fn for_each_expression<'a>(
    message: &Message<'a>,
    visit: &mut dyn FnMut(&'a str, Attribute<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        if attribute.kind != RULE_EXPRESSIONS {
            continue;
        }
        for expression in attribute.nested() {
            let mut name = "";
            for part in expression?.nested() {
                let part = part?;
                match part.kind {
                    EXPRESSION_NAME => name = part.string()?,
                    EXPRESSION_DATA => visit(name, part)?,
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn counted_packets(counter: Attribute<'_>) -> Result<u64, Malformed> {
    for part in counter.nested() {
        let part = part?;
        if part.kind == COUNTER_PACKETS {
            return part.be64();
        }
    }
    Ok(0)
}

/// The chain that an immediate verdict leads to.
fn verdict_chain<'a>(data: Attribute<'a>) -> Result<Option<&'a str>, Malformed> {
    for value in data.nested() {
        let value = value?;
        if value.kind != IMMEDIATE_DATA {
            continue;
        }
        for verdict in value.nested() {
            let verdict = verdict?;
            if verdict.kind != DATA_VERDICT {
                continue;
            }
            for part in verdict.nested() {
                let part = part?;
                if part.kind == VERDICT_CHAIN {
                    return part.string().map(Some);
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    /// What the rules of a chain have counted.
    fn packets(chain: &str) -> Vec<u64> {
        let mut counts = Vec::new();
        Nft::open()
            .unwrap()
            .rules(IpFamily::V4, "nat", Some(chain), &mut |part| match part {
                Part::Start => counts.clear(),
                Part::Item(rule) => counts.push(rule.packets),
            })
            .unwrap();
        counts
    }

    #[test]
    fn rules_tell_where_they_stand_and_where_they_lead() {
        in_fresh_netns(|| {
            run("iptables-nft -t nat -N A
                 iptables-nft -t nat -N B
                 iptables-nft -t nat -A A -p tcp -m statistic --mode random --probability 0.5 -j B
                 iptables-nft -t nat -A A -j MARK --set-mark 1
                 iptables-nft -t nat -A OUTPUT -j A");
            let mut rules = Vec::new();
            let mut visit = |part: Part<CountedRule<'_>>| match part {
                Part::Start => rules.clear(),
                Part::Item(it) => rules.push((it.chain.to_owned(), it.jumps_to.map(str::to_owned))),
            };
            Nft::open().unwrap().rules(IpFamily::V4, "nat", None, &mut visit).unwrap();
            rules.sort();
            let rule = |chain: &str, to: Option<&str>| (chain.to_owned(), to.map(str::to_owned));
            assert_eq!(rules, [rule("A", None), rule("A", Some("B")), rule("OUTPUT", Some("A"))]);
            assert_eq!(packets("missing"), [0; 0]);
        });
    }

    #[test]
    fn rules_tell_what_they_have_counted() {
        in_fresh_netns(|| {
            // Connections are tracked as soon as there is a rule that needs it.
            run("ip link set lo up
                 iptables-nft -t nat -A POSTROUTING -p tcp -j MASQUERADE
                 iptables-nft -t nat -A OUTPUT -p tcp -j ACCEPT
                 iptables-nft -t nat -A OUTPUT -p udp -j ACCEPT");
            for count in 1..4 {
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                for _ in 0..2 {
                    socket.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
                }
                assert_eq!(packets("OUTPUT"), [0, count], "only the first packet of a flow comes by");
            }
        });
    }

    #[test]
    fn a_missing_table_has_no_rules() {
        in_fresh_netns(|| assert_eq!(packets("OUTPUT"), [0; 0]));
    }
}

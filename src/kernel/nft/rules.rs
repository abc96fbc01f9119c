//! Reading rules of nf_tables: not what they say, but whether it is still the same, and what they count.

use super::{HEADER_LEN, Nft, Part, SUBSYSTEM, nfnetlink};
use crate::kernel::iptables::Rule;
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
        visit: &mut dyn FnMut(Part<Rule<'_>>),
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
fn parse_rule<'a>(message: &Message<'a>, family: IpFamily) -> Result<Option<(&'a str, Rule<'a>)>, Malformed> {
    if message.kind != NEW_RULE || message.payload.first() != Some(&nfnetlink::number(family)) {
        return Ok(None);
    }
    read_rule(message).map(|(table, rule, _)| Some((table, rule)))
}

/// A rule with its table and its number there, from a message that has one.
pub(super) fn read_rule<'a>(message: &Message<'a>) -> Result<(&'a str, Rule<'a>, u64), Malformed> {
    let (mut table, mut handle) = ("", 0);
    let mut rule = Rule { chain: "", content: 0, jumps_to: None, packets: 0 };
    let mut hasher = DefaultHasher::new();
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            RULE_TABLE => table = attribute.string()?,
            RULE_CHAIN => rule.chain = attribute.string()?,
            RULE_HANDLE => handle = attribute.be64()?,
            RULE_EXPRESSIONS => {
                for expression in attribute.nested() {
                    read_expression(expression?, &mut hasher, &mut rule)?;
                }
            }
            _ => {}
        }
    }
    rule.content = hasher.finish();
    Ok((table, rule, handle))
}

/// Counters change with every packet; all else makes the rule what it is.
fn read_expression<'a>(
    expression: Attribute<'a>,
    hasher: &mut DefaultHasher,
    rule: &mut Rule<'a>,
) -> Result<(), Malformed> {
    let mut name = "";
    for part in expression.nested() {
        let part = part?;
        match part.kind {
            EXPRESSION_NAME => name = part.string()?,
            EXPRESSION_DATA if name == "counter" => rule.packets = counted_packets(part)?,
            EXPRESSION_DATA => {
                (name, part.value).hash(hasher);
                if name == "immediate" {
                    rule.jumps_to = verdict_chain(part)?.or(rule.jumps_to);
                }
            }
            _ => {}
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

    /// Chain, content and target of each rule.
    fn list(chain: Option<&str>) -> Vec<(String, u64, Option<String>)> {
        let mut rules = Vec::new();
        Nft::open()
            .unwrap()
            .rules(IpFamily::V4, "nat", chain, &mut |part| match part {
                Part::Start => rules.clear(),
                Part::Item(rule) => {
                    rules.push((rule.chain.to_owned(), rule.content, rule.jumps_to.map(str::to_owned)));
                }
            })
            .unwrap();
        rules
    }

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
    fn rules_are_the_same_as_long_as_they_say_the_same_whatever_they_count() {
        in_fresh_netns(|| {
            run("ip link set lo up
                 iptables-nft -t nat -N A
                 iptables-nft -t nat -N B
                 iptables-nft -t nat -A A -p tcp -m comment --comment x -m statistic --mode random --probability 0.5 -j B
                 iptables-nft -t nat -A A -j MARK --set-mark 1
                 iptables-nft -t nat -A B -s 127.0.0.1 -j RETURN
                 iptables-nft -t nat -A OUTPUT -j A");
            let before = list(None);
            let jumps: Vec<_> = before.iter().map(|(chain, _, to)| (chain.as_str(), to.as_deref())).collect();
            assert!(jumps.contains(&("A", Some("B"))) && jumps.contains(&("OUTPUT", Some("A"))), "{jumps:?}");
            assert_eq!(before.len(), 4);
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", "127.0.0.1:9").unwrap();
            assert_eq!(list(None), before, "counting changes nothing");
            assert_eq!(list(Some("A")).len(), 2);
            assert_eq!(list(Some("missing")), []);
            run("iptables-nft -t nat -R A 2 -j MARK --set-mark 2");
            let after = list(None);
            let changed: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
            assert_eq!(changed.len(), 1);
            assert_eq!(changed[0].0.0, "A");
            run("iptables-nft -t nat -R A 2 -j MARK --set-mark 1");
            assert_eq!(list(None), before, "the same rule again is the same");
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
        in_fresh_netns(|| assert_eq!(list(None), []));
    }
}

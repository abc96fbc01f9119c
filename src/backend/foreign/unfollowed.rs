//! Chains of nf_tables that the walk does not follow: those at hooks of bridges and devices.

use super::nft::{base, statements};
use super::{ChainRules, DEEPEST, ForeignTable};
use std::collections::BTreeSet;

/// The hooks of bridges and devices at which a table can stop a packet, with the devices: `ingress of eth0`. `text` is what
/// `nft -y list table` prints of the table (`netdev filter`).
#[must_use]
pub fn unfollowed_hooks(name: &str, text: &str) -> BTreeSet<String> {
    let chains = ForeignTable::of_nft(name, text).chains;
    let is_of_links = ["bridge ", "netdev "].iter().any(|family| name.starts_with(family));
    let (mut found, mut chain) = (BTreeSet::new(), String::new());
    for line in statements(text) {
        if let Some(head) = line.strip_prefix("chain ") {
            chain = head.trim_end_matches(" {").to_owned();
        } else if let Some(hook) = line.strip_prefix("type ") {
            let is_followed = !is_of_links && base(&chain, hook).is_some();
            found.extend(place(hook).filter(|_| !is_followed && stops(&chains, &chain, 0)));
        }
    }
    found
}

/// `filter hook ingress device "eth0" priority 0; policy drop;`
fn place(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("hook ")?;
    let (at, _) = rest.split_once(" priority")?;
    let mut words =
        at.split([' ', ',', '"']).filter(|word| !["", "device", "devices", "=", "{", "}"].contains(word));
    let hook = words.next()?;
    let devices: Vec<&str> = words.collect();
    Some(if devices.is_empty() { hook.to_owned() } else { format!("{hook} of {}", devices.join(", ")) })
}

/// Whether a rule of a chain, or of one that it leads to, stops packets. What a map leads to may.
fn stops(chains: &ChainRules, chain: &str, depth: usize) -> bool {
    let rules = chains.get(chain).map(Vec::as_slice).unwrap_or_default();
    depth <= DEEPEST && rules.iter().any(|rule| rule_stops(chains, rule, depth))
}

fn rule_stops(chains: &ChainRules, rule: &str, depth: usize) -> bool {
    // Every other part stands in quotes.
    let bare = rule.split('"').step_by(2);
    let words: Vec<&str> =
        bare.flat_map(|part| part.split([' ', '{', '}', ',', ';'])).filter(|it| !it.is_empty()).collect();
    let leads = |pair: &&[&str]| match pair {
        ["jump" | "goto", to] => stops(chains, to, depth + 1),
        ["vmap", map] => map.starts_with('@'),
        _ => false,
    };
    words.iter().any(|word| ["drop", "reject", "queue", "fwd"].contains(word))
        || words.windows(2).any(|pair| leads(&pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::policy("netdev t", "ingress device \"eth0\" priority 0; policy drop;", "", &["ingress of eth0"])]
    #[case::devices("netdev t", "egress devices = { \"eth0\", eth1 } priority 0; policy accept;", "ip daddr 10.0.0.1 drop", &["egress of eth0, eth1"])]
    #[case::map("bridge t", "forward priority 0; policy accept;", "iifname vmap { \"a\" : jump other }", &["forward"])]
    #[case::map_elsewhere("bridge t", "forward priority 0; policy accept;", "ether saddr vmap @known", &["forward"])]
    #[case::ingress("inet t", "ingress device \"eth0\" priority 0; policy accept;", "jump other", &["ingress of eth0"])]
    #[case::followed("inet t", "forward priority 0; policy drop;", "", &[])]
    #[case::counting("netdev t", "ingress device \"eth0\" priority 0; policy accept;", "counter packets 0 bytes 0 comment \"drop nothing\" accept", &[])]
    fn a_hook_is_named_if_a_packet_can_be_stopped_there(
        #[case] table: &str,
        #[case] hook: &str,
        #[case] rule: &str,
        #[case] wanted: &[&str],
    ) {
        let text = format!(
            "table {table} {{\n\tchain first {{\n\t\ttype filter hook {hook}\n\t\t{rule}\n\t}}\n\n\tchain other {{\n\t\treject\n\t}}\n}}\n"
        );
        let found = unfollowed_hooks(table, &text);
        assert_eq!(found, wanted.iter().map(|it| (*it).to_owned()).collect());
    }
}

//! What the rules of every mode need of tools and kernel. A test in each mode holds all that it writes against its list.

use crate::kernel::iptables::{Need, RuleKind};

pub(super) const COMMENT: RuleKind = RuleKind {
    name: "comment",
    table: "filter",
    rules: &["-m comment --comment trial -j RETURN"],
    need: Need::Vital("all Services"),
};

pub(super) const CONNTRACK: RuleKind = RuleKind {
    name: "conntrack",
    table: "filter",
    rules: &[
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT",
    ],
    need: Need::Vital("all Services"),
};

pub(super) const REJECT: RuleKind = RuleKind {
    name: "REJECT",
    table: "filter",
    rules: &["-j REJECT"],
    need: Need::Vital("Services without endpoints"),
};

pub(super) const ADDRTYPE: RuleKind = RuleKind {
    name: "addrtype",
    table: "nat",
    rules: &["-m addrtype --dst-type LOCAL -j RETURN", "-m addrtype --src-type LOCAL -j RETURN"],
    need: Need::Vital("Services with node ports or external addresses"),
};

pub(super) const MARK: RuleKind = RuleKind {
    name: "mark",
    table: "nat",
    rules: &[
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-j MARK --or-mark 0x4000",
        "-j MARK --xor-mark 0x4000",
    ],
    need: Need::Vital("all Services"),
};

pub(super) const MASQUERADE: RuleKind = RuleKind {
    name: "MASQUERADE",
    table: "nat",
    rules: &["-j MASQUERADE"],
    need: Need::Vital("all Services"),
};

pub(super) const RANDOM_FULLY: RuleKind = RuleKind {
    name: "--random-fully",
    table: "nat",
    rules: &["-j MASQUERADE --random-fully"],
    need: Need::Option("source ports of masqueraded connections are not chosen at random"),
};

/// The matches, targets and options of rules, as the tools spell them; chains of ours are no targets.
#[cfg(test)]
pub(super) fn needs<'r>(rules: impl IntoIterator<Item = &'r str>) -> std::collections::BTreeSet<String> {
    let mut needs = std::collections::BTreeSet::new();
    for rule in rules {
        let mut words = super::rule::words(rule);
        while let Some(word) = words.next().filter(|word| !word.is_quoted) {
            let mut value = || words.next().map_or("", |word| word.text);
            match word.text {
                "-m" => _ = needs.insert(format!("-m {}", value())),
                "-j" => _ = needs.insert(format!("-j {}", value())),
                "--comment" => _ = (needs.insert("--comment".to_owned()), value()),
                option if option.starts_with("--") => _ = needs.insert(option.to_owned()),
                _ => {}
            }
        }
    }
    needs.retain(|need| !need.starts_with("-j KUBE-"));
    needs
}

/// The rules in the restore inputs of golden files of a mode.
#[cfg(test)]
pub(super) fn golden_rules(mode: &str) -> Vec<String> {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend").join(mode).join("golden");
    let files =
        std::fs::read_dir(folder).unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let rules = |text: String| {
        text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect::<Vec<_>>()
    };
    files.flat_map(rules).filter(|rule| rule.contains(" -j ")).collect()
}

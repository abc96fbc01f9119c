//! What is known of a program that changes our rules.

/// The kernel's name of a process has at most 15 letters, so names of tools are cut.
const HINTS: [(&[&str], &str); 6] = [
    (&["kube-proxy"], "that is another service proxy, of which a node can run one only"),
    (
        &["firewalld"],
        "firewalld writes all tables again when it reloads; keep it from doing so, or from running",
    ),
    (
        &["dockerd", "podman", "netavark"],
        "container engines write their chains again when they restart or reload",
    ),
    (
        &[
            "iptables-restor",
            "ip6tables-resto",
            "iptables-legacy",
            "ip6tables-legac",
            "xtables-nft-mul",
            "xtables-legacy-",
            "iptables-nft-re",
        ],
        "that tool is run by other service proxies, by services that load saved rules (netfilter-persistent, iptables-services, \
         ufw) and by configuration management",
    ),
    (
        &["nft"],
        "nftables.service and scripts run it, and flush ruleset in what they load removes our rules, too",
    ),
    (&["iptables", "ip6tables"], "scripts, network plugins and service proxies run it"),
];

/// The program, and what kind of program does such things.
#[must_use]
pub fn culprit(by: Option<&str>) -> String {
    let Some(name) = by else {
        return "which program does it is not known: other service proxies, firewalls that load or reload their rules, and \
                configuration management do such things"
            .to_owned();
    };
    let is_it = |names: &[&str]| names.iter().any(|known| name.starts_with(known));
    match HINTS.iter().find(|(names, _)| is_it(names)) {
        Some((_, hint)) => format!("the process is {name}: {hint}"),
        None => format!("the process is {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_program_has_a_hint_and_an_unknown_one_its_name() {
        assert!(culprit(Some("iptables-restor")).contains("netfilter-persistent"));
        assert!(culprit(Some("iptables")).contains("scripts"));
        assert!(culprit(Some("kube-proxy")).contains("one only"));
        assert_eq!(culprit(Some("tool")), "the process is tool");
        assert!(culprit(None).contains("not known"));
    }
}

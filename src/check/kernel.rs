//! Permissions, tools and what the kernel can do.

use super::facts::{Facts, Request, ToolFacts};
use super::{Finding, settings};
use crate::config::Mode;
use crate::kernel::iptables::{Flavor, Version};
use crate::model::IpFamily;

pub(super) fn judge(facts: &Facts, request: &Request) -> Vec<Finding> {
    let mut findings = vec![permissions(facts)];
    findings.push(tools(facts, IpFamily::V4));
    findings.push(match settings::ipv6_is_off(facts) {
        true => Finding::ok("iptables (IPv6)", "IPv6 is switched off on this host: IPv4 only"),
        false => tools(facts, IpFamily::V6),
    });
    if request.mode == Mode::Ipvs {
        findings.extend([ipvs(facts), ipset(facts), dummy(facts)]);
    }
    findings
}

fn permissions(facts: &Facts) -> Finding {
    const CHECK: &str = "permissions";
    let legacy = |family| facts.tools.get(family).as_ref().is_ok_and(|it| it.flavor == Flavor::Legacy);
    let lacking = if !facts.may(Facts::NET_ADMIN) {
        "CAP_NET_ADMIN"
    } else if IpFamily::ALL.into_iter().any(legacy) && !facts.may(Facts::NET_RAW) {
        "CAP_NET_RAW, which legacy iptables needs"
    } else {
        return Finding::ok(CHECK, "CAP_NET_ADMIN");
    };
    let message = format!("no {lacking}");
    if facts.is_root {
        Finding::failed(CHECK, message, "give it to the container (securityContext.capabilities.add)")
    } else {
        Finding::warning(CHECK, message, "the proxy needs it; run this check as root to see more")
    }
}

fn tools(facts: &Facts, family: IpFamily) -> Finding {
    let check = format!("iptables ({family})");
    // Without IPv6 rules a node serves IPv4 all the same.
    let broken = |message: String, remedy: &str| match family {
        IpFamily::V4 => Finding::failed(&check, message, remedy),
        IpFamily::V6 => {
            Finding::warning(&check, message, format!("{remedy}; until then only IPv4 is served"))
        }
    };
    let found = match facts.tools.get(family) {
        Ok(found) => found,
        Err(error) if !facts.may(Facts::NET_ADMIN) => return Finding::unknown(check, error, facts),
        Err(error) => return broken(error.clone(), "install the package iptables, or fix --iptables-flavor"),
    };
    let name = format!("{} {}", found.flavor, found.version);
    match (&found.nat_table, found.missing.first()) {
        (Err(error), _) if !facts.may(Facts::NET_ADMIN) => Finding::warning(
            check,
            format!("{name}; its tables could not be looked at: {error}"),
            "run this check as root",
        ),
        (Err(error), _) => broken(format!("{name}: {error}"), nat_remedy(facts, found)),
        (Ok(()), Some((what, words))) => {
            let all: Vec<&str> = found.missing.iter().map(|(what, _)| *what).collect();
            let message = format!("{name} cannot make rules with {} ({what}: {words})", all.join(", "));
            broken(message, "load the kernel module xt_NAME of each, or use a kernel that has them")
        }
        (Ok(()), None) if found.version < Version::RANDOM_FULLY => Finding::warning(
            check,
            format!("{name} cannot choose source ports at random and does not wait for its lock"),
            format!("install iptables {} or later", Version::RANDOM_FULLY),
        ),
        (Ok(()), None) => Finding::ok(check, format!("{name}, its nat table and all kinds of rule work")),
    }
}

fn nat_remedy(facts: &Facts, found: &ToolFacts) -> &'static str {
    match found.flavor {
        Flavor::Legacy if !facts.may(Facts::SYS_MODULE) => {
            "have the node load ip_tables, iptable_nat and ip6table_nat (/etc/modules-load.d): without \
             CAP_SYS_MODULE legacy iptables cannot"
        }
        Flavor::Legacy => "load the kernel modules ip_tables and iptable_nat, or use --iptables-flavor=nft",
        Flavor::Nft => "use a kernel with nf_tables and nft_compat, or --iptables-flavor=legacy",
    }
}

fn ipvs(facts: &Facts) -> Finding {
    match &facts.ipvs {
        Ok(()) => Finding::ok("ipvs", "the kernel has IPVS"),
        Err(error) if !facts.may(Facts::NET_ADMIN) => Finding::unknown("ipvs", error, facts),
        Err(error) => {
            Finding::failed("ipvs", error.clone(), "modprobe ip_vs on the node, or use --mode=iptables")
        }
    }
}

fn ipset(facts: &Facts) -> Finding {
    match &facts.ipset {
        Ok(()) => Finding::ok("ipset", "the kernel has ipsets"),
        Err(error) if !facts.may(Facts::NET_ADMIN) => Finding::unknown("ipset", error, facts),
        Err(error) => Finding::failed("ipset", error.clone(), "modprobe ip_set on the node"),
    }
}

fn dummy(facts: &Facts) -> Finding {
    if facts.has_dummy {
        return Finding::ok("dummy interface", "there, or its driver is");
    }
    Finding::warning(
        "dummy interface",
        "the driver is not loaded; the kernel loads it at the proxy's start if it has it",
        "modprobe dummy on the node to be sure",
    )
}

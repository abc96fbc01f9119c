//! Permissions, tools and what the kernel can do.

use super::facts::{CheckRequest, Facts, ModeSource, ToolFacts};
use super::{CheckResult, settings};
use crate::backend::{self, Requirement};
use crate::kernel::iptables::{Flavor, Need, RuleKind, Version};
use crate::model::IpFamily;

pub(super) fn judge(facts: &Facts, request: &CheckRequest) -> Vec<CheckResult> {
    let mut findings = vec![judged_mode(request), permissions(facts, request)];
    if backend::open(request.mode).facts().writes_iptables {
        findings.push(tools(facts, IpFamily::V4));
        findings.push(match settings::ipv6_is_off(facts) {
            true => CheckResult::ok("iptables (IPv6)", "IPv6 is switched off on this host: IPv4 only"),
            false => tools(facts, IpFamily::V6),
        });
    }
    findings.extend(facts.requirements.iter().map(|requirement| required(requirement, facts)));
    findings
}

/// For which mode the other questions are answered.
fn judged_mode(request: &CheckRequest) -> CheckResult {
    const CHECK: &str = "mode";
    let mode = request.mode.as_str();
    match &request.mode_source {
        ModeSource::Auto(why) => CheckResult::ok(CHECK, format!("{mode}, chosen by auto: {why}")),
        ModeSource::Running => CheckResult::ok(CHECK, format!("{mode}, that of the proxy that runs here")),
        ModeSource::Default => {
            CheckResult::ok(CHECK, format!("{mode}, the default: --proxy-mode names another"))
        }
        ModeSource::Asked { beside: None } => CheckResult::ok(CHECK, format!("{mode}, as asked")),
        ModeSource::Asked { beside: Some(running) } => CheckResult::ok(
            CHECK,
            format!("{mode}, as asked; the proxy that runs here is in mode {}", running.as_str()),
        ),
    }
}

fn permissions(facts: &Facts, request: &CheckRequest) -> CheckResult {
    const CHECK: &str = "permissions";
    let runs_tools = backend::open(request.mode).facts().writes_iptables;
    let legacy = |family| facts.tools.get(family).as_ref().is_ok_and(|it| it.flavor == Flavor::Legacy);
    let lacking = if !facts.may(Facts::NET_ADMIN) {
        "CAP_NET_ADMIN"
    } else if runs_tools && IpFamily::ALL.into_iter().any(legacy) && !facts.may(Facts::NET_RAW) {
        "CAP_NET_RAW, which legacy iptables needs"
    } else {
        return CheckResult::ok(CHECK, "CAP_NET_ADMIN");
    };
    let message = format!("no {lacking}");
    if facts.is_root {
        CheckResult::broken(CHECK, message, "give it to the container (securityContext.capabilities.add)")
    } else {
        CheckResult::problem(CHECK, message, "the proxy needs it; run this check as root to see more")
    }
}

fn tools(facts: &Facts, family: IpFamily) -> CheckResult {
    let check = format!("iptables ({family})");
    // Without IPv6 rules a node serves IPv4 all the same.
    let broken = |message: String, remedy: &str| match family {
        IpFamily::V4 => CheckResult::broken(&check, message, remedy),
        IpFamily::V6 => {
            CheckResult::problem(&check, message, format!("{remedy}; until then only IPv4 is served"))
        }
    };
    let found = match facts.tools.get(family) {
        Ok(found) => found,
        Err(error) if !facts.may(Facts::NET_ADMIN) => return CheckResult::unknown(check, error, facts),
        Err(error) => return broken(error.clone(), "install the package iptables, or fix --iptables-flavor"),
    };
    let name = format!("{} {}", found.flavor, found.version);
    match (&found.nat_table, found.refused.is_empty()) {
        (Err(error), _) if !facts.may(Facts::NET_ADMIN) => CheckResult::problem(
            check,
            format!("{name}; its tables could not be read: {error}"),
            "run this check as root",
        ),
        (Err(error), _) => broken(format!("{name}: {error}"), nat_remedy(facts, found)),
        (Ok(()), false) => {
            let message = format!("{name} refuses rules with {}", lost(&found.refused));
            let is_vital = |(kind, _): &(RuleKind, String)| matches!(kind.need, Need::Vital(_));
            match found.refused.iter().any(is_vital) {
                true => broken(message, REFUSED_REMEDY),
                false => CheckResult::problem(check, message, REFUSED_REMEDY),
            }
        }
        (Ok(()), true) if found.version < Version::RANDOM_FULLY => CheckResult::problem(
            check,
            format!("{name} cannot choose source ports at random and does not wait for its lock"),
            format!("install iptables {} or later", Version::RANDOM_FULLY),
        ),
        (Ok(()), true) => CheckResult::ok(check, format!("{name}, its nat table and all kinds of rule work")),
    }
}

const REFUSED_REMEDY: &str =
    "load the kernel module xt_NAME of each, or use a kernel and an iptables that have them";

/// What each refused kind of rules is there for, with the tool's words.
fn lost(refused: &[(RuleKind, String)]) -> String {
    let one = |(kind, words): &(RuleKind, String)| match kind.need {
        Need::Option(lost) => format!("{}, which are written without it: {lost} ({words})", kind.name),
        Need::Some(services) | Need::Vital(services) => {
            format!("{}, without which {services} are not served ({words})", kind.name)
        }
    };
    refused.iter().map(one).collect::<Vec<_>>().join("; ")
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

fn required(Requirement { name, found, remedy, is_vital }: &Requirement, facts: &Facts) -> CheckResult {
    match found {
        Ok(found) => CheckResult::ok(*name, *found),
        Err(why) if !is_vital => CheckResult::problem(*name, why, *remedy),
        Err(why) if !facts.may(Facts::NET_ADMIN) => CheckResult::unknown(*name, why, facts),
        Err(why) => CheckResult::broken(*name, why, *remedy),
    }
}

//! Other proxies, at work or remembered by the kernel.

use super::CheckResult;
use super::facts::{CheckRequest, Facts};
use crate::backend;
use crate::model::{IpFamily, PerFamily};

pub(super) fn judge(facts: &Facts, request: &CheckRequest) -> Vec<CheckResult> {
    vec![processes(facts), other_flavor(facts), nft_table(facts), virtual_servers(facts, request)]
}

fn processes(facts: &Facts) -> CheckResult {
    const CHECK: &str = "other proxies";
    let named = |ours: bool| {
        let found = facts.proxies.iter().filter(move |it| it.is_ours == ours);
        found.map(|it| format!("{} (process {})", it.name, it.pid)).collect::<Vec<_>>().join(", ")
    };
    if facts.proxies.iter().any(|it| !it.is_ours) {
        let message = format!("at work: {}", named(false));
        return CheckResult::failed(CHECK, message, "stop one of the two: they overwrite each other's rules");
    }
    match facts.proxies.len() {
        0 => CheckResult::ok(CHECK, "no process is one"),
        1 => CheckResult::ok(CHECK, format!("none but {}", named(true))),
        _ => CheckResult::failed(
            CHECK,
            format!("kube-proxy-rs runs twice: {}", named(true)),
            "stop one of them",
        ),
    }
}

/// The families for which something is so, or why it is not known.
fn families(found: &PerFamily<Result<bool, String>>) -> Result<Vec<&'static str>, &String> {
    let mut so = Vec::new();
    for family in IpFamily::ALL {
        if *found.get(family).as_ref()? {
            so.push(family.as_str());
        }
    }
    Ok(so)
}

fn other_flavor(facts: &Facts) -> CheckResult {
    const CHECK: &str = "other flavour's rules";
    match families(&facts.other_flavor) {
        Err(error) => CheckResult::unknown(CHECK, error, facts),
        Ok(found) if found.is_empty() => CheckResult::ok(CHECK, "none"),
        Ok(found) => CheckResult::warning(
            CHECK,
            format!("the other flavour of iptables holds rules for Services, too ({})", found.join(", ")),
            "--cleanup-other-flavor removes them once ours stand; or choose that flavour with --iptables-flavor",
        ),
    }
}

fn nft_table(facts: &Facts) -> CheckResult {
    const CHECK: &str = "nftables mode";
    match families(&facts.nft_table) {
        Err(error) => CheckResult::unknown(CHECK, error, facts),
        Ok(found) if found.is_empty() => CheckResult::ok(CHECK, "left nothing behind"),
        Ok(found) => CheckResult::warning(
            CHECK,
            format!("kube-proxy's table kube-proxy is there ({})", found.join(", ")),
            "stop that proxy; its table is removed once our rules stand",
        ),
    }
}

fn virtual_servers(facts: &Facts, request: &CheckRequest) -> CheckResult {
    const CHECK: &str = "IPVS virtual servers";
    let are_ours = backend::open(request.mode).facts().has_virtual_servers;
    match &facts.virtual_servers {
        Err(error) => CheckResult::unknown(CHECK, error, facts),
        Ok(0) => CheckResult::ok(CHECK, "none"),
        Ok(count) if are_ours => {
            CheckResult::ok(CHECK, format!("{count}; the proxy takes over those of Services"))
        }
        Ok(count) => CheckResult::warning(
            CHECK,
            format!("{count} are there, left by a proxy in mode ipvs: packets go to them, not by our rules"),
            "stop that proxy and run kube-proxy-rs --cleanup",
        ),
    }
}

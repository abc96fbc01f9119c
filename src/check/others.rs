//! Other proxies, at work or remembered by the kernel.

use super::CheckResult;
use super::facts::{CheckRequest, Facts, ProxyState};
use crate::backend::StandingObjects;
use crate::config::Mode;
use crate::model::{IpFamily, PerFamily};

pub(super) fn judge(facts: &Facts, request: &CheckRequest) -> Vec<CheckResult> {
    let mut findings = vec![processes(facts)];
    findings.extend(request.proxy.as_ref().map(running_proxy));
    findings.push(other_flavor(facts));
    findings.extend(facts.standing.iter().map(|it| standing_objects(it, facts, request.mode)));
    findings
}

/// The judgement that `status` prints. What is wrong now need not make the node unfit.
fn running_proxy(proxy: &ProxyState) -> CheckResult {
    const CHECK: &str = "running proxy";
    match proxy.healthy {
        true => CheckResult::ok(CHECK, "healthy"),
        false => CheckResult::problem(
            CHECK,
            format!("degraded: {}", proxy.reasons.join("; ")),
            "kube-proxy-rs status has the details",
        ),
    }
}

fn processes(facts: &Facts) -> CheckResult {
    const CHECK: &str = "other proxies";
    let named = |ours: bool| {
        let found = facts.proxies.iter().filter(move |it| it.is_ours == ours);
        found.map(|it| format!("{} (process {})", it.name, it.pid)).collect::<Vec<_>>().join(", ")
    };
    if facts.proxies.iter().any(|it| !it.is_ours) {
        let message = format!("running: {}", named(false));
        return CheckResult::broken(CHECK, message, "stop one of the two: they overwrite each other's rules");
    }
    match facts.proxies.len() {
        0 => CheckResult::ok(CHECK, "none runs"),
        1 => CheckResult::ok(CHECK, format!("none but {}", named(true))),
        _ => CheckResult::broken(
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
        Ok(found) => CheckResult::problem(
            CHECK,
            format!("the other flavour of iptables holds rules for Services, too ({})", found.join(", ")),
            "--cleanup-other-flavor removes them once ours stand; or choose that flavour with --iptables-flavor",
        ),
    }
}

/// What a mode has in the kernel: taken over by this mode, in the way of another.
fn standing_objects((mode, objects): &(Mode, StandingObjects), facts: &Facts, running: Mode) -> CheckResult {
    match &objects.found {
        Err(error) => CheckResult::unknown(objects.name, error, facts),
        Ok(None) => CheckResult::ok(objects.name, "none"),
        Ok(Some(found)) if *mode == running => {
            CheckResult::ok(objects.name, format!("{found}; the proxy takes over what is of Services"))
        }
        Ok(Some(found)) => {
            CheckResult::problem(objects.name, format!("{found}: {}", objects.effect), objects.remedy)
        }
    }
}

//! Kernel settings that decide about Services' traffic.

use super::CheckResult;
use super::facts::{CheckRequest, Facts};
use crate::backend;
use crate::model::NotForwarding;

/// What is read, relative to /proc/sys.
pub(super) const NAMES: [&str; 11] = [
    FORWARD_V4,
    FORWARD_V6,
    NO_IPV6,
    BRIDGE_V4,
    BRIDGE_V6,
    RP_FILTER,
    ROUTE_LOCALNET,
    CONNTRACK_MAX,
    CONNTRACK_COUNT,
    LOCAL_PORTS,
    RESERVED_PORTS,
];
const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
const NO_IPV6: &str = "net/ipv6/conf/all/disable_ipv6";
const BRIDGE_V4: &str = "net/bridge/bridge-nf-call-iptables";
const BRIDGE_V6: &str = "net/bridge/bridge-nf-call-ip6tables";
const RP_FILTER: &str = "net/ipv4/conf/all/rp_filter";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const CONNTRACK_MAX: &str = "net/netfilter/nf_conntrack_max";
const CONNTRACK_COUNT: &str = "net/netfilter/nf_conntrack_count";
/// The ports that the kernel gives to connections that ask for none.
pub(super) const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";
/// Those that it does not, although they are among them.
pub(super) const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";

pub(super) fn judge(facts: &Facts, request: &CheckRequest) -> Vec<CheckResult> {
    let mut findings = vec![forward_v4(facts, request), forward_v6(facts, request)];
    findings.push(bridge(facts));
    findings.push(rp_filter(facts));
    findings.extend(route_localnet(facts, request));
    findings.push(conntrack(facts));
    findings.push(proc_sys(facts));
    findings
}

pub(super) fn ipv6_is_off(facts: &Facts) -> bool {
    facts.value(NO_IPV6) != Some("0")
}

/// The name as `sysctl` spells it, with a value.
fn assignment(name: &str, value: &str) -> String {
    format!("sysctl -w {}={value}, and keep it in /etc/sysctl.d", name.replace('/', "."))
}

fn forward_v4(facts: &Facts, request: &CheckRequest) -> CheckResult {
    const CHECK: &str = "IPv4 forwarding";
    match facts.value(FORWARD_V4) {
        Some("1") => CheckResult::ok(CHECK, "on"),
        Some(_)
            if backend::open(request.mode).facts().switches_forwarding_on && facts.writable(FORWARD_V4) =>
        {
            CheckResult::ok(CHECK, "off; the proxy switches it on at its start")
        }
        Some(_) => {
            CheckResult::broken(CHECK, "off: packets to pods are not passed on", assignment(FORWARD_V4, "1"))
        }
        None => CheckResult::unknown(CHECK, "there is no such setting", facts),
    }
}

fn forward_v6(facts: &Facts, request: &CheckRequest) -> CheckResult {
    const CHECK: &str = "IPv6 forwarding";
    if ipv6_is_off(facts) {
        return CheckResult::ok(CHECK, "IPv6 is switched off on this host");
    }
    if facts.value(FORWARD_V6) == Some("1") {
        return CheckResult::ok(CHECK, "on");
    }
    let message = "off: packets to IPv6 pods are not passed on";
    match NotForwarding::judge(request.has_ipv6_endpoints, facts.has_ipv6_address) {
        NotForwarding::Broken => CheckResult::broken(CHECK, message, assignment(FORWARD_V6, "1")),
        NotForwarding::Doubtful => CheckResult::problem(
            CHECK,
            message,
            format!("if the cluster uses IPv6: {}", assignment(FORWARD_V6, "1")),
        ),
        NotForwarding::Harmless if request.has_ipv6_endpoints == Some(false) => {
            CheckResult::ok(CHECK, "off, and no Service has an IPv6 endpoint")
        }
        NotForwarding::Harmless => CheckResult::ok(CHECK, "off, and the node has no IPv6 address of its own"),
    }
}

/// Without it, the answer of a pod to a pod on the same bridge goes past the rules that would
/// translate it back.
fn bridge(facts: &Facts) -> CheckResult {
    const CHECK: &str = "br_netfilter";
    let families = [(BRIDGE_V4, "iptables"), (BRIDGE_V6, "ip6tables")];
    if !facts.has_bridge {
        return CheckResult::ok(CHECK, "not needed: no interface is a bridge");
    }
    if facts.value(BRIDGE_V4).is_none() {
        return CheckResult::problem(
            CHECK,
            "not loaded, and there is a bridge: a pod may not reach a Service whose endpoint is on its own bridge",
            "if pods are on that bridge: modprobe br_netfilter, and keep it in /etc/modules-load.d",
        );
    }
    match families.into_iter().find(|(name, _)| facts.value(name) == Some("0")) {
        None => CheckResult::ok(CHECK, "bridged packets go through iptables"),
        Some((name, tool)) => CheckResult::problem(
            CHECK,
            format!(
                "bridged packets go past {tool}: a pod may not reach a Service whose endpoint is on its own bridge"
            ),
            format!("if pods are on a bridge: {}", assignment(name, "1")),
        ),
    }
}

fn rp_filter(facts: &Facts) -> CheckResult {
    const CHECK: &str = "rp_filter";
    match facts.value(RP_FILTER) {
        Some("1") => CheckResult::problem(
            CHECK,
            "strict: packets that come in by another interface than their answers leave by are dropped, on nodes \
             with several",
            format!("if node ports time out from some networks: {}", assignment(RP_FILTER, "2")),
        ),
        Some(value) => CheckResult::ok(CHECK, if value == "2" { "loose" } else { "off" }),
        None => CheckResult::unknown(CHECK, "there is no such setting", facts),
    }
}

fn route_localnet(facts: &Facts, request: &CheckRequest) -> Option<CheckResult> {
    const CHECK: &str = "route_localnet";
    if !request.localhost_node_ports {
        return None;
    }
    Some(match facts.value(ROUTE_LOCALNET) {
        Some("1") => {
            CheckResult::ok(CHECK, "on, for node ports on localhost; KUBE-FIREWALL keeps neighbours out")
        }
        Some(_) if facts.writable(ROUTE_LOCALNET) => {
            CheckResult::ok(CHECK, "off; the proxy switches it on at its start")
        }
        _ if !facts.is_root => CheckResult::problem(
            CHECK,
            "off, and only root can switch it on",
            "nothing, if the proxy or its init container runs privileged",
        ),
        _ => CheckResult::broken(
            CHECK,
            "off, and it cannot be written: the proxy will not start",
            format!("{}, or --iptables-localhost-nodeports=false", assignment(ROUTE_LOCALNET, "1")),
        ),
    })
}

/// New connections are dropped when the table is full.
fn conntrack(facts: &Facts) -> CheckResult {
    const CHECK: &str = "conntrack";
    let number = |name| facts.value(name).and_then(|text| text.parse::<u64>().ok());
    let (Some(max), Some(count)) = (number(CONNTRACK_MAX), number(CONNTRACK_COUNT)) else {
        let remedy = "modprobe nf_conntrack on the node; the kernel does so with the first NAT rule";
        return CheckResult::problem(CHECK, "not loaded: its limits cannot be set yet", remedy);
    };
    let message = format!("{count} of {max} connections in use");
    let remedy =
        format!("raise --conntrack-max-per-core, or {}", assignment(CONNTRACK_MAX, &(max * 2).to_string()));
    if count >= max {
        CheckResult::broken(CHECK, message + ": new ones are dropped", remedy)
    } else if count * 10 >= max * 9 {
        CheckResult::problem(CHECK, message, remedy)
    } else {
        CheckResult::ok(CHECK, message)
    }
}

fn proc_sys(facts: &Facts) -> CheckResult {
    const CHECK: &str = "/proc/sys";
    if facts.writable(FORWARD_V4) {
        return CheckResult::ok(CHECK, "can be written");
    }
    if !facts.is_root {
        return CheckResult::problem(
            CHECK,
            "cannot be written without root",
            "run this check as the proxy runs",
        );
    }
    CheckResult::problem(
        CHECK,
        "read-only: settings that differ from what is wanted stay as they are",
        "run --init-only in a privileged init container first, as the manifests do, or set them on the node",
    )
}

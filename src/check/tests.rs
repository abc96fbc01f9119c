//! A node that is fit, and everything that can be wrong with it, one thing at a time.

use super::facts::{SysctlValue, ToolFacts};
use super::*;
use crate::backend::{Requirement, StandingObjects};
use crate::config::Mode;
use crate::kernel::iptables::{Flavor, Need, RuleKind, Version};
use crate::kernel::process::Neighbour;
use crate::kernel::sockets::Listener;
use crate::model::{PerFamily, Protocol};
use rstest::rstest;

fn tools() -> ToolFacts {
    ToolFacts { flavor: Flavor::Nft, version: Version(1, 8, 9), nat_table: Ok(()), refused: Vec::new() }
}

fn refuse(facts: &mut Facts, need: Need) {
    let kind = RuleKind { name: "KIND", table: "nat", rules: &[], need };
    facts.tools.v4.as_mut().unwrap().refused.push((kind, "its words".to_owned()));
}

fn settings() -> Vec<(&'static str, &'static str)> {
    vec![
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/bridge/bridge-nf-call-iptables", "1"),
        ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ("net/ipv4/conf/all/rp_filter", "2"),
        ("net/ipv4/conf/all/route_localnet", "0"),
        ("net/netfilter/nf_conntrack_max", "262144"),
        ("net/netfilter/nf_conntrack_count", "17"),
        ("net/ipv4/ip_local_port_range", "32768\t60999"),
        ("net/ipv4/ip_local_reserved_ports", ""),
    ]
}

fn standing(found: Result<Option<&str>, String>) -> StandingObjects {
    let found = found.map(|found| found.map(str::to_owned));
    StandingObjects { name: "virtual servers", found, effect: "they are in the way", remedy: "stop it" }
}

fn fit() -> Facts {
    let setting = |(name, value): (_, &str)| (name, SysctlValue { value: value.to_owned(), writable: true });
    Facts {
        is_root: true,
        capabilities: Facts::NET_ADMIN | Facts::NET_RAW,
        tools: PerFamily { v4: Ok(tools()), v6: Ok(tools()) },
        other_flavor: PerFamily { v4: Ok(false), v6: Ok(false) },
        standing: vec![(Mode::Ipvs, standing(Ok(None)))],
        requirements: Vec::new(),
        has_bridge: true,
        has_ipv6_address: true,
        settings: settings().into_iter().map(setting).collect(),
        listeners: Ok(Vec::new()),
        proxies: Vec::new(),
    }
}

fn wanted(mode: Mode) -> CheckRequest {
    CheckRequest {
        mode,
        mode_source: ModeSource::Default,
        flavor: None,
        localhost_node_ports: true,
        node_port_range: (30000, 32767),
        servers: vec![("healthz", "0.0.0.0:10256".parse().unwrap())],
        extras: Vec::new(),
        service_ports: None,
        has_ipv6_endpoints: None,
        proxy: None,
    }
}

fn required(found: Result<&'static str, &str>, is_vital: bool) -> Requirement {
    Requirement { name: "ipvs", found: found.map_err(str::to_owned), remedy: "load it", is_vital }
}

/// All findings that are not "ok", as `level check`.
fn complaints(findings: &[CheckResult]) -> Vec<String> {
    let bad = findings.iter().filter(|it| it.level > Level::Ok);
    bad.map(|it| format!("{:?} {}", it.level, it.check)).collect()
}

fn set(facts: &mut Facts, name: &'static str, value: &str) {
    facts.settings.get_mut(name).unwrap().value = value.to_owned();
}

fn freeze(facts: &mut Facts) {
    facts.settings.values_mut().for_each(|setting| setting.writable = false);
}

fn listener(protocol: Protocol, address: &str, program: Option<&str>) -> Listener {
    Listener { protocol, address: address.parse().unwrap(), program: program.map(str::to_owned) }
}

#[rstest]
#[case(Mode::Iptables)]
#[case(Mode::Ipvs)]
fn a_fit_node_gets_no_complaint_in_either_mode(#[case] mode: Mode) {
    let findings = judge(&fit(), &wanted(mode));
    assert_eq!(complaints(&findings), [""; 0]);
    assert!(is_fit(&findings) && findings.iter().all(|it| it.advice.is_none()));
}

type Change = fn(&mut Facts);

#[rstest]
#[case::no_capability(|f: &mut Facts| f.capabilities = 0, "Broken permissions", "securityContext")]
#[case::legacy_without_raw(|f: &mut Facts| {
    f.capabilities = Facts::NET_ADMIN;
    f.tools.v4.as_mut().unwrap().flavor = Flavor::Legacy;
}, "Broken permissions", "securityContext")]
#[case::no_tools(|f: &mut Facts| f.tools.v4 = Err("not installed".into()), "Broken iptables (IPv4)", "install")]
#[case::no_v6_tools(|f: &mut Facts| f.tools.v6 = Err("not installed".into()), "Problem iptables (IPv6)", "only IPv4")]
#[case::no_nat(|f: &mut Facts| f.tools.v4.as_mut().unwrap().nat_table = Err("x".into()), "Broken iptables (IPv4)", "nf_tables")]
#[case::legacy_without_modules(|f: &mut Facts| {
    let tools = f.tools.v4.as_mut().unwrap();
    (tools.flavor, tools.nat_table) = (Flavor::Legacy, Err("x".into()));
}, "Broken iptables (IPv4)", "ip_tables")]
#[case::no_match(|f: &mut Facts| refuse(f, Need::Vital("all Services")), "Broken iptables (IPv4)", "xt_NAME")]
#[case::no_match_for_few(|f: &mut Facts| refuse(f, Need::Some("few")), "Problem iptables (IPv4)", "xt_NAME")]
#[case::no_option(|f: &mut Facts| refuse(f, Need::Option("not counted")), "Problem iptables (IPv4)", "xt_NAME")]
#[case::old_tools(|f: &mut Facts| f.tools.v4.as_mut().unwrap().version = Version(1, 6, 1), "Problem iptables (IPv4)", "1.6.2")]
#[case::no_forwarding(|f: &mut Facts| set(f, "net/ipv4/ip_forward", "0"), "Broken IPv4 forwarding", "net.ipv4.ip_forward=1")]
#[case::no_v6_forwarding(
    |f: &mut Facts| set(f, "net/ipv6/conf/all/forwarding", "0"), "Problem IPv6 forwarding", "net.ipv6.conf.all.forwarding=1")]
#[case::bridges_go_past(
    |f: &mut Facts| set(f, "net/bridge/bridge-nf-call-iptables", "0"), "Problem br_netfilter", "bridge-nf-call-iptables=1")]
#[case::v6_bridges_go_past(
    |f: &mut Facts| set(f, "net/bridge/bridge-nf-call-ip6tables", "0"), "Problem br_netfilter", "bridge-nf-call-ip6tables=1")]
#[case::no_br_netfilter(
    |f: &mut Facts| f.settings.retain(|name, _| !name.contains("bridge")), "Problem br_netfilter", "modprobe br_netfilter")]
#[case::strict_rp_filter(|f: &mut Facts| set(f, "net/ipv4/conf/all/rp_filter", "1"), "Problem rp_filter", "rp_filter=2")]
#[case::nearly_full(
    |f: &mut Facts| set(f, "net/netfilter/nf_conntrack_count", "240000"), "Problem conntrack", "nf_conntrack_max=524288")]
#[case::full(
    |f: &mut Facts| set(f, "net/netfilter/nf_conntrack_count", "262144"), "Broken conntrack", "nf_conntrack_max=524288")]
#[case::no_conntrack(
    |f: &mut Facts| f.settings.retain(|name, _| !name.contains("conntrack")), "Problem conntrack", "nf_conntrack")]
#[case::ephemeral(
    |f: &mut Facts| set(f, "net/ipv4/ip_local_port_range", "1024 65535"), "Problem ephemeral ports", "ports=30000-32767")]
#[case::partly_reserved(|f: &mut Facts| {
    set(f, "net/ipv4/ip_local_port_range", "1024 65535");
    set(f, "net/ipv4/ip_local_reserved_ports", "8080,30000-32766");
}, "Problem ephemeral ports", "ports=30000-32767")]
#[case::listener(
    |f: &mut Facts| f.listeners.as_mut().unwrap().push(listener(Protocol::Tcp, "0.0.0.0:30080", Some("nginx"))),
    "Problem node ports", "other ports")]
#[case::health_port_taken(
    |f: &mut Facts| f.listeners.as_mut().unwrap().push(listener(Protocol::Tcp, "127.0.0.1:10256", None)),
    "Broken healthz port", "--healthz-bind-address")]
#[case::kube_proxy(
    |f: &mut Facts| f.proxies.push(Neighbour { pid: 7, name: "kube-proxy".into(), is_ours: false }),
    "Broken other proxies", "stop")]
#[case::twice(
    |f: &mut Facts| f.proxies = vec![Neighbour { pid: 7, name: "kube-proxy-rs".into(), is_ours: true }; 2],
    "Broken other proxies", "stop")]
#[case::other_flavor(|f: &mut Facts| f.other_flavor.v6 = Ok(true), "Problem other flavour's rules", "--cleanup-other-flavor")]
#[case::virtual_servers(|f: &mut Facts| f.standing[0].1 = standing(Ok(Some("3"))), "Problem virtual servers", "stop it")]
fn one_thing_wrong_is_one_complaint_with_what_to_do(
    #[case] change: Change,
    #[case] complaint: &str,
    #[case] remedy: &str,
) {
    let mut facts = fit();
    change(&mut facts);
    let findings = judge(&facts, &wanted(Mode::Iptables));
    assert_eq!(complaints(&findings), [complaint]);
    let found = findings.iter().find(|it| it.level > Level::Ok).unwrap();
    assert!(found.advice.as_ref().is_some_and(|text| text.contains(remedy)), "{found:?}");
    assert_eq!(is_fit(&findings), complaint.starts_with("Problem"));
}

#[rstest]
#[case::all_is_there(|f: &mut Facts| f.requirements = vec![required(Ok("there"), true)], &[])]
#[case::no_ipvs(|f: &mut Facts| f.requirements = vec![required(Err("no"), true)], &["Broken ipvs"])]
#[case::no_driver(|f: &mut Facts| f.requirements = vec![required(Err("no"), false)], &["Problem ipvs"])]
#[case::forwarding_is_switched_on_by_the_proxy(|f: &mut Facts| set(f, "net/ipv4/ip_forward", "0"), &[])]
#[case::virtual_servers_are_taken_over(|f: &mut Facts| f.standing[0].1 = standing(Ok(Some("3"))), &[])]
fn ipvs_mode_asks_for_more_and_does_more(#[case] change: Change, #[case] wanted_complaints: &[&str]) {
    let mut facts = fit();
    change(&mut facts);
    assert_eq!(complaints(&judge(&facts, &wanted(Mode::Ipvs))), wanted_complaints);
}

#[rstest]
#[case::ipv6_is_off(|f: &mut Facts| {
    set(f, "net/ipv6/conf/all/disable_ipv6", "1");
    f.tools.v6 = Err("not installed".into());
    set(f, "net/ipv6/conf/all/forwarding", "0");
})]
#[case::no_ipv6_address(|f: &mut Facts| {
    f.has_ipv6_address = false;
    set(f, "net/ipv6/conf/all/forwarding", "0");
})]
#[case::no_bridge(|f: &mut Facts| {
    f.has_bridge = false;
    f.settings.retain(|name, _| !name.contains("bridge"));
})]
#[case::node_ports_reserved(|f: &mut Facts| {
    set(f, "net/ipv4/ip_local_port_range", "1024 65535");
    set(f, "net/ipv4/ip_local_reserved_ports", "8080,30000-32767");
})]
#[case::our_daemon_runs(|f: &mut Facts| {
    f.proxies.push(Neighbour { pid: 7, name: "kube-proxy-rs".into(), is_ours: true });
    f.listeners.as_mut().unwrap().push(listener(Protocol::Tcp, "0.0.0.0:10256", Some("kube-proxy-rs")));
})]
#[case::other_ports(
    |f: &mut Facts| f.listeners.as_mut().unwrap().push(listener(Protocol::Udp, "0.0.0.0:53", Some("dnsmasq"))))]
fn what_does_no_harm_is_no_complaint(#[case] change: Change) {
    let mut facts = fit();
    change(&mut facts);
    assert_eq!(complaints(&judge(&facts, &wanted(Mode::Iptables))), [""; 0]);
}

#[test]
fn a_frozen_setting_that_is_wrong_fails_and_one_that_is_right_does_not() {
    let mut facts = fit();
    freeze(&mut facts);
    let complaint = complaints(&judge(&facts, &wanted(Mode::Iptables)));
    assert_eq!(complaint, ["Broken route_localnet", "Problem /proc/sys"]);
    set(&mut facts, "net/ipv4/conf/all/route_localnet", "1");
    assert_eq!(complaints(&judge(&facts, &wanted(Mode::Iptables))), ["Problem /proc/sys"]);
    set(&mut facts, "net/ipv4/conf/all/route_localnet", "0");
    let mut without = wanted(Mode::Iptables);
    without.localhost_node_ports = false;
    assert_eq!(complaints(&judge(&facts, &without)), ["Problem /proc/sys"]);
}

#[test]
fn without_root_nothing_fails_that_only_root_can_see() {
    let mut facts = fit();
    (facts.is_root, facts.capabilities) = (false, 0);
    freeze(&mut facts);
    let denied = || "Operation not permitted".to_owned();
    facts.tools.v4.as_mut().unwrap().nat_table = Err(denied());
    facts.tools.v6 = Err(denied());
    facts.other_flavor.v4 = Err(denied());
    facts.standing[0].1 = standing(Err(denied()));
    let findings = judge(&facts, &wanted(Mode::Iptables));
    assert!(is_fit(&findings), "{findings:?}");
    let unseen = findings.iter().filter(|it| it.message.contains("could not be read")).count();
    assert_eq!(unseen, 4, "{findings:?}");
}

#[test]
fn the_ports_of_services_are_looked_up_one_by_one() {
    let port = |service: &str, port, purpose| ServicePortUse {
        service: service.to_owned(),
        protocol: Protocol::Tcp,
        port,
        purpose,
    };
    let mut request = wanted(Mode::Iptables);
    request.service_ports =
        Some(vec![port("shop/web", 30080, Purpose::NodePort), port("shop/odd", 40000, Purpose::NodePort)]);
    let mut facts = fit();
    let listeners = facts.listeners.as_mut().unwrap();
    listeners.push(listener(Protocol::Tcp, "0.0.0.0:30081", Some("nginx")));
    listeners.push(listener(Protocol::Udp, "0.0.0.0:30080", Some("dns")));
    let findings = judge(&facts, &request);
    assert_eq!(complaints(&findings), ["Problem ephemeral ports"]);
    assert!(findings.iter().any(|it| it.message.contains("40000/tcp of shop/odd")), "{findings:?}");

    facts.listeners.as_mut().unwrap().push(listener(Protocol::Tcp, "[::]:30080", Some("nginx")));
    let findings = judge(&facts, &request);
    let message = "30080/tcp of shop/web (nginx on [::]:30080/tcp)";
    assert!(
        findings.iter().any(|it| it.message.contains(message) && it.level == Level::Problem),
        "{findings:?}"
    );

    request.service_ports = Some(vec![port("shop/lb", 30080, Purpose::HealthCheck)]);
    assert!(!is_fit(&judge(&facts, &request)));
}

#[test]
fn what_status_says_of_the_running_proxy_is_said_here_too() {
    let mut request = wanted(Mode::Iptables);
    let reasons = vec!["IPv4: the last sync failed: the lock is taken".to_owned()];
    request.proxy = Some(ProxyState { healthy: false, reasons });
    let findings = judge(&fit(), &request);
    assert_eq!(complaints(&findings), ["Problem running proxy"]);
    assert!(findings.iter().any(|it| it.message.ends_with("the lock is taken")), "{findings:?}");
    request.proxy = Some(ProxyState { healthy: true, reasons: Vec::new() });
    assert_eq!(complaints(&judge(&fit(), &request)), [""; 0]);
}

#[test]
fn a_node_that_does_not_forward_ipv6_is_broken_if_services_have_ipv6_endpoints() {
    let mut facts = fit();
    set(&mut facts, "net/ipv6/conf/all/forwarding", "0");
    let found = |has_ipv6_endpoints| {
        let request = CheckRequest { has_ipv6_endpoints, ..wanted(Mode::Iptables) };
        complaints(&judge(&facts, &request))
    };
    assert_eq!(found(Some(true)), ["Broken IPv6 forwarding"]);
    assert_eq!(found(None), ["Problem IPv6 forwarding"]);
    assert_eq!(found(Some(false)), [""; 0]);
}

#[test]
fn what_is_printed_is_one_line_each_or_json() {
    let findings = [
        CheckResult::ok("conntrack", "17 of 20"),
        CheckResult::broken("ipvs", "no\nsuch family", "modprobe ip_vs"),
    ];
    let wanted = "ok       conntrack  17 of 20\n\
                  broken   ipvs       no such family -> modprobe ip_vs\n\
                  this node is not fit: 1 broken, 0 problems, 1 ok\n";
    let report = Report::new(findings.to_vec(), Mode::Ipvs);
    assert_eq!(report.to_string(), wanted);
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!((&value["mode"], &value["fit"]), (&"ipvs".into(), &false.into()));
    assert_eq!(value["findings"][1]["severity"], "broken");
    assert_eq!(value["findings"][0]["advice"], serde_json::Value::Null);
}

#[test]
fn a_refused_kind_of_rules_is_named_with_what_it_is_for_and_the_words_of_the_tool() {
    let mut facts = fit();
    refuse(&mut facts, Need::Option("packets are not counted"));
    refuse(&mut facts, Need::Some("Services with session affinity"));
    let found = judge(&facts, &wanted(Mode::Iptables));
    let iptables = found.iter().find(|it| it.check == "iptables (IPv4)").unwrap();
    for said in [
        "KIND, which are written without it: packets are not counted (its words)",
        "KIND, without which Services with session affinity are not served (its words)",
    ] {
        assert!(iptables.message.contains(said), "{}", iptables.message);
    }
}

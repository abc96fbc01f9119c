//! What is found on healthy nodes and on others.

use super::*;
use crate::backend::packet_trace::{Packet, SERVER_RULE, TraceOutcome, TracedEndpoint};
use crate::model::{Protocol, Verdict};
use rstest::rstest;

fn chains(lines: &[&str]) -> ChainRules {
    let mut chains = ChainRules::new();
    for line in lines {
        let (chain, rule) = line.split_once(' ').unwrap();
        chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
    }
    chains
}

fn endpoint() -> KnownPart {
    KnownPart {
        to: "10.128.0.5:8080".parse().unwrap(),
        protocol: Protocol::Tcp,
        from: None,
        in_interface: None,
        out_interface: Some("cni0".to_owned()),
        to_is_local: false,
        is_translated: true,
        is_answer: false,
        ours: OurRules::Translate,
    }
}

const FORWARD: Stage = Stage { hook: PacketHook::Forward, is_translated: true };
const ENTRY: Stage = Stage { hook: PacketHook::Prerouting, is_translated: false };

fn words(rules: &[ForeignRule]) -> Vec<String> {
    let certain = |rule: &ForeignRule| if rule.is_certain { "" } else { "maybe " };
    rules.iter().map(|rule| format!("{}{rule}", certain(rule))).collect()
}

fn met(table: &str, lines: &[&str], stage: Stage) -> Vec<ForeignRule> {
    foreign_rules(&ForeignTable::of_iptables("", table, chains(lines), true), stage, &endpoint())
}

fn found(lines: &[&str]) -> Vec<String> {
    words(&met("filter", lines, FORWARD))
}

const POLICY_DROP: &str = "FORWARD -m comment --comment \"the chain's policy\" -j DROP";

#[rstest]
#[case::other_destination(&["FORWARD -d 192.0.2.0/24 -j DROP"], &[])]
#[case::broken_connections(&["FORWARD -m conntrack --ctstate INVALID -j DROP"], &[])]
#[case::all(&["FORWARD -j REJECT --reject-with icmp-port-unreachable"], &["filter FORWARD: -j REJECT --reject-with icmp-port-unreachable"])]
#[case::of_a_client(&["FORWARD -s 192.0.2.0/24 -d 10.128.0.0/16 -j DROP"], &["maybe filter FORWARD: -s 192.0.2.0/24 -d 10.128.0.0/16 -j DROP"])]
#[case::behind_an_accept(&["FORWARD -j ACCEPT", "FORWARD -j DROP"], &[])]
#[case::policy(&[POLICY_DROP], &["filter FORWARD: the policy is DROP"])]
#[case::docker_user(&["FORWARD -j DOCKER-USER", "DOCKER-USER -d 10.128.0.5/32 -j DROP", "DOCKER-USER -j RETURN"], &["filter FORWARD > DOCKER-USER: -d 10.128.0.5/32 -j DROP"])]
#[case::other_port(&["FORWARD -p tcp -m tcp --dport 8443 -j DROP", "FORWARD -p udp -j DROP"], &[])]
#[case::ports(&["FORWARD -p tcp -m multiport --dports 80,8000:8100 -j DROP"], &["filter FORWARD: -p tcp -m multiport --dports 80,8000:8100 -j DROP"])]
fn a_rule_that_can_stop_a_new_connection_is_found_wherever_it_stands(
    #[case] lines: &[&str],
    #[case] wanted: &[&str],
) {
    assert_eq!(found(lines), wanted);
}

#[rstest]
#[case::all(&["FORWARD -j DROP"], &["filter FORWARD: -j DROP"])]
#[case::of_endpoints(&["FORWARD -s 10.128.0.0/16 -j DROP"], &["filter FORWARD: -s 10.128.0.0/16 -j DROP"])]
#[case::to_some_clients(&["FORWARD -d 10.128.0.0/16 -j DROP"], &["maybe filter FORWARD: -d 10.128.0.0/16 -j DROP"])]
#[case::to_a_port(&["FORWARD -p tcp -m tcp --dport 8080 -j DROP"], &[])]
#[case::of_new_connections(&["FORWARD -m conntrack --ctstate NEW -j DROP"], &[])]
#[case::behind_our_accepting_chain(&["FORWARD -j KUBE-FORWARD", POLICY_DROP], &[])]
#[case::before_it(&["FORWARD -m conntrack --ctstate ESTABLISHED -j DROP", "FORWARD -j KUBE-FORWARD"], &["filter FORWARD: -m conntrack --ctstate ESTABLISHED -j DROP"])]
fn a_rule_that_can_stop_an_answer_is_found(#[case] lines: &[&str], #[case] wanted: &[&str]) {
    let from = Some([10, 128, 0, 5].into());
    let answer = KnownPart { from, is_answer: true, ours: OurRules::TranslateAndAccept, ..endpoint() };
    let table = ForeignTable::of_iptables("", "filter", chains(lines), true);
    assert_eq!(words(&foreign_rules(&table, FORWARD, &answer)), wanted);
}

#[rstest]
#[case::flannel(&["FORWARD -j FLANNEL-FWD", "FLANNEL-FWD -s 10.128.0.0/16 -j ACCEPT", "FLANNEL-FWD -d 10.128.0.0/16 -j ACCEPT", POLICY_DROP])]
#[case::docker(&[
    "FORWARD -j DOCKER-USER", "FORWARD -j DOCKER-ISOLATION-STAGE-1",
    "FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "FORWARD -o docker0 -j DOCKER",
    "FORWARD -i docker0 ! -o docker0 -j ACCEPT", "FORWARD -o cni0 -j ACCEPT", POLICY_DROP,
    "DOCKER-USER -j RETURN", "DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2",
    "DOCKER-ISOLATION-STAGE-1 -j RETURN", "DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
    "DOCKER-ISOLATION-STAGE-2 -j RETURN", "DOCKER ! -i docker0 -o docker0 -j DROP",
])]
#[case::of_loopback(&["FORWARD -i lo -j DROP"])]
#[case::own_chains(&["FORWARD -j KUBE-FORWARD", "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP", "FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL", "KUBE-PROXY-FIREWALL -j DROP"])]
fn a_healthy_node_has_nothing_in_the_way(#[case] lines: &[&str]) {
    assert_eq!(found(lines), [""; 0]);
}

#[test]
fn what_hangs_on_a_foreign_mark_may_be_let_through() {
    let calico = [
        "FORWARD -j cali-FORWARD",
        "cali-FORWARD -j MARK --set-xmark 0x0/0xe0000",
        "cali-FORWARD -i cali+ -j cali-from-wl",
        "cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT",
        "cali-from-wl -j MARK --set-xmark 0x10000/0x10000",
        POLICY_DROP,
    ];
    assert_eq!(found(&calico), ["maybe filter FORWARD: the policy is DROP"]);
}

#[test]
fn a_foreign_translation_before_our_chains_counts_and_one_behind_them_does_not() {
    let ours = "PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
    let dnat = "PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 192.0.2.1";
    let accept = "PREROUTING -m mark --mark 0x1 -j ACCEPT";
    let before = met("nat", &[accept, dnat, ours], ENTRY);
    let wanted = [
        "nat PREROUTING: -m mark --mark 0x1 -j ACCEPT",
        "nat PREROUTING: -p tcp --dport 8080 -j DNAT --to-destination 192.0.2.1",
    ];
    assert_eq!(words(&before), wanted.map(|it| format!("maybe {it}")));
    assert_eq!(before[0].effect, ForeignEffect::Bypasses);
    assert_eq!(words(&met("nat", &[dnat, ours], ENTRY)), wanted[1..]);
    assert_eq!(met("nat", &[ours, dnat, accept], ENTRY), []);
}

#[test]
fn chains_with_names_like_ours_are_followed_in_the_tables_of_another_flavour() {
    let lines =
        ["PREROUTING -j KUBE-SERVICES", "KUBE-SERVICES -d 10.128.0.5/32 -j DNAT --to-destination 192.0.2.1"];
    let table = ForeignTable::of_iptables("iptables-legacy ", "nat", chains(&lines), false);
    let wanted = "maybe iptables-legacy nat PREROUTING > KUBE-SERVICES: -d 10.128.0.5/32 -j DNAT --to-destination 192.0.2.1";
    assert_eq!(words(&foreign_rules(&table, ENTRY, &endpoint())), [wanted]);
}

#[rstest]
#[case("PREROUTING -d 10.128.0.5/32 -p tcp -j CT --notrack")]
#[case("PREROUTING -p tcp -m tcp --dport 8080 -j NOTRACK")]
fn what_is_kept_out_of_connection_tracking_is_found(#[case] line: &str) {
    let rules = met("raw", &[line], ENTRY);
    assert_eq!(rules.len(), 1);
    assert_eq!((rules[0].effect, rules[0].is_certain), (ForeignEffect::Untracks, true));
}

#[test]
fn chains_in_a_circle_end() {
    // Each way to the rule is one.
    assert_eq!(found(&["FORWARD -j A", "A -j B", "B -j A", "FORWARD -j DROP"]).len(), 1);
}

#[test]
fn a_known_client_makes_a_rule_about_clients_certain() {
    let lines = ["FORWARD -s 192.0.2.0/24 -j DROP"];
    let table = ForeignTable::of_iptables("", "filter", chains(&lines), true);
    for (from, wanted) in [("192.0.2.7", 1), ("198.51.100.7", 0)] {
        let packet = KnownPart { from: Some(from.parse().unwrap()), ..endpoint() };
        let rules = foreign_rules(&table, FORWARD, &packet);
        assert_eq!(rules.len(), wanted);
        assert!(rules.iter().all(|rule| rule.is_certain && rule.clients() == Some("192.0.2.0/24")));
    }
}

fn of_nft(rules: &str) -> Vec<String> {
    let text = format!(
        "table inet firewalld {{\n\tset blocked {{\n\t\ttype ipv4_addr\n\t\telements = {{ 192.0.2.1,\n\t\t\t     192.0.2.2 }}\n\t}}\n\n\
         \tchain filter_FORWARD {{\n\t\ttype filter hook forward priority 10; policy accept;\n{rules}\n\t}}\n\
         \tchain zones {{\n\t\ttcp dport 8080 drop\n\t}}\n}}\n"
    );
    words(&foreign_rules(&ForeignTable::of_nft("inet firewalld", &text), FORWARD, &endpoint()))
}

#[rstest]
#[case::refuses("reject with icmpx type admin-prohibited", &["inet firewalld filter_FORWARD: reject with icmpx type admin-prohibited"])]
#[case::firewalld("ct state { established, related } accept\nct status dnat accept\nreject", &[])]
#[case::without_dnat("ct state { established, related } accept\niifname \"lo\" accept\nreject", &["inet firewalld filter_FORWARD: reject"])]
#[case::in_a_chain("jump zones", &["inet firewalld filter_FORWARD > zones: tcp dport 8080 drop"])]
#[case::named_set("ip saddr @blocked counter packets 0 bytes 0 drop", &["maybe inet firewalld filter_FORWARD: ip saddr @blocked counter packets 0 bytes 0 drop"])]
#[case::other_protocol("udp dport 8080 drop", &[])]
#[case::other_family("ip6 daddr ::/0 drop", &[])]
#[case::icmp("icmp type echo-request drop", &[])]
#[case::range("ip daddr 10.128.0.0-10.128.0.9 tcp dport { 80, 8000-8100 } drop", &["inet firewalld filter_FORWARD: ip daddr 10.128.0.0-10.128.0.9 tcp dport { 80, 8000-8100 } drop"])]
#[case::negated("oifname != \"cni0\" drop", &[])]
#[case::wildcard("oifname \"cni*\" log prefix \"drop \" drop", &["inet firewalld filter_FORWARD: oifname \"cni*\" log prefix \"drop \" drop"])]
#[case::states_map("ct state vmap { established : accept, related : accept, invalid : drop }", &[])]
#[case::new_map("ct state vmap { new : jump zones, invalid : drop }", &["inet firewalld filter_FORWARD > zones: tcp dport 8080 drop"])]
#[case::interfaces_map("iifname vmap { \"eth0\" : drop, \"eth1\" : accept }", &["maybe inet firewalld filter_FORWARD: iifname vmap { \"eth0\" : drop, \"eth1\" : accept }"])]
#[case::far_map("ip daddr . tcp dport vmap @verdicts", &["maybe inet firewalld filter_FORWARD: ip daddr . tcp dport vmap @verdicts"])]
#[case::mark("meta mark set 0x1\nmeta mark 0x1 drop", &["maybe inet firewalld filter_FORWARD: meta mark 0x1 drop"])]
#[case::long_set("ip daddr { 10.1.0.0/16,\n\t\t\t     10.128.0.0/16 } drop", &["inet firewalld filter_FORWARD: ip daddr { 10.1.0.0/16, 10.128.0.0/16 } drop"])]
fn a_rule_of_a_table_of_nft_that_stops_packets_is_found(#[case] rules: &str, #[case] wanted: &[&str]) {
    assert_eq!(of_nft(rules), wanted);
}

#[test]
fn the_policy_of_a_chain_of_nft_is_its_last_rule() {
    let text = "table ip own {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy drop;\n\t\tip daddr 10.9.0.0/16 accept\n\t}\n}";
    let rules = foreign_rules(&ForeignTable::of_nft("ip own", text), FORWARD, &endpoint());
    assert_eq!(words(&rules), ["ip own forward: the policy is drop"]);
}

fn outcome(to: &str, rules: &[&str]) -> TraceOutcome {
    let endpoint = TracedEndpoint { address: to.parse().unwrap(), masqueraded: false };
    TraceOutcome {
        verdict: Verdict::Served(endpoint),
        chance: 0.5,
        rules: rules.iter().map(|it| (*it).to_owned()).collect(),
        remembered: None,
        doubts: Vec::new(),
    }
}

fn past(table: &str, lines: &[&str], outcomes: Vec<TraceOutcome>) -> Vec<TracedPast> {
    let tables = [ForeignTable::of_iptables("", table, chains(lines), true)];
    let packet = Packet {
        interface: Some(Packet::SOME_INTERFACE.to_owned()),
        source: "192.0.2.7".parse().unwrap(),
        destination: "10.96.0.1:80".parse().unwrap(),
        protocol: Protocol::Tcp,
    };
    let around = ForeignSurroundings {
        tables: &tables,
        is_local: &|_| false,
        out_interface: &|_| Some("eth0".to_owned()),
    };
    past_foreign_rules(outcomes, &packet, &around)
}

#[test]
fn a_forwarded_packet_that_our_chain_accepts_does_not_meet_the_policy() {
    let lines = ["FORWARD -j KUBE-FORWARD", POLICY_DROP];
    let accepted = "filter KUBE-FORWARD: -m mark --mark 0x4000/0x4000 -j ACCEPT";
    let verdict = |rules: &[&str]| {
        past("filter", &lines, vec![outcome("10.128.0.5:8080", rules)])[0].outcome.verdict.kind()
    };
    assert_eq!(verdict(&[accepted]), Verdict::Served(()));
    assert_eq!(verdict(&["filter FORWARD: -j KUBE-FORWARD"]), Verdict::Dropped);
}

#[test]
fn what_a_rule_before_ours_decides_for_all_endpoints_is_one_outcome() {
    let all = || {
        vec![
            outcome("10.128.0.5:8080", &["nat KUBE-SEP-A: -j DNAT"]),
            outcome("10.128.0.6:8080", &["nat KUBE-SEP-B: -j DNAT"]),
        ]
    };
    let traced = past("raw", &["PREROUTING -d 10.96.0.1/32 -j NOTRACK"], all());
    let [one] = traced.as_slice() else { panic!("{traced:?}") };
    assert!((one.outcome.chance - 1.0).abs() < 1e-9);
    assert_eq!(one.outcome.rules, ["raw PREROUTING: -d 10.96.0.1/32 -j NOTRACK"]);
    assert_eq!(one.outcome.verdict.kind(), Verdict::Untouched);
    let may = past("raw", &["PREROUTING -m mark --mark 0x1 -j DROP"], all());
    assert_eq!(
        may.iter().map(|it| (it.may.len(), it.decided_by.is_some())).collect::<Vec<_>>(),
        [(1, false); 2]
    );
}

#[test]
fn another_programs_masquerading_shows_in_the_source_that_an_endpoint_sees() {
    let lines = [
        "POSTROUTING -j KUBE-POSTROUTING",
        "POSTROUTING -j FLANNEL",
        "FLANNEL -s 192.0.2.0/24 -j MASQUERADE",
    ];
    let traced = past("nat", &lines, vec![outcome("10.128.0.5:8080", &[])]);
    assert!(matches!(traced[0].outcome.verdict, Verdict::Served(endpoint) if endpoint.masqueraded));
}

#[test]
fn a_virtual_server_sends_on_what_is_not_tracked_and_its_answer_may_not_come_back() {
    let server = format!("{SERVER_RULE}10.96.0.1:80/tcp: real server 10.128.0.5:8080");
    let served = vec![outcome("10.128.0.5:8080", &[&server])];
    let traced = past("raw", &["PREROUTING -d 10.96.0.1/32 -j NOTRACK"], served);
    let [TracedPast { outcome, decided_by: None, may }] = traced.as_slice() else { panic!("{traced:?}") };
    assert_eq!(outcome.verdict.kind(), Verdict::Served(()));
    assert_eq!(words(may), ["maybe raw PREROUTING: -d 10.96.0.1/32 -j NOTRACK"]);
}

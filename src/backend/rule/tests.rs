//! Rules as we write them and as the tools print them.

use super::*;
use crate::model::ServiceName;
use proptest::prelude::*;
use rstest::rstest;

fn hash(text: &str) -> u64 {
    Parsed::of(text).rule().hash()
}

fn are_equal(one: &str, other: &str) -> bool {
    let (one, other) = (Parsed::of(one), Parsed::of(other));
    let (is_equal, hashes) = (one.rule() == other.rule(), [one.rule().hash(), other.rule().hash()]);
    assert_eq!(is_equal, hashes[0] == hashes[1]);
    is_equal
}

#[test]
fn text_in_quotes_is_one_word() {
    let words: Vec<_> = words(" -m  comment --comment \"a -j b\" \"\" c\"d\"\"e ")
        .map(|it| (it.text, it.is_quoted))
        .collect();
    let all = [("-m", false), ("comment", false), ("--comment", false), ("a -j b", true), ("", true)];
    assert_eq!(words, [&all[..], &[("c", false), ("d", true), ("e ", true)]].concat());
}

#[rstest]
#[case(
    "-m comment --comment \"shop/web:http cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 ! -s 10.128.0.0/16 -j KUBE-MARK-MASQ",
    "! -s 10.128.0.0/16 -d 10.96.0.1/32 -p tcp -m comment --comment \"shop/web:http cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ"
)]
#[case("-m comment --comment \"shop/web\" -j A", "-m comment --comment shop/web -j A")]
#[case("-j MARK --or-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x4000")]
#[case("-j MARK --xor-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x0")]
#[case("-m mark ! --mark 0x00004000/0x00004000 -j RETURN", "-m mark ! --mark 0x4000/0x4000 -j RETURN")]
#[case(
    "-m statistic --mode random --probability 0.3333333333 -j A",
    "-m statistic --mode random --probability 0.33333333349 -j A"
)]
#[case(
    "-m recent --name L --rcheck --seconds 10800 --reap -j A",
    "-m recent --rcheck --seconds 10800 --reap --name L --mask 255.255.255.255 --rsource -j A"
)]
#[case(
    "-m recent --name L --set",
    "-m recent --set --name L --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource"
)]
#[case(
    "-m ipvs --vaddr 10.0.0.1 --vproto tcp --vport 80 -j DROP",
    "-m ipvs --vproto 6 --vaddr 10.0.0.1 --vport 80 -j DROP"
)]
#[case("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable")]
#[case("-m conntrack --ctstate RELATED,ESTABLISHED", "-m conntrack --ctstate ESTABLISHED,RELATED")]
#[case("-m nfacct --nfacct-name a -j DROP", "-m nfacct --nfacct-name  a -j DROP")]
#[case("-s 0.0.0.0/0 -d fd00::0:1 -j A", "-d fd00::1/128 -j A")]
#[case("-s 10.1.2.3/8 -j A", "-s 10.0.0.0/8 -j A")]
fn what_we_write_is_the_same_as_what_the_tools_print(#[case] ours: &str, #[case] printed: &str) {
    assert!(are_equal(ours, printed));
}

#[rstest]
#[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -j DROP")]
#[case("-d 10.0.0.1 -j ACCEPT", "-s 10.0.0.1 -j ACCEPT")]
#[case("-d 10.0.0.1 -j ACCEPT", "! -d 10.0.0.1 -j ACCEPT")]
#[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -g ACCEPT")]
#[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -m limit --limit 1/sec -j ACCEPT")]
#[case("-d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -d 10.0.0.1 -j ACCEPT")]
#[case("-j ACCEPT", "-m socket -j ACCEPT")]
#[case("-j ACCEPT", "-o eth0 -j ACCEPT")]
#[case("-m comment --comment \"a b\" -j A", "-m comment --comment \"a c\" -j A")]
#[case("-m comment --comment \"-j A\" -j B", "-j A -m comment --comment -j B")]
#[case("-j DNAT --to-destination 10.0.0.1:80", "-j DNAT --to-destination 10.0.0.1:81")]
#[case("-j DNAT --to-destination 10.0.0.1:80", "-j DNAT --to-destination 10.0.0.1:80-90")]
#[case("-m set --match-set A dst,dst -j X", "-m set --match-set A dst,src -j X")]
#[case("-m set --match-set A dst,dst -j X", "-m set ! --match-set A dst,dst -j X")]
#[case("-m set --match-set A dst,dst -j X", "-m set --match-set A dst,dst --return-nomatch -j X")]
#[case("-m physdev ! --physdev-is-in -j X", "-m physdev --physdev-is-in -j X")]
#[case(
    "-m statistic --mode random --probability 0.5 -j A",
    "-m statistic --mode random --probability 0.50000001 -j A"
)]
#[case("-j MARK --or-mark 0x4000", "-j MARK --xor-mark 0x4000")]
#[case("-m conntrack --ctstate NEW", "-m conntrack --ctstate NEW,INVALID")]
#[case("-j REJECT", "-j REJECT --reject-with tcp-reset")]
#[case("-j MASQUERADE", "-j MASQUERADE --random-fully")]
#[case("-m recent --name L --set", "-m recent --name M --set")]
#[case("-m recent --name L --rcheck --seconds 9 --reap", "-m recent --name L --rcheck --seconds 9")]
#[case("-p tcp -m tcp --dport 80", "-p udp -m udp --dport 80")]
#[case("-p tcp -m tcp --dport 80", "-p tcp -m tcp --dport 80:90")]
#[case("! -s 0.0.0.0/0 -j A", "-j A")]
#[case("-i eth -j A", "-i eth+ -j A")]
#[case("-m mark --mark 1 -m connmark --mark 2", "-m mark --mark 2 -m connmark --mark 1")]
fn rules_that_differ_are_told_apart(#[case] one: &str, #[case] other: &str) {
    assert!(!are_equal(one, other));
}

#[test]
fn a_comment_has_no_effect() {
    let effect = |text| Parsed::of(text).rule().effect();
    let (one, other) = ("-s 10.0.0.1 -j A", "-s 10.0.0.1/32 -m comment --comment \"-j B\" -j A");
    assert_eq!(effect(one), effect(other));
    assert_ne!(hash(one), hash(other));
    assert_ne!(effect(one), effect("-s 10.0.0.2 -j A"));
}

#[test]
fn whatever_it_is_is_read() {
    for rule in ["", "!", "\"", "-s", "-m", "--comment \"", "--mark 0x", "-s a -s b \\\" \"\"", "a b c d e f"]
    {
        assert!(are_equal(rule, rule));
    }
}

#[test]
fn shares_have_ten_decimals_and_never_grow() {
    assert_eq!(Share::of_first(1, 1).to_string(), "1.0000000000");
    assert_eq!(Share::of_first(1, 3).to_string(), "0.3333333333");
    assert_eq!(Share::of_first(1, 100_001).to_string(), "0.0000099999");
    for count in 1..100_000_usize {
        assert_eq!(Share::of_first(1, count).to_string(), format!("{:.10}", 1.0 / count as f64));
        assert!(Share::of_first(1, count + 1).chances <= Share::of_first(1, count).chances);
    }
}

#[test]
fn a_chains_hash_depends_on_the_order_of_its_rules_and_not_on_how_it_is_cut() {
    let rules = ["-j A", "-j B", "-j A", "-s 10.0.0.1 -j C", "-j RETURN"];
    let of = |rules: &[&str]| {
        let mut hash = ChainHash::EMPTY;
        rules.iter().for_each(|rule| hash.push(&Parsed::of(rule).rule()));
        hash
    };
    for cut in 0..=rules.len() {
        let mut pieces = of(&rules[..cut]);
        pieces.append(of(&rules[cut..]));
        assert_eq!(pieces, of(&rules));
    }
    for (one, other) in [(0, 1), (1, 2), (0, 4)] {
        let mut swapped = rules;
        swapped.swap(one, other);
        assert_ne!(of(&swapped), of(&rules));
    }
    assert_ne!(of(&rules[1..]), of(&rules));
    assert_eq!(of(&[]), ChainHash::EMPTY);
}

fn name() -> impl Strategy<Value = Name> {
    "[A-Z][A-Z0-9-]{0,27}".prop_map(|name| Name::new(&format!("K{name}")))
}

fn network() -> impl Strategy<Value = Network> {
    let v4 = any::<u32>().prop_map(|bits| IpAddr::V4(bits.into()));
    let v6 = any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()));
    let address = prop_oneof![v4, v6];
    (address, 1..=32_u8, any::<bool>()).prop_map(|(address, length, is_bare)| match is_bare {
        true => address.into(),
        false => Cidr::new_assert(address, length).into(),
    })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(&Protocol::ALL[..])
}

fn asks() -> impl Strategy<Value = Asks<'static>> {
    let port: &'static ServicePortName = Box::leak(Box::new(ServicePortName {
        service: ServiceName::new("shop", "web"),
        port: "http".into(),
        protocol: Protocol::Tcp,
    }));
    let comments = prop_oneof![
        Just(Comment::Text("kubernetes service portals")),
        Just(Comment::Port("", port, "")),
        Just(Comment::Port("masquerade traffic for ", port, " external destinations")),
        Just(Comment::Endpoint(port, "10.0.0.1:80")),
        name().prop_map(|chain| Comment::Chain(port, " traffic not accepted by ", chain)),
    ];
    const STATES: [States; 4] = [States::NEW, States::INVALID, States::KNOWN, States::KNOWN_OR_DNAT];
    prop_oneof![
        Just(Asks::Nothing),
        comments.prop_map(Asks::Comment),
        network().prop_map(Asks::Source),
        network().prop_map(Asks::Destination),
        (protocol(), any::<bool>())
            .prop_map(|(protocol, spelling)| Asks::Protocol(protocol, Spelling(spelling))),
        Just(Asks::InInterface("veth", true)),
        Just(Asks::SourceIsLocal),
        Just(Asks::DestinationIsLocal),
        (any::<u32>(), any::<u32>()).prop_map(|(value, mask)| Asks::Mark { value, mask }),
        prop::sample::select(&STATES[..]).prop_map(Asks::State),
        (1..5000_usize).prop_map(|count| Asks::Share(Share::of_first(1, count))),
        (name(), any::<u32>()).prop_map(|(list, seconds)| Asks::Recent(list, seconds)),
        name().prop_map(Asks::Remember),
        name().prop_map(Asks::Count),
        name().prop_map(|set| Asks::InSet(set, "dst,dst,src")),
        Just(Asks::FromBridgePort),
    ]
}

fn matches() -> impl Strategy<Value = Vec<Match<'static>>> {
    let one = (asks(), any::<bool>()).prop_map(|(asks, is_negated)| {
        let can_be = !matches!(
            asks,
            Asks::Nothing | Asks::Comment(_) | Asks::Recent(..) | Asks::Remember(_) | Asks::Count(_)
        );
        Match { is_negated: is_negated && can_be, asks }
    });
    let port = (protocol(), any::<u16>()).prop_map(|(protocol, port)| {
        [Asks::Protocol(protocol, Spelling(true)), Asks::DestinationPort(port)].map(Match::from)
    });
    (prop::collection::vec(one, 0..5), prop::option::of(port)).prop_map(|(mut all, port)| {
        all.extend(port.into_iter().flatten());
        all
    })
}

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::None),
        Just(Target::Accept),
        Just(Target::Drop),
        Just(Target::Reject(None)),
        Just(Target::Return),
        any::<bool>().prop_map(Target::Masquerade),
        (any::<u32>(), any::<u32>()).prop_map(|(clear, flip)| Target::Mark { clear, flip }),
        (network(), any::<u16>())
            .prop_map(|(net, port)| Target::Dnat(SocketAddr::new(net.cidr.addr(), port))),
        name().prop_map(Target::Jump),
    ]
}

proptest! {
    #[test]
    fn a_rule_that_is_written_is_read_as_the_same(matches in matches(), target in targets()) {
        let rule = Rule::new(&matches, target);
        let text = rule.to_string();
        let parsed = Parsed::of(&text);
        prop_assert!(parsed.rule() == rule, "{text}: {:?}", parsed.rule());
        prop_assert_eq!(parsed.rule().hash(), rule.hash());
    }

    #[test]
    fn rules_are_the_same_in_another_order(matches in matches(), target in targets(), turn in 0..5_usize) {
        let mut turned = matches.clone();
        turned.rotate_left(turn.min(matches.len()));
        let (one, other) = (Rule::new(&matches, target), Rule::new(&turned, target));
        prop_assert!(one == other);
        prop_assert_eq!(one.hash(), other.hash());
    }
}

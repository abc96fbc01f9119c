//! `explain` traces packets past the rules of other programs, to where they really go.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use kube_proxy_rs::model::{IpFamily, Protocol};
use kube_proxy_rs::testing::lab::Lab;
use kube_proxy_rs::testing::packets::{Packet, PacketCase, Place, TARGET_PORT, cases};
use kube_proxy_rs::testing::proxy::{Flavor, Launch, Proxy};
use kube_proxy_rs::testing::thorough::thorough;
use kube_proxy_rs::testing::traffic::Answer;
use rstest::rstest;
use serde_json::Value;

use crate::BINARY;
use crate::explain::explain;

const SYNC: Duration = Duration::from_secs(120);
/// How long silence must last to count as dropped.
const SILENT: Duration = Duration::from_millis(400);
/// Requests for each packet: one of two endpoints is not asked once in 2^16.
const REQUESTS: usize = 16;

/// What another program does, and what the trace must say of it.
struct Act<'a> {
    /// For a shell, with names for what differs between families and tools ([`spelt`]).
    act: &'a str,
    undo: &'a str,
    /// The trace is sure of it; otherwise it names the rule as one that may decide.
    sure: bool,
    /// What the trace quotes, where the packet meets it; with the same names.
    quotes: &'a str,
}

const ACTS: [Act<'static>; 14] = [
    Act { act: "true", undo: "true", sure: true, quotes: "" },
    Act {
        act: "$IPT -N guard; $IPT -A guard -d $POD -j DROP; $IPT -I FORWARD -j guard; $IPT -I OUTPUT -j guard",
        undo: "$IPT -D OUTPUT -j guard; $IPT -D FORWARD -j guard; $IPT -F guard; $IPT -X guard",
        sure: true,
        quotes: "> guard: -d $POD/$LENGTH -j DROP",
    },
    Act {
        act: "$IPT -P FORWARD DROP; $IPT -P OUTPUT DROP",
        undo: "$IPT -P FORWARD ACCEPT; $IPT -P OUTPUT ACCEPT",
        sure: true,
        quotes: "the policy is DROP",
    },
    Act {
        act: "$IPT -P FORWARD DROP; $IPT -N pods; $IPT -A FORWARD -j pods; $IPT -A pods -d $PODS -j ACCEPT; $IPT -A pods -s $PODS -j ACCEPT",
        undo: "$IPT -P FORWARD ACCEPT; $IPT -D FORWARD -j pods; $IPT -F pods; $IPT -X pods",
        sure: true,
        quotes: "",
    },
    Act {
        act: "$IPT -t raw -I PREROUTING -d $SERVICE -j CT --notrack; $IPT -t raw -I OUTPUT -d $SERVICE -j CT --notrack",
        undo: "$IPT -t raw -F",
        sure: true,
        quotes: "--notrack",
    },
    Act {
        act: "$IPT -t mangle -I PREROUTING -s $CLIENT -d $SERVICE -j DROP",
        undo: "$IPT -t mangle -D PREROUTING -s $CLIENT -d $SERVICE -j DROP",
        sure: true,
        quotes: "mangle PREROUTING: -s $CLIENT",
    },
    Act {
        act: "$IPT -I FORWARD -s $OUTSIDE -p tcp --dport 8080 -j REJECT --reject-with tcp-reset",
        undo: "$IPT -D FORWARD -s $OUTSIDE -p tcp --dport 8080 -j REJECT --reject-with tcp-reset",
        sure: true,
        quotes: "filter FORWARD: -s $OUTSIDE",
    },
    Act {
        act: "$IPT -I FORWARD -m mark --mark 0x1/0x1 -j DROP; $IPT -I OUTPUT -m mark --mark 0x1/0x1 -j DROP",
        undo: "$IPT -D FORWARD -m mark --mark 0x1/0x1 -j DROP; $IPT -D OUTPUT -m mark --mark 0x1/0x1 -j DROP",
        sure: false,
        quotes: "-m mark --mark 0x1/0x1 -j DROP",
    },
    Act {
        act: "$IPT -I FORWARD -m length --length 0:65535 -j DROP; $IPT -I OUTPUT -m length --length 0:65535 -j DROP",
        undo: "$IPT -D FORWARD -m length --length 0:65535 -j DROP; $IPT -D OUTPUT -m length --length 0:65535 -j DROP",
        sure: false,
        quotes: "-m length --length 0:65535 -j DROP",
    },
    Act {
        act: "nft add table inet own; nft 'add chain inet own forward { type filter hook forward priority 10; }'
            nft add rule inet own forward ct status dnat $IP daddr $POD reject with tcp reset
            nft 'add chain inet own output { type filter hook output priority 10; }'; nft add rule inet own output $IP daddr $POD drop",
        undo: "nft delete table inet own",
        sure: true,
        quotes: "inet own",
    },
    Act {
        act: "nft add table inet own; nft 'add set inet own blocked { type $TYPE; elements = { $POD }; }'
            nft 'add chain inet own forward { type filter hook forward priority 10; }'; nft add rule inet own forward $IP daddr @blocked drop
            nft 'add chain inet own output { type filter hook output priority 10; }'; nft add rule inet own output $IP daddr @blocked drop",
        undo: "nft delete table inet own",
        sure: false,
        quotes: "inet own",
    },
    Act {
        act: "nft add table netdev own; nft 'add chain netdev own in { type filter hook ingress device eth0 priority 0; }'
            nft add rule netdev own in $IP daddr $SERVICE drop",
        undo: "nft delete table netdev own",
        sure: false,
        quotes: "netdev own (it can stop packets at hook ingress of eth0",
    },
    Act {
        act: "$OTHER -I FORWARD -d $POD -j DROP; $OTHER -I OUTPUT -d $POD -j DROP",
        undo: "$OTHER -F",
        sure: true,
        quotes: " filter ",
    },
    Act {
        act: "$IPT -t nat -I POSTROUTING -s $PODS -d $PODS -j MASQUERADE",
        undo: "$IPT -t nat -D POSTROUTING -s $PODS -d $PODS -j MASQUERADE",
        sure: true,
        quotes: "",
    },
];

/// What can become of a packet, as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    /// By which pod, which sees the client's own address.
    Served(String, bool),
    /// A refusal or none; of what leads nowhere, this node does not know which.
    Not(Option<bool>),
}

/// Every sure word of the trace is what happens, and what it is not sure of it names with the rule.
#[rstest]
fn a_trace_past_foreign_rules_ends_where_the_packet_does(
    #[values(("iptables", Flavor::Nft), ("iptables", Flavor::Legacy), ("nftables", Flavor::Nft))] mode: (
        &str,
        Flavor,
    ),
) {
    let (name, flavor) = mode;
    trace_past_foreign_rules(name, flavor);
}

/// Sends packets past the rules of other programs, and has `explain` trace them.
pub(crate) fn trace_past_foreign_rules(name: &str, flavor: Flavor) {
    let lab = Lab::create().unwrap();
    let all = cases();
    let case =
        all.iter().find(|it| it.name == "the_cluster_ip_keeps_the_source_inside_the_cluster_only").unwrap();
    let flag = format!("--proxy-mode={name}");
    let launch = Launch { binary: BINARY, namespace: lab.node(), flavor, flags: &[&flag] };
    let mut proxy = launch.start(&case.objects()).unwrap();
    match name {
        "nftables" => crate::nftables::wait_for_markers(&mut proxy, lab.node()),
        "ipvs" => crate::ipvs::wait_for_markers(&mut proxy, lab.node()),
        _ => proxy.wait_for_sync(lab.node(), flavor, SYNC).unwrap(),
    }
    let mut failures = Vec::new();
    // An emulated machine takes most of a minute for each.
    let (families, acts) = match name {
        "ipvs" => (&IpFamily::ALL[..1], thorough(&ACTS[..2], &ACTS[..5])),
        _ => (&IpFamily::ALL[..], &ACTS[..]),
    };
    for (family, act) in families.iter().flat_map(|family| acts.iter().map(move |act| (*family, act))) {
        let spell = |text: &str| spelt(text, family, (flavor, case));
        let shell = |commands: &str| {
            lab.node().output("sh", &["-c", &format!("set -e\n{}", spell(commands))]).unwrap();
        };
        // IPVS sends on what is not tracked.
        let sure = act.sure && !(name == "ipvs" && act.quotes == "--notrack");
        let told = Act { quotes: &spell(act.quotes), sure, ..*act };
        shell(act.act);
        for packet in case.packets.iter().filter(|it| it.families.contains(&family)) {
            let wrong = complaints(&lab, &proxy, (case, packet, family), &told).into_iter();
            let client = packet.from.name();
            failures.extend(wrong.map(|it| format!("{family} {name} {flavor} {client}: {}: {it}", act.act)));
        }
        shell(act.undo);
    }
    failures.extend(judges_the_running_mode(&lab, &proxy, name));
    proxy.terminate().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Without a mode on its command line, `check` judges that of the proxy that runs.
fn judges_the_running_mode(lab: &Lab, proxy: &Proxy, mode: &str) -> Vec<String> {
    let socket = proxy.control_socket();
    let ask = |flags: &[&str]| {
        let mut command = lab.node().command(BINARY);
        command.args(["check", "-o", "json", "--control-socket"]).arg(&socket).args(flags);
        let report: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        (
            report["mode"].as_str().unwrap().to_owned(),
            report["findings"][0]["message"].as_str().unwrap().to_owned(),
        )
    };
    let (running, asked) = (ask(&[]), ask(&["--proxy-mode=iptables"]));
    let is_right = running.0 == mode
        && running.1.contains("that of the proxy that runs here")
        && asked.0 == "iptables"
        && asked.1.contains(&format!("in mode {mode}")) == (mode != "iptables");
    if is_right { Vec::new() } else { vec![format!("check judged {running:?} and {asked:?}")] }
}

/// What stands for names of a family, of the tools of the mode and those of the other flavour.
fn spelt(text: &str, family: IpFamily, (flavor, case): (Flavor, &PacketCase)) -> String {
    let other = if flavor == Flavor::Nft { "legacy" } else { "nft" };
    let (tool, header, pods, length) = match family {
        IpFamily::V4 => ("iptables", "ip", "10.128.0.0/16", "32"),
        IpFamily::V6 => ("ip6tables", "ip6", "fd00:128::/32", "128"),
    };
    let address = |place: Place| place.address(family).to_string();
    [
        ("$IPT", format!("{tool}-{flavor}")),
        ("$OTHER", format!("{tool}-{other}")),
        ("$IP ", format!("{header} ")),
        ("$TYPE", format!("ipv{}_addr", if family == IpFamily::V4 { 4 } else { 6 })),
        ("$SERVICE", case.cluster_ip(family).to_string()),
        ("$PODS", pods.to_owned()),
        ("$POD", address(Place::Remote1)),
        ("$CLIENT", address(Place::LocalClient)),
        ("$OUTSIDE", address(Place::Outside)),
        ("$LENGTH", length.to_owned()),
    ]
    .iter()
    .fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

fn complaints(
    lab: &Lab,
    proxy: &Proxy,
    (case, packet, family): (&PacketCase, &Packet, IpFamily),
    &Act { sure, quotes, .. }: &Act<'_>,
) -> Vec<String> {
    let flow = case.flow(packet, family);
    let (client, to, socket) =
        (flow.source.to_string(), flow.destination.to_string(), proxy.control_socket());
    let service = format!("packets/{}", case.service_name());
    let arguments =
        [&service, "--client", &client, "--to", &to, "--control-socket", socket.to_str().unwrap()];
    let (report, _) = explain(lab.node(), &arguments);
    let trace = report["trace"].as_array().unwrap();
    let seen = seen(lab, packet.from, (flow.source.to_string(), flow.destination));
    let mut wrong = Vec::new();
    let may: Vec<&str> =
        trace.iter().flat_map(|it| it["may"].as_array().unwrap()).map(|it| it.as_str().unwrap()).collect();
    let told: BTreeSet<Seen> = trace.iter().map(|it| told(it, family)).collect();
    let agree = |seen: &Seen| {
        told.iter().any(|told| match (told, seen) {
            (Seen::Not(None), Seen::Not(_)) => true,
            (told, seen) => told == seen,
        })
    };
    if may.is_empty() && (!seen.iter().all(agree) || told.len() != seen.len()) {
        wrong.push(format!("told for sure {told:?}, seen {seen:?}"));
    }
    if sure != may.is_empty() {
        wrong.push(format!("may: {may:?}"));
    }
    let changes = !sure || seen.iter().any(|it| matches!(it, Seen::Not(_)));
    if changes && !report["trace"].to_string().contains(quotes) {
        wrong.push(format!("{:?} is not quoted: {}", quotes, report["trace"]));
    }
    wrong
}

fn told(decision: &Value, family: IpFamily) -> Seen {
    let place = |endpoint: &str| {
        let address: SocketAddr = endpoint.parse().unwrap();
        assert_eq!(address.port(), TARGET_PORT);
        let place = Place::SERVERS.into_iter().find(|it| it.address(family) == address.ip());
        place.unwrap().name().to_owned()
    };
    match decision["verdict"].as_str().unwrap() {
        "served" => {
            Seen::Served(place(decision["endpoint"].as_str().unwrap()), decision["masqueraded"] == false)
        }
        "refused" => Seen::Not(Some(true)),
        "dropped" => Seen::Not(Some(false)),
        _ => Seen::Not(None),
    }
}

fn seen(lab: &Lab, from: Place, (source, to): (String, SocketAddr)) -> BTreeSet<Seen> {
    let client = lab.client(from, IpFamily::of(to.ip())).patience(SILENT);
    let answers = client.ask_many(Protocol::Tcp, to, REQUESTS).into_iter();
    answers
        .map(|answer| match answer {
            // The node itself sends from an address of its own in any case.
            Answer::Answered { pod, source: by } => {
                Seen::Served(pod, from != Place::Node && by.to_string() == source)
            }
            Answer::Refused => Seen::Not(Some(true)),
            _ => Seen::Not(Some(false)),
        })
        .collect()
}

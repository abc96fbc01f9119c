//! Acts that break a node, each with the true cause.

use super::Mode;

/// A broken node.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// For a shell: `$IPT` and `$IP6T` are the tools of the mode.
    pub(super) act: &'static str,
    /// What the snapshot of the rules does not undo.
    pub(super) undo: &'static str,
    /// All that has to be named.
    pub(super) causes: &'static [&'static str],
    /// Of `explain`.
    pub(super) status: i32,
    /// The modes that have it.
    pub(super) modes: fn(Mode) -> bool,
    /// The table of mode nftables has to be written again.
    pub(super) harms_table: bool,
}

const MISSING: &[&str] = &["kernel-object-missing"];
const STALE: &[&str] = &["kernel-state-stale"];
const BOTH: &[&str] = &["kernel-object-missing", "kernel-state-stale"];

fn iptables(mode: Mode) -> bool {
    matches!(mode, Mode::IptablesNft | Mode::IptablesLegacy)
}

fn ipvs(mode: Mode) -> bool {
    mode == Mode::Ipvs
}

fn by_tools(mode: Mode) -> bool {
    mode != Mode::Nftables
}

/// Packets to Services are forwarded. IPVS takes them in and sends them on, and their answers alone are forwarded.
fn forwarding(mode: Mode) -> bool {
    mode != Mode::Ipvs
}

/// What mode ipvs has as well; in the virtual machine it was not tried.
fn not_ipvs(mode: Mode) -> bool {
    mode != Mode::Ipvs
}

fn forwarding_not_legacy(mode: Mode) -> bool {
    forwarding(mode) && not_legacy(mode)
}

fn nftables(mode: Mode) -> bool {
    mode == Mode::Nftables
}

/// The tools of nf_tables are used, or none.
fn not_legacy(mode: Mode) -> bool {
    mode != Mode::IptablesLegacy
}

fn legacy(mode: Mode) -> bool {
    mode == Mode::IptablesLegacy
}

fn every(_: Mode) -> bool {
    true
}

const fn row(
    name: &'static str,
    modes: fn(Mode) -> bool,
    causes: &'static [&'static str],
    act: &'static str,
) -> Row {
    Row { name, act, undo: "", causes, status: 1, modes, harms_table: false }
}

pub(super) const ROWS: &[Row] = &[
    // What another program did to our rules.
    row("an endpoint's chain is emptied", iptables, MISSING, "$IPT -t nat -F $($IPT -t nat -S | grep -o 'KUBE-SEP-[A-Z0-9]*' | head -1)"),
    row("an endpoint's chain sends to another pod", iptables, BOTH, "c=$($IPT -t nat -S | grep 'to-destination 10.128.1.5:8080' | grep -o 'KUBE-SEP-[A-Z0-9]*' | head -1)
        n=$($IPT -t nat -S $c | grep -n 'DNAT' | cut -d: -f1); $IPT -t nat -R $c $((n - 1)) -p tcp -j DNAT --to-destination 10.128.9.9:8080"),
    row("a rule in front of the balancing lets packets out", iptables, STALE, "c=$($IPT -t nat -S | grep -o 'KUBE-SVC-[A-Z0-9]*' | head -1); $IPT -t nat -I $c -s 192.0.2.1 -j RETURN"),
    row("PREROUTING no longer leads to Services", iptables, MISSING, "$IPT -t nat -D PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES"),
    row("OUTPUT no longer leads to Services", iptables, MISSING, "$IPT -t nat -D OUTPUT -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES"),
    row("POSTROUTING no longer masquerades", iptables, MISSING, "$IPT -t nat -D POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING"),
    row("FORWARD no longer leads to our accepting chain", iptables, MISSING, "$IPT -D FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD"),
    row("all Services' dispatch rules are gone", iptables, MISSING, "$IPT -t nat -F KUBE-SERVICES"),
    row("a node port's rule is gone", iptables, MISSING, "$IPT -t nat -F KUBE-NODEPORTS"),
    row("refusals are gone", iptables, MISSING, "$IPT -F KUBE-SERVICES"),
    row("the masquerading chain is empty", iptables, MISSING, "$IPT -t nat -F KUBE-POSTROUTING"),
    row("packets are no longer marked", iptables, MISSING, "$IPT -t nat -F KUBE-MARK-MASQ"),
    row("the accepting chain is empty", iptables, MISSING, "$IPT -F KUBE-FORWARD"),
    row("source ranges are no longer kept", iptables, MISSING, "$IPT -F KUBE-PROXY-FIREWALL"),
    row("the nat table is flushed", iptables, MISSING, "$IPT -t nat -F && $IPT -t nat -X"),
    row("the filter table is flushed", iptables, MISSING, "$IPT -F && $IPT -X"),
    row("only IPv6 is flushed", iptables, MISSING, "$IP6T -t nat -F && $IP6T -t nat -X"),
    row("a rule of a Service that is long gone", iptables, STALE, "$IPT -t nat -I KUBE-SERVICES -d 10.96.7.7/32 -p tcp --dport 80 -j KUBE-MARK-MASQ"),
    Row { harms_table: true, ..row("elements of a map are gone", nftables, MISSING, "nft flush map ip kube-proxy service-1 2>/dev/null || nft flush map ip kube-proxy $(nft list maps ip | grep -o 'map [a-z0-9-]*' | cut -d' ' -f2 | head -1)") },
    Row { harms_table: true, ..row("the cluster IPs are gone", nftables, MISSING, "nft flush set ip6 kube-proxy cluster-ips") },
    Row { undo: "nft delete element ip kube-proxy cluster-ips '{ 10.96.7.7 }'", ..row("a cluster IP of a Service that is long gone", nftables, STALE, "nft add element ip kube-proxy cluster-ips '{ 10.96.7.7 }'") },
    Row { harms_table: true, ..row("the table is gone", nftables, MISSING, "nft delete table ip kube-proxy") },
    Row { harms_table: true, ..row("the rules of a base chain are gone", nftables, MISSING, "nft flush chain ip kube-proxy nat-prerouting") },
    // What else may be wrong with a virtual server is in `ipvs/explain.rs`.
    Row { undo: "ipvsadm -e -t 10.96.0.10:80 -r 10.128.1.5:8080 -m -w 1", ..row("a real server has weight 0", ipvs, MISSING, "ipvsadm -e -t 10.96.0.10:80 -r 10.128.1.5:8080 -m -w 0") },
    Row { undo: "ipvsadm -E -t 10.96.0.10:80 -s rr -p 10800", ..row("a virtual server has another scheduler", ipvs, BOTH, "ipvsadm -E -t 10.96.0.10:80 -s lc -p 10800") },
    Row { undo: "ipset del KUBE-CLUSTER-IP 10.96.7.7,tcp:80", ..row("a set has a Service that is long gone", ipvs, STALE, "ipset add KUBE-CLUSTER-IP 10.96.7.7,tcp:80") },
    row("rules around IPVS no longer masquerade", ipvs, MISSING, "$IPT -t nat -F KUBE-POSTROUTING"),
    row("PREROUTING no longer leads to the rules around IPVS", ipvs, MISSING, "$IPT -t nat -D PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES"),
    row("a rule around IPVS is of another program", ipvs, STALE, "$IPT -t nat -I KUBE-SERVICES -s 192.0.2.1 -j RETURN"),
    row("the filter table around IPVS is flushed", ipvs, MISSING, "$IPT -F && $IPT -X"),
    // Rules of other programs in the way.
    row("a firewall drops what the node takes in", ipvs, &["foreign-drop-rule"], "$IPT -I INPUT -d 10.96.0.0/16 -p tcp -j DROP"),
    row("the policy of INPUT drops", ipvs, &["foreign-drop-rule"], "$IPT -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; $IPT -A INPUT -i lo -j ACCEPT; $IPT -A INPUT -p tcp --dport 22 -j ACCEPT; $IPT -P INPUT DROP"),
    row("a firewall drops what the node sends to pods", ipvs, &["foreign-drop-rule"], "$IPT -I OUTPUT -d 10.128.0.0/16 -j DROP"),
    row("answers are dropped", ipvs, &["foreign-drop-rule"], "$IPT -I FORWARD -j DROP"),
    Row { status: 0, ..row("answers to some clients are dropped", ipvs, &["foreign-drop-rule"], "$IPT -I FORWARD -d 10.128.0.0/16 -j DROP") },
    Row { status: 0, ..row("our accepting chain stands before the policy of FORWARD", ipvs, &[], "$IPT -P FORWARD DROP") },
    row("the policy of FORWARD drops", forwarding, &["foreign-drop-rule"], "$IPT -P FORWARD DROP"),
    row("a firewall drops what goes to pods", forwarding, &["foreign-drop-rule"], "$IPT -I FORWARD -d 10.128.0.0/16 -j DROP"),
    row("Docker's user chain drops an endpoint", forwarding, &["foreign-drop-rule"], "$IPT -N DOCKER-USER; $IPT -I FORWARD -j DOCKER-USER; $IPT -A DOCKER-USER -d 10.128.1.5 -j DROP; $IPT -A DOCKER-USER -j RETURN"),
    row("a firewall rejects the port of the pods", forwarding, &["foreign-drop-rule"], "$IPT -I FORWARD -p tcp --dport 8080 -j REJECT --reject-with icmp-admin-prohibited"),
    row("ufw denies routed packets", forwarding, &["foreign-drop-rule"], "$IPT -N ufw-before-forward; $IPT -N ufw-user-forward; $IPT -I FORWARD -j ufw-before-forward; $IPT -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        $IPT -A ufw-before-forward -j ufw-user-forward; $IPT -P FORWARD DROP"),
    row("firewalld's rules end in a refusal", forwarding, &["foreign-drop-rule"], "$IPT -N FORWARD_direct; $IPT -I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; $IPT -I FORWARD 2 -i lo -j ACCEPT; $IPT -I FORWARD 3 -j FORWARD_direct; $IPT -I FORWARD 4 -j REJECT"),
    row("IPv6 forwarding is dropped", forwarding, &["foreign-drop-rule"], "$IP6T -P FORWARD DROP"),
    row("packets are kept out of connection tracking", every, &["not-tracked"], "$IPT -t raw -A PREROUTING -d 10.96.0.0/16 -j NOTRACK"),
    row("DNS is kept out of connection tracking", every, &["not-tracked"], "$IPT -t raw -A OUTPUT -p udp --dport 53 -j CT --notrack"),
    row("another translation comes first", by_tools, &["foreign-translation"], "$IPT -t nat -I PREROUTING -d 10.96.0.10 -p tcp --dport 80 -j DNAT --to-destination 203.0.113.9"),
    row("a chain of another translation comes first", iptables, &["foreign-translation"], "$IPT -t nat -N CNI-HOSTPORT-DNAT; $IPT -t nat -I PREROUTING -j CNI-HOSTPORT-DNAT; $IPT -t nat -A CNI-HOSTPORT-DNAT -p tcp -d 192.0.2.10 --dport 80 -j DNAT --to-destination 203.0.113.9:80"),
    row("a transparent proxy takes what the node sends", iptables, &["foreign-translation"], "$IPT -t nat -I OUTPUT -p tcp -d 10.96.0.0/16 -j REDIRECT --to-ports 15001"),
    row("a chain of another program lets packets out before they are translated", iptables, &["foreign-accept"], "$IPT -t nat -N bypass; $IPT -t nat -I PREROUTING -j bypass; $IPT -t nat -A bypass -d 10.96.0.10 -j ACCEPT"),
    // Which of two chains for translation is asked first depends on when each was made.
    Row { status: 0, ..row("another translation stands beside ours", nftables, &["foreign-translation"], "$IPT -t nat -I PREROUTING -d 10.96.0.10 -p tcp --dport 80 -j DNAT --to-destination 203.0.113.9") },
    row("what is for the node itself is dropped, and an endpoint is there", forwarding, &["foreign-drop-rule"], "$IPT -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; $IPT -A INPUT -i lo -j ACCEPT; $IPT -A INPUT -p tcp --dport 22 -j ACCEPT; $IPT -A INPUT -p tcp -m tcp --dport 8099 -j DROP"),
    row("a chain of the mangle table drops", forwarding, &["foreign-drop-rule"], "$IPT -t mangle -N guard; $IPT -t mangle -I FORWARD -j guard; $IPT -t mangle -A guard -d 10.128.0.0/16 -j DROP"),
    Row { undo: "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F", ..row("legacy tables drop beside those of nf_tables", not_legacy, &["foreign-drop-rule"], "iptables-legacy -P FORWARD DROP") },
    Row { undo: "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F", ..row("legacy tables have a rule beside those of nf_tables", forwarding_not_legacy, &["foreign-drop-rule"], "iptables-legacy -A FORWARD -d 10.128.0.0/16 -j DROP") },
    // Settings of the node.
    Row { undo: "sysctl -qw net.ipv4.ip_forward=1", ..row("IPv4 is not forwarded", every, &["forwarding-off"], "sysctl -qw net.ipv4.ip_forward=0") },
    Row { undo: "sysctl -qw net.ipv6.conf.all.forwarding=1", ..row("IPv6 is not forwarded", every, &["forwarding-off"], "sysctl -qw net.ipv6.conf.all.forwarding=0") },
    Row {
        undo: "sysctl -qw net.bridge.bridge-nf-call-iptables=1; ip link del p0; ip link del p1",
        status: 0,
        ..row("bridged packets go past the rules", forwarding, &["bridged-past-rules"], "sysctl -qw net.bridge.bridge-nf-call-iptables=0
            for n in 0 1; do ip link add p$n type veth peer name q$n && ip link set p$n master cni0 && ip link set p$n type bridge_slave hairpin on; done")
    },
    Row {
        undo: "ip link del p0",
        status: 0,
        ..row("no port of the pods' bridge is in hairpin mode", forwarding, &["hairpin-off"], "ip link add p0 type veth peer name q0 && ip link set p0 master cni0")
    },
    Row {
        undo: "sysctl -qw net.ipv4.conf.eth0.forwarding=1",
        ..row("the interface towards other nodes does not forward", not_ipvs, &["forwarding-off"], "sysctl -qw net.ipv4.conf.eth0.forwarding=0")
    },
    Row { undo: "ip route del unreachable 10.128.1.0/24", status: 0, ..row("the route to another node's pods leads nowhere", not_ipvs, &["no-route"], "ip route add unreachable 10.128.1.0/24") },
    Row { undo: "ip route del blackhole 10.96.0.0/12", status: 0, ..row("the network of Services is a blackhole to the node itself", forwarding, &["no-route"], "ip route add blackhole 10.96.0.0/12") },
    Row { undo: "ip -6 route add default via fd00:200::12", status: 0, ..row("there is no route for IPv6", not_ipvs, &["no-route"], "ip -6 route del default") },
    Row { undo: "iptables-nft -F", ..row("tables of nf_tables drop beside the legacy ones", legacy, &["foreign-drop-rule"], "iptables-nft -A FORWARD -d 10.128.0.0/16 -j DROP") },
    Row { undo: "sysctl -qw net.ipv4.vs.conntrack=1", ..row("IPVS keeps its connections from connection tracking", ipvs, &["masquerading-off"], "sysctl -qw net.ipv4.vs.conntrack=0") },
    // Tables that other programs made of nf_tables themselves.
    Row {
        undo: "nft delete table inet firewalld",
        ..row("firewalld refuses in a table of its own", every, &["foreign-drop-rule"], "nft add table inet firewalld && nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }' && nft add rule inet firewalld filter_FORWARD reject with icmpx type admin-prohibited")
    },
    Row {
        undo: "nft delete table netdev guard",
        status: 0,
        ..row("a chain at a device drops", not_ipvs, &["foreign-nft-table"], "nft add table netdev guard && nft 'add chain netdev guard in { type filter hook ingress device eth0 priority 0; }' && nft add rule netdev guard in ip saddr 203.0.113.0/24 drop")
    },
    Row {
        undo: "nft delete table bridge guard",
        status: 0,
        ..row("a chain of bridges drops", not_ipvs, &["foreign-nft-table"], "nft add table bridge guard && nft 'add chain bridge guard forward { type filter hook forward priority 0; policy drop; }'")
    },
    Row {
        undo: "nft delete table inet guard",
        status: 0,
        ..row("a chain of inet at a device drops", not_ipvs, &["foreign-nft-table"], "nft add table inet guard && nft 'add chain inet guard in { type filter hook ingress device eth0 priority 0; }' && nft add rule inet guard in tcp dport 80 drop")
    },
    // Proxies that were here before.
    Row {
        undo: "iptables-legacy -t nat -F; iptables-legacy -t nat -X",
        status: 0,
        ..row("a proxy left its Services in the legacy tables", not_legacy, &["foreign-translation"], "iptables-legacy -t nat -N KUBE-SERVICES; iptables-legacy -t nat -A PREROUTING -j KUBE-SERVICES; iptables-legacy -t nat -N KUBE-SVC-OLD
            iptables-legacy -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j KUBE-SVC-OLD; iptables-legacy -t nat -A KUBE-SVC-OLD -p tcp -j DNAT --to-destination 10.128.77.7:8080")
    },
    Row {
        undo: "iptables-nft -t nat -F; iptables-nft -t nat -X",
        status: 0,
        ..row("a proxy left its Services in the tables of nf_tables", legacy, &["foreign-translation"], "iptables-nft -t nat -N KUBE-SERVICES; iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES
            iptables-nft -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j DNAT --to-destination 10.128.77.7:8080")
    },
    Row { status: 0, ..row("a proxy left its Services in iptables", nftables, &["foreign-translation"], "$IPT -t nat -N KUBE-SERVICES; $IPT -t nat -A PREROUTING -j KUBE-SERVICES; $IPT -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j DNAT --to-destination 10.128.77.7:8080") },
    Row {
        undo: "nft delete table ip kube-proxy",
        status: 0,
        ..row("a proxy left the table of mode nftables", iptables, &["foreign-nft-table"], "nft add table ip kube-proxy && nft 'add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100; }'")
    },
    row("what the node sends is dropped", every, &["foreign-drop-rule"], "$IPT -A OUTPUT -o lo -j ACCEPT; $IPT -P OUTPUT DROP"),
    row("the raw table drops what is for Services", every, &["foreign-drop-rule"], "$IPT -t raw -I PREROUTING -d 10.96.0.0/16 -j DROP"),
];

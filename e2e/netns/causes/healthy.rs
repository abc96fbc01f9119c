//! Rules of other programs on nodes where all is well.

/// A healthy node.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// For a shell: `$IPT` and `$IP6T` are the tools of the mode.
    pub(super) rules: &'static str,
    /// What the snapshot of the rules does not undo.
    pub(super) undo: &'static str,
    /// What is worth a note.
    pub(super) notes: &'static [&'static str],
    /// What else is, where the proxy writes to the nat table of the tools.
    pub(super) iptables_notes: &'static [&'static str],
    /// It is tried in mode ipvs, too, where each row takes seconds.
    pub(super) in_ipvs: bool,
}

const fn row(name: &'static str, rules: &'static str) -> Row {
    Row { name, rules, undo: "", notes: &[], iptables_notes: &[], in_ipvs: false }
}

pub(super) const ROWS: &[Row] = &[
    row("nothing but ours", "true"),
    Row { in_ipvs: true, ..row("Docker, with a network plugin that accepts pods", "$IPT-restore -n <<'END'
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A FORWARD -d 10.128.0.0/16 -j ACCEPT
-A FORWARD -s 10.128.0.0/16 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 5000 -j DNAT --to-destination 172.17.0.2:5000
COMMIT
END") },
    row("Docker 28", "$IPT-restore -n <<'END'
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A FORWARD -d 10.128.0.0/16 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
COMMIT
END"),
    row("flannel, where FORWARD drops", "$IPT-restore -n <<'END'
*filter
:FORWARD DROP [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.128.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.128.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.128.0.0/24 -d 10.128.0.0/16 -j RETURN
-A FLANNEL-POSTRTG -s 10.128.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
END"),
    Row { notes: &["foreign-drop-rule"], ..row("Calico, whose marks accept where FORWARD drops", CALICO) },
    Row { notes: &["foreign-drop-rule"], ..row("Calico's translations, and its check of sources", "$IPT-restore -n <<'END'
*nat
:cali-PREROUTING - [0:0]
:cali-OUTPUT - [0:0]
:cali-POSTROUTING - [0:0]
:cali-fip-dnat - [0:0]
:cali-fip-snat - [0:0]
:cali-nat-outgoing - [0:0]
-I PREROUTING -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING
-I OUTPUT -m comment --comment \"cali:tVnHkvAo15HuiPy0\" -j cali-OUTPUT
-I POSTROUTING -m comment --comment \"cali:O3lYWMrLQYEMJtB5\" -j cali-POSTROUTING
-A cali-PREROUTING -m comment --comment \"cali:r6XmIziWUJsdOK6Z\" -j cali-fip-dnat
-A cali-OUTPUT -m comment --comment \"cali:GBTAv2p5CwevEyJm\" -j cali-fip-dnat
-A cali-POSTROUTING -m comment --comment \"cali:Z-c7XtVd2Bq7s_hA\" -j cali-fip-snat
-A cali-POSTROUTING -m comment --comment \"cali:nYKhEzDlr11Jccal\" -j cali-nat-outgoing
COMMIT
*raw
:cali-PREROUTING - [0:0]
:cali-from-host-endpoint - [0:0]
-A PREROUTING -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING
-A cali-PREROUTING -m comment --comment \"cali:XFX5xbM8B9qR10JG\" -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i cali+ -m comment --comment \"cali:EWMPb0zVROM-woQp\" -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m comment --comment \"cali:V6ooGP15glg7wm91\" -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m comment --comment \"cali:Cg96MgVuoPm7UMRo\" -m mark --mark 0x0/0x40000 -j cali-from-host-endpoint
COMMIT
END") },
    row("firewalld's iptables rules, with pods in a trusted zone", "$IPT-restore -n <<'END'
*filter
:FORWARD_direct - [0:0]
:FORWARD_IN_ZONES - [0:0]
:FWDI_trusted - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A FORWARD -i lo -j ACCEPT
-A FORWARD -j FORWARD_direct
-A FORWARD -j FORWARD_IN_ZONES
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
END"),
    Row {
        undo: "nft delete table inet firewalld",
        in_ipvs: true,
        ..row("firewalld in a table of its own", "nft -f - <<'END'
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname \"cni0\" accept
    reject with icmpx type admin-prohibited
  }
}
END")
    },
    row("ufw that allows routed packets", "$IPT-restore -n <<'END'
*filter
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-reject-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
COMMIT
END"),
    row("ufw that denies routed packets but for those to pods", "$IPT-restore -n <<'END'
*filter
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -j ufw-user-forward
-A ufw-user-forward -d 10.128.0.0/16 -j ACCEPT
COMMIT
END"),
    Row { notes: &["foreign-translation"], iptables_notes: &["foreign-accept"], ..row("Istio's ambient mode", "$IPT-restore -n <<'END'
*mangle
:ISTIO_PRERT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
COMMIT
*nat
:ISTIO_OUTPUT - [0:0]
-I OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT -p tcp -m mark ! --mark 0x539/0xfff -m owner --uid-owner 1337 -j REDIRECT --to-ports 15001
COMMIT
END") },
    Row {
        undo: "ip address del 10.96.0.53/32 dev eth0",
        in_ipvs: true,
        notes: &["not-tracked"],
        ..row("NodeLocal DNSCache at the address of the DNS Service", "ip address add 10.96.0.53/32 dev eth0
$IPT-restore -n <<'END'
*raw
-A PREROUTING -d 10.96.0.53/32 -p udp -m udp --dport 53 -j CT --notrack
-A OUTPUT -d 10.96.0.53/32 -p udp -m udp --dport 53 -j CT --notrack
-A OUTPUT -s 10.96.0.53/32 -p udp -m udp --sport 53 -j CT --notrack
-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack
COMMIT
*filter
-A INPUT -d 10.96.0.53/32 -p udp -m udp --dport 53 -j ACCEPT
-A OUTPUT -s 10.96.0.53/32 -p udp -m udp --sport 53 -j ACCEPT
COMMIT
END")
    },
    row("kubelet", "$IPT-restore -n <<'END'
*mangle
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
END"),
    row("Cilium beside us", "$IPT-restore -n <<'END'
*raw
:CILIUM_PRE_raw - [0:0]
-A PREROUTING -m comment --comment \"cilium-feeder: CILIUM_PRE_raw\" -j CILIUM_PRE_raw
-A CILIUM_PRE_raw -m mark --mark 0x200/0xf00 -d 10.0.0.0/32 -j CT --notrack
COMMIT
*filter
:CILIUM_FORWARD - [0:0]
-A FORWARD -m comment --comment \"cilium-feeder: CILIUM_FORWARD\" -j CILIUM_FORWARD
-A CILIUM_FORWARD -o cilium_host -m comment --comment \"cilium: any->cluster on cilium_host forward accept\" -j ACCEPT
-A CILIUM_FORWARD -i lxc+ -m comment --comment \"cilium: cluster->any on lxc+ forward accept\" -j ACCEPT
COMMIT
END"),
    row("libvirt", "$IPT-restore -n <<'END'
*filter
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWO - [0:0]
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
COMMIT
END"),
    row("Podman", "$IPT-restore -n <<'END'
*filter
:NETAVARK_FORWARD - [0:0]
-A FORWARD -m comment --comment \"netavark firewall rules\" -j NETAVARK_FORWARD
-A NETAVARK_FORWARD -d 10.88.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A NETAVARK_FORWARD -s 10.88.0.0/16 -j ACCEPT
COMMIT
*nat
:NETAVARK-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT
COMMIT
END"),
    Row { in_ipvs: true, ..row("a network plugin's host ports", "$IPT-restore -n <<'END'
*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-DN-0123456789abcdef - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 8443 -j CNI-DN-0123456789abcdef
-A CNI-DN-0123456789abcdef -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.128.0.7:443
COMMIT
END") },
    row("the network plugin of AWS", "$IPT-restore -n <<'END'
*mangle
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
COMMIT
*nat
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
-A PREROUTING -i eni+ -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-CONNMARK-CHAIN-0 ! -d 10.0.0.0/8 -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/8 -j RETURN
COMMIT
END"),
    // Clients of its network that come another way do not get to the node.
    Row { notes: &["foreign-drop-rule"], ..row("Tailscale", "$IPT-restore -n <<'END'
*filter
:ts-forward - [0:0]
:ts-input - [0:0]
-A INPUT -j ts-input
-A FORWARD -j ts-forward
-A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
-A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
-A ts-forward -s 100.64.0.0/10 -o tailscale0 -j DROP
-A ts-forward -o tailscale0 -j ACCEPT
-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
COMMIT
END") },
    row("fail2ban", "$IPT-restore -n <<'END'
*filter
:f2b-sshd - [0:0]
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A f2b-sshd -s 203.0.113.66/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-sshd -j RETURN
COMMIT
END"),
    Row { notes: &["foreign-drop-rule"], ..row("a list of clients that are kept out", "$IPT -I FORWARD -s 203.0.113.0/24 -j DROP") },
    row("what belongs to no connection is dropped", "$IPT -I FORWARD -m conntrack --ctstate INVALID -j DROP"),
    Row {
        undo: "ip route del blackhole 10.128.1.0/26; ip route del 10.128.1.5",
        ..row("Calico's blackhole for a block, with routes to the pods in it", "ip route add blackhole 10.128.1.0/26
ip route add 10.128.1.5 via 10.200.0.12")
    },
    Row {
        undo: "ip link del mgmt0",
        ..row("an interface for management that does not forward", "ip link add mgmt0 type bridge && ip addr add 192.0.2.129/28 dev mgmt0 && ip link set mgmt0 up
sysctl -qw net.ipv4.conf.mgmt0.forwarding=0")
    },
    Row {
        undo: "nft delete table netdev count; nft delete table bridge pass",
        ..row("tables of devices and bridges that stop nothing", "nft -f - <<'END'
table netdev count {
  chain in {
    type filter hook ingress device \"eth0\" priority 0; policy accept;
    counter comment \"drop nothing\"
  }
}
table bridge pass {
  chain forward {
    type filter hook forward priority 0; policy accept;
    meta protocol ip counter accept
  }
}
END")
    },
    row("a masquerading agent", "$IPT-restore -n <<'END'
*nat
:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
-A IP-MASQ-AGENT -d 10.0.0.0/8 -j RETURN
-A IP-MASQ-AGENT -j MASQUERADE
COMMIT
END"),
];

const CALICO: &str = "$IPT-restore -n <<'END'
*filter
:FORWARD DROP [0:0]
:cali-FORWARD - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-from-hep-forward - [0:0]
:cali-to-hep-forward - [0:0]
:cali-cidr-block - [0:0]
-I FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD
-A FORWARD -m comment --comment \"cali:S93hcgKJrXEqnTfs\" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -m comment --comment \"cali:vjrMJCRpqwy5oRoX\" -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -m comment --comment \"cali:A_sPAO0mcxbT9mOV\" -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
-A cali-FORWARD -i cali+ -m comment --comment \"cali:8ZoYfO5HKXWbB3pk\" -j cali-from-wl-dispatch
-A cali-FORWARD -o cali+ -m comment --comment \"cali:jdEuaPBe14V2hutn\" -j cali-to-wl-dispatch
-A cali-FORWARD -m comment --comment \"cali:12bc6HljsMKsmfr-\" -j cali-to-hep-forward
-A cali-FORWARD -m comment --comment \"cali:NOSxoaGx8OIstr1z\" -j cali-cidr-block
COMMIT
END";

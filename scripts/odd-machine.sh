#!/usr/bin/env bash
# Runs a command, as root, on a machine that has the addresses of the tests' nodes and Services for its own,
# routes that lead nowhere, rules of others in both flavours, strict settings, and a copy of the program at work:
#
#   scripts/odd-machine.sh make unit
#
# The machine is a network namespace; /run/kube-proxy-rs is its own, and the rest of the files is this one's.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" != --inside ]; then
    [ "$(id -u)" = 0 ] || { echo "odd-machine: needs root" >&2; exit 1; }
    # There is no way to the registry from there.
    cargo fetch --locked --quiet
    cargo build --locked --bin kube-proxy-rs
    # What is run may build the program again; the copy stays as it is.
    copy=$(mktemp -d)
    cp "${CARGO_TARGET_DIR:-target}/debug/kube-proxy-rs" "$copy/"
    status=0
    unshare --net --mount "$0" --inside "$copy" "$@" || status=$?
    rm -rf "$copy"
    exit "$status"
fi
copy=$2
shift 2

# What is in /sys/class/net is the namespace's that mounts it.
mount -t sysfs sysfs /sys
ip link set lo up
ip link add odd type bridge
ip link set odd up
for address in 10.200.0.5/24 10.96.0.1/12 10.128.0.7/16 192.168.7.1/16 192.0.2.1/24 203.0.113.5/24; do
    ip address add "$address" dev odd
done
for address in fd00:200::5/64 fd00:96::1/112 fd00:128::7/32 2001:db8::1/32; do
    ip address add "$address" dev odd nodad
done
ip address add 10.200.0.11/32 dev lo
ip address add 10.128.0.5/32 dev lo
ip route add default via 10.200.0.1 dev odd
ip route add blackhole 10.244.0.0/16
ip -6 route add default via fd00:200::1 dev odd
sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.ip_forward=0 net.ipv4.ip_local_port_range="30000 40000"
for tool in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
    "$tool" -A INPUT -i lo -j ACCEPT
    "$tool" -P INPUT DROP
    "$tool" -P FORWARD DROP
    "$tool" -t nat -N DOCKER
    "$tool" -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    "$tool" -t mangle -A PREROUTING -m mark --mark 0x4000/0x4000 -j MARK --set-xmark 0x0/0x4000
done
nft -f - <<'END'
table inet firewall {
    chain in {
        type filter hook input priority 10; policy accept;
        iifname != "lo" tcp dport 30000-32767 drop
    }
    chain through {
        type filter hook forward priority 10; policy drop;
    }
}
END
mkdir -p /run/kube-proxy-rs
mount -t tmpfs tmpfs /run/kube-proxy-rs
"$copy/kube-proxy-rs" --manifests examples/shop.yaml --hostname-override node-0 \
    --cluster-cidr 10.128.0.0/16,fd00:128::/32 >"$copy/log" 2>&1 &
proxy=$!
trap 'kill $proxy' EXIT
for _ in {1..100}; do
    iptables-save -t nat 2>/dev/null | grep -q 'shop/web:http cluster IP' && break
    sleep 0.1
done
kill -0 "$proxy" || { tail "$copy/log" >&2; exit 1; }
status=0
"$@" || status=$?
kill -0 "$proxy" || { echo "odd-machine: the copy has ended:" >&2; tail "$copy/log" >&2; exit 1; }
exit "$status"

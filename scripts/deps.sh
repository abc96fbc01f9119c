#!/usr/bin/env bash
# Installs what is run besides cargo, when any of it is missing.
#
#   scripts/deps.sh [--list] [PURPOSE...]     demo (the least), test, vm, page, bench
#
# --list prints the packages of these purposes, whether they are there or not, and installs nothing.
set -euo pipefail

# command:package
needed=(iptables-nft:iptables ip:iproute2 cc:build-essential)
ipvs=(ipset:ipset ipvsadm:ipvsadm)
test=(
    "${ipvs[@]}"
    iptables-legacy:iptables
    conntrack:conntrack
    nft:nftables
    ps:procps
    curl:curl
    readelf:binutils
    openssl:openssl
    python3:python3
    promtool:prometheus
)
list=
for purpose in "$@"; do
    case $purpose in
    --list) list=yes ;;
    demo) ;;
    test) needed+=("${test[@]}") ;;
    # The virtual machine of e2e/vm.
    vm) needed+=("${ipvs[@]}" qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod) ;;
    # The status page's test.
    page) needed+=("${test[@]}" chromium:chromium unshare:util-linux) ;;
    # Instruction counts.
    bench) needed+=("${test[@]}" valgrind:valgrind) ;;
    *)
        echo "deps: $purpose is none of demo, test, vm, page, bench" >&2
        exit 2
        ;;
    esac
done
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for entry in "${needed[@]}"; do
    [ -z "$list" ] && command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
done
# Debian's python3 comes without what makes virtual environments; chart tests need one.
if [[ " ${needed[*]} " == *" python3:"* ]] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3-venv)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t packages < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ -n "$list" ]; then
    printf '%s\n' "${packages[@]}"
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing: ${packages[*]}. Run this as root on Debian or Ubuntu, or install them yourself." >&2
    exit 1
fi
echo "Installing with apt-get: ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    exit 1
fi

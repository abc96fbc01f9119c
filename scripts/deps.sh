#!/usr/bin/env bash
# Installs what is run besides cargo, when any of it is missing.
#
#   scripts/deps.sh [--list] [PURPOSE...]     demo (the least), nft, test, vm, page, bench, cross-ARCH, package, node,
#                                              publish
#
# --list prints the packages of these purposes, whether they are there or not, and installs nothing.
set -euo pipefail

# command:packages
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
    # What shows mode nftables to people.
    nft) needed+=(nft:nftables) ;;
    test) needed+=("${test[@]}") ;;
    # The virtual machine of e2e/vm.
    vm) needed+=("${ipvs[@]}" qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod) ;;
    # The status page's test.
    page) needed+=("${test[@]}" chromium:chromium unshare:util-linux) ;;
    # Instruction counts.
    bench) needed+=("${test[@]}" valgrind:valgrind) ;;
    # Programs for the other architecture.
    cross-arm64) needed+=("aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu libc6-dev-arm64-cross") ;;
    cross-amd64) needed+=("x86_64-linux-gnu-gcc:gcc-x86-64-linux-gnu libc6-dev-amd64-cross") ;;
    # The Debian package's rules and its unit, and programs of the other architecture.
    package) needed+=("${test[@]}" lintian:lintian systemd-analyze:systemd qemu-aarch64-static:qemu-user-static) ;;
    # A node to install it on.
    node) needed+=(mmdebstrap:mmdebstrap systemd-nspawn:systemd-container) ;;
    # Bringing a release to a registry.
    publish) needed+=(skopeo:skopeo) ;;
    *)
        echo "deps: $purpose is none of demo, nft, test, vm, page, bench, cross-amd64, cross-arm64, package, node, publish" >&2
        exit 2
        ;;
    esac
done
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for entry in "${needed[@]}"; do
    # shellcheck disable=SC2206 # an entry may name several packages
    [ -z "$list" ] && command -v "${entry%%:*}" >/dev/null || missing+=(${entry##*:})
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

#!/usr/bin/env bash
# Installs what the demo and the tests run besides cargo, when any of it is missing.
set -euo pipefail

# command:package
needed=(
    iptables-nft:iptables
    iptables-legacy:iptables
    ipset:ipset
    ipvsadm:ipvsadm
    conntrack:conntrack
    nft:nftables
    ip:iproute2
    ps:procps
    curl:curl
    cc:build-essential
    readelf:binutils
    openssl:openssl
    python3:python3
    promtool:prometheus
)
# For the virtual machine of e2e/vm.
[ "${1:-}" != vm ] || needed+=(qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod)
# For the status page's test.
[ "${1:-}" != page ] || needed+=(chromium:chromium unshare:util-linux)
# For instruction counts.
[ "${1:-}" != bench ] || needed+=(valgrind:valgrind)
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for entry in "${needed[@]}"; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
done
# Debian's python3 comes without what makes virtual environments; chart tests need one.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t packages < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Missing: ${packages[*]}. Run 'make deps' as root on Debian or Ubuntu, or install them yourself." >&2
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

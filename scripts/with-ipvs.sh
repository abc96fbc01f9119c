#!/usr/bin/env bash
# Runs a command where the kernel has ip_vs: here if it has, else in the virtual machine of e2e/vm.
set -euo pipefail
has_ipvs() {
    unshare --net sh -c 'ip link add kube-ipvs0 type dummy && ipvsadm -Ln' >/dev/null 2>&1
}
has_ipvs && exec "$@"
here=$(cd "$(dirname "$0")" && pwd)
"$here/deps.sh" vm
echo "no ip_vs here: running in a virtual machine" >&2
exec "$here/../e2e/vm/run" "$@"

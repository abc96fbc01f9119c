#!/usr/bin/env bash
# Runs what needs the kernel's ip_vs: the tests of ipvs-rs and of IPVS mode. On this kernel if it has
# ip_vs and dummy interfaces, else in the virtual machine of e2e/vm.
#
#   scripts/test-ipvs.sh [FILTER]     only tests whose name holds FILTER
set -euo pipefail
cd "$(dirname "$0")/.."
filter=${1:-ipvs}

built() { # the test binary that cargo names last
    cargo test --locked --no-run "$@" 2>&1 | tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p' | tail -n 1
}
mode=$(built --test netns)
library=$(built -p ipvs-rs --test live)

has_ipvs() {
    unshare --net sh -c 'ip link add kube-ipvs0 type dummy && ipvsadm -Ln' >/dev/null 2>&1
}
if has_ipvs; then
    run=()
else
    echo "no ip_vs here: running in a virtual machine" >&2
    run=(e2e/vm/run)
    export VM_TIMEOUT=${VM_TIMEOUT:-3000}
fi
"${run[@]}" "$library" --ignored
"${run[@]}" "$mode" --ignored "$filter"
